"""`benchmark`: how fast this machine simulates, loads, trains and predicts. Peers are compared in `benchmarks/`."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from deeplense import bundle, config
from deeplense.data.generate import simulate
from deeplense.data.loaders import StoredLoader
from deeplense.data.store import Dataset
from deeplense.device import resolve_device
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World
from deeplense.training.fit import train

Verb = Literal["simulate", "load", "train", "predict"]
IMAGES = 1024


def benchmark(verb: Verb | None = None, recipe: str = "quickstart", device: str = "auto") -> dict[str, float]:
    """Measure images a second of one verb, or of all.

    Args:
        verb: simulate, load, train or predict. recipe: whose images and network.

    Returns:
        verb -> images/s; also printed.
    """
    verbs = {"simulate": _simulate, "load": _load, "train": _train, "predict": _predict}
    if verb is not None:
        config.lookup(verbs, verb, "benchmark")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if verb != "simulate":
            with contextlib.redirect_stdout(io.StringIO()):
                simulate(recipe, folder / "data", splits=f"train={IMAGES},val=64", workers=1)
        rates = {v: verbs[v](recipe, folder, device) for v in ([verb] if verb else verbs)}
    threads = f"{torch.get_num_threads()} threads"
    for name, rate in rates.items():
        print(f"{name:<9} {rate:>10,.0f} images/s  ({recipe}, {resolve_device(device)}, {threads})")
    return rates


def _simulate(recipe: str, folder: Path, device: str) -> float:
    world = World(config.load_recipe(recipe).simulation)
    where = resolve_device(device)
    return _rate(lambda k: len(observe_block(world, 0, "benchmark", k, device=where).labels))


def _load(recipe: str, folder: Path, device: str) -> float:
    loader = StoredLoader(Dataset(folder / "data").split("train"), 64, shuffle=True)

    def epoch(k: int) -> int:
        loader.set_epoch(k)
        return sum(len(batch.label) for batch in loader)

    return _rate(epoch)


def _train(recipe: str, folder: Path, device: str) -> float:
    seconds: list[float] = []
    start = time.perf_counter()

    def note(epoch: int, metrics: dict[str, float]) -> None:
        seconds.append(time.perf_counter() - start)

    with contextlib.redirect_stdout(io.StringIO()):
        train(
            recipe,
            folder / "data",
            folder / "run",
            overrides=["training.epochs=3"],
            device=device,
            on_epoch=note,
        )
    return IMAGES / float(np.diff(seconds).min())


def _predict(recipe: str, folder: Path, device: str) -> float:
    if not (folder / "run").exists():
        with contextlib.redirect_stdout(io.StringIO()):
            train(recipe, folder / "data", folder / "run", overrides=["training.epochs=1"], device=device)
    trained = bundle.load(folder / "run" / "bundle.safetensors", device)
    images = Dataset(folder / "data").split("train").images(np.arange(IMAGES))
    return _rate(lambda k: len(trained.raw(images)))


def _rate(work: Callable[[int], int], seconds: float = 2.0) -> float:
    """Work a second, after one warm-up call."""
    work(0)
    done, start = 0, time.perf_counter()
    k = 1
    while time.perf_counter() - start < seconds:
        done += work(k)
        k += 1
    return done / (time.perf_counter() - start)
