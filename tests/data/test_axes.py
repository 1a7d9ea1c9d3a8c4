"""Arrays of any shape, order of axes, byte order and layout in memory hold the same images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from wild import npy_bytes

from deeplense.data.arrays import MOST_CHANNELS, as_found, layout, read_npy
from deeplense.data.budget import Unreadable
from deeplense.data.columns import found_in, in_memory
from deeplense.data.found import Asked, Found

TYPES = ["<f4", ">f4", "<f8", ">f8", "<i2", ">i2", "u1", "<u4"]
sides = st.integers(MOST_CHANNELS + 1, 24)
channels = st.integers(1, MOST_CHANNELS)
counts = st.integers(2, 20)


def pixels(*shape: int) -> NDArray[np.float64]:
    return np.arange(np.prod(shape)).reshape(shape) % 251 + 1.0


def stored(array: NDArray[np.float64], kind: str, fortran: bool) -> NDArray[np.float64]:
    """As a file of this type and order gives it back."""
    typed = array.astype(kind)
    return read_npy(npy_bytes(np.asfortranarray(typed) if fortran else typed))


def read(array: NDArray[np.float64], axes: str = "", many: bool = False) -> list[NDArray[np.float32]]:
    found = list(as_found(array, axes, many))
    assert all(isinstance(one, Found) for one in found)
    assert all(
        one.image.dtype == np.float32 and one.image.flags.c_contiguous for one in found if isinstance(one, Found)
    )
    return [one.image for one in found if isinstance(one, Found)]


@settings(max_examples=60, deadline=None)
@given(channels, sides, sides, st.sampled_from(TYPES), st.booleans(), st.booleans())
def test_one_image(c: int, h: int, w: int, kind: str, fortran: bool, last: bool) -> None:
    image = pixels(c, h, w)
    array = stored(np.moveaxis(image, 0, 2) if last else image, kind, fortran)
    (got,) = read(array)
    np.testing.assert_array_equal(got, image)
    (said,) = read(array, "HWC" if last else "CHW")
    np.testing.assert_array_equal(said, image)


@settings(max_examples=60, deadline=None)
@given(counts, channels, sides, sides, st.sampled_from(TYPES), st.booleans(), st.booleans())
def test_many_images_of_bands(n: int, c: int, h: int, w: int, kind: str, fortran: bool, last: bool) -> None:
    stack = pixels(n, c, h, w)
    got = read(stored(np.moveaxis(stack, 1, 3) if last else stack, kind, fortran))
    np.testing.assert_array_equal(np.stack(got), stack)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), sides, st.sampled_from(TYPES), st.booleans())
def test_many_images(n: int, side: int, kind: str, fortran: bool) -> None:
    stack = pixels(n, side, side)
    array = stored(stack, kind, fortran)
    np.testing.assert_array_equal(np.concatenate(read(array, "NHW")), stack)
    found = list(found_in([in_memory("images", array), in_memory("label", np.arange(n) % 2)], Asked()))
    assert [one.label for one in found if isinstance(one, Found)] == [str(k % 2) for k in range(n)]
    np.testing.assert_array_equal(np.stack([one.image[0] for one in found if isinstance(one, Found)]), stack)
    if n > MOST_CHANNELS:
        np.testing.assert_array_equal(np.concatenate(read(array)), stack)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=0, max_size=5), st.booleans())
def test_a_shape_is_read_to_all_its_values_or_refused(shape: list[int], many: bool) -> None:
    array = pixels(*shape) if shape else np.array(1.0)
    try:
        found = list(as_found(array, "", many))
    except Unreadable:
        found = []
    if found and all(isinstance(one, Found) for one in found):
        values = np.concatenate([one.image.ravel() for one in found if isinstance(one, Found)])
        flat = array.ravel() if values.size == array.size else array.ravel()[:-1]  # a label is the last
        np.testing.assert_array_equal(np.sort(values), np.sort(flat).astype(np.float32))


@pytest.mark.parametrize(
    ("shape", "many", "expected"),
    [
        ((16, 20, 20), False, "CHW"),
        ((17, 20, 20), False, "NHW"),
        ((9, 20, 20), True, "NHW"),
        ((20, 20, 16), False, "HWC"),
        ((64, 64, 100), False, "HWN"),
        ((9, 9, 9), False, ""),
        ((4, 4), False, ""),
        ((3, 1, 20, 20), False, "NCHW"),
        ((2, 2, 2, 20, 20), False, ""),
    ],
)
def test_layout(shape: tuple[int, ...], many: bool, expected: str) -> None:
    assert layout(shape, many) == expected
