"""Field halos: how many, where, how heavy, and that their effective halos deflect as the halos themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from hosts import make_host
from numpy.typing import NDArray
from scipy import stats
from test_populations import mean_kappa

from deeplense import recipe, rng
from deeplense.lensing import cosmology, halo, raytrace
from deeplense.lensing.multiplane import Plane, trace
from deeplense.lensing.raytrace import Component
from deeplense.lensing.structure import Structure
from deeplense.sim import image
from deeplense.sim.substructure import POPULATIONS, Substructure
from deeplense.sim.substructure import line_of_sight as los
from deeplense.sim.world import World

N = 150
HOST = make_host(N, 0.5, 1.5)
SLICES = los.Slices.of(HOST)
COSMOLOGY = FlatLambdaCDM(H0=70, Om0=0.3)
ALONE = {"sigma_sub": 0.0, "line_of_sight": 1.0}


def draw(name: str, **parameters: Any) -> Substructure:
    found: Substructure = POPULATIONS[name](**parameters).sample(rng.generator(2, "test"), HOST)
    return found


def field(name: str, **parameters: Any) -> dict[str, NDArray[Any]]:
    sub = draw(name, **(ALONE | parameters))
    assert sub.halos is not None
    assert sub.halos.mask.sum() == sub.truth["n_los"].sum()
    return {k: v[sub.halos.mask] for k, v in sub.halos.columns.items()}


def closed_form(mass: NDArray[Any], factor: Any = np.ones_like) -> NDArray[Any]:
    """dN/dM of the image, slice by slice (slices, masses); behind the lens thinned by the mean of t over the image."""
    line = (np.arange(400) + 0.5) / 200 - 1
    r = 3.2 * np.hypot(line[:, None], line)
    seen = []
    for beta, behind in zip(SLICES.beta[0], SLICES.behind[0], strict=True):
        t = 1 - beta * 1.2 / r
        seen.append(np.where(t < los.LEAST, 0, t).mean() if behind else 1.0)
    law = Structure().mass_function(mass, SLICES.z[0][:, None]) * factor(mass)
    return np.asarray(law * (SLICES.volume[0] * seen)[:, None] * 6.4**2)


def test_the_way_in_slices() -> None:
    solid_angle = np.radians(1 / 3600) ** 2
    total = COSMOLOGY.comoving_volume(1.5).value / (4 * np.pi) * solid_angle
    assert SLICES.volume[0].sum() == pytest.approx(total, rel=2e-3)
    for k in (3, 20):
        z = SLICES.z[0, k]
        near, far = min(z, 0.5), max(z, 0.5)
        between, behind = (cosmology.distances(*pair) for pair in ((near, far), (near, 1.5)))
        assert SLICES.beta[0, k] == pytest.approx(between.D_ls * behind.D_s / (between.D_s * behind.D_ls), rel=1e-6)
        d = cosmology.distances(float(z), 1.5)
        assert SLICES.distances.theta_E2_per_mass[0, k] == pytest.approx(d.theta_E2_per_mass, rel=1e-6)


@pytest.mark.parametrize("name", ["cdm", "wdm"])
def test_number_mass_and_redshift_of_field_halos(name: str) -> None:
    parameters = {"log10_m_hm": 8.5} if name == "wdm" else {}
    rows = field(name, **parameters)
    grid = np.geomspace(1e7, 1e10, 2001)

    def factor(m: Any) -> Any:
        return (1 + (2.3 * 10**8.5 / m) ** 0.8) ** -1 if name == "wdm" else np.ones_like(m)  # Lovell 2020, field

    law = closed_form(grid, factor)
    mean = np.trapezoid(law, grid, axis=1)
    number = len(rows["mass"])
    assert abs(number - N * mean.sum()) < 3 * np.sqrt(N * mean.sum())
    every = law.sum(0) * grid
    cumulative = np.concatenate([[0], np.cumsum((every[1:] + every[:-1]) / 2)])
    found = stats.kstest(rows["mass"], lambda m: np.interp(np.log(m), np.log(grid), cumulative / cumulative[-1]))
    assert found.pvalue > 0.01
    seen = np.array([np.isclose(rows["z"], z).sum() for z in SLICES.z[0]])
    assert seen.sum() == number
    pull = ((seen - mean * N) ** 2 / (mean * N))[mean * N > 5]
    assert stats.chi2.sf(pull.sum(), len(pull)) > 0.01


def test_the_cone_is_uniform_in_front_and_narrows_behind() -> None:
    rows = field("cdm")
    front = rows["z"] < 0.5
    assert stats.kstest(rows["x"][front], stats.uniform(-3.2, 6.4).cdf).pvalue > 0.01
    r = np.hypot(rows["x"], rows["y"])
    beta = np.interp(rows["z"], SLICES.z[0], SLICES.beta[0])
    assert (1 - beta * 1.2 / r)[~front].min() >= los.LEAST - 1e-6
    # in one slice behind, density ∝ 1 − β θ_E/r: as many a radius as r − β θ_E
    one = np.isclose(rows["z"], SLICES.z[0, 22]) & (r < 3.2)
    edge = SLICES.beta[0, 22] * 1.2
    inner = edge / (1 - los.LEAST)

    def cumulative(v: Any) -> Any:
        return ((v - edge) ** 2 - (inner - edge) ** 2) / ((3.2 - edge) ** 2 - (inner - edge) ** 2)

    assert one.sum() > 500
    assert stats.kstest(r[one], cumulative).pvalue > 0.01


def test_a_world_with_field_halos_renders_and_records_them() -> None:
    simulation = recipe.Simulation(
        size=32, supersampling=1, z_source=1.5, lens=recipe.Lens(theta_E=0.9), source=recipe.Source(magnitude=22.0),
        classes={"cdm": {"population": "cdm", "line_of_sight": 1.0, "mass": [1e8, 1e10]}}, match_mass=True,
        mesh=True,
    )  # fmt: skip
    world = World(simulation)
    (scene,) = world.scenes(0, "test", 0, 8)
    assert scene.halos is not None
    assert scene.halos.mask is not None
    z = scene.halos.params["z"][scene.halos.mask]
    assert int((z == 0.5).sum()) == int(scene.truth["n_sub"].sum())
    assert int((z != 0.5).sum()) == int(scene.truth["n_los"].sum()) > 0
    assert float(z.max()) < 1.5
    seen = image.render(scene, world.size, world.pixel_scale, world.instrument)
    assert bool(torch.isfinite(seen).all())


@pytest.mark.parametrize("name", ["cdm", "wdm", "sidm", "uldm"])
def test_no_scene_has_no_field(name: str) -> None:
    sub = POPULATIONS[name](line_of_sight=1.0).sample(rng.generator(0, "test"), make_host(0))
    assert all(len(v) == 0 for c in sub.mass for v in c.params.values())


def test_no_line_of_sight_changes_nothing_else() -> None:
    with_los, without = draw("sidm", line_of_sight=0.5), draw("sidm")
    for a, b in zip(with_los.mass, without.mass[:-1], strict=False):
        assert all(torch.equal(a.params[k], b.params[k]) for k in a.params)
    assert "n_los" not in without.truth
    assert with_los.truth["f_sub"].tolist() == without.truth["f_sub"].tolist()


def test_the_sheet_takes_away_the_mean_of_the_field() -> None:
    sub = draw("cdm", **ALONE, mass=[3e7, 1e10])
    halos, sheet = mean_kappa(sub.mass[:-1], 3.2, 128), mean_kappa(sub.mass[-1:], 3.2)
    error = halos.std(ddof=1) / np.sqrt(N)
    assert error < 0.02 * halos.mean()
    # the quadrature's own error: the effective lengths are those at the mean distance
    assert abs(halos.mean() + sheet.mean()) < 3 * error + 0.05 * halos.mean()


def test_field_halos_end_at_fifty_times_the_critical_density() -> None:
    c = np.array([5.0, 10.0, 30.0])
    x = halo.radius_of_overdensity(c, 50)

    def density(v: Any) -> Any:
        return (np.log1p(v) - v / (1 + v)) / v**3

    np.testing.assert_allclose(density(x) / density(c), 50 / 200, rtol=1e-8)
    np.testing.assert_allclose(halo.radius_of_overdensity(c, 200), c, rtol=1e-12)


@pytest.mark.parametrize(("k", "tolerance"), [(8, 0.08), (13, 0.02), (18, 0.02), (24, 0.13)])
def test_effective_halos_against_ray_tracing_through_planes(k: int, tolerance: float) -> None:
    """The amplitude of one halo's deflections in a patch at the ring, but for a uniform shift of the source."""
    lens_host, theta_E = make_host(1, 0.5, 1.5), 1.2
    slices, population = los.Slices.of(lens_host), POPULATIONS["cdm"]()
    plane, beta, behind = slices.pick(np.array([[k]]), lens_host)
    weight, _ = los.coupling(np.full((1, 1), theta_E), lens_host.theta_E, beta, behind)
    rows = population.rows(np.array([[3e8]]), None, np.ones(1), {}, plane)
    rows |= {"center_x": np.full((1, 1), theta_E), "center_y": np.zeros((1, 1))}
    (own,) = population.components(rows, np.ones((1, 1), dtype=bool), {}, plane, None)
    where = theta_E * (1 - float(beta[0, 0])) if behind[0, 0] else theta_E  # on the bent ray
    true = Component("tnfw", own.params | {"center_x": torch.full((1, 1), where, dtype=torch.float64)})
    zero = torch.zeros((1, 1), dtype=torch.float64)
    sie = {"theta_E": zero + theta_E, **dict.fromkeys(("e1", "e2", "center_x", "center_y"), zero)}

    def chi(z: float) -> torch.Tensor:
        return torch.from_numpy(cosmology.comoving_distance(np.array([z])))

    g = torch.linspace(-0.4, 0.4, 41, dtype=torch.float64)
    x, y = theta_E + g[None, None, :], g[None, :, None]
    lens_plane = Plane(chi(0.5), [Component("sie", sie)])
    both = sorted([Plane(chi(float(plane.z_lens[0, 0])), [true]), lens_plane], key=lambda p: float(p.distance))
    smooth, bent = trace(x, y, [lens_plane], chi(1.5)), trace(x, y, both, chi(1.5))
    effective = raytrace.deflection(x, y, [los.project(own, weight, behind)])
    a = torch.stack([s - b for s, b in zip(smooth, bent, strict=True)])[:, 0]
    b = torch.stack(effective)[:, 0]
    a, b = (v - v.mean((1, 2), keepdim=True) for v in (a, b))
    assert float((a * b).sum() / (b * b).sum()) == pytest.approx(1, abs=tolerance)
