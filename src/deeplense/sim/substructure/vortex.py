"""Axion vortices: straight lines of mass."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.random import Generator

from deeplense.errors import UserError
from deeplense.lensing.raytrace import Component
from deeplense.recipe import Prior as Spec
from deeplense.sim.priors import Prior
from deeplense.sim.substructure.base import (
    MOST,
    Array,
    Halos,
    Host,
    Substructure,
    Truth,
    check_number,
    log10_or_nan,
    record,
    tensors,
)


@dataclass
class Vortex:
    """Straight lines of mass, half-length 0.06″ · 10⁻²² eV/(2 m) (Alexander et al. 2019, arXiv 1909.07346, sec. 3).

    A benchmark, not a forecast: vortices of real fuzzy dark matter are density nulls (arXiv 2004.01188), and VLBI
    excludes m ≤ 4.4e-21 eV (arXiv 2302.10941).

    Attributes:
        mass: of each line [Msun]. number: of lines. log10_m_axion: prior of log10(m/eV), one an image.
        impact: prior of a line's distance from the image's centre along x and y [arcsec].
        points: None for the closed form of the uniform line; the legacy code puts 100 equal points on one line.
    """

    mass: Spec = 3e10
    number: Spec = 1
    log10_m_axion: Spec = field(default_factory=lambda: {"uniform": [-24, -22]})
    impact: Spec = 0.0
    points: int | None = None

    def __post_init__(self) -> None:
        self._mass = Prior.parse(self.mass, "vortex.mass")
        self._number = Prior.parse(self.number, "vortex.number")
        self._log10_m = Prior.parse(self.log10_m_axion, "vortex.log10_m_axion")
        self._impact = Prior.parse(self.impact, "vortex.impact")
        if self.points is not None and not 2 <= self.points <= MOST:
            raise UserError(
                f"vortex.points is {self.points}; give 2 or more, up to {MOST:,}, or null for the closed form"
            )
        if self.points is not None and self.number != 1:
            raise UserError("vortex.points is of a single line; set it to null for several")

    def truth(self) -> list[Truth]:
        return [
            Truth("log10_m_axion", "log10(eV)", self.log10_m_axion),
            Truth("vortex_angle", "rad", {"uniform": [0, 2 * np.pi]}, "angle", period=2 * np.pi),
            Truth("n_lines", "", self.number),
            Truth("log10_m_sub", "log10(Msun)"),
        ]

    def sample(self, rng: Generator, host: Host) -> Substructure:
        n = len(host)
        number = np.maximum(np.rint(self._number.sample(rng, (n,))), 0).astype(int)
        check_number(number, "vortex.number")
        shape = (n, max(1, int(number.max(initial=0))))
        mask = np.arange(shape[1]) < number[:, None]
        log10_m = self._log10_m.sample(rng, (n, 1))
        angle = rng.uniform(0, 2 * np.pi, shape)
        mass = self._mass.sample(rng, shape)
        center = self._impact.sample(rng, (2, *shape))
        truth = {
            "log10_m_axion": log10_m[:, 0],
            "vortex_angle": np.where(mask[:, 0], angle[:, 0], np.nan),
            "n_lines": number.astype(float),
            "log10_m_sub": log10_or_nan((mass * mask).sum(1)),
        }
        return self.build(truth, record(mask, mass=mass, x=center[0], y=center[1], z=host.z_lens, angle=angle), host)

    def build(self, truth: dict[str, Array], halos: Halos, host: Host) -> Substructure:
        rows, mask = halos
        x, y, angle = rows["x"], rows["y"], rows["angle"]
        half_length = 0.03 * 10 ** (-22 - truth["log10_m_axion"][:, None]) * np.ones(mask.shape)
        strength = rows["mass"] * host.distances.theta_E2_per_mass
        if self.points is None:
            line = {"theta_E2": strength, "half_length": half_length, "angle": angle, "center_x": x, "center_y": y}
            return Substructure([Component("line_mass", tensors(line), torch.from_numpy(mask))], truth, halos)
        along = half_length * np.linspace(-1, 1, self.points)
        params = {
            "theta_E2": np.repeat(strength / self.points, self.points, 1),
            "center_x": x + along * np.cos(angle),
            "center_y": y + along * np.sin(angle),
        }
        return Substructure([Component("point_mass", tensors(params))], truth, halos)
