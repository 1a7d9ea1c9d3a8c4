"""Heads beyond the normal distribution: against SciPy, by quadrature, and by what they learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from deeplense.data.schema import Batch
from deeplense.models.heads import HEADS, Head, Target
from deeplense.models.heads.base import Truths
from deeplense.models.heads.flow import FlowHead

MASS = Target("mass", "Msun", 5.0, 2.0)
BOUNDED = [Target("log10_m", "", -23.0, 0.6, -24.0, -22.0), Target("f_sub", "", 0.05, 0.03, 0.0, 0.1)]


def _head(kind: str, targets: list[Target], num_features: int = 4) -> Head:
    torch.manual_seed(0)
    return HEADS[kind](num_features, kind, Truths([], targets, list(range(len(targets)))))


def _batch(params: torch.Tensor) -> Batch:
    n = torch.arange(len(params))
    return Batch(torch.zeros(len(params), 1, 1, 1), n * 0, params, n)


def test_student_t_is_scipys() -> None:
    head = _head("student_t", [MASS])
    raw = torch.tensor([[0.3, -0.5, -9.0], [0.3, -0.5, 1.0], [-2.0, 1.0, 500.0]])
    p: Any = head.distribution(raw)
    df, loc, scale = (x[:, 0].numpy().astype(float) for x in (p.df, p.loc, p.scale))
    theirs = stats.t(df, loc, scale)
    truth = torch.tensor([4.0, 7.5, -3.0])
    log_p, pit = head.judge("mass", raw, truth)
    np.testing.assert_allclose(log_p.numpy(), theirs.logpdf(truth.numpy()), rtol=1e-5)
    np.testing.assert_allclose(pit.numpy(), theirs.cdf(truth.numpy()), rtol=1e-5)
    said = head.outputs(raw)["mass"]
    for name, share in (("q05", 0.05), ("q95", 0.95)):
        np.testing.assert_allclose(said[name].numpy(), theirs.ppf(share), rtol=1e-5)
    np.testing.assert_allclose(said["scale"].numpy(), theirs.std(), rtol=1e-4)


def test_quantiles_of_a_mixture_hold_their_shares() -> None:
    head = _head("mixture", [MASS, MASS])
    raw = 2 * torch.randn(50, head.n_out)
    p: Any = head.distribution(raw)
    for name, share in (("q05", 0.05), ("q95", 0.95)):
        at = torch.stack([head._quantiles(raw)[name][:, t] for t in range(2)], 1)  # type: ignore[operator]
        assert torch.allclose(p.cdf(at), torch.full((50, 2), share), atol=2e-5)


def test_a_mixture_learns_two_modes() -> None:
    head = _head("mixture", [Target("x", "", 0.0, 1.0)])
    x = torch.cat([torch.randn(200) * 0.1 - 1, torch.randn(200) * 0.1 + 1])[:, None]
    raw = torch.nn.Parameter(head.last.bias.detach().clone())
    optimiser = torch.optim.Adam([raw], 0.05)
    for _ in range(150):
        optimiser.zero_grad()
        loss = head.loss(raw.expand(400, -1), _batch(x))[0].sum()
        loss.backward()
        optimiser.step()
    # two normals of .1, half the weight each
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * math.log(2 * math.pi * math.e * 0.01), abs=0.1)


def test_flows_are_normalised_and_fill_the_prior_only() -> None:
    head = _head("flow", BOUNDED)
    raw = torch.randn(2, head.n_out)
    n = 220
    low, high = (np.array([getattr(t, k) for t in BOUNDED]) for k in ("low", "high"))
    # midpoints, fine towards the edges, where the density may rise
    share = 0.5 - 0.5 * np.cos(np.pi * (np.arange(n) + 0.5) / n)
    weight = 0.5 * np.pi / n * np.sin(np.pi * (np.arange(n) + 0.5) / n)
    a, b = np.meshgrid(share, share, indexing="ij")
    cells = torch.from_numpy(low + (high - low) * np.stack([a.ravel(), b.ravel()], 1)).float()
    for row in raw:
        with torch.no_grad():
            p = head.distribution(row[None].expand(len(cells), -1)).log_prob(cells).double().exp()
        total = float((p.numpy() * np.outer(weight, weight).ravel()).sum() * np.prod(high - low))
        assert total == pytest.approx(1.0, abs=0.02)
    said = head.outputs(1e4 * torch.randn(20, head.n_out))
    for t in BOUNDED:
        assert t.low is not None
        assert t.high is not None
        for values in (said[t.name]["q05"], said[t.name]["mean"], said[t.name]["q95"]):
            assert ((values >= t.low - 1e-5) & (values <= t.high + 1e-5)).all()


def test_a_flow_learns_a_bend_that_no_normal_has() -> None:
    head = _head("flow", [Target("x", "", 0.0, 1.0), Target("y", "", 0.0, 1.0)], num_features=1)
    assert isinstance(head, FlowHead)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2000, generator=draw)
    truths = torch.stack([x, 0.5 * x * x + 0.1 * torch.randn(2000, generator=draw)], 1)
    optimiser = torch.optim.Adam(head.parameters(), 5e-3)
    for step in range(80):
        rows = torch.arange(step * 200, step * 200 + 200) % 2000
        optimiser.zero_grad()
        loss = head.loss(head(torch.ones(200, 1)), _batch(truths[rows]))[0].sum()
        loss.backward()
        optimiser.step()
    both = 0.5 * math.log(2 * math.pi * math.e)
    entropy = both + both + math.log(0.1)
    normal = float(0.5 * torch.logdet(2 * math.pi * math.e * torch.cov(truths.T)))
    assert loss.item() < entropy + 0.5 * (normal - entropy)
    # what it says of a number is what its draws say, and its cumulative probabilities are uniform
    _, pit = head.judge("y", head(torch.ones(2000, 1)), truths[:, 1])
    assert stats.kstest(pit.numpy(), "uniform").statistic < 0.12
