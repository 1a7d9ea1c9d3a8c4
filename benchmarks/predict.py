"""`deeplense predict` on one core: its rate against the bare network's over the same tensors, and how soon it starts.

`OMP_NUM_THREADS=1 python benchmarks/predict.py bundle.safetensors dataset` (those of `make quickstart` when not given)
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import deeplense
from deeplense.data.store import Dataset
from deeplense.inference.runtime import OnnxBundle

BATCH = 64
ROUNDS = 7


def seconds(work: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.process_time() - start


def compare(kind: str, n: int, whole: Callable[[], object], bare: Callable[[], object]) -> None:
    """Taken in turns, so that what else the machine does meets both."""
    whole(), bare()
    times = np.array([[seconds(whole), seconds(bare)] for _ in range(ROUNDS)])
    ours, theirs = n / np.median(times, 0)
    ratio = np.median(times[:, 1] / times[:, 0])
    print(f"{kind}: {ours:,.0f} images a core-second, bare {theirs:,.0f}, ratio {ratio:.3f}", flush=True)


def elapsed(*command: str | Path) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
    return time.perf_counter() - start


def main(bundle: str = "runs/quickstart/run/bundle.safetensors", data: str = "runs/quickstart/dataset") -> None:
    torch.set_num_threads(1)
    one = deeplense.load(bundle, "cpu")
    images = Dataset(data).split("test").images(np.arange(len(Dataset(data).split("test"))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exported = deeplense.export(bundle, folder / "model.onnx")
        runner = OnnxBundle(exported, threads=1)
        first = folder / "first.npy"
        np.save(first, images[0].numpy())

        @torch.no_grad()
        def network() -> None:
            for part in torch.split(images, BATCH):
                one.network(one.inputs(part))

        def session() -> None:
            for part in torch.split(images, BATCH):
                runner.outputs(part.numpy())

        for kind, model, bare in (("torch", bundle, network), ("ONNX", exported, session)):
            out = folder / "table.csv"
            compare(kind, len(images), lambda m=model, o=out: deeplense.predict(m, [data], o, split="test"), bare)
        cli = ("-c", "from deeplense.cli import main; main()", "predict")
        out = ("--out", folder / "first.csv")
        starts = np.array(
            [
                [
                    elapsed("-c", "import torch"),
                    elapsed(*cli, exported, first, *out),
                    elapsed(*cli, bundle, first, *out),
                ]
                for _ in range(ROUNDS)
            ]
        )
        torch_alone, onnx, torch_ = np.median(starts, 0)
        print(f"first prediction written: ONNX {onnx:.2f} s, torch {torch_:.2f} s; `import torch` {torch_alone:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
