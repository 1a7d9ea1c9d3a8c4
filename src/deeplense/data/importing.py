"""`import`: a dataset from files in any form in the wild.

One pass reads the source into a nameless scratch file; the images are then dealt out to shards. Classes, splits and
order follow from ids and seed alone: a folder, its zip and its tar give the same dataset.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from io import BufferedRandom
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from deeplense import rng
from deeplense.data import names, schema, shards, store
from deeplense.data.budget import printable
from deeplense.data.formats import Foreign, Skipped, folders, read_images
from deeplense.data.schema import ImageInfo, Manifest, Parameter, Shard
from deeplense.errors import UserError

SHARD = 1024  # images, fewer where they are large
SHARD_BYTES = 2**28
UNITS = {"log10_m_axion": "log10(eV)"}
SAME_SCALE = 0.01  # relative difference of pixel scales that is none


class Record(NamedTuple):
    """What is remembered of an image; its pixels wait in the scratch file."""

    id: str
    row: int
    label: str | None
    split: str | None
    params: dict[str, float]


@dataclass
class Reading:
    """What one pass over the source found."""

    records: list[Record] = field(default_factory=list)
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    scales: Counter[float | None] = field(default_factory=Counter)
    nan_images: int = 0
    skipped: dict[str, tuple[int, str]] = field(default_factory=dict)  # reason: how many, an example
    folders: Counter[str] = field(default_factory=Counter)  # of images
    unknown: Counter[str] = field(default_factory=Counter)  # of images without a class

    def skip(self, file: str, reason: str) -> None:
        n, example = self.skipped.get(reason, (0, file))
        self.skipped[reason] = n + 1, example


def import_dataset(
    source: str | Path,
    out: str | Path,
    classes: str | None = None,
    splits: str | None = None,
    pixel_scale: float | None = None,
    seed: int = 0,
) -> Path:
    """Import images of any form in the wild as a dataset; print what was taken and what was skipped.

    Args:
        source: a folder, zip, tar or file of images.
        out: the dataset's folder; it must not exist.
        classes: folder names that are classes, "sub,no_sub", or what they mean, "sphere=cdm,vort=axion,no=no_sub"
            (other folders are left out); "none" to import without classes; guessed when not given.
        splits: shares of each class, "train=0.8,test=0.2"; when not given, the folders train, val and test decide
            where there are any, else train=0.8,val=0.1,test=0.1.
        pixel_scale: arcsec; the files' own when not given.
        seed: of the splits and the order.

    Returns:
        The dataset's folder.

    Raises:
        UserError: nothing readable, no known class, mixed sizes or pixel scales, `out` taken, or a full disk.
    """
    source, out = Path(source), Path(out)
    table = names.read_classes(None if classes is None else printable(classes))
    shares = names.read_shares(splits or names.SHARES)
    if pixel_scale is not None and not 0 < pixel_scale < math.inf:
        raise UserError(f"--pixel-scale {pixel_scale}: it must be positive, in arcsec")
    _check_free(out)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if (source / schema.MANIFEST).is_file():
        raise UserError(f"{source}: is a dataset already; use it as it is")
    with _folder(out) as folder, _scratch(folder) as scratch:
        found = _read(source, table, scratch)
        _check(source, found, table)
        scale = pixel_scale or _common_scale(source, found)
        chosen = _split(source, found.records, splits is None, shares, seed)
        manifest = _write(folder, scratch, found, chosen, seed)
        manifest.name, manifest.source, manifest.image.pixel_scale = out.name, printable(str(source)), scale
        manifest.seal().write(folder)
    print(_summary(out, manifest, found, chosen))
    return out


def _read(source: Path, table: dict[str, str] | None, scratch: BufferedRandom) -> Reading:
    """Pixels of the first image's shape go to the scratch file; of the rest only the shape is counted."""
    found = Reading()
    for item in tqdm(read_images(source), unit="file", desc=f"read {source.name}", disable=None):
        if isinstance(item, Skipped):
            found.skip(item.file, item.reason)
            continue
        where = folders(source, item.id)
        label = _label(item, where, table)
        found.folders[where[-1]] += 1
        if table and label is None:
            found.skip(item.file, "in none of the folders of --classes")
            continue
        found.unknown[where[-1]] += label is None
        found.shapes[item.image.shape] += 1
        found.scales[item.pixel_scale] += 1
        found.nan_images += item.nan_share > 0
        if len(found.shapes) == 1:
            split = names.split_of(where[1:], table or names.CLASSES)
            found.records.append(Record(_short(item.id), len(found.records), label, split, item.params))
            scratch.write(item.image.tobytes())
    scratch.flush()
    return found


