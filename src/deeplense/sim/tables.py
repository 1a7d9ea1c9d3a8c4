"""Priors from a file: samples, each as likely as any other, or a density that is linear between its rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from deeplense.errors import UserError, brief

Array = NDArray[np.float64]
SUFFIXES = (".npy", ".csv", ".txt", ".dat")
MOST = 1 << 27  # bytes of a file


@dataclass(frozen=True, eq=False)
class Table:
    """What a file says.

    Attributes:
        values: samples, or the places at which the density is known, increasing.
        cumulative: probability up to each place; None for samples. density: at each place; likewise.
    """

    values: Array
    cumulative: Array | None = None
    density: Array | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """What no draw leaves."""
        return float(self.values.min()), float(self.values.max())

    def draw(self, rng: Generator, shape: tuple[int, ...]) -> Array:
        """Draws of the given shape."""
        u = rng.random(shape)
        if self.cumulative is None or self.density is None:
            return np.asarray(self.values[(u * len(self.values)).astype(int)])
        k = np.clip(np.searchsorted(self.cumulative, u, side="right") - 1, 0, len(self.values) - 2)
        width, low = self.values[k + 1] - self.values[k], self.density[k]
        rise, left = (self.density[k + 1] - low) / width, u - self.cumulative[k]
        # low·t + rise·t²/2 = left, in the form that has no difference of like numbers
        root = np.sqrt(np.maximum(low * low + 2 * rise * left, 0.0))
        step = np.divide(2 * left, low + root, out=np.zeros_like(left), where=low + root > 0)
        return np.asarray(self.values[k] + np.minimum(step, width))


def read_table(path: str, where: str) -> Table:
    """A column of samples, or two: value and density, of any norm.

    Args:
        path: .npy, or text with commas or blanks between the columns; a first line of names and `#` lines are left out.

    Raises:
        UserError: no such file, no numbers in it, other columns, values that do not increase, a negative density.
    """
    try:
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"{where}: no such file: {brief(path)[1:-1]}; a table is one of {', '.join(SUFFIXES)}")
        if file.suffix.lower() not in SUFFIXES or file.stat().st_size > MOST:
            raise UserError(f"{where}: {path}: a table is one of {', '.join(SUFFIXES)}, of {MOST >> 20} MB at most")
        return _read(str(file), file.stat().st_mtime_ns, where)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # no name of a file, no home of that user, no numbers
        raise UserError(f"{where}: {brief(path)[1:-1]}: not a table of numbers ({brief(str(error))[1:-1]})") from error


@lru_cache(maxsize=32)
def _read(path: str, changed: int, where: str) -> Table:
    array = np.load(path, allow_pickle=False) if path.lower().endswith(".npy") else _text(Path(path))
    array = np.asarray(array, dtype=np.float64)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not 1 <= array.shape[1] <= 2 or not len(array):
        raise UserError(f"{where}: {path}: its shape is {array.shape}; give a column of samples, or value and density")
    if not np.isfinite(array).all():
        raise UserError(f"{where}: {path}: holds NaN or infinite numbers; take them out")
    values = np.ascontiguousarray(array[:, 0])
    if array.shape[1] == 1:
        return Table(values)
    density = np.ascontiguousarray(array[:, 1])
    if len(values) < 2 or not (np.diff(values) > 0).all():
        raise UserError(f"{where}: {path}: the values of a density must increase from row to row; sort them")
    if density.min() < 0 or not density.max() > 0:
        raise UserError(f"{where}: {path}: a density must not be negative, nor zero everywhere")
    steps = np.diff(values) * (density[1:] + density[:-1]) / 2
    return Table(values, np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum(), density / steps.sum())


def _text(path: Path) -> Array:
    lines = [line.split("#")[0].replace(",", " ").split() for line in path.read_text().splitlines()]
    rows = [line for line in lines if line]
    if rows and not _is_number(rows[0][0]):
        rows = rows[1:]
    if len({len(row) for row in rows}) > 1:
        raise ValueError("rows of different lengths")
    return np.array([[float(x) for x in row] for row in rows])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
