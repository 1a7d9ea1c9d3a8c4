"""Galaxies by the laws that surveys have measured: how many, how bright, how large, in what halo. Arrays of one shape.

Lengths in kpc, velocity dispersions in km/s, magnitudes AB, masses in Msun, H0 = 70 where a law depends on it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import gammainc, gammaincinv

from deeplense.lensing.cosmology import ARCSEC, comoving_distance, expansion2

Array = NDArray[np.float64]
C = 299792.458  # km/s

# Choi, Park & Vogeley 2007 (astro-ph/0611607): dn/dσ ∝ (σ/σ*)^(α−1) exp(−(σ/σ*)^β) of early-type galaxies
SIGMA_STAR, ALPHA, BETA = 161.0, 2.32, 2.67

# Bernardi et al. 2003 (astro-ph/0301626, table 1, r*): magnitude M, log10 of R_e [kpc] and V = log10 σ of early-type
# galaxies are jointly normal; galaxies were brighter by `EVOLUTION` magnitudes a unit of redshift
M_STAR, M_SPREAD, R_STAR, R_SPREAD, V_STAR, V_SPREAD = -21.15, 0.841, 0.45, 0.263, 2.20, 0.111
RM, VM, RV, EVOLUTION = -0.882, -0.780, 0.543, 0.85

# rest wavelength [micron] and AB magnitude less that in r of an old galaxy: u g r i z (Fukugita, Shimasaku & Ichikawa
# 1995), J H K (Mannucci et al. 2001), to a tenth of a magnitude
RED_WAVELENGTH = np.array([0.355, 0.477, 0.623, 0.763, 0.905, 1.25, 1.65, 2.17])
RED_COLOUR = np.array([2.60, 0.77, 0.0, -0.39, -0.66, -1.11, -1.30, -1.04])

# middle of a band [micron]
WAVELENGTH = {
    "VIS": 0.72,
    "F814W": 0.81,
    "F160W": 1.54,
    "F106": 1.06,
    "F129": 1.29,
    "F158": 1.58,
    "F115W": 1.15,
    "F150W": 1.50,
    "F277W": 2.78,
    "g": 0.48,
    "r": 0.62,
    "i": 0.75,
}


def velocity_dispersions(rng: Generator, n: int, low: float, high: float) -> Array:
    """σ of early-type galaxies, each weighed by its cross-section σ⁴, between low and high."""
    a = (ALPHA + 4) / BETA  # (σ/σ*)^β is then a gamma variate
    bottom, top = gammainc(a, (np.array([low, high]) / SIGMA_STAR) ** BETA)
    return np.asarray(SIGMA_STAR * gammaincinv(a, bottom + (top - bottom) * rng.random(n)) ** (1 / BETA))


def distance_ratio(z_lens: Array, z_source: Array, H0: float, Om0: float, w0: float = -1.0) -> Array:
    """D_ls/D_s in a flat universe; 0 where the source is not behind the lens."""
    near, far = (comoving_distance(z, H0, Om0, w0) for z in (z_lens, z_source))
    return np.asarray(np.maximum(1 - near / far, 0))


def einstein_radius(sigma: Array, ratio: Array) -> Array:
    """4π (σ/c)² D_ls/D_s [arcsec] of an isothermal lens."""
    return np.asarray(4 * np.pi * (sigma / C) ** 2 * ratio / ARCSEC)


def distance_modulus(z: Array, H0: float, Om0: float, w0: float = -1.0) -> Array:
    """m − M of a source whose spectrum is flat in f_ν: 5 log10(D_L/10 pc) − 2.5 log10(1 + z)."""
    luminosity = (1 + z) * comoving_distance(z, H0, Om0, w0)
    return np.asarray(5 * np.log10(luminosity) + 25 - 2.5 * np.log10(1 + z))


def early_type(rng: Generator, sigma: Array) -> tuple[Array, Array]:
    """Absolute r magnitude at z = 0 and R_e [kpc] of galaxies of this σ: the fundamental plane, with its scatter."""
    v = (np.log10(sigma) - V_STAR) / V_SPREAD
    m = VM * v + np.sqrt(1 - VM**2) * rng.standard_normal(v.shape)
    of_m, of_v = (RM - RV * VM) / (1 - VM**2), (RV - RM * VM) / (1 - VM**2)
    rest = np.sqrt(1 - RM * of_m - RV * of_v)
    r = of_m * m + of_v * v + rest * rng.standard_normal(v.shape)
    return M_STAR + M_SPREAD * m, 10 ** (R_STAR + R_SPREAD * r)


def early_type_magnitude(
    absolute: Array, z: Array, wavelength: float, H0: float, Om0: float, w0: float = -1.0
) -> Array:
    """Apparent magnitude at a wavelength [micron] of an old galaxy, fading since z."""
    colour = np.interp(np.log(wavelength / (1 + z)), np.log(RED_WAVELENGTH), RED_COLOUR)
    return np.asarray(absolute - EVOLUTION * z + colour + distance_modulus(z, H0, Om0, w0))


def log10_host_mass(sigma: Array, z: Array, Om0: float, w0: float = -1.0) -> Array:
    """log10 of M200 of the halo whose dark matter has the dispersion of the stars in its middle.

    σ = 1082.9 (h(z) M200/10¹⁵ M☉)^0.3361 (Evrard et al. 2008, astro-ph/0702241); stars move as the dark matter does
    (Zahid et al. 2018, 1804.04492).
    """
    h = 0.7 * np.sqrt(expansion2(z, Om0, w0))
    return np.asarray(15 + np.log10(sigma / 1082.9) / 0.3361 - np.log10(h))


def source_redshifts(rng: Generator, i: Array) -> Array:
    """Of galaxies of magnitude i: p(z) ∝ z² exp(−z/z0), z0 = 0.0417 i − 0.744 (LSST Science Book, 0912.0201, 3.7.2).

    Theirs is of galaxies brighter than i, and so a little nearer.
    """
    return np.asarray(rng.gamma(3.0, np.maximum(0.0417 * i - 0.744, 0.02)))


def star_forming_size(rng: Generator, i: Array, z: Array, H0: float, Om0: float, w0: float = -1.0) -> Array:
    """R_e [kpc], 6.9 (1 + z)^−1.2 10^(−0.4 · 0.27 (M + 21)), 0.2 dex of scatter (Shibuya et al. 2015, 1503.07481)."""
    absolute = i - distance_modulus(z, H0, Om0, w0)
    mean = np.log10(6.9) - 1.2 * np.log10(1 + z) - 0.4 * 0.27 * (absolute + 21)
    return np.asarray(10 ** (mean + 0.2 * rng.standard_normal(np.shape(z))))
