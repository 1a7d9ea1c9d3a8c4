"""The table of predictions, in the formats that astronomers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from deeplense.data import schema
from deeplense.errors import UserError

FORMATS = {".csv": "ascii.csv", ".parquet": "parquet", ".ecsv": "ascii.ecsv", ".fits": "fits"}


def check_format(path: Path) -> None:
    """Before any work is done.

    Raises:
        UserError: an extension that is not in `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: unknown kind of table; end the name in {', '.join(FORMATS)}")


def write_table(path: Path, columns: Mapping[str, Sequence[Any]], meta: dict[str, str]) -> None:
    """Write the table whole or not at all, in the format of its extension.

    Args:
        meta: kept by ecsv and fits.

    Raises:
        UserError: unknown extension, or the file cannot be written.
    """
    check_format(path)
    kind = path.suffix.lower()
    table = Table({name: np.asarray(column) for name, column in columns.items()})
    if kind == ".fits":
        # FITS knows only ASCII: other letters are written as they are in Python, \xe9
        for name in table.colnames:
            if table[name].dtype.kind == "U":
                table[name] = [str(s).encode("ascii", "backslashreplace") for s in table[name]]
    if kind in (".ecsv", ".fits"):
        table.meta.update(meta)
    try:
        with schema.atomic(path) as temporary:
            table.write(temporary, format=FORMATS[kind], overwrite=True)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror or error}); choose another --out") from error
