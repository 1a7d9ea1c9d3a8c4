"""Does an exported network still say what its bundle says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from deeplense import rng
from deeplense.bundle import Bundle, Prediction, Target
from deeplense.data import schema
from deeplense.data.store import Dataset
from deeplense.errors import UserError

CHECKED = 1024  # images, at most
FLOAT_TOLERANCE = 1e-4  # in probability, or in widths of the target
INT8_TOLERANCE = 0.01  # in AUC, or in widths of the target


@dataclass
class Sample:
    """Images to compare on, and the truth where there is one (label -1 or target NaN elsewhere)."""

    images: Tensor
    labels: NDArray[np.int64]
    targets: NDArray[np.float64]


def draw_images(bundle: Bundle, data: str | Path, split: str, most: int) -> tuple[Tensor, Any, NDArray[np.int64]]:
    """At most `most` images of a split, drawn with the recipe's seed; the split; their positions."""
    dataset = Dataset(data)
    have, want = dataset.manifest.image, bundle.image
    if (have.channels, have.height, have.width) != (want.channels, want.height, want.width):
        raise UserError(
            f"{data}: images are {have.channels}x{have.height}x{have.width}, the bundle takes "
            f"{want.channels}x{want.height}x{want.width}; give a dataset like the one it was trained on"
        )
    stored = dataset.split(split)
    draw = rng.generator(bundle.recipe.seed, f"export/{split}")
    index = np.sort(draw.permutation(len(stored))[:most])
    return stored.images(index), stored, index


def held_out_sample(bundle: Bundle, data: str | Path) -> Sample:
    """Test images, else validation images."""
    manifest = schema.read_manifest(data)
    images, split, index = draw_images(bundle, data, "test" if "test" in manifest.splits else "val", CHECKED)
    known = {name: k for k, name in enumerate(bundle.classes)}
    code = np.array([known.get(name, -1) for name in manifest.classes] + [-1])  # unlabelled is -1, the last
    targets = np.full(len(index), np.nan)
    if bundle.target is not None and bundle.target.name in {p.name for p in manifest.parameters}:
        targets = split.params[index, manifest.parameter(bundle.target.name)]
    return Sample(images, code[split.labels[index]], targets)


def random_sample(bundle: Bundle, n: int = 64) -> Sample:
    """Noise that has, after pre-processing, the mean and spread of the training images."""
    p, image = bundle.preprocess, bundle.image
    draw = rng.torch_generator(bundle.recipe.seed, "export/noise")
    x = p.mean + p.std * torch.randn(n, image.channels, image.height, image.width, generator=draw)
    unstretched = {"asinh": torch.sinh(x) * p.scale, "log": torch.expm1(x) * p.scale, "none": x}
    return Sample(unstretched[p.config.stretch], np.full(n, -1), np.full(n, np.nan))


def check(bundle: Bundle, exported: Bundle, sample: Sample, exact: bool) -> str:
    """One line on how the two agree.

    Raises:
        UserError: they do not.
    """
    ours, theirs = bundle.predict(sample.images), exported.predict(sample.images)
    difference, agreement, cost = _difference(ours, theirs, sample, bundle.target)
    symbol = "|Δp|" if ours.probabilities is not None else "|Δ| / width"
    kind, n = "float32" if exact else "int8", len(sample.images)
    text = f"{kind} against the bundle on {n} images: max {symbol} {difference:.1e}{agreement}"
    # a NaN must not pass
    if not (difference <= FLOAT_TOLERANCE if exact else cost <= INT8_TOLERANCE):
        hint = "report this network" if exact else "export it without --int8"
        raise UserError(f"{text}: more than the tolerance, nothing written; {hint}")
    return text


def _difference(
    ours: Prediction, theirs: Prediction, sample: Sample, target: Target | None
) -> tuple[float, str, float]:
    """Largest difference; the rest of the report; what was lost (in AUC or MAE, else on average)."""
    if target is not None:
        (m, s), (n, t) = ((_known(p.mean), _known(p.scale)) for p in (ours, theirs))
        shifts = np.abs([m - n, s - t]) / target.width
        known = np.isfinite(sample.targets)
        if not known.any():
            return float(shifts.max()), "", float(shifts.mean())
        before, after = (float(np.abs(p - sample.targets)[known].mean()) for p in (m, n))
        return float(shifts.max()), f", MAE {before:.4f} -> {after:.4f}", (after - before) / target.width
    p, q = _known(ours.probabilities), _known(theirs.probabilities)
    text = f", same class {np.mean(p.argmax(1) == q.argmax(1)):.2%}"
    before, after = _auc(p, sample.labels), _auc(q, sample.labels)
    shifts = np.abs(p - q)
    if not np.isfinite(before - after):
        return float(shifts.max()), text, float(shifts.mean())
    return float(shifts.max()), f"{text}, AUC {before:.4f} -> {after:.4f}", before - after


def _known(column: NDArray[np.float64] | None) -> NDArray[np.float64]:
    assert column is not None
    return column


def _auc(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Macro AUC over the classes that occur; NaN when there are fewer than two."""
    p, labels = probabilities[labels >= 0], labels[labels >= 0]
    if len(np.unique(labels)) < 2 or not np.isfinite(p).all():
        return float("nan")
    return float(np.mean([roc_auc_score(labels == k, p[:, k]) for k in np.unique(labels)]))
