"""Every prior against its distribution in scipy, and what a bad one is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from deeplense import rng
from deeplense.errors import UserError
from deeplense.sim.priors import PRIORS, Prior


class PowerLaw(stats.rv_continuous):
    """dN/dm ∝ m^slope, normalised by quadrature: nothing of the code's own inversion."""

    def __init__(self, low: float, high: float, slope: float) -> None:
        super().__init__(a=low, b=high)
        self.slope = slope
        self.norm = integrate.quad(lambda u: np.exp(u * (slope + 1)), np.log(low), np.log(high))[0]

    def cdf(self, m: Any, *_: Any, **__: Any) -> Any:
        def one(x: float) -> float:
            return float(integrate.quad(lambda u: np.exp(u * (self.slope + 1)), np.log(self.a), np.log(x))[0])

        grid = np.geomspace(self.a, self.b, 400)
        table = np.array([one(x) for x in grid]) / self.norm
        return np.interp(np.log(m), np.log(grid), table)


class Cut(stats.rv_continuous):
    """A normal between bounds."""

    def __init__(self, mean: float, sigma: float, low: float, high: float) -> None:
        super().__init__(a=low, b=high)
        self.whole = stats.norm(mean, sigma)

    def cdf(self, x: Any, *_: Any, **__: Any) -> Any:
        low, high = self.whole.cdf([self.a, self.b])
        return (self.whole.cdf(np.clip(x, self.a, self.b)) - low) / (high - low)


# name -> arguments and the same distribution in scipy; the contract test fails when an entry is missing
ORACLES: dict[str, list[tuple[list[float], Any]]] = {
    "uniform": [([-0.35, 0.35], stats.uniform(-0.35, 0.7)), ([-24, -22], stats.uniform(-24, 2))],
    "log_uniform": [([1e3, 10**3.5], stats.loguniform(1e3, 10**3.5)), ([1e-3, 1e3], stats.loguniform(1e-3, 1e3))],
    "normal": [([3, 0.5], stats.norm(3, 0.5)), ([-1e6, 1e3], stats.norm(-1e6, 1e3))],
    "power_law": [
        ([1e6, 1e10, -1.9], PowerLaw(1e6, 1e10, -1.9)),
        ([1e6, 1e10, -0.9], PowerLaw(1e6, 1e10, -0.9)),
        ([1.0, 8.0, -1], stats.loguniform(1, 8)),
        ([1.0, 2.0, 2.5], PowerLaw(1, 2, 2.5)),
    ],
    # scipy's truncnorm draws the same numbers: the oracle is the plain normal, rescaled between the bounds
    "truncated_normal": [
        ([0.5, 0.2, 0.0, 1.0], Cut(0.5, 0.2, 0.0, 1.0)),
        ([3.0, 0.5, 3.2, 9.0], Cut(3.0, 0.5, 3.2, 9.0)),
    ],
    "poisson": [([25], stats.poisson(25)), ([0.3], stats.poisson(0.3))],
    "choice": [([1, 3, 4, 6, 7, 9], stats.rv_discrete(values=([1, 3, 4, 6, 7, 9], [1 / 6] * 6)))],
}
DISCRETE = ("poisson", "choice")


