"""Many halos on a grid, against their exact sum."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from deeplense.lensing import mesh, raytrace
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


@pytest.mark.parametrize("profile", mesh.MESHED)
@pytest.mark.parametrize("beyond", [1.0, 30.0])
def test_a_lone_halo_anywhere_is_right_to_a_thousandth(profile: str, beyond: float) -> None:
    lone = halos(profile, 1, beyond, images=200)
    lone.params[mesh.MESHED[profile][0]].fill_(1.0)
    component = Component(profile, lone.params)
    gridded, exact = both(component)
    error = (gridded - exact).norm(dim=0).amax((1, 2)) / exact.norm(dim=0).amax((1, 2))
    inside = torch.stack([component.params[k].abs() for k in raytrace.CENTER]).amax(0)[:, 0] < SCALE * (SIZE / 2 - 2)
    assert float(error[inside].max()) < 1e-3
    assert float(error.max()) < 1e-2  # at the border the four nodes lie on one side


@pytest.mark.parametrize("profile", mesh.MESHED)
def test_next_to_a_halo_the_deflection_is_exact(profile: str) -> None:
    """The grid's share is taken away again on the nodes around it, to the last digit."""
    component = halos(profile, 1, images=20)
    component.params["center_x"].clamp_(-1.2, 1.2)
    component.params["center_y"].clamp_(-1.2, 1.2)
    component = Component(profile, component.params)
    gridded, exact = both(component)
    x, y = raytrace.grid(SIZE, SCALE, *FLOAT64)
    cx, cy = (component.params[k][..., None] for k in raytrace.CENTER)
    near = torch.maximum((x - cx).abs(), (y - cy).abs()) < (mesh.NEAR - 1) * SCALE
    assert int(near.sum()) >= 20 * (2 * mesh.NEAR - 3) ** 2
    difference = (gridded - exact).norm(dim=0)[near] / exact.norm(dim=0).max()
    assert float(difference.max()) < 1e-10


def test_hundreds_in_groups_with_padding_sum_up(monkeypatch: pytest.MonkeyPatch) -> None:
    component = halos("tnfw", 300)
    gridded, exact = both(component)
    spread = (gridded - exact).norm(dim=0).max() / exact.norm(dim=0).mean()
    assert float(spread) < 2e-3
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


def test_few_halos_are_summed_one_by_one() -> None:
    assert mesh.on_grid(halos("tnfw", mesh.FEWEST)).mesh
    assert not mesh.on_grid(halos("tnfw", mesh.FEWEST - 1)).mesh
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
    assert float(error.max()) < 3e-3
