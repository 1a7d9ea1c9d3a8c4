"""Instruments: cited constants that we own. Libraries change theirs; ours change only with a new citation.

To add one: one entry in `INSTRUMENTS`, with its source. The contract test runs over every entry.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deeplense.lensing.cosmology import ARCSEC
from deeplense.sim.detector import NOTHING_MORE, Detector

AB_JANSKY = 3631.0  # of magnitude 0


@dataclass(frozen=True)
class Instrument:
    """A camera and its survey. Counts are electrons, magnitudes AB, angles arcsec, times s.

    Attributes:
        zero_point: magnitude of one electron a second; None when sources are given in counts.
        exposure_time: of one exposure. n_exposures: how many are combined.
        sky_brightness: mag/arcsec². read_noise: electrons (rms) an exposure. dark_current: electrons/s. Both are of a
            pixel of the detector.
        detector_pixel: arcsec, where images are drizzled onto others; None: the image's pixels, whatever their size.
        background_rms: counts/s a pixel, in place of sky and read noise (toy instruments).
        psf_fwhm: of a Gaussian, cut at psf_truncation standard deviations; with psf_beta, of a Moffat profile. The
            image's pixels, over which light is averaged, come on top; optics, and a detector's pixels that are
            drizzled, are in it.
        source: where the numbers come from. unverified: which of them are from secondary sources, for the document
            itself has yet to be opened; not empty: the instrument is experimental.
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
    dark_current: float = 0.0
    detector_pixel: float | None = None
    background_rms: float | None = None
    bands: tuple[str, ...] = ("1",)
    psf_beta: float | None = None
    unverified: str = ""
    detector: Detector = NOTHING_MORE

    @property
    def total_exposure(self) -> float:
        """Seconds of all exposures together."""
        return self.exposure_time * self.n_exposures

    def counts(self, magnitude: Tensor) -> Tensor:
        """Electrons a second of a magnitude: 10^{−0.4 (m − ZP)}."""
        assert self.zero_point is not None, "checked when the world is built"
        return 10 ** (-0.4 * (magnitude - self.zero_point))

    def megajanskys(self, pixel_scale: float) -> float:
        """MJy/sr of one electron a second and pixel."""
        assert self.zero_point is not None, "checked when the world is built"
        return float(10 ** (-0.4 * self.zero_point)) * AB_JANSKY * 1e-6 / (pixel_scale * ARCSEC) ** 2

    def sky_rate(self, pixel_scale: float) -> float:
        """Electrons a second and pixel of the sky."""
        if self.sky_brightness is None or self.zero_point is None:
            return 0.0
        return float(10 ** (-0.4 * (self.sky_brightness - self.zero_point))) * pixel_scale**2

    def background_rate(self, pixel_scale: float) -> float:
        """Electrons a second and pixel of sky and dark current."""
        return self.sky_rate(pixel_scale) + self.dark_current * self._detector_pixels(pixel_scale)

    def read_sigma(self, pixel_scale: float) -> float:
        """Electrons (rms) a pixel of all read-outs."""
        return float(self.read_noise * (self.n_exposures * self._detector_pixels(pixel_scale)) ** 0.5)

    def background_sigma(self, pixel_scale: float, exposure: float) -> float:
        """σ of the background [counts/s]: σ² = (n·RN² + t·(sky + dark))/t², or the toy's constant.

        Of noise that is white; what drizzling makes of it is in `Detector.correlation`.
        """
        if self.background_rms is not None:
            return self.background_rms
        variance = self.read_sigma(pixel_scale) ** 2 + exposure * self.background_rate(pixel_scale)
        return float(variance**0.5) / exposure

    def _detector_pixels(self, pixel_scale: float) -> float:
        """How many pixels of the detector fill one of the image."""
        return 1.0 if self.detector_pixel is None else (pixel_scale / self.detector_pixel) ** 2


