"""What a training step costs beside its network, as shares and ratios within one run.

`python benchmarks/training.py [section …]`, all of them when none is named. `sim`: the share of a step that waits for
its images when `quickstart` is trained straight from the simulator, with the images made ahead in a process of their
own, and made between the steps.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import deeplense
from deeplense.data import pools
from deeplense.data.schema import Batch
from deeplense.training import feed, fit
from deeplense.training.feed import Feed, Loader

EPOCHS, STEPS = 3, 100


class Watched:
    """A loader whose steps are timed: (waiting for images, whole step) in seconds, a list for each epoch."""

    def __init__(self, loader: Loader, epochs: list[list[tuple[float, float]]]) -> None:
        self.loader, self.epochs = loader, epochs

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        steps: list[tuple[float, float]] = []
        self.epochs.append(steps)
        batches, start = iter(self.loader), time.perf_counter()
        for _ in range(len(self)):
            batch = next(batches)
            there = time.perf_counter()
            yield batch  # the end of the last step is not seen
            end = time.perf_counter()
            steps.append((there - start, end - start))
            start = end


def sim() -> None:
    """The share of waiting, made ahead and between the steps."""
    print(f"sim: quickstart straight from the simulator, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    options = [f"training.epochs={EPOCHS}", f"training.steps_per_epoch={STEPS}"]
    for name, start in (("ahead", 0.0), ("between the steps", float("inf"))):
        epochs: list[list[tuple[float, float]]] = []
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(pools, "START", start))
            stack.enter_context(mock.patch.object(fit, "make_feed", lambda *a, e=epochs: watched(e, *a)))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            begun = time.perf_counter()
            deeplense.train("quickstart", "sim", Path(folder) / "run", overrides=options, device="cpu")
            whole = time.perf_counter() - begun
        for k, steps in enumerate(epochs):
            waits, times = np.array(steps).T
            print(f"  {name}, epoch {k + 1}: {waits.sum() / times.sum():6.1%} of a step waits for images, a step takes "
                  f"{1e3 * times.mean():.1f} ms, the longest wait {waits.max():.2f} s", flush=True)  # fmt: skip
        print(f"  {name}: {whole:.1f} s in all")


def watched(epochs: list[list[tuple[float, float]]], *arguments: Any) -> Feed:
    """The feed, with its training batches timed."""
    made = feed.make_feed(*arguments)
    train = made.train
    made.train = lambda rank, world_size: {
        name: Watched(loader, epochs) for name, loader in train(rank, world_size).items()
    }
    return made


SECTIONS: dict[str, Callable[[], None]] = {"sim": sim}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
