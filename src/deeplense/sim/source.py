"""What a recipe's `source` or `lens_light` shines with: a Sérsic galaxy, the same with clumps, or an image of a galaxy.

To add one: components of unit flux here, told apart by the section's own keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import gammaincinv
from torch import Tensor

from deeplense import recipe
from deeplense.errors import UserError
from deeplense.lensing.ellipse import axis_ratio, direction
from deeplense.lensing.light import sersic_b, sersic_flux
from deeplense.lensing.raytrace import Component
from deeplense.sim.checks import check, one_of
from deeplense.sim.files import File, find_files, read_channels
from deeplense.sim.instrument import Instrument
from deeplense.sim.priors import Prior
from deeplense.sim.substructure.base import Truth

Array = NDArray[np.float64]
Drawn = dict[str, Array]
SHAPE = ("R_sersic", "n_sersic", "e1", "e2", "center_x", "center_y")
SMALLEST, LARGEST = 8, 256  # pixels a side of an image; larger ones are binned
KEPT_APART = 5  # every fifth image is for other streams than "train"
MOST = 1 << 32  # bytes of images in memory
NO_PRIORS = ("images", "image_channels", "share_images", "colours")  # keys of a section that are none
GALAXIES = (
    "; put images of galaxies there (.npy, .fits, .h5, .png, .jpg), e.g. from Galaxy10 DECaLS, "
    "https://zenodo.org/records/10845026, chosen as docs/physics.md shows"
)


class Images(NamedTuple):
    """Galaxies.

    Attributes:
        pixels: (M, C, S, S) float32, each channel of unit flux, centred in zeros. C is 1 or the number of bands.
        sides: (M,) their own longer sides. flux: (M, C) of the channels, in units of the first's.
    """

    pixels: Tensor
    sides: Tensor
    flux: Tensor


class Galaxies:
    """A light section made ready to draw from, in each band.

    Attributes:
        priors: name -> prior, in the recipe's order. specs: the same as the recipe says them.
        tied: names that a population of lenses draws, in place of the priors.
    """

    def __init__(
        self,
        section: recipe.Source,
        where: str,
        instruments: Sequence[Instrument],
        bands: Sequence[str],
        tied: Collection[str] = (),
    ) -> None:
        self.name, self.instruments, self.tied = where.rpartition(".")[2], instruments, list(tied)
        if "magnitude" in tied:
            given = [k for k in ("amplitude", "magnitude") if getattr(section, k) is not None]
            check(not given, f"{where}.{''.join(given[:1])}", "simulation.sky draws the magnitude; leave it out")
        else:
            one_of(section, "amplitude", "magnitude", where)
        if (section.magnitude is not None or "magnitude" in tied) and any(i.zero_point is None for i in instruments):
            raise UserError(f"{where}.magnitude: the instrument has no zero point; give an amplitude")
        values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section) if f.name not in NO_PRIORS}
        self._pairs = [f"{blue}-{red}" for blue, red in pairwise(bands)]
        for pair in section.colours or {}:
            known = ", ".join(self._pairs) or "none, of one band"
            check(pair in self._pairs, f"{where}.colours", f"no colour '{pair}' (known: {known})")
        self._by_pixels = section.colours is None
        values |= {f"colours.{pair}": value for pair, value in (section.colours or {}).items()}
        self.specs = {k: v for k, v in values.items() if v is not None and k not in tied}
        self.priors = {k: Prior.parse(v, f"{where}.{k}") for k, v in self.specs.items()}
        self.images, self.shared = None, section.share_images
        if section.images is not None:
            channels = None if section.image_channels is None else tuple(section.image_channels)
            self.images = read_images(section.images, f"{where}.images", len(bands), channels)
        self.clumpy = self.priors["clumps"] != Prior.parse(0, where)
        check(not (self.images and self.clumpy), f"{where}.clumps", "an image has its own; leave out clumps or images")
        for key, low, high in (("clumps", 0, 1000), ("clump_flux", 0, 1)):
            least, most = self.priors[key].bounds
            fine = low <= least and (most <= high or np.isinf(most))
            check(fine, f"{where}.{key}", f"reaches from {least:g} to {most:g}; stay in [{low}, {high}]")

    def truths(self) -> list[Truth]:
        """What is drawn beside the priors."""
        if self.images is None:
            return []
        turn = {"uniform": [0.0, 2 * np.pi]}
        return [
            Truth(f"{self.name}.image", ""),
            Truth(f"{self.name}.angle", "rad", turn, "angle", period=2 * np.pi),
            Truth(f"{self.name}.flip", "", kind=None),
        ]

    def components(self, drawn: Drawn, generator: Generator, train: bool) -> tuple[list[list[Component]], Drawn]:
        """Profiles of n galaxies in each band, and what was drawn for them, named as in `truths`.

        Args:
            drawn: "source.NAME" -> (n,) from the priors. train: whether images are those of training.
        """
        p = self._columns(drawn)
        if self.images is not None:
            light, more = self._image(self.images, p, generator, train)
            which = torch.from_numpy(more[f"{self.name}.image"]).long()
            return self._in_bands([light], p, self.images, which), more
        host = self._host(p)
        if not self.clumpy:
            return self._in_bands([Component("sersic", host)], p), {}
        number = np.rint(p["clumps"].numpy())
        lights = self._clumpy(host, p, number.astype(int), generator)
        return self._in_bands(lights, p), {f"{self.name}.clumps": number[:, 0]}

    def smooth(self, drawn: Drawn) -> Component:
        """The galaxies in the first band without clumps; what is an image counts as a disc a sixth as large."""
        p = self._columns(drawn)
        if self.images is None:
            return Component("sersic", self._host(p))
        one = torch.ones_like(p["center_x"])
        disc = {"R_sersic": p["image_width"] / 6, "n_sersic": one, "e1": 0 * one, "e2": 0 * one}
        host = self._host(p | disc)
        if "amplitude" in p:  # of an image it is the flux
            host["amp"] = host["amp"] / sersic_flux(one, disc["R_sersic"], one)
        return Component("sersic", host)

    def _columns(self, drawn: Drawn) -> dict[str, Tensor]:
        return {k: torch.from_numpy(drawn[f"{self.name}.{k}"])[:, None] for k in [*self.priors, *self.tied]}

    def _host(self, p: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameters of the Sérsic profile."""
        host, flux = {k: p[k] for k in SHAPE}, self._flux(p)
        if flux is None:
            return host | {"amp": p["amplitude"]}
        return host | {"amp": flux / sersic_flux(torch.ones_like(flux), p["R_sersic"], p["n_sersic"])}

    def _in_bands(
        self, lights: list[Component], p: dict[str, Tensor], images: Images | None = None, which: Tensor | None = None
    ) -> list[list[Component]]:
        """The first band's profiles, and the other bands': of other brightness, and other pixels where there are."""
        found, colour = [lights], torch.zeros_like(p["center_x"])  # of the first band less this one [mag]
        channels = 1 if images is None else images.pixels.shape[1]
        for k, pair in enumerate(self._pairs, start=1):
            colour = colour + p.get(f"colours.{pair}", 0.0)
            ratio = 10 ** (0.4 * colour)
            if "magnitude" in p:
                first, here = self.instruments[0].zero_point, self.instruments[k].zero_point
                assert first is not None
                assert here is not None, "checked when the galaxies are made"
                ratio = ratio * 10 ** (0.4 * (here - first))
            pixels: dict[str, Tensor] = {}
            if images is not None and which is not None and channels > 1:
                pixels = {"pixels": images.pixels[which, k][:, None]}
                ratio = ratio * images.flux[which, k][:, None] if self._by_pixels else ratio
            params = ({**light.params, "amp": light.params["amp"] * ratio, **pixels} for light in lights)
            found.append([dataclasses.replace(c, params=new) for c, new in zip(lights, params, strict=True)])
        return found

    def _flux(self, p: dict[str, Tensor]) -> Tensor | None:
        """Counts/s of a magnitude."""
        return self.instruments[0].counts(p["magnitude"]) if "magnitude" in p else None

    def _image(
        self, images: Images, p: dict[str, Tensor], generator: Generator, train: bool
    ) -> tuple[Component, Drawn]:
        n, m = len(p["center_x"]), len(images.sides)
        numbers = np.arange(m)
        if m >= KEPT_APART and not self.shared:
            numbers = numbers[(numbers % KEPT_APART < KEPT_APART - 1) == train]
        which = generator.choice(numbers, n)
        angle, flip = generator.uniform(0, 2 * np.pi, n), generator.choice([-1.0, 1.0], n)
        flux = self._flux(p)
        scale = p["image_width"] / images.sides[which][:, None]
        params = {
            "amp": (p["amplitude"] if flux is None else flux) / scale**2,
            "pixels": images.pixels[which, 0][:, None],
            "scale": scale,
            "angle": torch.from_numpy(angle)[:, None],
            "flip": torch.from_numpy(flip)[:, None],
            "center_x": p["center_x"],
            "center_y": p["center_y"],
        }
        names = (f"{self.name}.{k}" for k in ("image", "angle", "flip"))
        return Component("image", params), dict(zip(names, (which.astype(float), angle, flip), strict=True))

    def _clumpy(
        self, host: dict[str, Tensor], p: dict[str, Tensor], number: NDArray[np.int64], generator: Generator
    ) -> list[Component]:
        """Round exponential clumps that follow the host's light and share their part of its flux at random."""
        shape = (len(number), max(1, int(number.max(initial=0))))
        mask = torch.from_numpy(np.arange(shape[1]) < number)
        n, b = host["n_sersic"], sersic_b(host["n_sersic"])
        inside = gammaincinv((2 * n).numpy(), generator.random(shape))  # share of the flux inside a radius
        radius = host["R_sersic"] * (torch.from_numpy(inside) / b) ** n
        phase = torch.from_numpy(generator.uniform(0, 2 * np.pi, shape))
        weight = torch.from_numpy(generator.exponential(size=shape)) * mask
        q = axis_ratio(host["e1"], host["e2"])
        cos, sin = direction(host["e1"], host["e2"])
        along, across = radius * torch.cos(phase) / torch.sqrt(q), radius * torch.sin(phase) * torch.sqrt(q)
        share = torch.where(mask.any(1, keepdim=True), p["clump_flux"], torch.zeros_like(p["clump_flux"]))
        flux = sersic_flux(host["amp"], host["R_sersic"], n) * share * weight
        flux = flux / weight.sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        size = (p["clump_size"] * host["R_sersic"]).expand(shape)
        one, zero = torch.ones_like(size), torch.zeros_like(size)
        clumps = {
            "amp": flux / sersic_flux(one, size, one),
            "R_sersic": size,
            "n_sersic": one,
            "e1": zero,
            "e2": zero,
            "center_x": host["center_x"] + along * cos - across * sin,
            "center_y": host["center_y"] + along * sin + across * cos,
        }
        return [Component("sersic", host | {"amp": host["amp"] * (1 - share)}), Component("sersic", clumps, mask)]


