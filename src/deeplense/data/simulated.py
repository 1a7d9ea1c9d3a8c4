"""Training straight from the simulator: images never seen twice, the same `Batch` as from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from deeplense import recipe
from deeplense.data.generate import manifest
from deeplense.data.schema import Batch
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World


class SimLoader:
    """Batches of new images; (seed, stream, epoch, rank, step) names each, so a resumed run sees what it would have.

    Args:
        simulation: the world. stream: e.g. "train"; another stream never shares an image.
        batches: in an epoch. target: a parameter to regress; images without it are left out.
        device: where the images are made, and stay. rank, world_size: of this process among several.

    Raises:
        UserError: the simulation makes no sense, or has no such target.
    """

    def __init__(
        self,
        simulation: recipe.Simulation,
        seed: int,
        stream: str,
        batch_size: int,
        batches: int,
        targets: Sequence[str] = (),
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.world = World(simulation)
        made = recipe.Recipe(name="on the fly", seed=seed, simulation=simulation, splits={stream: batches * batch_size})
        self.manifest = manifest(made, self.world, [])
        self.seed, self.stream, self.batch_size, self.batches = seed, stream, batch_size, batches
        self.columns = [self.manifest.parameter(name) for name in targets]
        self.device, self.rank, self.world_size, self.epoch = device, rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and with it the images."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        block = self.rank
        left: list[Batch] = []
        for _ in range(self.batches):
            while sum(len(part.label) for part in left) < self.batch_size:
                left.append(self._block(block))
                block += self.world_size
            columns: list[Tensor] = [torch.cat(parts) for parts in zip(*left, strict=True)]
            yield Batch(*(c[: self.batch_size] for c in columns))
            left = [Batch(*(c[self.batch_size :] for c in columns))]

    def _block(self, block: int) -> Batch:
        made = observe_block(self.world, self.seed, f"{self.stream}/{self.epoch}", block, device=self.device)
        keep = np.arange(len(made.labels))
        if self.columns:
            keep = np.flatnonzero(np.isfinite(made.truth[:, self.columns]).any(1))
        return Batch(
            made.images[torch.from_numpy(keep).to(self.device)],
            torch.from_numpy(made.labels[keep]),
            torch.from_numpy(made.truth[keep].astype(np.float32)),
            torch.from_numpy(made.numbers[keep]),
        )
