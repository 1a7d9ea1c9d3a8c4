from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deeplense.data.loaders import StoredLoader
from deeplense.data.store import Dataset, Split
from deeplense.errors import UserError


@pytest.fixture(scope="module")
def split(tiny_dataset: Path) -> Split:
    return Dataset(tiny_dataset).split("train")


def _ids(loader: StoredLoader) -> list[int]:
    return [i for batch in loader for i in batch.id.tolist()]


def test_every_image_once_in_order_without_shuffling(split: Split) -> None:
    loader = StoredLoader(split, 10)
    batches = list(loader)
    assert _ids(loader) == list(range(64))
    assert len(loader) == len(batches) == 7
    assert torch.equal(batches[2].image, split.images(np.arange(20, 30)))
    assert batches[0].image.shape == (10, 1, 16, 16)
    assert batches[0].target.isnan().all()


def test_order_depends_on_seed_and_epoch_alone(split: Split) -> None:
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            loader = StoredLoader(split, 10, shuffle=True, seed=seed)
            loader.set_epoch(epoch)
            orders[seed, epoch] = tuple(_ids(loader))
            other = StoredLoader(split, 7, shuffle=True, seed=seed)
            other.set_epoch(1 - epoch)
            list(other)
            other.set_epoch(epoch)
            assert tuple(_ids(other)) == orders[seed, epoch]
            assert sorted(orders[seed, epoch]) == list(range(64))
    assert len(set(orders.values())) == 4


def test_target_leaves_out_images_without_it(split: Split) -> None:
    loader = StoredLoader(split, 8, target="log10_m_axion")
    batches = list(loader)
    assert sum(len(b.id) for b in batches) == int((split.labels == 0).sum())
    assert all(b.label.eq(0).all() and b.target.isfinite().all() for b in batches)
    with pytest.raises(UserError, match="log10_m_axion"):
        StoredLoader(split, 8, target="log10_axion")


def test_drop_last_keeps_the_only_batch(split: Split) -> None:
    assert [len(b.id) for b in StoredLoader(split, 40, drop_last=True)] == [40]
    assert [len(b.id) for b in StoredLoader(split, 100, drop_last=True)] == [64]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_out_equally(split: Split, world_size: int) -> None:
    loaders = [StoredLoader(split, 4, shuffle=True, rank=r, world_size=world_size) for r in range(world_size)]
    shares = [_ids(loader) for loader in loaders]
    assert len({len(s) for s in shares}) == len({len(loader) for loader in loaders}) == 1
    everything = [i for s in shares for i in s]
    assert set(everything) == set(range(64))
    assert len(everything) - 64 < world_size


def test_nothing_left_is_an_error(split: Split) -> None:
    with pytest.raises(UserError, match="has not an image"):
        StoredLoader(split, 4, index=np.empty(0, dtype=np.int64))
