"""Figures of the information limit: Cramér–Rao bounds over a parameter, sensitivity maps beside their images."""

from __future__ import annotations

from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from deeplense.evaluation.information import Bounds
from deeplense.evaluation.plots import COLORS, INK, MUTED, plain, styled

Floats = NDArray[np.float64]
LARGEST = 15.0  # dex; a bound beyond it only says that the image is silent
STATES = {
    "all": ("every parameter free, no priors", COLORS[1], "--"),
    "recipe": ("free: what the recipe varies", COLORS[0], "-"),
    "known": ("all else known", COLORS[2], ":"),
}


@styled
def bounds(panels: dict[str, Bounds], label: str, prior: float | None = None, unit: str = "dex") -> Figure:
    """Median and 16-84 % over scenes of the bound on one parameter; a panel for each recipe.

    Args:
        prior: standard deviation of the parameter's prior, drawn as a line.
    """
    figure = Figure(figsize=(10.6 if len(panels) > 2 else 4.5 * len(panels) + 0.2, 4.0))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    top = max(float(np.median(b.sigma["all"], axis=1).max()) for b in panels.values())
    bottom = min(float(np.percentile(b.sigma["known"], 16, axis=1).min()) for b in panels.values())
    for k, (ax, (title, found)) in enumerate(zip(axes, panels.items(), strict=True)):
        for state, (name, color, dash) in STATES.items():
            low, median, high = found.percentiles(state)
            ax.fill_between(found.grid, low, high, color=color, alpha=0.15, lw=0)
            ax.plot(found.grid, median, dash, color=color, label=name)
        if prior:
            ax.axhline(prior, color=INK, lw=1, ls=(0, (1, 1)))
            ax.text(found.grid[0], prior * 1.15, f" prior {prior:.3f}", color=INK, fontsize=9, va="bottom")
        ax.set(title=plain(title), xlabel=label, yscale="log", xlim=(found.grid[0], found.grid[-1]))
        ax.set_ylim(bottom / 2, min(top, LARGEST) * 2)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 5, 10]))
        ax.yaxis.set_major_locator(LogLocator(numticks=8))
        ax.yaxis.set_minor_formatter(NullFormatter())
        if k == 0:
            ax.set_ylabel(f"smallest standard deviation [{unit}]")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


class Mapped(NamedTuple):
    """One row of `sensitivity`: title, (H, W) image [counts/s], its width [arcsec], and title -> map over `extent`."""

    title: str
    image: Floats
    width: float
    maps: dict[str, Floats]
    extent: float


@styled
def sensitivity(rows: list[Mapped]) -> Figure:
    """The image, and beside it log10 of the smallest detectable mass on one scale; grey where none is."""
    columns = 1 + max(len(r.maps) for r in rows)
    figure = Figure(figsize=(3.0 * columns + 0.9, 3.15 * len(rows)))
    grid: Any = figure.subplots(len(rows), columns, squeeze=False)
    values = np.concatenate([m.ravel() for r in rows for m in r.maps.values()])
    low, high = np.nanmin(values), np.nanmax(values)
    cmap = mpl.colormaps["viridis_r"].with_extremes(bad="#D1D5DB")
    for line, row in zip(grid, rows, strict=True):
        half = row.width / 2
        top = float(row.image.max())
        norm = AsinhNorm(linear_width=top / 5, vmin=min(float(np.percentile(row.image, 1)), 0), vmax=top)
        line[0].imshow(row.image, origin="lower", cmap="magma", norm=norm, extent=(-half, half, -half, half))
        line[0].set(title=plain(row.title), ylabel="arcsec")
        drawn = None
        for ax, (title, values) in zip(line[1:], row.maps.items(), strict=True):
            e = row.extent
            drawn = ax.imshow(values, origin="lower", cmap=cmap, vmin=low, vmax=high, extent=(-e, e, -e, e))
            ax.set(title=plain(title), xlim=(-half, half), ylim=(-half, half))
        for ax in line:
            ax.grid(False)
            ax.set_aspect("equal")
            ax.spines[:].set_visible(False)
        if drawn is not None:
            bar = figure.colorbar(drawn, ax=line, pad=0.01, shrink=0.9)
            bar.set_label("smallest detectable mass, log10(M/M☉)")
            bar.outline.set_edgecolor(MUTED)
    for ax in grid[-1]:
        ax.set_xlabel("arcsec")
    return figure
