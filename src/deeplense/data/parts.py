"""Which names belong together: the bands of one object, and what is no image of it (weights, noise, masks, PSF).

A name is a file's path, an extension of a FITS file or an array in HDF5. Only whole words of it count, so that `gri`
is no band and `unmasked` no mask.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from deeplense.data.arrays import MOST_CHANNELS

START, END = r"(?<![a-z0-9])", r"(?![a-z0-9])"

# wavelengths [nm], which put bands in order from blue to red
FILTERS = {
    **{"fuv": 150, "nuv": 230, "u": 355, "b": 440, "blue": 440, "g": 480, "green": 510, "v": 550, "r": 620, "red": 630},
    **{"vis": 715, "i": 760, "z": 900, "y": 1000, "nir[_-]?y": 1080, "j": 1250, "nir[_-]?j": 1370, "h": 1650},
    **{"nir[_-]?h": 1770, "ks": 2150, "k": 2190, "w1": 3400, "w2": 4600, "w3": 12000, "w4": 22000},
}
# Hubble's filters below 1 micron are named in nm, all others of Hubble, Webb and Roman in 10 nm
IN_NM = (225, 275, 336, 390, 435, 438, 450, 475, 502, 555, 606, 625, 656, 658, 702, 775, 814, 850)
SURVEY = (
    r"(?:(?:sdss|hsc|des|decam|lsst|cfht|cfis|megacam|ps1|kids|vista|viking|uvista|wise|2mass|hst|acs|wfc3)[_.-]?)?"
)
HUBBLE = r"f(?:062|087|106|129|146|158|184|213|\d{3,4}(?:w|m|n|x|lp))"  # and of Webb and Roman
NUMBERED = r"(?:band|channel|chan|ch|filter)[_-]?(\d{1,2})"
BAND = re.compile(
    rf"{START}(?:{SURVEY}(?:{'|'.join(sorted(FILTERS, key=len, reverse=True))}|{HUBBLE})|"
    rf"{NUMBERED}|(?:band|filter)[_-]?[ugrizyjhk]){END}",
    re.IGNORECASE,
)
NOT_SCIENCE = (
    r"[a-z]*psfs?|kernels?|weights?|weight_?maps?|wht|wgt|[a-z]*(?:ivar|invvar)|inv_?var|variance|var|err|errors?|"
    r"[a-z]*rms|sigma|noise|noise_?maps?|uncert|uncertainty|stdev|std|[a-z]*masks?|dq|[a-z]*flags?|"
    r"data_?quality|seg|segm|segmap|segmentation|bpm|badpix|ctx|con|exp_?map|exposure_?map|background|bkg"
)
ROLE = re.compile(rf"{START}(?:{NOT_SCIENCE}){END}", re.IGNORECASE)
MODEL = re.compile(rf"{START}(?:[a-z]*models?|[a-z]*bgmod|residuals?){END}", re.IGNORECASE)
SCIENCE = re.compile(
    rf"{START}(?:sci|science|images?|img|flux|data|stamps?|cutouts?|pixels|exposures?|[a-z]*bgsub){END}", re.IGNORECASE
)
EDGES = re.compile(rf"^(?:{NOT_SCIENCE}){END}|{START}(?:{NOT_SCIENCE})$", re.IGNORECASE)
SIDECARS = (".cls", ".json")  # of WebDataset: the class, and whatever else is known


class Plan(NamedTuple):
    """What belongs together.

    Attributes:
        objects: id of an object -> the names of its parts, in the order of the bands; sidecars last.
        bands: the bands of the objects of several.
        object_of: name of a part -> id of its object.
        aside: names of what is no image but belongs to one.
        left: names of parts of bands that are not wanted.
    """

    objects: Mapping[str, list[str | None]]
    bands: tuple[str, ...]
    object_of: Mapping[str, str]
    aside: frozenset[str]
    left: frozenset[str]


def plan(names: Iterable[str], wanted: tuple[str, ...] | None = None) -> Plan:
    """Find the objects that lie in several files of a source.

    Args:
        names: of all its files.
        wanted: bands, in the order that is wanted; empty to join none; None to find them from the names.
    """
    listed = [name for name in names if not hidden(name)]
    images = [name for name in listed if not name.lower().endswith(SIDECARS)]
    aside = _aside(images)
    found = join([(name, stem(name)) for name in images if name not in aside], wanted)
    objects = found.objects
    object_of = {part: id for id, parts in objects.items() for part in parts if part is not None}
    alone = [name for name in images if name not in aside and name not in object_of]
    by_stem = {re.sub(r"\.[^/]*$", "", name): name for name in alone} | {stem(name): name for name in alone}
    for name in sorted(set(listed) - set(images)):
        id = stem(name)
        if id in by_stem and id not in objects:
            objects[id] = [by_stem[id]]
            object_of[by_stem[id]] = id
        if id in objects:
            objects[id].append(name)
            object_of[name] = id
    return Plan(objects, found.bands, object_of, aside, frozenset(found.left))


class Joined(NamedTuple):
    """Object -> its parts in the order of the bands, None for one that it lacks; the bands; parts of other bands."""

    objects: dict[str, list[str | None]]
    bands: tuple[str, ...]
    left: list[str]


def join(names: Sequence[tuple[str, str]], wanted: tuple[str, ...] | None = None) -> Joined:
    """Names that differ by bands alone.

    Args:
        names: what to call it, and the text in which a band is looked for.
        wanted: as in `plan`.

    Returns:
        Nothing joined where, of themselves, fewer than half of the objects with a band have another.
    """
    nothing = Joined({}, (), [])
    if wanted == ():
        return nothing
    pattern = BAND if wanted is None else _also(wanted)
    by_key: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    twice = set()
    for name, text in names:
        found = tuple(match[0] for match in pattern.finditer(text))
        key = tidy(pattern.sub("\0", text))
        if found:
            twice |= {key} if found in by_key[key] else set()
            by_key[key][found] = name
    groups = {key: parts for key, parts in by_key.items() if key not in twice}
    several = [parts for parts in groups.values() if len(parts) > 1 or wanted]
    if not several or 2 * len(several) < len(groups):
        return nothing
    marks = {mark for parts in several for mark in parts}
    if wanted:
        low = {w.lower() for w in wanted}
        marks = {mark for mark in marks if low & {part.lower() for part in mark}}
    chosen = sorted(marks, key=lambda mark: _place(mark, wanted))
    if not chosen or len(chosen) > MOST_CHANNELS or len({len(mark) for mark in chosen}) > 1:
        return nothing
    objects: dict[str, list[str | None]] = {}
    left = []
    for key, parts in groups.items():
        if marks & set(parts):
            id = tidy(key.replace("\0", "")) or "object"
            objects[id if id not in objects else key.replace("\0", "*")] = [parts.get(mark) for mark in chosen]
            left += [name for mark, name in parts.items() if mark not in marks]
    return Joined(objects, tuple(_called(chosen)), left)


def in_order(names: Sequence[str]) -> list[int]:
    """Numbers of bands from blue to red, or as they are numbered; as they come, where one of them is unknown."""
    found = [BAND.search(name) for name in names]
    if not all(found):
        return list(range(len(names)))
    return sorted(range(len(names)), key=lambda k: _place((found[k][0],), None))  # type: ignore[index]


def is_science(name: str) -> bool:
    """Whether nothing in the name of an extension or array says weight, noise, mask or PSF."""
    return not ROLE.search(name) and not MODEL.search(name)


def is_not_science_file(name: str) -> bool:
    """Whether a file's name begins or ends with weight, noise, mask or PSF."""
    return bool(EDGES.search(stem(name).rsplit("/", 1)[-1]))


