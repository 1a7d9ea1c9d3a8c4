"""Deflection of very many circular halos: a mass grid and the FFT far from each, the exact sum near it.

Each halo is laid on the 4 x 4 grid nodes around its centre, by cubic interpolation, and convolved with the exact
deflection of a halo there, zero-padded, so that nothing wraps around (Hockney & Eastwood 1988, ch. 6). Halos of all
sizes share about ten kernels: beyond `NEAR` − 1 nodes a radial deflection is known by its values at as many radii,
between which functions interpolate that a singular value decomposition of the whole range of shapes has found (discrete
empirical interpolation, Chaturantabut & Sorensen 2010). On the 2 `NEAR` x 2 `NEAR` nodes around a halo the result is
replaced by the exact deflection. The grid is half as wide again as the image; halos beyond it are summed on few nodes.
What is left is the cubic's error: 1e-3 of a point mass's deflection at `NEAR` nodes,
falling as r⁻⁴. `benchmarks/realistic.py` measures it in images, in units of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy.fft import next_fast_len
from torch import Tensor

from deeplense.lensing.mass import MASS
from deeplense.lensing.raytrace import CENTER, Component

NEAR = 5  # nodes on each side of a halo that are summed exactly
TOLERANCE = 3e-5  # of a deflection interpolated between radii, against the halo's largest beyond NEAR - 1 nodes
SHAPES = {1: 256, 2: 24, 3: 10}  # tabulated values of each shape parameter, by how many there are
RADII = 512  # tabulated radii
HALOS = 2048  # summed together: their neighbourhoods stay in a core's cache
LEAST = 24  # half the length of the transforms: of shorter ones the last digit depends on the number of threads
SMOOTH = 16  # nodes a side that tell what halos far outside the image deflect in it
FEWEST = 16  # halos an image for which a grid is worth its transforms

# profile -> its strength, and the range of each shape parameter [arcsec]
MESHED: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "tnfw": ("alpha_Rs", {"R_s": (1e-3, 20.0), "r_trunc": (5e-3, 200.0)}),
    "ctnfw": ("alpha_Rs", {"R_s": (1e-3, 20.0), "r_trunc": (5e-3, 200.0), "r_core": (1e-3, 10.0)}),
    "soliton": ("kappa_0", {"theta_c": (1e-3, 10.0)}),
}


@dataclass(frozen=True)
class Mesh:
    """Kernels for one grid and one profile.

    Attributes:
        function: `(r², **parameters) -> α/r`, linear in `strength`.
        r2: (R, 1) squares of the radii at which a halo's α/r is taken [arcsec²].
        basis: (2, R, L, L/2 + 1) complex, L ≥ 2 (size + border), transforms of the deflections along x and y that
            interpolate.
        near: (2, 2 NEAR + 3, 2 NEAR + 3, R), the same at the nodes around their centre.
    """

    size: int
    pixel_scale: float
    function: Callable[..., Tensor]
    strength: str
    r2: Tensor
    basis: Tensor
    near: Tensor

    def deflection(self, component: Component) -> tuple[Tensor, Tensor]:
        """α summed over halos, at the grid's nodes.

        Args:
            component: N halos in each of B images.

        Returns:
            alpha_x, alpha_y: (B, size, size) [arcsec].
        """
        strength = component.params[self.strength]
        there = torch.ones_like(strength, dtype=torch.bool) if component.mask is None else component.mask
        parts = []
        for images in _groups(there.sum(1).tolist(), HALOS):
            some = there[images]
            halos = {k: v[images][some] for k, v in component.params.items()}
            image = some.nonzero()[:, 0]
            within = torch.stack([halos[k].abs() for k in CENTER]).amax(0) < self.reach
            near, far = ({k: v[part] for k, v in halos.items()} for part in (within, ~within))
            total = self._deflection(near, image[within], len(some), component.fused)
            parts.append(total if bool(within.all()) else total + self._distant(far, image[~within], len(some)))
        alpha_x, alpha_y = torch.cat(parts, 1)
        return alpha_x, alpha_y

    def _deflection(self, halos: dict[str, Tensor], image: Tensor, n_images: int, fused: bool) -> Tensor:
        """(2, B, size, size) of H halos, each in the image of that number.

        Halos are the last axis of all arrays, so that each step is one long loop over them.
        """
        shape = {k: v for k, v in halos.items() if k not in CENTER}
        share = self.function(self.r2, **shape)  # (R, H)
        (i, wi, fi), (j, wj, fj) = (self._place(halos[k], share.dtype) for k in ("center_y", "center_x"))
        near = (_compiled() if fused else Mesh._near)(self, shape, share, wi, wj, fi, fj)
        return self._far(share, image, n_images, i, j, wi, wj) + self._add(near, image, n_images, i, j)

    @property
    def border(self) -> int:
        """Nodes on each side beyond those of the image."""
        return self.size // 4

    @property
    def reach(self) -> float:
        """Half the side of the square in which halos are laid on nodes [arcsec]."""
        return ((self.size - 1) / 2 + self.border - 1) * self.pixel_scale

    def _distant(self, halos: dict[str, Tensor], image: Tensor, n_images: int) -> Tensor:
        """(2, B, size, size) of halos beyond: smooth in the image, so a polynomial through few nodes."""
        half = (self.size - 1) / 2 * self.pixel_scale
        nodes = np.cos((np.arange(SMOOTH) + 0.5) * np.pi / SMOOTH)  # Chebyshev's
        line = np.linspace(-1, 1, self.size)
        degree = SMOOTH - 1
        between = chebyshev.chebvander(line, degree) @ np.linalg.inv(chebyshev.chebvander(nodes, degree))
        weights = torch.from_numpy(between).to(self.near)
        at = torch.from_numpy(nodes * half).to(halos["center_x"])[:, None]
        dx, dy = ((at - halos[k]).to(self.near) for k in CENTER)
        shape = {k: v for k, v in halos.items() if k not in CENTER}
        ratio = self.function(dx * dx + (dy * dy)[:, None], **shape)
        alpha = torch.stack([ratio * dx, ratio * dy[:, None]])
        total = alpha.new_zeros(2, SMOOTH, SMOOTH, n_images).index_add_(3, image, alpha)
        return weights @ total.permute(0, 3, 1, 2) @ weights.T

    def _place(self, center: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Node below each centre (H,), weights of the four around it (4, H), and the rest in units of nodes (H,)."""
        place = center / self.pixel_scale + (self.size - 1) / 2 + self.border
        node = place.floor().clamp(1, self.size + 2 * self.border - 3)  # so that all four are on the grid
        f = (place - node).to(dtype)
        weights = [-f * (f - 1) * (f - 2) / 6, (f + 1) * (f - 1) * (f - 2) / 2, -(f + 1) * f * (f - 2) / 2]
        return node.long(), torch.stack([*weights, (f + 1) * f * (f - 1) / 6]), f

    def _far(self, share: Tensor, image: Tensor, n_images: int, i: Tensor, j: Tensor, wi: Tensor, wj: Tensor) -> Tensor:
        """(2, B, size, size): what the kernels make of shares (R, H) laid on the nodes around each centre."""
        n, length = self.size + 2 * self.border, self.basis.shape[2]
        around = torch.arange(-1, 3, device=i.device)[:, None]
        node = (image * n + i + around)[:, None] * n + j + around
        values = share[:, None, None] * (wi[:, None] * wj)
        grid = share.new_zeros(len(share), n_images * n * n)
        grid.scatter_add_(1, node.reshape(1, -1).expand(len(share), -1), values.flatten(1))
        spectrum = torch.fft.rfft2(grid.reshape(len(share), n_images, n, n), s=(length, length))
        both = spectrum.new_empty(2, *spectrum.shape[1:])
        for kernels, sum_ in zip(self.basis, both, strict=True):
            torch.mul(spectrum[0], kernels[0], out=sum_)
            for one, kernel in zip(spectrum[1:], kernels[1:], strict=True):
                sum_.addcmul_(one, kernel)  # an einsum of complex numbers takes three times as long
        alpha: Tensor = torch.fft.irfft2(both, s=(length, length))
        seen = slice(self.border, self.border + self.size)
        return alpha[..., seen, seen]

    def _near(
        self, shape: Mapping[str, Tensor], share: Tensor, wi: Tensor, wj: Tensor, fi: Tensor, fj: Tensor
    ) -> Tensor:
        """(2, 2 NEAR, 2 NEAR, H): on the nodes near each halo its exact deflection less what `_far` gives there."""
        m, around = 2 * NEAR, torch.arange(1 - NEAR, NEAR + 1, device=fi.device)[:, None]
        dy, dx = ((around - fi) * self.pixel_scale)[:, None], (around - fj) * self.pixel_scale
        ratio = self.function(dx * dx + (dy * dy + torch.finfo(dx.dtype).tiny), **shape)
        near = torch.stack([ratio * dx, ratio * dy])
        given = (self.near.flatten(0, 2) @ share).reshape(*self.near.shape[:3], -1)
        rows = given[:, 3 : 3 + m] * wi[0]
        for k in range(1, 4):
            rows.addcmul_(given[:, 3 - k : 3 - k + m], wi[k])
        for k in range(4):
            near.addcmul_(rows[:, :, 3 - k : 3 - k + m], wj[k], value=-1)
        return near

    def _add(self, near: Tensor, image: Tensor, n_images: int, i: Tensor, j: Tensor) -> Tensor:
        """(2, B, size, size): the halos' neighbourhoods put together, on a grid whose border is then cut."""
        edge = self.border + NEAR
        wide, around = self.size + 2 * edge, torch.arange(1, 2 * NEAR + 1, device=i.device)[:, None]
        node = (image * wide + i + around)[:, None] * wide + j + around
        grid = near.new_zeros(2, n_images * wide * wide)
        grid.scatter_add_(1, node.reshape(1, -1).expand(2, -1), near.flatten(1))
        return grid.reshape(2, n_images, wide, wide)[..., edge:-edge, edge:-edge]


