"""What a training step costs beside its network, as shares and ratios within one run.

`python benchmarks/training.py [section …]`, all of them when none is named. `step`: a step of `quickstart` (images from
the store, pre-processing, augmentation, optimiser, schedule, averaged weights, logs) against a bare PyTorch loop over
the same network on tensors that lie ready, in turns. `sim`: the share of a step that waits for its images when
`quickstart` is trained straight from the simulator, with the images made ahead in a process of their own, and made
between the steps. `average`: accuracy of averaged weights and of the network itself, 2,000 images, 12 epochs. `truths`:
R² of a source's place, 1,500 images of 32², with the default augmentation.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
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


def average() -> None:
    """What validation says of the averaged weights, and of the same training without."""
    print("average: quickstart, 2,000 training images, accuracy of validation by epoch")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with contextlib.redirect_stdout(io.StringIO()):
            deeplense.simulate("quickstart", data, splits="train=2000,val=900,test=64")
        for name, decay in (("averaged", 0.99), ("itself", 0)):
            with contextlib.redirect_stdout(io.StringIO()):
                overrides = [f"training.ema_decay={decay}", "training.epochs=12"]
                deeplense.train("quickstart", data, Path(folder) / name, overrides=overrides, device="cpu")
            with open(Path(folder) / name / "history.csv") as file:
                found = [float(row["val_metric"]) for row in csv.DictReader(file)]
            print(f"  {name:10s}", *(f"{value:.3f}" for value in found), flush=True)


def truths() -> None:
    """A place, and an ellipticity, which turn with the image."""
    print("truths: R² on 500 test images, quickstart's lenses, 1,500 training images of 32², default augmentation")
    source = {"center_x": "{uniform: [-0.3, 0.3]}", "center_y": "{uniform: [-0.3, 0.3]}"}
    source |= dict.fromkeys(("e1", "e2"), "{truncated_normal: [0.0, 0.2, -0.5, 0.5]}")
    drawn = [f"simulation.source.{name}={prior}" for name, prior in source.items()]
    drawn += ["simulation.size=32", "simulation.pixel_scale=0.16"]
    with tempfile.TemporaryDirectory() as folder:
        for target in ("source.center_x", "source.e1"):
            data, out = Path(folder) / "data", Path(folder) / target
            with contextlib.redirect_stdout(io.StringIO()):
                if not data.exists():
                    deeplense.simulate("quickstart", data, overrides=drawn, splits="train=1500,val=300,test=500")
                overrides = ["task.kind=regress", f"task.target={target}", "training.epochs=40"]
                path = deeplense.train("quickstart", data, out, overrides=overrides, device="cpu")
                deeplense.evaluate(path, data, out / "report", device="cpu")
            print(f"  {target}: {json.loads((out / 'report' / 'metrics.json').read_text())['r2']:.4f}", flush=True)


SECTIONS: dict[str, Callable[[], None]] = {"step": step, "sim": sim, "average": average, "truths": truths}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