def _label(item: Foreign, where: Sequence[str], table: dict[str, str] | None) -> str | None:
    if table is None:
        return item.label
    # a file may carry its class, a number, itself
    return names.class_of(where, table) or table.get(item.label or "")


def _check(source: Path, found: Reading, table: dict[str, str] | None) -> None:
    if not found.folders:
        told = "; ".join(_skips(found)) or "it is empty"
        raise UserError(f"{source}: no image could be read ({told}); see the forms in docs/data_format.md")
    if len(found.shapes) > 1:
        sizes = ", ".join(f"{'x'.join(map(str, s))} ({n} images)" for s, n in found.shapes.most_common(5))
        raise UserError(f"{source}: images of several sizes, {sizes}; import a sub-folder with one size")
    missing = sorted(set((table or {}).values()) - {r.label for r in found.records})
    if missing:
        where = ", ".join(name for name, _ in found.folders.most_common(8))
        raise UserError(f"{source}: no image of --classes {missing[0]} (folders with images: {where})")
    if table is None and found.unknown.total():
        where = ", ".join(f"{name} ({n} images)" for name, n in (+found.unknown).most_common(5))
        raise UserError(
            f"{source}: no known class for the folders {where}; name them with --classes a,b or a=b, or none"
        )


def _split(
    source: Path, records: list[Record], by_folder: bool, shares: dict[str, float], seed: int
) -> dict[str, list[Record]]:
    """The records of each split, sorted by id within a class, empty splits left out."""
    chosen: dict[str, list[Record]] = {}
    records = sorted(records, key=lambda r: r.id)
    if by_folder and any(r.split for r in records):
        for record in records:
            if record.split is None:
                raise UserError(f"{source}: {record.id} is in none of the split folders; give --splits {names.SHARES}")
            chosen.setdefault(record.split, []).append(record)
    else:
        for label in sorted({r.label or "" for r in records}):
            same = [r for r in records if (r.label or "") == label]
            order = rng.generator(seed, f"import/split/{label}").permutation(len(same))
            edges = np.rint(np.cumsum([0.0, *shares.values()]) * len(same)).astype(int)
            for name, low, high in zip(shares, edges, edges[1:], strict=False):
                chosen.setdefault(name, []).extend(same[k] for k in order[low:high])
    return {name: chosen[name] for name in sorted(chosen, key=_rank) if chosen[name]}


