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
        batch_size: images of a step, over all processes together.
        drop_last: leave out an incomplete last batch, unless it is the only one.
        rank, world_size: this process among several. It gets rows rank, rank + world_size, … of every batch, so that
            any number of processes sees the same batches.
        index: positions in the split to draw from; all of them when not given.
        strata: of each of these; an epoch of as many images then shows every stratum equally often, rare ones again and
            again.

    Raises:
        UserError: no image to draw from.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        index: NDArray[np.int64] | None = None,
        strata: NDArray[np.int64] | None = None,
    ) -> None:
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        self.index = np.arange(len(split)) if index is None else index
        self.strata = strata
        if not len(self.index):
            raise UserError(
                f"split '{split.name}' of dataset '{split.manifest.name}' has not an image that can be used"
            )
        self._drop = drop_last and len(self.index) >= batch_size

    def __len__(self) -> int:
        n = len(self.index)
        return n // self.batch_size if self._drop else -(-n // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        order = self.index
        if self.shuffle:
            draw = rng.generator(self.seed, "order", self.epoch)
            order = draw.permutation(order if self.strata is None else self._balanced(draw, self.strata))
        for i in range(len(self)):
            self.split.ask_for(self._share(order, i + AHEAD))
            yield self.split.batch(self._share(order, i))

    def _share(self, order: NDArray[np.int64], i: int) -> NDArray[np.int64]:
        """This process's part of batch i, which is cut from what all of them see."""
        whole = self.split.by_shard(order[i * self.batch_size : (i + 1) * self.batch_size])
        return whole[self.rank :: self.world_size]

    def _balanced(self, draw: np.random.Generator, strata: NDArray[np.int64]) -> NDArray[np.int64]:
        groups = [self.index[strata == k] for k in np.unique(strata)]
        shares = np.diff(np.linspace(0, len(self.index), len(groups) + 1).round().astype(int))
        return np.concatenate([np.resize(draw.permutation(g), n) for g, n in zip(groups, shares, strict=True)])
