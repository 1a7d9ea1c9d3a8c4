"""Critical curves, where images merge, and the caustics that they are seen from."""

from __future__ import annotations

from collections.abc import Callable

import contourpy
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense.lensing.mass import Deflection

STEPS = 4  # of Newton's method, from contours that are right to the square of a cell's width
CONVERGED = 1e-3  # of the determinant
SLOPE = 1e-4  # of a cell, over which the determinant's slope is taken
Curve = NDArray[np.float64]
Function = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def critical_curves(x: Tensor, y: Tensor, determinant: Function) -> list[Curve]:
    """Lines of det(1 − ∂α/∂θ) = 0 of one lens: contours on a grid, whose points Newton's method then puts right.

    Args:
        x, y: the grid, a row (1, 1, W) and a column (1, H, 1) [arcsec]; curves within one of its cells are missed.
        determinant: of x and y, (1, H, W).

    Returns:
        Curves (N, 2) [arcsec], closed ones with the first point again at the end.
    """
    height = np.nan_to_num(determinant(x, y)[0].double().cpu().numpy(), posinf=1e30, neginf=-1e30)
    columns, rows = (v.flatten().double().cpu().numpy() for v in (x, y))
    lines = [np.asarray(line) for line in contourpy.contour_generator(columns, rows, height).lines(0.0)]
    if not lines:
        return []
    cell = float(x[0, 0, 1] - x[0, 0, 0])
    points = _refined(torch.from_numpy(np.concatenate(lines)).to(x), determinant, cell)
    left = determinant(*points.T[:, None, None])[0, 0].abs().double().cpu().numpy()
    ends = np.cumsum([len(line) for line in lines])[:-1]
    found = zip(np.split(points.double().cpu().numpy(), ends), np.split(left, ends), strict=True)
    # around a pole, where the sign changes through infinity, there is nothing to converge to
    return [line for line, rest in found if np.median(rest) < CONVERGED]


@torch.no_grad()
def caustics(curves: list[Curve], like: Tensor, deflection: Callable[[Tensor, Tensor], Deflection]) -> list[Curve]:
    """The same curves seen in the source plane, point by point. `like`: a tensor of the lens's type."""
    seen = []
    for curve in curves:
        x, y = torch.from_numpy(curve).to(like).T[:, None, None]
        alpha_x, alpha_y = deflection(x, y)
        seen.append(torch.stack([x - alpha_x, y - alpha_y], -1)[0, 0].double().cpu().numpy())
    return seen


def _refined(points: Tensor, determinant: Function, cell: float) -> Tensor:
    """Each (N, 2) moved along the slope to where the determinant is 0, and no farther than a cell."""
    h = SLOPE * cell
    steps = torch.tensor([[0.0, 0.0], [h, 0.0], [0.0, h]]).to(points)
    at = points
    for _ in range(STEPS):
        x, y = (at + steps[:, None]).permute(2, 0, 1)[:, None]  # (1, 3, N) each
        value, right, above = determinant(x, y)[0]
        slope = torch.stack([right - value, above - value], -1) / h
        moved = at - value[:, None] * slope / (slope**2).sum(-1, keepdim=True).clamp_min(1e-30)
        at = torch.where((moved - points).norm(dim=-1, keepdim=True) < cell, moved, at)
    return at
