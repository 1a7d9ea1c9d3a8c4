"""Where closed forms lose their digits: the centre, far away, removable singularities, extreme shapes.

The oracles are the papers' formulas in 80 digits, because lenstronomy itself is inaccurate there: it freezes the NFW
family inside 10⁻³ R_s, loses half of its digits to cancellation at small radii, and steps over r_core = R_s.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy.integrate import quad

from deeplense.lensing import raytrace
from deeplense.lensing.mass import MASS
from deeplense.lensing.mass.radial import log1p
from deeplense.lensing.raytrace import Component

RADII = np.concatenate([
    np.logspace(-4, 3, 50),
    [0.85, 0.8499999, 0.8500001, 1.0, 0.999999, 1.000001, 0.9999, 1.0001, 1e-6, 1e-5],
])  # fmt: skip


def F(x: mp.mpf) -> mp.mpf:
    if x == 1:
        return mp.mpf(1)
    return mp.acosh(1 / x) / mp.sqrt(1 - x * x) if x < 1 else mp.acos(1 / x) / mp.sqrt(x * x - 1)


def g(x: mp.mpf) -> mp.mpf:
    return F(x) + mp.log(x / 2)


def nfw(r: mp.mpf, R_s: mp.mpf, alpha_Rs: mp.mpf) -> mp.mpf:
    return alpha_Rs / R_s * g(r / R_s) / (1 - mp.log(2)) / (r / R_s) ** 2


def tnfw(r: mp.mpf, R_s: mp.mpf, alpha_Rs: mp.mpf, r_trunc: mp.mpf) -> mp.mpf:
    """Baltz, Marshall & Oguri 2009, eq. A.18."""
    x, t = r / R_s, r_trunc / R_s
    h = mp.sqrt(x * x + t * t)
    m = (t * t + 1 + 2 * (x * x - 1)) * F(x) + t * mp.pi + (t * t - 1) * mp.log(t)
    m += h * (-mp.pi + (t * t - 1) / t * mp.log(x / (t + h)))
    return alpha_Rs / R_s * t**2 / (t**2 + 1) ** 2 * m / (1 - mp.log(2)) / x**2


def cnfw(r: mp.mpf, R_s: mp.mpf, alpha_Rs: mp.mpf, r_core: mp.mpf) -> mp.mpf:
    def mass(x: mp.mpf, b: mp.mpf) -> mp.mpf:
        b2, x2 = b * b, x * x
        m = (1 - b) ** 2 * mp.log(x2 / 4) - b2 * mp.log(b2) + 2 * (b2 - x2) * F(x / b) + 2 * (1 + b * (x2 - 2)) * F(x)
        return m / (2 * (1 - b) ** 2)

    b = r_core / R_s
    b += mp.mpf(10) ** -15 * (b == 1)  # in 80 digits a step off the double pole is the limit
    return alpha_Rs / R_s * mass(r / R_s, b) / mass(mp.mpf(1), b) / (r / R_s) ** 2


def soliton(r: mp.mpf, kappa_0: mp.mpf, theta_c: mp.mpf) -> mp.mpf:
    t = (mp.mpf(2) ** (mp.mpf(1) / 8) - 1) * (r / theta_c) ** 2
    return 2 * kappa_0 / (13 * t) * (1 - (1 + t) ** (-mp.mpf(13) / 2))


TAU = (0.3, 0.5, 0.999, 1.0, 1.001, 3.0, 30.0, 100.0, 1000.0)
CORE = (1e-6, 0.01, 0.3, 0.59, 0.61, 0.9, 0.9999, 1.0, 1.0001, 1.39, 1.41, 5.0, 30.0)
CASES: dict[str, tuple[Callable[..., mp.mpf], list[dict[str, float]]]] = {
    "nfw": (nfw, [{"R_s": R, "alpha_Rs": 0.1} for R in (1.0, 0.05)]),
    "tnfw": (tnfw, [{"R_s": 1.0, "alpha_Rs": 0.1, "r_trunc": t} for t in TAU]),
    "cnfw": (cnfw, [{"R_s": 1.0, "alpha_Rs": 0.1, "r_core": b} for b in CORE]),
    "soliton": (soliton, [{"kappa_0": 0.1, "theta_c": t} for t in (1e-5, 1.0, 1e3)]),
}


def error(name: str, p: dict[str, float], radii: np.ndarray, dtype: torch.dtype) -> float:
    """Largest relative error of α/r, at the very numbers that the precision makes of radii and parameters."""
    oracle = CASES[name][0]
    params = {k: torch.tensor(v, dtype=dtype) for k, v in p.items()}
    r2 = torch.tensor(radii**2).to(dtype)
    with mp.workdps(80):
        exact = [float(oracle(mp.sqrt(mp.mpf(v)), *(mp.mpf(float(q)) for q in params.values()))) for v in r2.tolist()]
    return float(np.abs(MASS[name].function(r2, **params).double().numpy() / exact - 1).max())


@pytest.mark.parametrize("name", CASES)
def test_float64(name: str) -> None:
    for p in CASES[name][1]:
        assert error(name, p, RADII, torch.float64) < (3e-9 if name == "cnfw" else 1e-11), p


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str) -> None:
    for p in CASES[name][1]:
        scale = p.get("R_s", 1.0)
        assert error(name, p, RADII[RADII > 5e-5] * scale, torch.float32) < (7e-5 if name == "cnfw" else 1e-5), p


def test_logarithm_near_one() -> None:
    z = torch.cat([-torch.logspace(-12, -0.1, 500, dtype=torch.float64), torch.logspace(-12, 12, 500).double()])
    z = z.float().double()
    torch.testing.assert_close(log1p(z.float()).double(), torch.log1p(z), rtol=2e-7, atol=0)
    torch.testing.assert_close(log1p(z), torch.log1p(z), rtol=0, atol=0)


def test_limits_of_one_profile_are_another() -> None:
    r2 = torch.logspace(-6, 4, 200, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    expected = MASS["nfw"].function(r2, one, one)
    torch.testing.assert_close(MASS["tnfw"].function(r2, one, one, 1e6 * one), expected, rtol=3e-4, atol=0)
    torch.testing.assert_close(MASS["cnfw"].function(r2, one, one, 1e-9 * one), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(MASS["cnfw"].function(r2, one, one, 0 * one), expected, rtol=1e-9, atol=0)
    far = torch.tensor([1e8], dtype=torch.float64)
    torch.testing.assert_close(
        MASS["plummer"].function(far, one, one), MASS["point_mass"].function(far, one), rtol=2e-8, atol=0
    )


@pytest.mark.parametrize("b", [0.2, 1.0])
def test_cored_halo_is_the_projection_of_its_density(b: float) -> None:
    """Mass in a cylinder from the density, ∫ 4π r² ρ (1 − sqrt(1 − R²/r²)) dr: no formula in common with ours."""

    def cylinder(R: float) -> float:
        rho = lambda r: r * r / ((b + r) * (1 + r) ** 2)  # noqa: E731
        inside = quad(rho, 0, R, epsabs=0, epsrel=1e-11)[0]
        # r = R/u outside
        outside = quad(lambda u: rho(R / u) * (1 - np.sqrt(1 - u * u)) * R / u**2, 0, 1, epsabs=0, epsrel=1e-11)[0]
        return inside + outside

    radii = np.array([1e-3, 0.1, 1.0, 7.0, 300.0])
    p = {"R_s": 1.0, "alpha_Rs": 1.0, "r_core": b}
    mean = MASS["cnfw"].function(torch.tensor(radii**2), **{k: torch.tensor(v).double() for k, v in p.items()})
    expected = np.array([cylinder(R) for R in radii]) / cylinder(1.0)
    np.testing.assert_allclose(mean.numpy() * radii**2, expected, rtol=1e-7)


def alpha(name: str, dtype: torch.dtype, x: list[float], y: list[float], **p: float) -> torch.Tensor:
    component = Component(name, {k: torch.tensor([[v]], dtype=dtype) for k, v in p.items()})
    at = (torch.tensor(v, dtype=dtype)[None, None] for v in (x, y))
    return torch.stack(raytrace.deflection(*at, [component]))[:, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_power_law_of_slope_two_is_isothermal(dtype: torch.dtype) -> None:
    x, y = [1e-6, 0.3, -2.0, 1e3], [0.0, 0.4, 1e-3, 500.0]
    shape = {"theta_E": 1.3, "e1": 0.2, "e2": -0.4, "center_x": 0.0, "center_y": 0.0}
    for gamma in (2.0, 2.0 + 1e-7):
        got, expected = alpha("epl", dtype, x, y, gamma=gamma, **shape), alpha("sie", dtype, x, y, **shape)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [1.1, 1.5, 2.0, 2.9])
def test_round_power_law_in_closed_form(gamma: float) -> None:
    """α = θ_E (θ_E/r)^(γ−2), and q → 1 reaches it without a step."""
    x, y = [1e-6, 0.6, 800.0], [0.0, -0.8, 600.0]
    r = np.hypot(x, y)
    expected = torch.tensor(1.3 * (1.3 / r) ** (gamma - 2) * np.array([x, y]) / r)
    for e in (0.0, 1e-12, 1e-8):
        p = {"theta_E": 1.3, "gamma": gamma, "e1": e, "e2": -e, "center_x": 0.0, "center_y": 0.0}
        got = alpha("epl", torch.float64, x, y, **p)
        assert float(((got - expected).norm(dim=0) / expected.norm(dim=0)).max()) < 1e-7


@pytest.mark.parametrize("gamma", [1.1, 2.0, 2.9])
def test_angular_series_is_long_enough(gamma: float) -> None:
    """At q = 0.3 against the hypergeometric function (Tessore & Metcalf 2015, eq. 22)."""
    c = 0.7 / 1.3
    angle = np.linspace(0.1, 6, 23)
    x, y = np.cos(angle), np.sin(angle)
    p = {"theta_E": 1.0, "gamma": gamma, "e1": c, "e2": 0.0, "center_x": 0.0, "center_y": 0.0}
    got = alpha("epl", torch.float64, x.tolist(), y.tolist(), **p).numpy()
    t, z = gamma - 1, 0.3 * x + 1j * y
    series = [complex(mp.hyp2f1(1, t / 2, 2 - t / 2, complex(-c * v / v.conjugate()))) for v in z]
    expected = 2 / 1.3 * (0.3**0.5 / np.abs(z)) ** t * z * np.array(series)
    assert np.max(np.abs(got[0] + 1j * got[1] - expected) / np.abs(expected)) < 1e-6


@pytest.mark.parametrize("name", [n for n, p in MASS.items() if p.circular])
def test_masked_halos_have_finite_gradients(name: str) -> None:
    keys = [*list(inspect.signature(MASS[name].function).parameters)[1:], "center_x", "center_y"]
    params = {k: torch.full((1, 2), 0.5, requires_grad=True) for k in keys}
    x, y = raytrace.grid(5, 0.3, "cpu", torch.float32)
    ax, ay = raytrace.deflection(x, y, [Component(name, params, torch.tensor([[True, False]]))])
    (ax.sum() + ay.sum()).backward()
    for value in params.values():
        assert value.grad is not None
        assert bool(torch.isfinite(value.grad).all())
        assert float(value.grad[0, 1]) == 0
