"""The bands of an image: instrument, PSF and exposure time of each channel."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from torch import Tensor

from deeplense import config, recipe
from deeplense.errors import UserError
from deeplense.sim import psf
from deeplense.sim.detector import Detector
from deeplense.sim.instrument import INSTRUMENTS, Instrument
from deeplense.sim.priors import Prior


class Band(NamedTuple):
    """One channel.

    Attributes:
        prefix: of the names of what is drawn for it: "bands.NAME." where there are several, else "".
        instrument: with the recipe's PSF and detector. kernels: (M, K, K) to draw the PSF from, where it is a set.
        exposure: prior of the total exposure time [s]. exposure_time: the same as the recipe says it.
    """

    name: str
    prefix: str
    instrument: Instrument
    kernels: Tensor | None
    exposure: Prior
    exposure_time: recipe.Prior | None


def bands_of(s: recipe.Simulation) -> list[Band]:
    """The recipe's; one of `instrument` when it names none.

    Raises:
        UserError: an unknown instrument or key, or a PSF that makes no sense.
    """
    detector = Detector.of(s)
    if not s.bands:
        return [_band("", "simulation", "", recipe.Band(), s, detector)]
    found = []
    for name, spec in s.bands.items():
        where = f"simulation.bands.{name}"
        prefix = f"bands.{name}." if len(s.bands) > 1 else ""
        found.append(_band(name, where, prefix, config.build(recipe.Band, spec, where), s, detector))
    return found


def pixel_scale(bands: list[Band], given: float | None) -> float:
    """[arcsec], the same in all bands.

    Raises:
        UserError: the instruments differ, and the recipe does not choose.
    """
    theirs = {band.instrument.pixel_scale for band in bands}
    if given is None and len(theirs) > 1:
        raise UserError(f"simulation.pixel_scale: the bands have {sorted(theirs)} arcsec a pixel; give one for all")
    return theirs.pop() if given is None else given


def _band(name: str, where: str, prefix: str, band: recipe.Band, s: recipe.Simulation, detector: Detector) -> Band:
    instrument: Instrument = config.lookup(INSTRUMENTS, band.instrument or s.instrument, "instrument")
    spec, at = (s.psf, psf.WHERE) if band.psf is None else (band.psf, f"{where}.psf")
    instrument, kernels = psf.choose(dataclasses.replace(instrument, detector=detector), spec, at)
    time = s.exposure_time if band.exposure_time is None else band.exposure_time
    exposure = Prior.parse(instrument.total_exposure if time is None else time, f"{where}.exposure_time")
    return Band(name or instrument.bands[0], prefix, instrument, kernels, exposure, time)
