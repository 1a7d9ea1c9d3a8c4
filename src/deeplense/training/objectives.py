"""Objectives: what a training step minimises.

To add one: a module here or in a file of its own, made of (training section, network), which says in `sources` the
names of the batches that it wants, and a line in `OBJECTIVES`. Its own parameters are trained with the network, not
bundled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed
from torch import Tensor, nn

from deeplense import recipe
from deeplense.data.schema import Batch
from deeplense.models.network import Network
from deeplense.training.mixing import mixed

LABELLED = "labelled"  # the source that `--data` gives


class Objective(nn.Module):
    """Batches of named sources, preprocessed and augmented -> the loss, a scalar.

    Attributes:
        sources: their names; an epoch is one pass over the first.
    """

    sources: tuple[str, ...] = (LABELLED,)

    def __init__(self, config: recipe.Training, network: Network) -> None:
        super().__init__()

    def forward(self, network: Network, batches: Mapping[str, Batch]) -> Tensor:
        raise NotImplementedError


class Supervised(Objective):
    """−log p of the truths; of mixed images, of both truths by their shares."""

    def __init__(self, config: recipe.Training, network: Network) -> None:
        super().__init__(config, network)
        self.config = config

    def forward(self, network: Network, batches: Mapping[str, Batch]) -> Tensor:
        batch = batches[LABELLED]
        if not (self.config.mixup or self.config.cutmix):
            return self._loss(network, network(batch.image), batch)
        pair = mixed(batch, self.config.mixup, self.config.cutmix)
        raw = network(pair.images)
        first, second = (self._loss(network, raw, b) for b in (pair.first, pair.second))
        return pair.share * first + (1 - pair.share) * second

    def _loss(self, network: Network, raw: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return network.total(over_processes(network.losses(raw, batch, self.config.label_smoothing)))


def over_processes(losses: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Means that, averaged over all processes as gradients are, give the mean over all their truths together: where
    some are missing, processes have unequally many."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return losses
    world = torch.distributed.get_world_size()
    if world == 1:
        return losses
    counts = torch.cat([count.detach().float() for _, count in losses.values()])
    everywhere = counts.clone()
    torch.distributed.all_reduce(everywhere)
    factors = counts * world / everywhere.clamp_min(torch.finfo(counts.dtype).tiny)
    each = iter(torch.split(factors, [len(count) for _, count in losses.values()]))
    return {name: (loss * next(each), count) for name, (loss, count) in losses.items()}


OBJECTIVES: dict[str, Callable[[recipe.Training, Network], Objective]] = {"supervised": Supervised}
