"""Tuning: search any path of a recipe with Optuna.

To add a sampler or a pruner, add a line here and its name to `deeplense.recipe.Tuning`.
"""

from __future__ import annotations

from collections.abc import Callable

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from deeplense.tuning.evolution import Evolution

# name -> sampler of a seed
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=6),
    "cmaes": Evolution,
    "random": lambda seed: RandomSampler(seed=seed),
}

# name -> pruner of the number of epochs
PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "median": lambda epochs: MedianPruner(n_startup_trials=4, n_warmup_steps=max(1, epochs // 4)),
    "hyperband": lambda epochs: HyperbandPruner(min_resource=max(1, epochs // 9), max_resource=max(2, epochs)),
    "none": lambda epochs: NopPruner(),
}
