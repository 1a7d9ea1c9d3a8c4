"""The macro lens as deflectors, and its mass made to fit what the substructure adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense.errors import UserError
from deeplense.lensing import raytrace
from deeplense.lensing.raytrace import Component

Array = NDArray[np.float64]
DIRECTIONS = 128  # around the circle on which masses are compared
MOST = 0.9  # of the mass inside θ_E that substructure may hold
LARGEST = 1e-12  # a multipole weaker than that is none


def macro_lens(drawn: Mapping[str, Array], alike: bool = False) -> list[Component]:
    """SIE (or power-law ellipsoid), multipoles where there are any, and shear of n lenses.

    Args:
        drawn: "lens.NAME" -> (n,). alike: they are the same in all images.
    """

    def column(name: str) -> Tensor:
        return torch.from_numpy(drawn[f"lens.{name}"])[:, None]

    center = {k: column(k) for k in ("center_x", "center_y")}
    shape = {k: column(k) for k in ("theta_E", "e1", "e2")} | center
    isothermal = bool((drawn["lens.gamma"] == 2).all())
    found = [Component("sie", shape) if isothermal else Component("epl", shape | {"gamma": column("gamma")})]
    orders = [m for m in (3, 4) if np.abs(drawn[f"lens.a{m}"]).max(initial=0) > LARGEST]
    if orders:
        names = {"a_m": "a", "phi_m": "phi"}
        params = {k: torch.cat([column(f"{v}{m}") for m in orders], 1) for k, v in names.items()}
        # lenstronomy's multipoles are of a lens of any size; ours scale with the lens
        params["a_m"] = params["a_m"] * column("theta_E")
        params["m"] = torch.tensor(orders, dtype=torch.float64).expand_as(params["a_m"])
        found.append(Component("multipole", params | {k: v.expand_as(params["a_m"]) for k, v in center.items()}))
    found.append(Component("shear", {k: column(k) for k in ("gamma1", "gamma2")}))
    return [dataclasses.replace(c, alike=alike) for c in found]


def match_mass(drawn: Mapping[str, Array], substructure: list[Component]) -> Array:
    """Einstein radii (n,) of macro lenses which, with the substructure, hold the mass that theirs alone would.

    The mass inside a circle is the mean radial deflection on it (Gauss), that of a power law goes as θ_E^(γ−1).

    Raises:
        UserError: the substructure alone is heavier.
    """
    radius = drawn["lens.theta_E"]
    if not substructure or not len(radius):
        return radius
    alone = _radial(drawn, macro_lens(drawn)[:1])
    left = 1 - _radial(drawn, substructure) / alone
    if (left < 1 - MOST).any():
        raise UserError(
            f"simulation.match_mass: substructure holds {1 - left.min():.0%} of the mass inside theta_E; lower its mass"
        )
    return np.asarray(radius * left ** (1 / (drawn["lens.gamma"] - 1)))


def _radial(drawn: Mapping[str, Array], mass: list[Component]) -> Array:
    """(n,) mean radial deflection on the circle θ_E around the macro lens."""
    angle = torch.arange(DIRECTIONS, dtype=torch.float64) * (2 * torch.pi / DIRECTIONS)
    cos, sin = torch.cos(angle), torch.sin(angle)
    x, y, r = (torch.from_numpy(drawn[f"lens.{k}"])[:, None, None] for k in ("center_x", "center_y", "theta_E"))
    alpha_x, alpha_y = raytrace.deflection(x + r * cos, y + r * sin, mass)
    return np.asarray((alpha_x * cos + alpha_y * sin).mean((1, 2)).numpy())
