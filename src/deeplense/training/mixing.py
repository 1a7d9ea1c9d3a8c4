"""Images mixed in pairs, so that a network answers evenly between what it has seen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deeplense.data.schema import Batch


class Mixed(NamedTuple):
    """share: of `first` in the images; the rest is of `second`, whose truths are those of the partners."""

    images: Tensor
    first: Batch
    second: Batch
    share: float


def mixed(batch: Batch, mixup: float, cutmix: float) -> Mixed:
    """By sums (Zhang et al. 2018, arXiv:1710.09412) or by rectangles (Yun et al. 2019, arXiv:1905.04899); by either,
    at the toss of a coin, where both are wanted. Draws from torch's own generator.

    Args:
        mixup, cutmix: a of Beta(a, a), of which the share is drawn; 0: off.
    """
    by_sum = mixup > 0 and (cutmix == 0 or bool(torch.rand(()) < 0.5))
    a = mixup if by_sum else cutmix
    share = float(torch.distributions.Beta(a, a).sample())
    images, order = batch.image, torch.randperm(len(batch.image)).to(batch.image.device)
    if by_sum:
        made = share * images + (1 - share) * images[order]
    else:
        h, w = images.shape[2:]
        side = (1 - share) ** 0.5
        height, width = round(side * h), round(side * w)
        top, left = (int(torch.randint(n - s + 1, ())) for n, s in ((h, height), (w, width)))
        made = images.clone()
        made[:, :, top : top + height, left : left + width] = images[order, :, top : top + height, left : left + width]
        share = 1 - height * width / (h * w)
    return Mixed(made, batch, Batch(*(column[order] for column in batch)), share)
