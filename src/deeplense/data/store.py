"""The store: HDF5 shards that any astronomer opens, read at memory-map speed.

Images are contiguous and uncompressed, so a shard's images are one memory map at the dataset's offset.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense.allocator import keep_freed_memory
from deeplense.data import schema
from deeplense.data.prefetch import Prefetch
from deeplense.data.schema import Batch, Manifest, Shard
from deeplense.data.shards import (
    ID_LENGTH,
    check_halos,
    check_maps,
    read_halos,
    read_maps,
    read_shard,
    split_shards,
)
from deeplense.errors import UserError
from deeplense.sim.observe import HaloTable
from deeplense.sim.substructure import HALO_COLUMNS, HALO_UNITS


def write_shard(
    folder: Path,
    split: str,
    number: int,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    params: NDArray[np.float64],
    ids: Iterable[str],
    halos: HaloTable | None = None,
    maps: NDArray[np.float32] | None = None,
) -> Shard:
    """Write `SPLIT-00000.h5` whole or not at all, flushed and checksummed.

    Args:
        images: (N, C, H, W). labels: (N,). params: (N, P), NaN where a parameter does not apply. ids: N strings.
        halos: of the N images; None writes no table. maps: (N, K, H, W) truths; None writes none.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = folder / f"{split}-{number:05d}.h5"
    # cut to the end of a path, and never through a letter
    cut = (i.encode()[-ID_LENGTH:].decode(errors="ignore").encode() for i in ids)
    names = np.array(list(cut), dtype=f"S{ID_LENGTH}")
    tables = {"label": labels.astype(np.int64), "params": params.astype(np.float64), "id": names}
    if halos is not None:
        tables |= {"halo": halos.rows, "halo_start": halos.start}
    if maps is not None:
        tables |= {"map": np.ascontiguousarray(maps, dtype=np.float32)}
    pixels = np.ascontiguousarray(images, dtype=np.float32)
    content, offset = _around(path.name, pixels.shape, tables)
    digest = hashlib.sha256()
    try:
        with schema.atomic(path) as temporary, open(temporary, "wb") as written:
            for part in (content[:offset], pixels.data.cast("B"), content[offset + pixels.nbytes :]):
                written.write(part)
                digest.update(part)
    except OSError as error:
        raise UserError(f"{path}: cannot write ({error.strerror}); free some space and run again") from error
    return Shard(path.name, split, len(labels), digest.hexdigest())


def _around(name: str, shape: tuple[int, ...], tables: dict[str, NDArray[Any]]) -> tuple[memoryview, int]:
    """The bytes of a shard whose images are still to come, and their place.

    Made in memory, because on a full disk HDF5 ends the process or closes a cut file; without the images, because it
    would copy them twice.
    """
    room = 4 * math.prod(shape) + sum(table.nbytes for table in tables.values()) + (1 << 16)
    with h5py.File(name, "w", libver="latest", driver="core", backing_store=False, block_size=room) as file:
        for key, table in tables.items():
            made = file.create_dataset(key, data=table, track_times=False)
            if key == "halo":
                made.attrs["columns"] = np.array([name.encode() for name in HALO_COLUMNS])
                made.attrs["units"] = np.array([HALO_UNITS.get(name, "").encode() for name in HALO_COLUMNS])
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        layout.set_obj_track_times(False)
        space = h5py.h5s.create_simple(shape)
        image = h5py.h5d.create(file.id, b"image", h5py.h5t.IEEE_F32LE, space, layout)
        file.flush()
        return memoryview(file.id.get_file_image()), int(image.get_offset())


