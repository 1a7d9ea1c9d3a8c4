"""Sources of batches beside the labelled one, for objectives that want them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from deeplense import rng
from deeplense.data.loaders import StoredLoader
from deeplense.data.schema import Batch
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.recipe import Recipe
from deeplense.training.objectives import LABELLED, OBJECTIVES

if TYPE_CHECKING:
    from deeplense.training.feed import Feed, Loader


def wanted(recipe: Recipe) -> dict[str, str]:
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


def add(feed: Feed, recipe: Recipe, sources: Mapping[str, str], device: torch.device) -> None:
    """Loaders of further sources, each as long as the first one's; every image of theirs is used."""
    first = feed.train

    def train(rank: int, world_size: int) -> dict[str, Loader]:
        found = first(rank, world_size)
        n = len(found[LABELLED])
        size = recipe.training.batch_size
        for name, where in sources.items():
            if where == "sim":
                from deeplense.data.simulated import SimLoader, SimStream

                stream = SimStream(recipe.simulation, recipe.seed, name, size, device=device)
                found[name] = SimLoader(stream, n * size, rank, world_size)
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