@pytest.mark.parametrize("kind", PRIORS)
def test_every_prior_follows_its_distribution(kind: str) -> None:
    for arguments, oracle in ORACLES[kind]:
        draws = Prior.parse({kind: arguments}, "here").sample(rng.generator(0, "test", len(arguments)), (20000,))
        assert draws.dtype == np.float64
        if kind in DISCRETE:
            top = int(oracle.ppf(0.999 if kind == "poisson" else 1))
            counts = np.bincount(draws.astype(int).clip(max=top + 1), minlength=top + 2)
            expected = np.append(oracle.pmf(np.arange(top + 1)), oracle.sf(top)) * len(draws)
            keep = expected > 5
            pull = (counts - expected)[keep] ** 2 / expected[keep]
            assert stats.chi2.sf(pull.sum(), keep.sum() - 1) > 1e-3
            assert np.array_equal(draws, draws.round())
        else:
            assert stats.kstest(draws, oracle.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", PRIORS)
def test_every_prior_has_the_shape_asked_for_and_repeats(kind: str) -> None:
    prior = Prior.parse({kind: ORACLES[kind][0][0]}, "here")
    assert not prior.constant
    draws = prior.sample(rng.generator(5, "test"), (7, 3))
    assert draws.shape == (7, 3)
    assert len(np.unique(draws)) > 5
    np.testing.assert_array_equal(draws, prior.sample(rng.generator(5, "test"), (7, 3)))
    assert not np.array_equal(draws, prior.sample(rng.generator(6, "test"), (7, 3)))


@pytest.mark.parametrize("kind", [k for k in PRIORS if k != "choice"])
def test_every_prior_refuses_a_wrong_count_or_what_is_no_number(kind: str) -> None:
    good = ORACLES[kind][0][0]
    names = ", ".join(PRIORS[kind].arguments)
    for bad in ([*good, 1.0], good[:-1], ["a", *good[1:]], [True, *good[1:]], [math.inf] * len(good), [], {"low": 1}):
        with pytest.raises(UserError, match=rf"here\.it: {kind} takes \[{names}\]"):
            Prior.parse({kind: bad}, "here.it")


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "power_law"])
@settings(max_examples=25, deadline=None)
@given(a=st.floats(1e-3, 1e3), gap=st.floats(1e-3, 1e3), slope=st.floats(-4, 4))
def test_ranges_hold_in_one_direction_alone(kind: str, a: float, gap: float, slope: float) -> None:
    rest = [slope] if kind == "power_law" else []
    draws = Prior.parse({kind: [a, a + gap, *rest]}, "here").sample(rng.generator(0, "p"), (200,))
    assert a * (1 - 1e-9) <= draws.min() < draws.max() <= (a + gap) * (1 + 1e-9)
    for low in (a + gap, a):
        with pytest.raises(UserError, match=rf"here: {kind} .*is not below high .*swap them"):
            Prior.parse({kind: [low, a, *rest]}, "here")


@settings(max_examples=25, deadline=None)
@given(low=st.floats(0.1, 10), ratio=st.floats(1.1, 100), eps=st.floats(-1e-7, 1e-7))
def test_a_power_law_is_smooth_through_slope_minus_one(low: float, ratio: float, eps: float) -> None:
    """The closed form divides by slope + 1; near it the draws must tend to the log-uniform ones."""
    near = Prior.parse({"power_law": [low, low * ratio, -1 + eps]}, "x").sample(rng.generator(0, "p"), (100,))
    u = rng.generator(0, "p").random(100)
    np.testing.assert_allclose(near, low * ratio**u, rtol=1e-5)


def test_positive_ranges() -> None:
    for kind, rest in (("log_uniform", []), ("power_law", [-1.9])):
        for low in (0, -1):
            with pytest.raises(UserError, match="must be positive"):
                Prior.parse({kind: [low, 2, *rest]}, "here")
    with pytest.raises(UserError, match="sigma 0 must be positive"):
        Prior.parse({"normal": [0, 0]}, "here")
    with pytest.raises(UserError, match="mean -1 must not be negative"):
        Prior.parse({"poisson": -1}, "here")


@pytest.mark.parametrize(
    "spec", ["1", None, True, math.nan, math.inf, [0, 1], {}, {"uniform": [0, 1], "normal": [0, 1]}]
)
def test_what_is_no_prior(spec: Any) -> None:
    with pytest.raises(UserError, match=r"a\.b: .* is not a prior; write a number or {uniform: \[low, high\]}"):
        Prior.parse(spec, "a.b")


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"a\.b: prior 'unifrom'; did you mean 'uniform'\?"):
        Prior.parse({"unifrom": [0, 1]}, "a.b")


def test_a_number_is_a_constant_that_uses_no_randomness() -> None:
    generator, untouched = rng.generator(0, "t"), rng.generator(0, "t")
    prior = Prior.parse(3, "here")
    assert prior.constant
    np.testing.assert_array_equal(prior.sample(generator, (2, 2)), np.full((2, 2), 3.0))
    assert generator.random() == untouched.random()


def test_one_argument_may_stand_without_brackets() -> None:
    assert Prior.parse({"poisson": 25}, "x") == Prior.parse({"poisson": [25]}, "x")


def test_a_choice_names_any_number_of_values_and_the_one_named_twice_is_twice_as_likely() -> None:
    prior = Prior.parse({"choice": [2, 2, -5]}, "x")
    draws = prior.sample(rng.generator(0, "c"), (9000,))
    assert prior.bounds == (-5, 2)
    assert set(draws) == {-5.0, 2.0}
    assert stats.binomtest(int((draws == 2).sum()), 9000, 2 / 3).pvalue > 1e-3
    for bad in ([], ["a"], {"a": 1}, [True], math.nan):
        with pytest.raises(UserError, match=r"a\.b: choice takes \[values\.\.\.\] as numbers"):
            Prior.parse({"choice": bad}, "a.b")
