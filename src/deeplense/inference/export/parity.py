"""Does an exported network still say what its bundle says?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from deeplense import rng
from deeplense.answers import Classes, Value
from deeplense.bundle import Bundle
from deeplense.data import schema
from deeplense.data.store import Dataset
from deeplense.data.stretches import INVERSES
from deeplense.errors import UserError
from deeplense.inference.runtime import OnnxBundle

CHECKED = 1024  # images, at most
FLOAT_TOLERANCE = 1e-4  # in probability, or in widths of the target
INT8_TOLERANCE = 0.001  # in AUC, or in widths of the target


@dataclass
class Sample:
    """Images to compare on, and the truths of each answer (label −1, value NaN where there is none)."""

    images: Tensor
    truths: dict[str, NDArray[Any]]


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
    columns = {p.name: k for k, p in enumerate(manifest.parameters)}
    values = {name: split.params[index, k] for name, k in columns.items()}
    labels = code[split.labels[index]]
    return Sample(images, {name: values.get(name, labels) for name in bundle.answers()})


def random_sample(bundle: Bundle, n: int = 64) -> Sample:
    """Noise that has, after pre-processing, the mean and spread of the training images."""
    p, image = bundle.preprocess, bundle.image
    draw = rng.torch_generator(bundle.recipe.seed, "export/noise")
    x = p.mean + p.std * torch.randn(n, image.channels, image.height, image.width, generator=draw)
    scale = 1.0 if p.config.stretch == "none" else p.scale
    return Sample(INVERSES[p.config.stretch](x) * scale, {})


@dataclass
class Difference:
    """Of one answer: the largest; what it is measured in; what else to tell; what was lost."""

    largest: float
    symbol: str
    told: str
    lost: float


def check(bundle: Bundle, exported: OnnxBundle, sample: Sample, exact: bool) -> str:
    """One line on how the two agree.

    Raises:
        UserError: they do not.
    """
    ours, theirs = bundle.predict(sample.images), exported.predict(sample.images.numpy())
    kind, n = "float32" if exact else "int8", len(sample.images)
    found = {
        name: DIFFERENCES[type(ours[name])](bundle, ours[name], theirs[name], sample.truths.get(name)) for name in ours
    }
    texts = [
        f"{'' if len(found) == 1 else f'{name}: '}max {d.symbol} {d.largest:.1e}{d.told}" for name, d in found.items()
    ]
    text = f"{kind} against the bundle on {n} images: {'; '.join(texts)}"
    # a NaN must not pass
    if not all(d.largest <= FLOAT_TOLERANCE if exact else d.lost <= INT8_TOLERANCE for d in found.values()):
        hint = "report this network" if exact else "export it without --int8"
        raise UserError(f"{text}: more than the tolerance, nothing written; {hint}")
    return text


def _of_values(bundle: Bundle, ours: Any, theirs: Any, truth: NDArray[Any] | None) -> Difference:
    width = next(t.width for spec in bundle.specs for t in spec.targets if t.name == ours.name)
    shifts = np.abs([getattr(ours, k) - getattr(theirs, k) for k in Value.outputs]) / width
    symbol = "|Δ| / width"
    known = np.zeros(0, bool) if truth is None else np.isfinite(truth)
    if truth is None or not known.any():
        return Difference(float(shifts.max()), symbol, "", float(shifts.mean()))
    before, after = (float(np.abs(p.mean - truth)[known].mean()) for p in (ours, theirs))
    return Difference(float(shifts.max()), symbol, f", MAE {before:.4f} -> {after:.4f}", (after - before) / width)


def _of_classes(bundle: Bundle, ours: Any, theirs: Any, truth: NDArray[Any] | None) -> Difference:
    p, q = ours.probabilities, theirs.probabilities
    text = f", same class {np.mean(p.argmax(1) == q.argmax(1)):.2%}"
    shifts = np.abs(p - q)
    before, after = (np.nan, np.nan) if truth is None else (_auc(p, truth), _auc(q, truth))
    if not np.isfinite(before - after):
        return Difference(float(shifts.max()), "|Δp|", text, float(shifts.mean()))
    return Difference(float(shifts.max()), "|Δp|", f"{text}, AUC {before:.4f} -> {after:.4f}", before - after)


DIFFERENCES: dict[type, Callable[[Bundle, Any, Any, NDArray[Any] | None], Difference]] = {
    Classes: _of_classes,
    Value: _of_values,
}


def _auc(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Macro AUC over the classes that occur; NaN when there are fewer than two."""
    p, labels = probabilities[labels >= 0], labels[labels >= 0]
    if len(np.unique(labels)) < 2 or not np.isfinite(p).all():
        return float("nan")
    return float(np.mean([roc_auc_score(labels == k, p[:, k]) for k in np.unique(labels)]))
