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

from deeplense.data import names, parts, weights
from deeplense.data.arrays import as_image, images, layout
from deeplense.data.budget import Unreadable, check_image, printable
from deeplense.data.found import Asked, Found
from deeplense.errors import UserError

IMAGE = re.compile(r"image|img|exposure|stamp|cutout|pixels", re.IGNORECASE)
PLURAL = re.compile(r"(?<![a-z])(?:images|imgs|stamps|cutouts|lenses|nonlenses|stack)(?![a-z])|^x$", re.IGNORECASE)
LABEL = re.compile(
    r"(?:labels?|class(?:es)?|cls|class_?(?:id|label|name)|kind|type|ans|answers?|targets?|y|truth|category|is_?(?:a_?)?lens|"
    r"has_?substructure|substructure)",
    re.IGNORECASE,
)
SPLIT = re.compile(r"^(?:train|val|valid|test)[_./-]|[_./-](?:train|val|valid|test)$", re.IGNORECASE)
SCALE = re.compile(r"px_?scale|pix(?:el)?_?scale|pixscale", re.IGNORECASE)
IDS = re.compile(r"(?:id|uid|index|idx|name|object_?id|file(?:_?(?:name|loc))?)(?:_?str)?|id_str", re.IGNORECASE)
MOST_CLASSES = 1000
UNEVEN = "rows of different lengths; write images of one size to a table"


