"""Reading ahead: the kernel is told which rows of a memory map come next, while the disk is what one waits for.

A map that is not in memory is read page by page as it is touched, and each page is waited for. Asked beforehand, the
disk has many reads to do at once. Where all is in memory, asking would cost about as much as reading; so it stops when
no page has been missing for a while.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import resource
from collections.abc import Iterator

from torch import Tensor

_LIBC = ctypes.CDLL(None)
WILL_NEED = getattr(mmap, "MADV_WILLNEED", 3)
PATIENCE = 256  # gathers without a missing page, after which all counts as in memory


class Prefetch:
    """Asks as long as pages are missing."""

    def __init__(self) -> None:
        self._left = PATIENCE

    def needed(self) -> bool:
        """Whether the disk was waited for lately."""
        return self._left > 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Around a gather: was a page missing?"""
        before = _missing()
        yield
        self._left = PATIENCE if _missing() > before else max(0, self._left - 1)

    def ask(self, row: Tensor) -> None:
        """Read a contiguous part of a memory map into the page cache, without waiting for it."""
        start = row.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(row.data_ptr() + row.nbytes - start), WILL_NEED)


def _missing() -> int:
    """Pages of this process that were read from the disk when they were touched, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
