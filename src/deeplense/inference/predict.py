"""Predict on files, folders, archives and datasets: a table with a row for every image."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from deeplense.answers import Prediction
from deeplense.data.adapt import adapt, in_bands
from deeplense.data.formats import read_images
from deeplense.data.found import Asked, Foreign, Skipped, asked
from deeplense.data.schema import ImageInfo
from deeplense.errors import UserError
from deeplense.inference.table import check_format, write_table


def predict(
    bundle: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    device: str = "auto",
    batch_size: int = 64,
    pixel_scale: float | None = None,
    split: str | None = None,
    bands: str | None = None,
    images: str | None = None,
    axes: str | None = None,
) -> Path:
    """Predict on images of any form and write a table; returns its path.

    Columns: `id`, `file`; then `class` and `p_<class>` for each class, or `mean`, `scale`, `q05`, `q95`, or both;
    `entropy` [nat] (of a number: of the Normal with that scale); `warning`, empty when all is well. Where there are
    several numbers, their columns end in `_<name>`; entropies do where there are several answers.
    One batch of images is in memory at a time. What cannot be used is skipped, and listed at the end.

    Args:
        bundle: a bundle's file, or an `.onnx` that `export` wrote.
        inputs: files, folders, zips, tars, datasets.
        out: the table; its extension chooses the format: .csv, .parquet, .ecsv or .fits.
        pixel_scale: arcsec, of images that do not say theirs.
        split: of inputs that are datasets, the one to predict on; all of them when not given.
        bands: names of an object's bands in the bundle's order, "g,r,i"; "none" to join nothing; when not given, those
            of the bundle, else found from the names of files and extensions.
        images: in HDF5, .npz and tables, the arrays that hold images.
        axes: what the axes of arrays mean, as NHW, NCHW or NHWC; guessed when not given.

    Raises:
        UserError: no such bundle or input, an unknown extension, no image that can be used, or a network that gives
            a finite number for none.
    """
    out = Path(out)
    check_format(out)
    if pixel_scale is not None and not 0 < pixel_scale < math.inf:
        raise UserError(f"--pixel-scale {pixel_scale}: it must be positive, in arcsec")
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: it must be at least 1")
    if not inputs:
        raise UserError("nothing to predict on; name files, folders, archives or datasets")
    for source in inputs:
        if not Path(source).exists():
            raise UserError(f"{source}: no such file or folder")
    said = dataclasses.replace(asked(images, bands=bands, axes=axes), label=None)
    one = _open(Path(bundle), device)
    skipped: dict[str, list[str]] = defaultdict(list)
    rows = _Rows(one)
    noted: dict[str, list[str]] = defaultdict(list)
    usable = _usable(one, inputs, pixel_scale, split, said, skipped, noted)
    with tqdm(desc="predict", unit="image", disable=None) as bar:
        while batch := list(itertools.islice(usable, batch_size)):
            rows.add(batch)
            bar.update(len(batch))
    if not rows.n:
        raise UserError(f"no image in {', '.join(map(str, inputs))} can be used: {_tell(skipped) or 'none found'}")
    if rows.lost == rows.n:
        raise UserError(f"{bundle}: gives no finite number for any of {rows.n} images; train or export it again")
    write_table(out, rows.columns(), {"BUNDLE": str(bundle), "DATAHASH": one.fingerprint[:16]})
    if noted:
        print(_tell(noted))
    if skipped:
        print(f"skipped {sum(map(len, skipped.values()))} of the inputs: {_tell(skipped)}")
    print(f"wrote {out}: {rows.n} images")
    return out


UNFAMILIAR = "unlike the training images: the prediction means nothing"
LOST = "the network gives no finite number: the prediction means nothing"

Item = tuple[Foreign, NDArray[np.float32], list[str]]


class Predictor(Protocol):
    """A bundle, by whichever library it computes."""

    image: ImageInfo
    fingerprint: str

    def predict(self, images: NDArray[np.float32]) -> Prediction:
        """What it says of raw images (N, C, H, W)."""


class _Rows:
    """The table as it grows, in pieces that take little memory.

    Attributes:
        n: how many rows. lost: of these, without a finite prediction.
    """

    def __init__(self, one: Predictor) -> None:
        self.bundle, self.n, self.lost = one, 0, 0
        self._pieces: dict[str, list[Any]] = {"id": [], "file": []}

    def add(self, batch: list[Item]) -> None:
        with np.errstate(all="ignore"):  # of what is no number
            prediction = self.bundle.predict(np.stack([image for _, image, _ in batch]))
            said = prediction.columns()
        assert prediction.distance is not None
        numbers = [prediction.distance, *(v for v in said.values() if isinstance(v, np.ndarray))]
        finite: NDArray[np.bool_] = np.isfinite(np.stack(numbers)).all(axis=0)
        marks: dict[str, NDArray[np.bool_]] = {LOST: ~finite, UNFAMILIAR: prediction.distance > 1}
        said["id"], said["file"] = ([getattr(foreign, k) for foreign, _, _ in batch] for k in ("id", "file"))
        said["warning"] = [
            sys.intern("; ".join([*warnings, *(text for text, marked in marks.items() if marked[k])]))  # mostly alike
            for k, (_, _, warnings) in enumerate(batch)
        ]
        for name, values in said.items():
            self._pieces.setdefault(name, []).append(values)
        self.n += len(batch)
        self.lost += int((~finite).sum())

    def columns(self) -> dict[str, Any]:
        """Text in lists, numbers in arrays."""
        return {
            name: np.concatenate(pieces) if isinstance(pieces[0], np.ndarray) else list(itertools.chain(*pieces))
            for name, pieces in self._pieces.items()
        }


def _open(path: Path, device: str) -> Predictor:
    """Each imports its own library, and torch takes longer to start than ONNX Runtime does to predict."""
    if path.suffix.lower() == ".onnx":
        from deeplense.inference.runtime import OnnxBundle

        return OnnxBundle(path)
    from deeplense.bundle import load

    return load(path, device)


def _usable(
    one: Predictor,
    inputs: Iterable[str | Path],
    pixel_scale: float | None,
    split: str | None,
    said: Asked,
    skipped: dict[str, list[str]],
    noted: dict[str, list[str]],
) -> Iterator[Item]:
    seen: set[str] = set()
    for source in inputs:
        name = Path(source).resolve().name
        for found in read_images(source, split, said):
            if isinstance(found, Skipped):
                skipped[found.reason].append(found.file)
                continue
            scale = found.pixel_scale if found.pixel_scale is not None else pixel_scale
            try:
                taken, told = in_bands(found.image, found.bands, one.image)
                image, warnings = adapt(taken, scale, one.image)
            except UserError as error:
                skipped[str(error)].append(found.file)
                continue
            warnings += told
            for note in found.notes:
                noted[note].append(found.file)
            found.id = _unique(found.id, name, seen)
            yield found, image, warnings


def _unique(id: str, source: str, seen: set[str]) -> str:
    """Ids are unique within a source; that of another source gets its name in front."""
    name = id if id not in seen else f"{source}/{id}"
    k = 1
    while name in seen:
        k += 1
        name = f"{source}-{k}/{id}"
    seen.add(name)
    return name


def _tell(skipped: dict[str, list[str]]) -> str:
    """Reasons, most frequent first, each with an example."""
    ordered = sorted(skipped.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{len(files)} x {reason} (e.g. {files[0]})" for reason, files in ordered)
