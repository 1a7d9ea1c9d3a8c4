"""ONNX against the bundle, on one core: images/s of torch, float32 and int8, what int8 loses, what float32 differs by.

`python benchmarks/export.py bundle.safetensors dataset` (those of `make quickstart` when not given)
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import deeplense
from deeplense.bundle import Bundle
from deeplense.data import store
from deeplense.inference.runtime import OnnxBundle

BATCH = 64


def rate(bundle: Bundle, images: torch.Tensor, seconds: float = 5.0) -> float:
    bundle.raw(images[:BATCH])
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += len(bundle.raw(images, BATCH))
    return done / (time.perf_counter() - start)


def auc(bundle: Bundle, images: torch.Tensor, labels: np.ndarray) -> float:
    p = bundle.predict(images, BATCH).probabilities
    return float(np.mean([roc_auc_score(labels == k, p[:, k]) for k in range(p.shape[1])]))


def main(path: str, data: str) -> None:
    torch.set_num_threads(1)
    split = store.Dataset(data).split("test")
    images = split.images(np.arange(len(split)))
    own = deeplense.load(path, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.onnx" for kind in ("float32", "int8")}
        deeplense.export(path, files["float32"], data=data)
        deeplense.export(path, files["int8"], int8=True, data=data)
        exported = {kind: OnnxBundle(file, threads=1) for kind, file in files.items()}
        reference, speed = own.predict(images).probabilities, rate(own, images[:1024])
        own_auc = auc(own, images, split.labels)
        print(f"torch    {speed:8.0f} images/s  AUC {own_auc:.5f}  ({len(images)} test images)")
        for kind, bundle in exported.items():
            fast, score = rate(bundle, images[:1024]), auc(bundle, images, split.labels)
            worst = np.abs(bundle.predict(images, BATCH).probabilities - reference).max()
            print(f"{kind:8} {fast:8.0f} images/s  AUC {score:.5f}  {fast / speed:.2f} x torch, "
                  f"AUC lost {own_auc - score:+.5f}, max |dp| {worst:.1e}")  # fmt: skip


if __name__ == "__main__":
    main(*(sys.argv[1:3] or ("runs/quickstart/run/bundle.safetensors", "runs/quickstart/dataset")))
