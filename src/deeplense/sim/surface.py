"""Surface brightness of a scene on cells finer than a pixel, the same everywhere or only where light asks for it.

`adaptive` shoots one ray a pixel. Where its light is smooth, the nine cells of a pixel are interpolated; where it is
not, in units of the noise, each gets a ray of its own, and then nine. Deflections are smoother than light: the rays in
between take theirs from the pixels around, but close to point masses and centres, where they are shot. An image's
light alone decides, so that its batch makes no difference. Derivatives are those of one selection; where it changes, as
when a mass moves into another pixel, the image jumps by what the interpolation leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplense.lensing import raytrace
from deeplense.lensing.mass import MASS, Deflection
from deeplense.lensing.mesh import mesh_for
from deeplense.lensing.multiplane import Planes
from deeplense.lensing.raytrace import CENTER, Component
from deeplense.sim.scene import Scene

CELLS = 3  # of a pixel, a side
REACH = 2  # pixels on each side of one between which is interpolated
LIT = 2.0  # of a fourth difference of neighbouring pixels' light, in σ: above it the pixel's cells are seen by rays
BRIGHT = 0.5  # of what a cell's mean is above its middle, in σ: above it each cell of the pixel is seen by nine rays
SHARP = 0.1  # of a fourth difference of the deflection, in pixels: above it rays are shot


class Noise(NamedTuple):
    """Variance of a pixel's surface brightness I in B images: sky + photons · I, both (B,)."""

    sky: Tensor
    photons: Tensor

    def sigma(self, bright: Tensor) -> Tensor:
        """(B, H, W), as surface brightness."""
        return (self.sky[:, None, None] + self.photons[:, None, None] * bright.detach().clamp_min(0)).sqrt()


def uniform(scene: Scene, size: int, pixel_scale: float, cells: int) -> list[Tensor]:
    """Surface brightness in each band, (B, cells·size, cells·size), at the middle of each cell."""
    lens = _Lens.of(scene, size * cells, pixel_scale / cells)
    return [lens.seen(band) for band in _bands(scene)]


def adaptive(scene: Scene, size: int, pixel_scale: float, noise: Sequence[Noise]) -> list[Tensor]:
    """Mean surface brightness of the cells, `CELLS` a pixel's side, in each band: (B, CELLS·size, CELLS·size).

    Args:
        noise: of each band; what is left out is small against it.
    """
    lens = _Lens.of(scene, size, pixel_scale)
    return [_adaptive(lens, band, each) for band, each in zip(_bands(scene), noise, strict=True)]


def _adaptive(lens: _Lens, band: Scene, noise: Noise) -> Tensor:
    """One band's: what is selected for one does not depend on the others."""
    middle = lens.seen(band)
    sigma = noise.sigma(middle)
    fine = _between(middle)
    lit = _rough(middle) > LIT * sigma
    if bool(lit.any()):
        where = _Pixels.of(lit)
        where.write(fine, _sample(lens, band, where, CELLS))
    bend = _bend(fine)
    bright = F.max_pool2d(bend.detach().abs()[:, None], CELLS)[:, 0] > BRIGHT * sigma
    fine = fine + bend
    if bool(bright.any()):
        where = _Pixels.of(bright)
        cells = _sample(lens, band, where, CELLS**2)
        where.write(fine, cells.view(-1, CELLS, CELLS, CELLS, CELLS).mean((2, 4)))
    return fine


class _Part(NamedTuple):
    """Deflections (B, H, W) of some of the mass, at a ray a pixel.

    Attributes:
        planes: in which the mass is; None: all in the lens's.
    """

    mass: Sequence[Component]
    planes: Planes | None
    alpha_x: Tensor
    alpha_y: Tensor


