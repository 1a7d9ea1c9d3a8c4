"""Field halos between observer and source: how many, where, and the planes in which they deflect.

They fill the cone of the rays: in front of the lens a straight one that holds the image; behind it, where an isothermal
lens of the same θ_E has bent the rays together, as wide as they are. Places are where a halo would be seen without the
lens. The mean of each plane is taken away, for distances are those of a smooth universe, which has that mass already.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator

from deeplense.lensing import cosmology
from deeplense.lensing.cosmology import ARCSEC, Distances
from deeplense.lensing.multiplane import Planes
from deeplense.lensing.raytrace import Component
from deeplense.lensing.structure import Structure
from deeplense.sim.priors import Prior
from deeplense.sim.substructure.base import Array, Host, together

FRONT, BEHIND = 16, 6  # slices in front of the lens and behind it, equally thick on either side
ENVELOPE = -1.9  # slope of the power law that masses are drawn from before the mass function thins them


class Field(NamedTuple):
    """Halos of n images, (n, N): M200 [Msun], place [arcsec], number of the plane; which exist."""

    columns: dict[str, Array]
    mask: Array


@dataclass(frozen=True)
class Slices:
    """The way from observer to source in slices, every array (n, `FRONT` + `BEHIND`).

    A plane lies in the middle of each slice, and the lens's between them: planes are numbered with it, slices without.

    Attributes:
        z: redshift of the middle. distances: of a lens there.
        volume: comoving, behind one square arcsecond [Mpc³].
        radius: of the cone [arcsec]. inner: of the rays inside the host's inner circle.
    """

    z: Array
    volume: Array
    radius: Array
    inner: Array
    distances: Distances

    @classmethod
    def of(cls, host: Host) -> Slices:
        chi_l, chi_s = (
            cosmology.comoving_distance(z, host.H0, host.Om0, host.w0) for z in (host.z_lens, host.z_source)
        )
        front, back = ((np.arange(n)[None] + 0.5) / n for n in (FRONT, BEHIND))
        chi = np.concatenate([chi_l * front, chi_l + (chi_s - chi_l) * back], axis=1)
        thick = np.repeat(np.concatenate([chi_l / FRONT, (chi_s - chi_l) / BEHIND], axis=1), (FRONT, BEHIND), axis=1)
        z = cosmology.redshift_at(chi, host.H0, host.Om0, host.w0)
        D = Distances(
            chi / (1 + z), chi_s / (1 + host.z_source) * np.ones_like(chi), (chi_s - chi) / (1 + host.z_source)
        )
        bent = host.theta_E * np.maximum((chi - chi_l) * chi_s / (chi * (chi_s - chi_l)), 0)
        inner = np.maximum(host.inner - bent, 0.25 * host.inner)
        radius = np.maximum(np.sqrt(2) * host.half_width - bent, inner)
        return cls(z, (chi * ARCSEC) ** 2 * thick, radius, inner, D)

    def planes(self, host: Host, coupled: bool) -> Planes:
        z = torch.from_numpy(self._with(self.z, host.z_lens))
        return Planes(z, torch.from_numpy(host.z_source[:, 0]), FRONT, host.Om0, coupled, host.w0)

    def nearest(self, z: Array, host: Host) -> Array:
        """Numbers (n, N) of the planes nearest to redshifts."""
        planes = self._with(self.z, host.z_lens)
        middle = (planes[:, 1:] + planes[:, :-1]) / 2
        return np.asarray((z[..., None] > middle[:, None]).sum(-1))

    def pick(self, index: Array, host: Host) -> Host:
        """Lenses in the planes of halos, (n, N)."""

        def take(slices: Any, lens: Any) -> Array:
            return np.take_along_axis(self._with(slices, lens), index, 1)

        D = Distances(*(take(getattr(self.distances, k), getattr(host.distances, k)) for k in ("D_l", "D_s", "D_ls")))
        return dataclasses.replace(host, z_lens=take(self.z, host.z_lens), distances=D)

    @staticmethod
    def _with(slices: Array, lens: Array) -> Array:
        """(n, planes) of the slices' values and the lens's between them."""
        return np.concatenate([slices[:, :FRONT], lens, slices[:, FRONT:]], axis=1)


def expected(slices: Slices, host: Host, mass: list[float], factor: float) -> tuple[Array, Array]:
    """Halos of the envelope in each slice of the cone, and the envelope's height in dn/dM at 10⁸ M☉."""
    grid = np.geomspace(mass[0], mass[1], 64)
    law = Structure(host.H0, host.Om0, w0=host.w0).mass_function(grid, slices.z[..., None])
    height = (law / (grid / 1e8) ** ENVELOPE).max(-1) * 1.001  # the largest ratio may lie between two masses
    k = ENVELOPE + 1
    integral = 1e8 * ((mass[1] / 1e8) ** k - (mass[0] / 1e8) ** k) / k
    return factor * height * integral * slices.volume * np.pi * slices.radius**2, height


