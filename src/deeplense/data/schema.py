"""The data contract: what `dataset.json` says, and the validator. `docs/data_format.md` is its specification."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from deeplense import config, trees
from deeplense.errors import UserError

SCHEMA_VERSION = 1
MANIFEST = "dataset.json"
LARGEST = 2**26  # pixels of an image, all channels


class Batch(NamedTuple):
    """All that passes from data to training."""

    image: Tensor  # (B, C, H, W) float32, raw pixels in the dataset's unit
    label: Tensor  # (B,) int64, index into the manifest's classes; -1 where there is none
    params: Tensor  # (B, P) float32, a column for each of the manifest's parameters; NaN where it does not apply
    id: Tensor  # (B,) int64, position in the split


@dataclass
class ImageInfo:
    """Shape and meaning of the pixels."""

    channels: int
    height: int
    width: int
    pixel_scale: float | None = None  # arcsec
    unit: str = "unknown"
    bands: list[str] = field(default_factory=list)


@dataclass
class Parameter:
    """A column of `params`."""

    name: str
    unit: str = ""
    prior: Any = None  # a number or {kind: [...]}, as in the recipe; None when unknown
    kind: str | None = None  # how it turns with the image: scalar, x, y, angle, spin2; None when unknown
    pair: list[str] = field(default_factory=list)  # of x, y, spin2: the names of both components, in order
    period: float | None = None  # of an angle, rad


@dataclass
class Shard:
    """One HDF5 file of one split."""

    file: str
    split: str
    n: int
    sha256: str


@dataclass
class Manifest:
    """`dataset.json`, typed."""

    name: str
    image: ImageInfo
    classes: list[str]
    parameters: list[Parameter]
    splits: dict[str, int]
    shards: list[Shard]
    recipe: dict[str, Any] | None = None  # resolved, for simulated data
    code_version: str = ""
    fingerprint: str = ""
    source: str = ""  # where imported data came from
    halo_columns: list[str] = field(default_factory=list)  # of the shards' table of halos; empty: they have none
    schema_version: int = SCHEMA_VERSION

    def seal(self) -> Manifest:
        """Compute the fingerprint: SHA-256 over shards, splits, classes, parameters and the meaning of the pixels."""
        content = [
            [dataclasses.astuple(s) for s in self.shards],
            self.splits,
            self.classes,
            [dataclasses.astuple(p) for p in self.parameters],
            dataclasses.astuple(self.image),
            *([self.halo_columns] if self.halo_columns else []),
        ]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return self

    def write(self, folder: Path) -> None:
        """Write `dataset.json` atomically; it is the last file of a dataset to appear.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=1)
        try:
            with atomic(folder / MANIFEST) as temporary, open(temporary, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{folder / MANIFEST}: cannot write ({error.strerror}); free some space and run again"
            ) from error

    def parameter(self, name: str) -> int:
        """Column of a parameter.

        Raises:
            UserError: the dataset has no such parameter.
        """
        names = [p.name for p in self.parameters]
        if name not in names:
            raise UserError(f"dataset '{self.name}' has no parameter '{name}'; {config.nearest(name, names)}")
        return names.index(name)


def image_info(tree: Any) -> ImageInfo:
    """From a manifest or a bundle.

    Raises:
        UserError: sides that no image has.
    """
    info = ImageInfo(**tree)
    sides = (info.channels, info.height, info.width)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sides) or math.prod(sides) > LARGEST:
        raise UserError(f"images of {' x '.join(map(str, sides))} pixels; an image has 1 to {LARGEST}")
    return info


class atomic:
    """`with atomic(path) as temporary:` write to `temporary`; it becomes `path` only if nothing was raised."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # the suffix stays last, because writers choose a format by it; machines that share a disk may share a number
        unique = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.temporary = self.path.with_name(f".{self.path.stem}.{unique}.tmp{self.path.suffix}")

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check `dataset.json`.

    Raises:
        UserError: no dataset there, an unfinished one, broken JSON, or another schema version.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        if folder.is_dir() and any(folder.glob("*.h5")):
            raise UserError(f"{folder}: an unfinished dataset (no {MANIFEST}); run the same command again to finish it")
        raise UserError(f"{folder}: no dataset here ({MANIFEST} is missing)")
    try:
        tree = trees.read_json(path.read_text(), str(path))
        version = tree.get("schema_version")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); the dataset must be made again") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version}, this code reads {SCHEMA_VERSION}; make the dataset again")
    try:
        return Manifest(
            image=image_info(tree.pop("image")),
            parameters=[Parameter(**p) for p in tree.pop("parameters")],
            shards=[Shard(**s) for s in tree.pop("shards")],
            **tree,
        )
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: not a dataset manifest ({error})") from error
