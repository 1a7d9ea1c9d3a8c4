"""The data contract: what `dataset.json` says, and how it is read. `docs/data_format.md` is its specification."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deeplense import config, trees
from deeplense.data.budget import MOST_VALUES, printable
from deeplense.errors import UserError, brief

if TYPE_CHECKING:  # a manifest can be read without torch
    from torch import Tensor

SCHEMA_VERSION = 2
READABLE = (1, 2)  # version 1 has no checksum of the manifest itself
MANIFEST = "dataset.json"
LARGEST_MANIFEST = 2**26  # bytes
MOST = 2**22  # values in it: of a million shards
LONGEST = 4096  # letters of a name


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


_CHECKSUM = '"checksum": "{}"'  # as `json.dumps` writes it


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
    notes: list[str] = field(default_factory=list)  # of an import: what was joined, guessed, changed and left out
    halo_columns: list[str] = field(default_factory=list)  # of the shards' table of halos; empty: they have none
    maps: list[str] = field(default_factory=list)  # planes of the shards' truth maps; empty: they have none
    map_units: list[str] = field(default_factory=list)  # of each
    checksum: str = ""  # of the file `dataset.json` itself
    schema_version: int = SCHEMA_VERSION

    def seal(self) -> Manifest:
        """Compute the fingerprint: SHA-256 over shards, splits, classes, parameters and the meaning of the pixels.

        It names the data, not the file: the same images from another place, or under another name, have the same.
        """
        self.fingerprint, self.schema_version = self._fingerprint(), SCHEMA_VERSION
        return self

    def _fingerprint(self) -> str:
        content = [
            [[s.file, s.split, s.n, s.sha256] for s in self.shards],
            self.splits,
            self.classes,
            [[p.name, p.unit, p.prior] for p in self.parameters],
            dataclasses.astuple(self.image),
            *([self.halo_columns] if self.halo_columns else []),
            *([self.maps, self.map_units] if self.maps else []),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `dataset.json` atomically, with its checksum; it is the last file of a dataset to appear.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        self.name, self.checksum = printable(self.name), ""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        self.checksum = hashlib.sha256(text.encode()).hexdigest()
        text = text.replace(_CHECKSUM.format(""), _CHECKSUM.format(self.checksum))
        try:
            with atomic(folder / MANIFEST) as temporary:
                temporary.write_text(text)
        except OSError as error:
            raise UserError(
                f"{folder / MANIFEST}: cannot write ({error.strerror}); free some space and run again"
            ) from error

    def check_seal(self, folder: Path) -> None:
        """Compare the manifest, as it was read from `folder`, with fingerprint and checksum.

        Raises:
            UserError: any byte of `dataset.json` has changed since it was written; of a dataset of version 1, any
                value that tells what its data are.
        """
        path = folder / MANIFEST
        if self.fingerprint != self._fingerprint():
            raise UserError(f"{path}: fingerprint does not fit its content; it was edited by hand, or is damaged")
        left, right = (_CHECKSUM.format(c).encode() for c in (self.checksum, ""))
        whole = path.read_bytes().replace(left, right)
        if self.schema_version > 1 and self.checksum != hashlib.sha256(whole).hexdigest():
            raise UserError(f"{path}: checksum does not fit its content; it was edited by hand, or is damaged")

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
    """From a bundle.

    Raises:
        UserError: sides that no image has.
    """
    info = config.build(ImageInfo, tree, "image")
    check_image(info)
    return info


def check_image(image: ImageInfo) -> None:
    """Raises: UserError: sides that no image has."""
    shape = (image.channels, image.height, image.width)
    if min(shape) < 1 or math.prod(shape) > MOST_VALUES:
        raise UserError(f"an image of {' x '.join(map(str, shape))} pixels; give one of 1 to {MOST_VALUES}")


class atomic:
    """`with atomic(path) as temporary:` write to `temporary`; it becomes `path` only if nothing was raised.

    What has become `path` outlives a power cut, and has the mode of any new file, whatever the writer gave it.
    """

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
                _publish(self.temporary)
                flush(self.temporary)
                os.replace(self.temporary, self.path)
                flush(self.path.parent)
        finally:
            self.temporary.unlink(missing_ok=True)


def _publish(path: Path) -> None:
    """Give a file that its writer made private, as temporary files are, the mode of an ordinary one."""
    if path.stat().st_mode & 0o077 == 0:
        mask = os.umask(0o077)  # it can be read only by setting it
        os.umask(mask)
        path.chmod(0o666 & ~mask)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:
        if not path.is_dir():  # some file systems flush no folder
            raise
    finally:
        os.close(opened)


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
        if path.stat().st_size > LARGEST_MANIFEST:
            raise UserError(f"{path}: larger than {LARGEST_MANIFEST} bytes; the dataset must be made again")
        tree = trees.read_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); change its permissions") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not valid JSON ({why}); the dataset must be made again") from error
    version = tree.get("schema_version") if isinstance(tree, dict) else SCHEMA_VERSION
    if type(version) is not int or version not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise UserError(f"{path}: schema version {brief(version)}, this code reads {known}; make the dataset again")
    try:
        manifest = config.build(Manifest, tree, "manifest", MOST)
        _check(manifest)
    except UserError as error:
        raise UserError(f"{path}: not a dataset manifest ({error}); copy it again or make the dataset again") from error
    return manifest


def _check(manifest: Manifest) -> None:
    """What types do not say."""

    def demand(holds: bool, what: str) -> None:
        if not holds:
            raise UserError(what)

    image, shards, splits = manifest.image, manifest.shards, manifest.splits
    for where, text in _texts(manifest):
        demand(text.isprintable() and len(text) <= LONGEST, f"{where} is {brief(text)}, but should be printable text")
    check_image(image)
    demand(image.pixel_scale is None or image.pixel_scale > 0, f"image.pixel_scale is {image.pixel_scale}")
    demand(len(image.bands) in (0, image.channels), f"image.bands are {len(image.bands)}, channels {image.channels}")
    for key, names in (
        ("classes", manifest.classes),
        ("parameters", [p.name for p in manifest.parameters]),
        ("halo_columns", manifest.halo_columns),
        ("shards", [s.file for s in shards]),
    ):
        demand(len(set(names)) == len(names), f"{key} has a name twice")
        demand("" not in names, f"{key} has an empty name")
    demand(bool(splits), "it has no split")
    for k, shard in enumerate(shards):
        plain = not set(shard.file) & set("/\\:") and not shard.file.startswith(".")
        demand(plain, f"shards[{k}].file is {brief(shard.file)}, but should be the name of a file beside it")
        demand(shard.n >= 1, f"shards[{k}].n is {shard.n}")
        demand(shard.split in splits, f"shards[{k}].split is {brief(shard.split)}, which splits does not name")
    for name, n in splits.items():
        listed = sum(s.n for s in shards if s.split == name)
        told = brief(name)
        demand(name.isprintable() and name != "", f"splits has the name {told}")
        demand(n >= 1 and n == listed, f"split {told} should hold {n} images, its shards list {listed}")
    demand(manifest.schema_version > 1 or not manifest.checksum, "checksum in a manifest of version 1")


def _texts(thing: Any, where: str = "manifest") -> Iterator[tuple[str, str]]:
    """Every text of a manifest but those of recipe and priors, which are free: one that cannot be printed would break
    the one line of a message, or a terminal."""
    if isinstance(thing, str):
        yield where, thing
    elif dataclasses.is_dataclass(thing):
        for f in dataclasses.fields(thing):
            if f.name not in ("recipe", "prior"):
                yield from _texts(getattr(thing, f.name), f"{where}.{f.name}")
    elif isinstance(thing, list | dict):
        for key, value in enumerate(thing) if isinstance(thing, list) else thing.items():
            yield from _texts(value, f"{where}.{brief(key)}")
