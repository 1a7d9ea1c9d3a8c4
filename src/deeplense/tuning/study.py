"""`tune`: a study that any number of processes share, that survives being killed, and ends in a recipe.

A worker is the same command with the same `--out`: the journal file (or the database of `--storage`) is all
that workers share. All trials have the recipe's own seed, so that they differ by their settings alone.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from deeplense import config, rng
from deeplense.data import schema
from deeplense.device import resolve_device
from deeplense.errors import UserError
from deeplense.recipe import Recipe
from deeplense.tuning import PRUNERS, SAMPLERS, plots, record, space
from deeplense.tuning.space import Dimension

BEAT = 10.0  # s between two signs of life of a running trial
STALE = 60.0  # s without one after which its process counts as dead

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

    Args:
        recipe: shipped name, YAML file, mapping or `Recipe`.
        data: a dataset's folder, or "sim".
        out: the study's folder: `best.yaml`, `history.csv`, `history.png`, `importance.png`, `trials/`.
        storage: database URL that workers on several machines share; a journal file in `out` when not given.
        trials: the recipe's `tuning.trials` when not given.
        overrides: `key.sub=value` strings.

    Returns:
        `out/best.yaml`, a derived recipe.

    Raises:
        UserError: a bad space, a folder with another study, or no trial that ran to its end.
    """
    resolve_device(device)  # an absent one is told now, not by every trial
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
    study = _open(resolved, fingerprint, dimensions, out, storage)

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

        with _signs_of_life(trial):
            try:
                candidate = config.build(Recipe, space.apply(tree, settings), "recipe")
                with contextlib.redirect_stdout(io.StringIO()):  # a line for each trial is enough
                    train(candidate, data, out / "trials" / str(trial.number), on_epoch=on_epoch)
            except (UserError, torch.OutOfMemoryError) as error:
                trial.set_user_attr("message", " ".join(str(error).split())[:300])
                raise
        return min(losses)

    def after(study: optuna.Study, trial: FrozenTrial) -> None:
        _fail_stale(study)
        record.remove_weights(study, out)
        print(record.line(study, trial), flush=True)
        record.write_best(study, dimensions, differs, out)
        record.write_history(study, dimensions, out)
        if _enough(study, wanted):
            study.stop()

    _fail_stale(study)
    if not _enough(study, wanted):
        try:
            study.optimize(objective, callbacks=[after], catch=(UserError, torch.OutOfMemoryError))
        except KeyboardInterrupt:
            done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
            print(
                f"stopped after {done} of {wanted} trials; the same command with --out {out} goes on",
                flush=True,
            )
            raise
    return _conclude(study, dimensions, differs, out)


class _PerTrial(BaseSampler):  # type: ignore[misc]
    """Seeds a sampler by (seed, trial number): workers never draw the same, and a resumed study draws what an
    uninterrupted one would have drawn."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.make, self.seed = make, seed
        self.inner = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.inner = self.make(rng.integer(self.seed, "tune", trial.number) % 2**32)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self.inner.infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict(self.inner.sample_relative(study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.inner.after_trial(study, trial, state, values)


def _open(
    recipe: Recipe, fingerprint: str, dimensions: list[Dimension], out: Path, storage: str | None
) -> optuna.Study:
    """Create or join the study, and make sure that it is this one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    tuned = [d.distribution for d in dimensions if d.path == "training.epochs"]
    epochs = tuned[0].high if tuned and isinstance(tuned[0], IntDistribution) else recipe.training.epochs
    where = str(out / "journal.log") if storage is None else f"--storage {storage.partition('://')[0]}://…"
    try:
        out.mkdir(parents=True, exist_ok=True)
        backend: BaseStorage = JournalStorage(JournalFileBackend(where)) if storage is None else RDBStorage(storage)
        study = optuna.create_study(
            storage=backend,
            sampler=_PerTrial(SAMPLERS[recipe.tuning.sampler], recipe.seed),
            pruner=PRUNERS[recipe.tuning.pruner](epochs),
            study_name=out.resolve().name,
            load_if_exists=True,
        )
    except Exception as error:  # drivers, servers, permissions and damaged files fail in their own ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where}: cannot open the study ({reason})") from error
    identity = _identity(recipe, fingerprint)
    held = study.user_attrs.get("identity")
    if held is None:
        study.set_user_attr("identity", identity)
    elif held != identity:
        keys = [key for key in identity | held if identity.get(key) != held.get(key)]
        raise UserError(f"{out} holds another study (it differs in {', '.join(keys[:3])}); choose another --out")
    return study


def _identity(recipe: Recipe, fingerprint: str) -> dict[str, str]:
    """What all trials of a study share: sampler, pruner and number of trials may change on the way."""
    tree = config.to_tree(recipe)
    flat = {
        f"{section}.{key}": json.dumps(value, sort_keys=True)
        for section, content in tree.items()
        if isinstance(content, dict)
        for key, value in content.items()
    }
    for key in ("sampler", "pruner", "trials"):
        del flat[f"tuning.{key}"]
    return flat | {"seed": str(recipe.seed), "data": fingerprint}


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


@contextlib.contextmanager
def _signs_of_life(trial: optuna.Trial) -> Iterator[None]:
    """Stamp the trial regularly, in the study itself, because a journal file has no heartbeat of its own."""
    trial.set_user_attr("alive", time.time())
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            trial.set_user_attr("alive", time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _fail_stale(study: optuna.Study) -> None:
    """Give up trials whose process died; what lives elsewhere is left alone."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        if time.time() - trial.user_attrs.get("alive", started) > STALE:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _enough(study: optuna.Study, wanted: int) -> bool:
    """Enough trials; or so many refusals for each useful trial that more of the same would not mend it."""
    trials = study.get_trials(deepcopy=False)
    useful = sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    refused = sum("message" in t.user_attrs for t in trials)
    return useful >= wanted or refused >= wanted * (1 + useful)


def _conclude(study: optuna.Study, dimensions: list[Dimension], differs: config.Tree, out: Path) -> Path:
    record.write_history(study, dimensions, out)
    best = record.best_trial(study)
    if best is None:
        messages = [t.user_attrs["message"] for t in study.get_trials(deepcopy=False) if "message" in t.user_attrs]
        reason = messages[-1] if messages else "the validation loss was never finite"
        raise UserError(f"{out}: no trial ran to its end; the last one: {reason}")
    record.write_best(study, dimensions, differs, out)
    for name, draw in (("history", plots.history), ("importance", plots.importance)):
        with schema.atomic(out / f"{name}.png") as temporary:
            draw(study).savefig(temporary, dpi=150)
    settings = record.settings_text(best.params)
    print(f"best: trial {best.number}, {best.value:.5f}, {settings}; wrote {out / 'best.yaml'}", flush=True)
    return out / "best.yaml"
