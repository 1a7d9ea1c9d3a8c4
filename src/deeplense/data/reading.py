"""What one pass over a source finds: the pixels wait in a file without a name, the rest is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BufferedRandom
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from deeplense.data import names, parts
from deeplense.data.archives import listing
from deeplense.data.budget import printable
from deeplense.data.catalogue import Catalogue
from deeplense.data.formats import folders, read_images
from deeplense.data.found import Asked, Foreign, Skipped
from deeplense.errors import UserError

SATURATED = 0.01  # of the pixels at the highest value
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


@dataclass
class Record:
    """What is remembered of an image.

    Attributes:
        object: what it is an image of: its id, but of bands that are kept apart.
        at: byte of the scratch file where its pixels (C, H, W) begin.
        label: its class. own: whether that is more than a folder's name.
        split: that its folders name.
        planes: how many of a noise map follow the pixels.
    """

    id: str
    object: str
    file: str
    at: int
    shape: tuple[int, int, int]
    label: str | None
    own: bool
    split: str | None
    params: dict[str, float]
    pixel_scale: float | None
    bands: tuple[str, ...]
    unit: str
    planes: int = 0

    def pixels(self, scratch: BufferedRandom) -> NDArray[np.float32]:
        """(C + planes, H, W)."""
        image = np.empty((self.shape[0] + self.planes, *self.shape[1:]), dtype=np.float32)
        scratch.seek(self.at)
        scratch.readinto(image.data)
        return image


@dataclass
class Reading:
    """What one pass over the source found.

    Attributes:
        skipped, noted, marked: what is told -> of how many files or images, and an example.
    """

    records: list[Record] = field(default_factory=list)
    skipped: dict[str, tuple[int, str]] = field(default_factory=dict)
    noted: dict[str, tuple[int, str]] = field(default_factory=dict)
    marked: dict[str, tuple[int, str]] = field(default_factory=dict)

    def drop(self, file: str) -> None:
        """A file that gave no image, but was read as a table."""
        for reason, (n, example) in list(self.skipped.items()):
            if example == file or (n > 1 and reason == "not an image format"):
                self.skipped[reason] = n - 1, example
            if self.skipped[reason][0] < 1:
                del self.skipped[reason]

    def count(self, told: dict[str, tuple[int, str]], what: str, file: str) -> None:
        n, example = told.get(what, (0, file))
        told[what] = n + 1, example


def read(source: Path, asked: Asked, classes: dict[str, str] | None, scratch: BufferedRandom) -> Reading:
    """One pass over the source.

    Args:
        classes: what the user says of folders, which may name splits together with a class.
    """
    found = Reading()
    objects = _objects(source) if asked.bands == () else {}
    at = 0
    for item in tqdm(read_images(source, asked=asked), unit="file", desc=f"read {source.name}", disable=None):
        if isinstance(item, Skipped):
            found.count(found.skipped, item.reason, item.file)
            continue
        split = names.split_of(folders(source, item.id)[1:], classes or names.CLASSES)
        for note in item.notes:
            found.count(found.noted, note, item.id)
        for mark in _marks(item):
            found.count(found.marked, mark, item.id)
        channels, height, width = item.image.shape
        stem, hash_, row = item.id.partition("#")
        found.records.append(
            Record(
                item.id,
                objects.get(stem, stem) + hash_ + row,
                item.file,
                at,
                (channels, height, width),
                item.label,
                item.own,
                split,
                item.params,
                item.pixel_scale,
                item.bands,
                item.unit,
                0 if item.noise is None else len(item.noise),
            )
        )
        at += scratch.write(item.image.tobytes())
        at += scratch.write(b"" if item.noise is None else item.noise.tobytes())
    scratch.flush()
    return found


def _objects(source: Path) -> dict[str, str]:
    """Id of an image -> id of the object of which it would be a band."""
    object_of = parts.plan(listing(source)).object_of
    return {printable(parts.stem(name)): id for name, id in object_of.items()}


def _marks(item: Foreign) -> list[str]:
    """What is strange about the pixels."""
    image = item.image
    finite = image[np.isfinite(image)]
    low, high = finite.min(), finite.max()
    marks = ["have NaN pixels"] * (item.nan_share > 0)
    if low == high:
        return [*marks, "are blank (all pixels 0)" if high == 0 else "are constant"]
    flat = [bool(np.nanmin(band) == np.nanmax(band)) for band in image if np.isfinite(band).any()]
    if len(image) > 1 and (any(flat) or len(flat) < len(image)):
        marks.append("have a constant or empty channel")
    if (finite == high).sum() >= max(4, SATURATED * finite.size):
        marks.append(f"look saturated (more than {SATURATED:.0%} of the pixels at the highest value)")
    return marks


def label(
    source: Path,
    found: Reading,
    classes: dict[str, str] | None,
    catalogue: Catalogue | None,
    pattern: names.Pattern | None,
    first: bool,
) -> list[str]:
    """Give each record its class and numbers: by the pattern, the table, the file itself, then the folders.

    Args:
        classes: what the user says of them; None: found from the names; empty: none.
        first: whether the table's classes go before those that are known already.

    Returns:
        What was guessed.

    Raises:
        UserError: a pattern that matches no name.
    """
    notes: list[str] = []
    if pattern is not None:
        notes += _by_pattern(found.records, pattern)
    if catalogue is not None:
        notes += _by_table(found.records, catalogue, first)
    if classes is None:
        _join_synonyms(found.records)
        return notes + _by_folder(found.records)
    kept = []
    for record in found.records:
        where = folders(source, record.id)
        said = classes.get(names.plain(record.label or ""))
        record.label = said if record.own and said else names.class_of(where, classes) or said
        if classes and record.label is None:
            found.count(found.skipped, "in none of the --classes", record.file)
        else:
            kept.append(record)
    found.records = kept
    return notes


def _by_pattern(records: Sequence[Record], pattern: names.Pattern) -> list[str]:
    missed = []
    for record in records:
        said = pattern.read(record.id)
        if said is None:
            missed.append(record.id)
            continue
        record.params |= said[1]
        if said[0] is not None:
            record.label, record.own = said[0], True
    if len(missed) == len(records):
        example = records[0].id.rsplit("/", 1)[-1] if records else ""
        raise UserError(f"--pattern '{pattern.text}' matches none of {len(records)} names (e.g. '{example}')")
    return [f"--pattern '{pattern.text}' matches all but {len(missed)} names (e.g. {missed[0]})"] if missed else []


def _by_table(records: Sequence[Record], catalogue: Catalogue, first: bool) -> list[str]:
    other = 0
    for record in records:
        said = catalogue.label(record.id)
        record.params |= catalogue.params(record.id)
        if said is None or (record.label is not None and not first):
            continue
        other += record.label not in (None, said, names.CLASSES.get(names.plain(said)))
        record.label, record.own = said, True
    notes = list(catalogue.notes)
    if other:
        notes.append(f"the table's classes are taken, which differ from those of {other} files or folders")
    return notes


def _join_synonyms(records: Sequence[Record]) -> None:
    """Of classes that files name, where all of them are known: `no` beside `yes` is no class of dark matter."""
    own = {record.label for record in records if record.own and record.label is not None}
    if own and all(names.plain(name) in names.CLASSES for name in own):
        for record in records:
            if record.own and record.label is not None:
                record.label = names.CLASSES[names.plain(record.label)]


def _by_folder(records: Sequence[Record]) -> list[str]:
    bare = [record for record in records if record.label is None]
    if not bare:
        return []
    if any(record.own for record in records):
        return [f"{len(bare)} images have no class (e.g. {bare[0].id})"]
    own = names.own_classes([record.id for record in records])
    for record in bare:
        record.label = own.get(record.id)
    named = sorted({record.label for record in bare if record.label is not None})
    notes = []
    if named:
        told = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
        notes.append(f"unknown names taken as classes of their own: {told} (--classes a=b renames them)")
    left = [record for record in bare if record.label is None]
    if left:
        which = "no name tells a class" if len(left) == len(records) else f"{len(left)} images have no class"
        notes.append(f"{which} (e.g. {left[0].id}); --classes, --labels or --pattern give them")
    return notes
