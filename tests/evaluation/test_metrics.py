"""Metrics against scikit-learn, and intervals against experiments whose truth is known."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn import metrics as sk

from deeplense.evaluation import metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CLASSES = ["axion", "cdm", "no_sub"]


def guesses(n: int, seed: int, skill: float = 1.0) -> tuple[Floats, Ints]:
    """Probabilities of three classes, better than chance, with truths."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(3, size=n)
    logits = draw.standard_normal((n, 3)) + skill * np.eye(3)[labels]
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True), labels


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_auc_with_ties_and_weights_is_that_of_scikit_learn(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 30))
    levels = data.draw(st.integers(1, 6))  # few: many ties
    scores = np.array(data.draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))) / levels
    positive = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    weights = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), dtype=np.int32)
    found = metrics.auc(scores, positive, np.stack([np.ones(n, dtype=np.int32), weights]))
    for value, w in zip(found, (np.ones(n), weights), strict=True):
        if w[positive].sum() and w[~positive].sum():
            used = w > 0
            expected = sk.roc_auc_score(positive[used], scores[used], sample_weight=w[used])
            assert value == pytest.approx(expected, abs=1e-12)
        else:
            assert math.isnan(value)
    assert metrics.auc(scores, positive)[0] == pytest.approx(found[0], nan_ok=True)


def test_macro_and_class_auc_are_those_of_scikit_learn() -> None:
    p, labels = guesses(500, 1)
    found = metrics.classification(p, labels, CLASSES, count=20)["auc"]
    assert found["macro"] == pytest.approx(sk.roc_auc_score(labels, p, multi_class="ovr", average="macro"))
    for k, name in enumerate(CLASSES):
        assert found["per_class"][name] == pytest.approx(sk.roc_auc_score(labels == k, p[:, k]))
        low, high = found["per_class_ci"][name]
        assert low < found["per_class"][name] < high
    assert found["macro_ci"][0] < found["macro"] < found["macro_ci"][1]


def test_accuracy_nll_and_confusion_are_those_of_scikit_learn() -> None:
    p, labels = guesses(500, 2)
    found = metrics.classification(p, labels, CLASSES, count=20)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, p.argmax(1)))
    assert found["nll"] == pytest.approx(sk.log_loss(labels, p))
    assert found["confusion"] == sk.confusion_matrix(labels, p.argmax(1)).tolist()
    assert (found["n"], found["task"], found["classes"]) == (500, "classify", CLASSES)
    assert found["notes"] == []


def test_nll_of_a_sure_and_wrong_network_is_finite() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = metrics.classification(p, np.array([1, 1]), ["a", "b"], count=5)
    assert found["nll"] == pytest.approx(-math.log(np.finfo(np.float32).tiny) / 2)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_every_resample_holds_each_class_as_often_as_the_data(strata: list[int], count: int, seed: int) -> None:
    classes = np.array(strata)
    weights = np.concatenate(list(metrics.resample(classes, count, seed)))
    assert weights.shape == (count, len(classes))
    assert weights.min() >= 0
    for k in set(strata):
        assert (weights[:, classes == k].sum(1) == strata.count(k)).all()


