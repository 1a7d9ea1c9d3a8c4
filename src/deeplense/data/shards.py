"""Reading a shard of the store, which may come from anywhere: only what `docs/data_format.md` says is accepted.

HDF5 can map other files as data, follow links out of the file, and unpack a little to much. A shard's columns are plain
arrays that lie in the file itself, so that nothing but its own bytes is ever read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from deeplense.data import hdf5
from deeplense.data.budget import printable
from deeplense.data.schema import ImageInfo, Manifest, Shard
from deeplense.errors import UserError

ID_LENGTH = 120  # bytes


class Columns(NamedTuple):
    """Of N images: the byte of the file at which the first begins, labels (N,), params (N, P), N ids."""

    offset: int
    labels: NDArray[np.int64]
    params: NDArray[np.float64]
    ids: list[str]


def read_shard(path: Path, shard: Shard, manifest: Manifest) -> Columns:
    """All columns but the halos.

    Raises:
        UserError: not readable, or not what the manifest says.
    """
    info, n = manifest.image, shard.n
    shape = (n, info.channels, info.height, info.width)
    with _opened(path) as file:
        image = _column(path, file, "image")
        if image.shape != shape or image.dtype != np.dtype("<f4") or not _plain(image, path):
            raise UserError(
                f"{path}: images are {image.shape} {image.dtype}, the manifest says {shape} float32, plain and unpacked"
            )
        labels = _read(path, file, "label", (n,), "<i8")
        params = _read(path, file, "params", (n, len(manifest.parameters)), "<f8")
        names = _read(path, file, "id", (n,), "S")
        try:
            ids = [name.decode() for name in names.tolist()]
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: its ids are not UTF-8; make the dataset again") from error
        if labels.min() < -1 or labels.max() >= len(manifest.classes):
            raise UserError(f"{path}: labels outside the {len(manifest.classes)} classes of the manifest")
        offset = int(image.id.get_offset())
        if offset % 4:
            raise UserError(f"{path}: its images do not lie at a multiple of 4 bytes; make the dataset again")
    if not "".join(ids).isprintable():
        ids = [printable(i) for i in ids]
    return Columns(offset, labels, params, ids)


def split_shards(folder: Path, manifest: Manifest, split: str) -> list[Shard]:
    """The shards of a split, in their order.

    Raises:
        UserError: no such split.
    """
    if split not in manifest.splits:
        raise UserError(f"{folder}: no split '{split}' (it has: {', '.join(manifest.splits)})")
    return [s for s in manifest.shards if s.split == split]


def read_pixels(path: Path, columns: Columns, image: ImageInfo, start: int, stop: int) -> NDArray[np.float32]:
    """(stop - start, C, H, W): images `start` to `stop` of a shard, read from the disk.

    Raises:
        UserError: the file has become shorter.
    """
    shape = (stop - start, image.channels, image.height, image.width)
    n = math.prod(shape[1:])
    try:
        return np.fromfile(path, "<f4", n * shape[0], offset=columns.offset + 4 * n * start).reshape(shape)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cut while it was read; copy it again or make it again") from error


def read_halos(path: Path, row: int, columns: list[str]) -> NDArray[np.float32]:
    """(n, len(columns)) float32: the halos of one image of the shard.

    Raises:
        UserError: not readable, or not what the manifest says.
    """
    with _opened(path) as file:
        table, starts = _halos(path, file, columns)
        first, end = starts[row : row + 2] if row + 1 < len(starts) else (1, 0)
        if not 0 <= first <= end <= len(table):
            raise UserError(f"{path}: halo_start does not share {len(table)} halos among its images")
        return np.ascontiguousarray(table[first:end])


def check_halos(path: Path, shard: Shard, manifest: Manifest) -> None:
    """The whole table of halos against the manifest.

    Raises:
        UserError: not readable, or not what the manifest says.
    """
    with _opened(path) as file:
        if not manifest.halo_columns:
            if "halo" in file or "halo_start" in file:
                raise _strange_halos(path)
            return
        table, starts = _halos(path, file, manifest.halo_columns)
        start = starts[:]
        fits = start.shape == (shard.n + 1,) and start[0] == 0 and start[-1] == len(table)
        if not fits or (np.diff(start) < 0).any():
            raise UserError(f"{path}: halo_start does not share {len(table)} halos among {shard.n} images")


def read_maps(path: Path, row: int, manifest: Manifest) -> NDArray[np.float32]:
    """(K, H, W) float32: the truth maps of one image of the shard.

    Raises:
        UserError: not readable, or not what the manifest says.
    """
    with _opened(path) as file:
        return np.ascontiguousarray(_maps(path, file, manifest)[row])


def check_maps(path: Path, shard: Shard, manifest: Manifest) -> None:
    """The truth maps against the manifest.

    Raises:
        UserError: not readable, or not what the manifest says.
    """
    with _opened(path) as file:
        if manifest.maps and len(_maps(path, file, manifest)) == shard.n:
            return
        if manifest.maps or "map" in file:
            raise UserError(f"{path}: its truth maps do not fit the manifest; make the dataset again")


def _maps(path: Path, file: h5py.File, manifest: Manifest) -> h5py.Dataset:
    maps, info = _column(path, file, "map"), manifest.image
    fits = maps.shape[1:] == (len(manifest.maps), info.height, info.width) and maps.dtype == np.dtype("<f4")
    if not fits or not _plain(maps, path):
        raise UserError(f"{path}: its truth maps do not fit the manifest; make the dataset again")
    return maps


def _halos(path: Path, file: h5py.File, columns: list[str]) -> tuple[h5py.Dataset, h5py.Dataset]:
    if "halo" not in file or "halo_start" not in file:
        raise _strange_halos(path)
    table, starts = _column(path, file, "halo"), _column(path, file, "halo_start")
    named = np.asarray(table.attrs.get("columns", ()))
    found = [c.decode() for c in named.tolist()] if named.dtype.kind == "S" and named.ndim == 1 else []
    fits = table.shape[1:] == (len(columns),) and table.dtype == np.dtype("<f4") and _plain(table, path)
    if found != columns or not fits:
        raise UserError(f"{path}: halos have columns {found}, the manifest says {columns} float32")
    if starts.ndim != 1 or starts.dtype != np.dtype("<i8") or not _plain(starts, path):
        raise _strange_halos(path)
    return table, starts


def _strange_halos(path: Path) -> UserError:
    return UserError(f"{path}: its table of halos does not fit the manifest; make the dataset again")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file; whatever is wrong in it is one line."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in any way
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a readable shard ({why}); copy it again or make it again") from error


def _column(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    found = hdf5.inside(file, name)
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{path}: not a readable shard (it has no array '{name}'); copy it again or make it again")
    return found


def _read(path: Path, file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    column = _column(path, file, name)
    right = column.dtype.kind == "S" and column.dtype.itemsize <= ID_LENGTH if dtype == "S" else column.dtype == dtype
    if column.shape != shape or not right or not _plain(column, path):
        raise UserError(f"{path}: columns do not fit the manifest ({name}); make the dataset again")
    return np.asarray(column[()])


def _plain(column: h5py.Dataset, path: Path) -> bool:
    """Whether the values lie in the file one after the other, all of them, and nowhere else."""
    n_bytes = math.prod(column.shape) * column.dtype.itemsize
    if column.external or column.is_virtual or column.chunks is not None:
        return False
    offset = column.id.get_offset()
    return n_bytes == 0 or (offset is not None and offset + n_bytes <= path.stat().st_size)
