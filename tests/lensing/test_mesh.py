"""Many halos on a grid, against their exact sum."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import torch

from deeplense.lensing import mesh, raytrace
from deeplense.lensing.mass import MASS
from deeplense.lensing.raytrace import Component

SIZE, SCALE = 48, 0.08
FLOAT64 = (torch.device("cpu"), torch.float64)


def halos(profile: str, n: int, beyond: float = 1.0, images: int = 3) -> Component:
    """`beyond`: how much smaller than the ranges that the mesh was made for they may be."""
    generator = torch.Generator().manual_seed(n)

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand((images, n), generator=generator, dtype=torch.float64)

    strength, ranges = mesh.MESHED[profile]
    half = SIZE * SCALE / 2
    params = {"center_x": draw(-half, half), "center_y": draw(-half, half), strength: 10 ** draw(-4, -2)}
    for name, (low, high) in ranges.items():
        ends = torch.tensor([low / beyond, high], dtype=torch.float64).log10()
        params[name] = 10 ** draw(*ends.tolist())
    return Component(profile, params, draw(0, 1) < 0.7)


def both(component: Component) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, B, SIZE, SIZE) on the grid, and exact."""
    x, y = raytrace.grid(SIZE, SCALE, *FLOAT64)
    gridded = mesh.mesh_for(component.profile, SIZE, SCALE, *FLOAT64).deflection(component)
    return torch.stack(gridded), torch.stack(raytrace.deflection(x, y, [component]))


def bending(profile: str, n: int, low: float, high: float, beyond: float = 1.0) -> Component:
    """Lone halos in n images that deflect by `low` to `high` rays at the distance of one."""
    lone = halos(profile, 1, beyond, images=n)
    shape = {k: v for k, v in lone.params.items() if k not in raytrace.CENTER}
    strength = mesh.MESHED[profile][0]
    found = MASS[profile].function(torch.full((n, 1), SCALE**2, dtype=torch.float64), **shape)
    wanted = torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64)[:, None]
    return Component(profile, lone.params | {strength: lone.params[strength] * wanted / found})


def distance(component: Component) -> torch.Tensor:
    """Of rays from lone halos, in rays."""
    x, y = raytrace.grid(SIZE, SCALE, *FLOAT64)
    cx, cy = (component.params[k][..., None] for k in raytrace.CENTER)
    return torch.hypot(x - cx, y - cy) / SCALE


@pytest.mark.parametrize("profile", mesh.MESHED)
@pytest.mark.parametrize("beyond", [1.0, 30.0])
def test_a_lone_halo_anywhere_is_right_to_a_hundredth_or_to_little_of_a_ray(profile: str, beyond: float) -> None:
    component = bending(profile, 200, 1e-4, 1.0, beyond)
    gridded, exact = both(component)
    error = (gridded - exact).norm(dim=0).where(distance(component) > 1, 0).amax((1, 2)) / SCALE
    largest = exact.norm(dim=0).amax((1, 2)) / SCALE
    assert bool((error < 2e-3 + 0.015 * largest).all())
    assert float((error / largest).median()) < 0.1


@pytest.mark.parametrize("profile", mesh.MESHED)
@pytest.mark.parametrize(("low", "nodes"), mesh.NEAR.items())
def test_next_to_a_halo_that_is_not_faint_the_deflection_is_exact(profile: str, low: float, nodes: int) -> None:
    """The grid's share is taken away again on the rays around it, to the last digit."""
    component = bending(profile, 20, 1.01 * low, 5 * low)
    gridded, exact = both(component)
    near = distance(component) < mesh.STEP * (nodes - 1)
    assert int(near.sum()) > 20
    difference = (gridded - exact).norm(dim=0) / exact.norm(dim=0).amax((1, 2), keepdim=True)
    assert float(difference[near].max()) < 1e-10
    assert float(difference[~near].max()) > 1e-6


def test_weights_are_factors_on_the_deflections() -> None:
    component = halos("tnfw", 50)
    assert component.mask is not None
    grid = mesh.mesh_for("tnfw", SIZE, SCALE, *FLOAT64)
    some = torch.arange(50) % 3 == 0
    once, part, mixed = grid.fields(component, torch.stack([torch.ones(50), some, 2 - 3.0 * some])[:, None])
    torch.testing.assert_close(once, torch.stack(grid.deflection(component)), rtol=1e-9, atol=1e-15)
    alone = grid.deflection(replace(component, mask=component.mask & some))
    torch.testing.assert_close(part, torch.stack(alone), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(mixed, 2 * once - 3 * part, rtol=1e-9, atol=1e-12)


def test_hundreds_in_groups_with_padding_sum_up(monkeypatch: pytest.MonkeyPatch) -> None:
    component = halos("tnfw", 300)
    gridded, exact = both(component)
    spread = (gridded - exact).norm(dim=0).max() / exact.norm(dim=0).mean()
    assert float(spread) < 2e-2
    monkeypatch.setattr(mesh, "HALOS", 250)  # an image at a time
    alone, _ = both(component)
    torch.testing.assert_close(alone, gridded, rtol=1e-9, atol=1e-15)


def test_images_without_halos() -> None:
    component = halos("tnfw", 20)
    assert component.mask is not None
    component.mask[1] = False
    gridded, _ = both(component)
    assert float(gridded[:, 1].abs().max()) < 1e-15
    component.mask[:] = False
    nothing = mesh.mesh_for("tnfw", SIZE, SCALE, *FLOAT64).deflection(component)
    assert not torch.stack(nothing).any()


def test_float32_adds_less_than_the_grid() -> None:
    component = halos("tnfw", 300)
    grid = mesh.mesh_for("tnfw", SIZE, SCALE, torch.device("cpu"), torch.float32)
    single = torch.stack(grid.deflection(component.to("cpu", torch.float32)))
    double, _ = both(component)
    assert float((single - double).abs().max() / double.abs().max()) < 1e-4


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a compiler")
def test_compiled_it_is_the_same_sum() -> None:
    component = halos("tnfw", 40)
    eager, _ = both(component)
    compiled, _ = both(replace(component, fused=True))
    torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-13)


def test_neighbouring_images_make_groups() -> None:
    assert list(mesh._groups([3, 3, 3, 9, 0, 1], 6)) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
    assert list(mesh._groups([], 6)) == []


def test_whether_there_is_a_grid_is_a_matter_of_the_profile_alone() -> None:
    assert mesh.on_grid(halos("tnfw", 1)).mesh
    line = Component("line_mass", {"theta_E": torch.ones(1, 40)})
    assert not mesh.on_grid(line).mesh


@pytest.mark.parametrize("profile", mesh.MESHED)
def test_halos_outside_the_image_deflect_in_it(profile: str) -> None:
    lone = halos(profile, 1, images=100)
    angle = torch.linspace(0, 6, 100, dtype=torch.float64)[:, None]
    r = torch.linspace(1.05, 4, 100, dtype=torch.float64)[:, None] * 2**0.5 * SIZE * SCALE / 2
    moved = {"center_x": r * torch.cos(angle), "center_y": r * torch.sin(angle)}
    gridded, exact = both(Component(profile, lone.params | moved))
    error = (gridded - exact).norm(dim=0).amax((1, 2)) / exact.norm(dim=0).amax((1, 2))
    assert float(error.max()) < 3e-2
    assert float(error.median()) < 1e-4
