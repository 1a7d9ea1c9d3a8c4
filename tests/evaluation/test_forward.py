"""The image as a function of its parameters is the image, in every class of the realistic recipes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deeplense import config
from deeplense.errors import UserError
from deeplense.evaluation.forward import Forward
from deeplense.sim import image
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

FEW = [f"simulation.classes.{name}.mass=[1e9, 1e10]" for name in ("cdm", "wdm", "sidm", "uldm")]
NAMES = ("lens.theta_E", "lens.a3", "lens.phi3", "lens.a4", "lens.phi4", "lens.gamma1", "source.R_sersic")


@pytest.fixture(scope="module")
def scenes() -> tuple[World, dict[str, Scene]]:
    world = World(config.load_recipe("realistic/hst", [*FEW, "simulation.size=32"]).simulation)
    return world, {world.classes[s.label]: s for s in world.scenes(1, "test", 0, 60)}


def seen(world: World, scene: Scene) -> torch.Tensor:
    exact = replace(scene, mass=[replace(c, mesh=False) for c in scene.mass]).to("cpu", torch.float64)
    s = world.simulation
    return image.render(exact, world.size, world.pixel_scale, world.instrument, s.supersampling)[0, 0]


@pytest.mark.parametrize("name", ["no_sub", "cdm", "wdm", "sidm", "uldm", "axion"])
def test_the_image_is_the_image_and_its_derivatives_are_differences(
    scenes: tuple[World, dict[str, Scene]], name: str
) -> None:
    world, every = scenes
    scene = every[name]
    if name == "axion":
        scene = scene[torch.nonzero(scene.truth["n_lines"] == 1)[:, 0]]
    model = Forward(world, scene[:1])
    torch.testing.assert_close(model.render({})[0], seen(world, scene[:1]), rtol=1e-10, atol=0)
    names = (*NAMES, *(("vortex_x", "vortex_log10_mass") if name == "axion" else ()))
    _, slopes = model.derivatives(names)
    for parameter, slope in zip(names, slopes, strict=True):
        h, value = 2e-6, model.values[parameter]
        at = {parameter: torch.tensor([value + h, value - h], dtype=torch.float64)}
        up, down = model.render(at)
        torch.testing.assert_close((up - down) / (2 * h), slope, rtol=0, atol=1e-6 * max(1.0, float(slope.abs().max())))


def test_multipoles_have_the_values_that_were_drawn(scenes: tuple[World, dict[str, Scene]]) -> None:
    world, every = scenes
    one = every["cdm"][:1]
    values = Forward(world, one).values
    for name in ("a3", "phi3", "a4", "phi4"):
        assert values[f"lens.{name}"] == pytest.approx(float(one.truth[f"lens.{name}"][0]), rel=1e-12)
    assert "lens.m" not in values


def test_several_vortices_are_refused(scenes: tuple[World, dict[str, Scene]]) -> None:
    world, every = scenes
    scene = every["axion"]
    several = scene[torch.nonzero(scene.truth["n_lines"] > 1)[:, 0]][:1]
    with pytest.raises(UserError, match=r"this image has [23] vortices; parameters are of one"):
        Forward(world, several)
