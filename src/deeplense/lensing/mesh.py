"""Deflection of very many circular halos: a mass grid and the FFT far from each, the exact sum near it.

The grid's nodes are `STEP` rays apart. Each halo is laid on the 4 x 4 nodes around its centre, by cubic interpolation,
and convolved with the exact deflection of a halo there, zero-padded, so that nothing wraps around (Hockney & Eastwood
1988, ch. 6). Halos of all sizes share a few kernels: beyond a node a radial deflection is known by its values at as
many radii, between which functions interpolate that a singular value decomposition of the whole range of shapes has
found (discrete empirical interpolation, Chaturantabut & Sorensen 2010). A cubic leads from nodes to rays. Around a halo
that deflects more than `NEAR` says, the result is replaced by the exact deflection. The grid is half as wide again as
the image; halos beyond it are summed on few nodes. What is left is what faint halos deflect next to their centres, at
most a few thousandths of a pixel, and about a hundredth of what the others deflect at most.
`benchmarks/line_of_sight.py` measures it in images.
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
# what a halo deflects at the distance of a ray from the next, in units of that distance, from which on -> nodes on each
# side of it within which it is summed exactly; a fainter one is left to the grid alone
NEAR = {2e-3: 2, 2e-2: 5}
WIDEST = max(NEAR.values())
TOLERANCE = 5e-3  # of a deflection interpolated between radii, against the halo's largest beyond a node
SHAPES = {1: 256, 2: 24, 3: 10}  # tabulated values of each shape parameter, by how many there are
RADII = 512  # tabulated radii
HALOS = 2048  # summed together: their neighbourhoods stay in a core's cache
TRANSFORM = 128  # halos that take as much of it as an image's transforms
LEAST = 24  # half the length of the transforms: of shorter ones the last digit depends on the number of threads
SMOOTH = 8  # nodes a side that tell what halos far outside the image deflect in it

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
        near: (2, M, M, R), the same at M = 2 WIDEST + 5 nodes around their centre.
        between: (size, nodes), from nodes to rays.
    """

    size: int
    pixel_scale: float
    function: Callable[..., Tensor]
    strength: str
    r2: Tensor
    basis: Tensor
    near: Tensor
    between: Tensor

    def deflection(self, component: Component) -> tuple[Tensor, Tensor]:
        """α summed over N halos in each of B images, at the rays: (B, size, size) each [arcsec]."""
        alpha_x, alpha_y = self.fields(component, torch.ones_like(component.params[self.strength])[None])[0]
        return alpha_x, alpha_y

    def fields(self, component: Component, weights: Tensor) -> Tensor:
        """(K, 2, B, size, size): α with each of the weights (K, B, N) of the halos, at little more than one's cost."""
        strength = component.params[self.strength]
        weights = weights.to(strength).expand(-1, *strength.shape)
        there = torch.ones_like(strength, dtype=torch.bool) if component.mask is None else component.mask
        parts = []
        for images in _groups((there.sum(1) + TRANSFORM).tolist(), HALOS):
            some = there[images]
            halos = {k: v[images][some] for k, v in component.params.items()}
            weight, image = weights[:, images][:, some], some.nonzero()[:, 0]
            within = torch.stack([halos[k].abs() for k in CENTER]).amax(0) < self.reach
            near, far = ({k: v[part] for k, v in halos.items()} for part in (within, ~within))
            total = self._deflection(near, weight[:, within], image[within], len(some), component.fused)
            if not bool(within.all()):
                total = total + self._distant(far, weight[:, ~within], image[~within], len(some))
            parts.append(total)
        return torch.cat(parts, 2)

    def _deflection(
        self, halos: dict[str, Tensor], weight: Tensor, image: Tensor, n_images: int, fused: bool
    ) -> Tensor:
        """(K, 2, B, size, size) of H halos, each in the image of that number.

        Halos are the last axis of all arrays, so that each step is one long loop over them.
        """
        shape = {k: v for k, v in halos.items() if k not in CENTER}
        share = self.function(self.r2, **shape)  # (R, H)
        (i, wi, fi), (j, wj, fj) = (self._place(halos[k], share.dtype) for k in ("center_y", "center_x"))
        total = torch.stack([self._far(share * w, image, n_images, i, j, wi, wj) for w in weight])
        bends = self.function(share.new_tensor([self.pixel_scale**2]), **shape).abs()
        place = torch.stack([halos[k].abs() for k in CENTER]).amax(0) / self.pixel_scale
        for (low, nodes), high in zip(NEAR.items(), [*list(NEAR)[1:], math.inf], strict=True):
            some = ((bends >= low) & (bends < high) & (place < self.size / 2 + STEP * nodes)).nonzero()[:, 0]
            if not len(some):
                continue
            near = self._near(
                nodes,
                fused,
                {k: v[some] for k, v in shape.items()},
                *(v[:, some] for v in (share, wi, wj)),
                *(v[some] for v in (fi, fj)),
            )
            total = total + self._add(near, weight[:, some], image[some], n_images, i[some] - nodes, j[some] - nodes)
        return total

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

    def _distant(self, halos: dict[str, Tensor], weight: Tensor, image: Tensor, n_images: int) -> Tensor:
        """(K, 2, B, size, size) of halos beyond: smooth in the image, so a polynomial through few nodes."""
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
        alpha = torch.stack([ratio * dx, ratio * dy[:, None]]) * weight[:, None, None, None]
        total = alpha.new_zeros(*alpha.shape[:-1], n_images).index_add_(4, image, alpha)
        return weights @ total.permute(0, 1, 4, 2, 3) @ weights.T

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
        between = self.between[: self.size]
        return between @ alpha[..., seen, seen] @ between.T

    def _near(
        self,
        nodes: int,
        fused: bool,
        shape: Mapping[str, Tensor],
        share: Tensor,
        wi: Tensor,
        wj: Tensor,
        fi: Tensor,
        fj: Tensor,
    ) -> Tensor:
        """(2, P, P, H): at the P rays a side near each halo its exact deflection less what `_far` gives there."""
        m, rays, cut = 2 * nodes + 2, STEP * (2 * nodes - 1) + 1, WIDEST - nodes
        around = (torch.arange(rays, device=fi.device)[:, None] / STEP + (1 - nodes)).to(fi)
        dy, dx = ((around - fi) * self.spacing)[:, None], (around - fj) * self.spacing
        function = _compiled(self.function) if fused else self.function
        ratio = function(dx * dx + (dy * dy + torch.finfo(dx.dtype).tiny), **shape)
        given = self.near[:, cut : cut + m + 3, cut : cut + m + 3] @ share
        rows = given[:, 3 : 3 + m] * wi[0]
        for k in range(1, 4):
            rows.addcmul_(given[:, 3 - k : 3 - k + m], wi[k])
        both = rows[:, :, 3 : 3 + m] * wj[0]
        for k in range(1, 4):
            both.addcmul_(rows[:, :, 3 - k : 3 - k + m], wj[k])
        within = self.between[:rays, :m]
        down = (within @ both.flatten(2)).reshape(2, rays, m, -1)
        return torch.stack([ratio * dx, ratio * dy]).sub_(within @ down)

    def _add(self, near: Tensor, weight: Tensor, image: Tensor, n_images: int, i: Tensor, j: Tensor) -> Tensor:
        """(K, 2, B, size, size): neighbourhoods put together, each from node (i, j) on; what lies outside is cut."""
        edge, rays = STEP * (2 * WIDEST + 1), near.shape[1]
        wide, around = self.size + 2 * edge, torch.arange(rays, device=i.device)[:, None]
        i, j = (STEP * (k - self.border) + edge for k in (i, j))
        node = ((image * wide + i + around)[:, None] * wide + j + around).reshape(1, -1).expand(2, -1)
        parts = [near.new_zeros(2, n_images * wide * wide).scatter_add_(1, node, (near * w).flatten(1)) for w in weight]
        return torch.stack(parts).reshape(-1, 2, n_images, wide, wide)[..., edge:-edge, edge:-edge]


