"""Heads: a network's raw outputs become a probability distribution, and the loss is −log p of the truth.

To add one: a subclass of `Head` with `n_out`, `distribution` and `loss`, a line in `HEADS` and `head_for`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Normal
from torch.nn import functional

from deeplense import recipe
from deeplense.data.schema import Batch
from deeplense.models.truncated_normal import TruncatedNormal


@dataclass
class Target:
    """A regression target: networks see (value - mean) / width.

    Attributes:
        low, high: the bounds of a uniform prior, else None.
    """

    name: str
    unit: str
    mean: float
    width: float
    low: float | None = None
    high: float | None = None


class Head(nn.Module):
    """Raw outputs (B, n_out) -> a distribution over the class, or over the target in its own unit.

    `temperature`, fitted after training, divides logits or multiplies scales.
    """

    n_out: int
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0))

    def distribution(self, raw: Tensor) -> Distribution:
        """A batch of distributions."""
        raise NotImplementedError

    def loss(self, raw: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Mean of −log p over the batch, a scalar."""
        raise NotImplementedError


class CategoricalHead(Head):
    """One logit a class."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.n_out = n_classes

    def distribution(self, raw: Tensor) -> Distribution:
        return Categorical(logits=raw.float() / self.temperature)

    def loss(self, raw: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        return functional.cross_entropy(raw.float() / self.temperature, batch.label, label_smoothing=label_smoothing)


class NormalHead(Head):
    """Location and scale of an unbounded target."""

    n_out = 2

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def _parameters_of(self, raw: Tensor, reach: float) -> tuple[Tensor, Tensor]:
        """Location and scale; always within `reach` widths of the mean and 1e-3 to 30 widths."""
        raw = raw.float()
        location = self.target.mean + self.target.width * reach * torch.tanh(raw[:, 0] / reach)
        scale = 1e-3 + functional.softplus(raw[:, 1]).clamp(max=30.0)
        return location, self.target.width * self.temperature * scale

    def distribution(self, raw: Tensor) -> Distribution:
        return Normal(*self._parameters_of(raw, 100.0), validate_args=False)

    def loss(self, raw: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        return -self.distribution(raw).log_prob(batch.target).mean()


class TruncatedNormalHead(NormalHead):
    """Location and scale of a target that the prior bounds; an image that says nothing gives the prior."""

    def distribution(self, raw: Tensor) -> Distribution:
        low, high = self._bounds()
        return TruncatedNormal(*self._parameters_of(raw, 5.0), low, high)

    def loss(self, raw: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        # float32 may round a value at the edge out of the prior
        value = batch.target.clamp(*self._bounds())
        return -self.distribution(raw).log_prob(value).mean()

    def _bounds(self) -> tuple[float, float]:
        assert self.target.low is not None
        assert self.target.high is not None
        return self.target.low, self.target.high


HEADS: dict[str, Any] = {
    "categorical": CategoricalHead,
    "normal": NormalHead,
    "truncated_normal": TruncatedNormalHead,
}


def head_for(task: recipe.Task, classes: Sequence[str], target: Target | None) -> Head:
    """The head for a task: categorical to classify; to regress, truncated where the prior is bounded."""
    if task.kind == "classify":
        return CategoricalHead(len(classes))
    assert target is not None
    return NormalHead(target) if target.low is None else TruncatedNormalHead(target)


@torch.no_grad()
def fit_temperature(head: Head, raw: Tensor, batch: Batch) -> float:
    """Set the temperature that gives the least loss, between 1/10 and 10; returns it (Guo et al. 2017)."""

    def loss(log_temperature: float) -> float:
        head.temperature.fill_(math.exp(log_temperature))
        return float(head.loss(raw, batch))

    limit = math.log(10.0)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-3})
    before = loss(0.0)
    head.temperature.fill_(math.exp(found.x) if found.fun < before else 1.0)
    return float(head.temperature)
