"""What a training step costs beside its network, as shares and ratios within one run.

`python benchmarks/training.py [section …]`, all of them when none is named. `step`: a step of `quickstart` (images from
the store, pre-processing, augmentation, optimiser, schedule, averaged weights, logs) against a bare PyTorch loop over
the same network on tensors that lie ready, in turns. `sim`: the share of a step that waits for its images when
`quickstart` is trained straight from the simulator, with the images made ahead in a process of their own, and made
between the steps.
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
from deeplense.data.transforms import Preprocessor
from deeplense.models import Context, build_network
from deeplense.models.heads import HeadSpec
from deeplense.training import feed, fit
from deeplense.training.feed import Feed, Loader
from deeplense.training.module import LensModule

EPOCHS, STEPS, TURNS = 3, 100, 5


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


def step() -> None:
    """Median times of a step, in turns."""
    print(f"step: quickstart, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with contextlib.redirect_stdout(io.StringIO()):
            deeplense.simulate("quickstart", data, splits="train=3200,val=64,test=64")
        ratios = []
        for turn in range(TURNS):
            ours, bare = _ours(data, Path(folder) / f"run{turn}"), _bare(data)
            ratios.append(bare / ours)
            print(f"  a step {1e3 * ours:.2f} ms, of the bare loop {1e3 * bare:.2f} ms: {ratios[-1]:.3f}", flush=True)
        print(f"  median ratio {np.median(ratios):.3f}")


def _ours(data: Path, out: Path) -> float:
    times: list[float] = []
    end = LensModule.on_train_batch_end

    def stamped(module: LensModule, *arguments: Any) -> None:
        end(module, *arguments)
        times.append(time.perf_counter())

    with mock.patch.object(LensModule, "on_train_batch_end", stamped), contextlib.redirect_stdout(io.StringIO()):
        deeplense.train("quickstart", data, out, overrides=["training.epochs=2"], device="cpu")
    return float(np.median(np.diff(times)))  # the two steps beside a validation are no median


def _bare(data: Path) -> float:
    made = deeplense.load_recipe("quickstart")
    split = deeplense.Dataset(data).split("train")
    images, labels = split.images(np.arange(3200)), torch.from_numpy(split.labels[:3200])
    preprocess = Preprocessor.fit(made.preprocess, split.manifest.image, [images[:1024]])
    with torch.no_grad():
        ready = [x.contiguous(memory_format=torch.channels_last) for x in torch.split(preprocess(images), 64)]
    context = Context(split.manifest.image, preprocess)
    torch.manual_seed(0)
    network = build_network(made.model, [HeadSpec("class", "categorical")], split.manifest.classes, context)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    times = [time.perf_counter()]
    for _ in range(2):
        for x, y in zip(ready, torch.split(labels, 64), strict=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x)["class"], y).backward()
            optimizer.step()
            times.append(time.perf_counter())
    return float(np.median(np.diff(times)))


SECTIONS: dict[str, Callable[[], None]] = {"step": step, "sim": sim}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
