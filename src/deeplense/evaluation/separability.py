"""How well features tell classes apart: cross-validated gradient boosting, and its AUC with an interval.

For every pair of classes a small model is trained on each group of features and scores images that it did not see. One
model a pair, not one for all classes: where other classes differ widely a common model spends its trees on them and
misses a faint leak between two (measured: AUC .517 against .502, at twice the cost).

The AUC is taken within each fold and averaged. Ranking images of different folds together would push a feature without
information below .5, because an image that one model is scored on has trained the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from tqdm import tqdm

from deeplense import rng
from deeplense.evaluation import metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 5
# few shallow trees; stopping early was no better on faint leaks, and spends images on its validation
BOOSTING = {"max_iter": 80, "learning_rate": 0.1, "max_leaf_nodes": 6, "min_samples_leaf": 20, "l2_regularization": 1}


def pairs(classes: int) -> list[tuple[int, int]]:
    """Every pair of classes."""
    return list(itertools.combinations(range(classes), 2))


def areas(groups: dict[str, Floats], labels: Ints, seed: int) -> dict[str, tuple[Floats, Floats]]:
    """AUC of each of the P pairs of classes and, last, the macro one-vs-rest AUC, for each group of features.

    Args:
        groups: (N, k) features by name, NaN allowed. labels: (N,) in 0 … K - 1, each at least `FOLDS` times.

    Returns:
        By name: (P + 1,) AUC, and (RESAMPLES, P + 1) bootstrap samples of it, images resampled within class and fold.
    """
    two, fold = pairs(int(labels.max()) + 1), folds(labels, seed)
    value, influence = [], []
    with tqdm(total=len(groups) * FOLDS * len(two), desc="audit", unit="model", disable=None) as bar:
        for x in groups.values():
            one = _within_folds(*out_of_fold(x, labels, fold, two, bar), labels, fold, two)
            value.append(one[0])
            influence.append(one[1])
    # linear in the weights, so that all resamples of all groups are one product; the exact bootstrap takes minutes
    every, strata = np.concatenate(influence, 1), fold * (labels.max() + 1) + labels
    drawn = np.concatenate([w @ every for w in metrics.resample(strata, metrics.RESAMPLES, seed)])
    drawn = np.clip(np.concatenate(value) + drawn, 0, 1)
    return {name: (v, d) for name, v, d in zip(groups, value, np.split(drawn, len(groups), axis=1), strict=True)}


def folds(labels: Ints, seed: int) -> Ints:
    """(N,) fold of each image, at random; every class is spread evenly."""
    draw, fold = rng.generator(seed, "audit/folds"), np.empty(len(labels), dtype=np.int64)
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        fold[draw.permutation(rows)] = np.arange(len(rows)) % FOLDS
    return fold


def out_of_fold(
    x: Floats, labels: Ints, fold: Ints, two: Sequence[tuple[int, int]], bar: Any = None
) -> tuple[Floats, Floats]:
    """Score every image by models that did not see its fold.

    Returns:
        (N, P) log-odds of the second class of each pair, and (N, K) mean probability of each class against each other.
    """
    x = x[:, np.isfinite(x).any(0)] if np.isfinite(x).any() else np.zeros((len(x), 1))
    odds = np.empty((len(x), len(two)))
    # unweighted: class weights take scikit-learn's slow path (20 times), and an AUC does not depend on class sizes;
    # one thread: the models are small, and several threads spend their time waiting on a busy machine
    with threadpool_limits(1, "openmp"):
        for f, (p, (a, b)) in itertools.product(range(FOLDS), enumerate(two)):
            seen, held = (fold != f) & ((labels == a) | (labels == b)), fold == f
            model = HistGradientBoostingClassifier(**BOOSTING, early_stopping=False, random_state=0)
            odds[held, p] = model.fit(x[seen], labels[seen] == b).decision_function(x[held])
            if bar is not None:
                bar.update()
    classes = np.zeros((len(x), labels.max() + 1))
    for p, (a, b) in enumerate(two):
        classes[:, a] += expit(-odds[:, p]) / labels.max()
        classes[:, b] += expit(odds[:, p]) / labels.max()
    return odds, classes


def auc_and_influence(scores: Floats, positive: NDArray[np.bool_]) -> tuple[float, Floats]:
    """AUC, and (N,) what drawing an image once more adds to it (DeLong et al. 1988; first order).

    Bootstrap weights w, resampled within positives and negatives, give the AUC `auc + w @ influence`.
    """
    influence = np.empty(len(scores))
    for side, sign in ((positive, 1.0), (~positive, -1.0)):
        mine, other = scores[side], np.sort(scores[~side])
        below = (np.searchsorted(other, mine, "left") + np.searchsorted(other, mine, "right")) / 2 / len(other)
        influence[side] = sign * (below - below.mean()) / len(mine)
    return float(metrics.auc(scores, positive)[0]), influence


def _within_folds(
    odds: Floats, classes: Floats, labels: Ints, fold: Ints, two: Sequence[tuple[int, int]]
) -> tuple[Floats, Floats]:
    """(P + 1,) AUC of each pair and macro, means over the folds, and its influence (N, P + 1)."""
    value, influence = np.zeros(len(two) + 1), np.zeros((len(labels), len(two) + 1))
    for f in range(FOLDS):
        held = np.flatnonzero(fold == f)
        for p, (a, b) in enumerate(two):
            rows = held[(labels[held] == a) | (labels[held] == b)]
            auc, influence[rows, p] = auc_and_influence(odds[rows, p], labels[rows] == b)
            value[p] += auc
        for k in range(classes.shape[1]):
            auc, each = auc_and_influence(classes[held, k], labels[held] == k)
            value[-1] += auc / classes.shape[1]
            influence[held, -1] += each / classes.shape[1]
    return value / FOLDS, influence / FOLDS
