"""Where training's batches come from: named sources, each a stored dataset or the simulator itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
from deeplense.training.objectives import LABELLED, OBJECTIVES

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
    extra = _extra(recipe)
    feed = _simulated(recipe, wanted, device) if str(data) == "sim" else _stored(recipe, wanted, Path(data))
    if wanted.classes and len(feed.manifest.classes) < 2:
        known = ", ".join(feed.manifest.classes) or "none"
        raise UserError(f"{data}: to classify takes two classes, it has: {known}; set task.kind=regress or add one")
    if extra:
        _add(feed, recipe, extra, device)
    return feed


def _extra(recipe: Recipe) -> dict[str, str]:
    """The sources beside `--data` that the objective wants, as the recipe gives them."""
    needed = OBJECTIVES[recipe.training.objective].sources[1:]  # type: ignore[attr-defined]
    given = recipe.training.sources
    for name in given:
        if name not in needed:
            raise UserError(
                f"training.sources.{name}: objective '{recipe.training.objective}' takes "
                f"{', '.join(needed) or f'none beside {LABELLED}, which --data gives'}"
            )
    if absent := [name for name in needed if name not in given]:
        raise UserError(f"training.sources.{absent[0]} is missing: name a dataset, or sim")
    return {name: given[name] for name in needed}


def _add(feed: Feed, recipe: Recipe, sources: Mapping[str, str], device: torch.device) -> None:
    """Loaders of further sources, each as long as the first one's; every image of theirs is used."""
    first = feed.train

    def train(rank: int, world_size: int) -> dict[str, Loader]:
        found = first(rank, world_size)
        n = len(found[LABELLED])
        size = recipe.training.batch_size
        for name, where in sources.items():
            if where == "sim":
                found[name] = _sim_loader(recipe, name, size, n, None, device, rank, world_size)
                continue
            split = Dataset(where).split("train")
            loader = StoredLoader(split, size, True, rng.integer(recipe.seed, name), True, rank, world_size)
            found[name] = Cycled(loader, n)
        return found

    train(0, 1)  # what is wrong is found now
    feed.train = train


class Cycled:
    """A loader shortened or repeated to `n` batches; no epoch repeats the order of another."""

    def __init__(self, loader: Loader, n: int) -> None:
        self.loader, self.n, self.epoch = loader, n, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Batch]:
        left, rounds = self.n, -(-self.n // len(self.loader))
        for k in range(rounds):
            self.loader.set_epoch(self.epoch * rounds + k)
            for batch in self.loader:
                if not left:
                    return
                left -= 1
                yield batch


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


def _simulated(recipe: Recipe, wanted: Wanted, device: torch.device) -> Feed:
    config = recipe.training
    targets = [] if wanted.classes else wanted.targets  # every image has a class

    def train_loaders(rank: int, world_size: int) -> dict[str, Loader]:
        size, n = config.batch_size, config.steps_per_epoch
        return {LABELLED: _sim_loader(recipe, "train", size, n, targets, device, rank, world_size)}

    def val_loader(rank: int, world_size: int) -> Loader:
        size = min(VALIDATION_BATCH, config.val_images)
        loader: Loader = _sim_loader(
            recipe, "val", size, -(-config.val_images // size), targets, device, rank, world_size
        )
        return loader

    first = _sim_loader(recipe, "train", config.batch_size, -(-SAMPLE // config.batch_size), targets, "cpu", 0, 1)
    batches = list(first)
    params = np.concatenate([b.params.double().numpy() for b in batches])
    images = [b.image for b in batches]
    labels = np.concatenate([b.label.numpy() for b in batches])
    n_train = config.batch_size * config.steps_per_epoch
    return Feed(
        first.manifest,
        n_train,
        True,
        train_loaders,
        val_loader,
        images,
        wanted.targets,
        labels,
        params,
        recipe.simulation,
    )


def _sim_loader(
    recipe: Recipe,
    stream: str,
    size: int,
    batches: int,
    targets: Sequence[str] | None,
    device: Any,
    rank: int,
    world_size: int,
) -> Any:
    from deeplense.data.simulated import SimLoader  # the simulator, only when it is asked for

    return SimLoader(recipe.simulation, recipe.seed, stream, size, batches, targets or (), device, rank, world_size)
