"""Learning-rate schedules: each a function of (optimiser, configuration, steps in an epoch).

All advance at every step, but `plateau`, which advances after every validation. The peak is the optimiser's rate when
the schedule is made: `training.lr`, the trunk's times `training.trunk_lr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from deeplense import recipe


def _constant(optimizer: Optimizer, config: recipe.Training, steps: int) -> LRScheduler:
    return _after_warmup(optimizer, ConstantLR(optimizer, factor=1.0), config, steps)


def _one_cycle(optimizer: Optimizer, config: recipe.Training, steps: int) -> LRScheduler:
    """Up and down once (Smith & Topin 2017); its rise is the warm-up."""
    total = config.epochs * steps
    # a rise of less than one step would divide by zero
    rise = min(max(config.warmup, 1.5 / total), 0.9)
    return OneCycleLR(optimizer, max_lr=_peaks(optimizer), total_steps=max(total, 3), pct_start=rise)


def _cyclic(optimizer: Optimizer, config: recipe.Training, steps: int) -> LRScheduler:
    """Triangles whose height halves (Smith 2017)."""
    half = max(config.cycle_epochs * steps // 2, 1)
    peaks = _peaks(optimizer)
    low = [peak / 25 for peak in peaks]
    return CyclicLR(optimizer, low, peaks, step_size_up=half, mode="triangular2", cycle_momentum=False)


def _cosine_restarts(optimizer: Optimizer, config: recipe.Training, steps: int) -> LRScheduler:
    """Cosine down, then back to the peak (Loshchilov & Hutter 2017)."""
    cosine = CosineAnnealingWarmRestarts(optimizer, T_0=max(config.cycle_epochs * steps, 1), eta_min=config.lr / 100)
    return _after_warmup(optimizer, cosine, config, steps)


def _warmup_stable_decay(optimizer: Optimizer, config: recipe.Training, steps: int) -> LRScheduler:
    """Up, along, and down to nothing as 1 − √t (Hägele et al. 2024, arXiv:2405.18392): what comes before the descent
    does not depend on how long the training will be."""
    total = config.epochs * steps
    up, down = max(round(config.warmup * total), 1), max(round(config.decay * total), 1)

    def factor(step: int) -> float:
        rise = min((step + 1) / up, 1.0)
        fall = 1 - math.sqrt(min(max(step - (total - down), 0) / down, 1.0))
        return max(rise * fall, 1e-4)

    return LambdaLR(optimizer, factor)


def _plateau(optimizer: Optimizer, config: recipe.Training, steps: int) -> ReduceLROnPlateau:
    """A third of the rate when two validations in a row bring nothing better."""
    return ReduceLROnPlateau(optimizer, factor=1 / 3, patience=2)


SCHEDULES: dict[str, Callable[[Optimizer, recipe.Training, int], LRScheduler]] = {
    "constant": _constant,
    "one_cycle": _one_cycle,
    "cyclic": _cyclic,
    "cosine_restarts": _cosine_restarts,
    "plateau": _plateau,
    "warmup_stable_decay": _warmup_stable_decay,
}


def _peaks(optimizer: Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def _after_warmup(optimizer: Optimizer, schedule: LRScheduler, config: recipe.Training, steps: int) -> LRScheduler:
    """The schedule after a linear rise over the first `warmup` of all steps."""
    rise = round(config.warmup * config.epochs * steps)
    if rise < 1:
        return schedule
    warmup = LinearLR(optimizer, start_factor=0.01, total_iters=rise)
    return SequentialLR(optimizer, [warmup, schedule], milestones=[rise])
