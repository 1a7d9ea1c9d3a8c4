"""Populations of dark structure in the lens.

To add one: a dataclass whose fields are its recipe parameters, with `truth` and `sample`; one line in `POPULATIONS`
(or `population: my_package.module:Class` in a recipe). The contract test runs over every entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from deeplense.errors import UserError
from deeplense.lensing.cosmology import Distances
from deeplense.lensing.raytrace import Component
from deeplense.recipe import Prior as Spec
from deeplense.sim.priors import Prior

Array = NDArray[Any]


class Truth(NamedTuple):
    """A parameter that a population draws: name, unit, prior as in the recipe (None when it follows from others)."""

    name: str
    unit: str
    prior: Any = None


class Substructure(NamedTuple):
    """Deflectors of n images, and what was drawn: name -> (n,)."""

    mass: list[Component]
    truth: dict[str, Array]


@dataclass
class NoSubstructure:
    """The smooth lens alone."""

    def truth(self) -> list[Truth]:
        return []

    def sample(self, n: int, rng: Generator, distances: Distances) -> Substructure:
        return Substructure([], {})


@dataclass
class PointMasses:
    """Cold-dark-matter subhalos as point masses (the `cdm` of DeepLense, arXiv 1909.07346).

    Attributes:
        number: prior of how many; a constant is that number always.
        mass: prior of each mass [Msun]. radius: prior of the distance from the centre [arcsec]; angles are uniform.
    """

    number: Spec = field(default_factory=lambda: {"poisson": [25]})
    mass: Spec = field(default_factory=lambda: {"power_law": [1e6, 1e10, -1.9]})
    radius: Spec = field(default_factory=lambda: {"uniform": [0.25, 2.0]})

    def __post_init__(self) -> None:
        self._number = Prior.parse(self.number, "point_masses.number")
        self._mass = Prior.parse(self.mass, "point_masses.mass")
        self._radius = Prior.parse(self.radius, "point_masses.radius")

    def truth(self) -> list[Truth]:
        return [Truth("n_sub", "", self.number), Truth("log10_m_sub", "log10(Msun)")]

    def sample(self, n: int, rng: Generator, distances: Distances) -> Substructure:
        number = np.maximum(self._number.sample(rng, (n,)), 0).astype(int)
        shape = (n, max(1, int(number.max(initial=0))))
        mask = np.arange(shape[1]) < number[:, None]
        mass = self._mass.sample(rng, shape)
        r, angle = self._radius.sample(rng, shape), rng.uniform(0, 2 * np.pi, shape)
        params = {
            "theta_E2": mass * distances.theta_E2_per_mass,
            "center_x": r * np.sin(angle),
            "center_y": r * np.cos(angle),
        }
        total = (mass * mask).sum(1)
        with np.errstate(divide="ignore"):
            log10_total = np.where(total > 0, np.log10(total), np.nan)
        component = Component("point_mass", _tensors(params), torch.from_numpy(mask))
        return Substructure([component], {"n_sub": number.astype(float), "log10_m_sub": log10_total})


@dataclass
class Vortex:
    """An axion vortex: a straight line of mass, half-length 0.06″ · 10⁻²² eV/(2 m) (Alexander et al. 2019, sec. 3).

    A benchmark, not a forecast: vortices of real fuzzy dark matter are density nulls (arXiv 2004.01188), and VLBI
    excludes m ≤ 4.4e-21 eV (arXiv 2302.10941).

    Attributes:
        mass: of the whole line [Msun]. log10_m_axion: prior of log10(m/eV).
        impact: prior of the line's distance from the image's centre along x and y [arcsec].
        points: None for the closed form of the uniform line; the legacy code puts 100 equal points on it.
    """

    mass: Spec = 3e10
    log10_m_axion: Spec = field(default_factory=lambda: {"uniform": [-24, -22]})
    impact: Spec = 0.0
    points: int | None = None

    def __post_init__(self) -> None:
        self._mass = Prior.parse(self.mass, "vortex.mass")
        self._log10_m = Prior.parse(self.log10_m_axion, "vortex.log10_m_axion")
        self._impact = Prior.parse(self.impact, "vortex.impact")
        if self.points is not None and self.points < 2:
            raise UserError(f"vortex.points is {self.points}; give 2 or more, or null for the closed form")

    def truth(self) -> list[Truth]:
        return [
            Truth("log10_m_axion", "log10(eV)", self.log10_m_axion),
            Truth("vortex_angle", "rad", {"uniform": [0, 2 * np.pi]}),
            Truth("log10_m_sub", "log10(Msun)"),
        ]

    def sample(self, n: int, rng: Generator, distances: Distances) -> Substructure:
        log10_m = self._log10_m.sample(rng, (n, 1))
        angle = rng.uniform(0, 2 * np.pi, (n, 1))
        mass = self._mass.sample(rng, (n, 1))
        center = self._impact.sample(rng, (n, 2))
        half_length = 0.03 * 10 ** (-22 - log10_m)
        strength = mass * distances.theta_E2_per_mass
        x, y = center[:, :1], center[:, 1:]
        if self.points is None:
            params = {
                "theta_E2": strength,
                "half_length": half_length,
                "angle": angle,
                "center_x": x,
                "center_y": y,
            }
            component = Component("line_mass", _tensors(params))
        else:
            along = half_length * np.linspace(-1, 1, self.points)
            params = {
                "theta_E2": np.repeat(strength / self.points, self.points, 1),
                "center_x": x + along * np.cos(angle),
                "center_y": y + along * np.sin(angle),
            }
            component = Component("point_mass", _tensors(params))
        truth = {"log10_m_axion": log10_m, "vortex_angle": angle, "log10_m_sub": np.log10(mass)}
        return Substructure([component], {k: v[:, 0] for k, v in truth.items()})


POPULATIONS: dict[str, Any] = {"none": NoSubstructure, "point_masses": PointMasses, "vortex": Vortex}


def _tensors(arrays: dict[str, Array]) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64)) for k, v in arrays.items()}
