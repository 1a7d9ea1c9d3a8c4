"""Calibration against direct sums, SciPy and networks whose calibration is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from deeplense.evaluation import calibration

Floats = NDArray[np.float64]


def network(n: int, seed: int, sharpness: float = 1.0) -> tuple[Floats, NDArray[np.int64]]:
    """Probabilities from which the truth is drawn, then sharpened: calibrated at 1, over-confident above."""
    draw = np.random.default_rng(seed)
    logits = 1.5 * draw.standard_normal((n, 3))
    odds = np.exp(logits)
    p = odds / odds.sum(1, keepdims=True)
    labels = (p.cumsum(1) < draw.random((n, 1))).sum(1)
    odds = p**sharpness
    return odds / odds.sum(1, keepdims=True), labels


def direct_ece(p: Floats, labels: NDArray[np.int64], bins: int) -> float:
    """The definition, image by image."""
    total = 0.0
    for k in range(bins):
        rows = [i for i in range(len(p)) if k / bins < p[i].max() <= (k + 1) / bins]
        if rows:
            confidence = sum(p[i].max() for i in rows) / len(rows)
            accuracy = sum(p[i].argmax() == labels[i] for i in rows) / len(rows)
            total += len(rows) / len(p) * abs(confidence - accuracy)
    return total


@pytest.mark.parametrize("sharpness", [1.0, 3.0, 0.3])
@pytest.mark.parametrize("bins", [15, 4])
def test_ece_is_the_direct_sum(sharpness: float, bins: int) -> None:
    p, labels = network(400, 0, sharpness)
    assert calibration.ece(p, labels, bins) == pytest.approx(direct_ece(p, labels, bins), abs=1e-12)


def test_ece_is_small_when_calibrated_and_large_when_not() -> None:
    assert calibration.ece(*network(20_000, 1)) < 0.02
    assert calibration.ece(*network(20_000, 1, sharpness=4.0)) > 0.1
    assert calibration.ece(*network(20_000, 1, sharpness=0.2)) > 0.1


def test_ece_of_sure_networks() -> None:
    sure = np.eye(3)[[0, 1, 2, 0]]
    assert calibration.ece(sure, np.array([0, 1, 2, 0])) == 0.0
    assert calibration.ece(sure, np.array([1, 2, 0, 1])) == 1.0


def test_reliability_puts_every_image_into_the_bin_of_its_confidence() -> None:
    confidence = np.array([0.0, 0.1, 0.25, 0.2500001, 0.5, 0.9, 1.0])
    correct = np.array([False, True, False, True, True, False, True])
    mean, accuracy, n = calibration.reliability(confidence, correct, bins=4)
    # bins end at 0.25, 0.5, 0.75 (empty, left out) and 1
    assert n.tolist() == [3, 2, 2]
    np.testing.assert_allclose(mean, [0.35 / 3, 0.37500005, 0.95])
    np.testing.assert_allclose(accuracy, [1 / 3, 1.0, 0.5])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_reliability_loses_no_image(pairs: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = np.array([p for p, _ in pairs]), np.array([c for _, c in pairs])
    mean, accuracy, n = calibration.reliability(confidence, correct, bins)
    assert n.sum() == len(pairs)
    assert (n * mean).sum() == pytest.approx(confidence.sum())
    assert (n * accuracy).sum() == pytest.approx(correct.sum())


@given(st.integers(1, 500), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_wilson_interval_is_that_of_scipy(n: int, share: float) -> None:
    hits = round(share * n)
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    low, high = calibration.wilson(hits / n, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-4)  # z is 1.96 there to four digits


def test_wilson_takes_arrays() -> None:
    low, high = calibration.wilson(np.array([0.0, 0.5, 1.0]), np.array([10, 20, 30]))
    for k, (hits, n) in enumerate(((0, 10), (10, 20), (30, 30))):
        expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_coverage_is_the_level_when_calibrated() -> None:
    pit = (np.arange(1000) + 0.5) / 1000
    level = np.array([0.0, 0.1, 0.68, 0.9, 1.0])
    np.testing.assert_allclose(calibration.coverage(pit, level), level, atol=1.5e-3)
    assert calibration.coverage(pit, 0.68) == pytest.approx(0.68, abs=1e-9)


def test_coverage_counts_truths_inside_the_central_interval() -> None:
    draw = np.random.default_rng(2)
    truth, scale = draw.standard_normal(3000), 0.7
    pit = norm.cdf(truth / scale)
    for level in (0.5, 0.68, 0.9):
        low, high = scale * norm.ppf([0.5 - level / 2, 0.5 + level / 2])
        assert calibration.coverage(pit, level) == pytest.approx(((truth > low) & (truth < high)).mean(), abs=1e-9)
        expected = 2 * norm.cdf(high) - 1  # over-confident: less than the level
        assert calibration.coverage(pit, level) == pytest.approx(
            expected, abs=4 * math.sqrt(expected * (1 - expected) / 3000)
        )
