"""The average of a network's weights over the course of training (Polyak), which generalises better than the last ones.

The decay rises from 0 with the steps (timm's `ModelEmaV3`), so that early epochs are not an average with the random
start. Running statistics of batch norms do not average well: they are estimated anew before each validation.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeplense.models.network import Network


def averaged(network: Network, decay: float) -> ModelEmaV3:
    """The average, which `update(network, step)` moves on; its `module` is a `Network` without gradients."""
    average = ModelEmaV3(network, decay=decay, use_warmup=True)
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
