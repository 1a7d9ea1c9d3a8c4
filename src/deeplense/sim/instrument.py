"""Instruments: cited constants that we own. Libraries change theirs; ours change only with a new citation.

To add one: one entry in `INSTRUMENTS`, with its source. The contract test runs over every entry.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deeplense.sim.detector import NOTHING_MORE, Detector


@dataclass(frozen=True)
class Instrument:
    """A camera and its survey. Counts are electrons, magnitudes AB, angles arcsec, times s.

    Attributes:
        zero_point: magnitude of one electron a second; None when sources are given in counts.
        exposure_time: of one exposure. n_exposures: how many are combined.
        sky_brightness: mag/arcsec². read_noise: electrons (rms) an exposure.
        background_rms: counts/s a pixel, in place of sky and read noise (toy instruments).
        psf_fwhm: of a Gaussian, cut at psf_truncation standard deviations; with psf_beta, of a Moffat profile.
        source: where the numbers come from.
        detector: what a recipe adds to the noise.
    """

    pixel_scale: float
    psf_fwhm: float
    psf_truncation: float
    exposure_time: float
    n_exposures: int
    source: str
    zero_point: float | None = None
    sky_brightness: float | None = None
    read_noise: float = 0.0
    background_rms: float | None = None
    bands: tuple[str, ...] = ("1",)
    psf_beta: float | None = None
    detector: Detector = NOTHING_MORE

    @property
    def total_exposure(self) -> float:
        """Seconds of all exposures together."""
        return self.exposure_time * self.n_exposures

    def counts(self, magnitude: Tensor) -> Tensor:
        """Electrons a second of a magnitude: 10^{−0.4 (m − ZP)}."""
        assert self.zero_point is not None, "checked when the world is built"
        return 10 ** (-0.4 * (magnitude - self.zero_point))

    def sky_rate(self, pixel_scale: float) -> float:
        """Electrons a second and pixel of the sky."""
        if self.sky_brightness is None or self.zero_point is None:
            return 0.0
        return float(10 ** (-0.4 * (self.sky_brightness - self.zero_point))) * pixel_scale**2

    def background_sigma(self, pixel_scale: float, exposure: float) -> float:
        """σ of the background [counts/s]: σ² = (n·RN² + t·sky)/t², or the toy's constant."""
        if self.background_rms is not None:
            return self.background_rms
        variance = self.n_exposures * self.read_noise**2 + exposure * self.sky_rate(pixel_scale)
        return float(variance**0.5) / exposure


# taken from secondary sources; the documents cited have yet to be opened and each number compared
UNVERIFIED = "UNVERIFIED against the documents: "
NIRCAM = UNVERIFIED + (
    "JWST NIRCam as in COSMOS-Web, 8 x 257 s (arXiv 2211.07865). Read noise: NIRCam Detector Performance in the JWST "
    "user documentation, of the difference of two reads, so conservative for a ramp. Zero point to 0.1 mag: 28.02 is "
    "for MJy/sr on pixels of 0.031 arcsec (NIRCam Absolute Flux Calibration, there; lenstronomy 1.14.2 takes it for "
    "electrons), made e-/s by PHOTMJSR about {photmjsr} and 2.05 e-/DN. Sky: zodiacal light of 0.2 MJy/sr "
    "(arXiv 2211.09890). PSF: NIRCam Point Spread Functions, there, as in lenstronomy 1.14.2"
)

