"""Every instrument has sane numbers with a source, and the background of the table that it claims to be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deeplense.evaluation.info import info
from deeplense.sim.instrument import INSTRUMENTS, Instrument

# arcsec, zero point, exposure s x n, sky mag/arcsec², read noise e-, PSF FWHM arcsec, background σ e-/s, as printed
TABLE: dict[str, tuple[float, float, float, int, float, float, float, str]] = {
    "euclid_vis": (0.101, 25.72, 566, 4, 22.3, 4.2, 0.16, "0.0109"),
    "euclid_vis_1_9_2": (0.101, 24.0, 565, 4, 22.35, 4.2, 0.16, "0.0059"),
    "hst_f160w": (0.08, 25.96, 1350, 4, 22.3, 12.0, 0.17, "0.0068"),
    "hst_f160w_1_14_2": (0.08, 25.96, 5400, 1, 22.3, 4.0, 0.08, "0.0059"),
    "roman_f106": (0.11, 26.35, 107, 6, 22.96, 8.5, 0.087, "0.038"),
    "roman_f129": (0.11, 26.35, 107, 6, 22.99, 8.5, 0.106, "0.038"),
    "roman_f158": (0.11, 26.38, 107, 6, 23.11, 8.5, 0.128, "0.038"),
    "lsst_g": (0.2, 28.30, 15, 200, 22.26, 10.0, 0.77, "0.075"),
    "lsst_r": (0.2, 28.13, 15, 460, 21.2, 10.0, 0.73, "0.066"),
    "lsst_i": (0.2, 27.79, 15, 460, 20.48, 10.0, 0.71, "0.076"),
}


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_every_instrument_is_sane_and_says_where_its_numbers_come_from(name: str) -> None:
    i = INSTRUMENTS[name]
    assert any(word in i.source + i.unverified for word in ("arXiv", "lenstronomy", "DeepLenseSim", "doi", "handbook"))
    assert len(i.source) > 30
    assert 0.005 <= i.pixel_scale <= 1
    # a PSF narrower than half a pixel or wider than ten would be a slip of units
    assert 0.5 <= i.psf_fwhm / i.pixel_scale <= 10
    assert 3 <= i.psf_truncation <= 10
    assert i.n_exposures >= 1
    assert 10 <= i.exposure_time <= 1e5
    assert i.total_exposure == i.exposure_time * i.n_exposures
    assert i.bands
    if i.background_rms is None:
        assert i.zero_point is not None
        assert 20 < i.zero_point < 30
        assert i.sky_brightness is not None
        assert 19 < i.sky_brightness < 32
        assert 0 < i.read_noise < 20
    else:
        assert i.background_rms > 0
    assert 0 < i.background_sigma(i.pixel_scale, i.total_exposure) < 1


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_background_sigma_is_that_of_the_variance_written_out(name: str) -> None:
    i = INSTRUMENTS[name]
    for pixel, t in ((i.pixel_scale, i.total_exposure), (2 * i.pixel_scale, i.total_exposure / 3)):
        if i.background_rms is not None:
            assert i.background_sigma(pixel, t) == i.background_rms
            assert i.sky_rate(pixel) == 0
            continue
        assert i.sky_brightness is not None
        assert i.zero_point is not None
        sky = 10 ** ((i.zero_point - i.sky_brightness) / 2.5) * pixel * pixel  # e-/s a pixel
        share = 1 if i.detector_pixel is None else (pixel / i.detector_pixel) ** 2  # of a pixel of the detector
        electrons = math.sqrt(share * (i.n_exposures * i.read_noise**2 + i.dark_current * t) + sky * t)
        assert i.sky_rate(pixel) == pytest.approx(sky, rel=1e-12)
        assert i.background_sigma(pixel, t) == pytest.approx(electrons / t, rel=1e-12)


def test_what_is_unverified_makes_an_instrument_experimental_in_info(tmp_path: Path) -> None:
    assert "experimental" not in info("model_3")
    path = tmp_path / "jwst.yaml"
    path.write_text("{base: model_3, name: jwst, simulation: {instrument: jwst_f150w}}")
    assert "PHOTMJSR and gain" in info(path).split("experimental", 1)[1]


LIMITS = {  # wavelength [micron] and diameter of the mirror [m]
    "hst_f160w": (1.54, 2.4), "hst_acs_f814w": (0.80, 2.4), "euclid_vis": (0.72, 1.2),
    "roman_f106": (1.06, 2.4), "roman_f129": (1.29, 2.4), "roman_f158": (1.58, 2.4),
    "jwst_f115w": (1.15, 6.5), "jwst_f150w": (1.50, 6.5), "jwst_f277w": (2.78, 6.5),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_no_space_telescope_sees_sharper_than_its_mirror_allows(name: str) -> None:
    wavelength, diameter = LIMITS[name]
    assert INSTRUMENTS[name].psf_fwhm > 0.9 * wavelength * 1e-6 / diameter * 206265


def test_drizzled_images_have_the_detectors_share_of_dark_current_and_read_noise() -> None:
    """Two pixels a side of the image in each of the detector's: their sum has its variance."""
    i = replace(INSTRUMENTS["hst_f160w"], sky_brightness=None, detector_pixel=0.16)
    assert 4 * i.background_sigma(0.08, 1000.0) ** 2 == pytest.approx((4 * 12**2 + 48) / 1000**2)


