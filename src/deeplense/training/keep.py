"""What a training leaves on disk after every epoch: the best bundle, the last state, the history."""

from __future__ import annotations

import copy
import csv
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from deeplense.bundle import Bundle, Target
from deeplense.data import schema
from deeplense.models.heads import fit_temperature
from deeplense.training.module import LensModule

COLUMNS = ["epoch", "train_loss", "val_loss", "val_metric", "lr", "seconds"]

OnEpoch = Callable[[int, dict[str, float]], None]


class Keeper(pl.Callback):
    """Writes `bundle.safetensors` when the validation loss improves, `last.ckpt` and `history.csv` always.

    Attributes:
        history: one row an epoch, see `COLUMNS`; the first epoch is 1. best: the row of the best so far.
        interrupted: what Ctrl-C or SIGTERM raised, if one came.
    """

    def __init__(self, out: Path, target: Target | None, on_epoch: OnEpoch | None) -> None:
        self.out, self.target, self.on_epoch = out, target, on_epoch
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.interrupted: type[KeyboardInterrupt] | None = None
        self._on_sigterm = signal.getsignal(signal.SIGTERM)
        self._clock = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.best = state["history"], state["best"]

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(module, LensModule)
        checkpoint["fingerprint"] = module.feed.manifest.fingerprint

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.interrupted = type(exception) if isinstance(exception, KeyboardInterrupt) else None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Lightning's own handler, set just before, ends the program with 0 as if the training were finished
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
        trainer.should_stop = self._stale(module)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._clock = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, LensModule)
        row = {
            "epoch": trainer.current_epoch + 1,
            "train_loss": float(module.train_loss.compute()),
            "val_loss": float(trainer.callback_metrics["val_loss"]),
            "val_metric": float(trainer.callback_metrics["val_metric"]),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": time.perf_counter() - self._clock,
        }
        module.train_loss.reset()
        self.history.append(row)
        if math.isfinite(row["val_loss"]) and (self.best is None or row["val_loss"] < self.best["val_loss"]):
            self.best = row
            if trainer.is_global_zero:
                self._bundle(trainer, module).save(self.out / "bundle.safetensors")
        if trainer.is_global_zero:
            self._write_history()
            if not sys.stderr.isatty():  # a log has no progress bar
                losses = f"loss {row['train_loss']:.4f}, val_loss {row['val_loss']:.4f}"
                name = "accuracy" if self.target is None else "MAE"
                told = f"{losses}, {name} {row['val_metric']:.4f}, {row['seconds']:.1f} s"
                print(f"epoch {row['epoch']} of {trainer.max_epochs}: {told}", flush=True)
        self._save_state(trainer)
        trainer.should_stop = trainer.should_stop or self._stale(module)
        if self.on_epoch is not None:
            self.on_epoch(int(row["epoch"]), row)

    def _stale(self, module: pl.LightningModule) -> bool:
        """Too many epochs without a better validation loss."""
        assert isinstance(module, LensModule)
        patience = module.recipe.training.patience
        best = self.best["epoch"] if self.best else 0
        return bool(patience) and bool(self.history) and self.history[-1]["epoch"] - best >= patience

    def _bundle(self, trainer: pl.Trainer, module: LensModule) -> Bundle:
        head = copy.deepcopy(module.head)
        if module.recipe.training.calibrate and module.outputs is not None:
            fit_temperature(head, *module.outputs)
        assert self.best is not None
        summary = {
            "n_train": module.feed.n_train,
            "epochs": len(self.history),
            "best_epoch": self.best["epoch"],
            "val_loss": self.best["val_loss"],
            "val_metric": self.best["val_metric"],
            "seconds": round(sum(row["seconds"] for row in self.history), 1),
            "parameters": sum(p.numel() for p in module.network.parameters()),
            "temperature": float(head.temperature),
            "precision": str(trainer.precision),
            "torch": torch.__version__,
        }
        manifest = module.feed.manifest
        return Bundle(
            module.evaluated,
            module.preprocess,
            head,
            module.familiarity,
            module.recipe,
            manifest.classes,
            manifest.image,
            self.target,
            manifest.fingerprint,
            summary,
            version("deeplense"),
        )

    def _save_state(self, trainer: pl.Trainer) -> None:
        temporary = self.out / ".last.tmp.ckpt"
        trainer.save_checkpoint(temporary)  # all ranks take part, the first one writes
        if trainer.is_global_zero:
            os.replace(temporary, self.out / "last.ckpt")

    def _write_history(self) -> None:
        with schema.atomic(self.out / "history.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.history)