def _write(
    folder: Path, scratch: BufferedRandom, found: Reading, chosen: dict[str, list[Record]], seed: int
) -> Manifest:
    """All shards, in an order that does not give the class away, and their manifest."""
    ((channels, height, width),) = found.shapes
    classes = sorted({r.label for r in found.records if r.label is not None})
    columns = sorted({name for r in found.records for name in r.params})
    size = max(1, min(SHARD, SHARD_BYTES // (4 * channels * height * width)))
    shards: list[Shard] = []
    with tqdm(total=len(found.records), unit="image", desc="write", disable=None) as bar:
        for split, records in chosen.items():
            order = rng.generator(seed, f"import/order/{split}").permutation(len(records))
            for number, start in enumerate(range(0, len(records), size)):
                part = [records[k] for k in order[start : start + size]]
                images = np.empty((len(part), channels, height, width), dtype=np.float32)
                for image, record in zip(images, part, strict=True):
                    scratch.seek(record.row * image.nbytes)
                    scratch.readinto(image.data)
                shards.append(_write_shard(folder, split, number, images, part, classes, columns))
                bar.update(len(part))
    return Manifest(
        name="",
        image=ImageInfo(channels, height, width),
        classes=classes,
        parameters=[Parameter(name, UNITS.get(name, ""), kind="scalar" if name in UNITS else None) for name in columns],
        splits={name: len(records) for name, records in chosen.items()},
        shards=shards,
        code_version=metadata.version("deeplense"),
    )


def _write_shard(
    folder: Path,
    split: str,
    number: int,
    images: NDArray[np.float32],
    records: Sequence[Record],
    classes: Sequence[str],
    columns: Sequence[str],
) -> Shard:
    labels = np.array([-1 if r.label is None else classes.index(r.label) for r in records], dtype=np.int64)
    params = np.array([[r.params.get(name, np.nan) for name in columns] for r in records], dtype=np.float64)
    return store.write_shard(
        folder, split, number, images, labels, params.reshape(len(records), len(columns)), [r.id for r in records]
    )


def _common_scale(source: Path, found: Reading) -> float | None:
    known = [scale for scale in found.scales if scale is not None]
    if len(known) < len(found.scales):  # of some images it is unknown
        return None
    if max(known) > min(known) * (1 + SAME_SCALE):
        raise UserError(f"{source}: pixel scales from {min(known):g} to {max(known):g} arcsec; give --pixel-scale")
    return float(np.median(known))


def _summary(out: Path, manifest: Manifest, found: Reading, chosen: dict[str, list[Record]]) -> str:
    """A table of images per class and split, then what was skipped and why."""
    counts = {name: Counter(r.label or "(no class)" for r in records) for name, records in chosen.items()}
    rows = manifest.classes or ["(no class)"]
    wide = max(map(len, rows))
    lines = [" " * wide + "".join(f"{name:>9}" for name in counts)]
    lines += [f"{row:<{wide}}" + "".join(f"{count[row]:>9}" for count in counts.values()) for row in rows]
    lines += [f"skipped {told}" for told in _skips(found)]
    lines += [f"{found.nan_images} images have NaN pixels"] * bool(found.nan_images)
    size = f"{manifest.image.channels}x{manifest.image.height}x{manifest.image.width}"
    return "\n".join([*lines, f"wrote {out}: {len(found.records)} images of {size}, {len(manifest.classes)} classes"])


def _skips(found: Reading) -> list[str]:
    ordered = sorted(found.skipped.items(), key=lambda item: (-item[1][0], item[0]))
    return [f"{n} x {reason} (e.g. {example})" for reason, (n, example) in ordered]


def _rank(split: str) -> tuple[int, str]:
    known = ("train", "val", "test")
    return (known.index(split) if split in known else len(known)), split


def _short(id: str) -> str:
    """An id that fits the store: the tail, and a checksum of the whole."""
    if len(id.encode()) <= shards.ID_LENGTH:
        return id
    head = f"{crc32(id.encode()):08x}~"
    return head + id.encode()[-(shards.ID_LENGTH - len(head)) :].decode(errors="ignore")


def _check_free(out: Path) -> None:
    if (out / schema.MANIFEST).exists():
        raise UserError(f"{out}: already exists; choose another --out")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is not an empty folder; choose another --out")


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` only if nothing was raised."""
    place = out.absolute()
    folder = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        _sweep(place)
        folder.mkdir(parents=True)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # without locks, nobody sweeps
                held.enter_context(_locked(folder))
            yield folder
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
        schema.flush(place.parent)
    except OSError as error:
        raise UserError(f"{out}: cannot write ({error.strerror or error}); free some space and run again") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove what imports into the same place had begun when they were killed."""
    begun = [p for p in out.parent.iterdir() if p.name.startswith(f".{out.name}.")] if out.parent.is_dir() else []
    for stale in begun:
        if stale.name.endswith(".tmp") and stale.is_dir():
            with contextlib.suppress(OSError), _locked(stale):
                shutil.rmtree(stale)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder; the lock ends with the process, however it ends.

    Raises:
        OSError: another process holds it, or its file system knows no locks.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _scratch(folder: Path) -> BufferedRandom:
    """A file without a name: gone with the process, however it ends."""
    return tempfile.TemporaryFile(dir=folder)
