"""What real images have beside photon and read noise: correlation after drizzling, cosmic rays, bad pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from deeplense import recipe
from deeplense.sim.checks import check
from deeplense.sim.priors import Prior

STEP = 0.25  # pixels between the points that make up a track
LONGEST = 1000.0  # pixels


@dataclass(frozen=True)
class CosmicRays:
    """Straight tracks. rate: mean number an image. length: pixels. flux: electrons of a whole track."""

    rate: float
    length: Prior
    flux: Prior

    def draw(self, generator: Generator, n: int, height: int, width: int) -> NDArray[np.float32]:
        """(n, height, width) electrons; the part of a track that leaves the image is lost."""
        number = generator.poisson(self.rate, n)
        total = int(number.sum())
        row, column = generator.uniform(-0.5, height - 0.5, total), generator.uniform(-0.5, width - 0.5, total)
        angle = generator.uniform(0, np.pi, total)
        length, flux = self.length.sample(generator, (total,)), self.flux.sample(generator, (total,))
        points = np.maximum(1, np.ceil(length / STEP)).astype(int)
        track = np.repeat(np.arange(total), points)
        along = (np.arange(len(track)) - np.repeat(np.cumsum(points) - points, points) + 0.5) / points[track] - 0.5
        i = np.rint(row[track] + along * (length * np.sin(angle))[track]).astype(int)
        j = np.rint(column[track] + along * (length * np.cos(angle))[track]).astype(int)
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        image = np.repeat(np.arange(n), number)[track]
        out = np.zeros((n, height, width))
        np.add.at(out, (image[inside], i[inside], j[inside]), (flux / points)[track][inside])
        return out.astype(np.float32)


@dataclass(frozen=True)
class Detector:
    """correlation: length [pixels], see `correlate`. bad_pixels: share of them. Zero or None: off."""

    correlation: float = 0.0
    cosmic_rays: CosmicRays | None = None
    bad_pixels: float = 0.0

    @classmethod
    def of(cls, s: recipe.Simulation) -> Detector:
        """The recipe's.

        Raises:
            UserError: a prior that leaves its range, or noise that is not drawn "once".
        """
        rays = None
        if s.cosmic_rays is not None:
            c, where = s.cosmic_rays, "simulation.cosmic_rays"
            rays = CosmicRays(c.rate, *(Prior.parse(getattr(c, k), f"{where}.{k}") for k in ("length", "flux")))
            least = rays.flux.bounds[0]
            check(least >= 0, f"{where}.flux", f"reaches {least:g}; it must not be negative")
            low, high = rays.length.bounds
            check(0 <= low <= high <= LONGEST, f"{where}.length", f"must stay within 0 and {LONGEST:g} pixels")
        made = cls(s.correlated_noise, rays, s.bad_pixels)
        check(made == cls() or s.noise == "once", "simulation.noise", f"{s.noise} has no detector; set it to once")
        return made


NOTHING_MORE = Detector()


def correlate(noise: Tensor, length: float) -> Tensor:
    """White noise (..., H, W) made alike over `length` pixels: correlation exp(−r²/(2 length²)).

    A convolution with a Gaussian of σ = length/√2, Σ k = 1, as drizzling onto finer pixels does it (Fruchter & Hook
    2002; Casertano et al. 2000, appendix A): the noise of large areas stays, and that of a single pixel is smaller.
    Photon noise varies over the image; where it does so slowly, it becomes what drizzling makes of it.
    Around the border the image repeats, so that the variance is the same in every pixel.
    """
    power = torch.ones(noise.shape[-2:], dtype=noise.dtype, device=noise.device)
    for axis in (-2, -1):
        n = noise.shape[axis]
        offset = (torch.arange(n, dtype=torch.float64) + n // 2) % n - n // 2
        kernel = torch.exp(-((offset / length) ** 2))
        line = torch.fft.fft(kernel / kernel.sum()).real.to(noise)
        power = power * (line[:, None] if axis == -2 else line)
    made: Tensor = torch.fft.ifft2(torch.fft.fft2(noise) * power).real
    return made
