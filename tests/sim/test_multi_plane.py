"""Field halos in planes of their own: the halos as they are, the mean of each plane, and images against lenstronomy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from hosts import make_host
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from scipy import stats
from test_populations import mean_kappa

from deeplense import config, rng
from deeplense.errors import UserError
from deeplense.evaluation.forward import Forward
from deeplense.lensing.raytrace import Component
from deeplense.lensing.structure import Structure
from deeplense.sim import image, reference
from deeplense.sim.scene import Scene
from deeplense.sim.substructure import POPULATIONS, Substructure
from deeplense.sim.substructure import line_of_sight as los
from deeplense.sim.world import World

N = 100
HOST = make_host(N, 0.5, 1.5)
SLICES = los.Slices.of(HOST)
PLANES: dict[str, Any] = {"line_of_sight": 1.0, "multi_plane": True}


def draw(name: str = "cdm", **parameters: Any) -> Substructure:
    found: Substructure = POPULATIONS[name](**(PLANES | parameters)).sample(rng.generator(2, "test"), HOST)
    return found


def world_of(population: str, *more: str, **parameters: Any) -> World:
    lens = {"lens.a3": 0, "lens.a4": 0, "size": 48}
    classes = {"halos": {"population": population, "mass": [1e8, 1e10], **parameters}}
    changes = [f"simulation.{k}={v}" for k, v in {**lens, "classes": classes}.items()]
    return World(config.load_recipe("realistic/hst", [*changes, *more]).simulation)


def scene_of(world: World, n: int) -> Scene:
    return world.scenes(5, "oracle", 0, n)[0]


@pytest.mark.parametrize("name", ["cdm", "wdm", "sidm", "uldm"])
def test_images_agree_with_lenstronomy(name: str) -> None:
    more = {"log10_m_uldm": -20.0} if name == "uldm" else {}
    world = world_of(name, **PLANES, **more)
    scene = scene_of(world, 2)
    assert len({c.plane for c in scene.mass}) == 2 * los.SLICES + 1
    assert float(scene.truth["n_los"].min()) > 3
    args = (world.size, world.pixel_scale, world.instrument, 2)
    theirs = reference.render(scene, *args)
    for dtype, bar in ((torch.float64, 1e-6), (torch.float32, 2e-5)):
        ours = image.render(scene.to("cpu", dtype), *args)
        assert float((ours - theirs).abs().max() / theirs.max()) <= bar


def test_subhalos_and_macro_lens_are_those_without_a_field() -> None:
    """So `match_mass` compares what is in the lens's plane alone."""
    near, scene = (scene_of(world_of("cdm", **more), 6) for more in ({}, PLANES))
    with_field = [c for c in scene.mass if c.plane == 0]
    assert not any(c.mesh for c in scene.mass)
    for name, here in (("epl", 0), ("shear", 1), ("square_sheet", -1)):
        assert all(torch.equal(v, near.mass[here].params[k]) for k, v in with_field[here].params.items())
        assert with_field[here].profile == name
    assert scene.truth["n_sub"].tolist() == near.truth["n_sub"].tolist()


def test_every_halo_is_in_the_plane_of_its_redshift_with_its_own_size_and_strength() -> None:
    sub = draw(mass=[1e8, 1e10])
    assert sub.halos is not None
    assert sub.planes is not None
    cosmology, z = FlatLambdaCDM(H0=70, Om0=0.3), sub.planes.z[0].numpy()
    assert (np.diff(z) > 0).all()
    assert z[los.SLICES] == 0.5
    one = {k: v[0][sub.halos.mask[0]] for k, v in sub.halos.columns.items()}
    seen = 0
    for component in (c for c in sub.mass if c.profile == "tnfw" and c.plane != 0):
        there = np.isclose(one["z"], z[los.SLICES + component.plane], rtol=1e-9)
        assert component.mask is not None
        assert there.sum() == int(component.mask[0].sum())
        own = {k: v[0][component.mask[0]].numpy() for k, v in component.params.items()}
        np.testing.assert_array_equal(own["center_x"], one["x"][there])
        lens = LensCosmo(z_lens=z[los.SLICES + component.plane], z_source=1.5, cosmo=cosmology)
        for k, (mass, c) in enumerate(zip(one["mass"][there], one["concentration"][there], strict=True)):
            expected = lens.nfw_physical2angle(mass, c)
            np.testing.assert_allclose((own["R_s"][k], own["alpha_Rs"][k]), expected, rtol=2e-3)
        seen += int(there.sum())
    assert seen == sub.truth["n_los"][0]


