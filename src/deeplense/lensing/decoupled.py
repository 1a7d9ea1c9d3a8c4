"""Lenses at several redshifts, where halos off the lens's plane do not bend each other's light.

In front of the lens halos are met by straight rays. Behind it they are met by the rays that those in front and the
lens itself have bent, but not by each other's. What is left out is of second order in the halos of one side (Gilman et
al. 2024, arXiv 2403.03253, hold the rays of a macro model fixed instead). So all halos in front are one sum over
the same rays, and those of a plane can be summed on a grid that is then interpolated where its rays are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.lensing import raytrace
from deeplense.lensing.mass import MASS
from deeplense.lensing.mesh import mesh_for
from deeplense.lensing.raytrace import Component, Plane

Nodes = tuple[int, float] | None
Weighed = tuple[Component, Tensor]  # deflectors (B, N), and weights (K, B, N) or (K, B, 1) of each


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
    front = {k: torch.stack([levers[k], levers[k] * p.distance[:, None]]) for k, p in planes.items() if k < 0}
    slope, shift = _fields(x, y, _together([(c, f) for k, f in front.items() for c in planes[k].mass]), 2, nodes)
    there, lens = planes[0].distance[:, None, None], planes[0]
    at = [v - s + c / there for v, s, c in zip((x, y), slope, shift, strict=True)]
    once = torch.ones_like(levers[0])[None]
    alpha = levers[0][..., None] * _fields(at[0], at[1], [(c, once) for c in lens.mass], 1, nodes)[0]
    ray = [(v - s - a, c + there * a) for v, s, c, a in zip((x, y), slope, shift, alpha, strict=True)]
    beta_x, beta_y = (s + c / source[..., None] for s, c in ray)
    behind = [p for k, p in sorted(planes.items()) if k > 0]
    if not behind:
        return beta_x, beta_y
    # all at once: one plane after the other along the batch
    far = torch.stack([p.distance for p in behind])[..., None, None]
    at = [(s + c / far).flatten(0, 1) for s, c in ray]
    alpha_x, alpha_y = _fields(at[0], at[1], _stacked([p.mass for p in behind]), 1, nodes)[0]
    one = len(behind), *x.shape
    return beta_x - alpha_x.reshape(one).sum(0), beta_y - alpha_y.reshape(one).sum(0)


def _fields(x: Tensor, y: Tensor, mass: Sequence[Weighed], number: int, nodes: Nodes) -> Tensor:
    """α at rays (B, H, W) with each of K weights, (K, 2, B, H, W); of what may be on a grid, interpolated."""
    total = torch.stack(
        [_summed(x, y, [_times(c, f[k]) for c, f in mass if not (c.mesh and nodes)]) for k in range(number)]
    )
    gridded = [(c, f) for c, f in mass if c.mesh]
    if not gridded or nodes is None:
        return total
    size, spacing = nodes
    fields = []
    for c, f in gridded:
        dtype = c.params[MASS[c.profile].strength[0]].dtype
        fields.append(mesh_for(c.profile, size, spacing, x.device, dtype).fields(c, f))
    found = interpolate(sum(fields[1:], fields[0]).flatten(0, 1).transpose(0, 1), x, y, spacing)
    return total + torch.stack(found).reshape(total.shape)


def _summed(x: Tensor, y: Tensor, mass: Sequence[Component]) -> Tensor:
    return torch.stack(raytrace.deflection(x, y, mass))


def interpolate(field: Tensor, x: Tensor, y: Tensor, spacing: float) -> tuple[Tensor, ...]:
    """A field (B, C, n, n) on nodes around the middle, at (x, y) (B, H, W): C of (B, H, W)."""
    half = (field.shape[-1] - 1) / 2 * spacing
    at = (torch.stack([x, y], -1) / half).to(field)
    return F.grid_sample(field, at, mode="bicubic", padding_mode="border", align_corners=True).unbind(1)


def _times(component: Component, factor: Tensor) -> Component:
    """All deflections × factor (B, N) or (B, 1)."""
    strength = MASS[component.profile].strength
    params = {k: v * factor.to(v) if k in strength else v for k, v in component.params.items()}
    return replace(component, params=params)


def _together(mass: Sequence[Weighed]) -> list[Weighed]:
    """Components of one profile as one."""
    found = []
    for profile in dict.fromkeys(c.profile for c, _ in mass):
        parts = [(c, f) for c, f in mass if c.profile == profile]
        params = {k: torch.cat([c.params[k] for c, _ in parts], 1) for k in parts[0][0].params}
        there = [
            torch.ones_like(c.params[MASS[profile].strength[0]]) > 0 if c.mask is None else c.mask for c, _ in parts
        ]
        mesh = any(c.mesh for c, _ in parts)
        whole = replace(parts[0][0], params=params, mask=torch.cat(there, 1), mesh=mesh)
        factors = [f.expand(*f.shape[:2], m.shape[1]) for (_, f), m in zip(parts, there, strict=True)]
        found.append((whole, torch.cat(factors, 2)))
    return found


def _stacked(planes: Sequence[Sequence[Component]]) -> list[Weighed]:
    """Components of one profile as one, with the planes one after the other along the batch."""
    one = [[(c, torch.ones(1, 1, 1)) for c in mass] for mass in planes]
    every = [{c.profile: c for c, _ in _together(mass)} for mass in one]
    found = []
    for profile in dict.fromkeys(name for plane in every for name in plane):
        some = next(plane[profile] for plane in every if profile in plane)
        strength = MASS[profile].strength[0]
        none = replace(some, mask=torch.zeros_like(some.params[strength], dtype=torch.bool))
        parts = [plane.get(profile, none) for plane in every]
        width = max(c.params[strength].shape[1] for c in parts)
        wide = [c.padded(width) for c in parts]
        params = {k: torch.cat([c.params[k] for c in wide]) for k in some.params}
        mask = torch.cat([c.mask for c in wide if c.mask is not None])
        whole = replace(some, params=params, mask=mask, mesh=any(c.mesh for c in parts))
        found.append((whole, torch.ones_like(mask[None], dtype=torch.float32)))
    return found
