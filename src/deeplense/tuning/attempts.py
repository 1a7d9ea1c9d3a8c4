"""How a trial ends: told to the study by one worker alone, and tried once more where it failed."""

from __future__ import annotations

from collections.abc import Callable

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from deeplense.errors import UserError
from deeplense.tuning import life

ATTEMPTS = 2  # that one set of settings has
INTERRUPTED = "interrupted"


def run(study: optuna.Study, trial: optuna.Trial, objective: Callable[[optuna.Trial], float]) -> bool:
    """Run a trial and tell the study how it ended, whatever the objective raises; False when nobody waits for it.

    Raises:
        KeyboardInterrupt: from the objective; the settings are in the queue again.
    """
    number = trial.number
    try:
        with life.signs(trial):
            value = objective(trial)
    except optuna.TrialPruned:
        told = finish(study, number, TrialState.PRUNED)
    except UpdateFinishedTrialError:
        told = False
    except KeyboardInterrupt:
        fail(study, number, INTERRUPTED)
        raise
    except Exception as error:
        told = fail(study, number, reason(error))
    else:
        told = finish(study, number, TrialState.COMPLETE, value)
    if not told:
        print(f"trial {number:>3}  was given up while this process slept; what it found is dropped", flush=True)
    return told


def finish(study: optuna.Study, number: int, state: TrialState, value: float | None = None) -> bool:
    """Tell the study; False when another worker has given the trial up meanwhile, which stands."""
    try:
        study.tell(number, value, state=state)
    except (ValueError, UpdateFinishedTrialError):
        if not study.get_trials(deepcopy=False)[number].state.is_finished():
            raise
        return False
    return True


def fail(study: optuna.Study, number: int, reason: str) -> bool:
    """Tell the study that a trial failed and why, and put its settings into the queue unless they had their attempts.

    An interruption is nobody's fault and costs no attempt. False when another worker has given the trial up
    meanwhile, and has seen to the rest.
    """
    trial = study.get_trials(deepcopy=False)[number]
    try:
        study._storage.set_trial_user_attr(trial._trial_id, "message", reason)
    except UpdateFinishedTrialError:
        return False
    if not finish(study, number, TrialState.FAIL):
        return False
    attempt = trial.user_attrs.get("attempt", 1) + (reason != INTERRUPTED)
    if trial.params and attempt <= ATTEMPTS:
        study.enqueue_trial(trial.params, {"attempt": attempt})
    return True


def is_repeat(trial: FrozenTrial) -> bool:
    """Its settings are those of an earlier trial."""
    return "attempt" in trial.user_attrs


def reason(error: Exception) -> str:
    """One line: what the input's error says, of another its type and first line."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())[:300]
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__