class Named(NamedTuple):
    """An array of a file, not yet read.

    Attributes:
        whole: reads all of it. blocks: reads rows, as (number of the first, values).
        many: whether the first of three axes counts images, as it does in HDF5 and in tables.
        why: it cannot be read.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    whole: Callable[[], NDArray[Any]]
    blocks: Callable[[], Iterable[tuple[int, Any]]]
    many: bool = True
    why: str = ""

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


def unreadable(name: str, rows: int, why: str) -> Named:
    """A column that is there, and no array."""

    def refuse() -> Any:
        raise Unreadable(f"'{name}': {why}")

    return Named(name, (rows,), "V", refuse, refuse, why=why)


def found_in(arrays: Sequence[Named], asked: Asked) -> Iterator[Found | Unreadable]:
    """Every image of the arrays; one that cannot be read is given as its reason.

    Raises:
        Unreadable: no array of images, or several of which none is named.
        UserError: the user names an array that is not there, or label columns disagree.
    """
    aside = weights.wanted(asked)
    chosen, bands = _images([a for a in arrays if a.name not in aside and a.last not in aside], asked)
    for group in [chosen] if bands else [[one] for one in chosen]:
        yield from _rows(arrays, group, bands, asked, alone=bool(bands) or len(chosen) == 1)


def _rows(
    arrays: Sequence[Named], group: Sequence[Named], bands: tuple[str, ...], asked: Asked, alone: bool
) -> Iterator[Found | Unreadable]:
    """The images of one array, or of several that are its bands, with what the other arrays say of them."""
    one, axes = group[0], _axes(group[0], arrays, asked)
    if len({a.shape for a in group}) > 1:
        shapes = ", ".join(f"{a.name} {'x'.join(map(str, a.shape))}" for a in group)
        raise Unreadable(f"bands of different sizes, {shapes}; --images names those of one size")
    if bands and axes not in ("HW", "NHW"):
        raise Unreadable(f"bands {', '.join(bands)} are no single images; --bands none keeps them apart")
    where = "" if alone else _where(one)
    single = "N" not in axes
    if single:  # whatever is one value belongs to it
        arrays = [*group, *(_one_row(a) for a in arrays if a.shape in ((), (1,)))]
    check_image([len(group), *(s for k, s in enumerate(one.shape) if single or axes[k] != "N")])
    n = 1 if single else one.shape[axes.index("N")]
    beside = {name: _map(arrays, one, axes, name) for name in weights.wanted(asked)}
    arrays = [a for a in arrays if a not in [found for found in beside.values() if found is not None]]
    told = Columns(arrays, one, n, asked, alone)
    joined = [f"arrays {', '.join(a.name for a in group)} joined as bands"] * bool(bands)
    notes = (*joined, *told.notes, *_left(arrays, [*group, *told.used], alone))
    maps = {key: _pixels([a], axes if a.shape == one.shape else "NHW") for key, a in beside.items() if a is not None}
    for k, image in enumerate(_pixels(group, axes)):
        mapped = {key: next(rows)[0] for key, rows in maps.items()}
        try:
            pixels = as_image(np.stack(image) if bands else image[0])
            found = weights.with_maps(Found(pixels, notes=notes), mapped, asked)
        except Unreadable as error:
            if single:
                raise
            yield Unreadable(f"#{k}: {error}")
            continue
        name = where if n == 1 and (alone or single) else f"{where}#{k}"
        yield found._replace(
            row=name, label=told.label(k), params=told.params(k), pixel_scale=told.scale(k), bands=bands
        )


def _map(arrays: Sequence[Named], one: Named, axes: str, name: str) -> Named | None:
    """The array of this name with a map for each image of `one`: of its shape, or without its channels."""
    found = [a for a in arrays if a is not one and name in (a.name, a.last) and (a.group == one.group or "/" in name)]
    shapes = (one.shape, tuple(n for n, axis in zip(one.shape, axes, strict=True) if axis != "C"))
    return next((a for a in found if a.shape in shapes), None)


def _pixels(group: Sequence[Named], axes: str) -> Iterator[tuple[NDArray[Any], ...]]:
    """Each image, of every array of a group."""
    if axes in ("HW", "CHW", "HWC", "HWN"):
        yield from zip(*((image for _, image in images(a.whole(), axes)) for a in group), strict=True)
        return
    for blocks in zip(*(a.blocks() for a in group), strict=True):
        for rows in zip(*(values for _, values in blocks), strict=True):
            yield tuple(np.moveaxis(row, -1, 0) if axes == "NHWC" and row.ndim == 3 else row for row in rows)


def _where(one: Named) -> str:
    """`x_train` is in a folder `train`, as far as splits go."""
    split = SPLIT.search(one.name)
    return f"/{split[0].strip('_./-').lower()}" if split else f"/{printable(one.name)}"


def _one_row(a: Named) -> Named:
    return a._replace(shape=(1,), whole=lambda: a.whole().reshape(1))


def _axes(one: Named, arrays: Sequence[Named], asked: Asked) -> str:
    if asked.axes:
        return asked.axes
    if len(one.shape) != 3:
        return layout(one.shape)
    # a column of as many values counts images, and so do arrays of the same images whose names have nothing in common
    alike = [a for a in arrays if a.shape[1:] == one.shape[1:]]
    counted = any(a.shape == one.shape[:1] for a in arrays) or (len(alike) > 1 and _no_word_twice(alike))
    return layout(one.shape, one.many or counted or says_many(one.last))


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
    known = any(names.class_of([a.last]) is not None for a in able)
    classes = len({a.shape[1:] for a in able}) == 1 and (known or (_no_word_twice(able) and not able[0].many))
    numbered = len({re.sub(r"\d+", "", a.last) for a in able}) == 1 and all(len(a.shape) == 2 for a in able)
    if apart or classes or numbered:
        return able, ()
    raise Unreadable(f"several arrays, {_listed(able)}, and not one alone is named image; name it with --images")


def says_many(name: str) -> bool:
    """Whether an array's name is that of a class or in the plural."""
    return bool(PLURAL.search(SPLIT.sub("", name))) or names.class_of([name]) is not None


def _no_word_twice(arrays: Sequence[Named]) -> bool:
    """`hot` and `cold` are classes; `x` and `x_noisy` are not."""
    words = [word for a in arrays for word in set(re.findall(r"[a-z]+", a.last.lower()))]
    return len(set(words)) == len(words)


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
        elif asked.label is not None:
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


def _left(arrays: Sequence[Named], used: Sequence[Named], alone: bool) -> tuple[str, ...]:
    taken = {a.name for a in used}
    left = [a for a in arrays if a.name not in taken and (alone or (_beside(a, used[0], alone) and len(a.shape) < 3))]
    return (f"arrays {_listed(left)} left out",) if left else ()


def _listed(arrays: Sequence[Named]) -> str:
    told = ", ".join(printable(a.name) + (f" ({a.why})" if a.why else "") for a in arrays[:8])
    return (told + (f" and {len(arrays) - 8} more" if len(arrays) > 8 else "")) or "none"