def read_images(path: str, where: str, bands: int = 1, channels: tuple[int, ...] | None = None) -> Images:
    """Galaxy images: background (the border's median) taken away, what is below it set to zero, unit flux.

    Where there is one band, or one channel, channels are averaged; else each band has its own.

    Args:
        bands: how many. channels: the one of each band, from 0; in the images' order when None.

    Raises:
        UserError: nothing there, or an image that is damaged, not finite, too small, without flux or of other channels.
    """
    if channels is not None and len(channels) != bands:
        wrong = f"{list(channels)} names {len(channels)} channels, and there are {bands} bands"
        raise UserError(f"{where.removesuffix('s')}_channels: {wrong}")
    return _read_images(find_files(path, where, GALAXIES), where, bands, channels)


@lru_cache(maxsize=3)
def _read_images(files: tuple[File, ...], where: str, bands: int, channels: tuple[int, ...] | None) -> Images:
    pictures: list[Tensor] = []
    flux: list[Array] = []
    held = 0
    for name, picture in read_channels(files, where):
        height, width = picture.shape[1:]
        if min(height, width) < SMALLEST:
            raise UserError(f"{where}: {name}: {width} x {height} pixels; {SMALLEST} are needed")
        light = _above_the_sky(_in_bands(picture, bands, channels, f"{where}: {name}"))
        if not (light.sum((1, 2)) > 0).all():
            raise UserError(f"{where}: {name}: no light above its border's median; is it a galaxy?")
        light = light.clip(0)
        total = light.sum((1, 2))
        if flux and len(total) != len(flux[0]):
            raise UserError(f"{where}: {name}: {len(total)} channels, but {len(flux[0])} in the images before it")
        pictures.append(_at_most(torch.from_numpy(light / total[:, None, None])).float())
        flux.append(total / total[0])
        held += pictures[-1].nbytes
        if held > MOST:
            raise UserError(f"{where}: {name}: more than {MOST / 1e9:.0f} GB of images in memory; choose fewer")
    size = max(max(p.shape[1:]) for p in pictures)
    padded = [F.pad(p, _around(p.shape[2], size) + _around(p.shape[1], size)) for p in pictures]
    sides = torch.tensor([float(max(p.shape[1:])) for p in pictures], dtype=torch.float64)
    return Images(torch.stack(padded), sides, torch.from_numpy(np.stack(flux)))


