"""HDF5 files of others, opened without trust: data inside the file, unpacked within the budget.

HDF5 follows links into other files, maps other files as data, and unpacks whatever it is given without a bound.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from deeplense.data.budget import MOST_BYTES, RATIO, Unreadable, unpacks
from deeplense.data.columns import Named

BLOCK = 2**24  # values read at once
MOST_CHUNK = 2**27  # bytes; HDF5 takes up to three times as much to unpack one
MOST_OBJECTS = 10_000
MOST_ATTRIBUTES = 200
DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
PACKS = {DEFLATE: 1032, LZF: 88, SHUFFLE: 1, FLETCHER32: 1}  # filters: unpacked over packed, at most


class Rows(NamedTuple):
    """Whole rows of an array, the first of them number `start`."""

    start: int
    values: NDArray[Any]


def inside(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What is called `name` in this very file; None where it is a link elsewhere, or nothing."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return None
    found = group[name]
    return found if isinstance(found, h5py.Group | h5py.Dataset) else None


def arrays(file: h5py.File, size: int) -> Iterator[Named]:
    """Every array of one to four dimensions that holds numbers or text, by its path.

    Args:
        size: bytes of the file.

    Raises:
        Unreadable: more objects than a file of images has.
    """
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    visited = {file.id}  # groups may hold each other
    n = 0
    while waiting:
        path, group = waiting.pop()
        for name in group:
            n += 1
            if n > MOST_OBJECTS:
                raise Unreadable(f"more than {MOST_OBJECTS} objects in the HDF5 file")
            thing = inside(group, name)
            if isinstance(thing, h5py.Group) and thing.id not in visited:
                visited.add(thing.id)
                waiting.append((f"{path}{name}/", thing))
            elif isinstance(thing, h5py.Dataset) and 0 < thing.ndim <= 4 and _plain(thing.dtype):
                yield as_named(path + name, thing, size)


def _plain(dtype: Any) -> bool:
    return dtype.kind in "biufS" or h5py.check_string_dtype(dtype) is not None


def as_named(name: str, data: h5py.Dataset, size: int) -> Named:
    """What it costs to read it is checked when it is read."""

    def whole() -> NDArray[Any]:
        if data.dtype.kind == "O":
            return _text(data, size)
        check_cost(data, size)
        if math.prod(data.shape) * data.dtype.itemsize > MOST_BYTES:
            raise Unreadable(f"an array of more than {MOST_BYTES >> 20} MiB that holds no images by rows")
        return np.asarray(data[()])

    def blocks() -> Iterator[Rows]:
        check_cost(data, size)
        return rows(data)

    return Named(name, data.shape, data.dtype.kind, whole, blocks)


def attributes(thing: h5py.Group | h5py.Dataset) -> dict[str, str]:
    """Its attributes as text; of a pair (value, description) the value."""
    told = {}
    for name in itertools.islice(thing.attrs, MOST_ATTRIBUTES):
        value = np.asarray(thing.attrs[name])
        if (
            value.dtype.kind not in "biufSUO"
            or value.size not in (1, 2)
            or (value.size == 2 and value.dtype.kind in "biuf")
        ):
            continue
        first = value.reshape(-1)[0]
        told[name] = first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)
    return told


def _text(data: h5py.Dataset, size: int) -> NDArray[Any]:
    """Texts of any length: each may be as long as the file, however often it is named."""
    if data.external or data.is_virtual or data.ndim != 1:
        raise Unreadable("its texts lie in other files, or are no list")
    step, room, texts = max(1, min(4096, MOST_BYTES // max(1, size))), MOST_BYTES, []
    for start in range(0, len(data), step):
        part = data[start : start + step].tolist()
        room -= sum(len(text) + 1 for text in part if isinstance(text, bytes | str))
        if room < 0:
            raise Unreadable(f"texts of more than {MOST_BYTES >> 20} MiB")
        texts += part
    return np.array(texts, dtype=object)


def check_cost(data: h5py.Dataset, size: int) -> None:
    """Refuse an array that takes more than the budget to read.

    Args:
        size: bytes of the file.

    Raises:
        Unreadable: it declares more than it stores, lies elsewhere, or is packed in a way that has no bound.
    """
    if data.external or data.is_virtual:
        raise Unreadable("its pixels lie in other files")
    each = max(data.dtype.itemsize, data.id.get_type().get_size())
    stored = min(data.id.get_storage_size(), size)  # chunks may lie on each other
    if data.chunks is None:
        if math.prod(data.shape) * each > stored:
            raise Unreadable("declares more pixels than it stores")
        return
    layout = data.id.get_create_plist()
    filters = [layout.get_filter(k)[0] for k in range(layout.get_nfilters())]
    if len(set(filters)) < len(filters) or not set(filters) <= set(PACKS) or {DEFLATE, LZF} <= set(filters):
        raise Unreadable("packed in another way than by gzip or lzf once; write it anew")
    packs = math.prod(PACKS[f] for f in filters)
    chunk = math.prod(data.chunks) * each
    whole = chunk * math.prod(-(-n // m) for n, m in zip(data.shape, data.chunks, strict=True))
    if whole > packs * stored + chunk or (whole and not stored):
        raise Unreadable("declares more pixels than it stores")
    if chunk > MOST_CHUNK:
        raise Unreadable(f"a chunk of more than {MOST_CHUNK >> 20} MiB; write it anew with an image a chunk")
    if not unpacks(whole, stored):
        raise Unreadable(f"unpacks to {whole >> 20} MiB, more than {RATIO} times its size; write it anew unpacked")
    _check_chunks(data, filters, packs, chunk)


def _check_chunks(data: h5py.Dataset, filters: list[int], packs: int, chunk: int) -> None:
    """HDF5 unpacks a chunk to whatever it holds; here to the size that it should have, and no further."""
    suspects: list[Any] = []

    def look(info: Any) -> None:
        if info.size > chunk + chunk // 50 + 64:
            raise Unreadable("a chunk is larger packed than unpacked")
        if packs * info.size > 2 * MOST_CHUNK:
            suspects.append(info)

    data.id.chunk_iter(look)
    for info in suspects:
        if LZF in filters:
            raise Unreadable("a chunk packed by lzf is too large; write it anew with gzip")
        if DEFLATE in filters and not info.filter_mask >> filters.index(DEFLATE) & 1:
            unpacking = zlib.decompressobj()
            unpacking.decompress(data.id.read_direct_chunk(info.chunk_offset)[1], chunk + 8)
            if not unpacking.eof:
                raise Unreadable("a chunk unpacks to more than its size, or is damaged")


def rows(data: h5py.Dataset) -> Iterator[Rows]:
    """All values, each chunk unpacked once.

    Raises:
        Unreadable: chunks that hold small parts of many images.
    """
    row = math.prod(data.shape[1:])
    together = 1 if data.chunks is None else max(1, min(data.chunks[0], len(data)))
    if row * together > max(BLOCK, row):
        raise Unreadable("its chunks hold parts of too many images; write it anew with an image a chunk")
    step = max(1, BLOCK // max(1, row) // together) * together
    for start in range(0, len(data), step):
        yield Rows(start, data[start : start + step])
