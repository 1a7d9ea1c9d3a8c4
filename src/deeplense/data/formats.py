"""Images in every form in the wild, streamed from a file, folder, zip, tar or dataset, one in memory at a time.

Nothing that is read is ever executed, and a bad file costs a `Skipped`, not the others. To add a format: a function
from a `Member` to `Found` images, and its extension in `READERS`. A reader imports what it reads with, because the
libraries of all formats together take longer to start than most predictions do.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeplense.data import names, schema
from deeplense.data.archives import Member, is_archive, members
from deeplense.data.arrays import MOST_CHANNELS, Form, as_form, as_image, read_npy
from deeplense.data.budget import Unreadable, check_image, printable
from deeplense.errors import UserError

if TYPE_CHECKING:
    import h5py

MASKED_NOISE = 1e7  # a pixel of noise.fits above this is masked (SLACS cut-outs write 1e8)
NOT_SCIENCE = ("noise", "psf", "mask", "weight")
TOGETHER = 2**22  # pixels of a dataset that are read at once
MOST_SCANS = 100  # of a JPEG; each costs as much as the whole image


@dataclass
class Foreign:
    """One image.

    Attributes:
        id: path relative to the source without extension, `#row` added in files of many images; unique.
        file: where it came from.
        image: (C, H, W) float32, NaN where a pixel is not finite.
        label: the class that its folders (or the file itself) name, None when unknown.
        params: what the file says, e.g. log10_m_axion.
        pixel_scale: arcsec, None when unknown.
        nan_share: share of the pixels that are NaN.
    """

    id: str
    file: str
    image: NDArray[np.float32]
    label: str | None = None
    params: dict[str, float] = field(default_factory=dict)
    pixel_scale: float | None = None
    nan_share: float = 0.0


@dataclass
class Skipped:
    """A file that gives no image, and why."""

    file: str
    reason: str


class Found(NamedTuple):
    """An image as a reader gives it; `row` tells the images of one file apart."""

    form: Form
    row: str = ""
    pixel_scale: float | None = None


Reader = Callable[[Member], Iterator[Found | Skipped]]


def read_images(source: str | Path, split: str | None = None) -> Iterator[Foreign | Skipped]:
    """Every image under `source`, and every file that gives none.

    Args:
        source: a file (.npy, .jpg, .png, .fits, .h5), a folder, zip or tar of them, or a dataset.
        split: the one of a dataset; all of them when not given.

    Raises:
        UserError: no such file, or a damaged archive or dataset.
    """
    source = Path(source)
    if (source / schema.MANIFEST).is_file():
        yield from _read_dataset(source, split)
        return
    seen: set[str] = set()
    for member in members(source):
        try:
            read = _reader(member.name)
            stem = _unique(printable(member.name), seen)
            for found in read(member):
                yield found if isinstance(found, Skipped) else _foreign(source, stem, member, found)
        except Unreadable as error:
            yield Skipped(member.file, str(error))
        except UserError:
            raise
        except MemoryError:
            yield Skipped(member.file, "takes more memory than there is")
        except Exception:  # decoders fail in any way on damaged files
            yield Skipped(member.file, f"damaged: not readable as {PurePosixPath(member.name).suffix.lower()}")


def folders(source: Path, id: str) -> list[str]:
    """The names that may tell an image's class and split, outermost first: source, folders, file of many images."""
    return [printable(source.name).split(".")[0], *id.replace("#", "/").split("/")[:-1]]


def _foreign(source: Path, stem: str, member: Member, found: Found) -> Foreign:
    id, form = stem + found.row, found.form
    label = names.class_of(folders(source, id)) or form.label
    params = {} if form.log_mass is None else {"log10_m_axion": form.log_mass}
    return Foreign(id, member.file, form.image, label, params, found.pixel_scale, _nan_share(form.image))


def _nan_share(image: NDArray[np.float32]) -> float:
    return float(np.isnan(image).mean())


