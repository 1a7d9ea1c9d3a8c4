"""`export-dataset`: a dataset out into layouts that others read, and that `import` reads back."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from deeplense import config
from deeplense.data import place
from deeplense.data.schema import ImageInfo, Manifest
from deeplense.data.store import Dataset
from deeplense.errors import UserError

TABLE = "labels.csv"
SHARD = 1024  # images in a tar
TOGETHER = 2**22  # pixels that are read at once

Row = dict[str, str | float]


class Item(NamedTuple):
    """An image (C, H, W) with what is known of it; `number` counts within its split."""

    number: int
    id: str
    image: NDArray[np.float32]
    label: str | None
    params: dict[str, float]


def export_dataset(dataset: str | Path, out: str | Path, layout: str = "folders", split: str | None = None) -> Path:
    """Write a dataset in a layout that other programs read.

    Args:
        dataset: its folder.
        out: a folder that must not exist.
        layout: "folders" (`split/class/000000.npy`), "fits" (the same, a FITS file each), both with `labels.csv`;
            "hdf5" (a file a split, each column an array); or "webdataset" (tars of `.npy`, `.cls` and `.json`).
        split: the one to write; all of them when not given.

    Returns:
        The folder.

    Raises:
        UserError: no such dataset, split or layout, `out` taken, or a full disk.
    """
    write = config.lookup(LAYOUTS, layout, "layout")
    opened, out = Dataset(dataset), Path(out)
    place.check_free(out)
    splits = list(opened.manifest.splits) if split is None else [split]
    n = 0
    with place.folder(out) as folder:
        rows: list[Row] = []
        for name in splits:
            items = iter(tqdm(_items(opened, name), unit="image", desc=f"write {name}", disable=None))
            rows += write(folder, name, opened.manifest, items)
            n += len(opened.split(name).ids)
        if rows:
            _table(folder / TABLE, rows, opened.manifest)
    print(f"wrote {out}: {n} images in layout '{layout}'")
    return out


def _items(dataset: Dataset, name: str) -> Iterator[Item]:
    split, info = dataset.split(name), dataset.manifest.image
    classes = [*dataset.manifest.classes, None]  # unlabelled is -1, the last
    columns = [p.name for p in dataset.manifest.parameters]
    step = max(1, TOGETHER // (info.channels * info.height * info.width))
    for start in range(0, len(split.ids), step):
        numbers = np.arange(start, min(start + step, len(split.ids)))
        for k, image in zip(numbers.tolist(), split.images(numbers).numpy(), strict=True):
            params = {c: float(v) for c, v in zip(columns, split.params[k], strict=True) if math.isfinite(v)}
            yield Item(k, split.ids[k], image, classes[split.labels[k]], params)


def _folders(folder: Path, split: str, manifest: Manifest, items: Iterator[Item]) -> list[Row]:
    rows = []
    for item in items:
        path, row = _file(folder, split, item, ".npy")
        np.save(path, item.image)
        rows.append(row)
    return rows


def _fits(folder: Path, split: str, manifest: Manifest, items: Iterator[Item]) -> list[Row]:
    rows = []
    for item in items:
        path, row = _file(folder, split, item, ".fits")
        _write_fits(path, item, manifest.image)
        rows.append(row)
    return rows


def _file(folder: Path, split: str, item: Item, suffix: str) -> tuple[Path, Row]:
    """Where an image goes, and its row of the table."""
    name = "/".join([split, *([_safe(item.label)] if item.label is not None else []), f"{item.number:06}{suffix}"])
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return folder / name, {"file": name, "original": item.id, "split": split, "class": item.label or "", **item.params}


def _safe(label: str | None) -> str:
    if not label or label.startswith(".") or set(label) & set("/\\\0"):
        raise UserError(f"a class called '{label}' cannot be a folder; use --layout hdf5 or webdataset")
    return label


def _write_fits(path: Path, item: Item, info: ImageInfo) -> None:
    """Bands in extensions of their names; a cube where they have none."""
    from astropy.io import fits

    header = fits.Header()
    if info.pixel_scale:
        for axis in (1, 2):
            header[f"CDELT{axis}"], header[f"CUNIT{axis}"] = info.pixel_scale / 3600, "deg"
    if info.unit != "unknown" and info.unit.isascii():
        header["BUNIT"] = info.unit
    if len(set(info.bands)) == len(item.image) > 1:
        planes = [fits.ImageHDU(p, header, name=b) for p, b in zip(item.image, info.bands, strict=True)]
        hdus = [fits.PrimaryHDU(), *planes]
    else:
        hdus = [fits.PrimaryHDU(item.image[0] if len(item.image) == 1 else item.image, header)]
    fits.HDUList(hdus).writeto(path)


def _hdf5(folder: Path, split: str, manifest: Manifest, items: Iterator[Item]) -> list[Row]:
    import h5py

    n, info = manifest.splits[split], manifest.image
    labels, ids = [], []
    params: dict[str, NDArray[np.float64]] = {p.name: np.full(n, np.nan) for p in manifest.parameters}
    with h5py.File(folder / f"{split}.h5", "w") as file:
        images = file.create_dataset("images", (n, info.channels, info.height, info.width), "f4")
        images.attrs["unit"], images.attrs["bands"] = info.unit, json.dumps(info.bands)
        for item in items:
            images[item.number] = item.image
            labels.append(item.label or "")
            ids.append(item.id)
            for name, value in item.params.items():
                params[name][item.number] = value
        file["id"] = ids
        if manifest.classes:
            file["label"] = labels
        if info.pixel_scale:
            file["pixel_scale"] = np.full(n, info.pixel_scale)
        for name, values in params.items():
            file[name.replace("/", "_")] = values
    return []


def _webdataset(folder: Path, split: str, manifest: Manifest, items: Iterator[Item]) -> list[Row]:
    for number in range(-(-manifest.splits[split] // SHARD)):
        with tarfile.open(folder / f"{split}-{number:06}.tar", "w") as archive:
            for item in itertools.islice(items, SHARD):
                for suffix, content in _sample(item, manifest.image).items():
                    info = tarfile.TarInfo(f"{split}/{item.number:06}{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return []


def _sample(item: Item, info: ImageInfo) -> dict[str, bytes]:
    about: Row = {"id": item.id, **item.params}
    if info.pixel_scale:
        about["pixel_scale"] = info.pixel_scale
    file = io.BytesIO()
    np.save(file, item.image)
    files = {".npy": file.getvalue(), ".json": json.dumps(about).encode()}
    return files | ({".cls": item.label.encode()} if item.label is not None else {})


def _table(path: Path, rows: list[Row], manifest: Manifest) -> None:
    columns = ["file", "original", "split", "class", *(p.name for p in manifest.parameters)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


Layout = Callable[[Path, str, Manifest, Iterator[Item]], list[Row]]

LAYOUTS: dict[str, Layout] = {"folders": _folders, "fits": _fits, "hdf5": _hdf5, "webdataset": _webdataset}
