"""Optimisers: torch's own two, and those of timm by name. Weight decay leaves norms and biases alone."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from deeplense import recipe
from deeplense.errors import UserError
from deeplense.models.network import Network
from deeplense.training.sharpness import SharpnessAware

Groups = list[dict[str, Any]]


@runtime_checkable
class HasSpared(Protocol):
    """A module that knows what must not decay, as timm's networks do."""

    def no_weight_decay(self) -> set[str]: ...


def parameter_groups(modules: Iterable[tuple[nn.Module, float]], config: recipe.Training) -> Groups:
    """Matrices and kernels decay; vectors and scalars (biases, scales of norms) do not, nor what a module names in
    `no_weight_decay()` (position tables, class tokens).

    Args:
        modules: each with the factor of its learning rate; modules of one factor share their groups.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for module, factor in modules:
        spared = {
            f"{prefix}.{name}" if prefix else name
            for prefix, part in module.named_modules()
            if isinstance(part, HasSpared)
            for name in part.no_weight_decay()
        }
        decay = config.weight_decay
        for decays in (True, False):
            new = {"params": [], "weight_decay": decay if decays else 0.0, "lr": config.lr * factor, "factor": factor}
            groups.setdefault((factor, decays), new)
        for name, p in module.named_parameters():
            if p.requires_grad:
                groups[factor, p.ndim >= 2 and name not in spared]["params"].append(p)
    return list(groups.values())


def _adamw(groups: Groups, config: recipe.Training) -> Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _sgd(groups: Groups, config: recipe.Training) -> Optimizer:
    momentum = config.momentum
    return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=momentum > 0, fused=True)


OPTIMIZERS: dict[str, Callable[[Groups, recipe.Training], Optimizer]] = {"adamw": _adamw, "sgd": _sgd}


def _of_timm(groups: Groups, config: recipe.Training) -> Optimizer:
    from timm import optim  # the import of timm takes seconds

    name = config.optimizer
    if name not in (known := optim.list_optimizers()):
        close = difflib.get_close_matches(name, [*OPTIMIZERS, *known], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.optim.list_optimizers()"
        raise UserError(f"training.optimizer '{name}' is neither torch's nor timm's; {hint}")
    try:
        made: Optimizer = optim.create_optimizer_v2(
            groups, name, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
    except Exception as error:  # some need a library of their own, or second derivatives
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"training.optimizer '{name}' cannot be made ({why}); choose another") from error
    return made


def make_optimizer(network: Network, objective: nn.Module, config: recipe.Training) -> Optimizer:
    """The optimiser that the recipe names, of trunk, heads and objective.

    Raises:
        UserError: nobody knows it, or it needs what is not here.
    """
    if config.sam and config.accumulate > 1:
        raise UserError("training.sam looks at one batch twice; leave training.accumulate at 1, or sam at 0")
    modules = [(network.trunk, config.trunk_lr), (network.heads, 1.0), (objective, 1.0)]
    made = OPTIMIZERS.get(config.optimizer, _of_timm)(parameter_groups(modules, config), config)
    return SharpnessAware(made, config.sam) if config.sam else made
