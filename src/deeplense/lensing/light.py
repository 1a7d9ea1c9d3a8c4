"""Surface brightness profiles.

To add one: a function `(x, y, **parameters) -> brightness`, one line in `LIGHT`, one row in the oracle table in
`tests/lensing/test_light.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
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
    R2 = torch.maximum(torch.addcmul((xx * dx).addcmul(xy, dy) * dx, yy * dy, dy), 1e-8 * scale.detach())
    b = sersic_b(n_sersic)
    profile = torch.sqrt(R2) if bool((n_sersic == 1).all()) else R2 ** (0.5 / n_sersic)
    return amp * torch.exp(torch.addcmul(b, profile, -b))


def sersic_flux(amp: Tensor, R_sersic: Tensor, n_sersic: Tensor) -> Tensor:
    """Total flux 2π n amp R_s² e^b b^{−2n} Γ(2n) (Graham & Driver 2005, eq. 2; product-averaged radii)."""
    b = sersic_b(n_sersic)
    log_flux = b - 2 * n_sersic * torch.log(b) + torch.lgamma(2 * n_sersic)
    return 2 * torch.pi * n_sersic * amp * R_sersic**2 * torch.exp(log_flux)


def image(
    x: Tensor,
    y: Tensor,
    amp: Tensor,
    pixels: Tensor,
    scale: Tensor,
    angle: Tensor,
    flip: Tensor,
    center_x: Tensor,
    center_y: Tensor,
) -> Tensor:
    """A picture, turned by angle [rad]: bilinear between the pixels' centres, to zero one pixel beyond the last.

    Args:
        pixels: (B, N, h, w, 1, 1); amp · pixels is the brightness at their centres, so that the flux is
            amp · scale² · Σ pixels whatever lies in between.
        scale: arcsec a pixel. flip: −1 mirrors the picture's columns, 1 does not.
    """
    dx, dy = x - center_x, y - center_y
    c, s = torch.cos(angle), torch.sin(angle)
    pictures = pixels[..., 0, 0].to(dx.dtype)
    h, w = pictures.shape[-2:]
    column, row = flip * (c * dx + s * dy) / scale, (c * dy - s * dx) / scale  # pixels from the centre
    at = torch.stack([2 * column / w, 2 * row / h], -1)  # −1 and 1 are the picture's edges
    seen = F.grid_sample(pictures.flatten(0, 1)[:, None], at.flatten(0, 1), padding_mode="zeros", align_corners=False)
    return amp * seen.view(at.shape[:-1])


LIGHT: dict[str, Callable[..., Tensor]] = {"sersic": sersic, "image": image}
