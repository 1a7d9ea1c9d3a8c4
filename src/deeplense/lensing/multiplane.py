"""Lenses at several redshifts on one line of sight: the recursive lens equation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deeplense.lensing import cosmology, decoupled, raytrace
from deeplense.lensing.mass import Deflection
from deeplense.lensing.raytrace import Component, Plane

__all__ = ["Plane", "Planes", "trace"]


@dataclass(frozen=True)
class Planes:
    """Redshifts of the planes that `Component.plane` counts, in B images.

    Attributes:
        z: (B, P), rising. z_source: (B,). Both stay on the CPU.
        front: how many planes are in front of the lens's.
        Om0, w0: of the flat cosmology; its H0 cancels.
        coupled: rays are bent in every plane on their way, one after the other; if not, as in `decoupled.py`.
    """

    z: Tensor
    z_source: Tensor
    front: int
    Om0: float
    coupled: bool = True
    w0: float = -1.0

    def __getitem__(self, rows: slice | Tensor) -> Planes:
        return replace(self, z=self.z[rows], z_source=self.z_source[rows])

    def distances(self) -> tuple[Tensor, Tensor]:
        """Comoving, to the planes (B, P) and the source (B,) [Mpc], on the CPU."""
        z, z_source = (
            cosmology.comoving_distance(z.numpy(), Om0=self.Om0, w0=self.w0) for z in (self.z, self.z_source)
        )
        return torch.from_numpy(z), torch.from_numpy(z_source)

    def bending(self, plane: int) -> Tensor:
        """(B,) share of the lens's deflection by which rays have moved where they meet a plane, 0 in front of it."""
        chi, chi_s = self.distances()
        there, lens = chi[:, self.front + plane], chi[:, self.front]
        return ((there - lens) * chi_s / (there * (chi_s - lens))).clamp_min(0)

    def deflection(
        self, x: Tensor, y: Tensor, mass: Sequence[Component], nodes: tuple[int, float] | None = None
    ) -> Deflection:
        """θ − β of the whole way, (B, H, W) [arcsec].

        Args:
            x, y, mass: as of `raytrace.deflection`.
            nodes: number a side and spacing [arcsec] of the grid on which many halos of a plane may be summed, where
                planes are not coupled.
        """
        chi, chi_s = (distance.to(x) for distance in self.distances())
        every = {k: [c for c in mass if c.plane == k] for k in sorted({0, *(c.plane for c in mass)})}
        planes = {k: Plane(chi[:, self.front + k], found) for k, found in every.items()}
        if self.coupled:
            beta_x, beta_y = trace(x, y, [p for p in planes.values() if p.mass], chi_s)
        else:
            beta_x, beta_y = decoupled.trace(x, y, planes, chi_s, nodes)
        return x - beta_x, y - beta_y


def trace(x: Tensor, y: Tensor, planes: Sequence[Plane], distance_source: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays meet the source plane.

    x_{j+1} = x_j + (χ_{j+1} − χ_j)(θ − Σ_{i≤j} α̂_i(x_i/χ_i)), α̂ = α χ_s/(χ_s − χ_i) (Schneider, Ehlers & Falco 1992,
    eq. 9.7a, in comoving coordinates). With one plane it is θ − α.

    Args:
        x, y: (B, H, W), or what broadcasts to it [arcsec]. planes: in the order in which an image's rays meet them,
            farther and farther. distance_source: (B,), comoving [Mpc].

    Returns:
        beta_x, beta_y: (B, H, W) [arcsec].

    Raises:
        ValueError: planes out of order.
    """
    source = distance_source[:, None, None]
    slope_x, slope_y = x + 0 * y + 0 * source, y + 0 * x + 0 * source
    at_x, at_y, here = torch.zeros_like(slope_x), torch.zeros_like(slope_y), torch.zeros_like(source)
    for plane in planes:
        there = plane.distance[:, None, None]
        if bool((there <= here).any()) or bool((there >= source).any()):
            raise ValueError("planes must follow each other between observer and source")
        at_x, at_y = at_x + (there - here) * slope_x, at_y + (there - here) * slope_y
        alpha_x, alpha_y = raytrace.deflection(at_x / there, at_y / there, plane.mass)
        lever = source / (source - there)
        slope_x, slope_y = slope_x - lever * alpha_x, slope_y - lever * alpha_y
        here = there
    return at_x / source + (1 - here / source) * slope_x, at_y / source + (1 - here / source) * slope_y
