"""Optimisers. Weight decay leaves norms and biases alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from deeplense import recipe

Groups = list[dict[str, Any]]


def parameter_groups(network: nn.Module, weight_decay: float) -> Groups:
    """Matrices and kernels decay; vectors and scalars (biases, scales of norms) do not."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _adamw(groups: Groups, config: recipe.Training) -> Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr)


def _sgd(groups: Groups, config: recipe.Training) -> Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


OPTIMIZERS: dict[str, Callable[[Groups, recipe.Training], Optimizer]] = {"adamw": _adamw, "sgd": _sgd}


def make_optimizer(network: nn.Module, config: recipe.Training) -> Optimizer:
    """The optimiser that the recipe names."""
    return OPTIMIZERS[config.optimizer](parameter_groups(network, config.weight_decay), config)
