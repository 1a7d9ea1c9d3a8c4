"""From the rows of halos to deflectors."""

from __future__ import annotations

import numpy as np
import torch

from deeplense.lensing import halo
from deeplense.lensing.mass.nfw import G_AT_R_S
from deeplense.lensing.raytrace import Component
from deeplense.sim.substructure.base import Array, Host, tensors


def deflectors(rows: dict[str, Array], mask: Array, host: Host) -> list[Component]:
    """Truncated NFW halos, those with a core, and solitons.

    A halo keeps the bound mass that M200, concentration and truncation say, whatever its scale radius became; a soliton
    takes its own out of it.

    Args:
        rows: of `HALO_COLUMNS`, (n, N). mask: which exist. host: of each image, or of each halo.
    """
    d, radius = host.distances, halo.nfw_parameters
    R_s, _ = radius(rows["mass"], rows["concentration"], host.z_lens, d, host.H0, host.Om0, host.w0)
    m_s = halo.scale_mass(rows["mass"], rows["concentration"])
    left = halo.tnfw_total_mass(m_s, rows["r_trunc"] / R_s) - rows["soliton"]
    scale = left / halo.tnfw_total_mass(1.0, rows["r_trunc"] / rows["r_s"])
    place = {"center_x": rows["x"], "center_y": rows["y"]}
    cuspy = {
        "R_s": rows["r_s"],
        "alpha_Rs": d.theta_E2_per_mass * scale * G_AT_R_S / rows["r_s"],
        "r_trunc": rows["r_trunc"],
        **place,
    }
    cored = mask & (rows["r_core"] > 0)
    core = np.where(rows["r_core"] > 0, rows["r_core"], 1.0)
    soliton = {"kappa_0": halo.soliton_kappa_0(rows["soliton"], core, d), "theta_c": core, **place}
    made = {
        "tnfw": (cuspy, mask & ~cored),
        "ctnfw": (cuspy | {"r_core": core}, cored),
        "soliton": (soliton, mask & (rows["soliton"] > 0)),
    }
    found = [Component(name, tensors(p), torch.from_numpy(there)) for name, (p, there) in made.items() if there.any()]
    return found or [Component("tnfw", tensors(cuspy), torch.from_numpy(mask))]
