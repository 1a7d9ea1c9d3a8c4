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
    np.testing.assert_array_equal(batches[2].params.numpy(), split.params[20:30].astype(np.float32))


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


def test_drop_last_keeps_the_only_batch(split: Split) -> None:
    assert [len(b.id) for b in StoredLoader(split, 40, drop_last=True)] == [40]
    assert [len(b.id) for b in StoredLoader(split, 100, drop_last=True)] == [64]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_any_number_of_processes_sees_the_same_batches(split: Split, world_size: int) -> None:
    whole = list(StoredLoader(split, 10, shuffle=True))
    shares = [list(StoredLoader(split, 10, shuffle=True, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(s) for s in shares} == {len(whole)}
    for k, batch in enumerate(whole):
        for r in range(world_size):
            assert torch.equal(shares[r][k].id, batch.id[r::world_size])
            assert torch.equal(shares[r][k].image, batch.image[r::world_size])


def test_nothing_left_is_an_error(split: Split) -> None:
    with pytest.raises(UserError, match="has not an image"):
        StoredLoader(split, 4, index=np.empty(0, dtype=np.int64))
