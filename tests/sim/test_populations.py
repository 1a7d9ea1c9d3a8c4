"""Populations against their closed forms at 10⁵ halos."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hosts import make_host
from numpy.typing import NDArray
from scipy import stats

from deeplense import rng
from deeplense.errors import UserError
from deeplense.lensing import cosmology, halo, raytrace
from deeplense.lensing.mass.nfw import G_AT_R_S
from deeplense.lensing.raytrace import Component
from deeplense.sim.substructure import POPULATIONS, Host, Substructure, galaxy
from deeplense.sim.substructure.fuzzy import FuzzyDarkMatter

Array = NDArray[Any]
Z_LENS, Z_SOURCE = 0.5, 1.5
D = cosmology.distances(Z_LENS, Z_SOURCE)
LOW, HIGH, SLOPE = 1e7, 1e10, -1.9


def host(n: int, **changes: Any) -> Host:
    return make_host(n, Z_LENS, Z_SOURCE, **changes)


def draw(name: str, n: int = 300, seed: int = 1, **parameters: Any) -> Substructure:
    found: Substructure = POPULATIONS[name](**parameters).sample(rng.generator(seed, "test"), host(n))
    return found


def column(sub: Substructure, name: str) -> Array:
    """Of all halos whose centre is in the image."""
    assert sub.halos is not None
    columns = sub.halos.columns
    return columns[name][sub.halos.mask & (np.abs(columns["x"]) < 3.2) & (np.abs(columns["y"]) < 3.2)]


def existing(component: Component) -> dict[str, Array]:
    there = torch.ones_like(component.params["center_x"]) > 0 if component.mask is None else component.mask
    return {k: v[there].numpy() for k, v in component.params.items()}


def bound_mass(params: dict[str, Array]) -> Array:
    m_s = params["alpha_Rs"] * params["R_s"] / (G_AT_R_S * D.theta_E2_per_mass)
    return halo.tnfw_total_mass(m_s, params["r_trunc"] / params["R_s"])


def suppressed(mass: Array, factor: Any) -> Array:
    """Cumulative distribution of a suppressed power law, by quadrature."""
    grid = np.geomspace(LOW, HIGH, 20001)
    density = grid ** (SLOPE + 1) * factor(grid)  # a step of ln m
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(np.log(mass), np.log(grid), cumulative / cumulative[-1])


def factors(name: str) -> tuple[dict[str, Any], Any]:
    if name == "wdm":
        return {"log10_m_hm": 8.5}, lambda m: (1 + (4.2 * 10**8.5 / m) ** 2.5) ** -0.2
    if name == "uldm":
        m0 = 1.6e10 * 20 ** (-4 / 3)
        return {"log10_m_uldm": -22 + np.log10(20), "granules": False}, lambda m: (1 + (m / m0) ** -1.1) ** -2.2
    return {}, np.ones_like


@pytest.mark.parametrize(("name", "images"), [("cdm", 350), ("sidm", 350), ("wdm", 1800), ("uldm", 9000)])
def test_mass_function_number_and_place(name: str, images: int) -> None:
    parameters, factor = factors(name)
    sub = draw(name, images, **parameters)
    mass = column(sub, "mass")
    assert len(mass) > 9e4
    assert stats.kstest(mass, lambda m: suppressed(m, factor)).pvalue > 0.01
    if name == "cdm":
        k = SLOPE + 1
        assert stats.kstest(mass, lambda m: (m**k - LOW**k) / (HIGH**k - LOW**k)).pvalue > 0.01
    # d²N/dm dA = 0.025 kpc⁻² F/m0 (m/m0)^α, F = 10^(1.7 log10(z + ½)) = 1 at z = ½ and 10¹³ M☉
    grid = np.geomspace(LOW, HIGH, 20001)
    area = (6.4 * D.kpc_per_arcsec) ** 2
    mean = area * np.trapezoid(0.025 / 1e8 * (grid / 1e8) ** SLOPE * factor(grid), grid)
    number = sub.truth["n_sub"]
    assert abs(number.mean() - mean) < 3 * np.sqrt(mean / images)
    spread = number.var(ddof=1) / mean * (images - 1)  # χ² where numbers are Poisson
    assert 0.005 < stats.chi2.cdf(spread, images - 1) < 0.995
    for axis in "xy":
        assert stats.kstest(column(sub, axis), stats.uniform(-3.2, 6.4).cdf).pvalue > 0.01
    assert abs(np.corrcoef(column(sub, "x"), column(sub, "y"))[0, 1]) < 4 / np.sqrt(len(mass))


def test_the_mass_function_follows_host_and_redshift() -> None:
    population = POPULATIONS["cdm"]()
    base = population.number_density(0.025, 13.0, 0.5)
    assert population.number_density(0.025, 13.5, 0.5) / base == pytest.approx(10 ** (0.88 * 0.5))
    assert population.number_density(0.025, 13.0, 0.9) / base == pytest.approx(1.4**1.7)
    assert population.number_density(0.05, 13.0, 0.5) / base == pytest.approx(2)


@pytest.mark.parametrize("name", ["cdm", "wdm"])
def test_concentration_is_log_normal_around_the_median(name: str) -> None:
    parameters, _ = factors(name)
    sub = draw(name, 350 if name == "cdm" else 1800, **parameters)
    mass = column(sub, "mass")
    a, b = 0.520 + 0.385 * np.exp(-0.617 * 0.5**1.21), -0.101 + 0.026 * 0.5  # Dutton & Macciò 2014, eqs. 10, 11
    median = a + b * np.log10(mass * 0.7 / 1e12)
    if name == "wdm":
        median -= 0.17 * np.log10(1 + 60 * 10**8.5 / mass)
    pull = (np.log10(column(sub, "concentration")) - median) / 0.11
    assert len(pull) > 9e4
    assert stats.kstest(pull, stats.norm.cdf).pvalue > 0.01
    assert abs(np.corrcoef(pull, np.log(mass))[0, 1]) < 4 / np.sqrt(len(pull))


def test_depth_follows_the_host_with_a_flat_core() -> None:
    """3D distances at one projected radius: the truncation radius tells them."""
    n, r = 50, 10.0
    main = galaxy.MainHalo.of(np.full((n, 1), 13.0), host(n))
    quantile = rng.generator(0, "depth").random((n, 2000))
    depth = main.radius_3d(np.full(quantile.shape, r), quantile)
    z = np.sqrt(depth.ravel() ** 2 - r * r)
    r200, r_s = float(main.r200[0, 0]), float(main.r_s[0, 0])
    grid = np.linspace(0, r200, 20001)
    d = np.maximum(np.hypot(grid, r) / r_s, 0.5)
    cumulative = np.cumsum(1 / (d * (1 + d) ** 2))
    # 1e-3: the profile is tabulated
    distance = stats.kstest(z, lambda v: np.interp(v, grid, cumulative / cumulative[-1])).statistic
    assert distance < 1.63 / np.sqrt(len(z)) + 1e-3
    one = galaxy.truncation(np.array([1e7, 8e7]), np.array([50.0, 50.0]))
    np.testing.assert_allclose(one, [1.4, 2.8])
    assert galaxy.truncation(np.array(1e7), np.array(400.0)) == pytest.approx(5.6)


def test_f_sub_is_the_sum_over_halo_rows() -> None:
    sub, n, theta_E = draw("cdm", 200), 200, 1.2
    total = 2 * np.pi * theta_E**2 * D.kpc_per_arcsec**2 * D.sigma_cr  # isothermal: M(R) = π R θ_E Σ_cr
    p, mask = sub.mass[0].params, sub.mass[0].mask
    assert mask is not None
    for i in range(n):
        seen = mask[i] & (p["center_x"][i].abs() < 3.2) & (p["center_y"][i].abs() < 3.2)
        q = {k: v[i][seen].numpy() for k, v in p.items()}
        inside = np.hypot(q["center_x"], q["center_y"]) < 2 * theta_E
        assert sub.truth["f_sub"][i] == pytest.approx(bound_mass(q)[inside].sum() / total, rel=1e-9)
        assert sub.truth["log10_m_sub"][i] == pytest.approx(np.log10(bound_mass(q).sum()), rel=1e-12)


@pytest.mark.parametrize("radius", [1.0, 3.2, 3.6, 4.2, 5.0])
def test_share_of_a_circle_in_the_image(radius: float) -> None:
    line = (np.arange(2000) + 0.5) / 1000 - 1
    seen = (line[:, None] ** 2 + line**2 < (radius / 3.2) ** 2).mean() * 6.4**2 / (np.pi * radius**2)
    assert galaxy.share_seen(np.array(radius), 3.2) == pytest.approx(seen, rel=2e-3)


def mean_inside(mass: list[Component], radius: float, points: int = 64) -> Array:
    """Mean convergence of a circle around the middle by Gauss: the mean radial deflection over its radius."""
    angle = torch.arange(points, dtype=torch.float64) * (2 * np.pi / points)
    cos, sin = torch.cos(angle), torch.sin(angle)
    ax, ay = raytrace.deflection(radius * cos[None, None], radius * sin[None, None], mass)
    return np.asarray(((ax * cos + ay * sin).mean((1, 2)) / radius).numpy())


@pytest.mark.parametrize(("name", "mass"), [("cdm", 1e7), ("cdm", 1e9), ("cdm", 1e10), ("sidm", 1e9), ("uldm", 1e9)])
def test_the_sheet_leaves_no_mass_inside_the_ring(name: str, mass: float) -> None:
    """Of one mass, many, so that the halos' own scatter is small."""
    more = {"log10_m_uldm": -21.0, "granules": False} if name == "uldm" else {}
    sub = draw(name, 160, mass=[mass, 1.05 * mass], sigma_sub=(mass / 1e7) ** 0.9, **more)
    assert sub.mass[-1].profile == "mass_sheet"
    left, sheet = mean_inside(sub.mass, 2.0), mean_inside(sub.mass[-1:], 2.0)
    error = left.std(ddof=1) / np.sqrt(len(left))
    assert error < -0.01 * sheet.mean()
    assert abs(left.mean()) < -0.02 * sheet.mean()


