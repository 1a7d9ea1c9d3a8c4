"""A joint posterior of several numbers: a neural spline flow that the features condition.

Each target is first made a number z whose prior is about a standard normal one: by the normal quantile of where it
stands in a uniform prior, or else as (value − mean)/width. The flow (Durkan et al. 2019, arXiv:1906.04032; zuko's) maps
z to base numbers that are standard normal. Means and quantiles are those of `DRAWS` fixed base numbers sent back, so
that a prediction is the same each time and exports.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from deeplense.data.schema import Batch
from deeplense.models.heads.base import NumbersHead, Truths, columns_of
from deeplense.models.heads.normal import QUANTILES

CONTEXT = 32  # numbers that the flow is told of an image
DRAWS = 255
EDGE = 1e-4  # of a prior's range: a truth at the very edge has no finite z
REACH = 1e3  # of a number of the context


class Posterior(Distribution):
    """p(targets | image) of B images, in the targets' units.

    Args:
        flow: zuko's distribution over z (B, T), None: standard normal. head: whose targets.
    """

    def __init__(self, flow: Any, head: FlowHead, temperature: Tensor) -> None:
        self.flow, self.head, self.temperature = flow, head, temperature
        super().__init__(validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """(B,) of (B, T)."""
        z, log_slope = self.head.standard(value)
        base, log_det = self.flow.transform.call_and_ladj(z)
        scaled = base / self.temperature
        log_normal = -0.5 * (scaled * scaled + math.log(2 * math.pi)) - self.temperature.log()
        total: Tensor = log_normal.sum(-1) + log_det + log_slope.sum(-1)
        return total

    def at(self, base: Tensor) -> Tensor:
        """(S, B, T) targets where base numbers (S, T) go."""
        moved = (base[:, None] * self.temperature).expand(-1, *self.flow.batch_shape, -1)
        return self.head.natural(self.flow.transform.inv(moved))

    @property
    def mean(self) -> Tensor:
        return self.at(self.head.base).mean(0)


class FlowHead(NumbersHead):
    """T targets jointly. A truth counts where all of its numbers are known."""

    low: Tensor
    high: Tensor
    base: Tensor

    def __init__(self, num_features: int, name: str, truths: Truths) -> None:
        super().__init__(num_features, name, truths, CONTEXT, 1)
        for key in ("low", "high"):
            bounds = [math.nan if (b := getattr(t, key)) is None else b for t in self.targets]
            self.register_buffer(key, torch.tensor(bounds, dtype=torch.float64), persistent=False)
        import zuko  # a moment, which who has no flow is spared

        n = len(self.targets)
        self.flow = zuko.flows.NSF(n, CONTEXT, transforms=2, hidden_features=(64, 64), bins=8)
        draws: Tensor = torch.quasirandom.SobolEngine(n, scramble=True, seed=0).draw(DRAWS + 1)[1:]  # type: ignore[no-untyped-call]
        self.register_buffer("base", torch.special.ndtri(draws.clamp(1e-4, 1 - 1e-4)), persistent=False)

    def standard(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) targets -> z, and log |dz/dvalue|."""
        value = value.double()
        share = ((value - self.low) / (self.high - self.low)).clamp(EDGE, 1 - EDGE)
        z = torch.special.ndtri(share)
        # dΦ⁻¹/du = 1/φ(z)
        log_slope = 0.5 * (z * z + math.log(2 * math.pi)) - (self.high - self.low).log()
        free = self.low.isnan()
        z = torch.where(free, (value - self.mean) / self.width, z)
        log_slope = torch.where(free, -self.width.double().log(), log_slope)
        return z.float(), log_slope.float()

    def natural(self, z: Tensor) -> Tensor:
        """The inverse of `standard`."""
        share = 0.5 * torch.erfc(-z / 2**0.5)
        low, high = self.low.float(), self.high.float()
        return torch.where(low.isnan(), self.mean + self.width * z, low + (high - low) * share)

    def distribution(self, raw: Tensor) -> Posterior:
        return Posterior(self.flow(REACH * torch.tanh(raw.float() / REACH)), self, self.temperature)

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        values = columns_of(batch, self.columns)
        known = values.isfinite().all(1, keepdim=True).expand_as(values)
        return torch.where(known, values, self.mean), known

    def loss(self, raw: Tensor, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        value, known = self.truth(batch)
        told = known[:, 0]
        count = told.sum()[None].to(raw.dtype)
        log_p = self.distribution(raw).log_prob(value)
        return -torch.where(told, log_p, 0.0).sum()[None] / count.clamp_min(1), count

    @torch.no_grad()
    def judge(self, answer: str, raw: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Of the marginal: from the draws, its density smoothed (Silverman 1986, eq. 3.31)."""
        t = [target.name for target in self.targets].index(answer)
        draws = self.distribution(raw).at(self.base)[..., t].double()
        width = 0.9 * draws.std(0).clamp_min(1e-12) * DRAWS**-0.2
        z = (truth.double() - draws) / width
        log_p = torch.logsumexp(-0.5 * z * z, 0) - math.log(DRAWS * math.sqrt(2 * math.pi)) - width.log()
        return log_p, torch.special.ndtr(z).mean(0)

    def outputs(self, raw: Tensor) -> dict[str, dict[str, Tensor]]:
        draws = self.distribution(raw).at(self.base)
        ordered = draws.sort(0).values
        found = {"mean": draws.mean(0), "scale": draws.std(0)}
        for name, (p, _) in QUANTILES.items():
            where = p * (DRAWS + 1) - 1
            below = int(where)
            found[name] = ordered[below] + (where - below) * (ordered[below + 1] - ordered[below])
        return {t.name: {k: v[:, i] for k, v in found.items()} for i, t in enumerate(self.targets)}