def draw(rng: Generator, slices: Slices, host: Host, mass: list[float], factor: float) -> Field:
    """Halos of cold dark matter in the cone.

    Args:
        mass: range of M200 [Msun]. factor: on the abundance.
    """
    number, height = expected(slices, host, mass, factor)
    cumulative = np.cumsum(number, axis=1)
    total = rng.poisson(cumulative[:, -1:])
    shape = (len(host), max(1, int(total.max(initial=0))))
    place = rng.random(shape) * cumulative[:, -1:]
    index = np.minimum((place[..., None] > cumulative[:, None]).sum(-1), number.shape[1] - 1)
    r = np.take_along_axis(slices.radius, index, 1) * np.sqrt(rng.random(shape))
    angle = rng.uniform(0, 2 * np.pi, shape)
    masses = Prior("power_law", (*mass, ENVELOPE)).sample(rng, shape)
    z = np.take_along_axis(slices.z, index, 1)
    envelope = np.take_along_axis(height, index, 1) * (masses / 1e8) ** ENVELOPE
    share = Structure(host.H0, host.Om0, w0=host.w0).mass_function(masses, z) / envelope
    exists = (np.arange(shape[1]) < total) & (rng.random(shape) < share)
    columns = {"mass": masses, "x": r * np.cos(angle), "y": r * np.sin(angle), "slice": index + (index >= FRONT)}
    return Field(*together(columns, exists))


def in_planes(component: Component, index: Array) -> list[Component]:
    """Deflectors (n, N) as one component for each plane but the lens's; `index` (n, N) says in which each is."""
    planes = [k for k in range(FRONT + BEHIND + 1) if k != FRONT]
    index = index if component.mask is None else np.where(component.mask.numpy(), index, FRONT)
    order = torch.from_numpy(np.argsort(index.astype(np.int8), axis=1, kind="stable"))  # by radix
    sorted_ = component.gathered(order)
    count = np.stack([(index == k).sum(1) for k in range(FRONT + BEHIND + 1)], axis=1)
    start = np.cumsum(count, axis=1) - count
    found = []
    for k in planes:
        column = np.arange(max(1, int(count[:, k].max(initial=0))))
        at = torch.from_numpy(np.minimum(start[:, k, None] + column, max(0, index.shape[1] - 1)))
        there = torch.from_numpy(column < count[:, k, None])
        found.append(dataclasses.replace(sorted_.gathered(at), mask=there, plane=k - FRONT))
    return found


def mean_convergence(slices: Slices, mean_mass: Array) -> Array:
    """(n, slices) mean convergence of each.

    Args:
        mean_mass: bound mass of halos in each slice [Msun/Mpc³, comoving], (n, slices).
    """
    return np.asarray(np.pi * slices.volume * mean_mass * slices.distances.theta_E2_per_mass)
