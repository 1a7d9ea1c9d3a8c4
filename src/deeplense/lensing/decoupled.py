"""Lenses at several redshifts, where halos off the lens's plane do not bend each other's light.

In front of the lens halos are met by straight rays. Behind it they are met by the rays that those in front and the
lens itself have bent, but not by each other's. What is left out is of second order in the halos of one side (Gilman et
al. 2024, arXiv 2403.03253, hold the rays of a macro model fixed instead). So all halos in front are one sum over
the same rays, and those of a plane can be summed on a grid that is then interpolated where its rays are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.lensing import raytrace
from deeplense.lensing.mass import MASS, Deflection
from deeplense.lensing.mesh import mesh_for
from deeplense.lensing.raytrace import Component, Plane

Nodes = tuple[int, float] | None


def trace(
    x: Tensor, y: Tensor, planes: Mapping[int, Plane], distance_source: Tensor, nodes: Nodes = None
) -> tuple[Tensor, Tensor]:
    """Where rays meet the source plane.

    In comoving coordinates a ray is x(χ) = χ s + c behind what has bent it: a deflector at χ_i takes α̂_i = α_i
    χ_s/(χ_s − χ_i) from the slope s and adds χ_i α̂_i to c.

    Args:
        x, y: (B, H, W), or what broadcasts to it [arcsec]. planes: by their number, 0 the lens's, which must be there.
        distance_source: (B,), comoving [Mpc]. nodes: number a side and spacing [arcsec] of the grids; None: no grid.

    Returns:
        beta_x, beta_y: (B, H, W) [arcsec].
    """
    source = distance_source[:, None]
    zero = 0 * source[..., None]
    x, y = x + 0 * y + zero, y + 0 * x + zero
    levers = {k: source / (source - p.distance[:, None]) for k, p in planes.items()}
    front = {k: (levers[k], levers[k] * p.distance[:, None]) for k, p in planes.items() if k < 0}
    slope, shift = (
        _field(x, y, _together([_times(c, f[part]) for k, f in front.items() for c in planes[k].mass]), nodes)
        for part in (0, 1)
    )
    there, lens = planes[0].distance[:, None, None], planes[0]
    at = [v - s + c / there for v, s, c in zip((x, y), slope, shift, strict=True)]
    alpha = [levers[0][..., None] * a for a in _field(at[0], at[1], lens.mass, nodes)]
    ray = [(v - s - a, c + there * a) for v, s, c, a in zip((x, y), slope, shift, alpha, strict=True)]
    beta_x, beta_y = (s + c / source[..., None] for s, c in ray)
    behind = [p for k, p in sorted(planes.items()) if k > 0]
    for plane in behind:
        here = plane.distance[:, None, None]
        at = [s + c / here for s, c in ray]
        alpha_x, alpha_y = _field(at[0], at[1], plane.mass, _enough(nodes, at))
        beta_x, beta_y = beta_x - alpha_x, beta_y - alpha_y
    return beta_x, beta_y


def _field(x: Tensor, y: Tensor, mass: Sequence[Component], nodes: Nodes) -> Deflection:
    """α at rays (B, H, W); of what may be on a grid, interpolated."""
    gridded = [c for c in mass if c.mesh] if nodes else []
    alpha_x, alpha_y = raytrace.deflection(x, y, [c for c in mass if not (c.mesh and nodes)])
    if not gridded or nodes is None:
        return alpha_x, alpha_y
    dtype = gridded[0].params[MASS[gridded[0].profile].strength[0]].dtype
    size, spacing = nodes
    grids = [mesh_for(c.profile, size, spacing, x.device, dtype).deflection(c) for c in gridded]
    total = torch.stack([sum(parts) for parts in zip(*grids, strict=True)], 1)
    more_x, more_y = interpolate(total, x, y, spacing)
    return alpha_x + more_x, alpha_y + more_y


def _enough(nodes: Nodes, at: Sequence[Tensor]) -> Nodes:
    """Fewer nodes where rays have come together, in eighths, for each number wants a mesh of its own."""
    if nodes is None or not at[0].numel():
        return nodes
    size, spacing = nodes
    least = 2 * max(float(v.detach().abs().max()) for v in at) / spacing + 3
    step = max(1, size // 8)
    return size - step * int(np.clip((size - least) // step, 0, 5)), spacing


def interpolate(field: Tensor, x: Tensor, y: Tensor, spacing: float) -> tuple[Tensor, ...]:
    """A field (B, C, n, n) on nodes around the middle, at (x, y) (B, H, W): C of (B, H, W)."""
    half = (field.shape[-1] - 1) / 2 * spacing
    at = (torch.stack([x, y], -1) / half).to(field)
    return F.grid_sample(field, at, mode="bicubic", padding_mode="border", align_corners=True).unbind(1)


def _times(component: Component, factor: Tensor) -> Component:
    """All deflections × factor (B, 1)."""
    strength = MASS[component.profile].strength
    params = {k: v * factor.to(v) if k in strength else v for k, v in component.params.items()}
    return replace(component, params=params)


def _together(mass: Sequence[Component]) -> list[Component]:
    """Components of one profile as one."""
    found = []
    for profile in dict.fromkeys(c.profile for c in mass):
        parts = [c for c in mass if c.profile == profile]
        params = {k: torch.cat([c.params[k] for c in parts], 1) for k in parts[0].params}
        masks = [torch.ones_like(c.params[MASS[profile].strength[0]]) > 0 if c.mask is None else c.mask for c in parts]
        found.append(replace(parts[0], params=params, mask=torch.cat(masks, 1), mesh=any(c.mesh for c in parts)))
    return found
