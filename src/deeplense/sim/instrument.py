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


# what follows in a source is taken from secondary sources: the document itself has yet to be opened
UNVERIFIED = " UNVERIFIED against the documents: "
NIRCAM = (
    "JWST NIRCam as in COSMOS-Web. Compared with the JWST user documentation: pixel (NIRCam Detector Overview); 28.02 "
    "is the zero point of MJy/sr on pixels of 0.031 arcsec, -6.10 - 2.5 log10(PIXAR_SR) (NIRCam Absolute Flux "
    "Calibration and Zeropoints; lenstronomy 1.14.2 takes it for electrons), made e-/s by PHOTMJSR about {photmjsr} "
    "and 2.05 e-/DN, to 0.1 mag: the pre-launch table of STScI's Mirage gives {mirage} (detector A1, with 2.05 e-/DN)."
    + UNVERIFIED
    + "PHOTMJSR and gain; read noise (NIRCam Detector Performance, there), of the difference of two reads, so "
    "conservative for a ramp; sky, zodiacal light of 0.2 MJy/sr (arXiv 2211.09890); PSF as in lenstronomy 1.14.2; "
    "8 x 257 s (arXiv 2211.07865), all exposures of a visit, of which one filter may have four only"
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
        source="ACS/WFC as in COSMOS. Compared: 2028 s, one orbit (arXiv astro-ph/0703095), in four exposures (the "
        'survey\'s HST page); PSF 0.09" and pixel 0.05" (arXiv astro-ph/0612306); read noise about 5 e- (ACS '
        "Instrument Handbook, WFC ACCUM mode); sky as in paltas's configuration for arXiv 2203.00690, not a measured "
        "one." + UNVERIFIED + "zero point AB 25.94 (arXiv astro-ph/0507614, table 10; 25.937 in codes that cite it)",
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
            source='Roman WFI. Compared: pixel 0.11" (roman.gsfc.nasa.gov, WFI technical page); with the Roman '
            "technical information of 2024 (github.com/spacetelescope/roman-technical-information) PSF (filter "
            "parameters) and minimum zodiacal light of 0.277, 0.267, 0.244 e-/s a pixel in F106, F129, F158, with "
            "these zero points 22.96, 22.99, 23.11; read noise, there 5.6 e- in all (median) and 13.8 e- for the "
            "difference of two reads, so that 8.5 is conservative."
            + UNVERIFIED
            + "zero point (Roman-STScI-000825, table 3) and 107 s in three dithers and two passes (wide area survey, "
            "medium tier), as in lenstronomy 1.14.2",
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
            source="LSST after ten years, the provisional table of lenstronomy 1.14.2. Compared with SMTN-002 "
            "(throughputs v1.9): sky in g, r, i there 22.25, 21.2, 20.46; seeing here is its FWHM_geom, 0.82 FWHM_eff "
            "+ 0.05, of 0.87, 0.83, 0.80; read noise there below 8.8 e-, 9 with dark current. Older, and not its "
            "values: zero points, there 28.51, 28.36, 28.17; visits of 2 x 15 s, in arXiv 0805.2366 (table 1) 80, "
            "184, 184. The two nearly cancel: signal to noise against the sky is within 6 % of theirs",
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
            source=NIRCAM.format(photmjsr=photmjsr, mirage=mirage),
        )
        for band, zero_point, photmjsr, mirage, fwhm in (
            ("F115W", 27.6, 3.1, 27.59, 0.04),
            ("F150W", 28.0, 2.1, 27.90, 0.05),
        )
    },
}
