"""How good predictions are: pure functions of arrays, with bootstrap 95 % intervals.

Intervals are percentiles of `RESAMPLES` resamples of the images; for classes the resampling is stratified, so
that every resample holds each class as often as the test split does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense import rng
from deeplense.evaluation import calibration

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
CHUNK = 2**20  # weights held at once


def resample(strata: NDArray[Any], count: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Chunks (b, N) of bootstrap weights, `count` rows in all: how often each image is drawn.

    Args:
        strata: (N,) what is resampled apart, e.g. labels; constant for a plain bootstrap.
    """
    draw = rng.generator(seed, "bootstrap")
    groups = [np.flatnonzero(strata == k) for k in np.unique(strata)]
    rows = max(1, CHUNK // max(len(strata), 1))
    for start in range(0, count, rows):
        b = min(rows, count - start)
        weights = np.zeros((b, len(strata)), dtype=np.int32)
        for group in groups:
            m = len(group)
            picks = draw.integers(m, size=(b, m)) + m * np.arange(b)[:, None]
            weights[:, group] = np.bincount(picks.ravel(), minlength=b * m).reshape(b, m)
        yield weights


def interval(samples: NDArray[Any]) -> list[float]:
    """The central 95 % of bootstrap samples."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return [float(low), float(high)]


def auc(scores: Floats, positive: NDArray[np.bool_], weights: NDArray[Any] | None = None) -> Floats:
    """(b,) area under the ROC curve for each row of `weights`: the share of ordered pairs, ties half.

    Args:
        scores: (N,). positive: (N,). weights: (b, N); one row of ones when not given.

    Returns:
        NaN where there is no positive or no negative.
    """
    weights = np.ones((1, len(scores)), dtype=np.int32) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    ranked, is_positive = scores[order], positive[order]
    weights = weights[:, order]
    below = np.zeros((len(weights), len(scores) + 1))
    np.cumsum(np.where(is_positive, 0, weights), axis=1, out=below[:, 1:])
    mine = ranked[is_positive]
    first, last = np.searchsorted(ranked, mine, "left"), np.searchsorted(ranked, mine, "right")
    won = np.einsum("bn,bn->b", weights[:, is_positive], below[:, first] + below[:, last]) / 2
    pairs = weights[:, is_positive].sum(1) * below[:, -1]
    return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)


def class_auc(probabilities: Floats, labels: Ints, weights: NDArray[Any] | None = None) -> Floats:
    """(b, K) one-vs-rest AUC of every class; NaN for a class that is absent or alone."""
    columns = [auc(probabilities[:, k], labels == k, weights) for k in range(probabilities.shape[1])]
    return np.stack(columns, axis=1)


def classification(
    probabilities: Floats, labels: Ints, classes: Sequence[str], seed: int = 0, count: int = RESAMPLES
) -> dict[str, Any]:
    """Everything about a classifier on N images.

    Args:
        probabilities: (N, K). labels: (N,) index into `classes`. count: resamples.

    Returns:
        `metrics.json` of a classifier. The AUC of an absent class is None, with a note; macro leaves it out.
    """
    correct = probabilities.argmax(1) == labels
    per_class = class_auc(probabilities, labels)[0]
    present = np.isfinite(per_class)
    drawn = [
        (class_auc(probabilities, labels, w), w @ correct.astype(np.int32) / len(labels))
        for w in resample(labels, count, seed)
    ]
    sampled, accuracies = (np.concatenate(part) for part in zip(*drawn, strict=True))
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    return {
        "task": "classify",
        "n": len(labels),
        "classes": list(classes),
        "auc": {
            "macro": float(per_class[present].mean()) if present.any() else None,
            "macro_ci": interval(sampled[:, present].mean(1)) if present.any() else None,
            "per_class": {c: _number(a) for c, a in zip(classes, per_class, strict=True)},
            "per_class_ci": {c: interval(sampled[:, k]) if present[k] else None for k, c in enumerate(classes)},
        },
        "accuracy": float(correct.mean()),
        "accuracy_balanced": float(np.mean([correct[labels == k].mean() for k in np.unique(labels)])),
        "accuracy_ci": interval(accuracies),
        "nll": float(-np.log(_of_truth(probabilities, labels)).mean()),
        "ece": calibration.ece(probabilities, labels),
        "confusion": confusion.tolist(),
        "notes": [
            f"AUC of '{c}' is undefined: {'every' if (labels == k).any() else 'no'} image is of this class."
            for k, c in enumerate(classes)
            if not present[k]
        ]
        + [
            f"'{c}' is never predicted, although {n:,} of the {len(labels):,} images are of this class: read the "
            "balanced accuracy, and train with training.balance=weights."
            for c, n, predicted in zip(classes, confusion.sum(1), confusion.sum(0), strict=True)
            if n and not predicted
        ],
    }


def regression(
    truth: Floats,
    mean: Floats,
    scale: Floats,
    log_p: Floats,
    pit: Floats,
    constant: float,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    count: int = RESAMPLES,
) -> dict[str, Any]:
    """Everything about a regressor on N images; arrays are (N,), in the target's unit.

    Args:
        scale: predicted standard deviation. log_p: predicted log-density at the truth.
        pit: predicted cumulative probability of the truth; uniform when calibrated.
        constant: what a predictor that ignores the image would say.
        ranges: name -> [low, high] of the truth, for `mae_by_range`.

    Returns:
        `metrics.json` of a regressor, but for "target".
    """
    error = mean - truth
    absolute = np.abs(error)
    drawn = np.concatenate([w @ absolute / len(truth) for w in resample(np.zeros(len(truth)), count, seed)])
    by_range = {}
    for name, (low, high) in (ranges or {}).items():
        inside = (truth >= low) & (truth <= high)
        by_range[name] = _number(absolute[inside].mean()) if inside.any() else None
    variance = truth.var()
    outside = int((~np.isfinite(log_p)).sum())
    return {
        "task": "regress",
        "n": len(truth),
        "mae": float(absolute.mean()),
        "mae_ci": interval(drawn),
        "mae_constant": float(np.abs(truth - constant).mean()),
        "mae_by_range": by_range,
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float(1 - (error**2).mean() / variance) if variance > 0 else None,
        "bias": float(error.mean()),
        "nll": _number(-log_p.mean()),
        "coverage": {f"{q:g}": float(calibration.coverage(pit, q)) for q in (0.68, 0.9)},
        "mean_scale": float(scale.mean()),
        "notes": [f"{outside} true values lie outside the prior: the predicted density is 0, NLL infinite."]
        if outside
        else [],
    }


def compare_auc(a: Floats, b: Floats, labels: Ints, seed: int = 0, count: int = RESAMPLES) -> dict[str, Any]:
    """Macro AUC of (N, K) probabilities `a` less that of `b` on the same images, by a paired bootstrap."""
    present = np.isfinite(class_auc(a, labels)[0])
    if not present.any():
        return {"auc": None, "difference": None, "difference_ci": None}

    def macro(p: Floats, weights: NDArray[Any] | None = None) -> Floats:
        return np.asarray(class_auc(p, labels, weights)[:, present].mean(1))

    drawn = np.concatenate([macro(a, w) - macro(b, w) for w in resample(labels, count, seed)])
    other = float(macro(b)[0])
    return {"auc": other, "difference": float(macro(a)[0]) - other, "difference_ci": interval(drawn)}


def compare_mae(a: Floats, b: Floats, truth: Floats, seed: int = 0, count: int = RESAMPLES) -> dict[str, Any]:
    """MAE of predictions `a` less that of `b` on the same images, by a paired bootstrap; arrays are (N,)."""
    more = np.abs(a - truth) - np.abs(b - truth)
    drawn = np.concatenate([w @ more / len(truth) for w in resample(np.zeros(len(truth)), count, seed)])
    return {
        "mae": float(np.abs(b - truth).mean()),
        "difference": float(more.mean()),
        "difference_ci": interval(drawn),
    }


def in_bins(truth: Floats, mean: Floats, bins: int = 8) -> dict[str, Floats]:
    """Bias (mean error) and scatter (standard deviation of the error) in equal bins of the truth.

    Returns:
        "centre", "bias", "bias_error", "scatter", "n": one entry for every bin with at least two images.
    """
    edges = np.linspace(truth.min(), truth.max(), bins + 1)
    bin_of = np.clip(np.digitize(truth, edges) - 1, 0, bins - 1)
    rows = []
    for k in range(bins):
        error = (mean - truth)[bin_of == k]
        if len(error) > 1:
            scatter = error.std(ddof=1)
            rows.append(
                (
                    (edges[k] + edges[k + 1]) / 2,
                    error.mean(),
                    scatter / len(error) ** 0.5,
                    scatter,
                    len(error),
                )
            )
    columns = np.array(rows, dtype=float).reshape(-1, 5).T
    return dict(zip(("centre", "bias", "bias_error", "scatter", "n"), columns, strict=True))


def _of_truth(probabilities: Floats, labels: Ints) -> Floats:
    """Probability given to the truth; what float32 rounds to 0 is taken as its smallest number."""
    return np.maximum(probabilities[np.arange(len(labels)), labels], float(np.finfo(np.float32).tiny))


def _number(x: Any) -> float | None:
    return float(x) if np.isfinite(x) else None
