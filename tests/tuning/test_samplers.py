"""Samplers: better than chance, whatever the seed."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

from deeplense.recipe import Tuning
from deeplense.tuning import SAMPLERS
from deeplense.tuning.sampler import PerTrial

SEEDS, TRIALS = 12, 40


def regret(sampler: str, seed: int) -> float:
    """log10 of how far the best of a study lies above the minimum of a bowl, steeper in one setting than another."""
    study = optuna.create_study(sampler=PerTrial(SAMPLERS[sampler], seed))

    def bowl(trial: optuna.Trial) -> float:
        lr = np.log10(trial.suggest_float("lr", 1e-4, 1e-1, log=True))
        return float((lr + 2.2) ** 2 + 3 * (trial.suggest_float("dropout", 0.0, 0.5) - 0.1) ** 2)

    study.optimize(bowl, n_trials=TRIALS)
    return float(np.log10(study.best_value))


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "random"])
def test_a_search_beats_chance(sampler: str) -> None:
    """Pairs of one seed each; were the two the same, none of them would be won."""
    gain = [regret("random", seed) - regret(sampler, seed) for seed in range(SEEDS)]
    assert sum(g > 0 for g in gain) >= 9, gain  # by chance: 7 %
    assert np.mean(gain) > 0.3, gain  # the best is twice as near


def test_the_sampler_of_a_recipe_that_names_none_beats_chance() -> None:
    assert Tuning().sampler != "random"
