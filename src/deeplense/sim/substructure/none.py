"""The smooth lens alone."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from deeplense.sim.substructure.base import Array, Halos, Host, Substructure, Truth


@dataclass
class NoSubstructure:
    """No dark structure."""

    def truth(self) -> list[Truth]:
        return []

    def sample(self, rng: Generator, host: Host) -> Substructure:
        return Substructure([])

    def build(self, truth: dict[str, Array], halos: Halos, host: Host) -> Substructure:
        return Substructure([])
