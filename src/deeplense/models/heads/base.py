"""What every head gives.

A head owns its last layer, loss, metric, calibration and answers. To add one: a subclass in a file of its own, and a
line in `HEADS`; the contract test runs over every entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.distributions import Distribution

from deeplense.data.schema import Batch
from deeplense.errors import UserError


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


@dataclass
class Truths:
    """What a head is told of the data when it is made.

    Attributes:
        classes: in order. targets: what it regresses. columns: theirs in `Batch.params`.
    """

    classes: list[str]
    targets: list[Target]
    columns: list[int]


class Head(nn.Module):
    """Features (B, D) -> raw outputs (B, n_out) -> a distribution, whose −log p is the loss.

    T is the number of truths that are predicted apart: 1, or that of the targets. Truths that are missing (label −1,
    NaN) are left out.

    Attributes:
        metric_name: e.g. accuracy. n_truths: T.
        temperature: (T,), fitted after training; divides logits or multiplies scales.
    """

    metric_name: ClassVar[str]
    n_truths: int
    temperature: Tensor

    def __init__(self, num_features: int, n_out: int, n_truths: int = 1) -> None:
        super().__init__()
        self.n_out, self.n_truths = n_out, n_truths
        self.last = nn.Linear(num_features, n_out)
        self.register_buffer("temperature", torch.ones(n_truths))

    def forward(self, features: Tensor) -> Tensor:
        return self.last(features)  # type: ignore[no-any-return]

    def distribution(self, raw: Tensor) -> Distribution:
        """Of the class, (B,), or of the targets in their own units, (B, T)."""
        raise NotImplementedError

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, T) truths, and (B, T) which of them are known; unknown ones are stand-ins that have a finite loss."""
        raise NotImplementedError

    def loss(self, raw: Tensor, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """(T,) means of −log p over the known truths, 0 where there are none, and (T,) the weight of each mean."""
        raise NotImplementedError

    def metric(self, raw: Tensor, batch: Batch) -> Tensor:
        """Scalar, of the known truths; NaN where there are none."""
        raise NotImplementedError

    def outputs(self, raw: Tensor) -> dict[str, dict[str, Tensor]]:
        """Name of an answer -> its outputs (B, …), by operations that ONNX has."""
        raise NotImplementedError

    def about(self) -> dict[str, dict[str, Any]]:
        """Name of an answer -> what `deeplense.answers` must know of it; `answer` is a key of `ANSWERS`."""
        raise NotImplementedError

    def judge(self, answer: str, raw: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) log p of an answer's truths, all known, and (B,) their cumulative probabilities (none of a class)."""
        raise NotImplementedError

    @torch.no_grad()
    def calibrate(self, raw: Tensor, batch: Batch) -> None:
        """Set the temperatures that give the least loss, each between 1/10 and 10 (Guo et al. 2017, 1706.04599)."""
        limit = math.log(10.0)
        for t in range(self.n_truths):

            def loss(log_temperature: float, t: int = t) -> float:
                self.temperature[t] = math.exp(log_temperature)
                return float(self.loss(raw, batch)[0][t])

            found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-3})
            before = loss(0.0)
            self.temperature[t] = math.exp(found.x) if found.fun < before else 1.0


class NumbersHead(Head):
    """Of parameters, each an answer by its own name.

    Args:
        n_out: raw outputs. n_truths: those that are predicted apart.

    Raises:
        UserError: the head has no targets.
    """

    metric_name = "MAE"

    mean: Tensor
    width: Tensor

    def __init__(self, num_features: int, name: str, truths: Truths, n_out: int, n_truths: int) -> None:
        if not truths.targets:
            raise UserError(f"task.heads.{name} has no targets; name the parameters to regress")
        super().__init__(num_features, n_out, n_truths)
        self.targets, self.columns = truths.targets, truths.columns
        for key in ("mean", "width"):
            self.register_buffer(key, torch.tensor([getattr(t, key) for t in self.targets]), persistent=False)

    def metric(self, raw: Tensor, batch: Batch) -> Tensor:
        value, known = self.truth(batch)
        return (self.distribution(raw).mean - value).abs()[known].mean()

    def about(self) -> dict[str, dict[str, Any]]:
        return {t.name: {"answer": "value", "name": t.name, "unit": t.unit} for t in self.targets}


def masked_mean(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) means of (B, T) values over what is known, 0 where nothing is, and the (T,) counts."""
    count = known.sum(0).to(values.dtype)
    return torch.where(known, values, torch.zeros_like(values)).sum(0) / count.clamp_min(1), count


def columns_of(batch: Batch, columns: Sequence[int]) -> Tensor:
    """(B, T) parameters."""
    return batch.params[:, list(columns)]
