"""Optimisers. Weight decay leaves norms and biases alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from deeplense import recipe
from deeplense.models.network import Network

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


def make_optimizer(network: Network, objective: nn.Module, config: recipe.Training) -> Optimizer:
    """The optimiser that the recipe names, of trunk, heads and objective."""
    modules = [(network.trunk, config.trunk_lr), (network.heads, 1.0), (objective, 1.0)]
    return OPTIMIZERS[config.optimizer](parameter_groups(modules, config), config)
