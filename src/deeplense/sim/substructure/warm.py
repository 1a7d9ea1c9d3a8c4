"""Subhalos of warm dark matter: fewer and less concentrated below the half-mode mass."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from deeplense.recipe import Prior as Spec
from deeplense.sim.priors import Prior
from deeplense.sim.substructure.base import Array, Truth
from deeplense.sim.substructure.cdm import ColdDarkMatter

SUBHALOS, FIELD = (4.2, 2.5, -0.2), (2.3, 0.8, -1.0)


@dataclass
class WarmDarkMatter(ColdDarkMatter):
    """Mass function × (1 + (a m_hm/m)^b)^c, a, b, c = 4.2, 2.5, −0.2 for subhalos and 2.3, 0.8, −1 in the field (Lovell
    2020, arXiv 2003.01125), concentration × (1 + 60 m_hm/m)^−0.17 (Bose et al. 2016, arXiv 1507.01998, without its weak
    dependence on redshift).

    Attributes:
        log10_m_hm: prior of log10 of the half-mode mass [Msun]; 8.5 is a thermal relic of 3.2 keV, as
            m_hm = 3e8 M☉ (m/3.3 keV)^−3.33 (Gilman et al. 2020, eq. 2).
    """

    log10_m_hm: Spec = field(default_factory=lambda: {"uniform": [7.0, 10.0]})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._log10_m_hm = Prior.parse(self.log10_m_hm, "WarmDarkMatter.log10_m_hm")

    def particle(self) -> list[Truth]:
        return [Truth("log10_m_hm", "log10(Msun)", self.log10_m_hm)]

    def draw_particle(self, rng: Generator, n: int) -> dict[str, Array]:
        return {"log10_m_hm": self._log10_m_hm.sample(rng, (n, 1))}

    def survival(self, mass: Array, particle: dict[str, Array], field: bool = False) -> Array:
        a, b, c = FIELD if field else SUBHALOS
        ratio = 10 ** particle["log10_m_hm"] / mass
        return np.asarray((1 + (a * ratio) ** b) ** c)

    def softening(self, mass: Array, particle: dict[str, Array]) -> Array:
        return np.asarray((1 + 60 * 10 ** particle["log10_m_hm"] / mass) ** -0.17)