class _Lens(NamedTuple):
    """Rays of a pixel each, and how they are deflected.

    Attributes:
        x, y: a row and a column [arcsec]; float64 but where a device has none.
        parts: what is summed exactly, and what a mass grid sums if anything is. Where planes are decoupled: the lens
            itself, and all that the others change, which is smooth but within a halo's deflection of its centre.
    """

    scene: Scene
    pixel_scale: float
    x: Tensor
    y: Tensor
    parts: Sequence[_Part]

    @classmethod
    def of(cls, scene: Scene, size: int, pixel_scale: float) -> _Lens:
        scale = scene.deflection_scale
        precise = scale.dtype if scale.device.type == "mps" else torch.float64
        x, y = raytrace.grid(size, pixel_scale, scale.device, precise)
        apart = scene.planes is not None and not scene.planes.coupled
        shot, gridded = ([c for c in scene.mass if c.mesh is mesh] for mesh in (False, True))
        planes = None if apart else scene.planes
        shot = [c for c in shot if c.plane == 0] if apart else shot
        alpha_x, alpha_y = (a.expand(len(scene), size, size) for a in _shoot(scene, x, y, shot, planes))
        parts = [_Part(shot, planes, alpha_x, alpha_y)]
        if apart:
            whole = _shoot(scene, x, y, scene.mass, scene.planes, (size + 2, pixel_scale))
            parts.append(_Part([], None, whole[0] - alpha_x, whole[1] - alpha_y))
        elif gridded:
            meshes = [mesh_for(c.profile, size, pixel_scale, scale.device, scale.dtype) for c in gridded]
            alphas = [mesh.deflection(c) for mesh, c in zip(meshes, gridded, strict=True)]
            sums = (_scaled(sum(alpha[1:], alpha[0]), scale) for alpha in zip(*alphas, strict=True))
            parts.append(_Part(gridded, None, *sums))
        return cls(scene, pixel_scale, x, y, parts)

    def seen(self, band: Scene) -> Tensor:
        """Surface brightness at each ray."""
        alpha_x = sum((p.alpha_x for p in self.parts[1:]), self.parts[0].alpha_x)
        alpha_y = sum((p.alpha_y for p in self.parts[1:]), self.parts[0].alpha_y)
        x, y = self.x.to(alpha_x.dtype), self.y.to(alpha_x.dtype)
        return _light(band, x, y, x - alpha_x, y - alpha_y)

    def between(self, at: _Pixels, n: int, x: Tensor, y: Tensor) -> Deflection:
        """α at n x n points (S, n·n) of some pixels: interpolated; what is shot, again where it is not smooth."""
        shot = self.parts[0]
        alpha_x, alpha_y = _inside(shot.alpha_x, at, n), _inside(shot.alpha_y, at, n)
        uneven = _rough(shot.alpha_x) + _rough(shot.alpha_y) > SHARP * self.pixel_scale
        sharp = (uneven | self._around_masses())[at.row, at.i, at.j]
        if bool(sharp.any()):
            few, rows = at.only(sharp), (sharp.nonzero()[:, 0],)
            exact = _shoot(self.scene, few.spread(x[sharp]), few.spread(y[sharp]), shot.mass, shot.planes)
            alpha_x, alpha_y = (
                alpha.index_put(rows, value[few.row, few.slot])
                for alpha, value in zip((alpha_x, alpha_y), exact, strict=True)
            )
        for part in self.parts[1:]:
            alpha_x, alpha_y = alpha_x + _inside(part.alpha_x, at, n), alpha_y + _inside(part.alpha_y, at, n)
        return alpha_x, alpha_y

    def _around_masses(self) -> Tensor:
        """(B, H, W), whether something round has its centre within `REACH`: α is not smooth, however light it is."""
        found = torch.zeros_like(self.parts[0].alpha_x, dtype=torch.bool)
        size = found.shape[-1]
        offset = torch.arange(-REACH, REACH + 1, device=found.device)
        for c in (c for c in self.parts[0].mass if MASS[c.profile].circular and c.plane == 0):
            there = torch.ones_like(c.params["center_x"], dtype=torch.bool) if c.mask is None else c.mask
            there = there.expand(len(found), -1)
            row = there.nonzero()[:, 0, None, None]
            j, i = (
                (c.params[k].detach().expand(len(found), -1)[there] / self.pixel_scale + size / 2).floor().long()
                for k in CENTER
            )
            i, j = i[:, None, None] + offset[:, None], j[:, None, None] + offset
            found[row, i.clamp(0, size - 1), j.clamp(0, size - 1)] = True
        return found


