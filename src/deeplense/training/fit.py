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
from torch import Tensor

from deeplense import config, rng
from deeplense.data import schema
from deeplense.data.augment import Augmenter
from deeplense.data.schema import Batch
from deeplense.data.transforms import Preprocessor
from deeplense.device import resolve_device
from deeplense.errors import UserError
from deeplense.models import Context, build_network
from deeplense.models.fitting import left_out, settled
from deeplense.models.heads import head_specs
from deeplense.models.pixel_statistics import PixelStatistics
from deeplense.recipe import Recipe, Training
from deeplense.training import start
from deeplense.training.feed import Feed, make_feed
from deeplense.training.keep import Keeper, OnEpoch
from deeplense.training.module import LensModule
from deeplense.training.processes import Processes, bfloat16_is_slow, launched, lost_another, synchronise


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
        resume: continue from `last.ckpt`, exactly as if nothing had happened. `training.epochs`, `lr`, `schedule`,
            `warmup` and `patience` may be others: the run goes on where the new schedule would stand by now.
        overrides: `key.sub=value` strings.
        device: "auto", "cpu", "cuda" (as many as there are), "cuda:1".
        on_epoch: called after every validation with the epoch, from 1, and its row of the history; what it
            raises ends the training.

    Raises:
        UserError: bad recipe or data, a folder that holds another run, an absent device, or divergence.
        KeyboardInterrupt: Ctrl-C (or SIGTERM, where it raises one), after telling how to resume.
    """
    made = config.load_recipe(config.to_tree(recipe) if isinstance(recipe, Recipe) else recipe, overrides)
    where, out = resolve_device(device), Path(out)
    last = _claim(out, made, resume)
    feed = make_feed(made, data, where)
    if last is not None:
        _check_fingerprint(last, feed.manifest.fingerprint)
    specs = head_specs(made.task, {name: feed.target(name) for name in feed.targets})
    asked = made
    made, told = settled(made, feed.manifest.image)
    preprocess, statistics, reference = _look(made, feed)
    torch.manual_seed(rng.integer(made.seed, "weights"))
    context = Context(feed.manifest.image, preprocess, feed.manifest.parameters, feed.simulation)
    network = build_network(made.model, specs, feed.manifest.classes, context)
    if _rank() == 0:
        print("".join(f"{line}\n" for line in [*told, *left_out(network.trunk, preprocess.output_shape)]), end="")
    start.prepare(network, made.training, feed)
    module = LensModule(network, preprocess, statistics, made, feed, reference)
    processes = launched()
    if processes and processes.world_size > 1 and where.type == "cpu":
        synchronise(network)
    keeper = Keeper(out, specs, on_epoch)
    if _rank() == 0:
        with schema.atomic(out / "recipe.yaml") as temporary:
            temporary.write_text(config.dump(asked))
    with _quiet():
        try:
            _trainer(made.training, where, out, keeper, processes).fit(module, ckpt_path=last)
        except SystemExit:
            # Lightning's way of passing Ctrl-C on
            if keeper.interrupted is None:
                raise
        except RuntimeError as error:
            if not lost_another(error):
                raise
            raise UserError(
                f"{out}: another process of this training ended, after epoch {len(keeper.history)}; the same command "
                "with --resume continues from there, with any number of processes"
            ) from error
        finally:
            feed.close()
    if keeper.interrupted is not None:
        print(f"\nstopped; the same command with --resume continues from epoch {len(keeper.history)} ({out})")
        raise keeper.interrupted
    if keeper.best is None:
        raise UserError(f"{out}: the validation loss was never finite; lower training.lr (it is {made.training.lr:g})")
    if _rank() == 0:
        print(f"best epoch {keeper.best['epoch']}: {keeper.told(keeper.best)}")
        print(f"wrote {out / 'bundle.safetensors'}")
    return out / "bundle.safetensors"


@torch.no_grad()
def _look(recipe: Recipe, feed: Feed) -> tuple[Preprocessor, PixelStatistics, Tensor]:
    """What is fitted on training images before the network: the pre-processing, and the unit of pixel statistics; and
    these images, preprocessed and turned."""
    preprocess = Preprocessor.fit(recipe.preprocess, feed.manifest.image, feed.sample)
    images = torch.cat([preprocess(part) for part in feed.sample])
    feed.sample.clear()
    n = torch.zeros(len(images))
    turned = Augmenter(recipe.augment)(
        Batch(images, n.long(), n[:, None][:, :0], n.long()), rng.torch_generator(recipe.seed, "reference")
    )
    return preprocess, PixelStatistics.fit(turned.image), turned.image


def _rank() -> int:
    """0 but in the other processes of a distributed training; every launcher sets it."""
    return int(getattr(rank_zero_only, "rank", 0))


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
        new = yaml.safe_load(config.dump(recipe))
        for name in start.MAY_CHANGE:
            old["training"][name] = new["training"][name]
        if path := _difference(old, new):
            may = ", ".join(f"training.{name}" for name in start.MAY_CHANGE)
            raise UserError(
                f"{out}: its run had another {path}; resume with the same recipe (but for {may}), or choose another "
                "--out"
            )
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


def _trainer(
    training: Training, device: torch.device, out: Path, keeper: Keeper, processes: Processes | None
) -> pl.Trainer:
    on_gpu = device.type == "cuda"
    one_of_many: Any = [device.index] if device.index is not None else "auto"
    alone = one_of_many if on_gpu else 1
    if training.precision == "bf16" and bfloat16_is_slow(device):
        print("training.precision=bf16: this CPU has no bfloat16 and imitates it, several times slower; set it to 32")
    precision: Any = {"32": "32-true", "bf16": "bf16-mixed", "auto": "bf16-mixed" if on_gpu else "32-true"}
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=processes.on_node if processes else alone,
        num_nodes=processes.nodes if processes else 1,
        strategy="ddp" if processes and processes.world_size > 1 else "auto",
        sync_batchnorm=on_gpu,
        precision=precision[training.precision],
        max_epochs=training.epochs,
        gradient_clip_val=training.clip_norm or None,
        accumulate_grad_batches=training.accumulate,
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
