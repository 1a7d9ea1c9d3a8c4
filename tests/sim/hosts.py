"""Lenses for populations to live in."""

from __future__ import annotations

import numpy as np

from deeplense.lensing import cosmology
from deeplense.lensing.cosmology import Distances
from deeplense.sim.substructure import Host


def make_host(
    n: int, z_lens: float = 0.5, z_source: float = 1.0, theta_E: float = 1.2, distances: Distances | None = None
) -> Host:
    """n lenses alike, in images of 6.4 arcsec."""
    column = np.ones((n, 1))
    found = (distances or cosmology.distances(z_lens, z_source)).like(column)
    return Host(z_lens * column, z_source * column, found, theta_E * column, 0 * column, 0 * column, 3.2, 70.0, 0.3)
