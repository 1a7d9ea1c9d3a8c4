"""What a population of lenses and sources is: parameters that one prior each cannot draw, because they are tied.

To add one: a dataclass with `truth` and `draw`, whose fields are what the recipe says below `simulation.sky`, and one
line in `SKIES`; or, in a file of the user's own, `simulation.sky.population: my_module:MyPopulation`.

    truth(): a `Truth` of everything that it draws. A name of a recipe's parameter (`lens.theta_E`, `z_lens`,
        `source.magnitude`, …) takes that prior's place; any other is stored beside them.
    draw(rng, drawn, setting): name -> (n,) of all of these; `drawn` has what the recipe's own priors drew for the same
        n lenses, so that the light may follow the mass. All of a section that the recipe leaves out is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Drawn = Mapping[str, Array]
SKY = "a population of lenses: a dataclass with 'truth' and 'draw'"


class Setting(NamedTuple):
    """What else decides how a population looks: H0 [km/s/Mpc], Om0 and w0 of the cosmology, the first band's name."""

    H0: float
    Om0: float
    band: str
    w0: float = -1.0


def is_sky(cls: type) -> bool:
    """Whether a class can be one, by its outside."""
    return is_dataclass(cls) and all(callable(getattr(cls, name, None)) for name in ("truth", "draw"))
