"""Studies with a quadratic in place of a training: what their tests share."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deeplense.recipe import Recipe, Training, Tuning

SPACE: dict[str, dict[str, list[Any]]] = {
    "training.lr": {"log": [1e-4, 1e-1]},
    "model.dropout": {"float": [0.0, 0.5]},
    "training.schedule": {"choice": ["one_cycle", "constant"]},
}


def make(**tuning: Any) -> Recipe:
    return Recipe(name="toy", training=Training(epochs=4), tuning=Tuning(**({"space": SPACE, "trials": 5} | tuning)))


def fake(recipe: Recipe, data: Any, out: Path, on_epoch: Callable[[int, dict[str, float]], None]) -> None:
    """Learns best at lr = 1e-2 and dropout = 0.1; writes what a training would."""
    out.mkdir(parents=True)
    (out / "bundle.safetensors").write_bytes(b"weights")
    (out / "last.ckpt").write_bytes(b"state")
    (out / "history.csv").write_text("epoch\n")
    loss = (np.log10(recipe.training.lr) + 2) ** 2 + (recipe.model.dropout - 0.1) ** 2
    for epoch in range(1, recipe.training.epochs + 1):
        on_epoch(epoch, {"val_loss": loss + 1 / epoch, "val_metric": 0.5})


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "history.csv", newline="") as file:
        return list(csv.DictReader(file))
