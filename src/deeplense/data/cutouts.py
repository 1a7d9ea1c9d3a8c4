"""FITS cut-outs of others: the image, unpacked within the budget, and its pixel scale."""

from __future__ import annotations

import io
import math
import warnings
import zlib
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from numpy.typing import NDArray

from deeplense.data.budget import RATIO, Unreadable, check_image, unpacks

SCALES = (1e-4, 100.0)  # arcsec; a header outside says nothing about the sky
UNITS = {"deg": 3600.0, "degree": 3600.0, "arcmin": 60.0, "arcsec": 1.0, "rad": 3600 * 180 / math.pi}  # arcsec
# of two axes: distortions and tables may be of any size, and say nothing of the scale at the centre
LINEAR = [
    *(f"{k}{i}" for k in ("CTYPE", "CRVAL", "CRPIX", "CDELT", "CUNIT", "CROTA") for i in (1, 2, 3)),
    *(f"{k}{i}_{j}" for k in ("CD", "PC") for i in (1, 2, 3) for j in (1, 2, 3)),
    *("LONPOLE", "LATPOLE", "RADESYS", "EQUINOX"),
]


def fits_image(content: bytes) -> tuple[NDArray[Any], float | None]:
    """The first image of two or three dimensions and its pixel scale [arcsec].

    Raises:
        Unreadable: no image, or one that costs more than the budget.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that bend the standard
        with fits.open(io.BytesIO(content), memmap=False) as hdus:
            for number, hdu in enumerate(hdus):
                shape = hdu.shape if hdu.is_image else ()
                if len(shape) in (2, 3):
                    check_image(shape)
                    if isinstance(hdu, fits.CompImageHDU):
                        _check_tiles(hdu, content, number)
                    return np.asarray(hdu.data), _pixel_scale(hdu.header)
    raise Unreadable("no image in the FITS file")


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
