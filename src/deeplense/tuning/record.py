"""What a study leaves on disk and says: the best recipe, the history, one line for each trial."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from deeplense import config
from deeplense.data import schema
from deeplense.tuning.space import Dimension


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial of least validation loss, if any."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(complete, key=lambda t: (t.value, t.number), default=None)


def remove_weights(study: optuna.Study, out: Path) -> None:
    """Keep the histories of finished trials, and of the best its bundle too."""
    best = best_trial(study)
    for trial in study.get_trials(deepcopy=False):
        folder = out / "trials" / str(trial.number)
        if trial.state.is_finished() and folder.is_dir():
            for file in (*folder.rglob("*.ckpt"), *folder.glob("*.safetensors")):
                if best is None or trial.number != best.number or file.suffix == ".ckpt":
                    file.unlink(missing_ok=True)


def line(study: optuna.Study, trial: FrozenTrial) -> str:
    """A finished trial: its value, or why there is none, and its settings."""
    settings = settings_text(trial.params)
    match trial.state:
        case TrialState.COMPLETE:
            best = best_trial(study)
            mark = "  (best)" if best is not None and best.number == trial.number else ""
            return f"trial {trial.number:>3}  {trial.value:.5f}  {settings}{mark}"
        case TrialState.PRUNED:
            when = f"pruned at epoch {trial.last_step}" if trial.last_step is not None else "diverged"
            return f"trial {trial.number:>3}  {when}  {settings}"
        case _:
            reason = trial.user_attrs.get("message", "stopped")
            return f"trial {trial.number:>3}  failed: {reason}  {settings}"


def settings_text(params: dict[str, Any]) -> str:
    """`a.b=0.1 c=2`, to four digits."""
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items())


def write_best(study: optuna.Study, dimensions: list[Dimension], differs: config.Tree, out: Path) -> None:
    """`best.yaml`: `differs`, a base and what the command line changed, with the best settings."""
    best = best_trial(study)
    if best is not None:
        settings = {d.path: d.value(best.params[d.path]) for d in dimensions}
        with schema.atomic(out / "best.yaml") as temporary:
            temporary.write_text(config.dump(differs | settings))


def write_history(study: optuna.Study, dimensions: list[Dimension], out: Path) -> None:
    """`history.csv`, one row for each trial."""
    paths = [d.path for d in dimensions]
    with schema.atomic(out / "history.csv") as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["trial", "state", "value", *paths, "message"])
        for t in study.get_trials(deepcopy=False):
            value = "" if t.value is None else t.value
            settings = [t.params.get(path, "") for path in paths]
            table.writerow([t.number, t.state.name.lower(), value, *settings, t.user_attrs.get("message", "")])
