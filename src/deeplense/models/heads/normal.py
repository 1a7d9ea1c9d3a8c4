"""Numbers, each with a normal distribution, truncated where its prior is bounded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal
from torch.nn import functional

from deeplense.data.schema import Batch
from deeplense.errors import UserError
from deeplense.models.heads.base import NumbersHead, Truths, columns_of, masked_mean
from deeplense.models.heads.truncated_normal import TruncatedNormal

QUANTILES = {"q05": (0.05, -1.6448536269514722), "q95": (0.95, 1.6448536269514722)}  # probability, normal quantile


class NormalHead(NumbersHead):
    """Location and scale of T unbounded targets: outputs 2t and 2t + 1.

    Attributes:
        per_target: outputs of each target. reach: widths that a location can lie from the mean.
    """

    per_target = 2
    reach = 100.0

    def __init__(self, num_features: int, name: str, truths: Truths) -> None:
        n = len(truths.targets)
        super().__init__(num_features, name, truths, self.per_target * n, n)

    def _of_targets(self, raw: Tensor) -> Tensor:
        """(B, T, per_target)."""
        return raw.float().reshape(-1, self.n_truths, self.per_target)

    def _parameters_of(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) locations and scales; always within `reach` widths of the mean and 1e-3 to 30 widths."""
        raw = self._of_targets(raw)
        location = self.mean + self.width * self.reach * torch.tanh(raw[..., 0] / self.reach)
        scale = 1e-3 + functional.softplus(raw[..., 1]).clamp(max=30.0)
        return location, self.width * self.temperature * scale

    def distribution(self, raw: Tensor) -> Distribution:
        return Normal(*self._parameters_of(raw), validate_args=False)

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        values = columns_of(batch, self.columns)
        known = values.isfinite()
        return torch.where(known, values, self.mean), known

    def loss(self, raw: Tensor, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        value, known = self.truth(batch)
        return masked_mean(-self.distribution(raw).log_prob(value), known)

    @torch.no_grad()
    def judge(self, answer: str, raw: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        t = [target.name for target in self.targets].index(answer)
        p, value = self.distribution(raw), truth.double()[:, None].expand(-1, self.n_truths)
        return p.log_prob(value)[:, t], p.cdf(value)[:, t]

    def outputs(self, raw: Tensor) -> dict[str, dict[str, Tensor]]:
        p = self.distribution(raw)
        found = {"mean": p.mean, "scale": p.stddev} | self._quantiles(raw)
        return {t.name: {k: v[:, i] for k, v in found.items()} for i, t in enumerate(self.targets)}

    def _quantiles(self, raw: Tensor) -> dict[str, Tensor]:
        location, scale = self._parameters_of(raw)
        return {name: location + z * scale for name, (_, z) in QUANTILES.items()}


class TruncatedNormalHead(NormalHead):
    """Targets that their priors bound; an image that says nothing gives the prior."""

    reach = 5.0

    low: Tensor
    high: Tensor

    def __init__(self, num_features: int, name: str, truths: Truths) -> None:
        super().__init__(num_features, name, truths)
        bounds = [(t.low, t.high) for t in truths.targets]
        if any(low is None or high is None for low, high in bounds):
            raise UserError(f"task.heads.{name}: truncated_normal wants uniform priors; use kind: normal")
        for k, side in enumerate(("low", "high")):
            self.register_buffer(side, torch.tensor([b[k] for b in bounds], dtype=torch.float64), persistent=False)

    def distribution(self, raw: Tensor) -> TruncatedNormal:
        return TruncatedNormal(*self._parameters_of(raw), self.low, self.high)

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        value, known = super().truth(batch)
        # float32 may round a value at the edge out of the prior
        return value.double().clamp(self.low, self.high), known

    def _quantiles(self, raw: Tensor) -> dict[str, Tensor]:
        wanted = torch.tensor([q for q, _ in QUANTILES.values()], dtype=torch.float64, device=raw.device)
        found = self.distribution(raw).icdf(wanted[:, None, None])
        return dict(zip(QUANTILES, found, strict=True))
