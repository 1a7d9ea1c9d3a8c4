"""What a population of dark structure gets and gives.

To add one: a dataclass whose fields are its recipe parameters, with `truth` and `sample`, in a file of its own; with
`build`, which makes the deflectors from truth and halos' rows alone, they can be made again from a stored image; one
line in `POPULATIONS` (or `population: my_package.module:Class` in a recipe, see `deeplense.allow`). The contract test
runs over every entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deeplense.errors import UserError
from deeplense.lensing.cosmology import Distances
from deeplense.lensing.multiplane import Planes
from deeplense.lensing.raytrace import Component

Array = NDArray[Any]


class Truth(NamedTuple):
    """A parameter stored with an image.

    Attributes:
        prior: as in the recipe; None when it follows from others.
        kind: how it turns with the image, a key of `deeplense.data.symmetry.KINDS`; None: nobody knows.
        pair: of x, y and spin2, the names of both components, the first one first.
        period: of an angle [rad].
    """

    name: str
    unit: str
    prior: Any = None
    kind: str | None = "scalar"
    pair: tuple[str, ...] = ()
    period: float | None = None


@dataclass(frozen=True)
class Host:
    """n lenses in which the structure lives; every array is (n, 1), so that it broadcasts over halos.

    Attributes:
        distances: angular-diameter distances [Mpc]. H0, Om0, w0: of the cosmology.
        theta_E: total Einstein radius [arcsec]. center_x, center_y: of the macro lens [arcsec].
        half_width: of the image [arcsec], the same for all.
        log10_m_host: of the halo's M200 [Msun], where the recipe's sky draws it.
    """

    z_lens: Array
    z_source: Array
    distances: Distances
    theta_E: Array
    center_x: Array
    center_y: Array
    half_width: float
    H0: float
    Om0: float
    log10_m_host: Array | None = None
    w0: float = -1.0

    def __len__(self) -> int:
        return len(self.z_lens)

    @property
    def inner(self) -> Array:
        """Radius of the circle inside which substructure adds no mass on average [arcsec]: 2 θ_E, if the image holds
        it."""
        return np.asarray(np.minimum(2 * self.theta_E, self.half_width))


# mass [Msun], place [arcsec], redshift; of a halo c200, the radii of scale, truncation and core [arcsec], the mass of
# its soliton [Msun]; of a line its angle [rad]; 0 where there is no such thing
HALO_COLUMNS = ("mass", "x", "y", "z", "concentration", "r_s", "r_trunc", "r_core", "soliton", "angle")
HALO_UNITS = {"mass": "Msun", "x": "arcsec", "y": "arcsec", "r_s": "arcsec", "r_trunc": "arcsec", "r_core": "arcsec",
              "soliton": "Msun", "angle": "rad"}  # fmt: skip


class Halos(NamedTuple):
    """Every halo (point, line) of n images, padded: column -> (n, N), and the mask (n, N), False where the array is
    padding. With the truth they are all that a population's deflectors are made of."""

    columns: dict[str, Array]
    mask: NDArray[np.bool_]


def mixed(rows: NDArray[np.bool_], yes: Halos, no: Halos) -> Halos:
    """The halos of the images (n,) where `rows` is true from one, of the others from the other."""
    width = max(yes.mask.shape[1], no.mask.shape[1])

    def pick(one: Array, other: Array) -> Array:
        wide = (np.pad(v, ((0, 0), (0, width - v.shape[1])), mode="edge") for v in (one, other))
        return np.where(rows[:, None], *wide)

    there = np.arange(width)
    mask = pick(yes.mask, no.mask) & np.where(rows[:, None], there < yes.mask.shape[1], there < no.mask.shape[1])
    return Halos({k: pick(v, no.columns[k]) for k, v in yes.columns.items()}, mask)


@dataclass
class Substructure:
    """Deflectors of n images; what was drawn, name -> (n,); each halo's row, where there are halos; and the planes in
    which the deflectors are, where they are in several."""

    mass: list[Component]
    truth: dict[str, Array] = field(default_factory=dict)
    halos: Halos | None = None
    planes: Planes | None = None


MOST = 20_000  # deflectors that an image may hold
RICHEST = 10 * MOST  # that a rare lens may hold, where the mass function decides
POPULATION = "a population: a dataclass with 'truth' and 'sample'"


def is_population(cls: type) -> bool:
    """Whether a class can be one, by its outside."""
    return is_dataclass(cls) and all(callable(getattr(cls, name, None)) for name in ("truth", "sample"))


def check_number(number: Array, where: str) -> None:
    """Raises: UserError: more than can be."""
    if number.max(initial=0) > MOST:
        raise UserError(f"{where} draws {number.max():,} in one image, more than {MOST:,}; lower it")


def record(mask: NDArray[np.bool_], **columns: Array) -> Halos:
    """Rows of `HALO_COLUMNS`, 0 where a column is not given."""
    return Halos({k: columns.get(k, 0.0) * np.ones(mask.shape) for k in HALO_COLUMNS}, mask)


def padded(rows: Sequence[Array]) -> Halos:
    """The rows of each of n images, structured arrays with fields `HALO_COLUMNS`, as one."""
    mask = np.arange(max([1, *map(len, rows)])) < np.array([len(r) for r in rows])[:, None]
    columns = {k: np.ones(mask.shape) for k in HALO_COLUMNS}  # padding must deflect nothing, but be a number
    for k, values in columns.items():
        values[mask] = np.concatenate([r[k] if len(r) else np.empty(0) for r in rows])
    return Halos(columns, mask)


def tensors(arrays: dict[str, Array]) -> dict[str, torch.Tensor]:
    """float64 tensors of the arrays."""
    return {k: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64)) for k, v in arrays.items()}


def log10_or_nan(x: Array) -> Array:
    """log10, NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x > 0, np.log10(x), np.nan)


def together(columns: dict[str, Array], exists: NDArray[np.bool_]) -> tuple[dict[str, Array], NDArray[np.bool_]]:
    """Columns (n, N) with those that exist in front, as short as can be, and their mask."""
    longest = max(1, int(exists.sum(1).max(initial=0)))
    order = np.argsort(~exists, axis=1, kind="stable")[:, :longest]
    return {k: np.take_along_axis(v, order, 1) for k, v in columns.items()}, np.take_along_axis(exists, order, 1)