class _Pixels(NamedTuple):
    """S pixels of B images, those of one image after another.

    Attributes:
        row: (S,) the image. i, j: (S,) the pixel's row and column. slot: (S,) its number in the image.
        most: how many an image has at most.
    """

    row: Tensor
    i: Tensor
    j: Tensor
    slot: Tensor
    most: int
    images: int

    @classmethod
    def of(cls, chosen: Tensor) -> _Pixels:
        row, i, j = chosen.nonzero(as_tuple=True)
        return cls._numbered(row, i, j, len(chosen))

    @classmethod
    def _numbered(cls, row: Tensor, i: Tensor, j: Tensor, images: int) -> _Pixels:
        count = torch.bincount(row, minlength=images)
        slot = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        return cls(row, i, j, slot, int(count.max()), images)

    def only(self, keep: Tensor) -> _Pixels:
        return self._numbered(self.row[keep], self.i[keep], self.j[keep], self.images)

    def write(self, image: Tensor, cells: Tensor) -> None:
        """Put (S, CELLS, CELLS) into their pixels of an image (B, CELLS·n, CELLS·n)."""
        n = image.shape[-1] // CELLS
        image.view(-1, n, CELLS, n, CELLS)[self.row, self.i, :, self.j, :] = cells

    def spread(self, values: Tensor) -> Tensor:
        """(S, K) -> (B, most, K), zeros where an image has fewer."""
        out = values.new_zeros(self.images, self.most, values.shape[1])
        return out.index_put((self.row, self.slot), values)


def _sample(lens: _Lens, band: Scene, at: _Pixels, n: int) -> Tensor:
    """Surface brightness on n x n points of each pixel, (S, n, n)."""
    step = (torch.arange(n, dtype=torch.float64, device=at.row.device) - (n - 1) / 2) / n * lens.pixel_scale
    x = (lens.x[0, 0, at.j, None, None] + step.to(lens.x)).expand(-1, n, n).flatten(1)
    y = (lens.y[0, at.i, 0, None, None] + step.to(lens.y)[:, None]).expand(-1, n, n).flatten(1)
    alpha_x, alpha_y = lens.between(at, n, x, y)
    x, y = x.to(alpha_x.dtype), y.to(alpha_y.dtype)
    behind_x, behind_y = at.spread(x - alpha_x), at.spread(y - alpha_y)
    if band.lens_light:
        x, y = at.spread(x), at.spread(y)
    return _light(band, x, y, behind_x, behind_y)[at.row, at.slot].view(-1, n, n)


def _shoot(
    scene: Scene,
    x: Tensor,
    y: Tensor,
    mass: Sequence[Component],
    planes: Planes | None,
    nodes: tuple[int, float] | None = None,
) -> Deflection:
    """Deflections by some of a scene's mass; `nodes` as of `Planes.deflection`."""
    dtype, scale = scene.deflection_scale.dtype, scene.deflection_scale
    if planes is None:
        alpha_x, alpha_y = raytrace.deflection(x, y, mass)
    else:
        alpha_x, alpha_y = planes.deflection(x, y, mass, nodes)
    return _scaled(alpha_x.to(dtype), scale), _scaled(alpha_y.to(dtype), scale)


def _scaled(alpha: Tensor, scale: Tensor) -> Tensor:
    return alpha * scale[:, None, None] if bool((scale != 1).any()) else alpha


def _bands(scene: Scene) -> list[Scene]:
    return [scene.band(k) for k in range(1 + len(scene.more_bands))]


def _light(band: Scene, x: Tensor, y: Tensor, beta_x: Tensor, beta_y: Tensor) -> Tensor:
    total = raytrace.brightness(beta_x, beta_y, band.source)
    return total + raytrace.brightness(x, y, band.lens_light) if band.lens_light else total


