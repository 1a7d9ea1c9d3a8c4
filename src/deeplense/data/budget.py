"""What a file may cost its reader. One of some kB can promise any size, or unpack to it: every reader asks here.

Bytes that lie unpacked in the file are paid for by the file. What is packed may be as large as one image, or `RATIO`
times as large as it lies there, which real images never are.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence

MOST_VALUES = 2**26  # of one image
MOST_BYTES = 2**28  # unpacked at once: an image of `MOST_VALUES` single-precision numbers
LARGEST = 2**31  # bytes of a file that is read into memory
RATIO = 50  # unpacked over packed; zeros reach 1000


class Unreadable(ValueError):
    """Why one file cannot be used; the others can."""


def unpacks(size: int, packed: int) -> bool:
    """Whether `packed` bytes may become `size` bytes."""
    return size <= max(MOST_BYTES, RATIO * packed)


def check_image(shape: Sequence[int]) -> None:
    """Before anything is allocated: a header may promise what the file does not have.

    Raises:
        Unreadable: more values than an image has.
    """
    if math.prod(shape) > MOST_VALUES:
        raise Unreadable(f"more than {MOST_VALUES} pixels")


def printable(name: str) -> str:
    """A file's name that can be printed and stored on one line: a byte that is no UTF-8 becomes \\xe9."""
    with contextlib.suppress(UnicodeEncodeError):  # half a pair of UTF-16, which only JSON can hold
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
