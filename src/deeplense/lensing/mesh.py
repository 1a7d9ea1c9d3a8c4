"""Deflection of very many circular halos: a mass grid and the FFT far from each, the exact sum near it.

Each halo is laid on the four grid nodes around its centre and convolved with the exact deflection of a halo there,
zero-padded, so that nothing wraps around. Halos of different sizes share a few kernels: the radial deflections α/r of
a whole range of shapes are combinations of `RANK` basis functions, from a singular value decomposition. That is right
where a deflection is straight between two nodes; on the `2 NEAR` x `2 NEAR` nodes around a halo it is replaced by the
exact deflection. What is left falls as the mass: the light many go here, the heavy few are summed one by one.
`benchmarks/realistic.py` measures the error in units of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from deeplense.lensing.mass import MASS
from deeplense.lensing.raytrace import CENTER, Component

NEAR = 4  # nodes on each side of a halo that are summed exactly
RANK = 5  # basis functions: the whole range of shapes to 1e-3 of the deflection
SHAPES = 24  # tabulated values of each shape parameter
RADII = 512  # tabulated radii


@dataclass(frozen=True)
class Mesh:
    """Kernels for one grid and one profile.

    Attributes:
        function: `(r², **parameters) -> α/r`.
        basis: (2, RANK, 2 size, size + 1) complex, transforms of the basis deflections along x and y.
        near: (RANK, 2, 2 NEAR + 1, 2 NEAR + 1), the basis deflections at the nodes around their centre.
        coefficients: (RANK, SHAPES, …) of unit strength on the grid of log shape parameters.
        logs: name of the shape parameter -> (first, step) of its log grid.
    """

    size: int
    pixel_scale: float
    function: Callable[..., Tensor]
    strength: str
    basis: Tensor
    near: Tensor
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
        params = dict(params) | {self.strength: weight}
        share = weight[:, None] * self._combination(params)
        n, places = self.size, self._places(params, weight.dtype)
        spectrum = torch.fft.rfft2(self._lay(share, *places), s=(2 * n, 2 * n))
        both = torch.einsum("brij,crij->bcij", spectrum, self.basis)
        alpha = torch.fft.irfft2(both, s=(2 * n, 2 * n))[..., :n, :n] + self._correction(share, params, *places)
        return alpha[:, 0], alpha[:, 1]

    def _places(self, params: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row and column of the node below each centre, (B, N) integers, and the rest, in units of the nodes."""
        where = []
        for name in ("center_y", "center_x"):
            place = params[name] / self.pixel_scale + (self.size - 1) / 2
            node = place.floor().clamp(0, self.size - 2)
            where.append((node.long(), (place - node).to(dtype)))
        (i, fi), (j, fj) = where
        return i, j, fi, fj

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

    def _lay(self, share: Tensor, i: Tensor, j: Tensor, fi: Tensor, fj: Tensor) -> Tensor:
        """(B, RANK, size, size): shares (B, RANK, N) divided among the four nodes around each centre."""
        n = self.size
        grid = share.new_zeros(*share.shape[:2], n * n)
        for di, dj, weight in _corners(fi, fj):
            node = (i * n + j + (di * n + dj))[:, None].expand_as(share)
            grid.scatter_add_(2, node, share * weight[:, None])
        return grid.reshape(*share.shape[:2], n, n)

    def _correction(
        self, share: Tensor, params: Mapping[str, Tensor], i: Tensor, j: Tensor, fi: Tensor, fj: Tensor
    ) -> Tensor:
        """(B, 2, size, size): near each halo the exact deflection less what the grid gives there."""
        around = torch.arange(1 - NEAR, NEAR + 1, device=fi.device)
        dy, dx = ((around - f[..., None]) * self.pixel_scale for f in (fi, fj))
        dy, dx = dy[..., :, None], dx[..., None, :]
        shape = {k: v[..., None, None] for k, v in params.items() if k not in CENTER}
        ratio = self.function(dx * dx + (dy * dy + torch.finfo(dx.dtype).tiny), **shape)
        given = torch.einsum("brn,rcpq->bncpq", share, self.near)
        m = 2 * NEAR
        both = torch.stack([ratio * dx, ratio * dy], 2)
        for di, dj, weight in _corners(fi, fj):
            both = both - given[..., 1 - di : 1 - di + m, 1 - dj : 1 - dj + m] * weight[..., None, None, None]
        # onto a grid with a border, because a halo's neighbourhood may leave the image
        wide = self.size + m
        node = (i[..., None, None] + around[:, None] + NEAR) * wide + (j[..., None, None] + around + NEAR)
        grid = both.new_zeros(len(both), 2, wide * wide)
        for axis in (0, 1):
            grid[:, axis].scatter_add_(1, node.flatten(1), both[:, :, axis].flatten(1))
        return grid.reshape(len(both), 2, wide, wide)[..., NEAR:-NEAR, NEAR:-NEAR]


def _corners(fi: Tensor, fj: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """The four nodes around a place, as steps in rows and columns, and their shares."""
    for di, wi in ((0, 1 - fi), (1, fi)):
        for dj, wj in ((0, 1 - fj), (1, fj)):
            yield di, dj, wi * wj


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
    # nodes see each other at these offsets and no others
    line = torch.arange(-size, size, dtype=torch.float64) * pixel_scale
    r2 = line[:, None] ** 2 + line**2
    radii = torch.logspace(math.log10((NEAR - 1) * pixel_scale), math.log10(1.5 * size * pixel_scale), RADII).double()
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
    middle = slice(size - NEAR, size + NEAR + 1)
    logs = {k: (float(a[0]), float(a[1] - a[0])) for k, a in axes.items()}
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    table = coefficients.T.reshape(RANK, *(SHAPES for _ in axes)).to(device, dtype)
    near = pair[:, :, middle, middle].transpose(0, 1).to(device, dtype)
    return Mesh(size, pixel_scale, function, strength, basis.to(device, complex_dtype), near, table, logs)
