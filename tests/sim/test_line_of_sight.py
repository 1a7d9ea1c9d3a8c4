"""Field halos: how many, where, how heavy, in which plane, and what light sees of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from hosts import make_host
from numpy.typing import NDArray
from scipy import stats
from test_populations import mean_inside

from deeplense import config, rng
from deeplense.lensing import cosmology, halo
from deeplense.lensing.structure import Structure
from deeplense.sim import image, macro, reference
from deeplense.sim.scene import Scene
from deeplense.sim.substructure import POPULATIONS, Substructure
from deeplense.sim.substructure import line_of_sight as los
from deeplense.sim.world import World

N = 100
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
    return {k: v[sub.halos.mask] for k, v in sub.halos.columns.items()}


def world_of(name: str, *more: str, **parameters: Any) -> World:
    classes = {"halos": {"population": name, "mass": [1e8, 1e10], "line_of_sight": 1.0, **parameters}}
    return World(config.load_recipe("realistic/hst", [f"simulation.classes={classes}", *more]).simulation)


def images(world: World, scene: Scene, coupled: bool, mesh: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    assert scene.planes is not None
    mass = [dataclasses.replace(c, mesh=mesh and c.mesh) for c in scene.mass]
    scene = dataclasses.replace(scene, mass=mass, planes=dataclasses.replace(scene.planes, coupled=coupled))
    return image.render(scene.to("cpu", dtype), world.size, world.pixel_scale, world.instrument)[:, 0]


def test_the_way_in_slices() -> None:
    solid_angle = np.radians(1 / 3600) ** 2
    total = COSMOLOGY.comoving_volume(1.5).value / (4 * np.pi) * solid_angle
    assert SLICES.volume[0].sum() == pytest.approx(total, rel=5e-3)
    planes = SLICES.planes(HOST, coupled=False)
    for k in (3, 19):
        z = SLICES.z[0, k]
        near, far = min(z, 0.5), max(z, 0.5)
        between, behind = (cosmology.distances(*pair) for pair in ((near, far), (near, 1.5)))
        bent = between.D_ls * behind.D_s / (between.D_s * behind.D_ls) if z > 0.5 else 0.0
        plane = k - los.FRONT + (k >= los.FRONT)
        assert float(planes.bending(plane)[0]) == pytest.approx(bent, rel=1e-6)
        assert SLICES.radius[0, k] == pytest.approx(np.sqrt(2) * 3.2 - 1.2 * bent, rel=1e-6)
        d = cosmology.distances(float(z), 1.5)
        assert SLICES.distances.theta_E2_per_mass[0, k] == pytest.approx(d.theta_E2_per_mass, rel=1e-6)


@pytest.mark.parametrize("name", ["cdm", "wdm"])
def test_number_mass_place_and_redshift_of_field_halos(name: str) -> None:
    rows = field(name, **({"log10_m_hm": 8.5} if name == "wdm" else {}))
    grid = np.geomspace(1e7, 1e10, 2001)
    law = Structure().mass_function(grid, SLICES.z[0][:, None]) * (SLICES.volume * np.pi * SLICES.radius**2)[0][:, None]
    if name == "wdm":  # Lovell 2020, field
        law = law / (1 + (2.3 * 10**8.5 / grid) ** 0.8)
    mean = np.trapezoid(law, grid, axis=1) * N
    number = len(rows["mass"])
    assert abs(number - mean.sum()) < 3 * np.sqrt(mean.sum())
    every = law.sum(0) * grid
    cumulative = np.concatenate([[0], np.cumsum((every[1:] + every[:-1]) / 2)])
    found = stats.kstest(rows["mass"], lambda m: np.interp(np.log(m), np.log(grid), cumulative / cumulative[-1]))
    assert found.pvalue > 0.01
    index = np.abs(rows["z"][:, None] - SLICES.z[0]).argmin(1)
    seen = np.bincount(index, minlength=len(mean))
    pull = ((seen - mean) ** 2 / mean)[mean > 5]
    assert stats.chi2.sf(pull.sum(), len(pull)) > 0.01
    share = (np.hypot(rows["x"], rows["y"]) / SLICES.radius[0, index]) ** 2
    for part in (index < los.FRONT, index >= los.FRONT):
        assert stats.kstest(share[part], stats.uniform.cdf).pvalue > 0.01
        angle = np.arctan2(rows["y"], rows["x"])[part]
        assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01


def test_truth_and_rows_of_a_world_with_field_halos() -> None:
    world = world_of("cdm")
    (scene,) = world.scenes(0, "test", 0, 8)
    assert scene.halos is not None
    assert scene.halos.mask is not None
    rows, half = scene.halos.params, world.size * world.pixel_scale / 2
    seen = scene.halos.mask & (rows["x"].abs() < half) & (rows["y"].abs() < half)
    near = rows["z"] == scene.truth["z_lens"][:, None]
    assert (seen & near).sum(1).tolist() == scene.truth["n_sub"].tolist()
    assert (seen & ~near).sum(1).tolist() == scene.truth["n_los"].tolist()
    assert bool((rows["z"] < scene.truth["z_source"][:, None])[scene.halos.mask].all())


@pytest.mark.parametrize("name", ["cdm", "wdm", "sidm", "uldm"])
def test_no_scene_has_no_field(name: str) -> None:
    sub = POPULATIONS[name](line_of_sight=1.0).sample(rng.generator(0, "test"), make_host(0))
    assert all(len(v) == 0 for c in sub.mass for v in c.params.values())


def test_no_line_of_sight_changes_nothing_else() -> None:
    with_los, without = draw("cdm", line_of_sight=0.5), draw("cdm")
    assert "n_los" not in without.truth
    assert without.planes is None
    for key, values in without.truth.items():
        np.testing.assert_array_equal(with_los.truth[key], values)
    for profile in ("tnfw", "mass_sheet"):
        near, alone = ([c for c in s.mass if c.plane == 0 and c.profile == profile] for s in (with_los, without))
        assert len(near) == len(alone) == 1
        for key, values in alone[0].only(torch.ones_like(alone[0].params["center_x"]) > 0).params.items():
            there = near[0].params[key][:, : values.shape[1]]
            assert torch.equal(there, values) or profile == "tnfw"


@pytest.mark.parametrize("plane", [-12, -4, 1, 5])
def test_every_plane_has_the_mean_density_of_the_universe(plane: int) -> None:
    """Inside the circle where rays of the inner image go."""
    mass = [c for c in draw("cdm", **ALONE, mass=[1e7, 1e9]).mass if c.plane == plane]
    assert [c.profile for c in mass] == ["tnfw", "mass_sheet"]
    radius = SLICES.inner[0, plane + los.FRONT - (plane > 0)]
    halos, sheet = mean_inside(mass[:1], radius), mean_inside(mass[1:], radius)
    error = halos.std(ddof=1) / np.sqrt(N)
    assert error < 0.15 * halos.mean()
    assert abs(halos.mean() + sheet.mean()) < 3 * error
    assert all(c.profile != "mass_sheet" for c in draw("cdm", **ALONE, mass=[1e8, 1e9], compensate=False).mass)


def test_field_halos_end_at_fifty_times_the_critical_density() -> None:
    c = np.array([5.0, 10.0, 30.0])
    x = halo.radius_of_overdensity(c, 50)

    def density(v: Any) -> Any:
        return (np.log1p(v) - v / (1 + v)) / v**3

    np.testing.assert_allclose(density(x) / density(c), 50 / 200, rtol=1e-8)
    np.testing.assert_allclose(halo.radius_of_overdensity(c, 200), c, rtol=1e-12)


def test_decoupled_images_agree_with_lenstronomys_deflectors() -> None:
    world = world_of("sidm", mass=[3e8, 1e10])
    (scene,) = world.scenes(5, "oracle", 0, 2)
    theirs = reference.render(scene, world.size, world.pixel_scale, world.instrument)[:, 0]
    ours = images(world, scene, coupled=False, mesh=False, dtype=torch.float64)
    assert float((ours - theirs).abs().max() / theirs.max()) <= 1e-6


@pytest.mark.parametrize("name", ["cdm", "uldm"])
def test_decoupled_planes_on_a_mesh_are_nearly_the_recursive_lens_equation(name: str) -> None:
    """The error of an image, against what the field changes in it."""
    world = world_of(name)
    (scene,) = world.scenes(7, "test", 0, 6)
    exact, quick = (images(world, scene, coupled, mesh=not coupled) for coupled in (True, False))
    alone = dataclasses.replace(scene, mass=[c for c in scene.mass if c.plane == 0])
    without = images(world, alone, coupled=True, mesh=False)
    error, effect = ((v - exact).square().mean((1, 2)).sqrt() for v in (quick, without))
    assert float((error / effect).median()) < 0.03
    assert float((error / effect).max()) < 0.2


@pytest.mark.parametrize("name", ["cdm", "uldm"])
def test_an_image_does_not_depend_on_the_batch_it_is_in(name: str) -> None:
    world = world_of(name)
    scene = world.scenes(4, "test", 0, 5)[0].to("cpu", torch.float32)
    args = world.size, world.pixel_scale, world.instruments, world.simulation.supersampling
    together = image.render(scene, *args)
    alone = torch.cat([image.render(scene[k : k + 1], *args) for k in range(len(scene))])
    assert float((together - alone).abs().max() / together.max()) < 2e-5


def test_the_ring_has_the_mean_deflection_that_was_drawn() -> None:
    """Macro lens, subhalos and field together, by rays on the circle."""
    world = world_of("cdm", "simulation.lens.a3=0", "simulation.lens.a4=0")
    (scene,) = world.scenes(3, "test", 0, 12)
    assert scene.planes is not None
    angle = torch.arange(256, dtype=torch.float64) * (2 * torch.pi / 256)
    x, y, r = (scene.truth[f"lens.{k}"][:, None, None] for k in ("center_x", "center_y", "theta_E"))
    none = dict.fromkeys((f"lens.{k}" for k in ("a3", "a4", "phi3", "phi4")), np.zeros(12))
    drawn = {k: v.numpy() for k, v in scene.truth.items()} | none

    def radial(mass: Any) -> torch.Tensor:
        alpha = scene.planes.deflection(x + r * angle.cos(), y + r * angle.sin(), mass)  # type: ignore[union-attr]
        return (alpha[0] * angle.cos() + alpha[1] * angle.sin()).mean((1, 2)) / r[:, 0, 0]

    error = radial(scene.mass) / radial(macro.macro_lens(drawn)) - 1
    blind = radial([c for c in scene.mass if c.plane == 0]) / radial(macro.macro_lens(drawn)) - 1
    assert float(error.abs().median()) < 5e-4
    assert float(error.square().mean().sqrt()) < 0.5 * float(blind.square().mean().sqrt())
