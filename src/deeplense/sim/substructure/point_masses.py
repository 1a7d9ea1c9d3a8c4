"""The `cdm` class of DeepLense: subhalos as point masses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.random import Generator

from deeplense.lensing.raytrace import Component
from deeplense.recipe import Prior as Spec
from deeplense.sim.priors import Prior
from deeplense.sim.substructure.base import (
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
class PointMasses:
    """Cold-dark-matter subhalos as point masses (arXiv 1909.07346).

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

    def sample(self, rng: Generator, host: Host) -> Substructure:
        n = len(host)
        number = np.maximum(self._number.sample(rng, (n,)), 0).astype(int)
        check_number(number, "point_masses.number")
        shape = (n, max(1, int(number.max(initial=0))))
        mask = np.arange(shape[1]) < number[:, None]
        mass = self._mass.sample(rng, shape)
        r, angle = self._radius.sample(rng, shape), rng.uniform(0, 2 * np.pi, shape)
        truth = {"n_sub": number.astype(float), "log10_m_sub": log10_or_nan((mass * mask).sum(1))}
        halos = record(mask, mass=mass, x=r * np.sin(angle), y=r * np.cos(angle), z=host.z_lens)
        return self.build(truth, halos, host)

    def build(self, truth: dict[str, Array], halos: Halos, host: Host) -> Substructure:
        rows, mask = halos
        strength = rows["mass"] * host.distances.theta_E2_per_mass
        params = {"theta_E2": strength, "center_x": rows["x"], "center_y": rows["y"]}
        return Substructure([Component("point_mass", tensors(params), torch.from_numpy(mask))], truth, halos)
