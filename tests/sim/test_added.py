"""A halo added by hand is the halo of its numbers; halos of pyHalo come in and go out as they are."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from lenstronomy.LensModel.lens_model import LensModel

import deeplense
from deeplense import UserError
from deeplense.lensing import halo
from deeplense.sim.added import add_halo
from deeplense.sim.exchange import from_pyhalo, to_pyhalo
from deeplense.sim.lenses import Lenses

CAMERA = {"instrument": "hst_f160w", "size": 24}
MACRO = [("epl", {"theta_E": 1.2, "gamma": 2.1, "e1": 0.1}), ("shear", {"gamma1": 0.03, "gamma2": 0.01})]
# as pyHalo's `lensing_quantities` gives them
NAMES = ["TNFW", "TNFW", "NFW", "CONVERGENCE"]
KWARGS = [
    {"alpha_Rs": 0.004, "Rs": 0.1, "center_x": 0.8, "center_y": -0.3, "r_trunc": 0.5},
    {"alpha_Rs": 0.002, "Rs": 0.07, "center_x": -0.6, "center_y": 0.9, "r_trunc": 0.3},
    {"alpha_Rs": 0.003, "Rs": 0.2, "center_x": 0.1, "center_y": 1.1},
    {"kappa": -0.01},
]


@pytest.fixture
def lens() -> Lenses:
    return deeplense.Lens(MACRO, z_lens=0.5, z_source=1.5, **CAMERA)


def test_an_added_halo_has_its_mass_and_place(lens: Lenses) -> None:
    more = add_halo(lens, 1e9, 0.4, -0.2, 15.0)
    extra = more.scenes[0].mass[-1]
    params = {k: float(v) for k, v in extra.params.items()}
    # lenstronomy's own formulas; its M200 is of ρ_crit at the lens's redshift as well
    theirs = LensCosmo(0.5, 1.5, FlatLambdaCDM(70, 0.3)).nfw_physical2angle(1e9, 15.0)
    np.testing.assert_allclose((params["R_s"], params["alpha_Rs"]), theirs, rtol=1e-3)
    assert (params["center_x"], params["center_y"]) == (0.4, -0.2)
    kpc = float(lens.world.distances_of(lens.scenes[0]).kpc_per_arcsec[0])
    assert params["r_trunc"] * kpc == pytest.approx(1.4 * 100 ** (1 / 3))
    theirs_of = LensModel(["TNFW"])
    known = {"Rs": params["R_s"], **{k: v for k, v in params.items() if k != "R_s"}}
    alpha = theirs_of.alpha(0.7, 0.1, [known])
    x, y = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[0.1]], dtype=torch.float64)
    for ours, before, expected in zip(more.deflection(x, y), lens.deflection(x, y), alpha, strict=True):
        assert float(ours - before) == pytest.approx(float(expected), rel=1e-8)
    assert len(lens.scenes[0].mass) == len(MACRO)  # the first lens is as it was


def test_without_a_concentration_it_is_the_median(lens: Lenses) -> None:
    extra = add_halo(lens, 1e9, 0.0, 0.0).scenes[0].mass[-1]
    d = lens.world.distances_of(lens.scenes[0])
    mass, c = halo.nfw_mass(extra.params["R_s"].numpy(), extra.params["alpha_Rs"].numpy(), 0.5, d)
    a, b = 0.520 + 0.385 * np.exp(-0.617 * 0.5**1.21), -0.101 + 0.026 * 0.5  # Dutton & Macciò 2014, eq. 8
    np.testing.assert_allclose(mass, 1e9, rtol=1e-8)
    np.testing.assert_allclose(c, 10 ** (a + b * np.log10(0.7e9 / 1e12)), rtol=1e-6)


@pytest.mark.parametrize(
    ("mass", "x", "c", "said"),
    [(-1.0, 0.0, None, "mass is -1"), (1e9, 0.0, 0.0, "concentration is 0"), (1e9, np.inf, None, "not finite")],
)
def test_no_halo_is_made_of_nonsense(lens: Lenses, mass: float, x: float, c: float | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        add_halo(lens, mass, x, 0.0, c)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("redshifts", [[0.5] * 4, [0.3, 0.7, 0.3, 0.5]])
def test_halos_of_pyhalo_bend_as_in_lenstronomy(lens: Lenses, redshifts: list[float]) -> None:
    more = from_pyhalo(lens, NAMES, redshifts, KWARGS)
    cosmo = FlatLambdaCDM(70, 0.3)
    several = len(set(redshifts)) > 1
    planes = {"z_source": 1.5, "multi_plane": True, "lens_redshift_list": [0.5, 0.5, *redshifts], "cosmo": cosmo}
    model = LensModel(["EPL", "SHEAR", *NAMES], **(planes if several else {}))
    epl = {"theta_E": 1.2, "gamma": 2.1, "e1": 0.1, "e2": 0.0, "center_x": 0.0, "center_y": 0.0}
    x, y = more.grid(5, 0.5)
    x, y = (x + 0 * y + 0.013).expand(5, 5), (y + 0 * x - 0.02).expand(5, 5)
    expected = model.alpha(x.numpy().ravel(), y.numpy().ravel(), [epl, {"gamma1": 0.03, "gamma2": 0.01}, *KWARGS])
    for ours, theirs in zip(more.deflection(x, y), expected, strict=True):
        np.testing.assert_allclose(ours.numpy().ravel(), theirs, atol=1e-7)
    names, z, kwargs = to_pyhalo(more)
    assert sorted(zip(z, names, strict=True)) == sorted(zip(redshifts, NAMES, strict=True))
    again = from_pyhalo(lens, names, z, kwargs)
    for a, b in zip(again.deflection(x, y), more.deflection(x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("names", "z", "said"),
    [
        (["TNFWC"], [0.5], "no lenstronomy profile that is known here, 'TNFWC'"),
        (["NFW"], [1.7], "a halo at redshift 1.7 is not between us and the source at 1.5"),
        (["NFW"], [0.5, 0.6], "lens_model_list names 1 halos, redshift_array 2"),
    ],
)
def test_halos_that_cannot_come_in(lens: Lenses, names: list[str], z: list[float], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        from_pyhalo(lens, names, z, [KWARGS[2]] * len(names))
