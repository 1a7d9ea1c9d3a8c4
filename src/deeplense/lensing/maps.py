"""What a lens does at every point of the sky: potential, and the Jacobian of the deflection with all that follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deeplense.errors import UserError
from deeplense.lensing.mass import MASS, Deflection
from deeplense.lensing.raytrace import CENTER, Component


def potential(x: Tensor, y: Tensor, mass: Sequence[Component]) -> Tensor:
    """ψ summed over deflectors of one plane, each up to a constant.

    Args:
        x, y: (B, H, W), or anything that broadcasts to it. mass: components with B images each.

    Returns:
        (B, H, W) [arcsec²].

    Raises:
        UserError: a profile that has no potential.
    """
    total = torch.zeros_like(x + 0 * y)
    for component in (c.trimmed() for c in mass):
        profile = MASS[component.profile]
        if profile.potential is None:
            raise UserError(f"no potential of '{component.profile}'; give its MassProfile a potential in lensing/mass")
        for part in component.chunks(total.shape[-1] * total.shape[-2]):
            params = dict(part.params)
            if part.mask is not None:
                params |= {name: params[name] * part.mask for name in profile.strength}
            single = {k: v[..., None, None] for k, v in params.items()}
            if profile.circular:
                dx, dy = (at[:, None] - single.pop(name) for at, name in zip((x, y), CENTER, strict=True))
                psi = profile.potential(dx * dx + (dy * dy + torch.finfo(total.dtype).tiny), **single)
            else:
                psi = profile.potential(x[:, None], y[:, None], **single)
            total = total + psi.sum(1)
    return total


class Jacobian(NamedTuple):
    """∂α/∂θ, each (B, H, W): xy is ∂α_x/∂y. In one plane xy = yx."""

    xx: Tensor
    xy: Tensor
    yx: Tensor
    yy: Tensor

    @property
    def kappa(self) -> Tensor:
        """Convergence κ = ½∇·α; of several planes, the effective one of the whole way."""
        return 0.5 * (self.xx + self.yy)

    @property
    def shear(self) -> tuple[Tensor, Tensor]:
        """γ1, γ2."""
        return 0.5 * (self.xx - self.yy), 0.5 * (self.xy + self.yx)

    @property
    def determinant(self) -> Tensor:
        """det(1 − ∂α/∂θ), the inverse of the signed magnification."""
        return (1 - self.xx) * (1 - self.yy) - self.xy * self.yx

    @property
    def magnification(self) -> Tensor:
        """μ, negative where the parity is."""
        return 1 / self.determinant


def jacobian(x: Tensor, y: Tensor, deflection: Callable[[Tensor, Tensor], Deflection]) -> Jacobian:
    """By forward-mode automatic differentiation, which keeps nothing of the sum; the result can be differentiated.

    Args:
        x, y: (B, H, W), or what broadcasts to it. deflection: (x, y) -> α, a sum that is not compiled.
    """
    x, y = x + 0 * y, y + 0 * x
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    columns = []
    for direction in ((one, zero), (zero, one)):
        with forward_ad.dual_level():
            at = (forward_ad.make_dual(v, t) for v, t in zip((x, y), direction, strict=True))  # type: ignore[no-untyped-call]
            tangents = (forward_ad.unpack_dual(alpha).tangent for alpha in deflection(*at))  # type: ignore[no-untyped-call]
            columns.append([zero if t is None else t for t in tangents])
    (xx, yx), (xy, yy) = columns
    return Jacobian(xx, xy, yx, yy)
