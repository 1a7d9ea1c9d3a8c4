"""Potentials and Jacobians of every deflector: against lenstronomy, and against our own deflection."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from test_mass import CASES, Lenstronomy, evaluate, points
from torch import Tensor

from deeplense.errors import UserError
from deeplense.lensing import maps, raytrace
from deeplense.lensing.mass import MASS
from deeplense.lensing.raytrace import Component


def component(name: str, p: dict[str, float]) -> list[Component]:
    return [Component(name, {k: torch.full((1, 1), v, dtype=torch.float64) for k, v in p.items()})]


def positions() -> tuple[Tensor, Tensor]:
    x, y = (torch.from_numpy(v)[None, None] for v in points())
    return x, y


def every_case() -> Iterator[tuple[str, dict[str, float]]]:
    yield from ((name, p) for name in MASS for p in CASES[name][1])


@pytest.mark.parametrize(("name", "p"), every_case())
def test_the_gradient_of_the_potential_is_the_deflection(name: str, p: dict[str, float]) -> None:
    x, y = (v.requires_grad_() for v in positions())
    gradient = torch.autograd.grad(maps.potential(x, y, component(name, p)).sum(), (x, y))
    ax, ay = raytrace.deflection(x.detach(), y.detach(), component(name, p))
    error = torch.hypot(gradient[0] - ax, gradient[1] - ay) / torch.hypot(ax, ay)
    assert float(error.max()) < 1e-6


@pytest.mark.parametrize(("name", "p"), every_case())
def test_differences_of_the_potential_are_the_integral_of_the_deflection(name: str, p: dict[str, float]) -> None:
    """Without automatic differentiation: Gauss's nodes along a straight path that passes no singular point."""
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(60))
    t = 0.5 * (1 + node)
    (x0, y0), (x1, y1) = (0.4, 0.3), (1.3, 2.2)
    x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
    ax, ay = evaluate(name, x, y, p)
    expected = float((0.5 * weight * (ax * (x1 - x0) + ay * (y1 - y0))).sum())
    ends = (torch.tensor([[v]], dtype=torch.float64) for v in ((x0, x1), (y0, y1)))
    psi = maps.potential(*ends, component(name, p))[0, 0]
    size = float((weight * torch.hypot(ax, ay)).sum())
    assert float(psi[1] - psi[0]) == pytest.approx(expected, rel=1e-7, abs=1e-7 * size)


@pytest.mark.parametrize("name", [n for n in MASS if isinstance(CASES[n][0], Lenstronomy) and n != "cnfw"])
def test_the_potential_is_lenstronomys(name: str) -> None:
    """All but `cnfw`, of which lenstronomy's own quadrature is right to 1 % only."""
    oracle, cases = CASES[name]
    assert isinstance(oracle, Lenstronomy)
    for p in cases:
        x, y = positions()
        ours = maps.potential(x, y, component(name, p))[0, 0].numpy()
        theirs = oracle.model.potential(x[0, 0].numpy(), y[0, 0].numpy(), [oracle.translate(p)])
        lost = 1e-9 * np.ptp(theirs)  # digits that lenstronomy's lose next to the centre, where ψ is 0
        np.testing.assert_array_less(np.abs(ours - theirs), 1e-6 * np.abs(theirs) + lost, err_msg=str(p))


@pytest.mark.parametrize("name", MASS)
def test_masked_profiles_have_no_potential(name: str) -> None:
    x, y = positions()
    params = {k: torch.full((1, 3), v, dtype=torch.float64) for k, v in CASES[name][1][0].items()}
    masked = Component(name, params, torch.tensor([[True, False, False]]))
    single = component(name, CASES[name][1][0])
    torch.testing.assert_close(maps.potential(x, y, [masked]), maps.potential(x, y, single), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "p"), every_case())