NIRCAM = (
    "JWST NIRCam as in COSMOS-Web. Compared with the JWST user documentation: pixel (NIRCam Detector Overview); 28.02 "
    "is the zero point of MJy/sr on pixels of 0.031 arcsec, -6.10 - 2.5 log10(PIXAR_SR) (NIRCam Absolute Flux "
    "Calibration and Zeropoints; lenstronomy 1.14.2 takes it for electrons), made e-/s by PHOTMJSR about {photmjsr} "
    "and 2.05 e-/DN, to 0.1 mag: the pre-launch table of STScI's Mirage gives {mirage} (detector A1, with 2.05 e-/DN)"
)
NIRCAM_LONG = (
    "JWST NIRCam's long wavelengths as in COSMOS-Web, pixels of 0.063\" drizzled onto those of the short ones; read "
    "noise, dark current and gain as in NIRCam Detector Performance (JWST user documentation): 13.25 e-, 0.034 e-/s, "
    '1.82 e-/DN; PSF 0.092" as in lenstronomy 1.14.2, whose 26.49 is the zero point of MJy/sr'
)
NIRCAM_UNVERIFIED = (
    "PHOTMJSR and gain; read noise (NIRCam Detector Performance, there), of the difference of two reads, so "
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
        psf_fwhm=0.17,
        psf_truncation=5,
        exposure_time=1350.0,
        n_exposures=4,
        zero_point=25.96,
        sky_brightness=22.3,
        read_noise=12.0,
        dark_current=0.048,
        detector_pixel=0.128,
        bands=("F160W",),
        source='WFC3 F160W drizzled from 0.128" to 0.08". WFC3 Instrument Handbook: FWHM 0.151" at 1.6 micron before '
        "pixelation, well approximated by a Gaussian (table 7.5); read noise 12 e- of a ramp of 16 reads, dark current "
        "0.048 e-/s (chapters 9 and 5). The detector's pixels and drizzling broaden it: stars of 0.18 arcsec in the "
        "image are 0.17 before its pixels, between the optics alone, 0.16, and the second moments of optics, pixel "
        "and drops of 0.8 pixel added, 0.195. Zero point, sky and 5400 s, two orbits: the table of lenstronomy 1.14.2, "
        "here in four exposures",
    ),
    "hst_f160w_1_14_2": Instrument(
        pixel_scale=0.08,
        psf_fwhm=0.08,
        psf_truncation=5,
        exposure_time=5400.0,
        n_exposures=1,
        zero_point=25.96,
        sky_brightness=22.3,
        read_noise=4.0,
        bands=("F160W",),
        source="the HST table of lenstronomy 1.14.2, frozen, with a PSF of one drizzled pixel, below the diffraction "
        "limit: what legacy/model_3 was made with. Superseded by hst_f160w",
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
        "Instrument Handbook, WFC ACCUM mode); sky as in paltas's configuration for arXiv 2203.00690, not measured",
        unverified="zero point AB 25.94 (arXiv astro-ph/0507614, table 10; 25.937 in codes that cite it)",
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
            "technical information of 2024 (github.com/spacetelescope/roman-technical-information) PSF (of the optics, "
            "8 times oversampled, with jitter: summary of PSF statistics) and minimum zodiacal light of 0.277, 0.267, "
            "0.244 e-/s a pixel in F106, F129, F158, with these zero points 22.96, 22.99, 23.11; read noise, there 5.6 "
            "e- in all (median) and 13.8 e- for the difference of two reads, so that 8.5 is conservative; zero points "
            "with the means of its 18 detectors as mejiro's data file has them: 26.35, 26.35, 26.37, from detector to "
            "detector 0.04",
            unverified="107 s in three dithers and two passes (wide area, medium tier), as in lenstronomy 1.14.2",
        )
        for band, zero_point, sky, fwhm in (
            ("F106", 26.35, 22.96, 0.087),
            ("F129", 26.35, 22.99, 0.106),
            ("F158", 26.38, 23.11, 0.128),
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
            unverified=NIRCAM_UNVERIFIED,
        )
        for band, zero_point, photmjsr, mirage, fwhm in (
            ("F115W", 27.6, 3.1, 27.59, 0.04),
            ("F150W", 28.0, 2.1, 27.90, 0.05),
        )
    },
    "jwst_f277w": Instrument(
        pixel_scale=0.031,
        psf_fwhm=0.092,
        psf_truncation=5,
        exposure_time=257.0,
        n_exposures=8,
        zero_point=28.1,
        sky_brightness=22.8,
        read_noise=13.25,
        dark_current=0.034,
        detector_pixel=0.063,
        bands=("F277W",),
        source=NIRCAM_LONG,
        unverified="zero point, of PHOTMJSR about 0.4, to 0.15 mag; sky, zodiacal light of 0.12 MJy/sr, as remembered; "
        "read noise is of the difference of two reads, so conservative for a ramp; drizzling does not widen the PSF",
    ),
}
