"""Field halos in planes of their own: the halos as they are, the mean of each plane, and images against lenstronomy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from hosts import make_host
from lenstronomy.Cosmo.lens_cosmo import LensCosmo

from deeplense import config, rng
from deeplense.errors import UserError
from deeplense.evaluation.forward import Forward
from deeplense.sim import image, reference
from deeplense.sim.scene import Scene
from deeplense.sim.substructure import POPULATIONS, Substructure
from deeplense.sim.substructure import line_of_sight as los
from deeplense.sim.world import World

N = 100
HOST = make_host(N, 0.5, 1.5)
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
    assert len({c.plane for c in scene.mass}) == los.FRONT + los.BEHIND + 1
    assert float(scene.truth["n_los"].min()) > 10
    args = (world.size, world.pixel_scale, world.instrument, 2)
    theirs = reference.render(scene, *args)
    for dtype, bar in ((torch.float64, 1e-6), (torch.float32, 2e-5)):
        ours = image.render(scene.to("cpu", dtype), *args)
        assert float((ours - theirs).abs().max() / theirs.max()) <= bar


def test_every_halo_is_in_the_plane_of_its_redshift_with_its_own_size_and_strength() -> None:
    sub = draw(mass=[1e8, 1e10])
    assert sub.halos is not None
    assert sub.planes is not None
    cosmology, z = FlatLambdaCDM(H0=70, Om0=0.3), sub.planes.z[0].numpy()
    assert (np.diff(z) > 0).all()
    assert z[los.FRONT] == 0.5
    one = {k: v[0][sub.halos.mask[0]] for k, v in sub.halos.columns.items()}
    seen = 0
    for component in (c for c in sub.mass if c.profile == "tnfw" and c.plane != 0):
        there = np.isclose(one["z"], z[los.FRONT + component.plane], rtol=1e-9)
        assert component.mask is not None
        assert there.sum() == int(component.mask[0].sum())
        own = {k: v[0][component.mask[0]].numpy() for k, v in component.params.items()}
        np.testing.assert_array_equal(own["center_x"], one["x"][there])
        lens = LensCosmo(z_lens=z[los.FRONT + component.plane], z_source=1.5, cosmo=cosmology)
        for k, (mass, c) in enumerate(zip(one["mass"][there], one["concentration"][there], strict=True)):
            expected = lens.nfw_physical2angle(mass, c)
            np.testing.assert_allclose((own["R_s"][k], own["alpha_Rs"][k]), expected, rtol=2e-3)
        seen += int(there.sum())
    assert seen == (one["z"] != 0.5).sum()


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
    assert sub.planes.z.shape == (0, los.FRONT + los.BEHIND + 1)
    assert all(len(v) == 0 for c in sub.mass for v in c.params.values())


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
