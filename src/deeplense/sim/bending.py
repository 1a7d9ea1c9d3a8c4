"""What bends the rays of drawn scenes, as functions of position: deflectors summed exactly, through every plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deeplense.lensing import maps, raytrace
from deeplense.lensing.mass import Deflection
from deeplense.sim.scene import Scene


def in_plane(scene: Scene, plane: int | None) -> list[raytrace.Component]:
    """Deflectors, to be summed exactly; of one plane as if it were alone."""
    exact = (replace(c, mesh=False, fused=False) for c in scene.mass)
    return list(exact) if plane is None else [replace(c, plane=0) for c in exact if c.plane == plane]


def deflection_of(scene: Scene, plane: int | None) -> Callable[[Tensor, Tensor], Deflection]:
    mass, scale = in_plane(scene, plane), scene.deflection_scale[:, None, None]

    def alpha(x: Tensor, y: Tensor) -> Deflection:
        x, y = x + torch.zeros_like(scale), y + torch.zeros_like(scale)
        if plane is None and scene.planes is not None:
            alpha_x, alpha_y = scene.planes.deflection(x, y, mass)
        else:
            alpha_x, alpha_y = raytrace.deflection(x, y, mass)
        return alpha_x * scale, alpha_y * scale

    return alpha


def jacobian_of(scene: Scene, plane: int | None) -> Callable[[Tensor, Tensor], maps.Jacobian]:
    def found(x: Tensor, y: Tensor) -> maps.Jacobian:
        if plane is None and scene.planes is not None:
            return maps.jacobian_of(x, y, deflection_of(scene, plane))
        scale = scene.deflection_scale[:, None, None]
        return maps.Jacobian(*(v * scale for v in maps.jacobian(x, y, in_plane(scene, plane))))

    return found
