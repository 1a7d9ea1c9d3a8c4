"""Loading a stored dataset of 150² images in batches: cold, when it must come from the disk, and warm, from the page
cache.

`python benchmarks/load.py [images]`: shuffled against the stored order, both cold and warm; then, warm, against a torch
`DataLoader` over one `.npy` file an image with no and with two workers.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import deeplense
from deeplense.data import store
from deeplense.data.loaders import StoredLoader
from deeplense.data.store import Split

BATCH = 64
PASSES = 3


class Files(Dataset):
    """The way of the notebooks: one `.npy` an image."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self.paths[k]))


def forget(folder: Path) -> None:
    """Drop files from the page cache; only what no process has mapped goes."""
    for path in folder.iterdir():
        opened = os.open(path, os.O_RDONLY)
        os.fsync(opened)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(opened)


def rate(make: Callable[[], Iterable[torch.Tensor]], before: Callable[[], object] = lambda: None) -> float:
    """Best of several passes, images/s; `before` each, what is not timed."""
    best = 0.0
    for _ in range(PASSES):
        before()
        start = time.perf_counter()
        n = sum(len(batch) for batch in make())
        best = max(best, n / (time.perf_counter() - start))
    return best


def opened(folder: Path) -> Split:
    return store.Dataset(folder).split("train")


def cold(folder: Path, shuffle: bool) -> float:
    """Of a split that is opened anew, so that no map keeps its pages."""
    epochs = iter(range(1000))

    def images() -> Iterable[torch.Tensor]:
        loader = StoredLoader(opened(folder), BATCH, shuffle=shuffle)
        loader.set_epoch(next(epochs))
        return (batch.image for batch in loader)

    return rate(images, lambda: forget(folder))


def warm(split: Split, shuffle: bool) -> float:
    loader = StoredLoader(split, BATCH, shuffle=shuffle)
    epochs = iter(range(1000))

    def images() -> Iterable[torch.Tensor]:
        loader.set_epoch(next(epochs))
        return (batch.image for batch in loader)

    rate(images)
    return rate(images)


def main(n: int) -> None:
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        deeplense.simulate("model_1", folder / "data", splits=f"train={n}")
        in_order, shuffled = (cold(folder / "data", shuffle) for shuffle in (False, True))
        print(f"cold, in the stored order: {in_order:,.0f} images/s")
        print(f"cold, shuffled: {shuffled:,.0f} images/s -> ratio {shuffled / in_order:.2f}")
        split = opened(folder / "data")
        in_order, mine = (warm(split, shuffle) for shuffle in (False, True))
        print(f"warm, in the stored order: {in_order:,.0f} images/s")
        print(f"warm, shuffled: {mine:,.0f} images/s -> ratio {mine / in_order:.2f}")
        few = min(n, 6144)
        (folder / "files").mkdir()
        for k in range(few):
            np.save(folder / "files" / f"{k:06d}.npy", split.images(np.array([k]))[0].numpy())
        files = Files(folder / "files")
        for workers in (0, 2):
            theirs = rate(lambda w=workers: DataLoader(files, BATCH, shuffle=True, num_workers=w))
            print(f"DataLoader over .npy files, {workers} workers: {theirs:,.0f} images/s -> ratio {mine / theirs:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24576)
