"""`import`: a dataset from files in any form in the wild.

One pass reads the source into a nameless scratch file; the images are then dealt out to shards. Classes, splits and
order follow from ids and seed alone: a folder, its zip and its tar give the same dataset.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from io import BufferedRandom
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from deeplense import rng
from deeplense.data import fitting, names, place, reading, schema, shards, store, weights
from deeplense.data import found as found_
from deeplense.data.budget import printable
from deeplense.data.catalogue import Catalogue, beside, match
from deeplense.data.formats import folders
from deeplense.data.reading import Reading, Record
from deeplense.data.schema import Manifest, Parameter, Shard
from deeplense.data.tables import read_table
from deeplense.errors import UserError

SHARD = 1024  # images, fewer where they are large
SHARD_BYTES = 2**28
UNITS = {"log10_m_axion": "log10(eV)"}


def import_dataset(
    source: str | Path,
    out: str | Path,
    classes: str | None = None,
    splits: str | None = None,
    pixel_scale: float | None = None,
    seed: int = 0,
    labels: str | None = None,
    id: str | None = None,
    class_: str | None = None,
    targets: str | None = None,
    pattern: str | None = None,
    bands: str | None = None,
    images: str | None = None,
    label: str | None = None,
    axes: str | None = None,
    size: str | None = None,
    mask: str | None = None,
    noise: str | None = None,
) -> Path:
    """Import images of any form in the wild as a dataset; print what was taken, joined, guessed and left out.

    Args:
        source: a folder, zip, tar or file of images.
        out: the dataset's folder; it must not exist.
        classes: folder names that are classes, "sub,no_sub", or what they mean, "sphere=cdm,vort=axion,no=no_sub"
            (other folders are left out); "none" to import without classes; guessed when not given.
        splits: shares of each class, "train=0.8,test=0.2"; when not given, the folders train, val and test decide
            where there are any, else train=0.8,val=0.1,test=0.1.
        pixel_scale: arcsec, of images that do not say theirs; others are resampled to it.
        seed: of the splits and the order.
        labels: a table (.csv, .tsv, .ecsv, .fits, .parquet) with a row for each image.
        id: its column that names the images; guessed when not given.
        class_: its column of classes; guessed when not given.
        targets: its columns of numbers, "theta_E,z_lens"; all of them when not given.
        pattern: what a file's name says, "{class}_*" or "{class}_{theta_E}".
        bands: names of an object's bands in the order that is wanted, "g,r,i"; "none" to join nothing; guessed from
            the names of files and extensions when not given.
        images: in HDF5, .npz and tables, the arrays that hold images.
        label: in HDF5, .npz and tables, the array of classes.
        axes: what the axes of arrays mean, as NHW, NCHW or NHWC; guessed when not given.
        size: pixels, "64" or "64x80", to which images are cropped or padded; "refuse" to take no images of several
            sizes; when not given, the shorter side of most images where they differ.
        mask: extension, array or file beside each image, "DQ", whose pixels other than 0 are missing.
        noise: likewise a map of the noise, "ERR" or "noise.fits", kept beside the image (`Split.maps`).

    Returns:
        The dataset's folder.

    Raises:
        UserError: nothing readable, no known class, mixed channels or pixel scales, a table or a name that does not
            fit, `out` taken, or a full disk.
    """
    source, out = Path(source), Path(out)
    table = names.read_classes(None if classes is None else printable(classes))
    shares = names.read_shares(splits or names.SHARES)
    if pixel_scale is not None and not 0 < pixel_scale < math.inf:
        raise UserError(f"--pixel-scale {pixel_scale}: it must be positive, in arcsec")
    asked = found_.asked(images, label, bands, axes, mask, noise)
    wanted = fitting.read_size(size)
    expression = names.Pattern(pattern) if pattern is not None else None
    listed = None if targets is None else [name.strip() for name in targets.split(",")]
    if labels is None and (id or class_ or targets):
        raise UserError("--id, --class and --targets name columns of a table; give it with --labels")
    place.check_free(out)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if (source / schema.MANIFEST).is_file():
        raise UserError(f"{source}: is a dataset already; use it as it is")
    with place.folder(out) as folder, _scratch(folder) as scratch:
        found = reading.read(source, asked, table, scratch)
        if not found.records:
            raise UserError(f"{source}: no image could be read ({_why(found)}); see the forms in docs/importing.md")
        _check_beside(source, found, asked)
        ids = [record.id for record in found.records]
        if labels is not None:
            catalogue: Catalogue | None = match(labels, read_table(Path(labels)), ids, id, class_, listed)
        else:
            catalogue = beside(source, ids, {record.file for record in found.records})
        if catalogue is not None:
            found.drop(catalogue.file)
        notes = reading.label(source, found, table, catalogue, expression, labels is not None)
        _check(source, found, table, ids)
        plan = fitting.plan(source, found.records, wanted, pixel_scale, asked.bands)
        chosen = _split(source, found.records, splits is None, shares, seed)
        manifest = _write(folder, scratch, found.records, chosen, seed, plan)
        manifest.name, manifest.source = out.name, printable(str(source))
        manifest.notes = [*_told(found.noted, ""), *notes, *plan.notes, *_told(found.marked, "images ")]
        manifest.notes += [f"skipped {told}" for told in _told(found.skipped, "")]
        manifest.notes = [note[: schema.LONGEST] for note in manifest.notes]
        manifest.seal().write(folder)
    print(_summary(out, manifest, chosen))
    return out


def _why(found: Reading) -> str:
    return "; ".join(_told(found.skipped, "")) or "it is empty"


def _check_beside(source: Path, found: Reading, asked: found_.Asked) -> None:
    """What the user names is there for some image."""
    there = {
        "--mask": (asked.mask, weights.SIDE_BY_SIDE.format(asked.mask) in found.noted),
        "--noise": (asked.noise, any(record.planes for record in found.records)),
    }
    for option, (name, seen) in there.items():
        if name and not seen:
            raise UserError(f"{source}: {option} '{name}': no image has an extension, array or file of this name")


def _check(source: Path, found: Reading, table: dict[str, str] | None, ids: list[str]) -> None:
    missing = sorted(set((table or {}).values()) - {r.label for r in found.records})
    if missing:
        where = Counter(folders(source, id)[-1] for id in ids)
        told = ", ".join(name for name, _ in where.most_common(8))
        raise UserError(f"{source}: no image of --classes {missing[0]} (folders with images: {told})")
    if table and not found.records:
        raise UserError(f"{source}: no image in one of --classes ({_why(found)})")


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
            objects: dict[str, list[Record]] = {}  # the files of one object stay together
            for record in records:
                if (record.label or "") == label:
                    objects.setdefault(record.object, []).append(record)
            same = list(objects.values())
            order = rng.generator(seed, f"import/split/{label}").permutation(len(same))
            edges = np.rint(np.cumsum([0.0, *shares.values()]) * len(same)).astype(int)
            for name, low, high in zip(shares, edges, edges[1:], strict=False):
                chosen.setdefault(name, []).extend(record for k in order[low:high] for record in same[k])
    return {name: chosen[name] for name in sorted(chosen, key=_rank) if chosen[name]}


def _write(
    folder: Path,
    scratch: BufferedRandom,
    records: list[Record],
    chosen: dict[str, list[Record]],
    seed: int,
    plan: fitting.Plan,
) -> Manifest:
    """All shards, in an order that does not give the class away, and their manifest."""
    image = plan.image
    classes = sorted({r.label for r in records if r.label is not None})
    columns = sorted({name for r in records for name in r.params})
    size = max(1, min(SHARD, SHARD_BYTES // (4 * image.channels * image.height * image.width)))
    shards: list[Shard] = []
    with tqdm(total=len(records), unit="image", desc="write", disable=None) as bar:
        for split, listed in chosen.items():
            order = rng.generator(seed, f"import/order/{split}").permutation(len(listed))
            for number, start in enumerate(range(0, len(listed), size)):
                part = [listed[k] for k in order[start : start + size]]
                pixels = [record.pixels(scratch) for record in part]
                fitted = np.stack([plan.fit(r, p[: r.shape[0]]) for r, p in zip(part, pixels, strict=True)])
                maps = [plan.fit_noise(r, p[r.shape[0] :]) for r, p in zip(part, pixels, strict=True) if plan.maps]
                shards.append(_write_shard(folder, split, number, fitted, part, classes, columns, maps))
                bar.update(len(part))
    return Manifest(
        name="",
        image=image,
        classes=classes,
        parameters=[Parameter(name, UNITS.get(name, ""), kind="scalar" if name in UNITS else None) for name in columns],
        splits={name: len(listed) for name, listed in chosen.items()},
        shards=shards,
        code_version=metadata.version("deeplense"),
        maps=plan.maps,
        map_units=[image.unit] * len(plan.maps),
    )


def _write_shard(
    folder: Path,
    split: str,
    number: int,
    images: NDArray[np.float32],
    records: Sequence[Record],
    classes: Sequence[str],
    columns: Sequence[str],
    maps: Sequence[NDArray[np.float32]],
) -> Shard:
    labels = np.array([-1 if r.label is None else classes.index(r.label) for r in records], dtype=np.int64)
    params = np.array([[r.params.get(name, np.nan) for name in columns] for r in records], dtype=np.float64)
    return store.write_shard(
        folder,
        split,
        number,
        images,
        labels,
        params.reshape(len(records), len(columns)),
        [_short(r.id) for r in records],
        maps=np.stack(maps) if maps else None,
    )


def _summary(out: Path, manifest: Manifest, chosen: dict[str, list[Record]]) -> str:
    """A table of images per class and split, then what the manifest notes."""
    counts = {name: Counter(r.label or "(no class)" for r in records) for name, records in chosen.items()}
    rows = [*manifest.classes, *["(no class)"] * any("(no class)" in count for count in counts.values())]
    wide = max(map(len, rows))
    lines = [" " * wide + "".join(f"{name:>9}" for name in counts)]
    lines += [f"{row:<{wide}}" + "".join(f"{count[row]:>9}" for count in counts.values()) for row in rows]
    size = f"{manifest.image.channels}x{manifest.image.height}x{manifest.image.width}"
    n = sum(manifest.splits.values())
    return "\n".join([*lines, *manifest.notes, f"wrote {out}: {n} images of {size}, {len(manifest.classes)} classes"])


def _told(counted: dict[str, tuple[int, str]], what: str) -> list[str]:
    """Most frequent first, each with an example."""
    ordered = sorted(counted.items(), key=lambda item: (-item[1][0], item[0]))
    return [f"{n} {what or 'x '}{told} (e.g. {example})" for told, (n, example) in ordered]


def _rank(split: str) -> tuple[int, str]:
    known = ("train", "val", "test")
    return (known.index(split) if split in known else len(known)), split


def _short(id: str) -> str:
    """An id that fits the store: the tail, and a checksum of the whole."""
    if len(id.encode()) <= shards.ID_LENGTH:
        return id
    head = f"{crc32(id.encode()):08x}~"
    return head + id.encode()[-(shards.ID_LENGTH - len(head)) :].decode(errors="ignore")


def _scratch(folder: Path) -> BufferedRandom:
    """A file without a name: gone with the process, however it ends."""
    return tempfile.TemporaryFile(dir=folder)
