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
from deeplense.lensing.mass import MASS
from deeplense.lensing.multiplane import Planes
from deeplense.lensing.raytrace import Component

MACRO = ("sie", "epl", "multipole", "shear")  # profiles of the macro lens; any other is dark structure
Array = NDArray[np.float64]
DIRECTIONS = 128  # around the circle on which masses are compared, for what is not circular
NODES, CROWDING = 8, 6.0  # for what is
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


def share_of_mass(drawn: Mapping[str, Array], substructure: list[Component], planes: Planes | None = None) -> Array:
    """(n,) mass that substructure adds inside θ_E over that of the macro lens alone, which may be negative.

    The mass inside a circle is the mean radial deflection on it (Gauss). Behind the lens the circle is smaller, as its
    rays have been bent.
    """
    if not substructure or not len(drawn["lens.theta_E"]):
        return np.zeros(len(drawn["lens.theta_E"]))
    return _radial(drawn, substructure, planes) / _radial(drawn, macro_lens(drawn)[:1])


def match_mass(drawn: Mapping[str, Array], share: Array) -> Array:
    """Einstein radii (n,) of macro lenses which, with the substructure, hold the mass that theirs alone would.

    The mass inside θ_E of a power law goes as θ_E^(γ−1).

    Args:
        share: as `share_of_mass` says.

    Raises:
        UserError: the substructure alone is heavier.
    """
    if (share > MOST).any():
        raise UserError(
            f"simulation.match_mass: substructure holds {share.max():.0%} of the mass inside theta_E; lower its mass"
        )
    return np.asarray(drawn["lens.theta_E"] * (1 - share) ** (1 / (drawn["lens.gamma"] - 1)))


def _radial(drawn: Mapping[str, Array], mass: list[Component], planes: Planes | None = None) -> Array:
    """(n,) mean radial deflection of the rays on the circle θ_E around the macro lens."""
    x, y, theta_E = (torch.from_numpy(drawn[f"lens.{k}"])[:, None] for k in ("center_x", "center_y", "theta_E"))
    total = torch.zeros_like(theta_E[:, 0])
    for component in mass:
        R = theta_E if planes is None else theta_E * (1 - planes.bending(component.plane))[:, None]
        if MASS[component.profile].circular:
            total += _radial_of_circular(component, x, y, R)
        else:
            angle = torch.arange(DIRECTIONS, dtype=torch.float64) * (2 * torch.pi / DIRECTIONS)
            cos, sin = torch.cos(angle), torch.sin(angle)
            on_circle = (x + R * cos)[:, None], (y + R * sin)[:, None]
            alpha_x, alpha_y = raytrace.deflection(*on_circle, [component])
            total += (alpha_x * cos + alpha_y * sin).mean((1, 2))
    return total.numpy()


def _radial_of_circular(component: Component, x: Tensor, y: Tensor, R: Tensor) -> Tensor:
    """(n,) the same, of circular profiles, each symmetric about its own direction.

    1/π ∫₀^π (α/s)(R − d cos φ) dφ for a halo at distance d, s² = R² + d² − 2 R d cos φ, by Gauss's nodes that crowd at
    φ = 0, next to the halo: φ ∝ sinh(`CROWDING` t). To 1e-3 of the halo's mass wherever it is.
    """
    profile = MASS[component.profile]
    t, weight = np.polynomial.legendre.leggauss(NODES)
    t = CROWDING * (1 + t) / 2
    phi = np.pi * np.sinh(t) / np.sinh(CROWDING)
    weight = weight * np.cosh(t) * (CROWDING / 2 / np.sinh(CROWDING))
    half, cos, share = (torch.from_numpy(v)[:, None].float() for v in (4 * np.sin(phi / 2) ** 2, np.cos(phi), weight))
    there = torch.ones_like(component.params["center_x"], dtype=torch.bool)
    there = there if component.mask is None else component.mask
    image = there.nonzero()[:, 0]
    halos = {k: v.expand(there.shape)[there] for k, v in component.params.items()}
    d = torch.hypot(halos.pop("center_x") - x[image, 0], halos.pop("center_y") - y[image, 0])
    r, beyond = R[image, 0].float(), (R[image, 0] - d).float()  # before digits are lost
    d = d.float()
    total = torch.zeros_like(R[:, 0])
    step = raytrace.CHUNK // NODES
    for k in (slice(start, start + step) for start in range(0, len(d), step)):
        s2 = beyond[k] ** 2 + r[k] * d[k] * half
        ratio = profile.function(s2, **{name: v[k].float() for name, v in halos.items()})
        each = (ratio * (beyond[k] + d[k] * (1 - cos)) * share).sum(0)
        total.index_add_(0, image[k], each.double())
    return total
