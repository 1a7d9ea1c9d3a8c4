"""HDF5 files with a group (or an array with attributes) for each object, as the Roman data challenge has them.

`images/strong_lens_00000001/exposure_00000001_F129`: a group's arrays are its bands, and its attributes, or those of
its arrays, are numbers, classes and units, often as pairs (value, description).
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from deeplense.data import hdf5, names, parts, weights
from deeplense.data.arrays import EVIDENT, as_image, layout
from deeplense.data.budget import Unreadable, printable
from deeplense.data.columns import IDS, IMAGE, LABEL, SCALE, class_name, says_many
from deeplense.data.found import Asked, Found
from deeplense.errors import UserError

Thing: TypeAlias = h5py.Group | h5py.Dataset
LOOKED_AT = 3  # groups, to know the form of a file
MOST_GROUPS = 1000  # that hold such groups
DEEPEST = 3
MOST_SYSTEMS = 1_000_000
# of the median of a pixel's eight neighbours; pixels outside are corrupt in the images of the challenge
SOUND = (0.5, 5.0)
MOST_CORRUPT = 0.01  # of all pixels
UNIT = ("units", "unit", "bunit")
FRACTION = re.compile(r"[+-]?\d*\.\d*[1-9]\d*(?:e[+-]?\d+)?|nan", re.IGNORECASE)  # a place `y` is no class
YES, NO = ("true", "yes"), ("false", "no")
HALOS = {"substructure": ("no_sub", "sub"), "has_substructure": ("no_sub", "sub")}


def systems(file: h5py.File) -> list[tuple[str, h5py.Group]]:
    """The groups of which every member is an object, and their paths; empty in a file of another form."""
    found = []
    waiting: list[tuple[str, h5py.Group, int]] = [("", file, 0)]
    while waiting:
        path, group, depth = waiting.pop(0)
        first = [(name, hdf5.inside(group, name)) for name in itertools.islice(group, LOOKED_AT)]
        if first and _are_objects(first):
            found.append((path, group))
        elif depth < DEEPEST:
            inner = ((name, hdf5.inside(group, name)) for name in itertools.islice(group, MOST_GROUPS))
            waiting += [(f"{path}/{n}" if path else n, g, depth + 1) for n, g in inner if isinstance(g, h5py.Group)]
    return found


def found_in(forms: Sequence[tuple[str, h5py.Group]], size: int, asked: Asked) -> Iterator[Found | Unreadable]:
    """Every object; one that cannot be read is given as its reason.

    Args:
        forms: as `systems` gives them. size: bytes of the file.

    Raises:
        UserError: no object has the attribute of `--label`, or objects have different bands.
    """
    bands: tuple[str, ...] = ()
    for path, group in forms:
        for k, name in enumerate(group):
            if k >= MOST_SYSTEMS:
                raise Unreadable(f"more than {MOST_SYSTEMS} objects in the HDF5 file")
            thing = hdf5.inside(group, name)
            if not isinstance(thing, Thing):
                continue
            try:
                found = _system(name if len(forms) == 1 else f"{path}/{name}", thing, size, asked, bands)
            except Unreadable as error:
                yield Unreadable(f"{name}: {error}")
                continue
            bands = bands or found.bands
            yield found


def _are_objects(first: Sequence[tuple[str, Thing | None]]) -> bool:
    """Whether each of a group's first members holds the bands of an object, or one image with what is known of it."""
    if all(isinstance(thing, h5py.Group) and len(_bands(thing)) > 0 and "" not in _bands(thing) for _, thing in first):
        return True
    if len(first) < 2 or any(_says_more(name) for name, _ in first):
        return False
    if all(isinstance(thing, h5py.Group) and _bands(thing) for _, thing in first):
        return True
    alone = all(isinstance(thing, h5py.Dataset) and _is_image(thing) and hdf5.attributes(thing) for _, thing in first)
    return alone and all(parts.is_science(name) for name, _ in first) and not parts.join([(n, n) for n, _ in first])[0]


def _says_more(name: str) -> bool:
    """Whether a member's name is that of a class or a split, whose arrays are images of many objects."""
    return names.class_of([name]) is not None or names.split_of([name], names.CLASSES) is not None


def _is_image(data: h5py.Dataset) -> bool:
    axes = layout(data.shape, many=True) if data.dtype.kind in "biuf" else ""
    return axes in ("HW", "HWC") or (axes == "NHW" and data.shape[0] <= EVIDENT and layout(data.shape) == "CHW")


def _bands(thing: Thing) -> dict[str, h5py.Dataset]:
    """Band -> image, in order, with the name "" of an only image; empty where the arrays are no bands of an object."""
    if isinstance(thing, h5py.Dataset):
        return {"": thing}
    inner = [(name, hdf5.inside(thing, name)) for name in itertools.islice(thing, 100)]
    images = {
        name: data
        for name, data in inner
        if isinstance(data, h5py.Dataset) and _is_image(data) and parts.is_science(name)
        if data.ndim == 2 or not says_many(name)
    }
    flat = [name for name, data in images.items() if data.ndim == 2]
    # what was simulated on the way stands beside what was observed
    observed = [name for name in flat if "exposure" in name.lower()] or flat
    joined = parts.join([(name, name) for name in observed])
    if len(joined.objects) == 1 and not joined.left:
        ((_, listed),) = joined.objects.items()
        return {band: images[name] for band, name in zip(joined.bands, listed, strict=True) if name}
    if len(observed) == 1 and (match := parts.BAND.search(observed[0])):
        return {match[0]: images[observed[0]]}
    named = [name for name in images if IMAGE.search(name)] or list(images)
    several = len(named) != 1 or any(isinstance(data, h5py.Group) for _, data in inner)
    return {} if several else {"": images[named[0]]}