INSTRUMENTS: dict[str, Instrument] = {
    "gaussian_toy": Instrument(
        pixel_scale=0.05,
        psf_fwhm=0.087,
        psf_truncation=3,
        exposure_time=1000.0,
        n_exposures=1,
        background_rms=0.01,
        source="DeepLenseSim (June 2022), Model I: arbitrary flux units; recipes draw the exposure from 10^U(3, 3.5)",
    ),
    "euclid_vis": Instrument(
        pixel_scale=0.101,
        psf_fwhm=0.16,
        psf_truncation=5,
        exposure_time=566.0,
        n_exposures=4,
        zero_point=25.72,
        sky_brightness=22.3,
        read_noise=4.2,
        bands=("VIS",),
        source="zero point and sky: arXiv 2405.13496 (p. 17, table 2); read noise: arXiv 2405.13493 (table 3); PSF: "
        'arXiv 2405.13501 (table 1); pixel 0.101" and 4 x 566 s: Euclid Wide Survey; as in lenstronomy 1.14.2',
    ),
    "euclid_vis_1_9_2": Instrument(
        pixel_scale=0.101,
        psf_fwhm=0.16,
        psf_truncation=5,
        exposure_time=565.0,
        n_exposures=4,
        zero_point=24.0,
        sky_brightness=22.35,
        read_noise=4.2,
        bands=("VIS",),
        source="the Euclid table of lenstronomy 1.9.2, frozen: what DeepLenseSim used. Superseded by euclid_vis",
    ),
    "hst_f160w": Instrument(
        pixel_scale=0.08,
        psf_fwhm=0.08,
        psf_truncation=5,
        exposure_time=5400.0,
        n_exposures=1,
        zero_point=25.96,
        sky_brightness=22.3,
        read_noise=4.0,
        bands=("F160W",),
        source='WFC3 F160W drizzled to 0.08": the table of lenstronomy 1.14.2 (zero point: WFC3 AB; sky 22.3; two '
        'orbits); PSF set to the drizzled pixel (undrizzled FWHM about 0.15", Windhorst et al. 2011)',
    ),
    "hst_acs_f814w": Instrument(
        pixel_scale=0.05,
        psf_fwhm=0.09,
        psf_truncation=5,
        exposure_time=507.0,
        n_exposures=4,
        zero_point=25.94,
        sky_brightness=21.83,
        read_noise=5.0,
        bands=("F814W",),
        source=UNVERIFIED
        + 'ACS/WFC as in COSMOS: one orbit, 2028 s in four exposures (arXiv astro-ph/0703095); PSF 0.09" and '
        'pixel 0.05" (arXiv astro-ph/0612306); zero point AB 25.94 (arXiv astro-ph/0507614, table 10); read noise '
        "5 e-: ACS instrument handbook, amplifiers at gain 2; sky: the F814W value of paltas (arXiv 2203.00690)",
    ),
    **{
        f"roman_{band.lower()}": Instrument(
            pixel_scale=0.11,
            psf_fwhm=fwhm,
            psf_truncation=5,
            exposure_time=107.0,
            n_exposures=6,
            zero_point=zero_point,
            sky_brightness=sky,
            read_noise=8.5,
            bands=(band,),
            source=UNVERIFIED
            + "Roman WFI, wide area survey, medium tier: 107 s, three dithers, two passes; zero point "
            "Roman-STScI-000825, table 3; PSF, read noise and minimum zodiacal light: roman.gsfc.nasa.gov, WFI "
            "technical page; as in lenstronomy 1.14.2",
        )
        for band, zero_point, sky, fwhm in (
            ("F106", 26.35, 22.99, 0.087),
            ("F129", 26.35, 22.99, 0.106),
            ("F158", 26.38, 23.10, 0.128),
        )
    },
    **{
        f"lsst_{band}": Instrument(
            pixel_scale=0.2,
            psf_fwhm=fwhm,
            psf_truncation=5,
            exposure_time=15.0,
            n_exposures=n,
            zero_point=zero_point,
            sky_brightness=sky,
            read_noise=10.0,
            bands=(band,),
            source=UNVERIFIED
            + "LSST after ten years: sky and zenith seeing arXiv 0805.2366 (table 2); zero point, read noise and "
            "number of 15 s exposures as in lenstronomy 1.14.2 (its provisional LSST table)",
        )
        for band, zero_point, n, sky, fwhm in (
            ("g", 28.30, 200, 22.26, 0.77),
            ("r", 28.13, 460, 21.2, 0.73),
            ("i", 27.79, 460, 20.48, 0.71),
        )
    },
    **{
        f"jwst_{band.lower()}": Instrument(
            pixel_scale=0.031,
            psf_fwhm=fwhm,
            psf_truncation=5,
            exposure_time=257.0,
            n_exposures=8,
            zero_point=zero_point,
            sky_brightness=22.2,
            read_noise=15.77,
            bands=(band,),
            source=NIRCAM.format(photmjsr=photmjsr),
        )
        for band, zero_point, photmjsr, fwhm in (("F115W", 27.6, 3.1, 0.04), ("F150W", 28.0, 2.1, 0.05))
    },
}