def test_resamples_are_a_bootstrap_and_chunks_change_nothing_about_it(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 50
    weights = np.concatenate(list(metrics.resample(np.zeros(n), 4000, 0)))
    # each weight is Binomial(n, 1/n)
    assert weights.mean() == 1.0
    assert weights.var() == pytest.approx(1 - 1 / n, rel=0.03)
    assert (weights == 0).mean() == pytest.approx((1 - 1 / n) ** n, abs=0.01)
    monkeypatch.setattr(metrics, "CHUNK", 7 * n)
    chunks = list(metrics.resample(np.zeros(n), 20, 0))
    assert [len(chunk) for chunk in chunks] == [7, 7, 6]
    assert len(np.unique(np.concatenate(chunks), axis=0)) == 20


def test_the_seed_decides_the_interval() -> None:
    p, labels = guesses(100, 3)
    one, same, other = (metrics.classification(p, labels, CLASSES, seed, 50)["auc"]["macro_ci"] for seed in (0, 0, 1))
    assert one == same != other


def test_intervals_hold_the_true_auc_and_accuracy_as_often_as_they_say() -> None:
    # scores of positives are shifted by d: the true AUC is Φ(d/√2); at threshold d/2 the accuracy is Φ(d/2)
    d, n, repeats = 1.0, 150, 100
    aucs = accuracies = 0
    for k in range(repeats):
        draw = np.random.default_rng(1000 + k)
        labels = np.repeat([0, 1], n // 2)
        x = draw.standard_normal(n) + d * labels
        p1 = 1 / (1 + np.exp(-d * (x - d / 2)))  # Bayes
        found = metrics.classification(np.stack([1 - p1, p1], 1), labels, ["a", "b"], seed=k, count=300)
        low, high = found["auc"]["macro_ci"]
        aucs += low <= norm.cdf(d / math.sqrt(2)) <= high
        low, high = found["accuracy_ci"]
        accuracies += low <= norm.cdf(d / 2) <= high
    assert 88 <= aucs <= 99
    assert 88 <= accuracies <= 99


def test_interval_of_the_mae_holds_the_true_one_as_often_as_it_says() -> None:
    held = 0
    for k in range(100):
        error = np.random.default_rng(k).standard_normal(200)
        zero = np.zeros(200)
        low, high = metrics.regression(zero, error, zero + 1, zero, zero, 0.0, seed=k, count=300)["mae_ci"]
        held += low <= math.sqrt(2 / math.pi) <= high
    assert 88 <= held <= 99


def test_an_absent_class_gives_none_a_note_and_valid_json() -> None:
    p, labels = guesses(80, 4)
    labels[labels == 2] = 0
    found = metrics.classification(p, labels, CLASSES, count=10)
    assert found["auc"]["per_class"]["no_sub"] is None
    assert found["auc"]["per_class_ci"]["no_sub"] is None
    # the other two are still against the rest
    others = [sk.roc_auc_score(labels == k, p[:, k]) for k in (0, 1)]
    assert found["auc"]["macro"] == pytest.approx(np.mean(others))
    assert found["notes"] == ["AUC of 'no_sub' is undefined: no image is of this class."]
    json.dumps(found, allow_nan=False)


def test_one_class_alone_has_no_auc_at_all() -> None:
    p, _ = guesses(20, 5)
    found = metrics.classification(p, np.ones(20, dtype=np.int64), CLASSES, count=10)
    assert found["auc"]["macro"] is None
    assert found["auc"]["macro_ci"] is None
    assert "AUC of 'cdm' is undefined: every image is of this class." in found["notes"]
    assert len(found["notes"]) == 3
    json.dumps(found, allow_nan=False)


def regress(truth: Floats, mean: Floats, scale: Floats, **options: Any) -> dict[str, Any]:
    p = norm(mean, scale)
    options = {"constant": 0.0, "count": 50} | options
    return metrics.regression(truth, mean, scale, p.logpdf(truth), p.cdf(truth), **options)


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(6)
    truth = draw.uniform(-24, -22, 400)
    scale = draw.uniform(0.1, 0.5, 400)
    mean = truth + scale * draw.standard_normal(400) + 0.05
    found = regress(truth, mean, scale, constant=-23.0)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, mean))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, mean))
    assert found["r2"] == pytest.approx(sk.r2_score(truth, mean))
    assert found["mae_constant"] == pytest.approx(sk.mean_absolute_error(truth, np.full(400, -23.0)))
    assert found["nll"] == pytest.approx(
        np.mean(0.5 * ((truth - mean) / scale) ** 2 + np.log(scale) + 0.5 * np.log(2 * np.pi))
    )
    assert found["bias"] == pytest.approx(mean.mean() - truth.mean())
    assert found["mean_scale"] == pytest.approx(scale.mean())
    assert found["mae_ci"][0] < found["mae"] < found["mae_ci"][1]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("claimed", "share"), [(1.0, {"0.68": 0.68, "0.9": 0.9}), (0.5, None), (2.0, None)])
def test_coverage_of_a_normal_is_within_its_sampling_error(claimed: float, share: dict[str, float] | None) -> None:
    n = 4000
    draw = np.random.default_rng(7)
    truth = draw.standard_normal(n)
    found = regress(truth, np.zeros(n), np.full(n, claimed))["coverage"]
    share = share or {q: 2 * norm.cdf(claimed * norm.ppf(0.5 + float(q) / 2)) - 1 for q in ("0.68", "0.9")}
    for q, expected in share.items():
        assert found[q] == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


def test_mae_by_range_counts_each_range_apart() -> None:
    truth = np.array([-24.0, -23.6, -23.5, -22.5, -22.1])
    mean = truth + np.array([0.1, -0.3, 0.5, 0.2, -0.4])
    ranges = {"faint": (-24.0, -23.5), "bright": (-23.5, -22.0), "nowhere": (-30.0, -29.0)}
    found = regress(truth, mean, np.ones(5), ranges=ranges)["mae_by_range"]
    assert found == {"faint": pytest.approx(0.3), "bright": pytest.approx(1.1 / 3), "nowhere": None}


def test_a_truth_outside_the_prior_gives_a_note_in_place_of_infinity() -> None:
    truth = np.array([0.0, 1.0])
    log_p = np.array([-0.5, -np.inf])
    found = metrics.regression(truth, truth, truth + 1, log_p, truth, 0.0, count=5)
    assert found["nll"] is None
    assert found["notes"] == ["1 true values lie outside the prior: the predicted density is 0, NLL infinite."]
    json.dumps(found, allow_nan=False)