@pytest.mark.parametrize("name", TABLE)
def test_numbers_are_those_of_the_published_table(name: str) -> None:
    i = INSTRUMENTS[name]
    pixel, zero_point, exposure, n, sky, read_noise, fwhm, sigma = TABLE[name]
    assert (i.pixel_scale, i.zero_point, i.exposure_time, i.n_exposures) == (pixel, zero_point, exposure, n)
    assert (i.sky_brightness, i.read_noise, i.psf_fwhm) == (sky, read_noise, fwhm)
    digits = len(sigma.partition(".")[2])
    assert f"{i.background_sigma(pixel, i.total_exposure):.{digits}f}" == sigma


@given(magnitude=st.floats(10, 30))
def test_counts_of_a_magnitude(magnitude: float) -> None:
    """Pogson: five magnitudes are a factor of 100, and the zero point gives one electron a second."""
    for i in INSTRUMENTS.values():
        if i.zero_point is None:
            continue
        m = torch.tensor([magnitude, magnitude + 5, i.zero_point], dtype=torch.float64)
        flux = i.counts(m)
        assert float(flux[0] / flux[1]) == pytest.approx(100, rel=1e-9)
        assert float(flux[2]) == pytest.approx(1, rel=1e-12)
        assert float(flux[0]) == pytest.approx(math.exp((i.zero_point - magnitude) * math.log(10) / 2.5), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("hst_acs_f814w", 27.0, 27.7),  # COSMOS reaches 27.2 (arXiv astro-ph/0703095)
        ("jwst_f115w", 27.5, 28.2),  # COSMOS-Web 27.5 to 28.2 over its bands (arXiv 2211.07865)
        ("jwst_f150w", 27.5, 28.2),
    ],
)
def test_depth_is_that_of_the_survey(name: str, low: float, high: float) -> None:
    """AB magnitude of 5 σ of the background in an aperture of 0.15 arcsec radius."""
    i = INSTRUMENTS[name]
    noise = i.background_sigma(i.pixel_scale, i.total_exposure) * math.sqrt(math.pi) * 0.15 / i.pixel_scale
    assert low < float(i.zero_point or 0) - 2.5 * math.log10(5 * noise) < high


def test_the_older_euclid_zero_point_changes_the_flux_by_4_88() -> None:
    m = torch.tensor([20.0], dtype=torch.float64)
    ratio = INSTRUMENTS["euclid_vis"].counts(m) / INSTRUMENTS["euclid_vis_1_9_2"].counts(m)
    assert f"{float(ratio):.2f}" == "4.88"


def test_constants_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        INSTRUMENTS["euclid_vis"].zero_point = 24.0  # type: ignore[misc]
    with pytest.raises(AssertionError):
        Instrument(0.1, 0.1, 3, 1.0, 1, "none").counts(torch.zeros(1))
