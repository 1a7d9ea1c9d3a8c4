"""COOLEST templates: one written by hand is the lens that it says, and out and in again is the same lens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deeplense
from deeplense import UserError
from deeplense.sim.coolest import read_coolest, write_coolest


def values(**parameters: float) -> dict[str, Any]:
    return {k: {"point_estimate": {"value": v}} for k, v in parameters.items()}


def template() -> dict[str, Any]:
    """By hand, after the standard: angles from north to east, in degrees."""
    sie = {"type": "SIE", "parameters": values(theta_E=1.2, q=0.7, phi=0.0, center_x=0.0, center_y=0.0)}
    shear = {"type": "ExternalShear", "parameters": values(gamma_ext=0.05, phi_ext=90.0)}
    light = {"type": "Sersic", "parameters": values(I_eff=2.0, theta_eff=0.3, n=1.5, q=0.6, phi=45.0, center_x=0.1,
                                                    center_y=-0.1)}  # fmt: skip
    return {
        "standard": "COOLEST",
        "mode": "MAP",
        "lensing_entities": [
            {"type": "Galaxy", "name": "lens", "redshift": 0.5, "mass_model": [sie], "light_model": []},
            {"type": "MassField", "name": "shear", "redshift": 0.5, "mass_model": [shear]},
            {"type": "Galaxy", "name": "source", "redshift": 2.0, "mass_model": [], "light_model": [light]},
        ],
        "observation": {"pixels": {"num_pix_x": 40, "num_pix_y": 40}},
        "instrument": {"pixel_size": 0.06},
        "cosmology": {"H0": 67.7, "Om0": 0.31, "astropy_name": "FlatLambdaCDM"},
    }


def written(tree: Any, folder: Path) -> Path:
    path = folder / "lens.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


def test_a_template_is_the_lens_that_it_says(tmp_path: Path) -> None:
    one = read_coolest(written(template(), tmp_path), instrument="hst_f160w")
    assert (one.world.size, one.world.pixel_scale) == (40, 0.06)
    assert (one.world.simulation.cosmology.H0, one.world.simulation.cosmology.Om0) == (67.7, 0.31)
    sie, shear = one.scenes[0].mass
    # long axis along y: κ = θ_E/(2 √(y²q + x²/q)); a shear along x, at 90° from y, stretches along x
    c = 0.3 / 1.7
    assert [float(sie.params[k]) for k in ("theta_E", "e1", "e2")] == pytest.approx([1.2, -c, 0.0], abs=1e-12)
    assert [float(shear.params[k]) for k in ("gamma1", "gamma2")] == pytest.approx([0.05, 0.0], abs=1e-12)
    x, y = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[0.9]], dtype=torch.float64)
    assert float(one.kappa(x, y)) == pytest.approx(0.6 / np.sqrt(0.81 * 0.7 + 0.16 / 0.7), rel=1e-9)
    # 45° from y towards −x (east): brighter there than on the other diagonal
    corners = torch.tensor([[-0.1, 0.1], [0.3, 0.1]], dtype=torch.float64)[..., None, None]
    bright = [float(one.source(x, y)) for x, y in corners]
    assert bright[0] > bright[1]
    assert float(one.scenes[0].source[0].params["amp"]) == 2.0


def test_out_and_in_again_is_the_same_lens(tmp_path: Path) -> None:
    mass = [
        ("epl", {"theta_E": 1.1, "gamma": 2.2, "e1": 0.1, "e2": -0.2, "center_x": 0.02}),
        ("sie", {"theta_E": 0.3, "center_y": 0.9}),
        ("shear", {"gamma1": 0.03, "gamma2": -0.02}),
        ("mass_sheet", {"kappa": 0.02}),
    ]
    light = ("sersic", {"amp": 2.0, "R_sersic": 0.3, "n_sersic": 1.5, "e1": -0.2, "e2": 0.1})
    settings = {"z_lens": 0.4, "z_source": 1.7, "instrument": "hst_f160w", "size": 30}
    one = deeplense.Lens(mass, [light], [("sersic", {**light[1], "R_sersic": 0.6})], **settings)
    again = read_coolest(write_coolest(one, tmp_path / "out.json"), instrument="hst_f160w")
    torch.testing.assert_close(again.image(), one.image(), rtol=1e-9, atol=0)
    torch.testing.assert_close(again.time_delay(), one.time_delay(), rtol=1e-9, atol=1e-9)


def edited(**changes: Any) -> dict[str, Any]:
    return template() | changes


def without_value() -> dict[str, Any]:
    tree = template()
    tree["lensing_entities"][0]["mass_model"][0]["parameters"]["q"]["point_estimate"]["value"] = None
    return tree


def unknown() -> dict[str, Any]:
    tree = template()
    tree["lensing_entities"][0]["mass_model"][0]["type"] = "Chameleon"
    return tree


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, r"no COOLEST template; its 'standard'"),
        ("nothing", r"lens\.json"),
        (unknown(), r"no COOLEST profile that is known here, 'Chameleon'"),
        (without_value(), r"lens: SIE\.q has no point estimate; give it"),
        (edited(lensing_entities=[]), r"needs mass at one redshift"),
        (edited(lensing_entities=3), r"not built as a COOLEST template is"),
    ],
)
def test_bad_templates_are_told_in_one_line(tree: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        read_coolest(written(tree, tmp_path))
    assert "\n" not in str(error.value)


def test_what_the_standard_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.json: No such file"):
        read_coolest(tmp_path / "missing.json")
    one = deeplense.Lens([("nfw", {"R_s": 1.0, "alpha_Rs": 0.1})], instrument="hst_f160w", size=20)
    with pytest.raises(UserError, match=r"the COOLEST standard has no nfw"):
        write_coolest(one, tmp_path / "out.json")
