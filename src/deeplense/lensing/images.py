"""Images of a point source: all solutions of the lens equation β = θ − α(θ) in a field, with their magnifications."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.lensing.maps import Jacobian
from deeplense.lensing.mass import Deflection

STEPS = 12  # of Newton's method, from within a cell
SLOPE = 1e-5  # arcsec, over which its slopes are taken
CONVERGED = 1e-9  # arcsec, in the source plane
APART = 1e-5  # of a cell: closer solutions are one
FAINTEST = 1e-3  # of |μ|: fainter images, of which every point mass has one beside it, are left out
AROUND = ((0.0, 0.0), (0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))  # cells: both images of a pair are found


class PointImages(NamedTuple):
    """Of B lenses, up to K images each, the brightest first.

    Attributes:
        x, y: (B, K) [arcsec]. magnification: (B, K), negative where an image is mirrored.
        mask: (B, K) bool, False where a lens has fewer images; there the others are 0.
    """

    x: Tensor
    y: Tensor
    magnification: Tensor
    mask: Tensor


def images_of(
    source_x: Tensor,
    source_y: Tensor,
    deflection: Callable[[Tensor, Tensor], Deflection],
    jacobian: Callable[[Tensor, Tensor], Jacobian],
    x: Tensor,
    y: Tensor,
) -> PointImages:
    """Solutions of the lens equation within a grid.

    They are sought in the triangles of the grid whose image in the source plane holds the source (Schneider, Ehlers &
    Falco 1992, 10.3), and where rays pass it nearest, and then put right by Newton's method. What is returned can be
    differentiated once.

    Args:
        source_x, source_y: (B,) [arcsec], float64. deflection, jacobian: of (B, H, W) positions.
        x, y: the grid, a row (1, 1, W) and a column (1, H, 1) [arcsec].
    """
    beta_x, beta_y = (v[:, None, None] for v in (source_x, source_y))
    cell = float(x[0, 0, 1] - x[0, 0, 0])
    with torch.no_grad():
        alpha_x, alpha_y = deflection(x, y)
        at_x, at_y = _seeds(x, y, x - alpha_x - beta_x, y - alpha_y - beta_y, cell)
        for _ in range(STEPS):
            at_x, at_y, _ = _newton(at_x, at_y, beta_x, beta_y, deflection, cell)
        _, _, left = _newton(at_x, at_y, beta_x, beta_y, deflection, cell)
        bright = jacobian(at_x, at_y).magnification
        inside = (at_x.abs() <= x.abs().max()) & (at_y.abs() <= y.abs().max())
        found = (left < CONVERGED) & inside & (bright.abs() > FAINTEST)
        keep, order = _distinct(at_x[:, 0], at_y[:, 0], bright[:, 0], found[:, 0], APART * cell)
        most = max(1, int(keep.sum(1).max()))
        order, keep = order[:, :most], keep[:, :most]
        at_x, at_y, mu = (v[:, 0].gather(1, order)[:, None] for v in (at_x, at_y, bright))
    if torch.is_grad_enabled():
        at_x, at_y = _attached(at_x, at_y, beta_x, beta_y, deflection, jacobian)
        mu = jacobian(at_x, at_y).magnification
    zero = torch.zeros_like(mu[:, 0])
    x_images, y_images, mu = (torch.where(keep, v[:, 0], zero) for v in (at_x, at_y, mu))
    return PointImages(x_images, y_images, mu, keep)


def _attached(
    x: Tensor,
    y: Tensor,
    beta_x: Tensor,
    beta_y: Tensor,
    deflection: Callable[[Tensor, Tensor], Deflection],
    jacobian: Callable[[Tensor, Tensor], Jacobian],
) -> tuple[Tensor, Tensor]:
    """Solutions as functions of the lens: dθ = (1 − ∂α/∂θ)⁻¹ (dβ + dα)."""
    with torch.no_grad():
        j = jacobian(x, y)
    alpha_x, alpha_y = deflection(x, y)
    off_x, off_y = x - alpha_x - beta_x, y - alpha_y - beta_y
    x = x - ((1 - j.yy) * off_x + j.xy * off_y) * j.magnification
    return x, y - (j.yx * off_x + (1 - j.xx) * off_y) * j.magnification


def _seeds(x: Tensor, y: Tensor, dx: Tensor, dy: Tensor, cell: float) -> tuple[Tensor, Tensor]:
    """(B, 1, S) positions to start from; dx, dy: (B, H, W) of the rays from the source."""
    corners = [(slice(0, -1), slice(0, -1)), (slice(0, -1), slice(1, None)), (slice(1, None), slice(1, None)),
               (slice(1, None), slice(0, -1))]  # fmt: skip
    a, b, c, d = ((dx[:, i, j], dy[:, i, j]) for i, j in corners)
    hit = F.pad(_around_zero(a, b, c) | _around_zero(a, c, d), (0, 1, 0, 1))
    near = -(dx**2 + dy**2)
    hit |= near == F.max_pool2d(near[:, None], 3, 1, 1)[:, 0]
    n = int(hit.sum((1, 2)).max())
    flat = (
        hit.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :n]
    )  # padded with cells of no hit
    rows, columns = flat // x.shape[-1], flat % x.shape[-1]
    at_x, at_y = x[0, 0, columns] + cell / 2, y[0, :, 0][rows] + cell / 2
    shift = cell * torch.tensor(AROUND).to(x)
    return tuple((at[..., None] + shift[:, k]).flatten(1)[:, None] for k, at in enumerate((at_x, at_y)))  # type: ignore[return-value]


def _around_zero(*corners: tuple[Tensor, Tensor]) -> Tensor:
    """Whether a triangle holds the origin."""
    (ax, ay), (bx, by), (cx, cy) = corners
    turns = torch.stack([ax * by - ay * bx, bx * cy - by * cx, cx * ay - cy * ax])
    return (turns >= 0).all(0) | (turns <= 0).all(0)


def _newton(
    x: Tensor,
    y: Tensor,
    beta_x: Tensor,
    beta_y: Tensor,
    deflection: Callable[[Tensor, Tensor], Deflection],
    longest: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A step, no longer than this, and the distance in the source plane before it. Slopes are differences: through
    many planes they take far less time than automatic differentiation."""
    n = x.shape[-1]
    alpha_x, alpha_y = deflection(torch.cat([x, x + SLOPE, x], -1), torch.cat([y, y, y + SLOPE], -1))
    (ax, ax_right, ax_above), (ay, ay_right, ay_above) = (torch.split(v, n, -1) for v in (alpha_x, alpha_y))
    off_x, off_y = x - ax - beta_x, y - ay - beta_y
    slopes = (ax_right - ax, ax_above - ax, ay_right - ay, ay_above - ay)
    xx, xy, yx, yy = (v / SLOPE for v in slopes)
    determinant = (1 - xx) * (1 - yy) - xy * yx
    step_x, step_y = ((1 - yy) * off_x + xy * off_y) / determinant, (yx * off_x + (1 - xx) * off_y) / determinant
    length = torch.hypot(step_x, step_y)
    shrink = (longest / length.clamp_min(1e-300)).clamp_max(1).nan_to_num(0)
    moved = x - step_x.nan_to_num(0) * shrink, y - step_y.nan_to_num(0) * shrink
    return *moved, torch.hypot(off_x, off_y)


def _distinct(x: Tensor, y: Tensor, mu: Tensor, found: Tensor, apart: float) -> tuple[Tensor, Tensor]:
    """(B, S) which stay of the solutions in order of brightness, and that order."""
    order = torch.where(found, mu.abs(), -1.0).argsort(dim=1, descending=True, stable=True)
    x, y, found = (v.gather(1, order) for v in (x, y, found))
    same = torch.hypot(x[:, :, None] - x[:, None], y[:, :, None] - y[:, None]) < apart
    earlier = torch.ones_like(same[0]).tril(-1) & found[:, None]
    keep = found & ~(same & earlier).any(2)
    first = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return keep.gather(1, first), order.gather(1, first)
