"""`engine: lenstronomy` knows every deflector, by its own names and units, and scales it as our renderer does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeplense.lensing import raytrace
from deeplense.lensing.mass import MASS
from deeplense.lensing.raytrace import Component
from deeplense.sim import reference
from deeplense.sim.scene import Scene

PARAMS: dict[str, dict[str, float]] = {
    "sie": {"theta_E": 1.2, "e1": 0.1, "e2": -0.2},
    "epl": {"theta_E": 1.2, "gamma": 2.3, "e1": 0.1, "e2": -0.2},
    "multipole": {"m": 4.0, "a_m": 0.03, "phi_m": 0.4},
    "shear": {"gamma1": 0.05, "gamma2": -0.02},
    "mass_sheet": {"kappa": -0.02},
    "point_mass": {"theta_E2": 0.01},
    "plummer": {"theta_E2": 0.01, "r_s": 0.3},
    "line_mass": {"theta_E2": 0.1, "half_length": 0.5, "angle": 0.7},
    "nfw": {"R_s": 0.4, "alpha_Rs": 0.02},
    "tnfw": {"R_s": 0.4, "alpha_Rs": 0.02, "r_trunc": 1.0},
    "cnfw": {"R_s": 0.4, "alpha_Rs": 0.02, "r_core": 0.1},
    "soliton": {"kappa_0": 0.05, "theta_c": 0.2},
    "square_sheet": {"kappa": -0.01, "half_width": 2.5},
    "plane_wave": {"kappa": 0.01, "k_x": 3.0, "k_y": -2.0, "phase": 0.3},
    "ctnfw": {"R_s": 0.4, "alpha_Rs": 0.02, "r_trunc": 1.0, "r_core": 0.1},
}


def test_every_deflector_has_a_name() -> None:
    assert set(reference.MASS) == set(MASS) == set(PARAMS)


@pytest.mark.parametrize("name", MASS)
def test_deflection(name: str) -> None:
    params = PARAMS[name] if name in ("shear", "plane_wave") else PARAMS[name] | {"center_x": 0.1, "center_y": -0.2}
    component = Component(name, {k: torch.tensor([[v]], dtype=torch.float64) for k, v in params.items()})
    scale = torch.tensor([0.63], dtype=torch.float64)
    scene = Scene([component], [], [], scale, torch.ones(1), 0, torch.zeros(1, dtype=torch.int64), {})
    model, kwargs = reference._lens_model(scene, 0)
    x, y = np.random.default_rng(0).uniform(-2, 2, (2, 50))
    expected = np.stack(model.alpha(x, y, kwargs))
    ours = raytrace.deflection(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None], [component])
    np.testing.assert_allclose(0.63 * torch.stack(ours)[:, 0, 0].numpy(), expected, rtol=1e-6)
