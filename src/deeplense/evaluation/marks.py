"""What `show --also` draws over a simulated image: critical curves, caustics, halos."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from deeplense import config
from deeplense.errors import UserError
from deeplense.lensing.curves import Curve
from deeplense.sim.lenses import Lenses

MOST_HALOS = 100  # the heaviest; circles of more hide the image
SIZES = (4.0, 60.0)  # of the lightest and the heaviest halo drawn [points²]


def _lines(axes: Axes, curves: Sequence[Curve], scale: float, colour: str, label: str) -> None:
    middle = (axes.get_images()[0].get_size()[0] - 1) / 2
    axes.add_collection(
        LineCollection([c / scale + middle for c in curves], colors=colour, linewidths=0.9, label=label)
    )


def _critical_curves(axes: Axes, lens: Lenses) -> None:
    _lines(axes, lens.critical_curves()[0], lens.world.pixel_scale, "white", "critical curves")


def _caustics(axes: Axes, lens: Lenses) -> None:
    _lines(axes, lens.caustics()[0], lens.world.pixel_scale, "deepskyblue", "caustics")


def _halos(axes: Axes, lens: Lenses) -> None:
    table = lens.halos
    heavy = table[np.argsort(table["mass"])[::-1][:MOST_HALOS]]
    if not len(heavy):
        return
    mass = np.log10(np.asarray(heavy["mass"]))
    size = np.interp(mass, [mass.min(), mass.max() + 1e-9], SIZES)
    middle = (lens.world.size - 1) / 2
    x, y = (np.asarray(heavy[k]) / lens.world.pixel_scale + middle for k in "xy")
    label = f"halos ({len(heavy)} heaviest of {len(table)})" if len(table) > len(heavy) else f"{len(heavy)} halos"
    axes.scatter(x, y, s=size, facecolors="none", edgecolors="lime", linewidths=0.6, label=label)


MARKS: dict[str, Callable[[Axes, Lenses], None]] = {
    "critical_curves": _critical_curves,
    "caustics": _caustics,
    "halos": _halos,
}
RESIDUAL = "residual"  # not a mark but a picture: what a lens without substructure leaves of the stored image


def chosen(text: str | None) -> list[str]:
    """Names from "critical_curves,halos".

    Raises:
        UserError: an unknown one.
    """
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        config.lookup({**MARKS, RESIDUAL: None}, name, "mark for --also")
    return names


def mark(axes: Axes, lens: Lenses, names: Sequence[str]) -> None:
    """Draw over an image (y up, its pixels as axes) of one lens, and say what is what."""
    limits = axes.get_xlim(), axes.get_ylim()
    drawn = [name for name in names if name in MARKS]
    for name in drawn:
        MARKS[name](axes, lens)
    axes.set(xlim=limits[0], ylim=limits[1])
    if drawn and axes.get_legend_handles_labels()[1]:
        axes.legend(loc="lower left", fontsize=5, facecolor="0.2", labelcolor="white", framealpha=0.6)


def check_simulated(simulated: bool, names: Sequence[str]) -> None:
    """Raises: UserError: marks of an image whose lens nobody knows."""
    if names and not simulated:
        raise UserError(f"--also {','.join(names)}: give --id of an image of a simulated dataset, whose lens is known")