def test_r2_of_a_constant_truth_is_undefined() -> None:
    assert regress(np.full(5, 2.0), np.arange(5.0), np.ones(5))["r2"] is None


def test_the_better_classifier_wins_the_paired_comparison() -> None:
    good, labels = guesses(400, 8, skill=2.0)
    poor, _ = guesses(400, 8, skill=1.0)
    found = metrics.compare_auc(good, poor, labels, count=200)
    macros = [sk.roc_auc_score(labels, p, multi_class="ovr") for p in (good, poor)]
    assert found["auc"] == pytest.approx(macros[1])
    assert found["difference"] == pytest.approx(macros[0] - macros[1])
    assert 0 < found["difference_ci"][0] < found["difference"] < found["difference_ci"][1]
    back = metrics.compare_auc(poor, good, labels, count=200)
    assert back["difference_ci"] == pytest.approx([-x for x in reversed(found["difference_ci"])])
    assert metrics.compare_auc(good, good, labels, count=20)["difference_ci"] == [0.0, 0.0]
    alone = metrics.compare_auc(good, poor, np.zeros(400, dtype=np.int64), count=5)
    assert alone == {"auc": None, "difference": None, "difference_ci": None}


def test_the_better_regressor_wins_the_paired_comparison() -> None:
    draw = np.random.default_rng(9)
    truth = draw.uniform(-24, -22, 300)
    good, poor = truth + 0.1 * draw.standard_normal(300), truth + 0.4 * draw.standard_normal(300)
    found = metrics.compare_mae(good, poor, truth, count=200)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, poor))
    assert found["difference"] == pytest.approx(np.abs(good - truth).mean() - found["mae"])
    assert found["difference_ci"][0] < found["difference"] < found["difference_ci"][1] < 0


def test_what_two_networks_share_does_not_widen_the_interval_of_their_difference() -> None:
    draw = np.random.default_rng(10)
    truth = np.zeros(400)
    common, noise = draw.standard_normal(400), draw.standard_normal((2, 400))
    widths = []
    for share in (0.0, 0.9, 0.99):
        a, b = share**0.5 * common + (1 - share) ** 0.5 * noise
        low, high = metrics.compare_mae(a, b, truth, count=300)["difference_ci"]
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1] > 3 * widths[2]
    p, labels = guesses(300, 11)
    nearly = p + 0.02 * draw.random((300, 3))
    odds = np.exp(np.random.default_rng(12).standard_normal((300, 3)) + np.eye(3)[labels])
    apart = odds / odds.sum(1, keepdims=True)
    paired, unpaired = (metrics.compare_auc(p, q, labels, count=200)["difference_ci"] for q in (nearly, apart))
    assert paired[1] - paired[0] < 0.5 * (unpaired[1] - unpaired[0])


def test_bins_hold_bias_and_scatter_of_their_own_images() -> None:
    draw = np.random.default_rng(13)
    truth = draw.uniform(0, 8, 800)
    mean = truth + np.floor(truth) + 0.1 * draw.standard_normal(800)
    found = metrics.in_bins(truth, mean)
    edges = np.linspace(truth.min(), truth.max(), 9)
    assert found["n"].sum() == 800
    np.testing.assert_allclose(found["centre"], (edges[1:] + edges[:-1]) / 2)
    for k in range(8):
        inside = (truth >= edges[k]) & ((truth < edges[k + 1]) | (k == 7))
        error = (mean - truth)[inside]
        assert found["n"][k] == inside.sum()
        assert found["bias"][k] == pytest.approx(error.mean())
        assert found["scatter"][k] == pytest.approx(error.std(ddof=1))
        assert found["bias_error"][k] == pytest.approx(error.std(ddof=1) / math.sqrt(inside.sum()))


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30),
    st.integers(1, 10),
)
@settings(max_examples=100, deadline=None)
def test_bins_of_any_values_are_finite_and_never_of_one_image(values: list[float], bins: int) -> None:
    truth = np.array(values)
    found = metrics.in_bins(truth, truth + 1.0, bins)
    assert all(np.isfinite(column).all() for column in found.values())
    assert (found["n"] > 1).all()
    np.testing.assert_allclose(found["bias"], 1.0)


def test_a_class_that_is_never_predicted_is_told_and_accuracy_does_not_hide_it() -> None:
    labels = np.r_[np.zeros(400, int), np.ones(10, int)]
    probabilities = np.tile([0.9, 0.1], (410, 1)) + np.linspace(0, 0.05, 410)[:, None] * [-1, 1]
    found = metrics.classification(probabilities, labels, ["common", "rare"], count=10)
    assert found["accuracy"] == pytest.approx(400 / 410)
    assert found["accuracy_balanced"] == sk.balanced_accuracy_score(labels, probabilities.argmax(1)) == 0.5
    (note,) = found["notes"]
    assert note.startswith("'rare' is never predicted, although 10 of the 410 images")
    assert "training.balance" in note
