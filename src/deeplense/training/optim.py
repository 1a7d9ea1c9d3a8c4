"""Optimisers. Weight decay leaves norms and biases alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim import Optimizer

from deeplense import recipe

Groups = list[dict[str, Any]]


@runtime_checkable
class HasSpared(Protocol):
    """A module that knows what must not decay, as timm's networks do."""

    def no_weight_decay(self) -> set[str]: ...


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> Groups:
    """Matrices and kernels decay; vectors and scalars (biases, scales of norms) do not, nor what a module names in
    `no_weight_decay()` (position tables, class tokens)."""
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        spared = {
            f"{prefix}.{name}" if prefix else name
            for prefix, part in module.named_modules()
            if isinstance(part, HasSpared)
            for name in part.no_weight_decay()
        }
        for name, p in module.named_parameters():
            if p.requires_grad:
                (decaying if p.ndim >= 2 and name not in spared else others).append(p)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _adamw(groups: Groups, config: recipe.Training) -> Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr)


def _sgd(groups: Groups, config: recipe.Training) -> Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


OPTIMIZERS: dict[str, Callable[[Groups, recipe.Training], Optimizer]] = {"adamw": _adamw, "sgd": _sgd}


def make_optimizer(modules: Iterable[nn.Module], config: recipe.Training) -> Optimizer:
    """The optimiser that the recipe names, of all the modules' parameters."""
    return OPTIMIZERS[config.optimizer](parameter_groups(modules, config.weight_decay), config)
