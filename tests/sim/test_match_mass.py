"""Every population in a lens of the same mass inside θ_E."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_populations import draw

from deeplense import config
from deeplense.errors import UserError
from deeplense.lensing import raytrace
from deeplense.lensing.raytrace import Component
from deeplense.sim import macro
from deeplense.sim import world as world_module
from deeplense.sim.substructure import HALO_COLUMNS, POPULATIONS
from deeplense.sim.world import World

Array = NDArray[Any]
ROW = [(name, float) for name in HALO_COLUMNS]


def lens(n: int) -> dict[str, NDArray[np.float64]]:
    generator = np.random.default_rng(5)
    values = {"theta_E": generator.uniform(1.0, 1.3, n), "gamma": generator.uniform(1.8, 2.3, n)}
    values |= {k: generator.normal(0, 0.1, n) for k in ("e1", "e2", "gamma1", "gamma2", "center_x", "center_y")}
    values |= {k: np.zeros(n) for k in ("a3", "a4", "phi3", "phi4")}
    return {f"lens.{k}": v for k, v in values.items()}


def inside(drawn: dict[str, Any], mass: list[Component], points: int) -> Array:
    """Mean convergence inside the θ_E that was drawn, by Gauss."""
    angle = torch.arange(points, dtype=torch.float64) * (2 * torch.pi / points)
    r, x, y = (torch.from_numpy(drawn[f"lens.{k}"])[:, None, None] for k in ("theta_E", "center_x", "center_y"))
    ax, ay = raytrace.deflection(x + r * torch.cos(angle), y + r * torch.sin(angle), mass)
    return np.asarray(((ax * torch.cos(angle) + ay * torch.sin(angle)).mean((1, 2)) / r[:, 0, 0]).numpy())


@pytest.mark.parametrize("name", [n for n in POPULATIONS if n != "none"])
def test_every_population_holds_the_same_mass_inside_the_einstein_radius(name: str) -> None:
    n = 40 if name in ("point_masses", "vortex") else 6  # sums over thousands of halos take seconds
    drawn = lens(n)
    more = {"mass": {"log_uniform": [1e7, 1e10]}} if name == "vortex" else {}
    sub = draw(name, n, **more)
    matched = drawn | {"lens.theta_E": macro.match_mass(drawn, macro.share_of_mass(drawn, sub.mass))}
    assert np.abs(matched["lens.theta_E"] / drawn["lens.theta_E"] - 1).max() > 1e-5
    both = [*macro.macro_lens(matched), *sub.mass]
    error = inside(drawn, both, 4096) / inside(drawn, macro.macro_lens(drawn), 4096) - 1
    # a point mass is in or out, which eight nodes see in steps
    assert np.abs(error).max() < (1e-4 if name == "point_masses" else 2e-5)


def test_mass_inside_the_einstein_radius_by_integration() -> None:
    """κ = ½∇·α by automatic differentiation, summed on a polar grid: the halos and the lens as it is matched."""
    n = 1
    drawn = lens(n) | {"lens.gamma": np.full(n, 2.0)}
    sub = draw(
        "sidm", n, sigma_sub=0.1, mass=[3e8, 1e10], cored=1.0, collapsed=0.0, core=3.0
    )  # smooth enough for a grid
    matched = drawn | {"lens.theta_E": macro.match_mass(drawn, macro.share_of_mass(drawn, sub.mass))}
    total = []
    for mass in ([*macro.macro_lens(matched), *sub.mass], macro.macro_lens(drawn)):
        nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(100))
        angle = torch.arange(256, dtype=torch.float64) * (2 * torch.pi / 256)
        share = (1 + nodes[:, None]) / 2
        r = torch.from_numpy(drawn["lens.theta_E"])[:, None, None] * share
        x = (torch.from_numpy(drawn["lens.center_x"])[:, None, None] + r * torch.cos(angle)).requires_grad_(True)
        y = (torch.from_numpy(drawn["lens.center_y"])[:, None, None] + r * torch.sin(angle)).requires_grad_(True)
        ax, ay = raytrace.deflection(x, y, mass)
        kappa = (torch.autograd.grad(ax.sum(), x, retain_graph=True)[0] + torch.autograd.grad(ay.sum(), y)[0]) / 2
        total.append((kappa * share * weights[:, None]).sum(1).mean(1).numpy())
    np.testing.assert_allclose(total[0], total[1], rtol=1e-5)


HEAVY = "{population: vortex, number: {uniform: [0.5, 3.5]}, mass: {log_uniform: [1e9, 1e12]}, impact: 0.1}"


def test_substructure_heavier_than_its_lens_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(config.load_recipe("realistic/hst", [f"simulation.classes={{axion: {HEAVY}}}"]).simulation)
    (scene,) = world.scenes(0, "test", 0)
    halos = scene.halos
    assert halos is not None
    assert halos.mask is not None
    rows = [
        np.array(list(zip(*(v[k][there].tolist() for v in halos.params.values()), strict=True)), dtype=ROW)
        for k, there in enumerate(halos.mask)
    ]
    grid = raytrace.grid(8, 0.4, "cpu", torch.float64)
    again, once = (
        raytrace.deflection(*grid, m) for m in (world.rebuild(0, world.truth_row(scene), rows).mass, scene.mass)
    )
    torch.testing.assert_close(again, once, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(world_module, "REDRAWS", 0)
    with pytest.raises(UserError, match=r"simulation\.match_mass: substructure holds .* lower its mass"):
        world.scenes(0, "test", 0)


def test_lenses_light_enough_keep_their_substructure() -> None:
    world = World(config.load_recipe("realistic/hst", [f"simulation.classes={{axion: {HEAVY}}}"]).simulation)
    seen: list[Any] = []
    population = world._populations[0]
    sample = population.sample

    def spied(generator: np.random.Generator, host: Any) -> Any:
        seen.append(sample(generator, host))
        return seen[-1]

    population.sample = spied
    (scene,) = world.scenes(0, "test", 0)
    first = seen[0].truth["log10_m_sub"]
    assert len(seen) > 1
    changed = first != scene.truth["log10_m_sub"].numpy()
    assert 0 < changed.mean() < 0.5
    assert scene.truth["log10_m_sub"].numpy()[changed].mean() < first[changed].mean()
