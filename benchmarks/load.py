"""Loading a stored dataset in shuffled batches, against one `.npy` file an image, same 150² images, warm cache.

`python benchmarks/load.py [images]`: ours against a torch `DataLoader` over the files with no and with two workers.
"""

from __future__ import annotations

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

BATCH = 64


class Files(Dataset):
    """The way of the notebooks: one `.npy` an image."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self.paths[k]))


def rate(make: Callable[[], Iterable[torch.Tensor]], repeats: int = 3) -> float:
    """Best of several passes, images/s; the first warms the cache."""
    best = 0.0
    for k in range(repeats + 1):
        start = time.perf_counter()
        n = sum(len(batch) for batch in make())
        best = max(best, n / (time.perf_counter() - start)) if k else 0.0
    return best


def main(n: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deeplense.simulate("model_1", folder / "data", splits=f"train={n}")
        split = store.Dataset(folder / "data").split("train")
        (folder / "files").mkdir()
        for k, image in enumerate(split.images(np.arange(n)).numpy()):
            np.save(folder / "files" / f"{k:06d}.npy", image)
        loader = StoredLoader(split, BATCH, shuffle=True)
        epochs = iter(range(1000))

        def ours() -> Iterable[torch.Tensor]:
            loader.set_epoch(next(epochs))
            return (batch.image for batch in loader)

        files = Files(folder / "files")
        mine = rate(ours)
        print(f"deeplense store, shuffled batches of {BATCH}: {mine:,.0f} images/s")
        for workers in (0, 2):
            theirs = rate(lambda w=workers: DataLoader(files, BATCH, shuffle=True, num_workers=w))
            print(f"DataLoader over .npy files, {workers} workers: {theirs:,.0f} images/s -> ratio {mine / theirs:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 6144)
