"""The average of a network's weights over the course of training (Polyak), which generalises better than the last ones.

The decay rises from 0 with the steps (timm's `ModelEmaV3`), so that early epochs are not an average with the random
start; or the average is the plain mean of the last steps (Izmailov et al. 2018, arXiv:1803.05407). Running statistics
of batch norms do not average well: they are estimated anew before each validation.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplense import recipe
from deeplense.models.network import Network


class LastSteps(ModelEmaV3):  # type: ignore[misc]
    """The mean of the weights after step `first`, the network itself until then."""

    def __init__(self, network: Network, share: float) -> None:
        super().__init__(network)
        self.share, self.first = share, 0

    def begin(self, steps: int) -> None:
        """Of a training of so many steps, the last `share` count."""
        self.first = steps - round(self.share * steps)

    def get_decay(self, step: int | None = None) -> float:
        n = max((step or 0) - self.first, 0)
        return 1 - 1 / max(n, 1)


def averaged(network: Network, config: recipe.Training) -> ModelEmaV3 | None:
    """The average, which `update(network, step)` moves on, steps counting from 1; its `module` is a `Network` without
    gradients. None: the recipe wants none."""
    if config.swa:
        average: ModelEmaV3 = LastSteps(network, config.swa)
    elif config.ema_decay:
        average = ModelEmaV3(network, decay=config.ema_decay, use_warmup=True)
    else:
        return None
    average.requires_grad_(False)
    return average


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Running mean and variance of every batch norm, over preprocessed training images; nothing else changes."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over the batches
        m.train()
    for images in batches:
        network(images)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
        m.eval()