def test_the_cone_is_full_all_the_way() -> None:
    """Behind the lens rays converge, not halos: as many a square arcsecond as Sheth & Tormen expect without a lens."""
    sub = draw(sigma_sub=0.0)
    assert sub.halos is not None
    rows = {k: v[sub.halos.mask] for k, v in sub.halos.columns.items()}
    grid = np.geomspace(1e7, 1e10, 2001)
    law = np.trapezoid(Structure().mass_function(grid, SLICES.z[0][:, None]), grid, axis=1)
    expected = N * law * SLICES.volume[0] * 6.4**2
    seen = np.array([np.isclose(rows["z"], z).sum() for z in SLICES.z[0]])
    enough = expected > 5
    pull = ((seen - expected) ** 2 / expected)[enough]
    assert stats.chi2.sf(pull.sum(), len(pull)) > 0.01
    for part in (rows["z"] < 0.5, rows["z"] > 0.5):
        for axis in "xy":
            assert stats.kstest(rows[axis][part], stats.uniform(-3.2, 6.4).cdf).pvalue > 0.01


@pytest.mark.parametrize("plane", [-12, -4, 1, 10])
def test_every_plane_has_the_mean_density_of_the_universe(plane: int) -> None:
    mass = [c for c in draw(mass=[1e7, 1e9]).mass if c.plane == plane]
    assert [c.profile for c in mass] == ["tnfw", "square_sheet"]
    halos, sheet = mean_kappa(mass[:1], 3.2, 128), mean_kappa(mass[1:], 3.2)
    error = halos.std(ddof=1) / np.sqrt(N)
    assert error < 0.15 * halos.mean()
    assert abs(halos.mean() + sheet.mean()) < 3 * error
    lone = draw(compensate=False).mass
    assert all(c.profile != "square_sheet" for c in lone)


def test_the_image_model_of_the_likelihood_keeps_the_planes() -> None:
    world = world_of("cdm", **PLANES)
    scene = scene_of(world, 1)
    seen = image.render(
        scene.to("cpu", torch.float64), world.size, world.pixel_scale, world.instrument, world.simulation.supersampling
    )
    torch.testing.assert_close(Forward(world, scene).render({})[0], seen[0, 0], rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["cdm", "sidm"])
def test_no_scene_has_no_field(name: str) -> None:
    sub = POPULATIONS[name](**PLANES).sample(rng.generator(0, "test"), make_host(0))
    assert sub.planes is not None
    assert sub.planes.z.shape == (0, 2 * los.SLICES + 1)
    assert all(len(v) == 0 for c in sub.mass for v in c.params.values())


def test_the_parts_of_a_component_are_the_whole() -> None:
    index = np.array([[3, 17, 3], [31, 0, 16]])
    x = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    parts = {c.plane: c for c in los.in_planes(Component("point_mass", {"center_x": x}, mask), index)}
    assert sorted(parts) == [k for k in range(-16, 17) if k]
    found = {
        (row, plane): p.params["center_x"][row][p.mask[row]].tolist()
        for plane, p in parts.items()
        for row in (0, 1)
        if p.mask is not None
    }
    assert {k: v for k, v in found.items() if v} == {
        (0, -13): [0.0, 2.0],
        (0, 2): [1.0],
        (1, 16): [3.0],
        (1, -16): [4.0],
    }


def test_planes_without_halos_are_refused() -> None:
    with pytest.raises(UserError, match=r"ColdDarkMatter\.multi_plane .* give line_of_sight above 0"):
        POPULATIONS["cdm"](multi_plane=True)
    fault = ["simulation.z_source_convention=2.5"]
    with pytest.raises(UserError, match=r"simulation\.z_source_convention.*leave it out with multi_plane"):
        World(
            config.load_recipe(
                "model_2", [*fault, f"simulation.classes={{cdm: {PLANES | {'population': 'cdm'}}}}"]
            ).simulation
        )