class Split(torch.utils.data.Dataset[Batch]):
    """One split of a dataset, in memory but for its images, which stay on disk; also a PyTorch `Dataset`.

    `split[i]` is image i as a `Batch` without its first axis, so that a `torch.utils.data.DataLoader` makes a `Batch`
    of several. It may have workers: a copy that is sent to another process opens the files anew.

    Attributes:
        labels: (N,) int64. params: (N, P) float64. ids: list of N strings.

    Raises:
        UserError: no such split, or a shard that is not what the manifest says.
    """

    def __init__(self, folder: Path, name: str, manifest: Manifest) -> None:
        self.folder, self.name, self.manifest = Path(folder), name, manifest
        shards = split_shards(folder, manifest, name)
        self._paths = [folder / s.file for s in shards]
        opened = [read_shard(path, s, manifest) for path, s in zip(self._paths, shards, strict=True)]
        places = zip(self._paths, opened, strict=True)
        self._images = [_map(path, o.offset, len(o.labels), manifest) for path, o in places]
        self.labels: NDArray[np.int64] = np.concatenate([o.labels for o in opened])
        self.params: NDArray[np.float64] = np.concatenate([o.params for o in opened])
        self.ids: list[str] = [i for o in opened for i in o.ids]
        self._starts = np.cumsum([0] + [len(o.labels) for o in opened])
        self._prefetch = Prefetch()
        keep_freed_memory()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Batch:
        i = range(len(self))[operator.index(i)]
        return Batch(*(part[0] for part in self.batch(np.array([i]))))

    def __reduce__(self) -> tuple[type[Split], tuple[Path, str, Manifest]]:
        return Split, (self.folder, self.name, self.manifest)

    def ask_for(self, index: NDArray[np.int64]) -> None:
        """Say that the images at `index` will be wanted soon: the disk reads them meanwhile."""
        if self._prefetch.needed():
            shard = self._shard(index)
            for s, row in zip(shard.tolist(), (index - self._starts[shard]).tolist(), strict=True):
                self._prefetch.ask(self._images[s][row])

    def images(self, index: NDArray[np.int64]) -> Tensor:
        """(len(index), C, H, W) float32, in the order asked for."""
        order = np.argsort(self._shard(index), kind="stable")
        grouped = self._grouped(index[order])
        return grouped if (np.diff(order) > 0).all() else grouped[torch.from_numpy(np.argsort(order))]

    def _shard(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, index, side="right") - 1

    def _grouped(self, index: NDArray[np.int64]) -> Tensor:
        """Images of an index whose shards ascend: each is copied once."""
        with self._prefetch.watched():
            return self._gathered(index)

    def _gathered(self, index: NDArray[np.int64]) -> Tensor:
        out = torch.empty((len(index), *self._images[0].shape[1:]))
        edges = np.searchsorted(self._shard(index), np.arange(len(self._starts)))
        for s, (low, high) in enumerate(itertools.pairwise(edges)):
            if low < high:
                rows = torch.from_numpy(index[low:high] - self._starts[s])
                torch.index_select(self._images[s], 0, rows, out=out[low:high])
        return out

    def halos(self, i: int) -> NDArray[np.void]:
        """Every halo of image i, a field for each of `manifest.halo_columns`; read from disk each time.

        Raises:
            UserError: the dataset holds no table of halos.
        """
        columns = self.manifest.halo_columns
        if not columns:
            raise UserError(f"dataset '{self.manifest.name}' holds no table of halos; none of its classes has one")
        i = range(len(self))[i]
        shard = int(self._shard(np.array([i]))[0])
        rows = read_halos(self._paths[shard], i - int(self._starts[shard]), columns)
        return rows.view([(name, rows.dtype) for name in columns])[:, 0]

    def maps(self, index: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """Truth maps (len(index), H, W) by the name of their plane, e.g. "deflection_x"; read from disk each time.

        Raises:
            UserError: the dataset holds none.
        """
        names = self.manifest.maps
        if not names:
            raise UserError(
                f"dataset '{self.manifest.name}' holds no maps; simulate it with --truth, or import it with --noise"
            )
        index = np.arange(len(self))[index]
        shard = self._shard(index)
        found = [
            read_maps(self._paths[s], int(i - self._starts[s]), self.manifest)
            for s, i in zip(shard, index, strict=True)
        ]
        return {name: np.stack([one[k] for one in found]) for k, name in enumerate(names)}

    def by_shard(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same positions, grouped by shard, else in their order."""
        return index[np.argsort(self._shard(index), kind="stable")]

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """The images at `index`, grouped by shard, as a `Batch`."""
        index = self.by_shard(index)
        return Batch(
            self._grouped(index),
            torch.from_numpy(self.labels[index]),
            torch.from_numpy(self.params[index].astype(np.float32)),
            torch.from_numpy(np.asarray(index, dtype=np.int64)),
        )


def _map(path: Path, offset: int, n: int, manifest: Manifest) -> Tensor:
    """(n, C, H, W), a private map: content with it is torch's, and never the file's. The file is closed, so that any
    number may be mapped."""
    shape = (n, manifest.image.channels, manifest.image.height, manifest.image.width)
    storage = torch.UntypedStorage.from_file(str(path), False, offset + 4 * math.prod(shape))
    made: Tensor = torch.empty(0).set_(storage, offset // 4, shape)  # type: ignore[call-overload]
    return made


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
    ids: set[str] = set()
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file():
            raise UserError(f"{path}: missing; copy it again or make the dataset again")
        if checksums and schema.sha256(path) != shard.sha256:
            raise UserError(f"{path}: its bytes have changed since it was written; copy it again or make it again")
        ids.update(read_shard(path, shard, manifest).ids)
        check_halos(path, shard, manifest)
        check_maps(path, shard, manifest)
    if len(ids) < sum(manifest.splits.values()):
        raise UserError(f"{folder}: two images have the same id; make the dataset again")
    manifest.check_seal(folder)
    return manifest
