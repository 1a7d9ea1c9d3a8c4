"""Numbers with several modes: a sum of normal distributions each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.nn import functional

from deeplense.models.heads.base import Truths
from deeplense.models.heads.normal import QUANTILES, NormalHead

PARTS = 3
CUTS, ROUNDS = 32, 5  # of the search for a quantile: 3e-8 of the interval


class MixtureHead(NormalHead):
    """Weight, location and scale of `PARTS` normal distributions for each of T unbounded targets (Bishop 1994)."""

    per_target = 3 * PARTS

    def __init__(self, num_features: int, name: str, truths: Truths) -> None:
        super().__init__(num_features, name, truths)
        # parts that start alike would stay alike
        with torch.no_grad():
            self.last.bias.view(self.n_truths, 3, PARTS)[:, 1] += torch.linspace(-1.0, 1.0, PARTS)

    def distribution(self, raw: Tensor) -> MixtureSameFamily:
        weight, location, scale = self._parts_of(raw)
        parts = Normal(location, scale, validate_args=False)
        return MixtureSameFamily(Categorical(logits=weight, validate_args=False), parts, validate_args=False)

    def _parts_of(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, PARTS) logits, locations, scales."""
        weight, location, scale = self._of_targets(raw).reshape(-1, self.n_truths, 3, PARTS).unbind(2)
        mean, width = self.mean[:, None], self.width[:, None]
        location = mean + width * self.reach * torch.tanh(location / self.reach)
        scale = width * self.temperature[:, None] * (1e-3 + functional.softplus(scale).clamp(max=30.0))
        return weight.clamp(-30.0, 30.0), location, scale

    def _quantiles(self, raw: Tensor) -> dict[str, Tensor]:
        weight, location, scale = self._parts_of(raw)
        share = torch.softmax(weight, -1)
        p, z = torch.tensor(list(QUANTILES.values()), device=raw.device).T
        # the mixture's quantile lies between those of its parts
        ends = location + z[:, None, None, None] * scale
        low, width = ends.amin(-1), ends.amax(-1) - ends.amin(-1)
        grid = torch.arange(1, CUTS, device=raw.device)
        for _ in range(ROUNDS):
            width = width / CUTS
            at = low[..., None, None] + width[..., None, None] * grid[:, None]
            below = (share[:, :, None] * _normal_cdf((at - location[:, :, None]) / scale[:, :, None])).sum(-1)
            low = low + width * (below < p[:, None, None, None]).to(width).sum(-1)
        return dict(zip(QUANTILES, low + 0.5 * width, strict=True))


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / 2**0.5)
