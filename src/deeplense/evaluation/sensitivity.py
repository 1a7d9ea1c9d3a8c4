"""Sensitivity map: the smallest subhalo that an image would betray, position by position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense.errors import UserError
from deeplense.evaluation.forward import SUBHALO, Forward, Subhalo
from deeplense.evaluation.information import smooth
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

Floats = NDArray[np.float64]
FIVE_SIGMA = 12.5  # Δ log L = ½·5² of one parameter
MASSES_A_DECADE = 3
BATCH = 1 << 20  # pixels of a batch of images
RANK = 1e-10  # singular values below it, relative to the largest, span nothing


def positions(world: World, grid_step: int) -> Floats:
    """(n,) coordinates [arcsec] of the map's columns and rows: corners of pixels, grid_step pixels apart, centred."""
    if not 1 <= grid_step < world.size:
        raise UserError(f"grid_step {grid_step} is not between 1 and {world.size - 1} pixels")
    corners = np.arange(0, world.size - 1, grid_step) + 0.5
    corners += (world.size - 2 - (corners[-1] - corners[0])) // 2
    return np.asarray((corners - (world.size - 1) / 2) * world.pixel_scale)


def sensitivity_map(
    world: World,
    scene: Scene,
    delta_log_likelihood: float = FIVE_SIGMA,
    mass_range: tuple[float, float] = (1e6, 1e10),
    grid_step: int = 4,
    nuisance: Sequence[str] | None = None,
    profile: str = "point_mass",
) -> Floats:
    """log10 of the smallest subhalo mass [M☉] that raises log L by the threshold, at each of `positions`.

    The data are the noiseless image with the subhalo in it (the median of Δ log L over noise, to first order); the
    model without it is fitted again. δμ is the full difference of two rendered images, not a derivative; the fit is
    linear: Δ log L = ½ δμᵀ C⁻¹ (1 − P) δμ, P the projector in the metric C⁻¹ on the derivatives by the nuisances. C is
    the smooth image's variance. So a subhalo that a *large* change of macro lens or source would imitate is called
    detectable, and the position is taken as known: no look-elsewhere penalty. Between masses, log Δ log L is linear in
    log mass, made monotone. Subhalos lie on pixel corners, as far from the sampled points as can be.

    Args:
        scene: of length 1; its own dark matter is taken out.
        nuisance: what is fitted again: all of macro lens and source when not given, () for all known.
        profile: key of `forward.SUBHALO_PROFILES`.

    Returns:
        (H', W'), y up; NaN where undetectable up to the largest mass, the smallest where that is detectable.
    """
    low, high = np.log10(mass_range)
    if not (low < high and delta_log_likelihood > 0):
        raise UserError("a sensitivity map needs a rising mass_range and a positive delta_log_likelihood")
    line = positions(world, grid_step)
    masses = np.linspace(low, high, max(2, round((high - low) * MASSES_A_DECADE) + 1))
    y, x, m = (torch.from_numpy(a.ravel()) for a in np.meshgrid(line, line, masses, indexing="ij"))
    gains = log_likelihood_gain(world, scene, m, x, y, nuisance, profile)
    return _threshold(gains.reshape(-1, len(masses)), masses, delta_log_likelihood).reshape(len(line), len(line))


def log_likelihood_gain(
    world: World,
    scene: Scene,
    log10_mass: Tensor,
    x: Tensor,
    y: Tensor,
    nuisance: Sequence[str] | None = None,
    profile: str = "point_mass",
) -> Floats:
    """Δ log L of each subhalo, (N,), as `sensitivity_map` defines it.

    Args:
        log10_mass, x, y: (N,) float64, positions in arcsec.
    """
    plain = Forward(world, smooth(scene))
    names = plain.names if nuisance is None else tuple(nuisance)
    mean = plain.render({})[0]
    sigma = plain.variance(mean).sqrt()
    basis = _basis(plain, names, sigma)
    seen = Forward(world, smooth(scene), Subhalo(0.0, 0.0, 0.0, profile))
    gains = []
    step = max(1, BATCH // world.size**2)
    for k in range(0, len(x), step):
        at = slice(k, k + step)
        change = seen.render(dict(zip(SUBHALO, (log10_mass[at], x[at], y[at]), strict=True))) - mean
        template = (change / sigma).flatten(1)
        gains.append(0.5 * (template.square().sum(1) - (template @ basis).square().sum(1)))
    return torch.cat(gains).clamp_min(0).numpy()


def _basis(plain: Forward, names: Sequence[str], sigma: Tensor) -> Tensor:
    """(pixels, rank): orthonormal whitened derivatives. A degenerate pair spans one direction, and needs no inverse."""
    if not names:
        return torch.zeros((sigma.numel(), 0), dtype=torch.float64)
    _, slopes = plain.derivatives(names)
    whitened = (slopes / sigma).flatten(1)
    whitened = whitened / whitened.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    basis, size, _ = torch.linalg.svd(whitened.T, full_matrices=False)
    kept: Tensor = basis[:, size > RANK * size[0]]
    return kept


def _threshold(gains: Floats, masses: Floats, threshold: float) -> Floats:
    """(N,) log10 mass at which (N, K) rising gains cross the threshold."""
    logs = np.log(np.maximum.accumulate(np.maximum(gains, np.finfo(np.float64).tiny), axis=1))
    above = logs >= np.log(threshold)
    at = np.clip(above.argmax(1), 1, None)
    rows = np.arange(len(gains))
    below, beyond = logs[rows, at - 1], logs[rows, at]
    share = (np.log(threshold) - below) / np.maximum(beyond - below, np.finfo(np.float64).tiny)
    crossing = masses[at - 1] + np.clip(share, 0, 1) * (masses[at] - masses[at - 1])
    return np.where(above.any(1), crossing, np.nan)