def _system(name: str, thing: Thing, size: int, asked: Asked, wanted: tuple[str, ...]) -> Found:
    bands = _bands(thing)
    if not bands:
        raise Unreadable("no image, or several of which none is named image; --images names the arrays")
    if asked.bands and "" not in bands:
        missing = [b for b in asked.bands if b.lower() not in {known.lower() for known in bands}]
        bands = {k: v for b in asked.bands for k, v in bands.items() if k.lower() == b.lower()}
    else:
        missing = [b for b in wanted if b not in bands]
    if missing or not bands:
        raise Unreadable(f"band {missing[0] if missing else ''} is missing (it has {', '.join(bands) or 'none'})")
    if len({data.shape for data in bands.values()}) > 1:
        shapes = ", ".join(f"{band} {'x'.join(map(str, data.shape))}" for band, data in bands.items())
        raise Unreadable(f"bands of different sizes, {shapes}; --bands names those of one size")
    pixels = [hdf5.as_named(band, data, size).whole() for band, data in bands.items()]
    image = as_image(pixels[0] if "" in bands else np.stack(pixels))
    notes = [f"{', '.join(bands)} joined as bands"] * ("" not in bands)
    exposures = all("exposure" in data.name.rsplit("/", 1)[-1].lower() for data in bands.values())
    corrupt = _corrupt(image)
    # where noise alone leaves the range, it says nothing of a pixel
    if exposures and 0 < corrupt.mean() < MOST_CORRUPT:
        image = np.where(corrupt, np.float32(np.nan), image)
        notes.append(f"corrupt pixels (outside {SOUND[0]:g} to {SOUND[1]:g} times their neighbours' median) made NaN")
    told = hdf5.attributes(thing)
    if isinstance(thing, h5py.Group):
        maps = {key: hdf5.inside(thing, key) for key in weights.wanted(asked)}
        beside = {k: hdf5.as_named(k, m, size).whole() for k, m in maps.items() if isinstance(m, h5py.Dataset)}
        more, left = _beside(thing, [*bands.values(), *maps.values()])
        told = more | told
        notes += [f"arrays {', '.join(left)} left out"] * bool(left)
    if "" in bands and thing != bands[""]:
        told = hdf5.attributes(bands[""]) | told
    else:
        beside = {}
    label, key, note = _label(told, asked)
    params, scale, unit = _numbers({k: v for k, v in told.items() if k != key or k.lower() in HALOS})
    for band, data in bands.items():
        own, own_scale, own_unit = _numbers(hdf5.attributes(data) if band else {})
        params |= {f"{key}_{band}": value for key, value in own.items()}
        scale, unit = own_scale or scale, own_unit or unit
    named = tuple(band for band in bands if band)
    found = Found(image, f"/{printable(name)}", label, params, scale, named, unit, (*notes, *note))
    return weights.with_maps(found, beside, asked)


def _beside(group: h5py.Group, images: Sequence[Thing | None]) -> tuple[dict[str, str], list[str]]:
    """Arrays of one value, which are as good as attributes, and the names of the others."""
    told, left = {}, []
    for name in itertools.islice(group, 100):
        data = hdf5.inside(group, name)
        if data is None or data in images:
            continue
        if isinstance(data, h5py.Dataset) and data.size == 1 and not (data.external or data.is_virtual):
            value = np.asarray(data[()]).reshape(-1)[0]
            told[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        else:
            left.append(printable(name))
    return told, left


def _label(told: dict[str, str], asked: Asked) -> tuple[str | None, str, tuple[str, ...]]:
    """The class that an attribute names, and its name."""
    likely = [key for key in told if LABEL.fullmatch(key) and not FRACTION.fullmatch(told[key].strip())]
    if asked.label:
        if asked.label not in told:
            raise UserError(f"--label '{asked.label}': no attribute of this name (known: {', '.join(told) or 'none'})")
        likely = [asked.label]
    if not likely or asked.label is None:
        return None, "", ()
    key = likely[0]
    value = told[key].strip().lower()
    known = key.lower() in HALOS and value in (*YES, *NO)
    label = HALOS[key.lower()][value in YES] if known else class_name(told[key])
    return (
        label,
        key,
        (f"classes from the attribute '{key}'{'' if asked.label else ' (guessed; --label names another)'}",),
    )


def _numbers(told: dict[str, str]) -> tuple[dict[str, float], float | None, str]:
    """All numbers, true and false as 1 and 0; the pixel scale [arcsec]; the unit."""
    params, scale, unit = {}, None, ""
    for key, text in told.items():
        low = text.strip().lower()
        try:
            value = 1.0 if low in YES else 0.0 if low in NO else float(text)
        except ValueError:
            unit = printable(text) if key.lower() in UNIT else unit
            continue
        if SCALE.fullmatch(key):
            scale = value if 0 < value < math.inf else None
        elif not IDS.fullmatch(key):
            params[printable(key)] = value
    return params, scale, unit


def _corrupt(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels (C, H, W) that are far from the median of their eight neighbours, where that is positive."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    _, height, width = image.shape
    around = [
        padded[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
        if (x, y) != (0, 0)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pixels whose neighbours are all missing
        median = np.nanmedian(np.stack(around), axis=0)
        return np.asarray((median > 0) & ((image < SOUND[0] * median) | (image > SOUND[1] * median)))