@lru_cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(Mesh._near, dynamic=True)


def on_grid(component: Component) -> Component:
    """The same, to be summed on a grid where that is quicker."""
    many = component.profile in MESHED and next(iter(component.params.values())).shape[1] >= FEWEST
    return replace(component, mesh=many)


@lru_cache(maxsize=32)
def mesh_for(profile: str, size: int, pixel_scale: float, device: torch.device, dtype: torch.dtype) -> Mesh:
    """The mesh of a profile for a square grid of rays; made once."""
    strength, ranges = MESHED[profile]
    function = MASS[profile].function
    n = SHAPES[len(ranges)]
    axes = [torch.logspace(math.log10(a), math.log10(b), n, dtype=torch.float64) for a, b in ranges.values()]
    every = {k: g.reshape(-1, 1) for k, g in zip(ranges, torch.meshgrid(*axes, indexing="ij"), strict=True)}
    every[strength] = torch.ones(1, 1, dtype=torch.float64)
    nearest, farthest = math.log10((NEAR - 1) * pixel_scale), math.log10(1.8 * size * pixel_scale)
    radii = torch.logspace(nearest, farthest, RADII, dtype=torch.float64)
    # α, not α/r, is what must be right, relative to each shape's own largest
    sampled = function(radii**2, **every) * radii
    scale = sampled.abs().amax(1, keepdim=True)
    left, values, right = torch.linalg.svd(sampled / scale, full_matrices=False)
    for rank in range(1, RADII):
        chosen = _most_telling(right[:rank])
        inverse = torch.linalg.inv(right[:rank, chosen])
        if (sampled / scale - sampled[:, chosen] / scale @ (inverse @ right[:rank])).abs().max() < TOLERANCE:
            break
    # as combinations of real profiles, so that the interpolating functions are known at every radius
    combine = inverse @ (left[:, :rank] / values[:rank]).T
    half = max(next_fast_len(size + size // 4), LEAST)
    line = torch.arange(-half, half, dtype=torch.float64) * pixel_scale  # nodes see each other at these offsets
    unique, place = torch.unique(line[:, None] ** 2 + line**2, return_inverse=True)
    real = function(unique.clamp_min((0.5 * pixel_scale) ** 2), **every) / scale
    kernel = (combine @ real)[:, place] * radii[chosen, None, None]
    pair = torch.stack([kernel * line, kernel * line[:, None]])
    basis = torch.fft.rfft2(torch.fft.ifftshift(pair, dim=(-2, -1)))
    middle = slice(half - NEAR - 1, half + NEAR + 2)
    near = pair[:, :, middle, middle].permute(0, 2, 3, 1).contiguous()
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    return Mesh(
        size,
        pixel_scale,
        function,
        strength,
        (radii[chosen, None] ** 2).to(device, dtype),
        basis.to(device, complex_dtype),
        near.to(device, dtype),
    )


def _most_telling(functions: Tensor) -> list[int]:
    """Points, as many as functions (R, M), at which their values tell them apart best: QR with column pivoting."""
    left, chosen = functions.clone(), []
    for _ in range(len(functions)):
        chosen.append(int(left.square().sum(0).argmax()))
        direction = left[:, chosen[-1]] / left[:, chosen[-1]].norm()
        left -= direction[:, None] * (direction @ left)
    return sorted(chosen)


def _groups(counts: Sequence[int], most: int) -> Iterator[slice]:
    """Neighbouring images whose halos together are at most `most`, or one image."""
    start, total = 0, 0
    for stop, count in enumerate(counts):
        if total + count > most and stop > start:
            yield slice(start, stop)
            start, total = stop, 0
        total += count
    if counts:
        yield slice(start, len(counts))