@lru_cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True)


def on_grid(component: Component) -> Component:
    """The same, to be summed on a grid if its profile can be, however many there are: the number is the batch's."""
    return replace(component, mesh=component.profile in MESHED)


@lru_cache(maxsize=32)
def mesh_for(profile: str, size: int, pixel_scale: float, device: torch.device, dtype: torch.dtype) -> Mesh:
    """The mesh of a profile for a square grid of rays; made once."""
    strength, ranges = MESHED[profile]
    function = MASS[profile].function
    n = SHAPES[len(ranges)]
    axes = [torch.logspace(math.log10(a), math.log10(b), n, dtype=torch.float64) for a, b in ranges.values()]
    every = {k: g.reshape(-1, 1) for k, g in zip(ranges, torch.meshgrid(*axes, indexing="ij"), strict=True)}
    every[strength] = torch.ones(1, 1, dtype=torch.float64)
    between = _between(max(size, STEP * (2 * WIDEST - 1) + 1))
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
    middle = slice(half - WIDEST - 2, half + WIDEST + 3)
    near = pair[:, :, middle, middle].permute(0, 2, 3, 1).contiguous()
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    return Mesh(
        size,
        pixel_scale,
        function,
        strength,
        (radii[chosen, None] ** 2).to(device, dtype),
        basis.to(device, complex_dtype),
        *(v.to(device, dtype) for v in (near, between)),
    )


def _between(rays: int) -> Tensor:
    """(rays, nodes): cubic interpolation; the first ray is at the second node."""
    out = torch.zeros(rays, (rays - 2) // STEP + 4, dtype=torch.float64)
    for ray in range(rays):
        node = min(ray // STEP, (rays - 2) // STEP)
        out[ray, node : node + 4] = torch.stack(_cubic(torch.tensor(ray / STEP - node, dtype=torch.float64)))
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