def _rough(image: Tensor) -> Tensor:
    """|Fourth differences| along both axes, (B, H, W)."""
    padded = F.pad(image.detach()[:, None], (REACH,) * 4, mode="replicate")[:, 0]
    total = torch.zeros_like(image)
    for axis in (-2, -1):
        line = padded.narrow(-3 - axis, REACH, image.shape[-3 - axis])
        one, two, middle, four, five = (line.narrow(axis, k, image.shape[axis]) for k in range(5))
        total += (6 * middle - 4 * (two + four) + (one + five)).abs()
    return total


def _bend(cells: Tensor) -> Tensor:
    """What the means of cells (B, H, W) are above the light in their middles: second differences over 24."""
    n = cells.shape[-1] - 2
    down = cells[:, :n] + cells[:, 2:] - 2 * cells[:, 1:-1]
    across = cells[:, :, :n] + cells[:, :, 2:] - 2 * cells[:, :, 1:-1]
    # the border's are those of its neighbours
    down = F.pad(down[:, None], (0, 0, 1, 1), mode="replicate")[:, 0]
    return (down + F.pad(across, (1, 1), mode="replicate")) / 24


@lru_cache
def _weights(n: int) -> tuple[tuple[float, ...], ...]:
    """Of the five pixels around for n points within one: Lagrange's, exact for polynomials of fourth degree."""
    nodes = np.arange(-REACH, REACH + 1)
    found = []
    for point in (np.arange(n) - (n - 1) / 2) / n:
        found.append(tuple(float(np.prod([(point - m) / (k - m) for m in nodes if m != k])) for k in nodes))
    return tuple(found)


def _inside(image: Tensor, at: _Pixels, n: int) -> Tensor:
    """An image (B, H, W) interpolated to n x n points of each pixel, (S, n·n)."""
    padded = _extended(image)
    width = padded.shape[-1]
    corner = at.row * (padded.shape[-2] * width) + at.i * width + at.j
    offset = torch.arange(2 * REACH + 1, device=corner.device)
    around = padded.flatten()[corner + (offset[:, None, None] * width + offset[:, None])]  # (5, 5, S)
    rows = [_weighed(around, w) for w in _weights(n)]
    points = [_weighed(row, w) for row in rows for w in _weights(n)]
    return torch.stack(points, 1)


def _weighed(values: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ w_k values[k]; a weight of one alone costs nothing."""
    if weights[REACH] == 1:
        return values[REACH]
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total.add(value, alpha=weight)
    return total


def _extended(image: Tensor) -> Tensor:
    """(B, H, W) by `REACH` pixels on all sides, along the parabola of the last three."""
    for axis in (-2, -1):
        n = image.shape[axis]
        first, last = ([image.narrow(axis, k, 1) for k in ks] for ks in ((0, 1, 2), (n - 1, n - 2, n - 3)))
        before, after = ([6 * a - 8 * b + 3 * c, 3 * a - 3 * b + c] for a, b, c in (first, last))
        image = torch.cat([*before, image, *reversed(after)], axis)
    return image


@lru_cache
def _up(n: int) -> Tensor:
    """(CELLS·n, n) float64: pixels to cells; at the border as `_extended`."""
    across = _extended(torch.eye(n, dtype=torch.float64)[None])[0, REACH:-REACH].T  # (n + 2 REACH, n)
    out = torch.zeros(n, CELLS, n, dtype=torch.float64)
    for c, weights in enumerate(_weights(CELLS)):
        for k, w in enumerate(weights):
            out[:, c] += w * across[k : k + n]
    return out.flatten(0, 1)


def _between(image: Tensor) -> Tensor:
    """Pixels (B, n, n) interpolated to cells."""
    up = _up(image.shape[-1]).to(image).expand(len(image), -1, -1)
    return torch.bmm(torch.bmm(up, image), up.mT)
