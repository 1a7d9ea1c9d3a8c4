"""FITS cut-outs of others: the science image, unpacked within the budget, its bands and its pixel scale."""

from __future__ import annotations

import io
import math
import re
import warnings
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from numpy.typing import NDArray

from deeplense.data.arrays import FEWEST, MOST_CHANNELS, without_ones
from deeplense.data.budget import RATIO, Unreadable, check_image, printable, unpacks
from deeplense.data.columns import UNEVEN, Named, in_memory, unreadable
from deeplense.data.parts import BAND, SCIENCE, in_order, is_science, tidy

SCALES = (1e-4, 100.0)  # arcsec; a header outside says nothing about the sky
UNITS = {"deg": 3600.0, "degree": 3600.0, "arcmin": 60.0, "arcsec": 1.0, "rad": 3600 * 180 / math.pi}  # arcsec
# of two axes: distortions and tables may be of any size, and say nothing of the scale at the centre
LINEAR = [
    *(f"{k}{i}" for k in ("CTYPE", "CRVAL", "CRPIX", "CDELT", "CUNIT", "CROTA") for i in (1, 2, 3)),
    *(f"{k}{i}_{j}" for k in ("CD", "PC") for i in (1, 2, 3) for j in (1, 2, 3)),
    *("LONPOLE", "LATPOLE", "RADESYS", "EQUINOX"),
]

VARIABLE = re.compile(r"\d?[PQ]([A-Z])")  # the form of a column whose rows have lengths of their own
WIDTHS = {"L": 1, "B": 1, "I": 2, "J": 4, "K": 8, "E": 4, "D": 8}  # bytes


class Cutout(NamedTuple):
    """An object's pixels, (H, W) or (C, H, W), or with axes of length 1 in front.

    Attributes:
        pixel_scale: arcsec, None when unknown.
        notes: which extensions were joined or left out.
    """

    pixels: NDArray[Any]
    pixel_scale: float | None
    bands: tuple[str, ...] = ()
    unit: str = ""
    notes: tuple[str, ...] = ()


def cutout(content: bytes, bands: tuple[str, ...] | None = None, aside: Sequence[str] = ()) -> Cutout | list[Named]:
    """The science image of a FITS file; where it has only tables, their columns.

    Extensions that say that they are science are taken before others, and those of the first one's shape are joined as
    bands; weights, noise, masks and PSFs are left out.

    Args:
        bands: names of extensions, in the order that is wanted; empty: the first alone. aside: of those that are none.

    Raises:
        Unreadable: no image, one that costs more than the budget, or no extension of a wanted name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that bend the standard
        with fits.open(io.BytesIO(content), memmap=False) as hdus:
            for number, hdu in enumerate(hdus):
                hdu.name = hdu.name or f"HDU{number}"
            images = [hdu for hdu in hdus if hdu.is_image and len(_shape(hdu)) in (2, 3, 4)]
            images = [hdu for hdu in images if _name(hdu).lower() not in {name.lower() for name in aside}]
            if not images:
                return _columns(hdus, len(content))
            chosen = _chosen(images, bands)
            for hdu in chosen:
                check_image(hdu.shape)
                if isinstance(hdu, fits.CompImageHDU):
                    _check_tiles(hdu, content, hdus.index_of(hdu))
            check_image((len(chosen), *_shape(chosen[0])))
            one = chosen[0]
            names = tuple(_name(hdu) for hdu in chosen)
            notes = [f"extensions {', '.join(names)} joined as bands"] * (len(chosen) > 1)
            left = [_name(hdu) for hdu in images if all(hdu is not c for c in chosen)]
            notes += [f"extensions {', '.join(left)} left out"] * bool(left)
            pixels = [without_ones(np.asarray(hdu.data)) for hdu in chosen]
            header = one.header
            return Cutout(
                pixels[0] if len(pixels) == 1 else np.stack(pixels),
                _pixel_scale(header),
                tuple(_band(hdu) for hdu in chosen) if len(chosen) > 1 else (),
                printable(str(header.get("BUNIT", ""))).strip(),
                tuple(notes),
            )


def extension(content: bytes, name: str) -> NDArray[Any] | None:
    """The pixels of the extension of this name; None where there is none.

    Raises:
        Unreadable: they cost more than the budget.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(io.BytesIO(content), memmap=False) as hdus:
            for hdu in hdus:
                if hdu.is_image and hdu.shape and _name(hdu).lower() == name.lower():
                    check_image(hdu.shape)
                    if isinstance(hdu, fits.CompImageHDU):
                        _check_tiles(hdu, content, hdus.index_of(hdu))
                    return np.asarray(hdu.data)
    return None


def _shape(hdu: Any) -> tuple[int, ...]:
    """Without axes of length 1 before the last two."""
    shape = tuple(hdu.shape or ())
    return (*(n for n in shape[:-2] if n != 1), *shape[-2:])


def _chosen(images: list[Any], bands: tuple[str, ...] | None) -> list[Any]:
    if bands:
        by_name = {key.lower(): hdu for hdu in reversed(images) for key in (_band(hdu), _name(hdu))}
        missing = [name for name in bands if name.lower() not in by_name]
        if len(missing) == len(bands):  # its bands lie in other files
            return _chosen(images, ())
        if missing:
            raise Unreadable(f"no extension '{missing[0]}' (it has {', '.join(map(_name, images))})")
        found = [by_name[name.lower()] for name in bands]
        if len({_shape(hdu) for hdu in found}) > 1:
            raise Unreadable(_sizes(found))
        return found
    science = [hdu for hdu in images if is_science(_name(hdu))] or images[:1]
    told = [hdu for hdu in science if SCIENCE.search(hdu.name) and hdu.name != "PRIMARY"]
    science = told or science
    first = science[0]
    if bands == () or len(_shape(first)) != 2:
        return [first]
    same = [hdu for hdu in science if _shape(hdu) == _shape(first)]
    if len(same) > MOST_CHANNELS:
        raise Unreadable(f"{len(same)} extensions of one shape; --bands names up to {MOST_CHANNELS}")
    if len(same) < len(science) and all(BAND.search(hdu.name) for hdu in science):
        raise Unreadable(_sizes(science))
    return [same[k] for k in in_order([_name(hdu) for hdu in same])] if len(same) > 1 else same


