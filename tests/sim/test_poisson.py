"""Poisson numbers: exact inversion, the right distribution in every range, seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from deeplense.sim.poisson import BRIGHT, FAINT, added_up, inverted, poisson


@settings(max_examples=200, deadline=None)
@given(w=st.floats(-5.7, 5.7), rate=st.floats(BRIGHT, 1e6))
def test_inversion_is_exact(w: float, rate: float) -> None:
    k = float(inverted(np.array([w]), np.array([rate]))[0])
    p = float(special.ndtr(w))
    # to the rounding of the distribution function itself
    assert special.pdtr(k, rate) >= p - 1e-12
    assert k == 0 or special.pdtr(k - 1, rate) < p + 1e-12


@pytest.mark.parametrize("rate", [4.0, 4.3, 6.7, 10.0, 17.3, 100.0, 600.7])
def test_inversion_agrees_with_scipy_on_a_fine_grid(rate: float) -> None:
    w = np.linspace(-5.5, 5.5, 200_001)
    np.testing.assert_array_equal(inverted(w, np.full(w.shape, rate)), stats.poisson.ppf(special.ndtr(w), rate))


def test_probabilities_added_up_agree_with_scipy() -> None:
    generator = np.random.default_rng(2)
    rate = np.exp(generator.uniform(np.log(FAINT), np.log(BRIGHT), 200_000))
    u = np.concatenate([generator.random(len(rate) - 2000), 1 - 10 ** generator.uniform(-16, -3, 2000)])
    expected = stats.poisson.ppf(u, rate)
    found = added_up(u, rate)
    # in the last digits of u the distribution function is rounded too
    assert (found[u < 1 - 1e-12] == expected[u < 1 - 1e-12]).all()
    assert np.abs(found - expected).max() <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_changes_no_number(dtype: type) -> None:
    generator = np.random.default_rng(3)
    rate = np.exp(generator.uniform(np.log(BRIGHT), np.log(1e6), 200_000)).astype(np.float32)
    w = generator.standard_normal(len(rate)).astype(np.float32)
    exact = stats.poisson.ppf(special.ndtr(w.astype(np.float64)), rate.astype(np.float64))
    found = inverted(w.astype(dtype), rate.astype(dtype))
    assert (found == exact).mean() > 0.9999  # scipy's own search is off by one now and then
    assert np.abs(found - exact).max() <= 1


@pytest.mark.parametrize("rate", [0.001, 0.5 * FAINT, FAINT, 0.4, 3.0, 3.99, BRIGHT, 30.0, 500.0])
def test_draws_follow_the_distribution(rate: float) -> None:
    draws = poisson(np.full((300, 300), rate, np.float32), np.random.default_rng(1)).ravel().astype(int)
    low, high = int(stats.poisson.ppf(1e-3, rate)), int(stats.poisson.ppf(1 - 1e-3, rate))
    counts = np.bincount(draws.clip(low, high + 1) - low, minlength=high + 2 - low)
    edges = np.arange(low, high + 1)
    share = np.diff(np.concatenate([[0.0], stats.poisson.cdf(edges, rate), [1.0]]))
    keep = share * len(draws) > 5
    if keep.sum() > 1:
        expected = np.append(share[keep], share[~keep].sum()) * len(draws)
        found = np.append(counts[keep], counts[~keep].sum())
        good = expected > 5
        statistic = ((found - expected)[good] ** 2 / expected[good]).sum()
        assert stats.chi2(good.sum() - 1).sf(statistic) > 1e-3
    assert draws.mean() == pytest.approx(rate, abs=5 * (rate / len(draws)) ** 0.5)


def test_pixels_of_all_ranges_in_one_image_keep_their_places() -> None:
    rate = np.array([[0.01, 0.3, 20.0, 0.0], [400.0, 0.02, 5.0, 0.04]], np.float32)
    generator = np.random.default_rng(0)
    draws = np.stack([poisson(rate, generator) for _ in range(20_000)])
    np.testing.assert_allclose(draws.mean(0), rate, atol=5 * (400 / 20_000) ** 0.5 * np.sqrt(rate.max() / 400))
    z = (draws.mean(0) - rate)[rate > 0] / np.sqrt(rate[rate > 0] / 20_000)
    assert np.abs(z).max() < 5
    assert (draws[:, 0, 3] == 0).all()
    flat = draws.reshape(len(draws), -1)[:, rate.ravel() > 0]
    correlation = np.corrcoef(flat.T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.04


def test_the_same_generator_gives_the_same_draws() -> None:
    rate = np.random.default_rng(0).exponential(20, (50, 50)).astype(np.float32)
    first, again, other = (poisson(rate, np.random.default_rng(s)) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
