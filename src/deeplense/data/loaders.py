"""Batches from a stored dataset: one indexed gather from the memory map a batch, no worker processes.

Workers would lose: the plain gather gives images many times faster than a network takes them. Of a dataset that is not
in memory, the coming batches are asked for ahead, so that a shuffled order reads about as fast as the stored one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deeplense import rng
from deeplense.data.schema import Batch
from deeplense.data.store import Split
from deeplense.errors import UserError

AHEAD = 4  # batches that the disk is told of beforehand


class StoredLoader:
    """An iterable of `Batch`; the order depends on (seed, epoch) alone.

    Args:
        target: name of the parameter to give as `Batch.target`; images without it are left out.
        drop_last: leave out an incomplete last batch, unless it is the only one.
        rank, world_size: this process's share. All ranks get equally many images: the first ones of the order
            repeat to fill the gap.
        index: positions in the split to draw from; all of them when not given.

    Raises:
        UserError: no such parameter, or no image left.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        target: str | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        index: NDArray[np.int64] | None = None,
    ) -> None:
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        self.column = None if target is None else split.manifest.parameter(target)
        self.index = np.arange(len(split)) if index is None else index
        if self.column is not None:
            self.index = self.index[np.isfinite(split.params[self.index, self.column])]
        if not len(self.index):
            wanted = f"an image with a value of '{target}'" if target else "an image"
            raise UserError(f"split '{split.name}' of dataset '{split.manifest.name}' has not {wanted}; choose another")
        self._share = -(-len(self.index) // world_size)
        self._drop = drop_last and self._share >= batch_size

    def __len__(self) -> int:
        return self._share // self.batch_size if self._drop else -(-self._share // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        order = self.index
        if self.shuffle:
            order = rng.generator(self.seed, "order", self.epoch).permutation(order)
        mine = np.resize(order, self._share * self.world_size)[self.rank :: self.world_size]
        for i in range(len(self)):
            soon = i + AHEAD
            self.split.ask_for(mine[soon * self.batch_size : (soon + 1) * self.batch_size])
            yield self.split.batch(mine[i * self.batch_size : (i + 1) * self.batch_size], self.column)