def _sizes(hdus: list[Any]) -> str:
    shapes = ", ".join(f"{_name(hdu)} {'x'.join(map(str, _shape(hdu)))}" for hdu in hdus)
    return f"bands of different sizes, {shapes}; --bands names those of one size"


def _name(hdu: Any) -> str:
    """What an extension is called to the user."""
    name = printable(str(hdu.name)).strip()
    return f"{name},{hdu.ver}" if hdu.ver > 1 else name


def _band(hdu: Any) -> str:
    """The filter that its header or its name says."""
    for key in ("FILTER", "BAND", "FILTNAM1", "FILTNAM"):
        if str(hdu.header.get(key, "")).strip():
            return printable(str(hdu.header[key])).strip()
    return tidy(SCIENCE.sub("", _name(hdu))) or _name(hdu)


def _columns(hdus: fits.HDUList, size: int) -> list[Named]:
    """The columns of the first table that has one of images."""
    for hdu in hdus:
        if not isinstance(hdu, fits.BinTableHDU) or isinstance(hdu, fits.CompImageHDU):
            continue
        if hdu.size > size or hdu.header.get("ZTABLE", False):
            raise Unreadable("a compressed table, or one that declares more than it stores")
        columns = [_column(hdu, column.name, str(column.format)) for column in hdu.columns]
        if any(len(column.shape) > 1 or column.why for column in columns):
            return columns
    raise Unreadable("no image in the FITS file")


def _column(hdu: fits.BinTableHDU, name: str, form: str) -> Named:
    variable = VARIABLE.match(form)
    if variable is None:
        return _as_named(name, np.asarray(hdu.data[name]))
    lengths = hdu.data.view(np.ndarray)[name].reshape(len(hdu.data), 2)[:, 0]
    if len(set(lengths.tolist())) > 1:
        return unreadable(printable(name), len(lengths), UNEVEN)
    # rows may name the same few bytes any number of times
    if variable[1] not in WIDTHS or int(lengths.sum()) * WIDTHS[variable[1]] > hdu.size:
        return unreadable(printable(name), len(lengths), "declares more than it stores, or holds no numbers")
    rows = [np.asarray(row) for row in hdu.data[name]]
    return _as_named(name, np.stack(rows) if rows else np.empty((0, 0)))


def _as_named(name: str, values: NDArray[Any]) -> Named:
    """A vector of n² values a row is an image."""
    if values.ndim == 2 and values.dtype.kind in "iuf":
        side = math.isqrt(values.shape[1])
        if side**2 == values.shape[1] and side >= FEWEST:
            values = values.reshape(len(values), side, side)
    return in_memory(printable(name), values)


def _check_tiles(hdu: fits.CompImageHDU, content: bytes, number: int) -> None:
    """A tile may say that it unpacks to anything."""
    tile = math.prod(hdu.tile_shape)
    whole = tile * math.prod(-(-n // m) for n, m in zip(hdu.shape, hdu.tile_shape, strict=True))
    check_image(hdu.tile_shape)
    if not unpacks(8 * whole, len(content)):
        raise Unreadable(f"unpacks to {8 * whole >> 20} MiB, more than {RATIO} times its size")
    gzipped = {"GZIP_COMPRESSED_DATA"}  # where another way failed
    if hdu.compression_type.startswith("GZIP"):
        gzipped.add("COMPRESSED_DATA")
    with fits.open(io.BytesIO(content), memmap=False, disable_image_compression=True) as hdus:
        table = hdus[number].data
        for packed in (packed for name in gzipped.intersection(table.names) for packed in table[name]):
            unpacking = zlib.decompressobj(wbits=31)
            unpacking.decompress(packed.tobytes(), 8 * tile + 1)
            if len(packed) and not unpacking.eof:
                raise Unreadable("a tile unpacks to more than its size, or is damaged")


def _pixel_scale(header: fits.Header) -> float | None:
    """The side [arcsec] of a square of one pixel's area, from the WCS or a bare CD matrix or CDELT [CUNIT, deg]."""
    try:
        linear = fits.Header([(key, header[key]) for key in LINEAR if key in header])
        for key in ("CTYPE1", "CTYPE2", "CTYPE3"):
            if key in linear:
                linear[key] = linear[key][:8]  # RA---TAN-SIP
        wcs = WCS(linear)
        if wcs.has_celestial:
            scale = math.sqrt(proj_plane_pixel_area(wcs.celestial)) * 3600
        elif "CD1_1" in header or "CDELT1" in header:
            matrix = np.array([[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)])
            if "CD1_1" not in header:
                matrix = np.diag([header["CDELT1"], header.get("CDELT2", header["CDELT1"])])
            scale = math.sqrt(abs(np.linalg.det(matrix))) * UNITS[header.get("CUNIT1", "deg").strip().lower()]
        else:
            return None
    except Exception:  # a broken WCS is no reason to lose the image
        return None
    return float(scale) if SCALES[0] < scale < SCALES[1] else None
