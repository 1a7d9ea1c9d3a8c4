"""Features of an image that a ruler could measure, for `audit`: what a network should not need to see.

Each group of `FEATURES` is a function of a `View`, the images of one channel with their sky and noise. Shapes are
measured on sky-subtracted images divided by their mean absolute flux, so that each group says one thing: brightness
belongs to `total_flux`, noise and sky to `noise_level`. Pixels that are not finite are left out; a feature that cannot
be measured is NaN. To add a group: write such a function, add it to `FEATURES` and a row to its test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RINGS = 16
WIDE_RINGS, ORDERS, SECTORS = 4, (1, 2, 3, 4), 8
BLOCKS = 8  # the blurred image is BLOCKS x BLOCKS
STEP = 0.5  # pixels, of the growth curve
SIGNIFICANT = 3.0  # standard deviations of the noise
MODULI = (2, 3, 4, 5, 6, 7, 8, 9, 10)
MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


@dataclass(frozen=True)
class View:
    """N one-channel images, prepared once for all groups.

    Attributes:
        image: (N, H, W) float64 less the sky; 0 where unknown. known: (N, H, W), 1 where the pixel is finite, else 0.
        noise: (N,) standard deviation, from second differences. sky: (N,) median of the border.
        border_noise: (N,) scaled median absolute deviation of the border.
        scale: (N,) mean absolute value of the known pixels of `image`.
    """

    image: Tensor
    known: Tensor
    noise: Tensor
    sky: Tensor
    border_noise: Tensor
    scale: Tensor


def view(images: Tensor) -> View:
    """Prepare (N, H, W) images."""
    x = torch.where(torch.isfinite(images), images, torch.nan).double()
    height, width = x.shape[-2:]
    frame = torch.ones(height, width, dtype=torch.bool)
    edge = max(1, min(height, width) // 16)
    frame[edge:-edge, edge:-edge] = False
    border = x[:, frame]
    sky = border.nanmedian(1).values
    border_noise = MAD * (border - sky[:, None]).abs().nanmedian(1).values
    sky = torch.where(sky.isnan(), x.flatten(1).nanmedian(1).values, sky)
    second = [x[:, :, :-2] - 2 * x[:, :, 1:-1] + x[:, :, 2:], x[:, :-2] - 2 * x[:, 1:-1] + x[:, 2:]]
    differences = torch.cat([d.flatten(1) for d in second], 1)
    noise = MAD / 6**0.5 * differences.abs().nanmedian(1).values
    known = x.isfinite().double()
    image = (x - sky[:, None, None]).nan_to_num(0.0)
    return View(image, known, noise, sky, border_noise, image.abs().sum((1, 2)) / known.sum((1, 2)))


def total_flux(v: View) -> Tensor:
    """(N, 1) sum over the image, sky included; an unknown pixel counts as the mean of the known ones."""
    n = v.known.sum((1, 2))
    mean = v.image.sum((1, 2)) / n + v.sky
    return (mean * v.image[0].numel())[:, None]


def half_light_radius(v: View) -> Tensor:
    """(N, 2) radius that holds half of the flux above the sky, about the image's centre and its centroid [pixels]."""
    y, x = _grid(v)
    weight = torch.where(v.image > SIGNIFICANT * v.noise[:, None, None], v.image, 0.0)
    light = weight.sum((1, 2)).clamp(min=1e-300)
    cy, cx = ((weight * axis).sum((1, 2)) / light for axis in (y, x))
    about_centroid = torch.hypot(y - cy[:, None, None], x - cx[:, None, None])
    return torch.stack([_half_light(v.image, r) for r in (torch.hypot(y, x).expand_as(v.image), about_centroid)], 1)


def radial_profile(v: View) -> Tensor:
    """(N, RINGS or fewer) mean in rings of equal width up to the nearest edge, over `scale`."""
    y, x = _grid(v)
    half = min(v.image.shape[1:]) / 2
    count = max(1, min(RINGS, int(half)))
    return _means(v, _rings(torch.hypot(y, x), half / count, count)) / v.scale[:, None]


def azimuthal_profile(v: View) -> Tensor:
    """(N, WIDE_RINGS * 4 + SECTORS) Fourier amplitudes m = 1..4 in wide rings, and means of sectors, over `scale`."""
    y, x = _grid(v)
    r, phi = torch.hypot(y, x), torch.atan2(y, x)
    half = min(v.image.shape[1:]) / 2
    ring = _rings(r, half / WIDE_RINGS, WIDE_RINGS)
    flat, known = v.image.flatten(1), v.known.flatten(1) @ ring
    columns = []
    for m in ORDERS:
        wave = [(torch.cos(m * phi), torch.sin(m * phi))[k].reshape(-1, 1) * ring for k in (0, 1)]
        columns.append(2 * torch.hypot(flat @ wave[0], flat @ wave[1]) / known)
    number = ((phi + torch.pi) / (2 * torch.pi) * SECTORS).long() % SECTORS
    sector = torch.nn.functional.one_hot(number.reshape(-1), SECTORS).double() * (r.reshape(-1, 1) < half)
    return torch.cat([*columns, _means(v, sector)], 1) / v.scale[:, None]


