"""What an image contains: bounds on log10 m_axion and on a subhalo's mass, and two sensitivity maps.

`python benchmarks/information.py [folder for the figures]` writes information_axion.png, information_subhalo.png and
sensitivity_map.png, and prints the numbers. Three minutes on one free core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from deeplense import config
from deeplense.evaluation import information, information_plots, sensitivity
from deeplense.evaluation.plots import png
from deeplense.sim.observe import observe
from deeplense.sim.world import World

MASS = np.linspace(-24, -22, 17)
SUBHALO = np.linspace(7, 10, 7)
SCENES = 12
KINDS = {"point_mass": "point mass", "tnfw": "truncated NFW"}
PRIOR = 2 / 12**0.5  # of log10 m_axion, uniform over two decades


def world(name: str, *changes: str) -> World:
    return World(config.load_recipe(name, [f"simulation.{c}" for c in changes]).simulation)


def table(title: str, bounds: information.Bounds, column: str) -> None:
    print(f"\n{title}\n{column:>8}  {'all else known':>26}  {'what the recipe varies':>26}  {'every parameter':>26}")
    for row, value in enumerate(bounds.grid):
        cells = [bounds.percentiles(state)[:, row] for state in ("known", "recipe", "all")]
        print(f"{value:8.3f}", *(f"{m:10.3g} [{low:6.2g}, {high:6.2g}]" for low, m, high in cells), sep="  ")


def axion(out: Path) -> None:
    worlds = {
        "model_1": world("model_1"),
        "quickstart, closed-form line": world("quickstart", "classes.axion.points=null"),
    }
    found = {}
    for name, one in worlds.items():
        found[name] = information.bound_log10_m_axion(one, MASS, SCENES)
        table(f"log10 m_axion, {name}: bound [dex]", found[name], "log10 m")
        below = found[name].percentiles("recipe")[1] < PRIOR
        print(f"the bound is below the prior's {PRIOR:.3f} up to log10 m = {MASS[below].max():.3f}")
        grid, errors = information.ideal_errors(one, scenes=SCENES)
        ranges = {f"[{low}, {low + 0.5}]": errors[(grid > low) & (grid < low + 0.5)].mean() for low in MASS[:-1:4]}
        print(f"ideal MAE over the prior, all else known: {errors.mean():.4f} (constant predictor 0.5);",
              ", ".join(f"{k} {v:.4f}" for k, v in ranges.items()))  # fmt: skip
    label = "log10 of the axion mass [eV]"
    (out / "information_axion.png").write_bytes(png(information_plots.bounds(found, label, PRIOR)))


def subhalo(out: Path) -> None:
    found = {}
    for name, profile in (("model_1", "point_mass"), ("model_3", "point_mass"), ("model_3", "tnfw")):
        title = f"{name}, {KINDS[profile]}"
        found[title] = information.bound_subhalo_mass(world(name), SUBHALO, SCENES, profile=profile)
        table(f"mass of a subhalo on the arc, {title}: bound [dex]", found[title], "log10 M")
    label = "log10 of the subhalo's mass [M☉]"
    (out / "information_subhalo.png").write_bytes(png(information_plots.bounds(found, label)))


def maps(out: Path) -> None:
    rows = []
    for name, step, profile in (("model_1", 5, "point_mass"), ("model_3", 2, "point_mass"), ("model_3", 2, "tnfw")):
        one = world(name)
        scene = information.smooth(one.scenes(0, "information", 0, 6)[0])[1:2]
        line = sensitivity.positions(one, step)
        drawn = {
            "all else known": sensitivity.sensitivity_map(one, scene, grid_step=step, nuisance=(), profile=profile),
            "lens and source fitted again": sensitivity.sensitivity_map(one, scene, grid_step=step, profile=profile),
        }
        title = f"{name}, {KINDS[profile]}"
        for kind, values in drawn.items():
            told = np.isfinite(values)
            half = np.median(np.where(told, values, np.inf))
            print(f"{title}, {kind}: smallest log10 M {np.nanmin(values):.2f}, median of the map {half:.2f}, "
                  f"undetectable up to 10^10 {1 - told.mean():.0%}")  # fmt: skip
        image = observe(one, scene, 0, "information")[0, 0].double().numpy()
        edge = float(line[-1] + (line[1] - line[0]) / 2)
        rows.append(information_plots.Mapped(title, image, one.size * one.pixel_scale, drawn, edge))
    (out / "sensitivity_map.png").write_bytes(png(information_plots.sensitivity(rows)))


def main(out: Path) -> None:
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for part in (axion, subhalo, maps):
        start = time.perf_counter()
        part(out)
        print(f"{part.__name__}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures"))
