"""Which lenses a search would find, decided on the smooth macro model at coarse resolution, alike for every class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deeplense.errors import UserError
from deeplense.lensing import raytrace
from deeplense.lensing.light import sersic_flux
from deeplense.lensing.raytrace import Component
from deeplense.recipe import Selection
from deeplense.sim.instrument import Instrument
from deeplense.sim.macro import macro_lens

Array = NDArray[np.float64]
Drawn = dict[str, Array]
RAYS = 32  # a side of the image
TOGETHER = 64  # lenses traced at a time
EDGE = 0.05  # share of the arc's light that may lie in the outermost ring of rays
PATIENCE = 16  # rounds of draws, after which one lens of each must have been kept
FOUND = ("magnification", "arc_signal_to_noise", "n_images")


Rays = tuple[slice, slice, slice]


class View(NamedTuple):
    """What the coarse image of n lenses shows, (n,) each.

    Attributes:
        n_images: of the source's centre, without the central one. magnification: of the source's flux in the field.
        arc_signal_to_noise: light of the arc over its noise, in the cells of about the PSF's width where it exceeds it.
        edge: share of the arc's light in the outermost ring.
    """

    n_images: Array
    magnification: Array
    arc_signal_to_noise: Array
    edge: Array


class Light(NamedTuple):
    """Smooth light of n lenses: what is behind, and what is in front."""

    source: Component
    front: list[Component]


def look(drawn: Drawn, light: Light, instrument: Instrument, pixel_scale: float, size: int, exposure: Array) -> View:
    """Coarse images of lenses.

    Args:
        drawn: "lens.NAME" -> (n,), and "source.center_x", "source.center_y". exposure: (n,) [s].
    """
    spacing = size * pixel_scale / RAYS
    cell = max(1, round(max(instrument.psf_fwhm, pixel_scale) / spacing))
    pixels = (cell * spacing / pixel_scale) ** 2  # in a cell
    variance = {t: instrument.background_sigma(pixel_scale, t) ** 2 * pixels for t in np.unique(exposure).tolist()}
    background = torch.tensor([variance[t] for t in exposure.tolist()], dtype=torch.float32)
    time = torch.from_numpy(exposure).float()
    place = torch.from_numpy(np.stack([drawn["source.center_x"], drawn["source.center_y"]])).float()
    unlensed = _flux(light.source)
    source, *front = (c.to("cpu", torch.float32) for c in (_widened(light.source, spacing / 2), *light.front))
    smooth = drawn | {f"lens.a{m}": np.zeros_like(drawn["lens.theta_E"]) for m in (3, 4)}  # half a percent of a lens
    mass = [c.to("cpu", torch.float32) for c in macro_lens(smooth)]
    x, y = raytrace.grid(RAYS, spacing, "cpu", torch.float32)
    found = []
    for rows in torch.split(torch.arange(len(exposure)), TOGETHER):
        alpha_x, alpha_y = raytrace.deflection(x, y, [c[rows] for c in mass])
        beta_x, beta_y = x - alpha_x, y - alpha_y
        arc = raytrace.brightness(beta_x, beta_y, [source[rows]]) * spacing**2
        before = raytrace.brightness(x + 0 * alpha_x, y + 0 * alpha_y, [c[rows] for c in front]) * spacing**2
        here = place[:, rows, None, None]
        found.append(
            (
                _count(beta_x - here[0], beta_y - here[1]),
                arc.sum((1, 2), dtype=torch.float64) / unlensed[rows],
                _signal_to_noise(_cells(arc, cell), _cells(before, cell), background[rows], time[rows]),
                1 - arc[:, 1:-1, 1:-1].sum((1, 2), dtype=torch.float64) / arc.sum((1, 2), dtype=torch.float64),
            )
        )
    return View(*(torch.cat(column).double().numpy() for column in zip(*found, strict=True)))


def possible(drawn: Drawn, half_width: float, selection: Selection) -> NDArray[np.bool_]:
    """(n,) lenses worth a look: large and bright enough, their outermost image, at about θ_E + β, in the field [″]."""
    away = np.hypot(*(drawn[f"source.{k}"] - drawn[f"lens.{k}"] for k in ("center_x", "center_y")))
    aside = np.maximum(np.abs(drawn["lens.center_x"]), np.abs(drawn["lens.center_y"]))
    radius = drawn["lens.theta_E"]
    fine = (radius >= selection.theta_E) & (radius + away + aside <= half_width)
    if selection.lens_magnitude is not None:
        fine &= drawn["lens_light.magnitude"] <= selection.lens_magnitude
    return np.asarray(fine)


def chosen(view: View, selection: Selection) -> NDArray[np.bool_]:
    """(n,) which the recipe keeps, of those that are possible."""
    keep = view.n_images >= selection.images
    keep &= view.magnification >= selection.magnification
    keep &= view.arc_signal_to_noise >= selection.signal_to_noise
    return np.asarray(keep & (view.edge <= EDGE))


def first(n: int, draw: Callable[[], tuple[Drawn, NDArray[np.bool_]]]) -> Drawn:
    """The first n lenses that are kept, of as many rounds of draws as it takes.

    Args:
        draw: a round, and which of it are kept.

    Raises:
        UserError: hardly any is.
    """
    rounds: list[Mapping[str, Array]] = []
    kept = 0
    while kept < n:
        drawn, keep = draw()
        rounds.append({k: v[keep] for k, v in drawn.items()})
        kept += int(keep.sum())
        if len(rounds) >= PATIENCE and kept < len(rounds):
            wrong = f"it keeps {kept} lenses of {len(rounds)} rounds of draws; ask for less, or draw brighter sources"
            raise UserError(f"simulation.selection: {wrong}")
    return {k: np.concatenate([r[k] for r in rounds])[:n] for k in rounds[0]}


def _widened(light: Component, width: float) -> Component:
    """As bright, but no finer than rays that far apart can see."""
    p = light.params
    wide = torch.sqrt(p["R_sersic"] ** 2 + width**2)
    return replace(light, params=p | {"R_sersic": wide, "amp": p["amp"] * (p["R_sersic"] / wide) ** 2})


def _flux(light: Component) -> Tensor:
    """(n,) of a Sérsic profile."""
    p = light.params
    return sersic_flux(p["amp"], p["R_sersic"], p["n_sersic"])[:, 0]


def _count(u: Tensor, v: Tensor) -> Tensor:
    """(n,) images of the origin: triangles of rays whose image in the source plane holds it.

    The triangle around the lens's centre spans all that its core maps to; it stands for the central image, left out.
    """

    def cross(a: Rays, b: Rays) -> Tensor:
        return u[a] * v[b] - v[a] * u[b] > 0

    every, left, right = slice(None), slice(None, -1), slice(1, None)
    along = cross((every, every, left), (every, every, right))
    down = cross((every, left, every), (every, right, every))
    slant = cross((every, left, right), (every, right, left))
    upper = (along[:, left] == slant) & (slant != down[:, :, left])
    lower = (down[:, :, right] != along[:, right]) & (along[:, right] == slant)
    whole = upper.sum((1, 2)) + lower.sum((1, 2))
    return torch.where(whole > 1, whole - whole % 2, whole)


def _cells(image: Tensor, cell: int) -> Tensor:
    return image if cell == 1 else F.avg_pool2d(image[:, None], cell)[:, 0] * cell**2


def _signal_to_noise(arc: Tensor, front: Tensor, background: Tensor, time: Tensor) -> Tensor:
    variance = background[:, None, None] + (arc + front) / time[:, None, None]
    seen = arc * arc > variance
    zero = torch.zeros_like(arc)
    signal = torch.where(seen, arc, zero).sum((1, 2), dtype=torch.float64)
    noise = torch.where(seen, variance, zero).sum((1, 2), dtype=torch.float64)
    return signal / noise.clamp_min(1e-30).sqrt()