def blurred(v: View) -> Tensor:
    """(N, BLOCKS²) area means of the image cut into BLOCKS x BLOCKS, over `scale`; row by row from y = 0."""
    height, width = v.image.shape[1:]
    shape = (min(BLOCKS, height), min(BLOCKS, width))
    mean, share = (torch.nn.functional.adaptive_avg_pool2d(t[:, None], shape).flatten(1) for t in (v.image, v.known))
    return mean / share / v.scale[:, None]


def einstein_radius(v: View) -> Tensor:
    """(N, 3) radius [pixels] where the radial profile peaks, where the flux per ring peaks, and the flux-weighted mean.

    The flux of a ring is its mean times its radius: a lens galaxy in the middle counts for less there. The mean is
    over pixels `SIGNIFICANT` above the noise.
    """
    y, x = _grid(v)
    r = torch.hypot(y, x)
    count = max(1, min(v.image.shape[1:]) // 2)
    ring = _rings(r, 1.0, count)
    radius = (r.reshape(1, -1) @ ring / ring.sum(0)).nan_to_num(0.5)[0]
    profile = _means(v, ring)
    weight = torch.where(v.image > SIGNIFICANT * v.noise[:, None, None], v.image, 0.0)
    mean = (weight * r).sum((1, 2)) / weight.sum((1, 2))
    return torch.stack([_peak(radius, profile), _peak(radius, profile * radius), mean], 1)


def noise_level(v: View) -> Tensor:
    """(N, 3) noise from second differences, sky (median of the border), noise of the border; in the image's unit."""
    return torch.stack([v.noise, v.sky, v.border_noise], 1)


FEATURES: dict[str, Callable[[View], Tensor]] = {
    "total_flux": total_flux,
    "half_light_radius": half_light_radius,
    "radial_profile": radial_profile,
    "azimuthal_profile": azimuthal_profile,
    "blurred": blurred,
    "einstein_radius": einstein_radius,
    "noise_level": noise_level,
}


def measure(images: Tensor) -> dict[str, Floats]:
    """Every group of `FEATURES` on (N, C, H, W) images: (N, C * k) float64, channel by channel."""
    n, channels = images.shape[:2]
    v = view(images.flatten(0, 1))
    return {
        name: feature(v).reshape(n, -1).numpy() if channels else np.empty((n, 0)) for name, feature in FEATURES.items()
    }


def file_order(position: Ints, ids: Sequence[str]) -> Floats:
    """(N, 2 * (1 + len(MODULI))) position in the split and the id's trailing integer, each with its remainders.

    An id without a trailing integer gives NaN.
    """
    trailing = [re.search(r"(\d{1,15})\D*$", i) for i in ids]
    number = np.array([float(t[1]) if t else np.nan for t in trailing])
    columns = [column for x in (position.astype(float), number) for column in (x, *(x % m for m in MODULI))]
    return np.stack(columns, 1)


def _grid(v: View) -> tuple[Tensor, Tensor]:
    """Centred coordinates y, x (H, W) [pixels]."""
    y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in v.image.shape[1:])
    ys, xs = torch.meshgrid(y, x, indexing="ij")
    return ys, xs


def _rings(r: Tensor, width: float, count: int) -> Tensor:
    """(H * W, count) membership of each pixel in rings of equal width."""
    number = (r / width).long().reshape(-1).clamp(max=count)
    return torch.nn.functional.one_hot(number, count + 1)[:, :count].double()


def _means(v: View, sets: Tensor) -> Tensor:
    """(N, K) mean of the known pixels in each of K sets; NaN where there is none."""
    return v.image.flatten(1) @ sets / (v.known.flatten(1) @ sets)


def _half_light(image: Tensor, r: Tensor) -> Tensor:
    """(N,) radius where the growth curve first passes half; NaN without flux."""
    number = (r / STEP).long().flatten(1)
    growth = torch.zeros(len(image), int(number.max()) + 2, dtype=torch.float64)
    growth.scatter_add_(1, number + 1, image.flatten(1))  # column k: flux within k * STEP
    growth = growth.cumsum(1)
    half = growth[:, -1:] / 2
    after = (growth >= half).double().argmax(1, keepdim=True).clamp(min=1)
    low, high = growth.gather(1, after - 1), growth.gather(1, after)
    found = STEP * (after - 1 + (half - low) / (high - low))
    return torch.where(half > 0, found, torch.nan)[:, 0]


def _peak(radius: Tensor, profile: Tensor) -> Tensor:
    """(N,) place of the highest ring, refined by a parabola through it and its neighbours."""
    profile = profile.nan_to_num(-torch.inf)
    top = profile.argmax(1, keepdim=True)
    inner = top.clamp(1, max(profile.shape[1] - 2, 1))
    if profile.shape[1] < 3:
        return radius[top[:, 0]]
    left, middle, right = (profile.gather(1, inner + k) for k in (-1, 0, 1))
    shift = ((left - right) / (2 * (left - 2 * middle + right))).nan_to_num(0.0).clamp(-0.5, 0.5)
    refined = radius[inner] + torch.where(top == inner, shift, 0.0) + (top - inner)
    return refined[:, 0]
