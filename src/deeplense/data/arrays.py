"""From an array in any of the forms in the wild to images (C, H, W), or a reason why not."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from deeplense.data import unpickle
from deeplense.data.budget import Unreadable, check_image
from deeplense.data.found import Found

MOST_CHANNELS = 16
FEWER_CHANNELS = (
    f"; an image has up to {MOST_CHANNELS} channels, and sides of more pixels than channels; --axes says what axes mean"
)
FEWEST = 5  # pixels of a side
EVIDENT = 4  # more channels than these may be images as well


def read_npy(content: bytes, kinds: str = "biuf") -> NDArray[Any]:
    """The array in an `.npy` file, of one of these kinds of numbers or text, or of objects.

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
            if "U" not in kinds:
                return unpickle.load_array(content, start)
            ((_, array),) = unpickle.load_named(content, start).items()
            return array
        except unpickle.Refused as error:
            raise Unreadable(str(error)) from error
    if dtype.kind not in kinds:
        raise Unreadable("not numbers")
    # before anything is allocated: the header may promise what the file does not have
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > len(content) - start:
        raise Unreadable("truncated: the header promises more than the file holds")
    flat = np.frombuffer(content, dtype, math.prod(shape), start) if math.prod(shape) else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def as_found(array: NDArray[Any], axes: str = "", many: bool = False) -> Iterator[Found | Unreadable]:
    """The images in one array: those of `layout`, a flat square image with or without its label as a last value, row
    vectors, and the pair [image, axion mass in eV].

    Args:
        axes: what they mean; found from the shape when empty. many: whether the file's name says that they are many.

    Raises:
        Unreadable: anything else. Of one image among several it is given instead.
    """
    if array.dtype != object:
        flat, label = _flat(array) if array.ndim == 1 or array.shape[1:] == (1,) else (array, None)
        found = axes or layout(flat.shape, many)
        for k, image in images(flat, found):
            try:
                yield Found(
                    as_image(image),
                    row="" if k is None else f"#{k}",
                    label=label,
                    notes=_told(flat, axes, found),
                    weak=True,
                )
            except Unreadable as error:
                if k is None:
                    raise
                yield Unreadable(str(error))
    elif array.shape == (2,) and np.ndim(array[0]) > 0 and np.size(array[1]) == 1:
        params = {"log10_m_axion": _log_mass(array[1])}
        for one in as_found(array[0], axes, many):
            yield one._replace(params=params) if isinstance(one, Found) else one
    else:
        yield from as_found(_stack(array), axes, many)


def layout(shape: Sequence[int], many: bool = False) -> str:
    """What the axes of an array mean, of `found.AXES`; empty where it holds no image.

    Three axes of up to `MOST_CHANNELS`, height and width are one image, unless `many`.
    """
    if len(shape) == 2:
        return "HW" if min(shape) >= FEWEST else ""
    if len(shape) == 4:
        return {"CHW": "NCHW", "HWC": "NHWC"}.get(layout(shape[1:]), "")
    if len(shape) != 3:
        return ""
    a, b, c = shape
    if 0 < a <= MOST_CHANNELS and min(b, c) >= max(FEWEST, a + 1) and not (many and a != 1):
        return "CHW"
    if 0 < c <= (EVIDENT if many else MOST_CHANNELS) and min(a, b) >= max(FEWEST, c + 1):
        return "HWC"
    if min(b, c) < FEWEST or (a <= MOST_CHANNELS and not many):
        return ""
    return "HWN" if a == b != c else "NHW"


def images(array: NDArray[Any], axes: str) -> Iterator[tuple[int | None, NDArray[Any]]]:
    """Its images (H, W) or (C, H, W), and their numbers; None for the number of an only one."""
    if array.size == 0:
        raise Unreadable("no pixels")
    if len(axes) != array.ndim:
        raise Unreadable(f"shape {'x'.join(map(str, array.shape))} is not that of an image{FEWER_CHANNELS}")
    if axes.endswith("C"):
        array = np.moveaxis(array, -1, -3)
    elif axes == "HWN":
        array = np.moveaxis(array, -1, 0)
    if "N" not in axes:
        yield None, array
    elif len(array) == 1:
        yield None, array[0]
    else:
        yield from enumerate(array)


def without_ones(array: NDArray[Any]) -> NDArray[Any]:
    """Axes of length 1 (of Stokes parameters, frequency, time) left out, down to two axes."""
    while array.ndim > 2 and 1 in array.shape[:-2]:
        array = np.squeeze(array, array.shape.index(1))
    return array


def as_image(array: NDArray[Any]) -> NDArray[np.float32]:
    """(C, H, W) float32 from (H, W), (C, H, W) or, where it can be nothing else, (H, W, C).

    Raises:
        Unreadable: another shape, not numbers, too large, or no finite pixel.
    """
    if array.dtype.kind not in "biuf":
        raise Unreadable("not numbers")
    if array.size == 0:
        raise Unreadable("no pixels")
    check_image(array.shape)
    if array.ndim == 3 and layout(array.shape) == "HWC":
        array = np.moveaxis(array, 2, 0)
    image = array[None] if array.ndim == 2 else array
    if layout(image.shape) != "CHW":
        raise Unreadable(f"shape {'x'.join(map(str, array.shape))} is not that of an image{FEWER_CHANNELS}")
    with np.errstate(over="ignore", invalid="ignore"):
        image = np.ascontiguousarray(image, dtype=np.float32)
    finite = np.isfinite(image)
    if not finite.any():
        raise Unreadable("no finite pixel")
    return image if finite.all() else np.where(finite, image, np.float32(np.nan))


def _told(array: NDArray[Any], axes: str, found: str) -> tuple[str, ...]:
    """What was guessed of the axes, where they could mean something else."""
    channels = array.shape[-1] if found == "HWC" else array.shape[0]
    if axes or len(found) != 3 or (channels > MOST_CHANNELS if "N" in found else channels <= EVIDENT):
        return ()
    taken, other = ("images", "CHW") if "N" in found else ("channels", "NHW")
    return (f"arrays of {channels} images or channels taken as {taken} (--axes {other} says otherwise)",)


def _flat(array: NDArray[Any]) -> tuple[NDArray[Any], str | None]:
    """(n²,) or (n² + 1,) with an integer last."""
    flat = array.reshape(-1)
    side = math.isqrt(flat.size)
    if flat.size == side**2 and side:
        return flat.reshape(side, side), None
    if flat.size == side**2 + 1 and side and float(flat[-1]).is_integer():
        return flat[:-1].reshape(side, side), str(int(flat[-1]))
    return array, None


def stacked(array: NDArray[Any]) -> NDArray[Any]:
    """Arrays of numbers of one shape that were kept as objects; anything else as it is."""
    items = list(array.flat) if array.dtype == object else []
    alike = len({np.shape(item) for item in items}) == 1 and np.ndim(items[0]) > 0
    numbers = alike and all(np.asarray(item).dtype.kind in "biuf" for item in items)
    return _stack(array) if numbers else array


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