def test_the_jacobian_is_the_finite_difference(name: str, p: dict[str, float]) -> None:
    x = torch.tensor([[[0.35, -0.9, 1.7]]], dtype=torch.float64)
    y = torch.tensor([[[0.5, 0.8, -1.3]]], dtype=torch.float64)
    mass, h = component(name, p), 1e-5
    found = maps.jacobian(x, y, mass)
    right, left = raytrace.deflection(x + h, y, mass), raytrace.deflection(x - h, y, mass)
    above, below = raytrace.deflection(x, y + h, mass), raytrace.deflection(x, y - h, mass)
    scale = 1e-6 * max(float(v.abs().max()) for v in found)
    for k, ours in enumerate(((found.xx, found.yx), (found.xy, found.yy))):
        more, less = ((right, left), (above, below))[k]
        for a, up, down in zip(ours, more, less, strict=True):
            torch.testing.assert_close(a, (up - down) / (2 * h), rtol=1e-6, atol=scale)


def test_convergence_shear_and_magnification_are_lenstronomys() -> None:
    macro = {"theta_E": 1.2, "gamma": 2.1, "e1": 0.1, "e2": -0.05, "center_x": 0.02, "center_y": -0.01}
    shear = {"gamma1": 0.05, "gamma2": -0.02}
    halo = {"R_s": 0.1, "alpha_Rs": 0.01, "r_trunc": 0.5, "center_x": 0.9, "center_y": 0.7}
    mass = [*component("epl", macro), *component("shear", shear), *component("tnfw", halo)]
    x, y = positions()
    far = torch.hypot(x - halo["center_x"], y - halo["center_y"]) > 0.01
    x, y = x[far][None, None], y[far][None, None]
    model = LensModel(["EPL", "SHEAR", "TNFW"])
    kwargs = [macro, shear, {"Rs" if k == "R_s" else k: v for k, v in halo.items()}]
    at = x[0, 0].numpy(), y[0, 0].numpy(), kwargs
    found = maps.jacobian(x, y, mass)
    expected = (model.kappa(*at), *model.gamma(*at), 1 / model.magnification(*at))
    for ours, theirs in zip((found.kappa, *found.shear, found.determinant), expected, strict=True):
        # relative to the convergence, which grows without bound at the centre
        error = np.abs(ours[0, 0].numpy() - theirs) / (1 + np.abs(expected[0])) ** (2 if theirs is expected[3] else 1)
        assert error.max() < 1e-6


def test_maps_are_differentiable_in_the_parameters() -> None:
    p = {"theta_E": 1.2, "gamma": 2.1, "e1": 0.1, "e2": -0.05, "center_x": 0.02, "center_y": -0.01}
    x, y = torch.tensor([[[0.4, 1.3]]], dtype=torch.float64), torch.tensor([[[0.9, -0.2]]], dtype=torch.float64)

    def convergence(*values: Tensor) -> tuple[Tensor, Tensor]:
        mass = [Component("epl", dict(zip(p, values, strict=True)))]
        found = maps.jacobian(x, y, mass)
        return found.kappa, maps.potential(x, y, mass)

    values = [torch.full((1, 1), v, dtype=torch.float64, requires_grad=True) for v in p.values()]
    assert torch.autograd.gradcheck(convergence, values, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_a_profile_without_a_potential_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = positions()
    monkeypatch.setitem(MASS, "shear", MASS["shear"]._replace(potential=None))
    raytrace.deflection(x, y, component("shear", CASES["shear"][1][0]))
    with pytest.raises(UserError, match=r"^no potential of 'shear'; give its MassProfile a potential"):
        maps.potential(x, y, component("shear", CASES["shear"][1][0]))


def test_a_grid_that_all_images_share_is_as_good_as_one_each() -> None:
    one = torch.tensor([[0.5], [1.3]], dtype=torch.float64)
    p = {"theta_E": one, "e1": 0.1 * one, "e2": 0 * one, "center_x": 0 * one, "center_y": 0.1 * one}
    halos = {"theta_E2": one.expand(2, 3) * 1e-3, "center_x": one.expand(2, 3), "center_y": one.expand(2, 3)}
    mass = [Component("sie", p), Component("point_mass", halos)]
    x, y = raytrace.grid(5, 0.3, "cpu", torch.float64)
    own = maps.jacobian(x.expand(2, 5, 5), y.expand(2, 5, 5), mass)
    for a, b in zip(maps.jacobian(x, y, mass), own, strict=True):
        assert torch.equal(a, b)
    for k in range(2):
        for a, b in zip(maps.jacobian(x, y, [c[k : k + 1] for c in mass]), own, strict=True):
            torch.testing.assert_close(a[0], b[k], rtol=1e-12, atol=1e-12)
