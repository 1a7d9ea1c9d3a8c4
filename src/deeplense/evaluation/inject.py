"""What one halo of given mass and place does to an image: `show --inject`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deeplense.errors import UserError
from deeplense.sim.added import add_halo
from deeplense.sim.lenses import Lenses

Array = NDArray[np.float32]
SIGNED = ("effect of the halo", "effect of the halo [σ]")


class Halo(NamedTuple):
    """M200 [Msun], place [arcsec], c200 or None for the median."""

    mass: float
    x: float
    y: float
    concentration: float | None = None

    def __str__(self) -> str:
        c = "" if self.concentration is None else f", c = {self.concentration:g}"
        return f"a halo of {self.mass:.3g} Msun at ({self.x:g}″, {self.y:g}″){c}"


def parse(text: str) -> Halo:
    """ "1e9,0.4,-0.2" or "1e9,0.4,-0.2,15".

    Raises:
        UserError: not three or four numbers.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
        return Halo(*numbers)
    except (ValueError, TypeError) as error:
        wanted = "mass [Msun], x, y [arcsec] and, if you like, c200: 1e9,0.4,-0.2 or 1e9,0.4,-0.2,15"
        raise UserError(f"--inject {text}: give {wanted}") from error


@torch.no_grad()
def panels(lens: Lenses, halo: Halo) -> dict[str, Array]:
    """Noiseless images (C, H, W) of one lens without and with the halo, their difference, and it in units of the noise
    of each pixel: σ² is that of sky, detector and the image's own photons, as if noise were white."""
    exact = lens.to("cpu", torch.float64)
    without, seen = exact.image()[0], add_halo(exact, *halo).image()[0]
    w, scene = lens.world, exact.scenes[0]
    sigma = []
    for k, instrument in enumerate(w.instruments):
        t = float(scene.band(k).exposure[0])
        sigma.append((instrument.background_sigma(w.pixel_scale, t) ** 2 + without[k].clamp_min(0) / t).sqrt())
    change = seen - without
    every = {"without the halo": without, "with the halo": seen}
    every |= dict(zip(SIGNED, (change, change / torch.stack(sigma)), strict=True))
    return {name: image.numpy().astype(np.float32) for name, image in every.items()}


def total(found: dict[str, Array]) -> float:
    """χ of the whole change: √Σ(difference/σ)²."""
    return float(np.sqrt((found[SIGNED[1]].astype(np.float64) ** 2).sum()))
