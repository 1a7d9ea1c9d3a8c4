"""Images as people hold them in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from astropy import units
from astropy.io import fits
from astropy.nddata import CCDData, NDData

from deeplense.data.images import as_images
from deeplense.data.schema import ImageInfo
from deeplense.errors import UserError

INFO = ImageInfo(1, 6, 6)
COUNTS = np.arange(72.0).reshape(2, 1, 6, 6)


@pytest.mark.parametrize("kind", ["f2", ">f4", ">f8", "g", "u1", ">i2", "i4", "u8"])
def test_every_number_type_and_byte_order(kind: str) -> None:
    found = as_images(COUNTS.astype(kind), INFO)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, COUNTS)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64])
def test_every_number_type_of_torch(kind: torch.dtype) -> None:
    np.testing.assert_array_equal(as_images(torch.from_numpy(COUNTS).to(kind), INFO).float(), COUNTS)


def test_truth_values_are_ones_and_zeros() -> None:
    np.testing.assert_array_equal(as_images(COUNTS > 30, INFO), COUNTS > 30)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.tolist(),
        lambda x: list(x),
        lambda x: tuple(torch.from_numpy(x)),
        lambda x: NDData(x),
        lambda x: CCDData(x, unit="adu"),
        lambda x: fits.PrimaryHDU(x),
        lambda x: x * units.adu,
        lambda x: x[::-1].copy()[::-1],
        lambda x: np.broadcast_to(x, x.shape),  # not writable
    ],
    ids=["lists", "list", "tensors", "NDData", "CCDData", "HDU", "quantity", "backwards", "read only"],
)
def test_whatever_holds_an_array(form: Any) -> None:
    np.testing.assert_array_equal(as_images(form(COUNTS), INFO), COUNTS)


@pytest.mark.parametrize("form", [np.ma.masked_array, NDData, lambda x, mask: CCDData(x, unit="adu", mask=mask)])
def test_masked_pixels_are_missing(form: Any) -> None:
    mask = COUNTS > 40
    np.testing.assert_array_equal(as_images(form(COUNTS, mask=mask), INFO), np.where(mask, np.nan, COUNTS))


@pytest.mark.filterwarnings("error")
def test_a_number_beyond_single_precision_is_not_finite() -> None:
    assert as_images(np.full((6, 6), 1e300), INFO).isinf().all()


@pytest.mark.parametrize(
    "wrong",
    [
        [[1, 2], [3]],
        "abc",
        b"abc",
        None,
        {},
        1.0,
        object(),
        (row for row in COUNTS),
        COUNTS + 1j,
        COUNTS.astype(object),
        COUNTS.astype("M8[s]"),
        np.zeros((6, 6), [("a", "f4")]),
        np.array([["a"] * 6] * 6),
        fits.HDUList([fits.PrimaryHDU(COUNTS)]),
        torch.from_numpy(COUNTS) + 1j,
        torch.from_numpy(COUNTS).to_sparse(),
        [torch.ones(6, 6, requires_grad=True)] * 2,
        COUNTS[:, :, :5],
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_what_is_no_image_is_refused_in_one_line(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"^images ") as caught:
        as_images(wrong, INFO)
    assert str(caught.value).isprintable()
