"""The table of predictions, in the formats that astronomers read. Each imports what it is written with."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense.data import schema
from deeplense.errors import UserError

Column = Sequence[str] | NDArray[Any]
Columns = Mapping[str, Column]

TOGETHER = 2**14  # rows of text that are made at once


def check_format(path: Path) -> None:
    """Before any work is done.

    Raises:
        UserError: an extension that is not in `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: unknown kind of table; end the name in {', '.join(FORMATS)}")


def write_table(path: Path, columns: Columns, meta: dict[str, str]) -> None:
    """Write the table whole or not at all, in the format of its extension.

    Args:
        columns: by name, all of one length: text in lists, numbers in arrays.
        meta: kept by ecsv and fits.

    Raises:
        UserError: unknown extension, or the file cannot be written.
    """
    check_format(path)
    try:
        with schema.atomic(path) as temporary:
            FORMATS[path.suffix.lower()](temporary, columns, meta)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror or error}); choose another --out") from error


def _csv(path: Path, columns: Columns, meta: dict[str, str]) -> None:
    n = len(next(iter(columns.values())))
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        for start in range(0, n, TOGETHER):
            part = (column[start : start + TOGETHER] for column in columns.values())
            # Python's own numbers are written with all their digits, and faster
            table.writerows(zip(*(p.tolist() if isinstance(p, np.ndarray) else p for p in part), strict=True))


def _parquet(path: Path, columns: Columns, meta: dict[str, str]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(dict(columns)), path)


def _ecsv(path: Path, columns: Columns, meta: dict[str, str]) -> None:
    from astropy.table import Table

    Table({k: np.asarray(v) for k, v in columns.items()}, meta=meta).write(path, format="ascii.ecsv")


def _fits(path: Path, columns: Columns, meta: dict[str, str]) -> None:
    from astropy.table import Table

    # FITS knows only ASCII: other letters are written as they are in Python, \xe9
    ascii = {
        k: v if isinstance(v, np.ndarray) else np.array([s.encode("ascii", "backslashreplace") for s in v])
        for k, v in columns.items()
    }
    Table(ascii, meta=meta).write(path, format="fits")


FORMATS = {".csv": _csv, ".parquet": _parquet, ".ecsv": _ecsv, ".fits": _fits}
