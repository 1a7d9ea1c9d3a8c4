"""The store: HDF5 shards that any astronomer opens, read at memory-map speed.

Images are contiguous and uncompressed, so a shard's images are one memory map at the dataset's offset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense.allocator import keep_freed_memory
from deeplense.data import schema
from deeplense.data.schema import Batch, Manifest, Shard
from deeplense.errors import UserError

ID_LENGTH = 120  # bytes


def write_shard(
    folder: Path,
    split: str,
    number: int,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    params: NDArray[np.float64],
    ids: Iterable[str],
) -> Shard:
    """Write `SPLIT-00000.h5` whole or not at all, flushed and checksummed.

    Args:
        images: (N, C, H, W). labels: (N,). params: (N, P), NaN where a parameter does not apply. ids: N strings.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = folder / f"{split}-{number:05d}.h5"
    names = np.array([i.encode()[-ID_LENGTH:] for i in ids], dtype=f"S{ID_LENGTH}")
    # made in memory first: on a full disk HDF5 may close a cut file without an error
    with h5py.File(
        path.name, "w", libver="latest", driver="core", backing_store=False, block_size=images.nbytes + (1 << 16)
    ) as file:
        file.create_dataset("image", data=np.ascontiguousarray(images, dtype=np.float32), track_times=False)
        file.create_dataset("label", data=labels.astype(np.int64), track_times=False)
        file.create_dataset("params", data=params.astype(np.float64), track_times=False)
        file.create_dataset("id", data=names, track_times=False)
        file.flush()
        content = file.id.get_file_image()
    try:
        with schema.atomic(path) as temporary, open(temporary, "wb") as written:
            written.write(content)
            written.flush()
            os.fsync(written.fileno())
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror}); free some space and run again") from error
    return Shard(path.name, split, len(labels), schema.sha256(path))


class Split:
    """One split of a dataset, in memory but for its images, which stay on disk.

    Attributes:
        labels: (N,) int64. params: (N, P) float64. ids: list of N strings.
    """

    def __init__(self, folder: Path, name: str, manifest: Manifest) -> None:
        self.name, self.manifest = name, manifest
        shards = [s for s in manifest.shards if s.split == name]
        if not shards:
            raise UserError(f"{folder}: no split '{name}' (it has: {', '.join(manifest.splits)})")
        opened = [_open_shard(folder / s.file, s, manifest) for s in shards]
        self._images = [o[0] for o in opened]
        self.labels: NDArray[np.int64] = np.concatenate([o[1] for o in opened])
        self.params: NDArray[np.float64] = np.concatenate([o[2] for o in opened])
        self.ids: list[str] = [i.decode() for o in opened for i in o[3]]
        self._starts = np.cumsum([0] + [len(o[1]) for o in opened])
        keep_freed_memory()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: NDArray[np.int64]) -> Tensor:
        """(len(index), C, H, W) float32, in the order asked for."""
        if len(self._images) == 1:
            return self._images[0].index_select(0, torch.from_numpy(index))
        out = torch.empty((len(index), *self._images[0].shape[1:]))
        shard = np.searchsorted(self._starts, index, side="right") - 1
        for s in np.unique(shard):
            here = np.flatnonzero(shard == s)
            rows = torch.from_numpy(index[here] - self._starts[s])
            out[torch.from_numpy(here)] = self._images[s].index_select(0, rows)
        return out

    def batch(self, index: NDArray[np.int64], target: int | None = None) -> Batch:
        """The images at `index` as a `Batch`; `target` is a column of `params`."""
        values = self.params[index, target] if target is not None else np.full(len(index), np.nan)
        return Batch(
            self.images(index),
            torch.from_numpy(self.labels[index]),
            torch.from_numpy(values.astype(np.float32)),
            torch.from_numpy(np.asarray(index, dtype=np.int64)),
        )


class Dataset:
    """A stored dataset.

    Raises:
        UserError: no dataset there, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = schema.read_manifest(folder)

    def split(self, name: str) -> Split:
        return Split(self.folder, name, self.manifest)

    def locate(self, id: str) -> tuple[Split, int]:
        """The split and position of an image.

        Raises:
            UserError: no such id.
        """
        for name in self.manifest.splits:
            split = self.split(name)
            if id in split.ids:
                return split, split.ids.index(id)
        first = self.split(next(iter(self.manifest.splits))).ids[0]
        raise UserError(f"{self.folder}: no image with id '{id}' (the first one is '{first}')")


def validate(folder: str | Path, checksums: bool = False) -> Manifest:
    """Check a dataset against `docs/data_format.md`; with `checksums`, every byte.

    Raises:
        UserError: naming the first thing that is wrong.
    """
    folder = Path(folder)
    manifest = schema.read_manifest(folder)
    for name, n in manifest.splits.items():
        found = sum(s.n for s in manifest.shards if s.split == name)
        if found != n:
            raise UserError(f"{folder}: split '{name}' should hold {n} images, its shards list {found}")
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file():
            raise UserError(f"{path}: missing; copy it again or make the dataset again")
        if checksums and schema.sha256(path) != shard.sha256:
            raise UserError(f"{path}: its bytes have changed since it was written; copy it again or make it again")
        _, labels, _, _ = _open_shard(path, shard, manifest)
        if len(labels) and not (labels.min() >= -1 and labels.max() < len(manifest.classes)):
            raise UserError(f"{path}: labels outside the {len(manifest.classes)} classes of the manifest")
    sealed = manifest.fingerprint
    if manifest.seal().fingerprint != sealed:
        raise UserError(f"{folder / schema.MANIFEST}: fingerprint does not fit its content; it was edited by hand")
    return manifest


def _open_shard(
    path: Path, shard: Shard, manifest: Manifest
) -> tuple[Tensor, NDArray[np.int64], NDArray[np.float64], NDArray[np.bytes_]]:
    info = manifest.image
    shape = (shard.n, info.channels, info.height, info.width)
    try:
        with h5py.File(path, "r") as file:
            image = file["image"]
            offset = image.id.get_offset()
            if image.shape != shape or image.dtype != np.float32 or offset is None:
                raise UserError(f"{path}: images are {image.shape} {image.dtype}, the manifest says {shape} float32")
            labels, params, ids = file["label"][:], file["params"][:], file["id"][:]
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: not a readable shard ({error}); copy it again or make it again") from error
    if params.shape != (shard.n, len(manifest.parameters)) or len(ids) != shard.n or len(labels) != shard.n:
        raise UserError(f"{path}: columns do not fit the manifest; make the dataset again")
    # copy-on-write keeps torch content with a map that can never change the file
    images = torch.from_numpy(np.memmap(path, np.float32, "c", offset, shape))
    return images, labels, params, ids
