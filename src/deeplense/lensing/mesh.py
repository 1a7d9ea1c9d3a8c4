"""Deflection of very many circular halos in one convolution: a mass grid and the FFT, any number at one price.

Each halo is laid on the four grid nodes around its centre and convolved with the exact deflection of a halo there,
zero-padded, so that nothing wraps around. Halos of different sizes share a few kernels: the radial deflections α/r of
a whole range of shapes are combinations of `RANK` basis functions, from a singular value decomposition.

Exact where a halo's deflection is straight between two nodes, so away from its core: the light many go here, the heavy
few are summed one by one. `benchmarks/realistic.py` measures the error in units of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from deeplense.lensing.mass import MASS
from deeplense.lensing.raytrace import Component

RANK = 5  # basis functions: the whole range of shapes to 1e-3 of the deflection
SHAPES = 24  # tabulated values of each shape parameter
RADII = 512  # tabulated radii


@dataclass(frozen=True)
class Mesh:
    """Kernels for one grid and one profile.

    Attributes:
        basis: (2, RANK, 2 size, size + 1) complex, transforms of the basis deflections along x and y.
        coefficients: (RANK, SHAPES, …) of unit strength on the grid of log shape parameters.
        logs: name of the shape parameter -> (first, step) of its log grid.
    """

    size: int
    pixel_scale: float
    strength: str
    basis: Tensor
    coefficients: Tensor
    logs: dict[str, tuple[float, float]]

    def deflection(self, params: Mapping[str, Tensor], mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """α summed over halos, at the grid's nodes.

        Args:
            params: strength, shape parameters, center_x, center_y: (B, N); centres inside the image.
            mask: (B, N), False where the array is padding.

        Returns:
            alpha_x, alpha_y: (B, size, size) [arcsec].
        """
        weight = params[self.strength] if mask is None else params[self.strength] * mask
        mass = self._lay(weight[:, None] * self._combination(params), params["center_x"], params["center_y"])
        spectrum = torch.fft.rfft2(mass, s=(2 * self.size, 2 * self.size))
        both = torch.einsum("brij,crij->bcij", spectrum, self.basis)
        alpha = torch.fft.irfft2(both, s=(2 * self.size, 2 * self.size))[..., : self.size, : self.size]
        return alpha[:, 0], alpha[:, 1]

    def _combination(self, params: Mapping[str, Tensor]) -> Tensor:
        """(B, RANK, N): coefficients of each halo, linear between tabulated log shapes."""
        strength = params[self.strength]
        corner = [(torch.zeros_like(strength, dtype=torch.long), torch.ones_like(strength))]
        for name, (first, step) in self.logs.items():
            place = ((params[name].log() - first) / step).clamp(0, SHAPES - 1 - 1e-4)
            low = place.floor()
            fraction = place - low
            corner = [
                (index * SHAPES + low.long() + up, weight * share)
                for index, weight in corner
                for up, share in ((0, 1 - fraction), (1, fraction))
            ]
        flat = self.coefficients.flatten(1)
        found = torch.stack([flat[:, index] * weight for index, weight in corner]).sum(0)
        return found.transpose(0, 1)

    def _lay(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(B, RANK, size, size): weights (B, RANK, N) shared among the four nodes around (x, y)."""
        n = self.size
        i, j = (c.to(weights.dtype) / self.pixel_scale + (n - 1) / 2 for c in (y, x))
        i0, j0 = (c.floor().clamp(0, n - 2) for c in (i, j))
        fi, fj = i - i0, j - j0
        first = (i0 * n + j0).long()
        grid = weights.new_zeros(*weights.shape[:2], n * n)
        for di, wi in ((0, 1 - fi), (1, fi)):
            for dj, wj in ((0, 1 - fj), (1, fj)):
                node = (first + (di * n + dj))[:, None].expand_as(weights)
                grid.scatter_add_(2, node, weights * (wi * wj)[:, None])
        return grid.reshape(*weights.shape[:2], n, n)


# profile -> its strength, and the range of each shape parameter [arcsec]; values outside are taken as its ends
MESHED: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "tnfw": ("alpha_Rs", {"R_s": (2e-3, 0.5), "r_trunc": (5e-3, 5.0)}),
}


def split(component: Component, below: float) -> list[Component]:
    """A component as the heavy, to be summed one by one, and the light, whose strength is below `below`."""
    if component.profile not in MESHED or below <= 0:
        return [component]
    light = component.params[MESHED[component.profile][0]] < below
    return [component.only(~light), component.only(light, mesh=True)]


@lru_cache(maxsize=8)
def mesh_for(profile: str, size: int, pixel_scale: float, device: torch.device, dtype: torch.dtype) -> Mesh:
    """The mesh of a profile for a grid of rays; made once."""
    strength, shapes = MESHED[profile]
    return make_mesh(MASS[profile].function, strength, shapes, size, pixel_scale, device, dtype)


def make_mesh(
    function: Callable[..., Tensor],
    strength: str,
    shapes: Mapping[str, tuple[float, float]],
    size: int,
    pixel_scale: float,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Mesh:
    """A mesh for a circular profile.

    Args:
        function: `(r², **parameters) -> α/r`, linear in `strength`.
        shapes: shape parameter -> range that its values keep to.
        size, pixel_scale: of the square grid of rays [arcsec].
    """
    axes = {k: torch.linspace(math.log(low), math.log(high), SHAPES).double() for k, (low, high) in shapes.items()}
    grids = torch.meshgrid(*axes.values(), indexing="ij")
    every = {k: g.exp().reshape(-1, 1) for k, g in zip(axes, grids, strict=True)}
    # nodes see each other at these offsets and no others; radii below a node's half-width are never asked for
    line = torch.arange(-size, size, dtype=torch.float64) * pixel_scale
    r2 = line[:, None] ** 2 + line**2
    radii = torch.logspace(math.log10(0.25 * pixel_scale), math.log10(1.5 * size * pixel_scale), RADII).double()
    sampled = function(radii**2, **{strength: torch.ones(1, 1, dtype=torch.float64)}, **every)
    # α, not α/r, is what must be right, relative to each shape's own deflection
    scale = (sampled * radii).abs().amax(1, keepdim=True)
    left, values, _ = torch.linalg.svd(sampled * radii / scale, full_matrices=False)
    coefficients = (left[:, :RANK] * values[:RANK]) * scale
    # basis functions as combinations of real profiles, so that they are known at every radius
    combine = torch.linalg.pinv(coefficients / scale)
    unique, place = torch.unique(r2, return_inverse=True)
    real = function(unique.clamp_min(1e-20), **{strength: torch.ones(1, 1, dtype=torch.float64)}, **every) / scale
    kernel = (combine @ real)[:, place]
    kernel[:, size, size] = 0  # in its own place a halo deflects nothing
    pair = torch.stack([kernel * line, kernel * line[:, None]])
    basis = torch.fft.rfft2(torch.fft.ifftshift(pair, dim=(-2, -1)))
    logs = {k: (float(a[0]), float(a[1] - a[0])) for k, a in axes.items()}
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    table = coefficients.T.reshape(RANK, *(SHAPES for _ in axes))
    return Mesh(size, pixel_scale, strength, basis.to(device, complex_dtype), table.to(device, dtype), logs)
