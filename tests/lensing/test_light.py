"""Light profiles against lenstronomy and their closed-form flux."""

from typing import Any

import numpy as np
import pytest
import torch
from lenstronomy.LightModel.light_model import LightModel

from deeplense.lensing import light, raytrace
from deeplense.lensing.raytrace import Component

CASES = {
    "sersic": ("SERSIC_ELLIPSE", [
        {"amp": 20.0, "R_sersic": 0.25, "n_sersic": 1.0, "e1": -0.1, "e2": 0.1, "center_x": 0.2, "center_y": -0.3},
        {"amp": 3.0, "R_sersic": 1.1, "n_sersic": 4.0, "e1": 0.3, "e2": 0.0, "center_x": 0.0, "center_y": 0.0},
        {"amp": 1.0, "R_sersic": 0.5, "n_sersic": 0.7, "e1": 0.0, "e2": 0.0, "center_x": 0.0, "center_y": 0.1},
    ]),
    "image": ("INTERPOL", [
        {"amp": 2.0, "pixels": np.random.default_rng(0).random((9, 12)), "scale": 0.2, "angle": 0.6, "flip": flip,
         "center_x": 0.2, "center_y": -0.3} for flip in (1.0, -1.0)
    ]),
}  # fmt: skip


def as_lenstronomy(p: dict[str, Any]) -> dict[str, Any]:
    if "pixels" not in p:
        return p
    own = {k: p[k] for k in ("amp", "scale", "center_x", "center_y")}
    return own | {"image": p["pixels"][:, :: int(p["flip"])], "phi_G": p["angle"]}


def test_every_profile_has_an_oracle() -> None:
    assert set(CASES) == set(light.LIGHT)


@pytest.mark.parametrize("name", light.LIGHT)
def test_against_lenstronomy(name: str) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0, 1.5, (2, 400))
    theirs, cases = CASES[name]
    for p in cases:
        expected = LightModel([theirs]).surface_brightness(x, y, [as_lenstronomy(p)])
        component = Component(name, {k: torch.as_tensor(v, dtype=torch.float64)[None, None] for k, v in p.items()})
        got = raytrace.brightness(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None], [component])
        np.testing.assert_allclose(got[0, 0].numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_sersic", [0.5, 1.0, 2.5, 4.0])
def test_total_flux(n_sersic: float) -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    radius = torch.logspace(-4, 3.5, 40001, dtype=torch.float64)
    p = {"amp": 2 * one, "R_sersic": 0.7 * one, "n_sersic": n_sersic * one, "e1": 0 * one, "e2": 0 * one,
         "center_x": 0 * one, "center_y": 0 * one}  # fmt: skip
    profile = raytrace.brightness(radius[None, None], torch.zeros_like(radius)[None, None], [Component("sersic", p)])
    integral = torch.trapezoid(2 * torch.pi * radius * profile[0, 0], radius)
    assert float(light.sersic_flux(2 * one, 0.7 * one, n_sersic * one)) == pytest.approx(float(integral), rel=1e-4)


def test_flux_does_not_depend_on_the_shape() -> None:
    x, y = raytrace.grid(2001, 0.01, "cpu", torch.float64)
    flux = []
    for e1, e2 in ((0.0, 0.0), (0.3, -0.2)):
        p = {
            "amp": 1.0,
            "R_sersic": 0.6,
            "n_sersic": 1.0,
            "e1": e1,
            "e2": e2,
            "center_x": 0.1,
            "center_y": 0.0,
        }
        component = Component("sersic", {k: torch.full((1, 1), v, dtype=torch.float64) for k, v in p.items()})
        flux.append(float(raytrace.brightness(x, y, [component]).sum()))
    assert flux[0] == pytest.approx(flux[1], rel=1e-4)
