"""The effect of each kind of dark matter on the same lens: image, convergence of the substructure, residual.

`python benchmarks/gallery.py [folder]` writes dark_matter_<class>.png and dark_matter_all.png; a minute on one core.
The residual is the noiseless image minus that of the smooth lens, in units of the noise σ of a pixel, without what
small changes of source, shear and macro lens explain (a linear fit).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deeplense import recipe
from deeplense.evaluation.plots import png, styled
from deeplense.lensing import raytrace
from deeplense.lensing.raytrace import Component
from deeplense.sim import image
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

HALOS: dict[str, Any] = {"sigma_sub": 0.05, "log10_m_host": 13.3, "mass": [1e7, 1e10]}
CLASSES: dict[str, dict[str, Any]] = {
    "cdm": {"population": "cdm", **HALOS},
    "wdm": {"population": "wdm", **HALOS, "log10_m_hm": 9.0},
    "sidm": {"population": "sidm", **HALOS, "cored": 0.5, "collapsed": 0.4},
    "uldm": {"population": "uldm", **HALOS, "log10_m_uldm": -21.5},
    "axion": {"population": "vortex", "mass": 1e10, "log10_m_axion": -23.0, "impact": 0.55},
    "line_of_sight": {"population": "cdm", **HALOS, "line_of_sight": 1.0},
}
TITLES = {
    "cdm": "cold: 10⁷ to 10¹⁰ M☉",
    "wdm": "warm: half-mode mass 10⁹ M☉",
    "sidm": "self-interacting: half cored,\n40 % collapsed",
    "uldm": "fuzzy: 10⁻²¹·⁵ eV",
    "axion": "vortex: 10⁻²³ eV, 10¹⁰ M☉",
    "line_of_sight": "cold, with the halos\nalong the line of sight",
}
MAP = 257  # pixels of the convergence map


class Panel(NamedTuple):
    """counts/s with noise; κ of the substructure; residual in σ; half the width of the image; a line of mass."""

    seen: NDArray[Any]
    kappa: NDArray[Any]
    residual: NDArray[Any]
    half_width: float
    line: list[float]  # centre, angle, half-length; empty where there is none


def world() -> World:
    """Hubble-like; only the class differs."""
    lens = recipe.Lens(theta_E=1.3, e1=0.1, e2=0.05, gamma1=0.03, gamma2=-0.02)
    source = recipe.Source(
        magnitude=22.0, amplitude=None, R_sersic=0.2, n_sersic=1.0, e1=-0.1, e2=0.1, center_x=0.07, center_y=-0.05
    )
    every = {"no_sub": {"population": "none"}} | CLASSES
    simulation = recipe.Simulation(
        size=64,
        instrument="hst_f160w",
        z_lens=0.5,
        z_source=1.5,
        lens=lens,
        source=source,
        match_mass=True,
        classes=every,
    )
    return World(simulation)


def convergence(mass: list[Component], half_width: float) -> NDArray[Any]:
    """κ = ½∇·α on a fine grid, by automatic differentiation."""
    inside = 0.998 * half_width  # κ of a sheet ends at the border
    line = torch.linspace(-inside, inside, MAP, dtype=torch.float64)
    x, y = (v.contiguous()[None].requires_grad_(True) for v in torch.meshgrid(line, line, indexing="xy"))
    total = torch.zeros((MAP, MAP), dtype=torch.float64)
    for component in mass:
        for part in component.chunks(MAP * MAP, 1 << 22):
            alpha_x, alpha_y = raytrace.deflection(x, y, [part])
            slope = torch.autograd.grad(alpha_x.sum(), x, retain_graph=True)[0]
            total += (slope + torch.autograd.grad(alpha_y.sum(), y)[0])[0] / 2
    return np.asarray(total.numpy())


def panel(w: World, smooth: Scene, scene: Scene) -> Panel:
    pictures = [
        image.render(s, w.size, w.pixel_scale, w.instrument, w.simulation.supersampling) for s in (smooth, scene)
    ]
    t = float(scene.exposure[0])
    variance = pictures[0] * t + w.instrument.background_rate(w.pixel_scale) * t
    sigma = (variance + w.instrument.read_sigma(w.pixel_scale) ** 2).sqrt() / t
    noisy = image.add_noise(pictures[1].float(), scene, w.instrument, w.pixel_scale, "once", 0, "gallery")
    half_width = w.size * w.pixel_scale / 2
    dark = scene.mass[2:]  # after the galaxy and the shear
    residual = unexplained(w, smooth, pictures[1], sigma)
    line = next((c.params for c in dark if c.profile == "line_mass"), None)
    shown = [] if line is None else [float(line[k][0, 0]) for k in ("center_x", "center_y", "angle", "half_length")]
    return Panel(noisy[0, 0].numpy(), convergence(dark, half_width), residual[0, 0].numpy(), half_width, shown)


def unexplained(w: World, smooth: Scene, seen: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Seen minus the smooth image in units of σ, without what other parameters of source and lens explain linearly."""

    def moved(component: str, name: str, step: float) -> torch.Tensor:
        parts = {k: list(getattr(smooth, k)) for k in ("mass", "source")}
        group = parts["source"] if component == "sersic" else parts["mass"]
        at = next(i for i, c in enumerate(group) if c.profile == component)
        group[at] = Component(component, group[at].params | {name: group[at].params[name] + step}, group[at].mask)
        changed = Scene(
            parts["mass"], parts["source"], smooth.lens_light, smooth.deflection_scale, smooth.exposure,
            smooth.label, smooth.index, smooth.truth,
        )  # fmt: skip
        return image.render(changed, w.size, w.pixel_scale, w.instrument, w.simulation.supersampling)

    free = [("sersic", k) for k in ("center_x", "center_y", "R_sersic", "e1", "e2")]
    free += [("shear", "gamma1"), ("shear", "gamma2")]
    free += [("sie", k) for k in ("theta_E", "e1", "e2", "center_x", "center_y")]
    slopes = torch.stack([(moved(*f, 1e-3) - moved(*f, -1e-3)) / 2e-3 / sigma for f in free]).flatten(1).T
    base = image.render(smooth, w.size, w.pixel_scale, w.instrument, w.simulation.supersampling)
    difference = (seen - base) / sigma
    fit = torch.linalg.lstsq(slopes, difference.flatten()[:, None]).solution
    left: torch.Tensor = difference - (slopes @ fit).reshape(difference.shape)
    return left


