"""What is found in files of others, and what the user says of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeplense.errors import UserError

AXES = ("HW", "CHW", "HWC", "NHW", "HWN", "NCHW", "NHWC")


@dataclass
class Foreign:
    """One object.

    Attributes:
        id: path relative to the source without extension, `#row` added in files of many images; unique.
        file: where it came from, the first of several.
        image: (C, H, W) float32, NaN where a pixel is not finite.
        label: the class that its folders (or the file itself) name, None when unknown.
        params: what the file says, e.g. log10_m_axion.
        pixel_scale: arcsec, None when unknown.
        nan_share: share of the pixels that are NaN.
        bands: names of the channels, empty when unknown.
        unit: of the pixels, empty when unknown.
        notes: what was joined, left out or guessed.
        own: whether the file itself, and not its folders, named the class.
        noise: (1, H, W) or (C, H, W) map, where it is asked for.
    """

    id: str
    file: str
    image: NDArray[np.float32]
    label: str | None = None
    params: dict[str, float] = field(default_factory=dict)
    pixel_scale: float | None = None
    nan_share: float = 0.0
    bands: tuple[str, ...] = ()
    unit: str = ""
    notes: tuple[str, ...] = ()
    own: bool = False
    noise: NDArray[np.float32] | None = None


@dataclass
class Skipped:
    """A file that gives no image, and why."""

    file: str
    reason: str


class Found(NamedTuple):
    """An image as a reader gives it; `row` tells the images of one file apart."""

    image: NDArray[np.float32]
    row: str = ""
    label: str | None = None
    params: dict[str, float] = {}  # noqa: RUF012  never written to
    pixel_scale: float | None = None
    bands: tuple[str, ...] = ()
    unit: str = ""
    notes: tuple[str, ...] = ()
    weak: bool = False  # whether the folder's class goes before `label`
    noise: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Asked:
    """What the user says of the files; whatever is not said is guessed, and told.

    Attributes:
        images: names of the arrays that hold images, in files of named arrays.
        label: name of the array that holds the classes; None: they are not wanted.
        bands: names of the bands, in the order that is wanted; empty: nothing is joined; None: found from the names.
        axes: what the axes of an array mean, one of `AXES`.
        mask, noise: what stands beside an image, see `weights`.
    """

    images: tuple[str, ...] = ()
    label: str | None = ""
    bands: tuple[str, ...] | None = None
    axes: str = ""
    mask: str = ""
    noise: str = ""


def asked(
    images: str | None = None,
    label: str | None = None,
    bands: str | None = None,
    axes: str | None = None,
    mask: str | None = None,
    noise: str | None = None,
) -> Asked:
    """From options of the command line.

    Raises:
        UserError: an empty or repeated name, or axes that are not in `AXES`.
    """
    if axes is not None and axes.upper() not in AXES:
        raise UserError(f"--axes '{axes}' is not one of {', '.join(AXES)}")
    none = bands is not None and bands.strip().lower() == "none"
    return Asked(
        _names("--images", images) or (),
        (label or "").strip(),
        () if none else _names("--bands", bands),
        (axes or "").upper(),
        (mask or "").strip(),
        (noise or "").strip(),
    )


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    listed = tuple(name.strip() for name in text.split(","))
    if "" in listed or len({name.lower() for name in listed}) < len(listed):
        raise UserError(f"{option} '{text}' is not a list of different names, a,b")
    return listed
