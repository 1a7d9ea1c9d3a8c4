"""Where training's batches come from: a stored dataset, or the simulator itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense import rng
from deeplense.data.loaders import StoredLoader
from deeplense.data.schema import Batch, Manifest
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.models.heads import Target
from deeplense.recipe import Recipe

SAMPLE = 1024  # images that the pre-processing is fitted on
VALIDATION_BATCH = 256


class Loader(Protocol):
    """Batches, in an order that depends on the epoch; `StoredLoader` and `SimLoader`."""

    def set_epoch(self, epoch: int) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...


@dataclass
class Feed:
    """Data of one training.

    Attributes:
        n_train: images of an epoch.
        train, val: (rank, world_size) -> that process's loader.
        sample: batches of training images; the pre-processing is fitted on them.
        targets: values of the regression target among the training images; empty to classify.
        fresh: every epoch has images of its own.
        close: ends what the feed has started; a feed that is forgotten ends it too.
    """

    manifest: Manifest
    n_train: int
    train: Callable[[int, int], Loader]
    val: Callable[[int, int], Loader]
    sample: list[Tensor]
    targets: NDArray[np.float64]
    fresh: bool = False
    close: Callable[[], None] = lambda: None


def make_feed(recipe: Recipe, data: str | Path, device: torch.device) -> Feed:
    """The feed for `data`, a dataset's folder or "sim".

    Raises:
        UserError: no such dataset or split, no such target, or fewer than two classes to tell apart.
    """
    task = recipe.task
    if task.kind == "regress" and task.target is None:
        raise UserError("task.target is missing: name the parameter to regress, e.g. task.target=log10_m_axion")
    target = task.target if task.kind == "regress" else None
    feed = _simulated(recipe, target, device) if str(data) == "sim" else _stored(recipe, target, Path(data))
    if target is None and len(feed.manifest.classes) < 2:
        known = ", ".join(feed.manifest.classes) or "none"
        raise UserError(f"{data}: to classify takes two classes, it has: {known}; set task.kind=regress or add one")
    return feed


def find_target(feed: Feed, name: str) -> Target:
    """Scaling of the target: by its prior where that is uniform or normal, else by the training values.

    Raises:
        UserError: the target does not vary.
    """
    parameter = feed.manifest.parameters[feed.manifest.parameter(name)]
    kind, values = next(iter(parameter.prior.items())) if isinstance(parameter.prior, dict) else ("", [])
    if kind == "uniform":
        low, high = map(float, values)
        # a prior that its own data leave cannot bound the answer
        if low < high and low <= feed.targets.min() and feed.targets.max() <= high:
            return Target(name, parameter.unit, (low + high) / 2, (high - low) / 2, low, high)
    mean, width = map(float, values) if kind == "normal" else (feed.targets.mean(), feed.targets.std())
    if not width > 0:
        raise UserError(f"task.target '{name}' has the same value in all training images; choose another")
    return Target(name, parameter.unit, float(mean), float(width))


def _stored(recipe: Recipe, target: str | None, folder: Path) -> Feed:
    dataset = Dataset(folder)
    train = dataset.split("train")
    of_train = _usable(train.labels, target)
    if "val" in dataset.manifest.splits:
        val = dataset.split("val")
        of_val = _usable(val.labels, target)
    else:
        # no validation split: a tenth of the training images, chosen by the seed
        val = train
        shuffled = rng.generator(recipe.seed, "hold out").permutation(of_train)
        held = max(len(shuffled) // 10, 1)
        of_val, of_train = np.sort(shuffled[:held]), np.sort(shuffled[held:])
        print(f"{folder} has no split 'val': validating on {held} of its {len(shuffled)} training images")
    size = recipe.training.batch_size

    def train_loader(rank: int, world_size: int) -> StoredLoader:
        return StoredLoader(train, size, target, True, recipe.seed, True, rank, world_size, of_train)

    def val_loader(rank: int, world_size: int) -> StoredLoader:
        return StoredLoader(val, VALIDATION_BATCH, target, rank=rank, world_size=world_size, index=of_val)

    index = train_loader(0, 1).index
    val_loader(0, 1)  # an empty split is found now, not after an epoch
    chosen = np.sort(rng.generator(recipe.seed, "sample").permutation(index)[:SAMPLE])
    values = train.params[index, dataset.manifest.parameter(target)] if target else np.empty(0)
    return Feed(dataset.manifest, len(index), train_loader, val_loader, [train.images(chosen)], values)


def _usable(labels: NDArray[np.int64], target: str | None) -> NDArray[np.int64]:
    """Positions of the images that the task can use: to classify, those whose class is known."""
    return np.flatnonzero((labels >= 0) | (target is not None))


def _simulated(recipe: Recipe, target: str | None, device: torch.device) -> Feed:
    from deeplense.data.ahead import Share, ahead
    from deeplense.data.simulated import Kept, SimLoader, SimStream  # the simulator, only when it is asked for

    config = recipe.training
    size, images = config.batch_size, config.batch_size * config.steps_per_epoch
    wanted = [] if target is None else [target]
    train = SimStream(recipe.simulation, recipe.seed, "train", size, wanted, device)
    n = -(-SAMPLE // size) * size
    start = time.perf_counter()
    first = list(train.another(device="cpu").batches(Share(0, n)))  # the first epoch begins with these
    seconds = (time.perf_counter() - start) / n * (config.epochs * images - n)
    source = ahead(train, train.image, seconds) if device.type == "cpu" else train
    # not more in a batch than VALIDATION_BATCH, and about as many in the last one as in the others
    val = train.another(name="val", batch_size=-(-config.val_images // -(-config.val_images // VALIDATION_BATCH)))

    def train_loader(rank: int, world_size: int) -> Loader:
        return SimLoader(source, images, rank, world_size, first)

    def val_loader(rank: int, world_size: int) -> Loader:
        return Kept(SimLoader(val, config.val_images, rank, world_size))

    manifest = train.manifest
    manifest.splits = {"train": images, "val": config.val_images}
    values = np.empty(0)
    if target:
        values = torch.cat([batch.params[:, manifest.parameter(target)] for batch in first]).double().numpy()
    sample = [batch.image for batch in first]
    return Feed(manifest.seal(), images, train_loader, val_loader, sample, values, True, source.close)
