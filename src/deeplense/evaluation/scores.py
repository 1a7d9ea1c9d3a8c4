"""What a bundle says about the images of a split, beside the truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from deeplense.bundle import Bundle
from deeplense.data.store import Dataset, Split
from deeplense.errors import UserError

Floats = NDArray[np.float64]

BATCH = 256


@dataclass
class Scores:
    """Predictions on N images of a split that have a truth.

    Attributes:
        position: (N,) in the split. truth: (N,) index into the bundle's classes, or the target's value.
        probabilities: (N, K), empty for a regressor. mean, scale, q05, q95: (N,) as in `bundle.Prediction`.
        log_p, pit: (N,) log-density at the truth, and cumulative probability of the truth.
    """

    position: NDArray[np.int64]
    truth: NDArray[Any]
    probabilities: Floats = field(default_factory=lambda: np.empty((0, 0)))
    mean: Floats = field(default_factory=lambda: np.empty(0))
    scale: Floats = field(default_factory=lambda: np.empty(0))
    q05: Floats = field(default_factory=lambda: np.empty(0))
    q95: Floats = field(default_factory=lambda: np.empty(0))
    log_p: Floats = field(default_factory=lambda: np.empty(0))
    pit: Floats = field(default_factory=lambda: np.empty(0))


def score(bundle: Bundle, dataset: Dataset, split: Split, name: str = "predict") -> Scores:
    """Predict on every image of the split that has a label or a target.

    Args:
        name: shown beside the progress bar.

    Raises:
        UserError: images, classes or target that are not the bundle's; no image with a truth.
    """
    _check_images(bundle, dataset)
    truth, position = _truth(bundle, dataset, split)
    parts: list[dict[str, Any]] = []
    with tqdm(total=len(position), desc=name, unit="image", disable=None) as bar:
        for start in range(0, len(position), BATCH):
            here = position[start : start + BATCH]
            parts.append(_predict(bundle, split, here, truth[start : start + BATCH]))
            bar.update(len(here))
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Scores(position, truth, **columns)


def _predict(bundle: Bundle, split: Split, position: NDArray[np.int64], truth: NDArray[Any]) -> dict[str, Any]:
    prediction = bundle.predict(split.images(position))
    if prediction.probabilities is not None:
        return {"probabilities": prediction.probabilities}
    names = ("mean", "scale", "q05", "q95")
    columns: dict[str, Any] = {name: getattr(prediction, name) for name in names}
    with torch.no_grad():
        p = bundle.head.distribution(prediction.raw.to(bundle.device))
        value = torch.from_numpy(truth).to(bundle.device)
        columns["log_p"] = p.log_prob(value).double().cpu().numpy()
        columns["pit"] = p.cdf(value).double().cpu().numpy()
    return columns


def _check_images(bundle: Bundle, dataset: Dataset) -> None:
    mine, theirs = bundle.image, dataset.manifest.image
    if (mine.channels, mine.height, mine.width) != (theirs.channels, theirs.height, theirs.width):
        raise UserError(
            f"{dataset.folder}: images are {theirs.channels} x {theirs.height} x {theirs.width}, the bundle "
            f"takes {mine.channels} x {mine.height} x {mine.width}; evaluate on such data, or train on these"
        )


def _truth(bundle: Bundle, dataset: Dataset, split: Split) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The truth in the bundle's terms, and the positions of the images that have one."""
    manifest = dataset.manifest
    if bundle.target is not None:
        value = split.params[:, manifest.parameter(bundle.target.name)]
        known = np.flatnonzero(np.isfinite(value))
        if not len(known):
            raise UserError(
                f"{dataset.folder}: no image of split '{split.name}' has a '{bundle.target.name}'; choose another split"
            )
        return value[known], known
    strange = [c for c in manifest.classes if c not in bundle.classes]
    absent = [c for c in bundle.classes if c not in manifest.classes]
    if strange or absent:
        what = [f"has {', '.join(strange)}, unknown to the bundle"] if strange else []
        what += [f"lacks {', '.join(absent)}"] if absent else []
        raise UserError(
            f"{dataset.folder}: {' and '.join(what)}; the bundle's classes are {', '.join(bundle.classes)}: "
            "import the data with those names"
        )
    known = np.flatnonzero(split.labels >= 0)
    if not len(known):
        raise UserError(f"{dataset.folder}: no image of split '{split.name}' has a label; choose another split")
    to_bundle = np.array([bundle.classes.index(c) for c in manifest.classes])
    return to_bundle[split.labels[known]], known
