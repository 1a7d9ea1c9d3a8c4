"""Named arrays -> images with their classes and numbers: HDF5, `.npz`, pickled dictionaries, tables with images.

Which array holds the images and which the classes is what the user says, else the one alone that can; the other arrays
of as many rows are the images' numbers. Whatever is guessed or left out is noted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeplense.data import names, parts
from deeplense.data.arrays import as_image, images, layout
from deeplense.data.budget import Unreadable, check_image, printable
from deeplense.data.found import Asked, Found
from deeplense.errors import UserError

IMAGE = re.compile(r"image|img|exposure|stamp|cutout|pixels", re.IGNORECASE)
PLURAL = re.compile(r"(?<![a-z])(images|imgs|stamps|cutouts|lenses|nonlenses|stack|x|X)(?![a-z])")
LABEL = re.compile(
    r"(?:labels?|class(?:es)?|class_?(?:id|label|name)|ans|answers?|targets?|y|truth|category|is_?(?:a_?)?lens|"
    r"has_?substructure|substructure)",
    re.IGNORECASE,
)
SPLIT = re.compile(r"^(?:train|val|valid|test)[_./-]|[_./-](?:train|val|valid|test)$", re.IGNORECASE)
SCALE = re.compile(r"px_?scale|pix(?:el)?_?scale|pixscale", re.IGNORECASE)
IDS = re.compile(r"(?:id|uid|index|idx|name|object_?id|file(?:_?(?:name|loc))?)(?:_?str)?|id_str", re.IGNORECASE)
MOST_CLASSES = 1000


class Named(NamedTuple):
    """An array of a file, not yet read.

    Attributes:
        whole: reads all of it. blocks: reads rows, as (number of the first, values).
        many: whether the first of three axes counts images, as it does in HDF5 and in tables.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    whole: Callable[[], NDArray[Any]]
    blocks: Callable[[], Iterable[tuple[int, Any]]]
    many: bool = True

    @property
    def last(self) -> str:
        return self.name.rsplit("/", 1)[-1]

    @property
    def group(self) -> str:
        return self.name.rpartition("/")[0]


def in_memory(name: str, array: NDArray[Any], many: bool = True) -> Named:
    array = np.asarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return Named(name, array.shape, array.dtype.kind, lambda: array, lambda: [(0, array)], many)


def found_in(arrays: Sequence[Named], asked: Asked) -> Iterator[Found | Unreadable]:
    """Every image of the arrays; one that cannot be read is given as its reason.

    Raises:
        Unreadable: no array of images, or several of which none is named.
        UserError: the user names an array that is not there, or label columns disagree.
    """
    chosen, bands = _images(arrays, asked)
    if bands:
        yield from _joined(arrays, chosen, bands, asked)
        return
    for one in chosen:
        yield from _rows(arrays, one, chosen, asked)


def _rows(arrays: Sequence[Named], one: Named, chosen: Sequence[Named], asked: Asked) -> Iterator[Found | Unreadable]:
    alone = len(chosen) == 1
    axes = _axes(one, arrays, asked)
    where = "" if alone else f"/{one.name}"
    if "N" not in axes or one.shape[0] == 0:
        check_image(one.shape)
        for _, image in images(one.whole(), axes):
            yield Found(as_image(image), row=where, notes=_left(arrays, chosen))
        return
    n = one.shape[-1] if axes == "HWN" else one.shape[0]
    check_image([s for k, s in enumerate(one.shape) if axes[k] != "N"])
    told = Columns(arrays, one, n, asked, alone)
    notes = (*told.notes, *_left(arrays, [*chosen, *told.used]))
    for start, values in [(0, np.moveaxis(one.whole(), -1, 0))] if axes == "HWN" else one.blocks():
        for k, row in enumerate(values, start):
            try:
                image = as_image(np.moveaxis(row, -1, 0) if axes == "NHWC" and row.ndim == 3 else row)
            except Unreadable as error:
                yield Unreadable(f"#{k}: {error}")
                continue
            name = where if n == 1 and alone else f"{where}#{k}"
            yield Found(image, name, told.label(k), told.params(k), told.scale(k), notes=notes)


