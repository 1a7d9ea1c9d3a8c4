"""Tables of labels in the formats that astronomers keep them: each reader gives columns of text or numbers."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense.data.budget import printable
from deeplense.errors import UserError

Table = dict[str, NDArray[Any]]

LARGEST = 2**29  # bytes
MOST_COLUMNS = 10_000
DECIMAL = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
MISSING = ("", "nan", "none", "null", "n/a", "na", "--")


def read_table(path: Path) -> Table:
    """Columns by name: float64, or text as objects with None where it is missing; vectors are left out.

    Raises:
        UserError: no such file, of another format, too large, or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such table; --labels takes {', '.join(TABLES)}")
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise UserError(f"{path}: unknown kind of table; --labels takes {', '.join(TABLES)}")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: larger than {LARGEST >> 20} MiB; keep the columns that are needed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of units that bend the standard
            table = TABLES[kind](path)
    except UserError:
        raise
    except Exception as error:  # readers of tables fail in any way on damaged files
        why = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not a readable table ({why}); write it anew") from error
    columns = {printable(str(name)): _column(values) for name, values in table.items()}
    return {name: values for name, values in columns.items() if values is not None}


def numbers(values: NDArray[Any]) -> NDArray[np.float64] | None:
    """As numbers, NaN where missing; None where a value is no number."""
    if values.dtype.kind == "f":
        return values
    try:
        return np.array([np.nan if v is None else float(v) for v in values.tolist()])
    except ValueError:
        return None


def _column(values: Any) -> NDArray[Any] | None:
    array = np.ma.asanyarray(values)
    if array.ndim != 1:
        return None
    if array.dtype.kind in "biuf":
        whole = np.ma.filled(array.astype(np.float64), np.nan)
        exact = array.dtype.kind not in "iu" or not len(whole) or np.abs(whole).max() < 2**53
        if exact:
            return np.asarray(whole)
    if array.dtype.kind not in "biufSUO":
        return None
    mask = np.ma.getmaskarray(array).tolist()
    return _texts([None if m else v for v, m in zip(array.data.tolist(), mask, strict=True)])


def _texts(values: list[Any]) -> NDArray[Any]:
    column = np.empty(len(values), dtype=object)
    for k, value in enumerate(values):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
        column[k] = None if text.strip().lower() in MISSING else text.strip()
    return column


def _csv(path: Path) -> Table:
    text = path.read_bytes().decode("utf-8-sig", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: an empty table")
    counts = {sign: lines[0].count(sign) for sign in (",", "\t", ";", "|")}
    sign = max(counts, key=lambda s: counts[s])
    rows = list(
        csv.reader(io.StringIO("\n".join(lines)), delimiter=sign if counts[sign] else ",", skipinitialspace=True)
    )
    names = [name.strip().lstrip("#").strip() for name in rows[0]]
    if len(names) > MOST_COLUMNS or len(set(names)) < len(names):
        raise UserError(f"{path}: its first line has a name twice, or too many; it should name the columns")
    uneven = next((k for k, row in enumerate(rows) if len(row) != len(names)), None)
    if uneven is not None:
        raise UserError(f"{path}: row {uneven} has {len(rows[uneven])} values, its first line {len(names)} names")
    if sign == ";":  # as tables are written where the comma is a decimal point
        rows[1:] = [[v.replace(",", ".") if DECIMAL.fullmatch(v.strip()) else v for v in row] for row in rows[1:]]
    columns = {name: _texts([row[k] for row in rows[1:]]) for k, name in enumerate(names)}
    found = {name: numbers(values) for name, values in columns.items()}
    # a number with zeros in front is a name
    return {
        name: columns[name] if values is None or any(_padded(v) for v in columns[name].tolist()) else values
        for name, values in found.items()
    }


def _padded(text: str | None) -> bool:
    return text is not None and text.isdigit() and (len(text) > 15 or (len(text) > 1 and text.startswith("0")))


def _astropy(form: str) -> Callable[[Path], Table]:
    def read(path: Path) -> Table:
        from astropy.table import Table as AstroTable

        table = AstroTable.read(path, format=form)
        return {name: table[name] for name in table.colnames}

    return read


def _parquet(path: Path) -> Table:
    from pyarrow import parquet, types

    table = parquet.read_table(path)
    plain = [f.name for f in table.schema if not types.is_nested(f.type)]
    columns = {}
    for name in plain:
        values = table[name].to_pylist()
        number = all(v is None or isinstance(v, int | float) for v in values)
        columns[name] = np.array([np.nan if v is None else float(v) for v in values]) if number else _texts(values)
    return columns


TABLES: dict[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".txt": _csv,
    ".ecsv": _astropy("ascii.ecsv"),
    ".fits": _astropy("fits"),
    ".fit": _astropy("fits"),
    ".parquet": _parquet,
}
