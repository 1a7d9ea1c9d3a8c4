"""The recursive lens equation against lenstronomy's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.LensModel.lens_model import LensModel

from deeplense.lensing import cosmology, raytrace
from deeplense.lensing.multiplane import Plane, Planes, trace
from deeplense.lensing.raytrace import Component

Z = (0.2, 0.5, 0.5, 0.9, 1.3)  # of each deflector; the source is at 1.5
NAMES = ("NFW", "SIE", "SHEAR", "NFW", "POINT_MASS")


def tensors(**values: list[float]) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(v, dtype=torch.float64)[:, None] for k, v in values.items()}


def comoving(*z: float) -> torch.Tensor:
    return torch.from_numpy(cosmology.comoving_distance(np.array(z)))


def scene(row: int) -> list[dict[str, Any]]:
    """Parameters of image `row` for lenstronomy."""
    place = ({"center_x": 0.3 - row, "center_y": 0.1}, {"center_x": 0.05, "center_y": -0.02 * row})
    return [
        {"Rs": 0.5, "alpha_Rs": 0.02 * (1 + row), **place[0]},
        {"theta_E": 1.2, "e1": 0.1, "e2": -0.05, **place[1]},
        {"gamma1": 0.03, "gamma2": -0.02, "ra_0": 0, "dec_0": 0},
        {"Rs": 0.3, "alpha_Rs": 0.03, "center_x": -0.4, "center_y": 0.5},
        {"theta_E": 0.1, "center_x": 0.2, "center_y": -0.6},
    ]


def planes() -> list[Plane]:
    halo = [scene(0)[0], scene(1)[0]]
    near = tensors(R_s=[0.5, 0.5], **{k: [h[k] for h in halo] for k in ("alpha_Rs", "center_x", "center_y")})
    main = tensors(theta_E=[1.2, 1.2], e1=[0.1, 0.1], e2=[-0.05, -0.05], center_x=[0.05, 0.05], center_y=[0, -0.02])
    far = tensors(R_s=[0.3, 0.3], alpha_Rs=[0.03, 0.03], center_x=[-0.4, -0.4], center_y=[0.5, 0.5])
    last = tensors(theta_E2=[0.01, 0.01], center_x=[0.2, 0.2], center_y=[-0.6, -0.6])
    galaxy = [Component("sie", main), Component("shear", tensors(gamma1=[0.03, 0.03], gamma2=[-0.02, -0.02]))]
    groups = (0.2, [Component("nfw", near)]), (0.5, galaxy), (0.9, [Component("nfw", far)])
    every = [Plane(comoving(z, z), mass) for z, mass in groups]
    return [*every, Plane(comoving(1.3, 1.3), [Component("point_mass", last)])]


def test_rays_against_lenstronomy() -> None:
    x, y = raytrace.grid(21, 0.2, "cpu", torch.float64)
    beta_x, beta_y = trace(x + 0.013, y - 0.007, planes(), comoving(1.5, 1.5))
    model = LensModel(
        list(NAMES), z_source=1.5, lens_redshift_list=list(Z), multi_plane=True, cosmo=FlatLambdaCDM(H0=70, Om0=0.3)
    )
    at_x, at_y = (v.numpy().ravel() for v in torch.broadcast_tensors(x[0] + 0.013, y[0] - 0.007))
    for row in range(2):
        expected = model.ray_shooting(at_x, at_y, scene(row))
        np.testing.assert_allclose(beta_x[row].numpy().ravel(), expected[0], atol=1e-6)
        np.testing.assert_allclose(beta_y[row].numpy().ravel(), expected[1], atol=1e-6)


def test_one_plane_is_the_usual_lens_equation() -> None:
    x, y = raytrace.grid(9, 0.3, "cpu", torch.float64)
    only = planes()[1]
    alpha_x, alpha_y = raytrace.deflection(x, y, only.mass)
    beta_x, beta_y = trace(x, y, [only], comoving(1.5, 1.5))
    torch.testing.assert_close(beta_x, x - alpha_x, rtol=0, atol=1e-13)
    torch.testing.assert_close(beta_y, y - alpha_y, rtol=0, atol=1e-13)


def test_components_find_their_planes() -> None:
    """Whatever their order, and image by image."""
    x, y = raytrace.grid(9, 0.3, "cpu", torch.float64)
    expected = trace(x, y, planes(), comoving(1.5, 1.5))
    mass = [dataclasses.replace(c, plane=k - 1) for k, plane in enumerate(planes()) for c in plane.mass][::-1]
    z = torch.tensor([[0.2, 0.5, 0.9, 1.3]] * 2, dtype=torch.float64)
    where = Planes(z, torch.tensor([1.5, 1.5], dtype=torch.float64), front=1, Om0=0.3)
    for rows in (slice(0, 2), slice(1, 2)):
        alpha = where[rows].deflection(x, y, [c[rows] for c in mass])
        for a, at, beta in zip(alpha, (x, y), expected, strict=True):
            torch.testing.assert_close(at - a, beta[rows], rtol=0, atol=1e-12)


def test_planes_keep_their_order() -> None:
    x, y = raytrace.grid(3, 0.3, "cpu", torch.float64)
    with pytest.raises(ValueError, match="follow each other"):
        trace(x, y, planes()[::-1], comoving(1.5, 1.5))


def test_mass_in_several_planes_wants_its_planes() -> None:
    one = torch.full((1, 1), 1.0, dtype=torch.float64)
    mass = [
        Component("sie", {"theta_E": one, **dict.fromkeys(("e1", "e2", "center_x", "center_y"), 0 * one)}),
        Component("point_mass", {"theta_E2": 0.05 * one, "center_x": 0.5 * one, "center_y": 0.2 * one}, plane=1),
    ]
    x, y = (torch.tensor([[[1.3, -0.7]]], dtype=torch.float64) * s for s in (1.0, 0.6))
    for call in (raytrace.deflection, raytrace.magnification):
        with pytest.raises(ValueError, match=r"several planes; use the scene's planes"):
            call(x, y, mass)
    z = torch.tensor([[0.5, 0.9]], dtype=torch.float64)
    planes = Planes(z, torch.tensor([1.5], dtype=torch.float64), 0, 0.3, coupled=True)
    h, found = 1e-6, raytrace.magnification(x, y, mass, planes)
    right, left = (planes.deflection(x + s, y, mass) for s in (h, -h))
    up, down = (planes.deflection(x, y + s, mass) for s in (h, -h))
    xx, yx, xy, yy = ((a - b) / (2 * h) for a, b in zip((*right, *up), (*left, *down), strict=True))
    torch.testing.assert_close(found, 1 / ((1 - xx) * (1 - yy) - xy * yx), rtol=1e-6, atol=1e-8)