def _joined(
    arrays: Sequence[Named], chosen: Sequence[Named], bands: tuple[str, ...], asked: Asked
) -> Iterator[Found | Unreadable]:
    """Arrays of one shape, each a band."""
    if len({one.shape for one in chosen}) > 1:
        shapes = ", ".join(f"{one.name} {'x'.join(map(str, one.shape))}" for one in chosen)
        raise Unreadable(f"bands of different sizes, {shapes}; --images names those of one size")
    one, axes = chosen[0], _axes(chosen[0], arrays, asked)
    note = f"arrays {', '.join(c.name for c in chosen)} joined as bands"
    if axes == "HW":
        image = as_image(np.stack([c.whole() for c in chosen]))
        yield Found(image, bands=bands, notes=(note, *_left(arrays, chosen)))
        return
    if axes != "NHW":
        raise Unreadable(f"bands {', '.join(bands)} are no single images; --bands none keeps them apart")
    told = Columns(arrays, one, one.shape[0], asked, True)
    notes = (note, *told.notes, *_left(arrays, [*chosen, *told.used]))
    for blocks in zip(*(c.blocks() for c in chosen), strict=True):
        for k, rows in enumerate(zip(*(values for _, values in blocks), strict=True), blocks[0][0]):
            try:
                yield Found(
                    as_image(np.stack(rows)), f"#{k}", told.label(k), told.params(k), told.scale(k), bands, notes=notes
                )
            except Unreadable as error:
                yield Unreadable(f"#{k}: {error}")


def _axes(one: Named, arrays: Sequence[Named], asked: Asked) -> str:
    if asked.axes:
        return asked.axes
    counted = any(a.shape[:1] == one.shape[:1] and len(a.shape) == 1 for a in arrays) and len(one.shape) > 2
    return layout(one.shape, one.many or counted or bool(PLURAL.search(one.last)))


def _images(arrays: Sequence[Named], asked: Asked) -> tuple[list[Named], tuple[str, ...]]:
    """The arrays that hold images, and the bands where each of them is one."""
    if asked.images:
        return [named(arrays, name, "--images") for name in asked.images], ()
    able = [a for a in arrays if a.kind in "biufO" and parts.is_science(a.last) and _axes(a, arrays, asked)]
    if any(len(a.shape) > 2 for a in able):  # the others are numbers of as many rows
        deep = {a.shape[0] for a in able if len(a.shape) > 2}
        able = [a for a in able if len(a.shape) > 2 or a.shape[0] not in deep]
    named_so = [a for a in able if IMAGE.search(a.last)]
    able = named_so or able
    if not able:
        raise Unreadable(f"no array of images in the file (it holds {_listed(arrays)})")
    if len(able) == 1:
        return able, ()
    found = parts.join([(a.name, a.name) for a in able], asked.bands)
    if len(found.objects) == 1 and not found.left:
        (listed,) = found.objects.values()
        return [next(a for a in able if a.name == name) for name in listed if name], found.bands
    apart = len({a.group for a in able}) == len(able) or all(SPLIT.search(a.name) for a in able)
    classes = all(names.class_of([a.last]) is not None for a in able)
    numbered = len({re.sub(r"\d+", "", a.name) for a in able}) == 1 and all(len(a.shape) == 2 for a in able)
    if apart or classes or numbered:
        return able, ()
    raise Unreadable(f"several arrays, {_listed(able)}, and not one alone is named image; name it with --images")


def named(arrays: Sequence[Named], name: str, option: str) -> Named:
    """The array of this path, or the only one whose path ends so.

    Raises:
        UserError: there is none, or several.
    """
    found = [a for a in arrays if a.name == name] or [a for a in arrays if f"/{a.name}".endswith(f"/{name}")]
    if len(found) != 1:
        raise UserError(
            f"{option} '{name}': {'several arrays' if found else 'no array'} of this name ({_listed(arrays)})"
        )
    return found[0]