def _read_dataset(folder: Path, only: str | None) -> Iterator[Foreign]:
    from deeplense.data import shards

    info = schema.read_manifest(folder)
    image = info.image
    step = max(1, TOGETHER // (image.channels * image.height * image.width))
    parameters, classes = [p.name for p in info.parameters], [*info.classes, None]  # unlabelled is -1, the last
    for name in info.splits if only is None else [only]:
        file = f"{folder}/{name}"
        for shard in shards.split_shards(folder, info, name):
            columns = shards.read_shard(folder / shard.file, shard, info)
            for start in range(0, shard.n, step):
                part = slice(start, min(start + step, shard.n))
                pixels = shards.read_pixels(folder / shard.file, columns, image, part.start, part.stop)
                rows = zip(
                    columns.ids[part],
                    pixels,
                    columns.labels[part].tolist(),
                    columns.params[part].tolist(),
                    np.isnan(pixels).mean((1, 2, 3)).tolist(),
                    strict=True,
                )
                for id, one, label, values, nan_share in rows:
                    params = {p: v for p, v in zip(parameters, values, strict=True) if math.isfinite(v)}
                    yield Foreign(id, file, one, classes[label], params, image.pixel_scale, nan_share)


def _reader(name: str) -> Reader:
    path = PurePosixPath(name)
    if any(part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts):
        raise Unreadable("hidden file")
    if is_archive(name):
        raise Unreadable("an archive inside the source; read it by itself")
    if path.suffix.lower() not in READERS:
        raise Unreadable("not an image format")
    return READERS[path.suffix.lower()]


def _unique(name: str, seen: set[str]) -> str:
    """The name without extension, unless another file has it already."""
    id = name[: -len(PurePosixPath(name).suffix)]
    if id in seen:
        id = name
    k = 1
    while id in seen:
        k += 1
        id = f"{name}-{k}"
    seen.add(id)
    return id


def _read_npy(member: Member) -> Iterator[Found | Skipped]:
    yield Found(as_form(read_npy(member.read())))


def _read_picture(member: Member) -> Iterator[Found | Skipped]:
    from PIL import Image

    content = member.read()
    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
        check_image((*picture.size, len(picture.getbands())))
        if picture.format == "JPEG" and content.count(b"\xff\xda") > MOST_SCANS:
            raise Unreadable(f"a JPEG of more than {MOST_SCANS} scans")
        grey = picture.mode in ("1", "L", "LA") or picture.mode.startswith(("I", "F"))
        # 16 bits stay 16 bits
        pixels = np.asarray(picture if picture.mode.startswith(("I", "F")) else picture.convert("L" if grey else "RGB"))
    if not grey and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    yield Found(Form(as_image(pixels)))


def _read_fits(member: Member) -> Iterator[Found | Skipped]:
    from deeplense.data.cutouts import fits_image

    if PurePosixPath(member.name).name.lower().startswith(NOT_SCIENCE):
        raise Unreadable("not a science image")
    pixels, scale = fits_image(member.read())
    noise = member.sibling("noise.fits")
    if noise is not None:
        level, _ = fits_image(noise)
        if level.shape != pixels.shape:
            raise Unreadable("noise.fits beside it has another shape")
        pixels = np.where(level >= MASKED_NOISE, np.nan, pixels)
    yield Found(Form(as_image(pixels)), pixel_scale=scale)


def _read_hdf5(member: Member) -> Iterator[Found | Skipped]:
    """Rows of the one dataset that holds images, a few at a time."""
    import h5py

    from deeplense.data import hdf5

    opened = member.open()
    size = opened.stat().st_size if isinstance(opened, Path) else len(opened.getbuffer())
    with h5py.File(opened, "r") as file:
        data = _image_data(file)
        hdf5.check_cost(data, size)
        if data.ndim == 2 or (data.ndim == 3 and data.shape[2] <= MOST_CHANNELS):
            check_image(data.shape)
            yield Found(Form(as_image(data[()])))
            return
        check_image(data.shape[1:])
        for start, values in hdf5.rows(data):
            for k, row in enumerate(values, start):
                try:
                    yield Found(Form(as_image(row)), row=f"#{k}")
                except Unreadable as error:
                    yield Skipped(f"{member.file}#{k}", str(error))


def _image_data(file: h5py.File) -> h5py.Dataset:
    """The dataset that holds images: by its name, or the only one of two to four dimensions."""
    from deeplense.data import hdf5

    candidates = dict(hdf5.arrays(file))
    named = {k: v for k, v in candidates.items() if "image" in k.rsplit("/")[-1].lower()}
    candidates = named if len(named) == 1 else candidates
    if not candidates:
        raise Unreadable("no array of images in the HDF5 file")
    if len(candidates) > 1:
        raise Unreadable("several arrays in the HDF5 file, and not one alone is named image")
    (data,) = candidates.values()
    return data


READERS: dict[str, Reader] = {
    ".npy": _read_npy,
    ".jpg": _read_picture,
    ".jpeg": _read_picture,
    ".png": _read_picture,
    ".fits": _read_fits,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
