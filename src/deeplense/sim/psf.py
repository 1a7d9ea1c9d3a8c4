"""Point spread functions beside the Gaussian of `image.py`: Moffat's, and kernels measured or computed elsewhere."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from deeplense import config
from deeplense.errors import UserError
from deeplense.sim.files import File, find_files, read_pictures
from deeplense.sim.instrument import Instrument

WHERE = "simulation.psf"
MOFFAT_RADIUS = 5  # FWHM at which its wings are cut: for beta 2.5 beyond them lies half a percent of the flux
NARROWEST, WIDEST = 1e-3, 100.0  # FWHM [arcsec]
WIDEST_PIXELS = 200  # the same in pixels of the image; a Moffat kernel has ten times as many a side
MOST = 1 << 30  # bytes of kernels in memory
KINDS = ("gaussian", "moffat", "kernels")


def choose(instrument: Instrument, spec: dict[str, Any] | None, where: str = WHERE) -> tuple[Instrument, Tensor | None]:
    """The instrument with the recipe's PSF, and the kernels (M, K, K) to draw from where it is a set.

    Args:
        where: the key of the recipe, for errors.

    Raises:
        UserError: an unknown kind, numbers that make no sense, or bad kernels.
    """
    if spec is None:
        return instrument, None
    if len(spec) != 1:
        raise UserError(f"{where}: give one of {', '.join(KINDS)}, not {list(spec)}")
    ((kind, value),) = spec.items()
    if kind not in KINDS:
        raise UserError(f"{where}: no PSF '{kind}'; {config.nearest(str(kind), KINDS)}")
    if kind == "kernels":
        return instrument, read_kernels(str(value), where)
    numbers = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in numbers):
        raise UserError(f"{where}: {kind} takes numbers, not {value!r}")
    if len(numbers) != (1 if kind == "gaussian" else 2):
        raise UserError(f"{where}: write {{gaussian: fwhm}} or {{moffat: [fwhm, beta]}}, not {value!r}")
    if not NARROWEST <= numbers[0] <= WIDEST:
        raise UserError(f"{where}: the FWHM {numbers[0]:g} must lie in [{NARROWEST:g}, {WIDEST:g}] arcsec")
    if kind == "gaussian":
        return dataclasses.replace(instrument, psf_fwhm=float(numbers[0]), psf_beta=None), None
    if not 1 < numbers[1] <= 100:
        raise UserError(f"{where}: beta {numbers[1]:g} must be above 1, or the flux has no end, and 100 at most")
    return dataclasses.replace(instrument, psf_fwhm=float(numbers[0]), psf_beta=float(numbers[1])), None


def read_kernels(path: str, where: str = WHERE) -> Tensor:
    """(M, K, K) float64 kernels of unit sum, centred in the largest one's size. Their pixels are the image's.

    Raises:
        UserError: nothing there, or a kernel that is damaged, not finite, even, oblong, or of no positive sum.
    """
    return _read_kernels(find_files(path, where), where)


@lru_cache(maxsize=8)
def _read_kernels(files: tuple[File, ...], where: str) -> Tensor:
    found: list[NDArray[np.float64]] = []
    widest = 0
    for name, kernel in read_pictures(files, where):
        height, width = kernel.shape
        widest = max(widest, height)
        if (len(found) + 1) * widest**2 * kernel.itemsize > MOST:
            raise UserError(f"{where}: {name}: more than {MOST / 1e9:.0f} GB of kernels in memory; choose fewer")
        if height != width or height % 2 == 0:
            raise UserError(f"{where}: {name}: {height} x {width} pixels; a kernel is square with an odd side")
        if not kernel.sum() > 0:
            raise UserError(f"{where}: {name}: its sum is {kernel.sum():g}; it must be positive")
        found.append(kernel / kernel.sum())
    return torch.from_numpy(np.stack([np.pad(k, (widest - len(k)) // 2) for k in found]))


@lru_cache
def moffat(fwhm: float, beta: float) -> Tensor:
    """(K, K) float64 of unit sum, I ∝ (1 + r²/α²)^−β, FWHM = 2α √(2^{1/β} − 1) (Moffat 1969); fwhm in pixels."""
    alpha = fwhm / (2 * (2 ** (1 / beta) - 1) ** 0.5)
    radius = max(1, round(MOFFAT_RADIUS * fwhm))
    line = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel: Tensor = (1 + (line[:, None] ** 2 + line**2) / alpha**2) ** -beta
    return kernel / kernel.sum()


def convolve(image: Tensor, kernels: Tensor) -> Tensor:
    """Each image with its kernel, by FFT; beyond the border the edge repeats, as for the Gaussian.

    Args:
        image: (B, H, W). kernels: (B, K, K) or (1, K, K), K odd.
    """
    radius = kernels.shape[-1] // 2
    padded = F.pad(image[:, None], (radius,) * 4, mode="replicate")[:, 0]
    size = [next_fast_len(n) for n in padded.shape[-2:]]  # what wraps around falls on the padding
    product = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernels.to(image), s=size)
    full: Tensor = torch.fft.irfft2(product, s=size)
    return full[:, 2 * radius : 2 * radius + image.shape[-2], 2 * radius : 2 * radius + image.shape[-1]]
