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

STEP = 2  # the grid's nodes are as many rays apart
NEAR = 3  # nodes on each side of a halo within which the rays are deflected exactly
FAINT = 1e-3  # of a ray's distance from the next: a halo that nowhere deflects more is left to the grid alone
TOLERANCE = 3e-3  # of a deflection interpolated between radii, against the halo's largest beyond a node
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
        size, pixel_scale: of the rays: number a side, and distance [arcsec].
        function: `(r², **parameters) -> α/r`, linear in `strength`.
        r2: (R, 1) squares of the radii at which a halo's α/r is taken [arcsec²].
        basis: (2, R, L, L/2 + 1) complex, L ≥ 2 (nodes + border), transforms of the deflections along x and y that
            interpolate.
        near: (2, 2 NEAR + 5, 2 NEAR + 5, R), the same at the nodes around their centre.
        between: (size, nodes), from nodes to rays. within: the same of the rays near a halo.
    """

    size: int
    pixel_scale: float
    function: Callable[..., Tensor]
    strength: str
    r2: Tensor
    basis: Tensor
    near: Tensor
    between: Tensor
    within: Tensor

    def deflection(self, component: Component) -> tuple[Tensor, Tensor]:
        """α summed over halos, at the rays.

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
        total = self._far(share, image, n_images, i, j, wi, wj)
        largest = self.function(share.new_tensor([self.pixel_scale**2]), **shape).abs() * self.pixel_scale
        edge = (self.size / 2 + STEP * NEAR) * self.pixel_scale
        seen = torch.stack([halos[k].abs() for k in CENTER]).amax(0) < edge
        heavy = (seen & (largest > FAINT * self.pixel_scale)).nonzero()[:, 0]
        if not len(heavy):
            return total
        near = (_compiled() if fused else Mesh._near)(
            self,
            {k: v[heavy] for k, v in shape.items()},
            *(v[:, heavy] for v in (share, wi, wj)),
            *(v[heavy] for v in (fi, fj)),
        )
        return total + self._add(near, image[heavy], n_images, i[heavy], j[heavy])

    @property
    def nodes(self) -> int:
        """Nodes a side between which all rays are interpolated."""
        return self.between.shape[1]

    @property
    def border(self) -> int:
        """Nodes on each side beyond those."""
        return self.nodes // 4

    @property
    def spacing(self) -> float:
        """Of the nodes [arcsec]."""
        return STEP * self.pixel_scale

    @property
    def reach(self) -> float:
        """Half the side of the square in which halos are laid on nodes [arcsec]."""
        return (self.size - 1) / 2 * self.pixel_scale + (self.border - 1) * self.spacing

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
        place = (center / self.pixel_scale + (self.size - 1) / 2) / STEP + 1 + self.border
        node = place.floor().clamp(1, self.nodes + 2 * self.border - 3)  # so that all four are on the grid
        f = (place - node).to(dtype)
        return node.long(), torch.stack(_cubic(f)), f

    def _far(self, share: Tensor, image: Tensor, n_images: int, i: Tensor, j: Tensor, wi: Tensor, wj: Tensor) -> Tensor:
        """(2, B, size, size): what the kernels make of shares (R, H) laid on the nodes around each centre."""
        n, length = self.nodes + 2 * self.border, self.basis.shape[2]
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
        seen = slice(self.border, self.border + self.nodes)
        return self.between @ alpha[..., seen, seen] @ self.between.T

    def _near(
        self, shape: Mapping[str, Tensor], share: Tensor, wi: Tensor, wj: Tensor, fi: Tensor, fj: Tensor
    ) -> Tensor:
        """(2, P, P, H): at the P rays a side near each halo its exact deflection less what `_far` gives there."""
        m, rays = 2 * NEAR + 2, len(self.within)
        around = (torch.arange(rays, device=fi.device)[:, None] / STEP + (1 - NEAR)).to(fi)
        dy, dx = ((around - fi) * self.spacing)[:, None], (around - fj) * self.spacing
        ratio = self.function(dx * dx + (dy * dy + torch.finfo(dx.dtype).tiny), **shape)
        given = (self.near.flatten(0, 2) @ share).reshape(*self.near.shape[:3], -1)
        rows = given[:, 3 : 3 + m] * wi[0]
        for k in range(1, 4):
            rows.addcmul_(given[:, 3 - k : 3 - k + m], wi[k])
        both = rows[:, :, 3 : 3 + m] * wj[0]
        for k in range(1, 4):
            both.addcmul_(rows[:, :, 3 - k : 3 - k + m], wj[k])
        down = (self.within @ both.flatten(2)).reshape(2, rays, m, -1)
        return torch.stack([ratio * dx, ratio * dy]) - self.within @ down

    def _add(self, near: Tensor, image: Tensor, n_images: int, i: Tensor, j: Tensor) -> Tensor:
        """(2, B, size, size): the halos' neighbourhoods put together, on a grid whose border is then cut."""
        edge = STEP * 2 * (NEAR + 1)
        wide, around = self.size + 2 * edge, torch.arange(near.shape[1], device=i.device)[:, None]
        i, j = (STEP * (k - self.border - NEAR) + edge for k in (i, j))
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
    between, within = _between(size, 1), _between(STEP * (2 * NEAR - 1) + 1, 1)
    nodes, spacing = between.shape[1], STEP * pixel_scale
    radii = torch.logspace(math.log10(spacing), math.log10(1.8 * nodes * spacing), RADII, dtype=torch.float64)
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
    half = max(next_fast_len(nodes + nodes // 4), LEAST)
    line = torch.arange(-half, half, dtype=torch.float64) * spacing  # nodes see each other at these offsets
    unique, place = torch.unique(line[:, None] ** 2 + line**2, return_inverse=True)
    real = function(unique.clamp_min((0.5 * spacing) ** 2), **every) / scale
    kernel = (combine @ real)[:, place] * radii[chosen, None, None]
    pair = torch.stack([kernel * line, kernel * line[:, None]])
    basis = torch.fft.rfft2(torch.fft.ifftshift(pair, dim=(-2, -1)))
    middle = slice(half - NEAR - 2, half + NEAR + 3)
    near = pair[:, :, middle, middle].permute(0, 2, 3, 1).contiguous()
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    return Mesh(
        size,
        pixel_scale,
        function,
        strength,
        (radii[chosen, None] ** 2).to(device, dtype),
        basis.to(device, complex_dtype),
        *(v.to(device, dtype) for v in (near, between, within)),
    )


def _between(rays: int, beyond: int) -> Tensor:
    """(rays, nodes): cubic interpolation; the first ray is at the node of number `beyond`."""
    out = torch.zeros(rays, (rays - 2) // STEP + 2 + 2 * beyond, dtype=torch.float64)
    for ray in range(rays):
        node = min(ray // STEP, (rays - 2) // STEP)
        weights = _cubic(torch.tensor(ray / STEP - node, dtype=torch.float64))
        out[ray, node + beyond - 1 : node + beyond + 3] = torch.stack(weights)
    return out


def _cubic(f: Tensor) -> list[Tensor]:
    """Lagrange's weights of the nodes −1, 0, 1, 2 for a place f between 0 and 1."""
    weights = [-f * (f - 1) * (f - 2) / 6, (f + 1) * (f - 1) * (f - 2) / 2, -(f + 1) * f * (f - 2) / 2]
    return [*weights, (f + 1) * f * (f - 1) / 6]


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
