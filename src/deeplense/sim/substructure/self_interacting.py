"""Subhalos of self-interacting dark matter: some with a core, some collapsed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from deeplense.errors import UserError
from deeplense.recipe import Prior as Spec
from deeplense.sim.priors import Prior
from deeplense.sim.substructure.base import Array, Host, Truth
from deeplense.sim.substructure.cdm import ColdDarkMatter

COLLAPSED = 0.1  # scale radius of a collapsed halo, in its own before the collapse


@dataclass
class SelfInteractingDarkMatter(ColdDarkMatter):
    """Collisions first make cores, then in some halos a collapse (Gilman et al. 2021, arXiv 2105.05259).

    A cored halo is `ctnfw`, core radius r_core. A collapsed one keeps its bound mass and truncation, with a tenth of
    its scale radius: density falls as r⁻³ from there, as theirs does. The rest are as in cold dark matter.

    Attributes:
        cored, collapsed: priors of the share of halos, together at most 1.
        core: prior of r_core/R_s, one a halo.
    """

    cored: Spec = field(default_factory=lambda: {"uniform": [0.0, 0.6]})
    collapsed: Spec = field(default_factory=lambda: {"uniform": [0.0, 0.4]})
    core: Spec = field(default_factory=lambda: {"uniform": [0.1, 0.8]})

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "SelfInteractingDarkMatter"
        self._cored = Prior.parse(self.cored, f"{name}.cored")
        self._collapsed = Prior.parse(self.collapsed, f"{name}.collapsed")
        self._core = Prior.parse(self.core, f"{name}.core")
        if self._cored.bounds[1] + self._collapsed.bounds[1] > 1 + 1e-9:
            raise UserError(f"{name}: cored and collapsed may sum to more than 1; lower the upper ends of their priors")
        if min(p.bounds[0] for p in (self._cored, self._collapsed, self._core)) < 0:
            raise UserError(f"{name}: cored, collapsed and core must not be negative")

    def particle(self) -> list[Truth]:
        return [Truth("f_cored", "", self.cored), Truth("f_collapsed", "", self.collapsed)]

    def draw_particle(self, rng: Generator, n: int) -> dict[str, Array]:
        return {"f_cored": self._cored.sample(rng, (n, 1)), "f_collapsed": self._collapsed.sample(rng, (n, 1))}

    def mould(self, rows: dict[str, Array], particle: dict[str, Array], host: Host, rng: Generator) -> None:
        fate = rng.random(rows["mass"].shape)
        core = self._core.sample(rng, fate.shape) * rows["r_s"]
        rows["r_core"] = np.where(fate < particle["f_cored"], core, 0.0)
        # with the same bound mass
        rows["r_s"] = rows["r_s"] * np.where(fate > 1 - particle["f_collapsed"], COLLAPSED, 1.0)