def test_halos_outside_the_image_deflect_in_it() -> None:
    """Nearly the whole of an endless population's mean is there, so that little of the outer ones is missing."""
    for mass, least in ((1e7, 0.94), (1e9, 0.93), (1e10, 0.9)):
        sub = draw("cdm", 60, mass=[mass, 1.05 * mass], sigma_sub=(mass / 1e7) ** 0.9)
        density = 10 ** sub.truth["log10_m_sub"] / (6.4 * D.kpc_per_arcsec) ** 2
        taken = -sub.mass[-1].params["kappa"].numpy()[:, 0] * D.sigma_cr
        assert least < taken.mean() / density.mean() < 1.02


def test_heavy_halos_reach_farther() -> None:
    sub = draw("cdm", 100)
    assert sub.halos is not None
    rows, there = sub.halos
    r = np.hypot(rows["x"], rows["y"])
    for low, high in ((1e7, 2e7), (1e8, 2e8), (3e9, 1e10)):
        some = there & (rows["mass"] > low) & (rows["mass"] < high)
        edge = np.sqrt(2) * 3.2 + 2 * 1.4 / D.kpc_per_arcsec * ((rows["mass"] / 1e7) ** (1 / 3) - 1)
        assert stats.kstest((r / edge)[some] ** 2, stats.uniform.cdf).pvalue > 0.01