def stem(name: str) -> str:
    """The path without its extensions: `a.fits.gz` is `a`, `v1.2_g.fits` is `v1.2_g`."""
    folder, slash, file = name.rpartition("/")
    base, dot, _ = file.rpartition(".")
    if file.lower().endswith((".gz", ".fz", ".bz2")) and "." in base:
        base = base.rpartition(".")[0]
    return folder + slash + (base if dot and base else file)


def hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in PurePosixPath(name).parts)


def tidy(text: str) -> str:
    """Separators that stand together are one, and none stand at an end."""
    text = re.sub(r"[_. -]*/[/_. -]*", "/", text)
    return re.sub(r"([_. -])[_. -]+", r"\1", text).strip("/_. -")


def _aside(names: Sequence[str]) -> frozenset[str]:
    """What says weight, noise, mask or PSF, where a file of the same name without that is there."""
    suspects = [name for name in names if ROLE.search(stem(name))]
    if not suspects:
        return frozenset()
    plain = {_bare(text) for name in names if not ROLE.search(s := stem(name)) for text in (s, BAND.sub("", s))}
    return frozenset(name for name in suspects if _bare(stem(name)) in plain)


def _bare(text: str) -> str:
    return tidy(SCIENCE.sub("", ROLE.sub("", text))).lower()


def _also(wanted: Sequence[str]) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in sorted(wanted, key=len, reverse=True))
    return re.compile(rf"{START}(?:{names}){END}|{BAND.pattern}", re.IGNORECASE)


def _place(mark: tuple[str, ...], wanted: tuple[str, ...] | None) -> tuple[float, str]:
    """As the user lists them; as they are numbered; from blue to red; by name."""
    low = [part.lower() for part in mark]
    if wanted:
        return min(float(k) for k, name in enumerate(wanted) if name.lower() in low), ""
    for part in low:
        if number := re.fullmatch(NUMBERED, part):
            return float(number[1]), ""
    last = re.sub(rf"^(?:{SURVEY}|(?:band|filter)[_-]?)(?=.)", "", low[-1])
    for pattern, wavelength in FILTERS.items():
        if re.fullmatch(pattern, last):
            return float(wavelength), ""
    digits = re.search(r"\d+", last)
    told = int(digits[0]) if digits else 0
    return float(told if told in IN_NM else 10 * told), last


def _called(marks: Sequence[tuple[str, ...]]) -> list[str]:
    """The part of each mark that tells most: a filter before a number, and different for all."""
    for k in reversed(range(len(marks[0]))):
        names = [mark[k] for mark in marks]
        if len(set(names)) == len(names):
            return names
    return ["/".join(mark) for mark in marks]
