"""The normal distribution between two bounds, as a torch distribution; safe far from the bounds.

With Φ the normal's cumulative function, a = (low - loc)/scale and b = (high - loc)/scale, all follows from
Z = Φ(b) - Φ(a). The tails are taken on the side where Φ is small, through log Φ, in double precision inside.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy import special
from torch import Tensor
from torch.distributions import Distribution, constraints

PARTS, ROUNDS = 64, 4  # of the search for a quantile: 6e-8 of the interval

DEGREE = 16  # of the polynomial of an exported network


class TruncatedNormal(Distribution):
    """Normal(loc, scale) given low <= x <= high; tends to the uniform one as the scale grows.

    Args:
        loc, scale: tensors of one shape; loc may lie outside the bounds. low, high: numbers or tensors like them.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, low: float | Tensor, high: float | Tensor) -> None:
        self.dtype = loc.dtype
        self.loc, self.scale = loc.double(), scale.double()
        self.low, self.high = (torch.as_tensor(b, dtype=torch.float64, device=loc.device) for b in (low, high))
        self._a, self._b = (low - self.loc) / self.scale, (high - self.loc) / self.scale
        self._log_z = _log_mass(self._a, self._b)
        super().__init__(batch_shape=loc.shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.interval(self.low, self.high)  # type: ignore[no-untyped-call]

    @property
    def mean(self) -> Tensor:
        return self._mean().to(self.dtype)

    def _mean(self) -> Tensor:
        density_a, density_b = self._edges()
        return (self.loc + self.scale * (density_a - density_b)).clamp(self.low, self.high)

    @property
    def variance(self) -> Tensor:
        density_a, density_b = self._edges()
        shrink = self._a * density_a - self._b * density_b - (density_a - density_b) ** 2
        # rounding may leave a negative number far in a tail; the spread there is about scale / |a|
        floor = (self.scale / (2 + torch.minimum(self._a.abs(), self._b.abs()))) ** 2 * 1e-3
        uniform = (self.high - self.low) ** 2 / 12
        return (
            torch.minimum((self.scale**2 * (1 + shrink)), uniform + 0 * floor)
            .maximum(floor.clamp(max=uniform))
            .to(self.dtype)
        )

    @property
    def stddev(self) -> Tensor:
        return self.variance.sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.double()
        log_p = _log_density((value - self.loc) / self.scale) - self.scale.log() - self._log_z
        inside = (value >= self.low) & (value <= self.high)
        return torch.where(inside, log_p, -math.inf).to(self.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        return self._cdf(value.double()).to(self.dtype)

    def _cdf(self, value: Tensor) -> Tensor:
        z = (value.clamp(self.low, self.high) - self.loc) / self.scale
        left = (_log_mass(self._a, z) - self._log_z).exp()
        right = 1 - (_log_mass(z, self._b) - self._log_z).exp()
        # the side whose mass is small is the accurate one
        inside = torch.where(left < 0.5, left, right).clamp(0, 1)
        return torch.where(value <= self.low, 0.0, torch.where(value >= self.high, 1.0, inside))

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile, by search; one Newton step at its end carries the gradient to loc and scale."""
        u = value.double().to(self.loc.device)
        with torch.no_grad():
            x = self._search(u)
            density = (_log_density((x - self.loc) / self.scale) - self.scale.log() - self._log_z).exp()
        if self.loc.requires_grad or self.scale.requires_grad:
            miss = self._cdf(x)
            x = x - (miss - miss.detach()) / density.clamp(min=1e-300)
        return x.to(self.dtype)

    def _search(self, u: Tensor) -> Tensor:
        """Several times an interval is cut, and the part kept in which the distribution function passes u: few large
        steps, because an exported network has them one after the other."""
        part = torch.arange(1, PARTS, dtype=torch.float64, device=u.device) / PARTS
        low = self.low + torch.zeros_like(u + self.loc)
        width = self.high - low
        loc, scale, a, log_z = (t[..., None] for t in (self.loc, self.scale, self._a, self._log_z))
        wanted = (u + torch.zeros_like(low))[..., None]
        for _ in range(ROUNDS):
            z = (low[..., None] + width[..., None] * part - loc) / scale
            below = (_log_mass(a.expand_as(z), z) - log_z).exp() < wanted
            width = width / PARTS
            low = low + below.double().sum(-1) * width
        return low + width / 2

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=torch.float64, device=self.loc.device))

    def _edges(self) -> tuple[Tensor, Tensor]:
        """φ(a)/Z and φ(b)/Z."""
        return (_log_density(self._a) - self._log_z).exp(), (_log_density(self._b) - self._log_z).exp()


def _log_density(z: Tensor) -> Tensor:
    return -0.5 * z**2 - _constant(0.5 * math.log(2 * math.pi), z)


def _constant(value: float, like: Tensor) -> Tensor:
    """A number in double precision: an exporter rounds those in a formula to single."""
    return torch.tensor([value], dtype=like.dtype, device=like.device)[0]


def _log_mass(a: Tensor, b: Tensor) -> Tensor:
    """log(Φ(b) - Φ(a)) for a <= b."""
    flip = a + b > 0
    # both at once: an exporter takes its time over every operation
    small, large = log_ndtr(torch.stack([torch.where(flip, -b, a), torch.where(flip, -a, b)]))
    gap = (small - large).clamp(max=-1e-300)
    near = gap > -math.log(2)
    # log(1 - exp(gap)) in the form that loses no digits (Maechler 2012); each branch sees what it can take
    close = torch.log(-torch.expm1(torch.where(near, gap, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near, -1.0, gap)))
    mass: Tensor = large + torch.where(near, close, far)
    return mass


def log_ndtr(z: Tensor) -> Tensor:
    """log Φ; while a network is exported or compiled, by operations that ONNX has."""
    return _elementary_log_ndtr(z) if torch.compiler.is_compiling() else torch.special.log_ndtr(z)


def _elementary_log_ndtr(z: Tensor) -> Tensor:
    """To 1e-9, in float64: with t = 2/(2 + x), log(erfcx(x)/t) is smooth in t down to t = 0, a short polynomial."""
    x = z.abs() * _constant(math.sqrt(0.5), z)
    t = 2 / (2 + x)
    coefficients = torch.tensor(_polynomial(), dtype=z.dtype, device=z.device)
    powers = torch.arange(len(coefficients), dtype=z.dtype, device=z.device)
    smooth = torch.pow((2 * t - 1)[..., None], powers) @ coefficients
    log_tail = torch.log(t / 2) - z * z / 2 + smooth  # log Φ(-|z|)
    return torch.where(z > 0, torch.log1p(-torch.exp(log_tail.clamp(max=-1e-300))), log_tail)


@functools.lru_cache
def _polynomial() -> tuple[float, ...]:
    """Coefficients of the powers of 2 t - 1."""

    def smooth(v: Any) -> Any:
        t = (v + 1) / 2
        return np.log(special.erfcx(2 / t - 2) / t)

    return tuple(float(c) for c in chebyshev.cheb2poly(chebyshev.chebinterpolate(smooth, DEGREE)))
