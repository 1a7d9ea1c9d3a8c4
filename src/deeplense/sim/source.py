"""What a recipe's `source` or `lens_light` shines with: a Sérsic galaxy, the same with clumps, or an image of a galaxy.

To add one: components of unit flux here, told apart by the section's own keys.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import NamedTuple

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
from deeplense.sim.files import File, find_files, read_pictures
from deeplense.sim.instrument import Instrument
from deeplense.sim.priors import Prior
from deeplense.sim.substructure.base import Truth

Array = NDArray[np.float64]
Drawn = dict[str, Array]
SHAPE = ("R_sersic", "n_sersic", "e1", "e2", "center_x", "center_y")
SMALLEST, LARGEST = 8, 256  # pixels a side of an image; larger ones are binned
KEPT_APART = 5  # every fifth image is for other streams than "train"


class Images(NamedTuple):
    """Galaxies of unit flux. pixels: (M, S, S) float32, centred in zeros; sides: (M,) their own longer sides."""

    pixels: Tensor
    sides: Tensor


class Galaxies:
    """A light section made ready to draw from.

    Attributes:
        priors: name -> prior, in the recipe's order.
    """

    def __init__(self, section: recipe.Source, where: str, instrument: Instrument) -> None:
        self.name, self.instrument = where.rpartition(".")[2], instrument
        one_of(section, "amplitude", "magnitude", where)
        if section.magnitude is not None and instrument.zero_point is None:
            raise UserError(f"{where}.magnitude: the instrument has no zero point; give an amplitude")
        values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section) if f.name != "images"}
        self.priors = {k: Prior.parse(v, f"{where}.{k}") for k, v in values.items() if v is not None}
        self.images = None if section.images is None else read_images(section.images, f"{where}.images")
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
            Truth(f"{self.name}.angle", "rad", turn),
            Truth(f"{self.name}.flip", ""),
        ]

    def components(self, drawn: Drawn, generator: Generator, train: bool) -> tuple[list[Component], Drawn]:
        """Profiles of n galaxies, and what was drawn for them, named as in `truths`.

        Args:
            drawn: "source.NAME" -> (n,) from the priors. train: whether images are those of training.
        """
        p = {k: torch.from_numpy(drawn[f"{self.name}.{k}"])[:, None] for k in self.priors}
        if self.images is not None:
            return self._image(self.images, p, generator, train)
        flux = self._flux(p)
        host = {k: p[k] for k in SHAPE}
        if flux is None:
            host["amp"] = p["amplitude"]
        else:
            host["amp"] = flux / sersic_flux(torch.ones_like(flux), p["R_sersic"], p["n_sersic"])
        if not self.clumpy:
            return [Component("sersic", host)], {}
        number = np.rint(p["clumps"].numpy())
        return self._clumpy(host, p, number.astype(int), generator), {f"{self.name}.clumps": number[:, 0]}

    def _flux(self, p: dict[str, Tensor]) -> Tensor | None:
        """Counts/s of a magnitude."""
        return self.instrument.counts(p["magnitude"]) if "magnitude" in p else None

    def _image(
        self, images: Images, p: dict[str, Tensor], generator: Generator, train: bool
    ) -> tuple[list[Component], Drawn]:
        n, m = len(p["center_x"]), len(images.sides)
        numbers = np.arange(m)
        if m >= KEPT_APART:
            numbers = numbers[(numbers % KEPT_APART < KEPT_APART - 1) == train]
        which = generator.choice(numbers, n)
        angle, flip = generator.uniform(0, 2 * np.pi, n), generator.choice([-1.0, 1.0], n)
        flux = self._flux(p)
        scale = p["image_width"] / images.sides[which][:, None]
        params = {
            "amp": (p["amplitude"] if flux is None else flux) / scale**2,
            "pixels": images.pixels[which][:, None],
            "scale": scale,
            "angle": torch.from_numpy(angle)[:, None],
            "flip": torch.from_numpy(flip)[:, None],
            "center_x": p["center_x"],
            "center_y": p["center_y"],
        }
        names = (f"{self.name}.{k}" for k in ("image", "angle", "flip"))
        return [Component("image", params)], dict(zip(names, (which.astype(float), angle, flip), strict=True))

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


def read_images(path: str, where: str) -> Images:
    """Galaxy images: background (the border's median) taken away, what is below it set to zero, unit flux.

    Raises:
        UserError: nothing there, or an image that is damaged, not finite, too small or without flux.
    """
    return _read_images(find_files(path, where), where)


@lru_cache(maxsize=2)
def _read_images(files: tuple[File, ...], where: str) -> Images:
    pictures = []
    for name, picture in read_pictures(files, where):
        if min(picture.shape) < SMALLEST:
            raise UserError(f"{where}: {name}: {picture.shape[1]} x {picture.shape[0]} pixels; {SMALLEST} are needed")
        border = np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]])
        light = picture - np.median(border)
        if not light.sum() > 0:
            raise UserError(f"{where}: {name}: no light above its border's median; is it a galaxy?")
        light = light.clip(0)
        pictures.append(_at_most(torch.from_numpy(light / light.sum())).float())
    size = max(max(p.shape) for p in pictures)
    padded = [F.pad(p, _around(p.shape[1], size) + _around(p.shape[0], size)) for p in pictures]
    sides = torch.tensor([float(max(p.shape)) for p in pictures], dtype=torch.float64)
    return Images(torch.stack(padded), sides)


def _at_most(picture: Tensor) -> Tensor:
    """Binned until no side is longer than `LARGEST`; the flux stays."""
    factor = -(-max(picture.shape) // LARGEST)
    if factor == 1:
        return picture
    height, width = (-(-n // factor) * factor for n in picture.shape)
    whole = F.pad(picture, _around(picture.shape[1], width) + _around(picture.shape[0], height))
    return F.avg_pool2d(whole[None, None], factor)[0, 0] * factor**2


def _around(n: int, size: int) -> list[int]:
    """Zeros before and after."""
    return [(size - n) // 2, size - n - (size - n) // 2]
