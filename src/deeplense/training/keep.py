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

from deeplense.bundle import Bundle
from deeplense.data import schema
from deeplense.models.heads import HeadSpec
from deeplense.models.network import Network
from deeplense.models.out_of_distribution import OutOfDistribution
from deeplense.training.module import LensModule

COLUMNS = ["epoch", "train_loss", "val_loss", "val_metric", "lr", "seconds"]

OnEpoch = Callable[[int, dict[str, float]], None]


class Keeper(pl.Callback):
    """Writes `bundle.safetensors` when the validation loss improves, `last.ckpt` and `history.csv` always.

    Attributes:
        history: one row an epoch, see `COLUMNS`; the first epoch is 1. best: the row of the best so far.
        interrupted: what Ctrl-C or SIGTERM raised, if one came.
    """

    def __init__(self, out: Path, specs: list[HeadSpec], on_epoch: OnEpoch | None) -> None:
        self.out, self.specs, self.on_epoch = out, specs, on_epoch
        self.metric_name = "metric"
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
        assert isinstance(module, LensModule)
        self.metric_name = next(iter(module.network.each().values())).metric_name
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
        # of several heads, each one's own
        row |= {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_") and k not in row}
        module.train_loss.reset()
        self.history.append(row)
        if math.isfinite(row["val_loss"]) and (self.best is None or row["val_loss"] < self.best["val_loss"]):
            self.best = row
            if trainer.is_global_zero:
                self._bundle(trainer, module).save(self.out / "bundle.safetensors")
        if trainer.is_global_zero:
            self._write_history()
            if not sys.stderr.isatty():  # a log has no progress bar
                told = f"loss {row['train_loss']:.4f}, {self.told(row)}, {row['seconds']:.1f} s"
                print(f"epoch {row['epoch']} of {trainer.max_epochs}: {told}", flush=True)
        self._save_state(trainer)
        trainer.should_stop = trainer.should_stop or self._stale(module)
        if self.on_epoch is not None:
            self.on_epoch(int(row["epoch"]), row)

    def told(self, row: dict[str, float]) -> str:
        """What a person wants to know of an epoch."""
        return f"val_loss {row['val_loss']:.4f}, {self.metric_name} {row['val_metric']:.4f}"

    def _stale(self, module: pl.LightningModule) -> bool:
        """Too many epochs without a better validation loss."""
        assert isinstance(module, LensModule)
        patience = module.recipe.training.patience
        best = self.best["epoch"] if self.best else 0
        return bool(patience) and bool(self.history) and self.history[-1]["epoch"] - best >= patience

    def _bundle(self, trainer: pl.Trainer, module: LensModule) -> Bundle:
        network = module.evaluated
        heads = copy.deepcopy(network.each())
        if module.recipe.training.calibrate and module.outputs is not None:
            raw, batch = module.outputs
            for name, head in heads.items():
                head.calibrate(raw[name], batch)
        assert self.best is not None
        assert module.held_out is not None
        measured, features = module.held_out
        feed, manifest = module.feed, module.feed.manifest
        epochs = len(self.history)
        summary = {
            "n_train": feed.n_train * (epochs if feed.fresh else 1),
            "epochs": epochs,
            "best_epoch": self.best["epoch"],
            "val_loss": self.best["val_loss"],
            "val_metric": self.best["val_metric"],
            "seconds": round(sum(row["seconds"] for row in self.history), 1),
            "parameters": sum(p.numel() for p in module.network.parameters()),
            "precision": str(trainer.precision),
            "torch": torch.__version__,
        }
        return Bundle(
            Network(network.trunk, heads, network.weights),
            module.preprocess,
            OutOfDistribution.fit(module.statistics, measured, features),
            self.specs,
            module.recipe,
            manifest.classes,
            manifest.image,
            manifest.parameters,
            feed.simulation,
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
            more = [k for k in self.history[-1] if k not in COLUMNS]
            writer = csv.DictWriter(file, COLUMNS + more)
            writer.writeheader()
            writer.writerows(self.history)
