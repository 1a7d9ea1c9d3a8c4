"""Numbers with heavier tails than the normal distribution's: a few bad images do not widen all the others."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy import special
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional

from deeplense.models.heads.normal import QUANTILES, NormalHead

LEAST, MOST = 2.1, 100.0  # degrees of freedom: a variance exists; beyond, it is normal
DEGREE = 12


class StudentT(Distribution):
    """Of more than two degrees of freedom; torch's own checks its numbers in a way that no exporter follows."""

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.df, self.loc, self.scale = df, loc, scale
        super().__init__(batch_shape=loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale * self.scale * self.df / (self.df - 2)

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - self.loc) / self.scale
        half = 0.5 * (self.df + 1)
        norm = torch.lgamma(half) - torch.lgamma(0.5 * self.df) - 0.5 * torch.log(math.pi * self.df)
        return norm - self.scale.log() - half * torch.log1p(z * z / self.df)

    def cdf(self, value: Tensor) -> Tensor:
        z = ((value - self.loc) / self.scale).double().cpu()
        return torch.from_numpy(special.stdtr(self.df.double().cpu().numpy(), z.numpy())).to(value)


class StudentTHead(NormalHead):
    """Location, scale and degrees of freedom of T unbounded targets."""

    per_target = 3

    def _freedom(self, raw: Tensor) -> Tensor:
        return (LEAST + functional.softplus(self._of_targets(raw)[..., 2] + 2.0)).clamp(max=MOST)

    def distribution(self, raw: Tensor) -> StudentT:
        location, scale = self._parameters_of(raw)
        return StudentT(self._freedom(raw), location, scale)

    def _quantiles(self, raw: Tensor) -> dict[str, Tensor]:
        location, scale = self._parameters_of(raw)
        upper = _clenshaw(2 * (1 / self._freedom(raw)) * LEAST - 1)
        return {name: location + (1 if p > 0.5 else -1) * upper * scale for name, (p, _) in QUANTILES.items()}


def _fit() -> list[float]:
    """Chebyshev coefficients of the 95 % quantile over 2 LEAST/ν − 1, within 1e-6 of it."""
    nodes = np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    freedom = np.minimum(2 * LEAST / np.maximum(nodes + 1, 1e-9), 1e7)
    return [float(c) for c in chebyshev.chebfit(nodes, special.stdtrit(freedom, 0.95), DEGREE)]


UPPER = _fit()


def _clenshaw(x: Tensor) -> Tensor:
    one, two = torch.zeros_like(x), torch.zeros_like(x)
    for c in UPPER[:0:-1]:
        one, two = c + 2 * x * one - two, one
    return UPPER[0] + x * one - two
