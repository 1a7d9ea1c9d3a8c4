"""From an array in any of the forms in the wild to one image (C, H, W), or a reason why not."""

from __future__ import annotations

import io
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from deeplense.data import unpickle
from deeplense.data.budget import Unreadable, check_image

MOST_CHANNELS = 4
FEWER_CHANNELS = f"; an image has up to {MOST_CHANNELS} channels, and sides of more pixels than that"


class Form(NamedTuple):
    """What one array holds. `image` (C, H, W) float32, NaN where a pixel is not finite."""

    image: NDArray[np.float32]
    label: str | None = None
    log_mass: float | None = None  # log10 of the axion mass in eV


def read_npy(content: bytes) -> NDArray[Any]:
    """The array in an `.npy` file, numeric or of objects.

    Raises:
        Unreadable: damaged, truncated, not numbers, or a pickle that would run code.
    """
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(file)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:  # all but the first of a nested header
        raise Unreadable("not an .npy file, or its header is damaged or too long") from error
    start = file.tell()
    if dtype.hasobject:
        try:
            return unpickle.load_array(content, start)
        except unpickle.Refused as error:
            raise Unreadable(str(error)) from error
    if dtype.kind not in "biuf":
        raise Unreadable("not numbers")
    # before anything is allocated: the header may promise what the file does not have
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > len(content) - start:
        raise Unreadable("truncated: the header promises more than the file holds")
    flat = np.frombuffer(content, dtype, math.prod(shape), start) if math.prod(shape) else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def as_form(array: NDArray[Any]) -> Form:
    """Recognise (H, W), (C, H, W), (H, W, C), a flat square image with or without its label as a last value, row
    vectors, and the pair [image, axion mass in eV].

    Raises:
        Unreadable: anything else.
    """
    if array.dtype != object:
        image, label = _flat(array) if array.ndim == 1 or array.shape[1:] == (1,) else (array, None)
        return Form(as_image(image), label)
    if array.shape == (2,) and np.ndim(array[0]) > 0 and np.size(array[1]) == 1:
        return as_form(array[0])._replace(log_mass=_log_mass(array[1]))
    return Form(as_image(_stack(array)))


def as_image(array: NDArray[Any]) -> NDArray[np.float32]:
    """(C, H, W) float32 from (H, W), (C, H, W) or (H, W, C).

    Raises:
        Unreadable: another shape, not numbers, too large, or no finite pixel.
    """
    if array.dtype.kind not in "biuf":
        raise Unreadable("not numbers")
    if array.size == 0:
        raise Unreadable("no pixels")
    check_image(array.shape)
    image = array[None] if array.ndim == 2 else array
    if image.ndim == 3 and image.shape[0] > MOST_CHANNELS and image.shape[2] <= MOST_CHANNELS:
        image = np.moveaxis(image, 2, 0)
    if image.ndim != 3 or image.shape[0] > MOST_CHANNELS or min(image.shape[1:]) <= MOST_CHANNELS:
        raise Unreadable(f"shape {'x'.join(map(str, array.shape))} is not that of an image{FEWER_CHANNELS}")
    with np.errstate(over="ignore", invalid="ignore"):
        image = np.ascontiguousarray(image, dtype=np.float32)
    finite = np.isfinite(image)
    if not finite.any():
        raise Unreadable("no finite pixel")
    return image if finite.all() else np.where(finite, image, np.float32(np.nan))


def _flat(array: NDArray[Any]) -> tuple[NDArray[Any], str | None]:
    """(n²,) or (n² + 1,) with an integer last."""
    flat = array.reshape(-1)
    side = math.isqrt(flat.size)
    if flat.size == side**2 and side:
        return flat.reshape(side, side), None
    if flat.size == side**2 + 1 and side and float(flat[-1]).is_integer():
        return flat[:-1].reshape(side, side), str(int(flat[-1]))
    return array, None


def _stack(array: NDArray[Any]) -> NDArray[Any]:
    """Row vectors, or single numbers, that were kept as objects."""
    if array.size == 0:
        raise Unreadable("no pixels")
    sizes = {np.shape(item) for item in array.flat}
    if len(sizes) > 1:
        raise Unreadable("an object array that is neither [image, mass] nor rows of one length")
    shape = (array.size, *sizes.pop())
    check_image(shape)
    if any(np.asarray(item).dtype.kind not in "biuf" for item in array.flat):
        raise Unreadable("not numbers")
    rows = np.empty(shape, np.float32)
    with np.errstate(over="ignore"):
        for k, item in enumerate(array.flat):
            rows[k] = item
    return rows.reshape(*array.shape, *shape[1:])


def _log_mass(mass: Any) -> float:
    value = np.asarray(mass).reshape(-1)[0]
    value = float(value) if np.ndim(value) == 0 else math.nan
    if not 0 < value < math.inf:
        raise Unreadable("its axion mass is not a positive number of eV")
    return math.log10(value)