@styled
def draw(panels: dict[str, Panel]) -> Figure:
    """A row a class."""
    rows = len(panels)
    figure = Figure(figsize=(8.4, 2.6 * rows + 0.75), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False, sharex=True, sharey=True)
    top = max(p.seen.max() for p in panels.values())
    spread = (
        max(float(np.quantile(np.abs(p.kappa), 0.995)) for p in panels.values() if not p.line) if rows > 1 else None
    )
    for row, (name, p) in zip(axes, panels.items(), strict=True):
        extent = (-p.half_width, p.half_width) * 2
        most = spread or max(float(np.quantile(np.abs(p.kappa), 0.995)), 0.05)
        shown = [
            row[0].imshow(np.sqrt(p.seen.clip(0)), cmap="magma", vmin=0, vmax=top**0.5, origin="lower", extent=extent),
            row[1].imshow(p.kappa, cmap="RdBu_r", vmin=-most, vmax=most, origin="lower", extent=extent),
            row[2].imshow(p.residual, cmap="RdBu_r", vmin=-5, vmax=5, origin="lower", extent=extent),
        ]
        if p.line:
            x, y, angle, half = p.line
            ends = np.array([-half, half])
            row[1].plot(x + ends * np.cos(angle), y + ends * np.sin(angle), color="#67001F", lw=2)
        for axis in row:
            axis.set(xticks=[-2, 0, 2], yticks=[-2, 0, 2])
            axis.grid(False)
            axis.spines[:].set_visible(False)
            axis.tick_params(labelsize=8, length=0)
        row[0].set_ylabel(TITLES[name], fontsize=9.5)
    for column, title in zip(axes.T, ("image, with noise", "substructure", "residual"), strict=True):
        column[0].set_title(title)
        column[-1].set_xlabel("arcsec", fontsize=8)
    for k, label in enumerate(("√(counts/s)", "convergence κ", "unexplained / σ")):
        bar = figure.colorbar(
            shown[k], ax=axes[:, k], location="bottom", label=label, extend="both" if k else "neither",
            shrink=0.9, pad=0.03 / rows, fraction=0.05 / rows, aspect=22, ticks=MaxNLocator(5),
        )  # fmt: skip
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0)
    figure.align_ylabels(axes[:, 0])
    figure.get_layout_engine().set(h_pad=0.06)  # type: ignore[union-attr, call-arg]
    return figure


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures")
    w = world()
    smooth, *scenes = (s[:1] for s in w.scenes(SEED, "gallery", 0, 2 * (1 + len(CLASSES))))
    panels = {name: panel(w, smooth, scene) for name, scene in zip(CLASSES, scenes, strict=True)}
    for name, p in panels.items():
        whole = float(np.sqrt((p.residual**2).sum()))
        print(f"{name:14} residual: {np.abs(p.residual).max():5.1f} σ at most, {whole:6.1f} σ in all")
        (out / f"dark_matter_{name}.png").write_bytes(png(draw({name: p})))
    (out / "dark_matter_all.png").write_bytes(png(draw(panels)))


SEED = 4

if __name__ == "__main__":
    main()
