"""Every population keeps the contract, and draws what its formulas say."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hosts import make_host
from scipy import stats

from deeplense import rng
from deeplense.errors import UserError
from deeplense.lensing import cosmology, halo, raytrace
from deeplense.sim.substructure import POPULATIONS, Substructure
from deeplense.sim.substructure.base import MOST
from deeplense.sim.substructure.none import NoSubstructure
from deeplense.sim.substructure.point_masses import PointMasses
from deeplense.sim.substructure.vortex import Vortex

DISTANCES = cosmology.distances(0.5, 1.0)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "point_masses": [{}, {"number": 25}, {"number": {"poisson": 0.2}}, {"number": 0}, {"mass": 1e8}],
    "vortex": [
        {},
        {"points": 100},
        {"impact": {"normal": [0, 0.3]}},
        {"log10_m_axion": -23, "mass": {"log_uniform": [1e9, 1e11]}},
        {"number": {"poisson": 2}, "impact": {"uniform": [-1, 1]}},
    ],
    "cdm": [
        {},
        {"sigma_sub": {"uniform": [0, 0.01]}, "compensate": False},
        {"log10_m_host": {"normal": [13, 0.3]}},
        {"line_of_sight": 1.0, "mass": [1e8, 1e10]},
        {"line_of_sight": 1.0, "mass": [1e8, 1e10], "multi_plane": True},
    ],
    "wdm": [{}, {"log10_m_hm": 9.0, "line_of_sight": 2.0}],
    "sidm": [{}, {"cored": 1.0, "collapsed": 0.0, "line_of_sight": 0.5, "mass": [1e8, 1e10]}],
    "uldm": [{}, {"granules": False, "log10_m_uldm": -21.0}, {"line_of_sight": 1.0}],
}


def draw(population: Any, n: int = 50, seed: int = 0) -> Substructure:
    found: Substructure = population.sample(rng.generator(seed, "test"), make_host(n))
    return found


def deflection(sub: Substructure, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return raytrace.deflection(x, y, sub.mass)


@pytest.mark.parametrize("name", POPULATIONS)
def test_every_population_keeps_the_contract(name: str) -> None:
    for parameters in VARIANTS[name]:
        population = POPULATIONS[name](**parameters)
        assert dataclasses.is_dataclass(population)
        n = 50
        sub, again, other = draw(population, n), draw(population, n), draw(population, n, seed=1)
        names = [t.name for t in population.truth()]
        assert len(names) == len(set(names))
        assert sorted(sub.truth) == sorted(names)
        for values in sub.truth.values():
            assert values.shape == (n,)
            assert values.dtype == np.float64
        assert len(sub.mass) == len(again.mass)
        for component, repeated in zip(sub.mass, again.mass, strict=True):
            assert all(v.ndim == 2 and len(v) == n for v in component.params.values())
            assert all(bool(torch.isfinite(v).all()) and v.dtype == torch.float64 for v in component.params.values())
            assert component.mask is None or (
                component.mask.dtype == torch.bool
                and component.mask.shape == next(iter(component.params.values())).shape
            )
            assert all(torch.equal(v, repeated.params[k]) for k, v in component.params.items())
        for key in names:
            np.testing.assert_array_equal(sub.truth[key], again.truth[key])
        if sub.mass and any(t.prior is not None and isinstance(t.prior, dict) for t in population.truth()):
            assert any(not np.array_equal(sub.truth[key], other.truth[key]) for key in names)


@pytest.mark.parametrize("name", POPULATIONS)
def test_every_population_of_no_scene_is_empty(name: str) -> None:
    """A class may have no scene in a short block."""
    sub = draw(POPULATIONS[name](), 0)
    assert all(v.shape == (0,) for v in sub.truth.values())
    assert all(len(v) == 0 for c in sub.mass for v in c.params.values())


@pytest.mark.parametrize("name", [n for n in POPULATIONS if n != "none"])
def test_far_away_every_population_deflects_like_its_total_mass(name: str) -> None:
    """Gauss: at 1000″ only the monopole θ_E² = 4GM/c² · D_ls/(D_l D_s) is left."""
    # what has no monopole stays away: a sheet of minus the mean, and a random field
    without = {"compensate": False} if "compensate" in POPULATIONS[name].__dataclass_fields__ else {}
    without |= {"granules": False} if "granules" in POPULATIONS[name].__dataclass_fields__ else {}
    sub = draw(POPULATIONS[name](**without), 20)
    angle = torch.tensor([0.3, 2.0, 4.0], dtype=torch.float64)
    x, y = 1000 * torch.cos(angle)[None], 1000 * torch.sin(angle)[None]
    ax, ay = deflection(sub, x, y)
    radial = (ax * torch.cos(angle)) + (ay * torch.sin(angle))
    assert sub.halos is not None
    rows = sub.halos.columns
    bound = rows["mass"]
    if rows["concentration"].all():  # of an NFW halo as far as tides left it
        R_s, _ = halo.nfw_parameters(rows["mass"], rows["concentration"], 0.5, DISTANCES)
        m_s = halo.scale_mass(rows["mass"], rows["concentration"])
        bound = halo.tnfw_total_mass(m_s, rows["r_trunc"] / R_s)
    total = (bound * sub.halos.mask).sum(1)
    theta_E2 = cosmology.theta_E(1e10, DISTANCES) ** 2 * total / 1e10
    np.testing.assert_allclose(radial.numpy().reshape(20, 3), np.repeat(theta_E2[:, None], 3, 1) / 1000, rtol=0.01)


def test_no_substructure_is_nothing() -> None:
    sub = draw(NoSubstructure())
    assert sub.mass == []
    assert sub.truth == {}


@pytest.mark.parametrize("mean", [0.5, 25])
def test_numbers_are_poisson_and_the_mask_counts_them(mean: float) -> None:
    sub = draw(PointMasses(number={"poisson": mean}), 5000)
    numbers, mask = sub.truth["n_sub"], sub.mass[0].mask
    assert mask is not None
    np.testing.assert_array_equal(mask.sum(1).numpy(), numbers)
    assert mask.shape[1] == numbers.max()
    expected = stats.poisson(mean).pmf(np.arange(60)) * 5000
    keep = expected > 5
    seen = np.bincount(numbers.astype(int), minlength=60)[:60]
    pull = ((seen - expected)[keep] ** 2 / expected[keep]).sum()
    assert stats.chi2.sf(pull, keep.sum() - 1) > 1e-3


def test_a_constant_number_is_that_number() -> None:
    assert set(draw(PointMasses(number=25)).truth["n_sub"]) == {25.0}
    none = draw(PointMasses(number=0))
    assert np.isnan(none.truth["log10_m_sub"]).all()
    x = y = torch.linspace(-1, 1, 5, dtype=torch.float64)[None]
    assert all(bool((a == 0).all()) for a in deflection(none, x, y))


@pytest.mark.parametrize("slope", [-1.9, -0.9, -1.0])
def test_point_masses_follow_the_mass_function(slope: float) -> None:
    """The distribution of Einstein radii, in log m: density ∝ m^(slope + 1)."""
    sub = draw(PointMasses(number=20, mass={"power_law": [1e6, 1e10, slope]}), 1000)
    one = cosmology.theta_E(1e6, DISTANCES) ** 2 / 1e6
    masses = sub.mass[0].params["theta_E2"].numpy().ravel() / one

    def cdf(m: Any) -> Any:
        if slope == -1:
            return np.log(m / 1e6) / np.log(1e4)
        k = slope + 1
        return ((m / 1e6) ** k - 1) / (1e4**k - 1)

    assert stats.kstest(masses, cdf).pvalue > 1e-3


def test_point_masses_lie_uniformly_in_radius_and_angle() -> None:
    p = draw(PointMasses(number=20), 1000).mass[0].params
    x, y = p["center_x"].numpy().ravel(), p["center_y"].numpy().ravel()
    assert stats.kstest(np.hypot(x, y), stats.uniform(0.25, 1.75).cdf).pvalue > 1e-3
    assert stats.kstest(np.arctan2(y, x), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("log10_m", "half_length"), [(-24.0, 3.0), (-23.0, 0.3), (-22.0, 0.03)])
def test_half_length_of_a_vortex(log10_m: float, half_length: float) -> None:
    """0.06″ · 1e-22 eV / (2 m): 3″ at 1e-24 eV, 0.03″ at 1e-22 eV."""
    sub = draw(Vortex(log10_m_axion=log10_m))
    assert sub.mass[0].profile == "line_mass"
    np.testing.assert_allclose(sub.mass[0].params["half_length"].numpy(), half_length, rtol=1e-12)
    np.testing.assert_allclose(sub.truth["log10_m_axion"], log10_m)
    points = draw(Vortex(log10_m_axion=log10_m, points=11)).mass[0].params
    ends = np.hypot(*(np.ptp(points[f"center_{k}"].numpy(), axis=1) for k in "xy"))
    np.testing.assert_allclose(ends, 2 * half_length, rtol=1e-9)


def test_vortex_priors() -> None:
    sub = draw(Vortex(impact={"normal": [0.1, 0.3]}), 3000)
    assert stats.kstest(sub.truth["log10_m_axion"], stats.uniform(-24, 2).cdf).pvalue > 1e-3
    assert stats.kstest(sub.truth["vortex_angle"], stats.uniform(0, 2 * np.pi).cdf).pvalue > 1e-3
    p = sub.mass[0].params
    for k in "xy":
        assert stats.kstest(p[f"center_{k}"].numpy()[:, 0], stats.norm(0.1, 0.3).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(p["center_x"][:, 0], p["center_y"][:, 0])[0, 1]) < 0.1
    theta_E = np.sqrt(p["theta_E2"].numpy())
    np.testing.assert_allclose(theta_E, 0.28830, atol=5e-6)  # of 3e10 Msun, as tabulated


def test_a_line_of_many_points_tends_to_the_closed_form() -> None:
    x, y = (torch.tensor([[0.9, -0.4, 0.2]], dtype=torch.float64) * s for s in (1.0, -1.3))
    same = {"log10_m_axion": -23.2, "impact": {"normal": [0, 0.2]}}
    line = deflection(draw(Vortex(**same), 3), x, y)
    errors = []
    for points in (100, 1000, 10000):
        dots = deflection(draw(Vortex(**same, points=points), 3), x, y)
        errors.append(max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(dots, line, strict=True)))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


@pytest.mark.parametrize(
    ("name", "parameters", "match"),
    [
        ("point_masses", {"number": {"poisson": -1}}, "point_masses.number"),
        ("point_masses", {"mass": {"power_law": [1e10, 1e6, -1.9]}}, "point_masses.mass.*swap them"),
        ("point_masses", {"radius": "far"}, "point_masses.radius"),
        ("vortex", {"log10_m_axion": {"uniform": [-22, -24]}}, "vortex.log10_m_axion.*swap them"),
        ("vortex", {"points": 1}, "vortex.points is 1; give 2 or more"),
    ],
)
def test_bad_parameters_are_named(name: str, parameters: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        POPULATIONS[name](**parameters)


def test_a_rare_rich_lens_is_drawn_and_a_recipe_of_rich_lenses_is_refused() -> None:
    cold = POPULATIONS["cdm"]()
    few = np.full(1000, 500.0)
    cold._check_number(np.append(few, MOST + 1000.0))
    for expected in (np.append(few, 11.0 * MOST), np.full(5, MOST + 1.0)):
        with pytest.raises(UserError, match="raise the lower end of mass"):
            cold._check_number(expected)
