"""Where training's batches come from: named sources, each a stored dataset or the simulator itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense import config, recipe, rng
from deeplense.data.loaders import StoredLoader
from deeplense.data.schema import Batch, Manifest
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.models.heads import Target, task_heads
from deeplense.recipe import Recipe
from deeplense.training import sources
from deeplense.training.objectives import LABELLED

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
        n_train: images of an epoch. fresh: no epoch shows an image of another.
        train: (rank, world_size) -> that process's loader of every source. val: likewise, of the labelled one.
        sample: batches of training images; the pre-processing is fitted on them.
        targets: parameters that the heads regress.
        labels: (N,) and params: (N, P): truths among the training images.
        simulation: the world that the images come from, if known.
        close: ends what the feed has started; a feed that is forgotten ends it too.
    """

    manifest: Manifest
    n_train: int
    fresh: bool
    train: Callable[[int, int], dict[str, Loader]]
    val: Callable[[int, int], Loader]
    sample: list[Tensor]
    targets: list[str]
    labels: NDArray[np.int64]
    params: NDArray[np.float64]
    simulation: recipe.Simulation | None
    close: Callable[[], None] = lambda: None

    def target(self, name: str) -> Target:
        """Scaling of a target: by its prior where that is uniform or normal, else by the training values.

        Raises:
            UserError: no training image has it, or it does not vary.
        """
        column = self.manifest.parameter(name)
        parameter = self.manifest.parameters[column]
        values = self.params[:, column]
        values = values[np.isfinite(values)]
        if not len(values):
            raise UserError(f"task: no training image of dataset '{self.manifest.name}' has a '{name}'; choose another")
        kind, numbers = next(iter(parameter.prior.items())) if isinstance(parameter.prior, dict) else ("", [])
        if kind == "uniform":
            low, high = map(float, numbers)
            # a prior that its own data leave cannot bound the answer
            if low < high and low <= values.min() and values.max() <= high:
                return Target(name, parameter.unit, (low + high) / 2, (high - low) / 2, low, high)
        mean, width = map(float, numbers) if kind == "normal" else (values.mean(), values.std())
        if not width > 0:
            raise UserError(f"task.target '{name}' has the same value in all training images; choose another")
        return Target(name, parameter.unit, float(mean), float(width))


class Wanted:
    """Which images a task can use: those of a known class where it classifies, those with any of its targets."""

    def __init__(self, task: recipe.Task) -> None:
        heads = task_heads(task)
        self.targets = [t for spec in heads.values() for t in spec.get("targets", [])]
        self.classes = any(not spec.get("targets") for spec in heads.values())

    def usable(self, labels: NDArray[np.int64], params: NDArray[np.float64], manifest: Manifest) -> NDArray[np.bool_]:
        """(N,) of the images with these truths.

        Raises:
            UserError: the dataset has no such parameter.
        """
        columns = [manifest.parameter(name) for name in self.targets]
        known = np.isfinite(params[:, columns]).any(1)
        return np.asarray(known | (labels >= 0) if self.classes else known)


def make_feed(recipe: Recipe, data: str | Path, device: torch.device) -> Feed:
    """The feed for `data`, a dataset's folder or "sim", and the recipe's further sources.

    Raises:
        UserError: no such dataset or split, no such target, or fewer than two classes to tell apart.
    """
    wanted = Wanted(recipe.task)
    extra = sources.wanted(recipe)
    if str(data) == "sim":
        from deeplense.training.fresh import fresh_feed  # the simulator, only when it is asked for

        feed = fresh_feed(recipe, wanted, device)
    else:
        feed = _stored(recipe, wanted, Path(data))
    if wanted.classes and len(feed.manifest.classes) < 2:
        known = ", ".join(feed.manifest.classes) or "none"
        raise UserError(f"{data}: to classify takes two classes, it has: {known}; set task.kind=regress or add one")
    if extra:
        sources.add(feed, recipe, extra, device)
    return feed


def _stored(recipe: Recipe, wanted: Wanted, folder: Path) -> Feed:
    dataset = Dataset(folder)
    manifest = dataset.manifest
    train = dataset.split("train")
    of_train = np.flatnonzero(wanted.usable(train.labels, train.params, manifest))
    if "val" in manifest.splits:
        val = dataset.split("val")
        of_val = np.flatnonzero(wanted.usable(val.labels, val.params, manifest))
    else:
        # no validation split: a tenth of the training images, chosen by the seed
        val = train
        shuffled = rng.generator(recipe.seed, "hold out").permutation(of_train)
        held = max(len(shuffled) // 10, 1)
        of_val, of_train = np.sort(shuffled[:held]), np.sort(shuffled[held:])
        print(f"{folder} has no split 'val': validating on {held} of its {len(shuffled)} training images")
    size = recipe.training.batch_size
    strata = train.labels[of_train] if recipe.training.balance == "sampler" and wanted.classes else None

    def train_loaders(rank: int, world_size: int) -> dict[str, Loader]:
        return {LABELLED: StoredLoader(train, size, True, recipe.seed, True, rank, world_size, of_train, strata)}

    def val_loader(rank: int, world_size: int) -> StoredLoader:
        return StoredLoader(val, VALIDATION_BATCH, rank=rank, world_size=world_size, index=of_val)

    train_loaders(0, 1), val_loader(0, 1)  # an empty split is found now, not after an epoch
    chosen = np.sort(rng.generator(recipe.seed, "sample").permutation(of_train)[:SAMPLE])
    return Feed(
        manifest,
        len(of_train),
        False,
        train_loaders,
        val_loader,
        [train.images(chosen)],
        wanted.targets,
        train.labels[of_train],
        train.params[of_train],
        _world_of(manifest),
    )


def _world_of(manifest: Manifest) -> recipe.Simulation | None:
    """The simulation of simulated data, where this code still understands it."""
    tree = (manifest.recipe or {}).get("simulation")
    try:
        return None if tree is None else config.build(recipe.Simulation, tree, "simulation")
    except UserError:
        return None
