"""Images: render a scene → PSF → noise, once.

`render` is deterministic and differentiable; `add_noise` holds all the randomness of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deeplense import rng
from deeplense.sim import psf, quasar, surface
from deeplense.sim.detector import correlate
from deeplense.sim.instrument import Instrument
from deeplense.sim.poisson import poisson
from deeplense.sim.scene import Scene

PIXELS = 1 << 18  # of a chunk of images: temporaries stay in a core's cache


Sampling = int | Literal["adaptive"]


def render(
    scene: Scene,
    size: int,
    pixel_scale: float,
    instrument: Instrument | Sequence[Instrument],
    supersampling: Sampling = 1,
) -> Tensor:
    """Noiseless images in counts/s a pixel. Rays are shot once for all bands.

    Args:
        scene: its device and dtype are the image's.
        instrument: of each of the scene's bands; one alone stands for itself.
        supersampling: sub-pixels a side, or "adaptive", as many as the noise asks for (`surface.py`). The PSF acts on
            them, then they are averaged. The scene's own kernels, whose pixels are the image's, act on the averages.

    Returns:
        (B, C, size, size).
    """
    instruments = [instrument] if isinstance(instrument, Instrument) else instrument
    cells = surface.CELLS if supersampling == "adaptive" else supersampling
    step = max(1, PIXELS // (size * (1 if supersampling == "adaptive" else cells)) ** 2)
    # together, those alike are padded least; on the CPU, where a part of the scene stays
    parts, order = [], torch.argsort(scene.n_deflectors.cpu(), stable=True)
    for some in torch.split(order, step):
        few = scene[some]
        seen = []
        if supersampling == "adaptive":
            surfaces = surface.adaptive(few, size, pixel_scale, _noise(few, pixel_scale, instruments))
        else:
            surfaces = surface.uniform(few, size, pixel_scale, supersampling)
        for band, (bright, each) in enumerate(zip(surfaces, instruments, strict=True)):
            seen.append(_through(bright, few.band(band), each, pixel_scale, cells))
        drawn = torch.stack(seen, 1) * pixel_scale**2
        parts.append(drawn if few.quasar is None else drawn + _quasars(few, size, pixel_scale, instruments))
    images = torch.cat(parts)
    return images if bool((order.diff() > 0).all()) else images[torch.argsort(order)]


def _through(bright: Tensor, scene: Scene, instrument: Instrument, pixel_scale: float, cells: int) -> Tensor:
    """Sub-pixels, `cells` a side, seen through the PSF of a scene of one band."""
    if scene.psf is None:
        return _blur(bright, instrument, pixel_scale, cells)
    return psf.convolve(_bin(bright, cells), scene.psf)


def _quasars(scene: Scene, size: int, pixel_scale: float, instruments: Sequence[Instrument]) -> Tensor:
    """(B, C, H, W) counts/s a pixel of their images."""
    found = quasar.images_of(scene, size, pixel_scale)
    seen = []
    for k, each in enumerate(instruments):
        band = scene.band(k)
        assert band.quasar is not None, "all bands have one, or none"
        points = quasar.draw(found, band.quasar.params["amp"][:, 0], size, pixel_scale)
        seen.append(_through(points, band, each, pixel_scale, quasar.CELLS))
    return torch.stack(seen, 1)


def unblurred(scene: Scene, size: int, pixel_scale: float, supersampling: int = 1) -> Tensor:
    """The same before the PSF."""
    surfaces = surface.uniform(scene, size, pixel_scale, supersampling)
    return torch.stack([_bin(bright, supersampling) for bright in surfaces], 1) * pixel_scale**2


def _noise(scene: Scene, pixel_scale: float, instruments: Sequence[Instrument]) -> list[surface.Noise]:
    """Of each band."""
    found = []
    for band, instrument in enumerate(instruments):
        exposure = scene.band(band).exposure
        sky = [(instrument.background_sigma(pixel_scale, t) / pixel_scale**2) ** 2 for t in exposure.tolist()]
        photons = 1 / (exposure * pixel_scale**2)
        found.append(surface.Noise(torch.tensor(sky).to(exposure), photons))
    return found


def _bin(image: Tensor, factor: int) -> Tensor:
    return image if factor == 1 else F.avg_pool2d(image[:, None], factor)[:, 0]


def _blur(image: Tensor, instrument: Instrument, pixel_scale: float, supersampling: int) -> Tensor:
    """The instrument's PSF, then the mean of the sub-pixels; beyond the border the edge repeats (scipy's 'nearest').

    A Gaussian is separable, and shifted sums beat a convolution call on the CPU: its kernels are a few pixels wide.
    """
    if instrument.psf_beta is not None:
        kernel = psf.moffat(instrument.psf_fwhm / pixel_scale * supersampling, instrument.psf_beta)
        return _bin(psf.convolve(image, kernel[None]), supersampling)
    sigma = instrument.psf_fwhm / (2 * (2 * np.log(2)) ** 0.5) / pixel_scale * supersampling
    weights = _half_gaussian(float(sigma), instrument.psf_truncation)
    if supersampling > 1:
        lines = _blurred(weights, image.shape[-1], supersampling).to(image).expand(len(image), -1, -1)
        return torch.bmm(torch.bmm(lines, image), lines.mT)
    return _convolve_lines(image, weights)


def _convolve_lines(image: Tensor, weights: Sequence[float]) -> Tensor:
    radius, n = len(weights) - 1, image.shape[-1]
    for axis, pad in ((-1, (radius, radius, 0, 0)), (-2, (0, 0, radius, radius))):
        padded = F.pad(image[:, None], pad, mode="replicate")[:, 0]
        image = padded.narrow(axis, radius, n) * weights[0]
        for k in range(1, radius + 1):
            image = image.add(padded.narrow(axis, radius - k, n) + padded.narrow(axis, radius + k, n), alpha=weights[k])
    return image


@lru_cache(maxsize=32)
def _blurred(weights: tuple[float, ...], n: int, cells: int) -> Tensor:
    """(n/cells, n) float64: what a line of n sub-pixels becomes, blurred and averaged."""
    radius = len(weights) - 1
    both = torch.tensor([*weights[:0:-1], *weights], dtype=torch.float64)
    at = (torch.arange(n)[:, None] + torch.arange(-radius, radius + 1)).clamp(0, n - 1)
    blurred = torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, at, both.expand(n, -1).contiguous())
    return blurred.view(n // cells, cells, n).mean(1)


@lru_cache
def _half_gaussian(sigma: float, truncation: float) -> tuple[float, ...]:
    """Weights at 0, 1, ... sub-pixels, normalised over both sides."""
    weights = np.exp(-0.5 * (np.arange(int(truncation * sigma + 0.5) + 1) / sigma) ** 2)
    return tuple(float(w) for w in weights / (2 * weights.sum() - weights[0]))


def add_noise(
    image: Tensor,
    scene: Scene,
    instrument: Instrument | Sequence[Instrument],
    pixel_scale: float,
    noise: str,
    seed: int,
    stream: str,
) -> Tensor:
    """Images as the detector gives them.

    Args:
        image: (B, C, H, W) noiseless counts/s. noise: one of the keys of `NOISE`.
        instrument: of each of the scene's bands; one alone stands for itself.

    Returns:
        (B, C, H, W): counts/s, for "triple" counts. On the CPU each image and band has a generator of its own, so its
        noise depends on (seed, stream, index, band) alone; on other devices the first image's index seeds the batch.
    """
    if not isinstance(instrument, Instrument):
        streams = [stream if k == 0 else f"{stream}/band {k}" for k in range(len(instrument))]
        noisy = [
            add_noise(image[:, k : k + 1], scene.band(k), instrument[k], pixel_scale, noise, seed, name)
            for k, name in enumerate(streams)
        ]
        return torch.cat(noisy, 1)
    if noise == "none":
        return image
    if noise == "doubled":  # DeepLenseSim, Models II-III: adds the image to itself, never the noise
        return 2 * image
    if scene.subtracted:
        hidden = _hidden(scene, image, instrument, pixel_scale)
        kept = dataclasses.replace(scene, subtracted=[])
        return add_noise((image + hidden).clamp_min(0), kept, instrument, pixel_scale, noise, seed, stream) - hidden
    if image.device.type == "cpu":
        out = image.contiguous().numpy().copy()
        for row, (index, t) in enumerate(zip(scene.index.tolist(), scene.exposure.tolist(), strict=True)):
            generator = rng.generator(seed, f"{stream}/noise", index)
            out[row] = _expose(out[row], t, instrument, pixel_scale, noise == "triple", generator)
        return torch.from_numpy(out)
    return _expose_batch(image, scene, instrument, pixel_scale, noise == "triple", seed, stream)


NOISE = ("once", "none", "doubled", "triple")


def _hidden(scene: Scene, image: Tensor, instrument: Instrument, pixel_scale: float) -> Tensor:
    """The lens light that is taken away after the exposure, as images."""
    lone = dataclasses.replace(scene, mass=[], source=[], quasar=None, lens_light=scene.subtracted)
    return render(lone.to(image.device, image.dtype), image.shape[-1], pixel_scale, instrument, "adaptive").to(image)


def _expose(
    image: NDArray[np.float32],
    t: float,
    instrument: Instrument,
    pixel_scale: float,
    triple: bool,
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    # torch draws normals twice as fast as NumPy; Poisson numbers they draw alike
    seed = torch.Generator().manual_seed(int(generator.integers(2**62)))
    normal = torch.empty(image.shape).normal_(generator=seed).numpy()
    if instrument.background_rms is not None:
        sky, spread = 0.0, instrument.background_rms * t
    else:
        sky, spread = instrument.background_rate(pixel_scale) * t, instrument.read_sigma(pixel_scale)
    detector = instrument.detector
    rate = image * np.float32(t)
    normal *= np.float32(spread)
    rate += np.float32(sky)
    electrons = poisson(rate, generator)
    if detector.correlation:  # a photon's charge is spread over several pixels, as the sky's is
        normal += electrons - rate
        electrons = rate - np.float32(sky) + correlate(torch.from_numpy(normal), detector.correlation).numpy()
    else:
        normal -= np.float32(sky)
        electrons += normal
    if detector.cosmic_rays:
        electrons += detector.cosmic_rays.draw(generator, 1, *image.shape[-2:])
    if detector.bad_pixels:
        electrons[generator.random(image.shape) < detector.bad_pixels] = np.nan
    if triple:  # DeepLenseSim, Model I: the noisy image's counts are drawn once more
        return poisson(electrons.clip(0), generator)
    electrons /= np.float32(t)
    return electrons


def _expose_batch(
    image: Tensor,
    scene: Scene,
    instrument: Instrument,
    pixel_scale: float,
    triple: bool,
    seed: int,
    stream: str,
) -> Tensor:
    generator = rng.torch_generator(seed, f"{stream}/noise", int(scene.index[0]), device=image.device)
    t = scene.exposure[:, None, None, None]
    normal = torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
    if instrument.background_rms is not None:
        sky, spread = torch.zeros_like(t), instrument.background_rms * t
    else:
        sky, spread = (
            instrument.background_rate(pixel_scale) * t,
            instrument.read_sigma(pixel_scale) * torch.ones_like(t),
        )
    detector = instrument.detector
    image = image.clamp_min(0)  # what is interpolated, or comes from an FFT, can be below zero by a rounding
    rate = image * t + sky
    electrons = torch.poisson(rate, generator)
    if detector.correlation:
        electrons = rate - sky + correlate(electrons - rate + spread * normal, detector.correlation)
    else:
        electrons = electrons - sky + spread * normal
    if detector.cosmic_rays:
        rays = rng.generator(seed, f"{stream}/cosmic_rays", int(scene.index[0]))
        tracks = detector.cosmic_rays.draw(rays, len(image), *image.shape[-2:])
        electrons = electrons + torch.from_numpy(tracks)[:, None].to(image)
    if detector.bad_pixels:
        chance = torch.rand(image.shape, generator=generator, device=image.device)
        electrons = electrons.masked_fill(chance < detector.bad_pixels, torch.nan)
    return torch.poisson(electrons.clamp_min(0), generator) if triple else electrons / t
