"""Pictures for the simulator, galaxies or PSFs, read from a folder or one file; a bad one stops it, named.

Small beside `data.formats`, which lies above this layer: no archives, and nothing is skipped but what is no picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deeplense.errors import UserError, brief

Array = NDArray[np.float64]
MOST = 100_000  # files and folders that are looked at
CHANNELS = 5  # a third axis this short holds channels, not rows


class File(NamedTuple):
    """One that holds pictures, as it was found: what is read from files may be kept while they stay the same."""

    path: str
    changed: int
    size: int


def find_files(path: str, where: str, remedy: str = "") -> tuple[File, ...]:
    """In the order of their names.

    Args:
        path: a file (.npy, .fits, .h5, .png, .jpg) or a folder of them. where: the key of the recipe, for errors.
        remedy: what to put there, for the error that nothing is.

    Raises:
        UserError: nothing there, or so much that it cannot be meant.
    """
    try:
        root = Path(path).expanduser()
        found = list(islice(_within(root), MOST + 1)) if root.is_dir() else [root] if root.exists() else None
    except (OSError, ValueError, RuntimeError) as error:  # no name of a file, or no home of that user
        raise UserError(f"{where}: no such file or folder: {brief(path)} ({type(error).__name__})") from error
    if found is None:
        raise UserError(f"{where}: no such file or folder: {brief(path)[1:-1]}{remedy}")
    if len(found) > MOST:
        raise UserError(f"{where}: {path} holds more than {MOST:,} files; name a folder of the pictures alone")
    files = [f for f in sorted(found) if f.suffix.lower() in READERS and not f.name.startswith(".") and f.is_file()]
    if not files:
        raise UserError(f"{where}: no picture in {path}; it takes {', '.join(READERS)}")
    return tuple(File(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files)


def _within(folder: Path) -> Iterator[Path]:
    """All files and folders in it, one at a time; links to folders are not followed."""
    for where, folders, files in os.walk(folder):
        yield from (Path(where, name) for name in (*folders, *files))


def read_pictures(files: Sequence[File], where: str) -> Iterator[tuple[str, Array]]:
    """(name, (H, W)) of every picture; channels are averaged.

    Raises:
        UserError: a picture that is damaged or not finite.
    """
    for name, channels in read_channels(files, where):
        yield name, (channels[0] if len(channels) == 1 else channels.mean(0)).astype(np.float64)


def read_channels(files: Sequence[File], where: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """(name, (C, H, W)) of every picture, one at a time, in the type of its file.

    Raises:
        UserError: a picture that is damaged or not finite.
    """
    for file in files:
        path = Path(file.path)
        try:
            arrays = iter(READERS[path.suffix.lower()](path))
            head = list(islice(arrays, 2))
            if not head:
                raise ValueError("it holds none")
            for k, array in enumerate(chain(head, arrays)):
                name = str(path) if len(head) == 1 else f"{path}#{k}"
                picture = _channels(np.asarray(array))
                if not np.isfinite(picture).all():
                    raise UserError(f"{where}: {name}: holds NaN or infinite pixels; fill them or take it out")
                yield name, picture
        except UserError:
            raise
        except Exception as error:  # decoders fail in any way on damaged files
            raise UserError(f"{where}: {path}: not readable as a picture ({error})") from error


def _channels(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it holds {array.dtype}")
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] > CHANNELS and array.shape[2] <= CHANNELS:
        array = np.moveaxis(array, 2, 0)
    if array.ndim != 3 or len(array) > CHANNELS:
        raise ValueError(f"its shape is {array.shape}")
    return array


def _npy(file: Path) -> Iterator[Any]:
    array = np.load(file, allow_pickle=False)
    several = array.ndim == 4 or (array.ndim == 3 and min(array.shape[0], array.shape[2]) > CHANNELS)
    yield from array if several else [array]


def _fits(file: Path) -> Iterator[Any]:
    from astropy.io import fits  # takes half a second, which most recipes are spared

    with fits.open(file, memmap=False) as hdus:
        images = [hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None and hdu.data.ndim in (2, 3)]
    if not images:
        raise ValueError("no image in the FITS file")
    yield images[0]


def _hdf5(file: Path) -> Iterator[Any]:
    found: list[h5py.Dataset] = []

    def consider(_: str, thing: Any) -> None:
        if isinstance(thing, h5py.Dataset) and thing.ndim in (2, 3, 4) and thing.dtype.kind in "biuf":
            found.append(thing)

    with h5py.File(file, "r") as opened:
        opened.visititems(consider)
        if len(found) != 1:
            raise ValueError(f"{len(found)} arrays of images in the HDF5 file, where one is expected")
        yield from [found[0][()]] if found[0].ndim == 2 else found[0]


def _picture(file: Path) -> Iterator[Any]:
    with Image.open(file, formats=("JPEG", "PNG")) as picture:
        yield np.asarray(picture if picture.mode.startswith(("I", "F")) else picture.convert("RGB"))


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".npy": _npy,
    ".fits": _fits,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".png": _picture,
    ".jpg": _picture,
    ".jpeg": _picture,
}
