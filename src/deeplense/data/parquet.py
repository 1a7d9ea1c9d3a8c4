"""Parquet tables with a column of images: lists of numbers, or files of images as bytes."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import LargeListType, ListType, Table, parquet, types

from deeplense.data import budget
from deeplense.data.arrays import FEWEST, read_npy
from deeplense.data.budget import Unreadable, check_image, printable
from deeplense.data.columns import UNEVEN, Named, in_memory, unreadable

TOGETHER = 256  # rows that are read at once
DEEPEST = 3  # lists in each other: (C, H, W)
NPY = b"\x93NUMPY"


def columns(content: bytes) -> list[Named]:
    """Every column that holds numbers, text or images.

    Raises:
        Unreadable: it unpacks to more than the budget.
    """
    file = parquet.ParquetFile(io.BytesIO(content))
    most = max(budget.MOST_BYTES, budget.RATIO * len(content))
    groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
    # runs of one value are stored as their number: the values count, not the bytes
    values = sum(g.column(k).num_values for g in groups for k in range(g.num_columns))
    if max(8 * values, sum(g.total_byte_size for g in groups)) > most:
        raise Unreadable(f"unpacks to more than {most >> 20} MiB, {budget.RATIO} times its size")
    batches, held = [], 0
    for batch in file.iter_batches(TOGETHER):
        batches.append(batch)
        held += batch.nbytes
        if held > most:
            raise Unreadable(f"unpacks to more than {most >> 20} MiB, {budget.RATIO} times its size")
    table = Table.from_batches(batches, file.schema_arrow)
    names = _class_names(file.schema_arrow.metadata or {})
    found = []
    for field in table.schema:
        column = table[field.name].combine_chunks()
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:  # as Hugging Face stores images
            column = column.field("bytes")
        name = printable(field.name)
        if types.is_binary(column.type) or types.is_large_binary(column.type):
            found.append(_encoded(name, column))
            continue
        values = _values(column)
        if values is None and isinstance(field.type, ListType | LargeListType):
            found.append(unreadable(name, len(column), UNEVEN))
        if values is not None:
            if field.name in names and values.dtype.kind in "iu":
                values = np.array([names[field.name][k] for k in values], dtype=object)
            found.append(in_memory(name, values))
    return found


def _values(column: Any) -> NDArray[Any] | None:
    """Numbers (N,), lists of one length as (N, …), text as objects; None for anything else."""
    shape = [len(column)]
    while types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        if len(shape) > DEEPEST or column.null_count:
            return None
        inner = column.flatten()
        each = len(inner) // max(1, len(column))
        lengths = [len(inner)] if types.is_fixed_size_list(column.type) else set(column.value_lengths().to_pylist())
        if not types.is_fixed_size_list(column.type) and lengths != {each}:
            return None
        shape.append(each)
        column = inner
    if len(shape) > 1 and not (types.is_integer(column.type) or types.is_floating(column.type)):
        return None
    if types.is_string(column.type) or types.is_large_string(column.type) or types.is_dictionary(column.type):
        return np.array([None if v is None else str(v) for v in column.to_pylist()], dtype=object)
    if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)):
        return None
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    if values.dtype.kind == "O":  # booleans with gaps
        values = np.array([math.nan if v is None else float(v) for v in values.tolist()])
    side = math.isqrt(shape[-1])
    if len(shape) == 2 and side**2 == shape[-1] and side >= FEWEST:
        shape[1:] = [side, side]
    return values.reshape(shape)


def _encoded(name: str, column: Any) -> Named:
    """Files as bytes, decoded one at a time."""

    def decoded(k: int) -> NDArray[Any]:
        content = column[k].as_py()
        if not content:
            raise Unreadable("an empty image")
        if content.startswith(NPY):
            return read_npy(content)
        from PIL import Image

        from deeplense.data.readers import pixels_of

        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "TIFF")) as picture:
            check_image((*picture.size, len(picture.getbands())))
            return pixels_of(picture)

    first = decoded(0) if len(column) else np.empty((0, 0))
    shape = (len(column), *first.shape)
    return Named(
        name,
        shape,
        first.dtype.kind,
        lambda: np.stack([decoded(k) for k in range(len(column))]),
        lambda: ((k, decoded(k)[None]) for k in range(len(column))),
    )


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Names of classes by column, as Hugging Face's `datasets` stores them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {k: [printable(str(n)) for n in f["names"]] for k, f in features.items() if "names" in f}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
