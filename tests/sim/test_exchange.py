"""lenstronomy's keyword arguments: out and in again is the same lens, and what cannot be said is refused."""

from __future__ import annotations

import pytest
import torch
from test_multi_plane import PLANES, world_of

import deeplense
from deeplense.errors import UserError
from deeplense.sim.exchange import LIGHT, MASS, from_lenstronomy, to_lenstronomy
from deeplense.sim.world import World

CAMERA = {"instrument": "hst_f160w", "size": 24}


def test_out_and_in_again_is_the_same_lens() -> None:
    mass = [
        ("sie", {"theta_E": 1.1, "e1": 0.1, "e2": -0.2, "center_x": 0.02}),
        ("epl", {"theta_E": 0.2, "gamma": 2.2, "center_y": 0.3}),
        ("shear", {"gamma1": 0.02, "gamma2": -0.04}),
        ("multipole", {"m": 4, "a_m": 0.01, "phi_m": 0.3}),
        ("mass_sheet", {"kappa": 0.01, "center_x": 0.1}),
        ("point_mass", {"theta_E2": 0.01, "center_x": 0.7}),
        ("nfw", {"R_s": 0.2, "alpha_Rs": 0.01}),
        ("tnfw", {"R_s": 0.2, "alpha_Rs": 0.01, "r_trunc": 0.5}),
        ("cnfw", {"R_s": 0.2, "alpha_Rs": 0.01, "r_core": 0.1}),
    ]
    assert {ours for ours, _ in MASS.values()} == {name for name, _ in mass}
    light = [("sersic", {"amp": 3.0, "R_sersic": 0.3, "n_sersic": 2.0, "e1": 0.1, "center_x": 0.1})]
    one = deeplense.Lens(mass, light, light, z_lens=0.4, z_source=1.7, **CAMERA)
    again = from_lenstronomy(**to_lenstronomy(one), **CAMERA)
    torch.testing.assert_close(again.image(), one.image(), rtol=1e-10, atol=0)
    torch.testing.assert_close(again.time_delay(), one.time_delay(), rtol=1e-10, atol=1e-9)


def test_a_drawn_lens_goes_out_and_in() -> None:
    one = World("realistic/euclid").draw(12, seed=1)
    lens = next(k for k in one if k.classes == ["no_sub"])
    again = from_lenstronomy(**to_lenstronomy(lens), instrument="euclid_vis", size=lens.world.size)
    for a, b in zip(again.deflection(), lens.deflection(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_said_is_refused_in_one_line() -> None:
    drawn = World("realistic/euclid").draw(12, seed=1)
    with pytest.raises(UserError, match=r"12 lenses; give one of them"):
        to_lenstronomy(drawn)
    with pytest.raises(UserError, match=r"lenstronomy has no line_mass; draw a class without"):
        to_lenstronomy(next(k for k in drawn if k.classes == ["axion"]))
    with pytest.raises(UserError, match=r"several planes"):
        to_lenstronomy(world_of("cdm", **PLANES).draw(1))
    for names, kwargs, said in (
        (["EPLL"], [{}], r"no lenstronomy profile that is known here, 'EPLL'; did you mean 'EPL'"),
        (["EPL", "SHEAR"], [{}], r"lens_model_list names 2 profiles, but there are keyword arguments of 1"),
        (["SHEAR"], [{"gamma1": 0.1, "gamma2": 0.0, "ra_0": 1.0}], r"SHEAR: ra_0 and dec_0 are not 0"),
        (["SIE"], [{"theta_E": 1.0, "e3": 0.0}], r"mass\.sie has no parameter 'e3'"),
    ):
        with pytest.raises(UserError, match=said):
            from_lenstronomy(names, kwargs)


def test_light_profiles_are_known_by_both_names() -> None:
    assert {ours for ours, _ in LIGHT.values()} == {"sersic"}
    params = {"amp": 1.0, "R_sersic": 0.4, "n_sersic": 1.0, "center_x": 0.0, "center_y": 0.0}
    round_, ellipse = (
        from_lenstronomy([], [], [name], [params | more], **CAMERA)
        for name, more in (("SERSIC", {}), ("SERSIC_ELLIPSE", {"e1": 0.0, "e2": 0.0}))
    )
    assert torch.equal(round_.image(), ellipse.image())
