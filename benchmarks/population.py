"""The lenses of `realistic/slacs`, `realistic/euclid` and `realistic/lsst` beside observed and forecast ones.

`python benchmarks/population.py TABLE [PICTURE]`: TABLE is SLACS's (lens_name, z_lens, z_source, theta_E_arcsec); where
its folder has LENS_NAME/image.fits in e-/s (F814W, zero point 25.94), magnitudes are measured in them. A minute on one
core. Prints percentiles and shares, draws distributions.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deeplense import config
from deeplense.evaluation import plots
from deeplense.sim import image
from deeplense.sim.sky import galaxies
from deeplense.sim.world import World

Array = NDArray[np.float64]
RECIPES, BLOCKS, RENDERED, ZERO_POINT = ("slacs", "euclid", "lsst"), 6, 256, 25.94
ALONE = "simulation.classes={no_sub: {population: none}}"
SECTORS = 36  # of the azimuth

# 60 lenses of the LSST forecast of Collett (2015), in the order of LensPop's lenses_LSSTa.txt: 16, 50 and 84 %
FORECAST = {
    "lens.theta_E": (1.07, 1.32, 1.78),
    "z_lens": (0.26, 0.48, 0.70),
    "z_source": (1.30, 2.21, 3.10),
    "sigma_v": (240, 269, 306),
    "lens_light.magnitude": (16.8, 18.4, 19.8),
    "source.magnitude": (24.8, 25.6, 26.6),
}
PANELS = {
    "lens.theta_E": "Einstein radius [arcsec]",
    "z_lens": "redshift of the lens",
    "z_source": "redshift of the source",
    "sigma_v": "velocity dispersion [km/s]",
    "lens_light.magnitude": "magnitude of the lens",
    "source.magnitude": "magnitude of the source, unlensed",
    "magnification": "magnification",
    "arc_signal_to_noise": "S/N of the arc",
}


def drawn(name: str) -> dict[str, Array]:
    """Truths of some blocks of a recipe, with the shares of rings, quads and doubles."""
    w = World(config.load_recipe(f"realistic/{name}", [ALONE]).simulation)
    scenes = [w.scenes(0, "population", block)[0] for block in range(BLOCKS)]
    found = {k: np.concatenate([s.truth[k].numpy() for s in scenes]) for k in (*PANELS, "n_images")}
    some = scenes[0][:RENDERED]
    lone = dataclasses.replace(some, lens_light=[]).to("cpu", torch.float32)
    arcs = image.render(lone, w.size, w.pixel_scale, w.instruments)
    sigma = np.array([w.instrument.background_sigma(w.pixel_scale, t) for t in some.exposure.tolist()])
    seen = arcs[:, 0].numpy() > 3 * sigma[:, None, None]
    peak = arcs.amax((1, 2, 3)).numpy() / sigma
    y, x = (np.indices((w.size, w.size)) - (w.size - 1) / 2) * w.pixel_scale
    sector = ((np.arctan2(y, x) + np.pi) / (2 * np.pi) * SECTORS).astype(int) % SECTORS
    lit = np.stack([(seen & (sector == k)).any((1, 2)) for k in range(SECTORS)]).mean(0)
    print(
        f"{name}: {w.selected:.0%} kept; quads {np.mean(found['n_images'] >= 4):.1%}, of the azimuth above 3 sigma: "
        f"rings (over 90 %) {np.mean(lit > 0.9):.0%}, arcs (half to 90 %) {np.mean((lit > 0.5) & (lit <= 0.9)):.0%}, "
        f"less {np.mean(lit <= 0.5):.0%}; peak S/N of a pixel {np.median(peak):.0f}; "
        f"theta_E below 1 arcsec {np.mean(found['lens.theta_E'] < 1):.0%}"
    )
    for k, title in PANELS.items():
        print(f"    {title:<34}" + "  ".join(f"{v:8.2f}" for v in np.percentile(found[k], [5, 16, 50, 84, 95])))
    return found


def observed(table: Path) -> dict[str, Array]:
    """Of SLACS lenses: what the table says, sigma of an isothermal lens, and the magnitude in 10 arcsec."""
    rows = list(csv.DictReader(table.open()))
    z_lens, z_source, theta_E = (
        np.array([float(row[k]) for row in rows]) for k in ("z_lens", "z_source", "theta_E_arcsec")
    )
    ratio = galaxies.distance_ratio(z_lens, z_source, 70.0, 0.3)
    sigma = galaxies.C * np.sqrt(theta_E / galaxies.einstein_radius(np.array(galaxies.C), ratio))
    found = {"lens.theta_E": theta_E, "z_lens": z_lens, "z_source": z_source, "sigma_v": sigma}
    files = [table.parent / row["lens_name"] / "image.fits" for row in rows]
    if all(f.exists() for f in files):
        flux = np.array([float(np.nansum(fits.getdata(f))) for f in files])
        found["lens_light.magnitude"] = ZERO_POINT - 2.5 * np.log10(flux)
    for k, v in found.items():
        print(f"    SLACS {PANELS[k]:<28}" + "  ".join(f"{x:8.2f}" for x in np.percentile(v, [5, 16, 50, 84, 95])))
    return found


@plots.styled
def draw(populations: dict[str, dict[str, Array]], slacs: dict[str, Array]) -> Figure:
    """Distributions of each recipe; observed lenses as ticks, the forecast as a bar."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 4).flat, PANELS.items(), strict=True):
        every = np.concatenate([p[key] for p in populations.values()])
        log = key in ("magnification", "arc_signal_to_noise")
        low, high = np.percentile(every, [0.5, 99.5])
        edges = np.geomspace(low, high, 30) if log else np.linspace(low, high, 30)
        for color, (name, found) in zip(plots.COLORS, populations.items(), strict=False):
            share = np.full(len(found[key]), 1 / len(found[key]))
            axes.hist(found[key], edges, histtype="step", color=color, weights=share, label=f"realistic/{name}", lw=1.5)
        top = axes.get_ylim()[1]
        if key in slacs:
            axes.plot(
                slacs[key], np.full(len(slacs[key]), 1.05 * top), "|", color=plots.INK, ms=8, label="12 SLACS lenses"
            )
        if key in FORECAST:
            a, b, c = FORECAST[key]
            axes.errorbar([b], [1.15 * top], xerr=[[b - a], [c - b]], fmt="o", color=plots.MUTED, ms=4,
                          label="LSST forecast (Collett 2015), 68 %")  # fmt: skip
        axes.set(xlabel=title, yticks=[], xscale="log" if log else "linear", ylim=(0, 1.25 * top))
        if log:
            axes.set_xticks(ticks := [v for v in (2, 5, 10, 20, 50, 100, 200) if low < v < high], list(map(str, ticks)))
            axes.minorticks_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


if __name__ == "__main__":
    slacs = observed(Path(sys.argv[1]))
    figure = draw({name: drawn(name) for name in RECIPES}, slacs)
    figure.savefig(sys.argv[2] if len(sys.argv) > 2 else "population.png", dpi=110)
