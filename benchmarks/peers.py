"""Peers: how DeepLenseSim (June 2022) drives lenstronomy, written anew from its description, for comparison.

Its pyHalo call (one realisation an image, never used) is left out: it does not install, and would only slow it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from astropy import units
from astropy.constants import G, M_sun, c
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.SimulationAPI.sim_api import SimAPI
from lenstronomy.Util import image_util

CLASSES = ("no_sub", "cdm", "axion")
EUCLID_1_9_2 = {
    "read_noise": 4.2, "pixel_scale": 0.101, "ccd_gain": 3.1, "exposure_time": 565.0, "sky_brightness": 22.35,
    "magnitude_zero_point": 24.0, "num_exposures": 4, "seeing": 0.16, "psf_type": "GAUSSIAN",
}  # fmt: skip


def einstein_radius(mass: Any) -> Any:
    """Its `mass_to_radius`: a cosmology made anew, luminosity distances, D_ls = D_s − D_l."""
    cosmology = FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05)
    near, far = (cosmology.luminosity_distance(z).to(units.m) for z in (0.5, 1.0))
    return (np.sqrt(4 * G * mass * M_sun / c**2 * (far - near) / (near * far)) * 206265).value


@lru_cache
def _unit_radius() -> float:
    return float(einstein_radius(1.0))


def lenses(kind: str, rng: np.random.Generator, cached: bool = False) -> tuple[list[str], list[dict[str, float]]]:
    """Lens models and their parameters of one image; `cached` computes the distances once."""
    radius = (lambda m: _unit_radius() * np.sqrt(m)) if cached else einstein_radius
    names = ["SIE", "SHEAR"]
    kwargs = [{"theta_E": radius(1e12), "e1": 0.1, "e2": 0.0, "center_x": 0.0, "center_y": 0.0}]
    kwargs.append({"gamma1": 0.05, "gamma2": 0.0})
    if kind == "cdm":
        rng.poisson(25)
        low, high = 1e6**0.1, 1e10**0.1
        masses = (low + (high - low) * rng.uniform(size=25)) ** 10.0
        for theta in radius(masses):
            r, angle = rng.uniform(0.25, 2.0), rng.uniform(0, 2 * np.pi)
            kwargs.append({"theta_E": theta, "center_x": r * np.sin(angle), "center_y": r * np.cos(angle)})
    elif kind == "axion":
        half = 0.06e-22 / (2 * 10 ** rng.uniform(-24, -22))
        angle = 2 * np.pi * rng.random()
        thetas = radius(3e10 / 100 * np.ones(100))
        for theta, along in zip(thetas, np.linspace(-half, half, 100), strict=True):
            kwargs.append({"theta_E": theta, "center_x": along * np.cos(angle), "center_y": along * np.sin(angle)})
    return names + ["POINT_MASS"] * (len(kwargs) - 2), kwargs


def source(rng: np.random.Generator, **brightness: float) -> list[dict[str, float]]:
    """Its Sérsic source."""
    x, y = rng.uniform(-0.35, 0.35, 2)
    return [{**brightness, "R_sersic": 0.25, "n_sersic": 1, "e1": -0.1, "e2": 0.1, "center_x": x, "center_y": y}]


def model_1(kind: str, rng: np.random.Generator, cached: bool = False) -> np.ndarray:
    """One noisy image of Model I, (150, 150) int64."""
    names, kwargs = lenses(kind, rng, cached)
    exposure = 10 ** rng.uniform(3, 3.5)
    start = -74.5 * 0.05
    data = ImageData(np.zeros((150, 150)), background_rms=0.01, exposure_time=exposure, ra_at_xy_0=start,
                     dec_at_xy_0=start, transform_pix2angle=np.eye(2) * 0.05)  # fmt: skip
    psf = PSF(psf_type="GAUSSIAN", fwhm=0.087, pixel_size=0.05, truncation=3)
    model = ImageModel(data, psf, LensModel(names), LightModel(["SERSIC_ELLIPSE"]),
                       kwargs_numerics={"supersampling_factor": 1, "supersampling_convolution": False})  # fmt: skip
    clean = model.image(kwargs, source(rng, amp=20), kwargs_lens_light=None, kwargs_ps=None)
    np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002  lenstronomy draws its noise from the global generator
    noisy = clean + image_util.add_poisson(clean, exp_time=exposure) + image_util.add_background(clean, sigma_bkd=0.01)
    return rng.poisson((exposure * noisy).clip(min=0))


def model_2(kind: str, rng: np.random.Generator, cached: bool = True) -> np.ndarray:
    """One image of Model II, (64, 64) float64: twice the noiseless image, as its code returns it."""
    names, kwargs = lenses(kind, rng, cached)
    physical = {
        "lens_model_list": names, "lens_redshift_list": [0.5] * len(names), "z_source": 1.0,
        "source_light_model_list": ["SERSIC_ELLIPSE"], "source_redshift_list": [1.0],
        "cosmo": FlatLambdaCDM(H0=69.7, Om0=0.2814), "z_source_convention": 2.5,
    }  # fmt: skip
    sim = SimAPI(64, EUCLID_1_9_2, physical)
    model = sim.image_model_class({"point_source_supersampling_factor": 1})
    _, amplitudes, _ = sim.magnitude2amplitude(None, source(rng, magnitude=20))
    return 2 * model.image(kwargs, amplitudes, None)