def _in_bands(picture: NDArray[Any], bands: int, channels: tuple[int, ...] | None, name: str) -> Array:
    """(C, H, W), a channel for each band or one for all."""
    have = len(picture)
    if channels is not None and have > 1:
        if not 0 <= min(channels) <= max(channels) < have:
            raise UserError(f"{name}: has the channels 0 to {have - 1}, image_channels says {list(channels)}")
        picture = picture[list(channels)]
    elif bands == 1 and have > 1:
        picture = picture.mean(0)[None]
    elif have not in (1, bands):
        raise UserError(f"{name}: {have} channels, but {bands} bands; choose with image_channels, or give one channel")
    return picture.astype(np.float64)


def _above_the_sky(channels: Array) -> Array:
    """(C, H, W) less the median of each channel's border."""
    top, bottom, left, right = channels[:, 0], channels[:, -1], channels[:, 1:-1, 0], channels[:, 1:-1, -1]
    sky = np.median(np.concatenate([top, bottom, left, right], axis=1), axis=1)
    return np.asarray(channels - sky[:, None, None])


def _at_most(picture: Tensor) -> Tensor:
    """(C, H, W), binned until no side is longer than `LARGEST`; the flux stays."""
    factor = -(-max(picture.shape) // LARGEST)
    if factor == 1:
        return picture
    height, width = (-(-n // factor) * factor for n in picture.shape[1:])
    whole = F.pad(picture, _around(picture.shape[2], width) + _around(picture.shape[1], height))
    return F.avg_pool2d(whole, factor) * factor**2


def _around(n: int, size: int) -> list[int]:
    """Zeros before and after."""
    return [(size - n) // 2, size - n - (size - n) // 2]
