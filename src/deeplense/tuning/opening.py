"""Create or join a study, make sure that it is this one, and believe nothing that it holds unchecked."""

from __future__ import annotations

import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError

from deeplense import config
from deeplense.errors import UserError
from deeplense.recipe import Recipe
from deeplense.tuning import PRUNERS, SAMPLERS
from deeplense.tuning.journal import open_journal
from deeplense.tuning.sampler import PerTrial
from deeplense.tuning.space import Dimension

NOTES = {"message": str, "attempt": int, "beats": int, "worker": list}  # what a trial may carry, if anything


def open_study(
    recipe: Recipe, fingerprint: str, dimensions: list[Dimension], out: Path, storage: str | None
) -> optuna.Study:
    """The study in the journal of `out`, or of that folder's name in the database `storage`.

    Raises:
        UserError: it cannot be opened, is damaged, or is another study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    tuned = [d.distribution for d in dimensions if d.path == "training.epochs"]
    epochs = tuned[0].high if tuned and isinstance(tuned[0], IntDistribution) else recipe.training.epochs
    where = str(out / "journal.log") if storage is None else f"--storage {storage.partition('://')[0]}://…"
    try:
        out.mkdir(parents=True, exist_ok=True)
        backend: BaseStorage = open_journal(out / "journal.log") if storage is None else _database(storage)
        held = backend.get_all_studies() if storage is None else []
        study = optuna.create_study(
            storage=backend,
            sampler=PerTrial(SAMPLERS[recipe.tuning.sampler], recipe.seed),
            pruner=PRUNERS[recipe.tuning.pruner](epochs),
            study_name=held[0].study_name if held else out.resolve().name,  # a folder may have been renamed
            load_if_exists=True,
        )
        _check_identity(study, recipe, fingerprint, out)
        _check_content(study, dimensions, where)
    except UserError:
        raise
    except Exception as error:  # drivers, servers, permissions and damaged files fail in their own ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where}: cannot open the study ({reason})") from error
    return study


def _database(url: str) -> RDBStorage:
    """Open or create the tables; workers that start together all try to, and all but one of them fail."""
    for wait in (0.1, 0.2, 0.4, 0.8):
        try:
            return RDBStorage(url)
        except DBAPIError:
            time.sleep(wait)
    return RDBStorage(url)


def _check_identity(study: optuna.Study, recipe: Recipe, fingerprint: str, out: Path) -> None:
    identity, held = _identity(recipe, fingerprint), study.user_attrs.get("identity")
    if held is None:
        study.set_user_attr("identity", identity)
    elif held != identity:
        held = held if isinstance(held, dict) else {}
        keys = [key for key in identity | held if identity.get(key) != held.get(key)]
        raise UserError(f"{out} holds another study (it differs in {', '.join(keys[:3])}); choose another --out")


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


def _check_content(study: optuna.Study, dimensions: list[Dimension], where: str) -> None:
    if study.directions != [StudyDirection.MINIMIZE]:
        raise UserError(f"{where}: damaged (it does not minimise); choose another --out")
    for trial in study.get_trials(deepcopy=False):
        if wrong := _wrong(trial, dimensions):
            raise UserError(f"{where}: trial {trial.number} is damaged ({wrong}); choose another --out")


def _wrong(trial: FrozenTrial, dimensions: list[Dimension]) -> str:
    """What is not as a worker writes it, or ""."""
    useful = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    for d in dimensions:
        if d.path not in trial.params:
            if useful:
                return f"no {d.path}"
        elif trial.distributions[d.path] != d.distribution or not d.holds(trial.params[d.path]):
            return f"its {d.path} is not in the space"
    values = trial.values or []
    if not all(map(_is_number, values)) or len(values) > 1 or (trial.state == TrialState.COMPLETE and not values):
        return "its value is not a number"
    if not all(type(k) is int and _is_number(v) for k, v in trial.intermediate_values.items()):
        return "its losses are not numbers"
    noted = trial.user_attrs.items()
    return next((f"its {k}" for k, v in noted if k in NOTES and type(v) is not NOTES[k]), "")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
