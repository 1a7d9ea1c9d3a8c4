"""Surface brightness profiles.

To add one: a function `(x, y, **parameters) -> brightness`, one line in `LIGHT`, one row in the oracle table in
`tests/lensing/test_light.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deeplense.lensing.ellipse import axis_ratio, direction


def sersic_b(n_sersic: Tensor) -> Tensor:
    """b_n ≈ 1.9992 n − 0.3271 (Capaccioli 1989), lenstronomy's choice; good to 0.5 % for 0.5 < n < 10."""
    return (1.9992 * n_sersic - 0.3271).clamp_min(1e-5)


def sersic(
    x: Tensor,
    y: Tensor,
    amp: Tensor,
    R_sersic: Tensor,
    n_sersic: Tensor,
    e1: Tensor,
    e2: Tensor,
    center_x: Tensor,
    center_y: Tensor,
) -> Tensor:
    """Elliptical Sérsic: I = amp · exp(−b[(R/R_s)^{1/n} − 1]), R² = q x'² + y'²/q; amp [flux/arcsec²] is I(R_s)."""
    q = axis_ratio(e1, e2)
    c, s = direction(e1, e2)
    dx, dy = x - center_x, y - center_y
    # R²/R_s² as one quadratic form in (dx, dy): fewer passes over the pixels than rotating them
    scale = 1 / R_sersic**2
    xx, yy = (q * c * c + s * s / q) * scale, (q * s * s + c * c / q) * scale
    xy = 2 * c * s * (q - 1 / q) * scale
    # floor of R as in lenstronomy (1e-4 arcsec); it also keeps the gradient finite at the centre
    R2 = torch.addcmul((xx * dx).addcmul(xy, dy) * dx, yy * dy, dy).clamp_min(1e-8 * scale.detach().max())
    b = sersic_b(n_sersic)
    profile = torch.sqrt(R2) if bool((n_sersic == 1).all()) else R2 ** (0.5 / n_sersic)
    return amp * torch.exp(torch.addcmul(b, profile, -b))


def sersic_flux(amp: Tensor, R_sersic: Tensor, n_sersic: Tensor) -> Tensor:
    """Total flux 2π n amp R_s² e^b b^{−2n} Γ(2n) (Graham & Driver 2005, eq. 2; product-averaged radii)."""
    b = sersic_b(n_sersic)
    log_flux = b - 2 * n_sersic * torch.log(b) + torch.lgamma(2 * n_sersic)
    return 2 * torch.pi * n_sersic * amp * R_sersic**2 * torch.exp(log_flux)


LIGHT: dict[str, Callable[..., Tensor]] = {"sersic": sersic}
