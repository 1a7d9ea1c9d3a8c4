"""One reader a file format: from a `Member` to `Found` images, or to reasons why not.

Nothing that is read is ever executed. To add a format: a reader, and its extension in `READERS`. A reader imports what
it reads with, because the libraries of all formats together take longer to start than most predictions do.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense.data import budget, parts, unpickle, weights
from deeplense.data.archives import Member, is_archive
from deeplense.data.arrays import as_found, as_image, read_npy, stacked
from deeplense.data.budget import Unreadable, check_image
from deeplense.data.columns import Named, found_in, in_memory, says_many
from deeplense.data.found import Asked, Found

MASKED_NOISE = 1e7  # a pixel of noise.fits above this is masked (SLACS cut-outs write 1e8)
MOST_SCANS = 100  # of a JPEG; each costs as much as the whole image
MOST_ARRAYS = 10_000  # of an .npz
GZIP = b"\x1f\x8b"

Reader = Callable[[Member, Asked], Iterator[Found | Unreadable]]


def reader(name: str) -> Reader:
    """By the extension, before a last `.gz`.

    Raises:
        Unreadable: not to be read, or of no known format.
    """
    if parts.hidden(name):
        raise Unreadable("hidden file")
    if is_archive(name):
        raise Unreadable("an archive inside the source; read it by itself")
    low = name.lower().removesuffix(".gz")
    extension = PurePosixPath(low).suffix
    if extension not in READERS:
        raise Unreadable("not an image format")
    return READERS[extension]


def unpacked(content: bytes) -> bytes:
    """The bytes of a file that may be packed by gzip, within the budget."""
    if not content.startswith(GZIP):
        return content
    unpacking = zlib.decompressobj(wbits=31)
    most = max(budget.MOST_BYTES, budget.RATIO * len(content))
    try:
        plain = unpacking.decompress(content, most + 1)
    except zlib.error as error:
        raise Unreadable("damaged: not readable as .gz") from error
    if len(plain) > most:
        raise Unreadable(f"unpacks to more than {most >> 20} MiB, {budget.RATIO} times its size")
    if not unpacking.eof:
        raise Unreadable("damaged: it ends too early")
    return plain


def _read_npy(member: Member, asked: Asked) -> Iterator[Found | Unreadable]:
    many = says_many(parts.stem(member.name).rsplit("/", 1)[-1])
    for found in as_found(read_npy(unpacked(member.read())), asked.axes, many):
        yield _with_files(found, member, asked, read_npy)


def _with_files(
    found: Found | Unreadable, member: Member, asked: Asked, decode: Callable[[bytes], NDArray[Any]]
) -> Found | Unreadable:
    """With the mask and noise that lie in files beside it."""
    names = weights.wanted(asked)
    if not isinstance(found, Found) or not names:
        return found
    beside: dict[str, NDArray[Any] | None] = {}
    for name in names:
        files = (member.sibling(file) for file in weights.file_names(member.name, name))
        content = next((content for content in files if content is not None), None)
        beside[name] = None if content is None else decode(unpacked(content))
    return weights.with_maps(found, beside, asked)


def _read_npz(member: Member, asked: Asked) -> Iterator[Found | Unreadable]:
    content = member.read()
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Unreadable("damaged: not readable as .npz") from error
    with archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        whole = sum(entry.file_size for entry in entries)
        if len(entries) > MOST_ARRAYS or not budget.unpacks(whole, len(content)):
            raise Unreadable(f"unpacks to {whole >> 20} MiB, more than {budget.RATIO} times its size")
        arrays = []
        for entry in entries:
            with archive.open(entry) as file:  # no more than it declares, or its checksum is wrong
                arrays.append((entry.filename.removesuffix(".npy"), file.read(entry.file_size + 1)))
    named = [(name, stacked(read_npy(array, "biufSU"))) for name, array in arrays]
    yield from _of_arrays(named, asked, member.name)


def _read_pickle(member: Member, asked: Asked) -> Iterator[Found | Unreadable]:
    try:
        arrays = unpickle.load_named(unpacked(member.read()))
    except unpickle.Refused as error:
        raise Unreadable(str(error)) from error
    yield from _of_arrays(list(arrays.items()), asked, member.name)


def _of_arrays(arrays: list[tuple[str, NDArray[Any]]], asked: Asked, file: str) -> Iterator[Found | Unreadable]:
    """A single array is read as if it had a file of its own, or is what its file says."""
    if not arrays:
        raise Unreadable("it holds no array")
    if len(arrays) == 1 and not asked.images:
        ((name, array),) = arrays
        many = says_many(name) or says_many(parts.stem(file).rsplit("/", 1)[-1])
        yield from as_found(array, asked.axes, many)
        return
    yield from found_in([in_memory(name, array, many=False) for name, array in arrays], asked)


def _read_picture(member: Member, asked: Asked) -> Iterator[Found | Unreadable]:
    from PIL import Image, ImageSequence

    content = unpacked(member.read())
    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "TIFF")) as picture:
        pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
        check_image((pages, *picture.size, len(picture.getbands())))
        if picture.format == "JPEG" and content.count(b"\xff\xda") > MOST_SCANS:
            raise Unreadable(f"a JPEG of more than {MOST_SCANS} scans")
        if pages == 1:
            notes = ("transparency left out",) * (picture.mode in ("LA", "RGBA"))
            yield _with_files(Found(as_image(pixels_of(picture)), notes=notes), member, asked, _decoded)
            return
        shown = []
        for page in ImageSequence.Iterator(picture):
            check_image((pages, *page.size, len(page.getbands())))
            shown.append(pixels_of(page))
    if len({page.shape for page in shown}) > 1:
        raise Unreadable("pages of different sizes; write a file each")
    yield from as_found(np.stack(shown), asked.axes)


def _decoded(content: bytes) -> NDArray[Any]:
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "TIFF")) as picture:
        check_image((*picture.size, len(picture.getbands())))
        return pixels_of(picture)


def pixels_of(picture: Any) -> NDArray[Any]:
    deep = picture.mode.startswith(("I", "F"))  # 16 bits stay 16 bits
    grey = deep or picture.mode in ("1", "L", "LA")
    pixels = np.array(picture if deep else picture.convert("L" if grey else "RGB"))
    return pixels[..., 0] if not grey and (pixels == pixels[..., :1]).all() else pixels


def _read_fits(member: Member, asked: Asked) -> Iterator[Found | Unreadable]:
    from deeplense.data.cutouts import cutout

    if parts.is_not_science_file(member.name):
        raise Unreadable("not a science image")
    content = unpacked(member.read())
    one = cutout(content, asked.bands, weights.wanted(asked))
    if isinstance(one, list):
        yield from found_in(one, asked)
        return
    pixels = one.pixels
    noise = member.sibling("noise.fits")
    if noise is not None:
        level = cutout(unpacked(noise), ())
        if isinstance(level, list) or level.pixels.shape[-2:] != pixels.shape[-2:]:
            raise Unreadable("noise.fits beside it has another shape")
        pixels = np.where(level.pixels >= MASKED_NOISE, np.nan, pixels)
    beside = {name: _beside(member, content, name) for name in weights.wanted(asked)}
    for found in as_found(pixels, asked.axes):
        if isinstance(found, Found):
            found = found._replace(
                pixel_scale=one.pixel_scale, bands=one.bands, unit=one.unit, notes=(*one.notes, *found.notes)
            )
            found = weights.with_maps(found, beside, asked)
        yield found


def _beside(member: Member, content: bytes, name: str) -> NDArray[Any] | None:
    """An extension of this name, or the image in a file beside it."""
    from deeplense.data.cutouts import cutout, extension

    array = extension(content, name)
    for file in weights.file_names(member.name, name):
        if array is None and (other := member.sibling(file)) is not None:
            level = cutout(unpacked(other), ())
            array = None if isinstance(level, list) else level.pixels
    return array


def _read_hdf5(member: Member, asked: Asked) -> Iterator[Found | Unreadable]:
    import h5py

    from deeplense.data import hdf5, systems

    opened = member.open()
    size = opened.stat().st_size if isinstance(opened, Path) else len(opened.getbuffer())
    with h5py.File(opened, "r") as file:
        forms = [] if asked.images else systems.systems(file)
        if forms:
            yield from systems.found_in(forms, size, asked)
        else:
            yield from found_in(list(hdf5.arrays(file, size)), asked)


def _read_parquet(member: Member, asked: Asked) -> Iterator[Found | Unreadable]:
    from deeplense.data.parquet import columns

    arrays: list[Named] = columns(member.read())
    yield from found_in(arrays, asked)


READERS: dict[str, Reader] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pkl": _read_pickle,
    ".pickle": _read_pickle,
    ".pyd": _read_pickle,
    ".jpg": _read_picture,
    ".jpeg": _read_picture,
    ".png": _read_picture,
    ".tif": _read_picture,
    ".tiff": _read_picture,
    ".fits": _read_fits,
    ".fit": _read_fits,
    ".fts": _read_fits,
    ".fz": _read_fits,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".he5": _read_hdf5,
    ".parquet": _read_parquet,
}
