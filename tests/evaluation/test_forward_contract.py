"""The image as a function of its parameters, in every class of every shipped recipe: it is the image, and its
derivatives are differences of lenstronomy's images (which borrows our line, square sheet, waves and truncated cored
halo, as it has none)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplense import config
from deeplense.errors import UserError
from deeplense.evaluation.forward import VORTEX, Forward
from deeplense.evaluation.information import fisher
from deeplense.lensing.raytrace import Component
from deeplense.sim import image, reference
from deeplense.sim.psf import moffat
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

PICTURES = [name for name in config.shipped() if name.endswith("model_4")]
CASES = [
    (name, kind)
    for name in config.shipped()
    if name not in PICTURES
    for kind in config.load_recipe(name).simulation.classes
]
MOST = 2  # halos of a kind and plane, so that lenstronomy takes no time; every kind stays
PLANES = (-1, 0, 1)  # of those along the line of sight
PIXELS = 28  # a side, the middle of the image
STEP, STEP_OF_LINE = 1e-5, 1e-4  # a line moves the image so little that small differences are rounding
# of classes with halos, which lenstronomy sums slowly; the other classes have every parameter
FEW = ("lens.theta_E", "lens.gamma", "lens.a4", "lens.gamma1", "source.R_sersic", "source.magnitude", "lens_light.e1")
# differences of fourth order: at ±h and ±2h
STENCIL = {1.0: 8 / 12, -1.0: -8 / 12, 2.0: -1 / 12, -2.0: 1 / 12}


@cache
def scenes(name: str) -> tuple[World, dict[str, Scene]]:
    """One scene of each class with few halos. Noise that has no likelihood is left out of the legacy recipes."""
    changes = ["simulation.noise=once"]
    for kind, spec in config.load_recipe(name).simulation.classes.items():
        if "line_of_sight" in spec:
            changes.append(f"simulation.classes.{kind}.mass=[1e9, 1e10]")
    world = World(name, changes)
    found = {}
    for scene in world.scenes(1, "test", 0):
        if "n_lines" in scene.truth:
            scene = scene[scene.truth["n_lines"] == 1]
        found[world.classes[scene.label]] = replace(
            scene[:1], mass=[few(c) for c in scene[:1].mass if c.plane in PLANES]
        )
    return world, found


def few(c: Component) -> Component:
    if c.mask is None:
        return replace(c, mesh=False)
    return replace(c, params={k: v[:, :MOST] for k, v in c.params.items()}, mask=c.mask[:, :MOST], mesh=False)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_of_nothing_changed_it_is_the_image(name: str, kind: str) -> None:
    world, every = scenes(name)
    model = Forward(world, every[kind])
    args = world.size, world.pixel_scale, world.instruments, world.simulation.supersampling
    seen = image.render(every[kind].to("cpu", torch.float64), *args).flatten(1, 2)
    torch.testing.assert_close(model.render({}), seen, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_its_derivatives_are_differences_of_lenstronomys_images(name: str, kind: str) -> None:
    world, every = scenes(name)
    model = Forward(world, every[kind])
    model.world = one_ray_a_pixel(world)
    # lenstronomy sees nothing beyond the border, we its last pixel: what a wide PSF brings in is left out
    instrument = world.instrument
    border = 0
    if instrument.psf_beta is not None:
        border = len(moffat(instrument.psf_fwhm / world.pixel_scale, instrument.psf_beta)) // 2
    model.size = min(world.size, PIXELS + 2 * border)
    inside = slice(border, model.size - border)
    assert len(model.names) >= 14  # of lens, shear and source
    names = FEW if name.startswith("realistic/") and every[kind].halos is not None else model.names
    _, slopes = model.derivatives(names)
    line = any(c.profile == "line_mass" for c in every[kind].mass)
    for parameter, slope in zip(names, slopes, strict=True):
        step = STEP_OF_LINE if line and parameter in VORTEX else STEP
        steps = step * torch.tensor(list(STENCIL), dtype=torch.float64)
        values = {k: torch.full((len(steps),), v, dtype=torch.float64) for k, v in model.values.items()}
        values[parameter] = values[parameter] + steps
        moved = model._build(values, len(steps))
        images = reference.render(moved, model.size, world.pixel_scale, world.instruments, 1)
        expected = torch.tensordot(torch.tensor(list(STENCIL.values()), dtype=torch.float64), images, 1) / step
        ours, theirs = (x.view(expected.shape)[:, inside, inside] for x in (slope, expected))
        error = float((ours - theirs).abs().max()) / float(ours.abs().max())
        assert error < 1e-6, f"{parameter}: {error:.1e} of its largest derivative"


def one_ray_a_pixel(world: World) -> World:
    """As lenstronomy's images here."""
    return World(replace(world.simulation, supersampling=1))


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_refused(name: str, tmp_path: Path) -> None:
    x, y = np.meshgrid(*[np.linspace(-1, 1, 60)] * 2)
    np.save(tmp_path / "disc.npy", np.stack([np.exp(-5 * np.hypot(x, 2 * y))] * 3).astype(np.float32))
    classes = "simulation.classes={no_sub: {population: none}}"
    world = World(name, [f"simulation.source.images={tmp_path}", classes])
    with pytest.raises(UserError, match=r"simulation: images, .* have no likelihood here"):
        Forward(world, world.scenes(0, "test", 0)[0][:1])


def test_bands_add_up_what_they_know_of_the_lens() -> None:
    w, every = scenes("realistic/roman")
    scene, names = every["no_sub"], ["lens.theta_E", "lens.e1", "source.center_x"]
    together = fisher(w, scene, names).matrix
    each = []
    for k, band in enumerate(w.bands):
        one = replace(w.simulation, bands={band: w.simulation.bands[band]})
        one = replace(one, source=replace(one.source, colours=None))
        light = one.lens_light and replace(one.lens_light, colours=None)
        each.append(fisher(World(replace(one, lens_light=light)), scene.band(k), names).matrix)
    np.testing.assert_allclose(together, sum(each), rtol=1e-9)
    # a galaxy's colour moves the bands behind it alone
    _, (slope,) = Forward(w, scene).derivatives(["source.colours.F106-F129"])
    assert slope[: w.size].abs().max() == 0
    assert (slope.view(3, -1).abs().amax(1)[1:] > 0).all()
