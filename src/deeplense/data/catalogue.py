"""A table beside the images: which row is which image, and what it says of class and numbers."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense.data import parts
from deeplense.data.columns import IDS, LABEL, check_agree, classes_of
from deeplense.data.tables import TABLES, Table, numbers, read_table
from deeplense.errors import UserError, brief, nearest

KEYS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: parts.stem(name),
    lambda name: "/".join(parts.stem(name).split("/")[-2:]),
    lambda name: name.rsplit("/", 1)[-1],
    lambda name: parts.stem(name).rsplit("/", 1)[-1],
    lambda name: _folder(name),
    lambda name: _number(name),
)


@dataclass
class Catalogue:
    """What a table says.

    Attributes:
        rows: id of an image -> its row. file: the table.
        labels: class by row, None where there is none. numbers: column -> number by row.
        notes: what was guessed, matched and left out.
    """

    rows: dict[str, int]
    file: str = ""
    labels: Sequence[str | None] | None = None
    numbers: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def label(self, id: str) -> str | None:
        return None if self.labels is None or id not in self.rows else self.labels[self.rows[id]]

    def params(self, id: str) -> dict[str, float]:
        if id not in self.rows:
            return {}
        found = {name: float(values[self.rows[id]]) for name, values in self.numbers.items()}
        return {name: value for name, value in found.items() if np.isfinite(value)}


def match(
    where: str,
    table: Table,
    ids: Sequence[str],
    id: str | None = None,
    label: str | None = None,
    targets: Sequence[str] | None = None,
) -> Catalogue:
    """Find each image's row.

    Args:
        where: the table, as it is called to the user. ids: of the images.
        id, label, targets: columns; those that alone can be it, and all numbers, when not given.

    Raises:
        UserError: no such column, ids that match no image, one image with two rows that differ, columns of classes that
            disagree, or a target that is no number.
    """
    for option, name in (("--id", id), ("--class", label), *(("--targets", t) for t in targets or ())):
        if name is not None and name not in table:
            raise UserError(f"{where}: {option} '{name}' is not a column; {nearest(name, table)}")
    names = [id] if id is not None else [n for n in table if _names_rows(n, table[n])] or list(table)
    tried = {name: _rows(table[name], ids) for name in names}
    best = max(tried, key=lambda name: (len(tried[name]), IDS.fullmatch(name) is not None), default=None)
    if best is None or not tried[best]:
        raise UserError(_nothing(where, table, names, ids))
    notes = [] if id is not None else [f"{where}: images by column '{best}' (guessed; --id names another)"]
    found = Catalogue(tried[best], where, notes=notes)
    _labels(where, table, found, best, label)
    _numbers(where, table, found, best, label, targets)
    _check_twice(where, table, best, found)
    unused = len({v for v in table[best].tolist() if v is not None}) - len(set(found.rows.values()))
    if unused > 0:
        notes.append(f"{where}: {unused} rows belong to no image")
    if missing := [one for one in ids if one not in found.rows]:
        notes.append(f"{where}: no row for {len(missing)} of {len(ids)} images (e.g. {missing[0]})")
    return found


def beside(source: Path, ids: Sequence[str], images: Collection[str]) -> Catalogue | None:
    """The only table in a folder of images of which a column names them; None where there is none.

    Args:
        images: files that are no tables, because they gave images.

    Raises:
        UserError: several tables that do.
    """
    if not source.is_dir():
        return None
    found = []
    for path in sorted(source.iterdir()):
        if path.suffix.lower() in TABLES and path.suffix.lower() != ".txt" and str(path) not in images:
            with contextlib.suppress(UserError):  # another table, or none
                table = read_table(path)
                matched = max((len(_rows(v, ids)) for n, v in table.items() if _names_rows(n, v)), default=0)
                if 2 * matched >= len(ids):
                    found.append((path, table))
    if len(found) > 1:
        raise UserError(
            f"{source}: {' and '.join(p.name for p, _ in found)} both name the images; give one as --labels"
        )
    return match(str(found[0][0]), found[0][1], ids) if found else None


def _names_rows(name: str, column: NDArray[Any]) -> bool:
    """Whether a column may be that of ids, in which a row may come twice."""
    return IDS.fullmatch(name) is not None or _different(column)


def _different(column: NDArray[Any]) -> bool:
    values = [v for v in map(_text, column.tolist()) if v]
    return len(set(values)) == len(values)


def _rows(column: NDArray[Any], ids: Sequence[str]) -> dict[str, int]:
    """Image -> row, by the strictest way of comparing names that finds half of them, else by that which finds most."""
    values = [_text(v) for v in column.tolist()]
    best: dict[str, int] = {}
    for of_image in KEYS:
        for of_row in dict.fromkeys((of_image, KEYS[0])):
            rows = _unique((of_row(v), k) for k, v in enumerate(values) if v)
            images = _unique((of_image(one), one) for one in ids)
            found = {one: rows[key] for key, one in images.items() if key and key in rows}
            if len(found) > len(best):
                best = found
            if 2 * len(best) >= min(len(ids), len(rows)) > 0:
                return best
    return best


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Key -> first value. A key of several images is none of them; of several rows they are compared later."""
    by_key: dict[str, list[Any]] = defaultdict(list)
    for key, value in pairs:
        by_key[key].append(value)
    return {key: values[0] for key, values in by_key.items() if len(values) == 1 or isinstance(values[0], int)}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    return "" if value is None else str(value).strip().replace("\\", "/").removeprefix("./")


