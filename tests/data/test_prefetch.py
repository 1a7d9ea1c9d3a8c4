from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplense.data import loaders, prefetch, store
from deeplense.data.loaders import StoredLoader
from deeplense.data.prefetch import Prefetch
from deeplense.data.schema import ImageInfo, Manifest
from deeplense.data.store import Dataset, Split


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Three shards of 100 images of 64 kB."""
    shards = []
    for k in range(3):
        images = np.full((100, 1, 128, 128), k, np.float32)
        labels, params, ids = np.zeros(100, np.int64), np.zeros((100, 0)), [f"{k}/{i}" for i in range(100)]
        shards.append(store.write_shard(tmp_path, "train", k, images, labels, params, ids))
    Manifest("m", ImageInfo(1, 128, 128), ["x"], [], {"train": 300}, shards).seal().write(tmp_path)
    return Dataset(tmp_path).split("train")


def drop(folder: Path) -> None:
    """Out of the page cache, as far as no map holds them."""
    for path in folder.glob("*.h5"):
        opened = os.open(path, os.O_RDONLY)
        os.fsync(opened)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(opened)


def in_memory(row: torch.Tensor) -> float:
    """Share of the pages of a row that are in the page cache."""
    start = row.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    n_bytes = row.data_ptr() + row.nbytes - start
    pages = (ctypes.c_ubyte * -(-n_bytes // mmap.PAGESIZE))()
    assert not prefetch._LIBC.mincore(ctypes.c_void_p(start), ctypes.c_size_t(n_bytes), pages)
    return float(np.mean(np.frombuffer(pages, np.uint8) & 1))


def test_what_is_asked_for_is_read_and_no_more(split: Split) -> None:
    drop(split.folder)
    split = Dataset(split.folder).split("train")
    wanted = [7, 130, 299]
    if max(in_memory(split._images[i // 100][i % 100]) for i in wanted) > 0.5:
        pytest.skip("this file system keeps its files in memory")
    split.ask_for(np.array(wanted))
    end = time.monotonic() + 60
    while min(in_memory(split._images[i // 100][i % 100]) for i in wanted) < 1 and time.monotonic() < end:
        time.sleep(0.01)
    assert [in_memory(split._images[i // 100][i % 100]) for i in wanted] == [1, 1, 1]
    assert in_memory(split._images[0][50]) == 0


def test_it_asks_while_pages_are_missing_and_then_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = iter([0, 3, *[3] * 1000])
    monkeypatch.setattr(prefetch, "_missing", lambda: next(missing))
    one = Prefetch()
    n = 0
    while one.needed():
        with one.watched():
            n += 1
    assert n == 1 + prefetch.PATIENCE
    missing = iter([3, 4])
    with one.watched():
        pass
    assert one.needed()


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_asks_for_what_it_gives_later(split: Split, monkeypatch: pytest.MonkeyPatch, shuffle: bool) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(Split, "ask_for", lambda self, index: asked.append(sorted(index.tolist())))
    given = [sorted(batch.id.tolist()) for batch in StoredLoader(split, 16, shuffle=shuffle)]
    assert asked[: len(given) - loaders.AHEAD] == given[loaders.AHEAD :]
    assert asked[len(given) - loaders.AHEAD :] == [[]] * loaders.AHEAD


def test_the_order_does_not_depend_on_what_is_in_memory(split: Split) -> None:
    def order() -> list[list[int]]:
        return [batch.id.tolist() for batch in StoredLoader(Dataset(split.folder).split("train"), 16, shuffle=True)]

    warm = order()
    drop(split.folder)
    assert order() == warm