class Columns:
    """What the other arrays say of N images.

    Attributes:
        used: the arrays that say something. notes: what was guessed.
    """

    def __init__(self, arrays: Sequence[Named], one: Named, n: int, asked: Asked, alone: bool) -> None:
        same = [a for a in arrays if a is not one and a.shape[:1] == (n,) and _beside(a, one, alone)]
        columns = [a for a in same if len(a.shape) == 1 or a.shape[1:] == (1,)]
        self.notes: tuple[str, ...] = ()
        self.used: list[Named] = []
        self._labels: Sequence[str | None] | None = None
        if asked.label:
            self._take_label([named(arrays if alone else same, asked.label, "--label")], n, "")
        else:
            likely = [a for a in same if LABEL.fullmatch(SPLIT.sub("", a.last)) and len(a.shape) <= 2]
            likely = [a for a in likely if classes_of(a.whole()) is not None]
            self._take_label(likely, n, " (guessed; --label names another)")
        self._params: dict[str, NDArray[np.float64]] = {}
        self._scale: NDArray[np.float64] | None = None
        for a in columns:
            name = SPLIT.sub("", a.last)
            if a in self.used or a.kind not in "biuf" or IDS.fullmatch(name):
                continue
            values = a.whole().reshape(-1).astype(np.float64)
            self.used.append(a)
            if SCALE.fullmatch(name):
                self._scale = values
            else:
                self._params[printable(name)] = values

    def _take_label(self, likely: list[Named], n: int, how: str) -> None:
        if not likely:
            return
        read = [(a.name, classes_of(a.whole()) or []) for a in likely]
        check_agree(read, "--label")
        if len(read[0][1]) != n:
            raise UserError(f"--label '{read[0][0]}' holds {len(read[0][1])} classes of {n} images")
        self._labels = read[0][1]
        self.used += likely
        self.notes += (f"classes from '{read[0][0]}'{how}",)

    def label(self, k: int) -> str | None:
        return None if self._labels is None else self._labels[k]

    def params(self, k: int) -> dict[str, float]:
        return {name: float(values[k]) for name, values in self._params.items()}

    def scale(self, k: int) -> float | None:
        value = math.nan if self._scale is None else float(self._scale[k])
        return value if 0 < value < math.inf else None


def classes_of(values: NDArray[Any]) -> list[str | None] | None:
    """Names of classes: text, whole numbers or one-hot rows; None where they are none of these."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2:
        if values.dtype.kind not in "biuf" or not (np.isin(values, (0, 1)).all() and (values.sum(1) == 1).all()):
            return None
        values = values.argmax(1)
    if values.ndim != 1:
        return None
    if values.dtype.kind in "SUO":
        listed = [class_name(v) for v in values.tolist()]
    elif values.dtype.kind in "biu":
        listed = [str(int(v)) for v in values.tolist()]
    elif values.dtype.kind == "f" and (values[np.isfinite(values)] % 1 == 0).all():
        listed = [str(int(v)) if math.isfinite(v) else None for v in values.tolist()]
    else:
        return None
    return listed if len(set(listed)) <= MOST_CLASSES else None


def class_name(value: Any) -> str | None:
    """Text of a class, None where it is empty."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = printable(str(int(value) if isinstance(value, bool | np.bool_) else value).strip())
    return text or None


def check_agree(columns: Sequence[tuple[str, Sequence[str | None]]], option: str) -> None:
    """Two columns of classes agree where each class of one is one class of the other.

    Raises:
        UserError: they do not.
    """
    first, values = columns[0]
    for name, others in columns[1:]:
        pairs = set(zip(values, others, strict=True))
        if len(pairs) != len(set(values)) or len(pairs) != len(set(others)):
            raise UserError(f"'{first}' and '{name}' are both classes, and disagree; name one with {option}")


def _beside(a: Named, one: Named, alone: bool) -> bool:
    """In the same group, and of the same split where names say it; anywhere, where there is one array of images."""
    if alone:
        return True
    splits = [match[0].strip("_./-").lower() if (match := SPLIT.search(x.last)) else "" for x in (a, one)]
    return a.group == one.group and splits[0] == splits[1]


def _left(arrays: Sequence[Named], used: Sequence[Named]) -> tuple[str, ...]:
    names = {a.name for a in used}
    left = [a for a in arrays if a.name not in names]
    return (f"arrays {_listed(left)} left out",) if left else ()


def _listed(arrays: Sequence[Named]) -> str:
    told = ", ".join(printable(a.name) for a in arrays[:8])
    return (told + (f" and {len(arrays) - 8} more" if len(arrays) > 8 else "")) or "none"