def _folder(name: str) -> str:
    return name.rsplit("/", 2)[-2] if "/" in name else ""


def _number(name: str) -> str:
    """The last number of a name, without zeros in front: `imageSDSS_100000` is 100000."""
    digits = re.findall(r"\d+", parts.stem(name))
    return (digits[-1].lstrip("0") or "0") if digits else ""


def _labels(where: str, table: Table, found: Catalogue, id: str, label: str | None) -> None:
    likely = [label] if label is not None else [n for n in table if n != id and LABEL.fullmatch(n)]
    if not likely:  # a column of text alone, whose values come again
        texts = [n for n in table if n != id and table[n].dtype.kind == "O" and not IDS.fullmatch(n)]
        likely = texts if len(texts) == 1 and not _different(table[texts[0]]) else []
    read = [(name, classes) for name in likely if (classes := classes_of(table[name])) is not None]
    if label is not None and not read:
        raise UserError(f"{where}: --class '{label}' holds no classes, but numbers that are not whole; give --targets")
    if not read:
        return
    used = sorted(set(found.rows.values()))
    try:
        check_agree([(name, [classes[k] for k in used]) for name, classes in read], "--class")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    found.labels = read[0][1]
    found.notes.append(
        f"{where}: classes from column '{read[0][0]}'" + " (guessed; --class names another)" * (label is None)
    )


def _check_twice(where: str, table: Table, id: str, found: Catalogue) -> None:
    """Rows with one id must say the same."""
    first: dict[str, int] = {}
    twice: dict[str, None] = {}
    for k, value in enumerate(map(_text, table[id].tolist())):
        if not value or first.setdefault(value, k) == k:
            continue
        twice[value] = None
        if found.labels is not None and found.labels[first[value]] != found.labels[k]:
            raise UserError(f"{where}: two rows with the id {brief(value)} name different classes; keep one of them")
        for name, values in found.numbers.items():
            if not np.array_equal(values[first[value]], values[k], equal_nan=True):
                raise UserError(f"{where}: two rows with the id {brief(value)} differ in '{name}'; keep one of them")
    if twice:
        found.notes.append(f"{where}: {len(twice)} ids come twice, and say the same (e.g. {next(iter(twice))})")


def _numbers(
    where: str, table: Table, found: Catalogue, id: str, label: str | None, targets: Sequence[str] | None
) -> None:
    free = [n for n in table if n not in (id, label) and not LABEL.fullmatch(n) and not IDS.fullmatch(n)]
    for name in targets if targets is not None else free:
        values = numbers(table[name])
        if values is None and targets is not None:
            raise UserError(f"{where}: --targets '{name}' holds text; name columns of numbers")
        if values is not None and np.isfinite(values).any():
            found.numbers[name] = values
    if targets is None and found.numbers:
        found.notes.append(f"{where}: numbers from columns {', '.join(found.numbers)} (all; --targets names some)")


def _nothing(where: str, table: Table, names: Sequence[str], ids: Sequence[str]) -> str:
    shown = next((_text(v) for n in names for v in table[n].tolist() if _text(v)), "") if names else ""
    rows = len(next(iter(table.values()), ()))
    column = f"column '{names[0]}'" if len(names) == 1 else "any column"
    return (
        f"{where}: none of {rows} rows belongs to one of {len(ids)} images by {column} (a row says {brief(shown)}, an "
        f"image is {brief(ids[0] if ids else '')}); name the column of ids with --id"
    )