def test_collisions_conserve_the_bound_mass() -> None:
    parameters = {"cored": 0.3, "collapsed": 0.2, "compensate": False}
    sub, cold = draw("sidm", 15, **parameters), draw("cdm", 15, compensate=False)
    np.testing.assert_allclose(sub.truth["log10_m_sub"], cold.truth["log10_m_sub"], rtol=1e-12)  # the same draws
    far = [existing(c) for c in sub.mass]
    seen = [halo.projected_mass(c.profile, 1e5, {k: v for k, v in q.items() if "center" not in k}, D)
            for c, q in zip(sub.mass, far, strict=True)]  # fmt: skip
    expected = bound_mass(existing(cold.mass[0]))
    np.testing.assert_allclose(np.sort(np.concatenate(seen)), np.sort(expected), rtol=2e-3)
    number = len(expected)
    assert stats.binomtest(len(seen[1]), number, 0.3).pvalue > 0.01
    shrunk = np.isclose(far[0]["R_s"][:, None], existing(cold.mass[0])["R_s"] * 0.1, rtol=1e-9).any(1).sum()
    assert stats.binomtest(int(shrunk), number, 0.2).pvalue > 0.01


def test_solitons_keep_the_core_halo_relation_and_the_bound_mass() -> None:
    lenses = host(1)
    mass = np.geomspace(1e7, 1e10, 200)[None]
    for log10_m in (-22.0, -21.0, -20.0):
        particle = {"log10_m_uldm": np.full((1, 1), log10_m)}
        population = FuzzyDarkMatter(log10_m_uldm=log10_m)
        rows = population.rows(mass, np.full(mass.shape, 100.0), np.ones(mass.shape), particle, lenses)
        theta_c, soliton = population.soliton(rows, particle, lenses)
        assert (soliton <= rows["bound"] * (1 + 1e-12)).all()
        # central density 1.9 M☉/pc³ (m/10⁻²³ eV)⁻² (r_c/kpc)⁻⁴ of a soliton (Schive et al. 2014, eq. 3, in proper
        # lengths), whatever its halo; their rounded constants agree to 10 %
        r_c, m23 = theta_c * D.kpc_per_arcsec, 10 ** (log10_m + 23)
        kappa_0 = halo.soliton_kappa_0(soliton, theta_c, D)
        column = kappa_0 * D.sigma_cr / r_c  # ρ_c × ∫(1 + a x²)⁻⁸ dx
        x = np.linspace(-30, 30, 60001)
        rho_c = column / np.trapezoid((1 + 0.0905077 * x * x) ** -8, x)
        np.testing.assert_allclose(rho_c, 1.9e9 * m23**-2 * r_c**-4, rtol=0.1)


def test_bad_lines_of_sight_are_named() -> None:
    with pytest.raises(UserError, match=r"ColdDarkMatter\.line_of_sight is -1"):
        POPULATIONS["cdm"](line_of_sight=-1)
    with pytest.raises(UserError, match="with line_of_sight it must lie in"):
        POPULATIONS["cdm"](mass=[1e2, 1e9], line_of_sight=1.0)
