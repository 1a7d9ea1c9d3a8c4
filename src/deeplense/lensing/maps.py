"""What a lens does at every point of the sky: potential, and the Jacobian of the deflection with all that follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deeplense.errors import UserError
from deeplense.lensing.mass import MASS, Deflection
from deeplense.lensing.raytrace import CENTER, Component, deflection


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


def jacobian(x: Tensor, y: Tensor, mass: Sequence[Component]) -> Jacobian:
    """∂α/∂θ summed over deflectors of one plane; arguments as of `potential`. It can itself be differentiated."""
    batch = max((len(v) for c in mass for v in c.params.values()), default=1)
    # each image has points of its own, or their derivatives would be summed over images
    x, y = (v.expand(max(batch, len(v)), -1, -1) for v in (x + 0 * y, y + 0 * x))
    xx, xy, yx, yy = (torch.zeros_like(x) for _ in range(4))
    for component in (c.trimmed() for c in mass):
        profile = MASS[component.profile]
        if not profile.circular:
            more = _by_backward(x, y, component)
            xx, xy, yx, yy = (old + new for old, new in zip((xx, xy, yx, yy), more, strict=True))
            continue
        for part in component.chunks(x.shape[-1] * x.shape[-2]):
            params = dict(part.params)
            if part.mask is not None:
                params |= {name: params[name] * part.mask for name in profile.strength}
            single = {k: v[..., None, None] for k, v in params.items()}
            dx, dy = (at[:, None] - single.pop(name) for at, name in zip((x, y), CENTER, strict=True))
            ratio, slope = _with_slope(profile.function, dx * dx + (dy * dy + torch.finfo(x.dtype).tiny), single)
            across = (2 * slope * dx * dy).sum(1)
            xx, yy = xx + (ratio + 2 * slope * dx * dx).sum(1), yy + (ratio + 2 * slope * dy * dy).sum(1)
            xy, yx = xy + across, yx + across
    return Jacobian(xx, xy, yx, yy)


def _by_backward(x: Tensor, y: Tensor, component: Component) -> Jacobian:
    """Of profiles that are not circular, of which there are few."""
    differentiable = torch.is_grad_enabled() and any(v.requires_grad for v in (x, y, *component.params.values()))
    with torch.enable_grad():
        x, y = (v if v.requires_grad else v.detach().requires_grad_() for v in (x, y))
        rows = [
            torch.autograd.grad(alpha.sum(), (x, y), create_graph=differentiable, retain_graph=True)
            for alpha in deflection(x, y, [component])
        ]
    (xx, xy), (yx, yy) = rows
    return Jacobian(xx, xy, yx, yy)


def _with_slope(function: Callable[..., Tensor], r2: Tensor, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """α/r and its derivative by r²: one backward pass, where the Jacobian of the sum would take two of the forward
    mode's, each of twice the time."""
    differentiable = torch.is_grad_enabled() and any(v.requires_grad for v in (r2, *params.values()))
    with torch.enable_grad():
        r2 = r2 if r2.requires_grad else r2.requires_grad_()
        ratio = function(r2, **params)
        (slope,) = torch.autograd.grad(ratio.sum(), r2, create_graph=differentiable)
    return (ratio, slope) if differentiable else (ratio.detach(), slope)


def jacobian_of(x: Tensor, y: Tensor, function: Callable[[Tensor, Tensor], Deflection]) -> Jacobian:
    """∂α/∂θ of any deflection, e.g. through several planes: forward-mode automatic differentiation.

    Args:
        x, y: (B, H, W), or what broadcasts to it. function: (x, y) -> α, a sum that is not compiled.
    """
    x, y = x + 0 * y, y + 0 * x
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    columns = []
    for direction in ((one, zero), (zero, one)):
        with forward_ad.dual_level():
            at = (forward_ad.make_dual(v, t) for v, t in zip((x, y), direction, strict=True))  # type: ignore[no-untyped-call]
            tangents = (forward_ad.unpack_dual(alpha).tangent for alpha in function(*at))  # type: ignore[no-untyped-call]
            columns.append([zero if t is None else t for t in tangents])
    (xx, yx), (xy, yy) = columns
    return Jacobian(xx, xy, yx, yy)
