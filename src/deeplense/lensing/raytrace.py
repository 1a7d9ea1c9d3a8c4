"""Ray shooting: the sum of any mix of deflectors, and the light seen through it, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deeplense.lensing.light import LIGHT
from deeplense.lensing.mass import MASS, Deflection

CENTER = ("center_x", "center_y")
CHUNK = 1 << 18  # elements of a temporary: small enough for a core's cache, large enough to amortise calls
FUSED = 1 << 24  # elements summed in one compiled call, which holds no temporary but where a profile breaks the graph


@dataclass(frozen=True)
class Component:
    """N profiles of one kind in each of B images.

    Attributes:
        profile: key of `MASS` or `LIGHT`.
        params: name -> (B, N).
        mask: (B, N) bool, False where the array is padding; None when nothing is.
        mesh: an image may sum them on a mass grid (`mesh.py`).
        fused: if they are circular, sum them in one loop that `torch.compile` makes, once in each process.
        alike: the parameters are the same in all images, so that one will do.
        plane: where it is along the line of sight: 0 with the lens, -1 in the next plane in front of it, 1 behind it.
    """

    profile: str
    params: dict[str, Tensor]
    mask: Tensor | None = None
    mesh: bool = False
    fused: bool = False
    alike: bool = False
    plane: int = 0

    def __getitem__(self, rows: slice | Tensor) -> Component:
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, params={k: v[rows] for k, v in self.params.items()}, mask=mask)

    def only(self, keep: Tensor) -> Component:
        """Those where `keep` (B, N) is true, moved together so that the array is as short as it can be."""
        keep = keep if self.mask is None else keep & self.mask
        longest = max(1, int(keep.sum(1).max())) if len(keep) else 1
        order = torch.argsort(~keep, dim=1, stable=True)[:, :longest]
        return replace(self.gathered(order), mask=keep.gather(1, order))

    def gathered(self, order: Tensor) -> Component:
        """Those at the places `order` (B, n) of each image."""
        mask = None if self.mask is None else self.mask.gather(1, order)
        return replace(self, params={k: v.gather(1, order) for k, v in self.params.items()}, mask=mask)

    def padded(self, width: int) -> Component:
        """With so many columns, the last of them again and again; what is new is not there."""
        n = next(iter(self.params.values())).shape[1]
        mask = torch.ones_like(next(iter(self.params.values())), dtype=torch.bool) if self.mask is None else self.mask
        column = torch.arange(width, device=mask.device)
        order = column.clamp_max(n - 1).expand(len(mask), -1)
        return replace(self.gathered(order), mask=mask.gather(1, order) & (column < n))

    def trimmed(self) -> Component:
        """Without what need not be computed: images alike, columns at the end that are padding in all images."""
        if self.alike:
            return self[:1]
        if self.mask is None or not len(self.mask):
            return self
        used = self.mask.any(0).nonzero()
        n = max(1, int(used[-1]) + 1 if len(used) else 1)
        if n == self.mask.shape[1]:
            return self
        return replace(self, params={k: v[:, :n] for k, v in self.params.items()}, mask=self.mask[:, :n])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Component:
        """Move and cast the parameters; centres of circular deflectors stay in float64, see `deflection`."""
        mask = None if self.mask is None else self.mask.to(device)
        exact = self.profile in MASS and MASS[self.profile].circular and torch.device(device).type != "mps"
        kinds = {k: torch.float64 if exact and k in CENTER else dtype for k in self.params}
        return replace(self, params={k: v.to(device, kinds[k]) for k, v in self.params.items()}, mask=mask)

    def chunks(self, pixels: int, most: int | None = None) -> Iterator[Component]:
        """Slices along N whose (B, n, pixels) temporaries hold at most `most` elements, `CHUNK` by default."""
        first = next(iter(self.params.values()))
        n = first.shape[1]
        step = max(1, (CHUNK if most is None else most) // max(1, first.shape[0] * pixels))
        for start in range(0, n, step):
            mask = None if self.mask is None else self.mask[:, start : start + step]
            yield Component(self.profile, {k: v[:, start : start + step] for k, v in self.params.items()}, mask)


class Plane(NamedTuple):
    """Deflectors at one redshift in each of B images.

    Attributes:
        distance: comoving, in flat space (B,) [Mpc].
        mass: components whose deflections are reduced for the source, as they would be if they were alone.
    """

    distance: Tensor
    mass: Sequence[Component]


def deflection(x: Tensor, y: Tensor, mass: Sequence[Component]) -> Deflection:
    """α summed over all deflectors.

    Args:
        x, y: (B, H, W), or anything that broadcasts to it: a row (1, 1, W) and a column (1, H, 1) save work. They may
            be in float64 where the parameters are in float32: then distances from the centres of circular deflectors
            are taken before they are rounded, and keep their digits next to a point mass.
        mass: components with B images each.

    Returns:
        alpha_x, alpha_y: (B, H, W) [arcsec].

    Raises:
        ValueError: components of several planes, whose deflections do not add up.
    """
    if len({c.plane for c in mass}) > 1:
        raise ValueError("mass lies in several planes; use the scene's planes: planes.deflection(x, y, mass)")
    batch = next(iter(mass[0].params.values())).shape[0] if mass else x.shape[0]
    shape = _shape((batch, 1, 1), x.shape, y.shape)
    strengths = [c.params[MASS[c.profile].strength[0]] for c in mass]
    dtype = strengths[0].dtype if strengths else x.dtype
    alpha_x, alpha_y = (torch.zeros(shape, device=x.device, dtype=dtype) for _ in range(2))
    rounded = x[:, None].to(dtype), y[:, None].to(dtype)
    for component in (c.trimmed() for c in mass):
        profile = MASS[component.profile]
        fused = component.fused and profile.circular
        fused = fused and not any(v.requires_grad for v in (x, y, *component.params.values()))
        whole = fused or (profile.summed and x.shape[-2] == y.shape[-1] == 1)
        for part in component.chunks(shape[1] * shape[2], FUSED if whole else None):
            params = dict(part.params)
            if part.mask is not None:
                params |= {name: params[name] * part.mask for name in profile.strength}
            single = {k: v[..., None, None] for k, v in params.items()}
            if profile.circular:
                dx, dy = (c[:, None] - single.pop(name) for c, name in zip((x, y), CENTER, strict=True))
                offsets = dx.to(dtype), dy.to(dtype)
                if fused:
                    ax, ay = _fused(component.profile)(*offsets, single)
                    alpha_x += ax
                    alpha_y += ay
                else:
                    _add_circular(alpha_x, alpha_y, *offsets, profile.function, single)
            else:
                ax, ay = profile.function(*rounded, **single)
                alpha_x += ax[:, 0] if ax.shape[1] == 1 else ax.sum(1)
                alpha_y += ay[:, 0] if ay.shape[1] == 1 else ay.sum(1)
    return alpha_x, alpha_y


def _add_circular(
    alpha_x: Tensor,
    alpha_y: Tensor,
    dx: Tensor,
    dy: Tensor,
    function: Callable[..., Tensor],
    params: dict[str, Tensor],
) -> None:
    """α += Σ weight(r²)·(dx, dy), with as few passes over the pixels as torch allows."""
    weight = function(dx * dx + (dy * dy + torch.finfo(dx.dtype).tiny), **params)
    for n in range(weight.shape[1]):
        alpha_x.addcmul_(weight[:, n], dx[:, n])
        alpha_y.addcmul_(weight[:, n], dy[:, n])


@lru_cache
def _fused(name: str) -> Callable[[Tensor, Tensor, dict[str, Tensor]], Deflection]:
    """Σ weight(r²)·(dx, dy) as one loop over pixels and deflectors."""
    function = MASS[name].function

    def total(dx: Tensor, dy: Tensor, params: dict[str, Tensor]) -> Deflection:
        weight = function(dx * dx + (dy * dy + torch.finfo(dx.dtype).tiny), **params)
        return (weight * dx).sum(1), (weight * dy).sum(1)

    # dynamic: the number of halos differs from block to block, and compiling takes ten seconds
    return torch.compile(total, dynamic=True)


def brightness(x: Tensor, y: Tensor, light: Sequence[Component]) -> Tensor:
    """Surface brightness summed over all profiles at (x, y).

    Args:
        x, y: (B, H, W) or broadcastable. light: components with B images each.

    Returns:
        (B, H, W), in the unit of `amp`.
    """
    shape = _shape(x.shape, y.shape)
    total: Tensor | None = None
    for component in light:
        for part in component.chunks(shape[-1] * shape[-2]):
            params = {k: v[..., None, None] for k, v in part.params.items()}
            each = LIGHT[part.profile](x[:, None], y[:, None], **params)
            if part.mask is not None:
                each = torch.where(part.mask[..., None, None], each, torch.zeros_like(each))
            summed = each[:, 0] if each.shape[1] == 1 else each.sum(1)
            total = summed if total is None else total + summed
    return x.new_zeros(shape) if total is None else total


def _shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def grid(size: int, pixel_scale: float, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A row (1, 1, size) of x and a column (1, size, 1) of y [arcsec], centred: x_j = (j − (n−1)/2)·pixel_scale."""
    # in float64 first: the rounding of the coordinates themselves must not enter the image
    line = ((torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * pixel_scale).to(device, dtype)
    return line[None, None, :], line[None, :, None]


class Through(Protocol):
    """What bends rays in several planes, e.g. `multiplane.Planes`."""

    def deflection(self, x: Tensor, y: Tensor, mass: Sequence[Component]) -> Deflection: ...


def magnification(x: Tensor, y: Tensor, mass: Sequence[Component], planes: Through | None = None) -> Tensor:
    """μ = 1/det(1 − ∂α/∂θ), by automatic differentiation.

    Args:
        x, y: (B, H, W), the same shape. mass: components with B images each. planes: where theirs are, if in several.

    Raises:
        ValueError: components of several planes, but no planes.
    """
    bend = deflection if planes is None else planes.deflection
    x, y = x.detach().requires_grad_(True), y.detach().requires_grad_(True)
    with torch.enable_grad():
        alpha_x, alpha_y = bend(x, y, mass)
        xx, xy = torch.autograd.grad(alpha_x.sum(), (x, y), retain_graph=True)
        yx, yy = torch.autograd.grad(alpha_y.sum(), (x, y))
    return 1 / ((1 - xx) * (1 - yy) - xy * yx)
