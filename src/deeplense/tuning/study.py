"""`tune`: a study that any number of processes share, that survives being killed, and ends in a recipe.

A worker is the same command with the same `--out`: the journal file (or the database of `--storage`) is all
that workers share. All trials have the recipe's own seed, so that they differ by their settings alone.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import OptunaError
from optuna.trial import TrialState

from deeplense import config
from deeplense.data import schema
from deeplense.device import resolve_device
from deeplense.errors import UserError
from deeplense.recipe import Recipe
from deeplense.tuning import attempts, life, plots, record, space
from deeplense.tuning.opening import open_study
from deeplense.tuning.space import Dimension

LAUNCHED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # processes that a launcher has started

Source = str | Path | config.Tree | Recipe


def tune(
    recipe: Source,
    data: str | Path,
    out: str | Path,
    storage: str | None = None,
    trials: int | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
) -> Path:
    """Search `recipe.tuning.space` for the lowest validation loss.

    The study stops when it has `trials` complete or pruned trials, whoever ran them; workers that are in the
    middle of one then finish it. The same command again joins a running study or goes on with a stopped one.
    A trial that fails, for whatever reason, or whose process died is tried once more with the same settings.

    Args:
        recipe: shipped name, YAML file, mapping or `Recipe`.
        data: a dataset's folder, or "sim".
        out: the study's folder: `best.yaml`, `history.csv`, `history.png`, `importance.png`, `trials/`.
        storage: database URL that workers on several machines share; a journal file in `out` when not given.
        trials: the recipe's `tuning.trials` when not given.
        overrides: `key.sub=value` strings.
        device: the one device of this worker: "auto", "cpu", "cuda" (the first that it sees), "cuda:1".

    Returns:
        `out/best.yaml`, a derived recipe.

    Raises:
        UserError: a bad space, a folder with another study, no trial that ran to its end, failures without end, or
            a launcher such as torchrun.
        KeyboardInterrupt: Ctrl-C (or SIGTERM, where it raises one), after telling how to go on.
    """
    device = _one_device(device)  # an absent one is told now, not by every trial
    from deeplense.training.fit import train  # seconds to import; a wrong space is told at once

    return search(functools.partial(train, device=device), recipe, data, out, storage, trials, overrides)


def search(
    train: Callable[..., Any],
    recipe: Source,
    data: str | Path,
    out: str | Path,
    storage: str | None = None,
    trials: int | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """`tune` with any `train(recipe, data, out, on_epoch=...)` that reports `val_loss` after every epoch."""
    out = Path(out)
    resolved = config.load_recipe(config.to_tree(recipe) if isinstance(recipe, Recipe) else recipe, overrides)
    fingerprint = "sim" if str(data) == "sim" else schema.read_manifest(data).fingerprint
    dimensions = space.parse(resolved, stored=fingerprint != "sim")
    wanted = resolved.tuning.trials if trials is None else trials
    if wanted < 1:
        raise UserError(f"trials is {wanted}; a study needs at least one")
    tree = config.to_tree(resolved)
    differs = _derived(recipe, tree, overrides, out)
    study = open_study(resolved, fingerprint, dimensions, out, storage)

    def objective(trial: optuna.Trial) -> float:
        settings = {d.path: d.suggest(trial) for d in dimensions}
        losses: list[float] = []

        def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
            loss = float(metrics["val_loss"])
            if not math.isfinite(loss):
                raise optuna.TrialPruned("diverged")
            losses.append(loss)
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        candidate = config.build(Recipe, space.apply(tree, settings), "recipe")
        folder = out / "trials" / str(trial.number)
        with contextlib.redirect_stdout(io.StringIO()), _traceback_kept(folder):  # a line for each trial is enough
            train(candidate, data, folder, on_epoch=on_epoch)
        return min(losses)

    def after(number: int) -> None:
        record.remove_weights(study, out)
        print(record.line(study, study.get_trials(deepcopy=False)[number]), flush=True)
        record.write_best(study, dimensions, differs, out)
        record.write_history(study, dimensions, out)

    watch, failed, before = life.Watch(), 0, _useful(study)
    try:
        while (useful := _useful(study)) < wanted:
            for lost in watch.lost(study):
                if attempts.fail(study, lost.number, "its process ended"):
                    after(lost.number)
            # what fails for one reason after the other is not mended by more of the same
            if failed >= attempts.ATTEMPTS * wanted * (1 + useful - before):
                break
            trial = study.ask()
            if attempts.run(study, trial, objective):
                after(trial.number)
            failed += study.get_trials(deepcopy=False)[trial.number].state == TrialState.FAIL
    except KeyboardInterrupt:
        print(
            f"stopped after {_useful(study)} of {wanted} trials; the same command with --out {out} goes on", flush=True
        )
        raise
    best = _conclude(study, dimensions, differs, out)
    if useful < wanted:
        raise UserError(
            f"{out}: {failed} trainings of this run failed, the last one: {_last_failure(study)}; the same command "
            "goes on once that is mended"
        )
    return best


def _derived(source: Source, tree: config.Tree, overrides: Sequence[str], out: Path) -> config.Tree:
    """The start of `best.yaml`: the base, and what the command line changed."""
    if isinstance(source, Recipe | dict):
        out.mkdir(parents=True, exist_ok=True)
        with schema.atomic(out / "recipe.yaml") as temporary:
            temporary.write_text(config.dump(tree))
        return {"base": str((out / "recipe.yaml").resolve())}
    shipped = str(source) in config.shipped()
    derived: config.Tree = {"base": str(source) if shipped else str(Path(source).resolve())}
    for path in (text.partition("=")[0] for text in overrides):
        if not path.startswith("tuning"):
            derived[path] = functools.reduce(lambda node, key: node[key], path.split("."), tree)
    return derived


def _one_device(name: str) -> str:
    """One process and one device a trial: several would each ask for a trial of its own and train them as one."""
    for variable in LAUNCHED:
        if (text := os.environ.get(variable, "")).isdigit() and int(text) > 1:
            raise UserError(
                f"tune was started as {text} processes of one training ({variable}={text}), but a trial is trained by "
                "one; start it by itself once for each device, as in CUDA_VISIBLE_DEVICES=k deeplense tune …"
            )
    device = resolve_device(name)
    if device.type != "cuda" or device.index is not None:
        return str(device)
    if (n := torch.cuda.device_count()) > 1:
        print(
            f"this process uses 1 of {n} GPUs; start the same command for each with CUDA_VISIBLE_DEVICES=k", flush=True
        )
    return "cuda:0"


@contextlib.contextmanager
def _traceback_kept(folder: Path) -> Iterator[None]:
    """Of an error that the study survives, `traceback.txt` says where it came from."""
    try:
        yield
    except (UserError, OptunaError):
        raise
    except Exception:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "traceback.txt").write_text(traceback.format_exc())
        raise


def _useful(study: optuna.Study) -> int:
    """The number of trials that ran to their end or were pruned, whoever ran them."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _conclude(study: optuna.Study, dimensions: list[Dimension], differs: config.Tree, out: Path) -> Path:
    record.write_history(study, dimensions, out)
    best = record.best_trial(study)
    if best is None:
        reason = _last_failure(study) or "the validation loss was never finite"
        raise UserError(f"{out}: no trial ran to its end; the last one: {reason}")
    record.write_best(study, dimensions, differs, out)
    _draw(study, out)
    settings = record.settings_text(best.params)
    print(f"best: trial {best.number}, {best.value:.5f}, {settings}; wrote {out / 'best.yaml'}", flush=True)
    return out / "best.yaml"


def _draw(study: optuna.Study, out: Path) -> None:
    for name, draw in (("history", plots.history), ("importance", plots.importance)):
        with schema.atomic(out / f"{name}.png") as temporary:
            draw(study).savefig(temporary, dpi=150)


def _last_failure(study: optuna.Study) -> str:
    messages = [t.user_attrs.get("message", "") for t in study.get_trials(deepcopy=False)]
    return next((m for m in reversed(messages) if m and m != attempts.INTERRUPTED), "")
