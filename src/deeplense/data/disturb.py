"""What may be worse in another image than in the training images: noise, seeing, background, cosmic rays, gaps.

Each changes raw images, before the pre-processing, and no truth. To add one: a function here of (images, strength,
generator), and a line in `DISTURBANCES` and in `recipe.Augment`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from deeplense import recipe
from deeplense.data.transforms import noise_of
from deeplense.sim.detector import CosmicRays
from deeplense.sim.priors import Prior

TRACK_LENGTH, TRACK_FLUX = {"log_uniform": [1.0, 30.0]}, {"log_uniform": [10.0, 1000.0]}  # pixels; units of the noise


def noise(images: Tensor, most: float, generator: Generator) -> Tensor:
    """White noise on top, up to `most` times the image's own; never less."""
    sigma = most * _uniform(images, generator) * noise_of(images)
    return images + sigma * torch.randn(images.shape, generator=generator).to(images)


def blur(images: Tensor, most: float, generator: Generator) -> Tensor:
    """A Gaussian of standard deviation up to `most` pixels, the same in all bands, by two passes."""
    reach = max(math.ceil(3 * most), 1)
    sigma = (most * _uniform(images, generator)).clamp_min(1e-3)[:, 0, 0]
    offset = torch.arange(-reach, reach + 1, device=images.device)
    # integrated over the pixel, so that a narrow one changes nothing
    edge = torch.erf((offset + 0.5) / (sigma * 2**0.5)) - torch.erf((offset - 0.5) / (sigma * 2**0.5))
    kernel = (edge / edge.sum(1, keepdim=True)).to(images)
    b = len(images)
    x = functional.pad(images, [reach] * 4, mode="replicate").transpose(0, 1)
    x = functional.conv2d(x, kernel[:, None, :, None], groups=b)
    return functional.conv2d(x, kernel[:, None, None, :], groups=b).transpose(0, 1)


def gradient(images: Tensor, most: float, generator: Generator) -> Tensor:
    """A tilted plane, that rises by up to `most` times the noise from the centre to the border, in any direction."""
    slope = most * _uniform(images, generator) * noise_of(images)
    angle = 2 * math.pi * _uniform(images, generator)
    y, x = (torch.linspace(-1, 1, n, device=images.device) for n in images.shape[2:])
    return images + slope * (angle.cos() * x + angle.sin() * y[:, None])


def cosmic_rays(images: Tensor, rate: float, generator: Generator) -> Tensor:
    """Tracks in one band of an image, Poisson many."""
    b, c, h, w = images.shape
    seed = int(torch.randint(2**62, (1,), generator=generator))
    draw = np.random.default_rng(seed)
    rays = CosmicRays(rate, Prior.parse(TRACK_LENGTH, "length"), Prior.parse(TRACK_FLUX, "flux"))
    tracks = torch.from_numpy(rays.draw(draw, b, h, w)).to(images)
    band = functional.one_hot(torch.from_numpy(draw.integers(c, size=b)), c).to(images)
    return images + band[:, :, None, None] * tracks[:, None] * noise_of(images)


def mask(images: Tensor, most: float, generator: Generator) -> Tensor:
    """A rectangle of up to a share of `most` of the image, of sides between 1:3 and 3:1, is not a number."""
    h, w = images.shape[2:]
    area, stretch = most * _uniform(images, generator), 3 ** (2 * _uniform(images, generator) - 1)
    height, width = ((area * s).sqrt().clamp(max=1) * n for s, n in ((stretch, h), (1 / stretch, w)))
    top, left = (_uniform(images, generator) * (n - side) for n, side in ((h, height), (w, width)))
    rows, columns = (torch.arange(n, device=images.device) + 0.5 for n in (h, w))
    hidden = ((rows > top) & (rows < top + height)).transpose(2, 3) & (columns > left) & (columns < left + width)
    return images.masked_fill(hidden, math.nan)


DISTURBANCES: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "blur": blur,
    "gradient": gradient,
    "cosmic_rays": cosmic_rays,
    "noise": noise,
    "mask": mask,
}


def disturbed(images: Tensor, config: recipe.Augment, generator: Generator) -> Tensor:
    """Raw images (B, C, H, W) with all that the recipe wants, in the order in which a telescope would do it."""
    for name, disturb in DISTURBANCES.items():
        if strength := getattr(config, name):
            images = disturb(images, strength, generator)
    return images


def _uniform(images: Tensor, generator: Generator) -> Tensor:
    """(B, 1, 1, 1) between 0 and 1."""
    return torch.rand((len(images), 1, 1, 1), generator=generator, device=generator.device).to(images)
