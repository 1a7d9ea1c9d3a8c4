"""Train a recipe on a dataset."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from deeplense import config, rng
from deeplense.data import schema
from deeplense.data.augment import Augmenter
from deeplense.data.familiarity import Familiarity
from deeplense.data.transforms import Preprocessor
from deeplense.device import resolve_device
from deeplense.errors import UserError
from deeplense.models import build_network
from deeplense.models.heads import head_for
from deeplense.recipe import Recipe, Training
from deeplense.training.feed import Feed, find_target, make_feed
from deeplense.training.keep import Keeper, OnEpoch
from deeplense.training.module import LensModule


def train(
    recipe: str | Path | dict[str, Any] | Recipe,
    data: str | Path,
    out: str | Path,
    resume: bool = False,
    overrides: Sequence[str] = (),
    device: str = "auto",
    on_epoch: OnEpoch | None = None,
) -> Path:
    """Train a network; returns `OUT/bundle.safetensors`, the best one on the validation split.

    Writes beside it `last.ckpt`, `recipe.yaml` (resolved), `history.csv` and `log/` (TensorBoard), all after
    every epoch, so that Ctrl-C or a killed process loses one epoch at most.

    Args:
        recipe: a shipped recipe's name, a YAML file, its content, or a `Recipe`.
        data: folder of a dataset, or "sim": images straight from the recipe's simulation, none seen twice.
        resume: continue from `last.ckpt`, exactly as if nothing had happened.
        overrides: `key.sub=value` strings.
        device: "auto", "cpu", "cuda" (as many as there are), "cuda:1".
        on_epoch: called after every validation with the epoch, from 1, and its row of the history; what it
            raises ends the training.

    Raises:
        UserError: bad recipe or data, a folder that holds another run, an absent device, or divergence.
        KeyboardInterrupt: Ctrl-C (or SIGTERM, where it raises one), after telling how to resume.
    """
    made = config.load_recipe(config.to_tree(recipe) if isinstance(recipe, Recipe) else recipe, overrides)
    _check(made.training)
    where, out = resolve_device(device), Path(out)
    last = _claim(out, made, resume)
    feed = make_feed(made, data, where)
    if last is not None:
        _check_fingerprint(last, feed.manifest.fingerprint)
    target = find_target(feed, made.task.target) if made.task.kind == "regress" and made.task.target else None
    preprocess, familiarity = _look(made, feed)
    torch.manual_seed(rng.integer(made.seed, "weights"))
    head = head_for(made.task, feed.manifest.classes, target)
    network = build_network(made.model, preprocess.output_shape, head.n_out)
    module = LensModule(network, preprocess, familiarity, head, made, feed)
    keeper = Keeper(out, target, on_epoch)
    if _rank() == 0:
        with schema.atomic(out / "recipe.yaml") as temporary:
            temporary.write_text(config.dump(made))
    with _quiet():
        try:
            _trainer(made.training, where, out, keeper).fit(module, ckpt_path=last)
        except SystemExit:
            # Lightning's way of passing Ctrl-C on
            if keeper.interrupted is None:
                raise
    if keeper.interrupted is not None:
        print(f"\nstopped; the same command with --resume continues from epoch {len(keeper.history)} ({out})")
        raise keeper.interrupted
    if keeper.best is None:
        raise UserError(f"{out}: the validation loss was never finite; lower training.lr (it is {made.training.lr:g})")
    if _rank() == 0:
        name = "accuracy" if target is None else "MAE"
        best = keeper.best
        print(f"best epoch {best['epoch']}: val_loss {best['val_loss']:.4f}, {name} {best['val_metric']:.4f}")
        print(f"wrote {out / 'bundle.safetensors'}")
    return out / "bundle.safetensors"


@torch.no_grad()
def _look(recipe: Recipe, feed: Feed) -> tuple[Preprocessor, Familiarity]:
    """What is fitted on training images before the network: the pre-processing, and what is familiar to it."""
    preprocess = Preprocessor.fit(recipe.preprocess, feed.manifest.image, feed.sample)
    images = torch.cat([preprocess(part) for part in feed.sample])
    feed.sample.clear()
    seen = Augmenter(recipe.augment)(images, rng.torch_generator(recipe.seed, "familiarity"))
    return preprocess, Familiarity.fit(seen)


def _rank() -> int:
    """0 but in the other processes of a distributed training; every launcher sets it."""
    return int(getattr(rank_zero_only, "rank", 0))


def _check(training: Training) -> None:
    """Numbers that no training can use."""
    least = {"epochs": 1, "batch_size": 2, "steps_per_epoch": 1, "val_images": 1, "cycle_epochs": 1}
    for name, smallest in least.items():
        if getattr(training, name) < smallest:
            raise UserError(f"training.{name} is {getattr(training, name)}; it must be at least {smallest}")
    if not training.lr > 0:
        raise UserError(f"training.lr is {training.lr}; it must be positive")
    for name in ("ema_decay", "warmup", "label_smoothing", "momentum"):
        if not 0 <= getattr(training, name) < 1:
            raise UserError(f"training.{name} is {getattr(training, name)}; it must lie in [0, 1)")


def _claim(out: Path, recipe: Recipe, resume: bool) -> Path | None:
    """The state to resume from, if any.

    Raises:
        UserError: `out` holds another run.
    """
    if _rank() != 0:
        return out / "last.ckpt" if resume and (out / "last.ckpt").is_file() else None
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    held = [name for name in ("recipe.yaml", "last.ckpt", "bundle.safetensors") if (out / name).exists()]
    if held and not resume:
        raise UserError(f"{out}: holds a run already; pass --resume or choose another --out")
    if not resume:
        return None
    if (out / "recipe.yaml").exists():
        old = yaml.safe_load((out / "recipe.yaml").read_text())
        if path := _difference(old, yaml.safe_load(config.dump(recipe))):
            raise UserError(f"{out}: its run had another {path}; resume with the same recipe or choose another --out")
    if not (out / "last.ckpt").is_file():
        print(f"{out}: no last.ckpt to resume from; starting from the beginning")
        return None
    return out / "last.ckpt"


def _difference(old: Any, new: Any, path: str = "") -> str:
    """The first path at which two trees differ, or ""."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return "" if old == new else path or "recipe"
    for key in [*new, *(k for k in old if k not in new)]:
        here = f"{path}.{key}" if path else str(key)
        if key not in old or key not in new:
            return here
        if found := _difference(old[key], new[key], here):
            return found
    return ""


def _check_fingerprint(last: Path, fingerprint: str) -> None:
    try:
        state = torch.load(last, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{last}: damaged ({type(error).__name__}); remove it and resume from the beginning") from error
    if state.get("fingerprint") != fingerprint:
        raise UserError(f"{last}: its run had other data; give the same --data or choose another --out")


def _trainer(training: Training, device: torch.device, out: Path, keeper: Keeper) -> pl.Trainer:
    on_gpu = device.type == "cuda"
    one_of_many = [device.index] if device.index is not None else "auto"
    precision: Any = {"32": "32-true", "bf16": "bf16-mixed", "auto": "bf16-mixed" if on_gpu else "32-true"}
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=one_of_many if on_gpu else 1,
        precision=precision[training.precision],
        max_epochs=training.epochs,
        gradient_clip_val=training.clip_norm or None,
        logger=TensorBoardLogger(out, name="", version="log"),
        callbacks=[keeper],
        default_root_dir=out,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        use_distributed_sampler=False,  # the loaders share out their images themselves
        benchmark=on_gpu,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's banners and hints, and give Ctrl-C back as it was."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    handler = signal.getsignal(signal.SIGINT)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.|torchmetrics\.|torch\.optim\.lr_scheduler")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
