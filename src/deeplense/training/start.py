"""How a training starts: from the weights of a bundle, with weights of the classes, or in the middle of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from deeplense import bundle as bundles
from deeplense.errors import UserError
from deeplense.models.heads.categorical import CategoricalHead
from deeplense.models.network import Network
from deeplense.recipe import Training
from deeplense.training.feed import Feed
from deeplense.training.schedules import SCHEDULES

MAY_CHANGE = ("epochs", "lr", "schedule", "warmup", "patience")  # between the parts of a resumed run


def prepare(network: Network, config: Training, feed: Feed) -> None:
    """Weights from `training.init`, what `training.freeze` keeps, and weights of the classes.

    Raises:
        UserError: no such bundle, or its trunk is another.
    """
    if config.init is not None:
        _take(network, config.init)
    elif config.freeze != "none":
        raise UserError("training.freeze keeps the weights of training.init; name a bundle there")
    if config.freeze == "trunk":
        network.trunk.requires_grad_(False)
    if config.balance != "none":
        _weigh(network, config, feed)


def _take(network: Network, path: str) -> None:
    old = bundles.load(path, "cpu")
    if wrong := _difference(network.trunk, old.network.trunk):
        raise UserError(
            f"training.init={path}: its network is {old.recipe.model.name}, with another {wrong}; give the same model"
        )
    network.trunk.load_state_dict(old.network.trunk.state_dict())
    taken = [
        name
        for name, head in network.each().items()
        if name in old.heads and type(old.heads[name]) is type(head) and not _difference(head, old.heads[name])
    ]
    for name in taken:
        network.heads[name].load_state_dict(old.heads[name].state_dict())
        network.each()[name].temperature.fill_(1.0)
    fresh = [name for name in network.heads if name not in taken]
    told = f"; fresh heads: {', '.join(fresh)}" if fresh else ""
    print(f"starting from {path}: trunk{''.join(f', head {name}' for name in taken)}{told}")


def _difference(new: nn.Module, old: nn.Module) -> str:
    """The first weight that one has and the other has not, or in another shape."""
    a, b = ({k: v.shape for k, v in m.state_dict().items()} for m in (new, old))
    return next((k for k in [*a, *b] if a.get(k) != b.get(k)), "")


def _weigh(network: Network, config: Training, feed: Feed) -> None:
    """Classes weigh alike: in training where the recipe says so, in validation always, lest the two disagree."""
    counts = np.bincount(feed.labels[feed.labels >= 0], minlength=len(feed.manifest.classes))
    weight = counts.sum() / np.maximum(counts, 1) / max((counts > 0).sum(), 1) * (counts > 0)
    for head in network.each().values():
        if isinstance(head, CategoricalHead):
            head.class_weight = torch.from_numpy(weight).float()
            head.weigh_training = config.balance == "weights"


def rescheduled(optimizer: Optimizer, config: Training, steps: int, done: int) -> Any:
    """The schedule of a resumed run whose settings have changed, where it would stand after `done` steps.

    Args:
        steps: in an epoch.
    """
    for group in optimizer.param_groups:
        factor = group.get("factor", 1.0)
        for key in [k for k in group if k in ("initial_lr", "max_lr", "min_lr", "base_lr")]:
            del group[key]
        group["lr"] = config.lr * factor
    schedule = SCHEDULES[config.schedule](optimizer, config, steps)
    if config.schedule != "plateau":
        for _ in range(done):
            schedule.step()
    return schedule
