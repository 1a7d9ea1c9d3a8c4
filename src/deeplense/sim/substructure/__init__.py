"""Populations of dark structure in the lens, one file a family; `base.py` says how to add one."""

from __future__ import annotations

from typing import Any

from deeplense.sim.substructure.base import HALO_COLUMNS, HALO_UNITS, Halos, Host, Substructure, Truth
from deeplense.sim.substructure.cdm import ColdDarkMatter
from deeplense.sim.substructure.fuzzy import FuzzyDarkMatter
from deeplense.sim.substructure.none import NoSubstructure
from deeplense.sim.substructure.point_masses import PointMasses
from deeplense.sim.substructure.self_interacting import SelfInteractingDarkMatter
from deeplense.sim.substructure.vortex import Vortex
from deeplense.sim.substructure.warm import WarmDarkMatter

__all__ = ["HALO_COLUMNS", "HALO_UNITS", "POPULATIONS", "Halos", "Host", "Substructure", "Truth"]

POPULATIONS: dict[str, Any] = {
    "none": NoSubstructure,
    "point_masses": PointMasses,
    "vortex": Vortex,
    "cdm": ColdDarkMatter,
    "wdm": WarmDarkMatter,
    "sidm": SelfInteractingDarkMatter,
    "uldm": FuzzyDarkMatter,
}
