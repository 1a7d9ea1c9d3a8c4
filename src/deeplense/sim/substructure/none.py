"""The smooth lens alone."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from deeplense.sim.substructure.base import Host, Substructure, Truth


@dataclass
class NoSubstructure:
    """No dark structure."""

    def truth(self) -> list[Truth]:
        return []

    def sample(self, rng: Generator, host: Host) -> Substructure:
        return Substructure([])
