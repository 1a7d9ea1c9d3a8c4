"""CMA-ES (Hansen 2016, arXiv:1604.00772) whose state is the study's trials themselves.

Optuna's own sampler keeps its state in the study as a pickle, which would run any code that a journal holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from cmaes import CMA
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

STARTUP = 4  # complete trials before the first generation
GENERATION = "generation"  # a trial's system attribute


class Evolution(BaseSampler):  # type: ignore[misc]
    """Searches the numbers of a space and leaves its choices to random draws.

    Attributes:
        seed: of all its draws; sampler and seed are made anew for every trial.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        space = IntersectionSearchSpace().calculate(study)
        return {k: d for k, d in space.items() if isinstance(d, FloatDistribution | IntDistribution) and not d.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        complete = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.value is not None]
        if not search_space or len(complete) < STARTUP:
            return {}
        n = len(search_space)
        bounds = np.tile([0.0, 1.0], (n, 1))
        cma = CMA(mean=np.full(n, 0.5), sigma=1 / 6, bounds=bounds, seed=self.seed % 2**32)
        while True:
            born = [t for t in complete if t.system_attrs.get(GENERATION) == cma.generation]
            if len(born) < cma.population_size:
                break
            cma.tell([(_unit(t.params, search_space), t.value) for t in born[: cma.population_size]])
        study._storage.set_trial_system_attr(trial._trial_id, GENERATION, cma.generation)
        return {k: _back(x, d) for x, (k, d) in zip(cma.ask(), search_space.items(), strict=True)}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def _ends(d: BaseDistribution) -> tuple[float, float]:
    """Of the range on the scale on which it is searched; a whole number takes up a range of its own."""
    if isinstance(d, IntDistribution):
        return d.low - 0.5, d.high + 0.5
    return (float(np.log(d.low)), float(np.log(d.high))) if d.log else (d.low, d.high)


def _unit(params: dict[str, Any], space: dict[str, BaseDistribution]) -> NDArray[np.float64]:
    """Settings as a point of the unit cube."""
    scaled = [(np.log(params[k]) if d.log else params[k], *_ends(d)) for k, d in space.items()]
    return np.array([(x - low) / (high - low) for x, low, high in scaled])


def _back(x: float, d: BaseDistribution) -> float | int:
    low, high = _ends(d)
    value = low + float(x) * (high - low)
    inside = float(np.clip(np.exp(value) if d.log else value, d.low, d.high))
    return round(inside) if isinstance(d, IntDistribution) else inside
