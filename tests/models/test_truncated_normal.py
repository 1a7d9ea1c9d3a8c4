from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from deeplense.models.heads.truncated_normal import TruncatedNormal, _elementary_log_ndtr

LOW, HIGH = -24.0, -22.0


def _make(loc: float, scale: float, dtype: torch.dtype = torch.float64) -> TruncatedNormal:
    return TruncatedNormal(torch.tensor([loc], dtype=dtype), torch.tensor([scale], dtype=dtype), LOW, HIGH)


@settings(max_examples=60, deadline=None)
@given(st.floats(-26, -20), st.floats(0.1, 5))
def test_agrees_with_scipy(loc: float, scale: float) -> None:
    ours = _make(loc, scale)
    theirs = stats.truncnorm((LOW - loc) / scale, (HIGH - loc) / scale, loc, scale)
    x = np.linspace(LOW, HIGH, 9)
    assert np.allclose(ours.log_prob(torch.from_numpy(x)), theirs.logpdf(x), rtol=1e-8, atol=1e-8)
    assert np.allclose(ours.cdf(torch.from_numpy(x)), theirs.cdf(x), atol=1e-7)
    assert ours.mean.item() == pytest.approx(theirs.mean(), abs=1e-6)
    assert ours.stddev.item() == pytest.approx(theirs.std(), rel=1e-4)
    u = np.array([0.05, 0.5, 0.95])
    assert np.allclose(ours.icdf(torch.from_numpy(u)), theirs.ppf(u), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(-35, -10), st.floats(1e-3, 1e6))
def test_far_and_wide_stay_finite_with_finite_gradients(loc: float, scale: float) -> None:
    loc_, scale_ = (torch.tensor([v], requires_grad=True) for v in (loc, scale))
    p = TruncatedNormal(loc_, scale_, LOW, HIGH)
    p.log_prob(torch.tensor([-23.5])).sum().backward()
    for value in (
        loc_.grad,
        scale_.grad,
        p.mean,
        p.stddev,
        p.icdf(torch.tensor(0.9)),
        p.cdf(torch.tensor(-23.0)),
    ):
        assert value is not None
        assert value.isfinite().all()
    assert LOW <= p.icdf(torch.tensor(0.05)).item() <= p.icdf(torch.tensor(0.95)).item() <= HIGH
    assert LOW <= p.mean.item() <= HIGH
    assert 0 < p.stddev.item() <= (HIGH - LOW) / 12**0.5 + 1e-6


def test_tends_to_the_uniform_distribution() -> None:
    p = _make(-22.3, 1e5, torch.float32)
    assert p.log_prob(torch.tensor([-23.9, -23.0, -22.1])).tolist() == pytest.approx([-np.log(2)] * 3, abs=1e-4)
    assert p.mean.item() == pytest.approx(-23, abs=1e-4)
    assert p.stddev.item() == pytest.approx(2 / 12**0.5, abs=1e-3)
    assert p.icdf(torch.tensor([0.05, 0.95])).tolist() == pytest.approx([-23.9, -22.1], abs=1e-4)


def test_outside_has_no_probability() -> None:
    p = _make(-23, 0.5)
    assert p.log_prob(torch.tensor([-24.1, -21.9])).tolist() == [-np.inf, -np.inf]
    assert p.cdf(torch.tensor([-30.0, 0.0])).tolist() == [0.0, 1.0]


def test_samples_follow_it_and_carry_gradients() -> None:
    loc, scale = (torch.tensor(v, requires_grad=True, dtype=torch.float64) for v in (-22.2, 0.6))
    p = TruncatedNormal(loc, scale, LOW, HIGH)
    torch.manual_seed(0)
    x = p.rsample(torch.Size([20000]))
    frozen = stats.truncnorm((LOW + 22.2) / 0.6, (HIGH + 22.2) / 0.6, -22.2, 0.6)
    assert stats.kstest(x.detach().numpy(), frozen.cdf).pvalue > 0.01
    # the gradient of the samples' mean is that of the mean
    by_samples = torch.autograd.grad(x.mean(), [loc, scale], retain_graph=True)
    exact = torch.autograd.grad(p.mean, [loc, scale])
    assert torch.allclose(torch.stack(by_samples), torch.stack(exact), atol=0.01)


def test_what_an_exported_network_computes_is_the_same() -> None:
    z = torch.cat([torch.linspace(-9, 9, 4001, dtype=torch.float64), -torch.logspace(0, 4, 300, dtype=torch.float64)])
    assert np.allclose(_elementary_log_ndtr(z), special.log_ndtr(z.numpy()), rtol=1e-9, atol=1e-9)


def test_each_number_may_have_bounds_of_its_own() -> None:
    bounds = torch.tensor([-24.0, 0.0]), torch.tensor([-22.0, 6.0])
    p = TruncatedNormal(torch.tensor([[-23.0, 5.0]]), torch.tensor([[0.5, 2.0]]), *bounds)
    alone = [
        TruncatedNormal(torch.tensor([loc]), torch.tensor([scale]), low, high)
        for loc, scale, low, high in ((-23.0, 0.5, -24.0, -22.0), (5.0, 2.0, 0.0, 6.0))
    ]
    value = torch.tensor([[-23.3, 1.0]])
    for name in ("log_prob", "cdf"):
        both = getattr(p, name)(value)[0]
        assert torch.allclose(both, torch.cat([getattr(q, name)(value[0, k]) for k, q in enumerate(alone)]))
    quantiles = p.icdf(torch.tensor([0.05, 0.95])[:, None, None])
    assert quantiles.shape == (2, 1, 2)
    for k, q in enumerate(alone):
        assert torch.allclose(quantiles[:, 0, k], q.icdf(torch.tensor([0.05, 0.95])))
