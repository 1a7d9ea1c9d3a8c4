"""Maps that a simulated dataset may keep beside its images: `simulate --truth kappa,deflection,source`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense import config
from deeplense.errors import UserError
from deeplense.sim.lenses import Lenses
from deeplense.sim.world import World


class TruthMap(NamedTuple):
    """A map on the image's pixels.

    Attributes:
        parts: ends of its planes' names; of light there is a plane for each band.
        unit: of its values. make: (lenses) -> its planes, (B, H, W) each or (B, C, H, W).
    """

    parts: tuple[str, ...] | None
    unit: str
    make: Callable[[Lenses], Tensor | tuple[Tensor, ...]]


TRUTH_MAPS: dict[str, TruthMap] = {
    "kappa": TruthMap(("",), "", Lenses.kappa),
    "potential": TruthMap(("",), "arcsec2", Lenses.potential),
    "deflection": TruthMap(("_x", "_y"), "arcsec", Lenses.deflection),
    "shear": TruthMap(("1", "2"), "", Lenses.shear),
    "magnification": TruthMap(("",), "", Lenses.magnification),
    "time_delay": TruthMap(("",), "day", Lenses.time_delay),
    "source": TruthMap(None, "electron/s/arcsec2", Lenses.source),
    "lensed_source": TruthMap(None, "electron/s/arcsec2", lambda lenses: lenses.source(lensed=True)),
    "lens_light": TruthMap(None, "electron/s/arcsec2", Lenses.lens_light),
    "noiseless": TruthMap(None, "electron/s", Lenses.image),
}


def chosen(text: str, world: World) -> list[str]:
    """Names from "kappa,deflection", which the world can give.

    Raises:
        UserError: an unknown name, one given twice, or a map that the recipe cannot give.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        config.lookup(TRUTH_MAPS, name, "truth map")
        if names.count(name) > 1:
            raise UserError(f"--truth names {name} twice")
    lenses = world.draw(len(world.classes))  # one of each class
    for name in set(names) & {"potential", "time_delay"}:  # the others every scene has
        x, y = lenses.grid(2)
        try:
            (lenses.potential if name == "potential" else lenses.time_delay)(x, y)
        except UserError as error:
            raise UserError(f"--truth {name}: {error}") from error
    return names


def plane_names(names: Sequence[str], world: World) -> list[tuple[str, str]]:
    """Name and unit of each plane, e.g. deflection_x, deflection_y; of light in several bands, source.F814W."""
    found = []
    for name in names:
        entry = TRUTH_MAPS[name]
        bands = [f".{band}" for band in world.bands] if len(world.bands) > 1 else [""]
        found += [(name + part, entry.unit) for part in (bands if entry.parts is None else entry.parts)]
    return found


@torch.no_grad()
def make_maps(lenses: Lenses, names: Sequence[str]) -> NDArray[np.float32]:
    """(B, K, H, W) planes, in the order of `plane_names`."""
    planes = []
    for name in names:
        made = TRUTH_MAPS[name].make(lenses)
        stacked = torch.stack(made, 1) if isinstance(made, tuple) else made
        planes.append(stacked if stacked.dim() == 4 else stacked[:, None])
    return torch.cat(planes, 1).to("cpu", torch.float32).numpy()
