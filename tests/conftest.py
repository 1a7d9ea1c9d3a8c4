"""Small data that the tests make themselves."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from deeplense import rng
from deeplense.data import store
from deeplense.data.schema import ImageInfo, Manifest, Parameter

OLD = Path(__file__).parent / "old"  # files of the first bundle format


def write_tiny_dataset(
    folder: Path,
    n_train: int = 64,
    n_val: int = 32,
    n_test: int = 32,
    size: int = 16,
    classes: Sequence[str] = ("axion", "cdm", "no_sub"),
    channels: int = 1,
    seed: int = 0,
) -> Path:
    """Noisy Gaussian blobs: the class sets the width, log10_m_axion the brightness of `axion`."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    splits = {k: n for k, n in {"train": n_train, "val": n_val, "test": n_test}.items() if n}
    shards = []
    for split, n in splits.items():
        draw = rng.generator(seed, f"tiny/{split}")
        labels = np.arange(n) % len(classes)
        mass = np.where(np.array(classes)[labels] == "axion", draw.uniform(-24, -22, n), np.nan)
        width = size / 16 * (1.0 + labels) * draw.uniform(0.9, 1.1, n)
        peak = np.where(np.isnan(mass), 8.0, 4.0 + 4.0 * (np.nan_to_num(mass) + 24.0))
        blob = peak[:, None, None] * np.exp(-(x**2 + y**2) / (2 * width[:, None, None] ** 2))
        images = np.repeat(blob[:, None], channels, axis=1) + 0.5 * draw.standard_normal((n, channels, size, size))
        ids = [f"{split}/{i}" for i in range(n)]
        shards.append(store.write_shard(folder, split, 0, images.astype(np.float32), labels, mass[:, None], ids))
    manifest = Manifest(
        name="tiny",
        image=ImageInfo(channels, size, size, pixel_scale=0.1, unit="counts"),
        classes=list(classes),
        parameters=[Parameter("log10_m_axion", "log10(eV)", {"uniform": [-24.0, -22.0]}, "scalar")],
        splits=splits,
        shards=shards,
    )
    manifest.seal().write(folder)
    return folder


# a shell's background job ignores Ctrl-C, and so would every process that a test starts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64/32/32 images of 16 x 16 pixels in three learnable classes; `log10_m_axion` for the first."""
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    """`write_tiny_dataset`, for tests that need another size or other classes."""
    return write_tiny_dataset


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old classifier as a network in ONNX, made once for all processes of a test run; never changed by a test."""
    # with xdist, each process has a folder of its own in this one
    folder = tmp_path_factory.getbasetemp()
    out = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "exported.onnx"
    with open(out.with_suffix(".lock"), "w") as lock:
        from deeplense.inference.export import export  # seconds, for those who want it

        fcntl.flock(lock, fcntl.LOCK_EX)
        return out if out.exists() else export(OLD / "classifier.safetensors", out)


@pytest.fixture
def galaxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a test, with what `model_4` wants there: six pictures in the form of Galaxy10 DECaLS."""
    y, x = np.mgrid[:32, :32] - 15.5
    draw = np.random.default_rng(0)
    spots = draw.uniform(-6, 6, (6, 3, 2))  # one in each channel, at a place of its own
    light = 40 * np.exp(-np.hypot(x, y) / 4)[None, None] + [
        [120 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8) for cx, cy in each] for each in spots
    ]
    folder = tmp_path / "galaxies"
    folder.mkdir()
    with h5py.File(folder / "galaxy10.h5", "w") as file:
        file["images"] = np.moveaxis(light + 5, 1, -1).clip(0, 255).astype(np.uint8)
        file["ans"] = np.full(6, 6)
        file["redshift"] = np.full(6, 0.01)
    monkeypatch.chdir(tmp_path)
    return folder
