"""Small files that would take gigabytes or hours from a trusting reader."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import wild
from astropy.io import fits
from PIL import Image

SHARED = b"cnumpy.core.multiarray\n_reconstruct\n"


def zeros(n: int, level: int = 1) -> bytes:
    """`n` zeros, deflated, without having them in memory."""
    packer = zlib.compressobj(level)
    block = bytes(2**20)
    return b"".join(packer.compress(block[: min(2**20, n - k)]) for k in range(0, n, 2**20)) + packer.flush()


def chunked(path: Path, shape: tuple[int, ...], stored: bytes, dtype: str = "u1", filters: int = 1) -> None:
    """One chunk of the whole shape, that holds `stored` behind so many deflate filters."""
    with h5py.File(path, "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk(shape)
        for _ in range(filters):
            layout.set_deflate(1)
        space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype))
        data = h5py.h5d.create(file.id, b"images", kind, space, layout)
        data.write_direct_chunk((0,) * len(shape), stored)


def array_of(shape: tuple[int, ...], dtype: str, raw: bytes) -> bytes:
    """Instructions for an array; `raw` are those for its content."""
    sizes = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in shape) + b"t"
    made = SHARED + b"cnumpy\nndarray\n(K\x00tU\x01b\x87R"
    kind = (
        b"cnumpy\ndtype\nU\x02"
        + dtype.encode()
        + b"K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return made + b"(K\x01" + sizes + kind + b"\x89" + raw + b"tb"


def list_of(items: bytes) -> bytes:
    return b"](" + items + b"e"


def objects_of(n: int, items: bytes) -> bytes:
    return b"\x80\x02" + array_of((n,), "O8", items) + b"."


def noted(made: bytes, number: int) -> bytes:
    """Leave it out of the result, and keep it as a note."""
    return made + b"r" + struct.pack("<I", number) + b"0"


def note(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


def pickles() -> dict[str, bytes]:
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6
    as_bytes = b"c_codecs\nencode\n" + note(1) + b"X\x06\x00\x00\x00latin1\x86R"
    arrays = b"".join(array_of((125_000,), "f8", as_bytes) for _ in range(4000))
    python_2 = b"".join(array_of((125_000,), "f8", note(1)) for _ in range(4000))
    numbers = list_of(b"G" + struct.pack(">d", 1.0) + b"K\x01" * 10**6)
    shared = b"".join(array_of((10**6 + 1,), "O8", note(1)) for _ in range(400))
    start = noted(text, 1)
    return {
        "encoded.npy": wild.object_npy(b"\x80\x02" + start + objects_of(4000, list_of(arrays))[2:], (4000,)),
        "python2.npy": wild.object_npy(b"\x80\x02" + start + objects_of(4000, list_of(python_2))[2:], (4000,)),
        "shared.npy": wild.object_npy(b"\x80\x02" + noted(numbers, 1) + objects_of(400, list_of(shared))[2:], (400,)),
        "notes.npy": wild.object_npy(b"\x80\x02Nr" + struct.pack("<I", 10**5) + b"0" + b"N0" * 10**6 + b"."),
        "steps.npy": wild.object_npy(b"\x80\x02" + b"N0" * 2**21 + b"N."),
    }


def sparse_tar(path: Path, size: int) -> None:
    """4 kB that declare a file of `size` bytes, all of it a hole but one."""
    info = tarfile.TarInfo("hole.npy")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386 : 386 + 24] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + b"\1" * 512 + bytes(1024))


def long_pax(path: Path) -> None:
    """A header of digits alone, over which a regular expression takes the square."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo("header")
        info.type, info.size = tarfile.XHDTYPE, 900_000
        archive.addfile(info, io.BytesIO(b"1" * info.size))
    path.write_bytes(content.getvalue())


def gzip_tile(path: Path) -> None:
    """A FITS image of one compressed tile that unpacks to 600 MB."""
    image = np.random.default_rng(0).random((700, 700)).astype(np.float32)
    hdu = fits.CompImageHDU(image, compression_type="GZIP_1", tile_shape=(700, 700), quantize_level=0)
    hdu.writeto(path)
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(600)) + packer.flush()
    whole = path.read_bytes()
    at = whole.index(b"\x1f\x8b\x08")
    assert len(bomb) < len(whole) - at - 2880
    path.write_bytes(whole[:at] + bomb + whole[at + len(bomb) :])


def scans(path: Path) -> None:
    """A progressive JPEG whose last scan is repeated 500 times."""
    content = io.BytesIO()
    Image.fromarray((wild.lens(64) * 200).clip(0, 255).astype(np.uint8)).save(content, "JPEG", progressive=True)
    whole = content.getvalue()
    last = whole.rindex(b"\xff\xda")
    path.write_bytes(whole[:last] + whole[last:-2] * 500 + b"\xff\xd9")


def write(folder: Path) -> dict[str, str]:
    """All of them, and a part of the reason for which each must be skipped."""
    folder.mkdir(parents=True)
    for name, content in pickles().items():
        (folder / name).write_bytes(content)
    nested = b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"-" * 9000 + b"1,), }"
    (folder / "minus.npy").write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(nested)) + nested)
    once = zeros(600 * 2**20)
    chunked(folder / "stream.h5", (4, 40, 40), once)
    chunked(folder / "twice.h5", (4, 40, 40), zlib.compress(zeros(600 * 2**20)), filters=2)
    chunked(folder / "chunk.h5", (40, 4096, 4096), zeros(40 * 2**24))
    chunked(folder / "in_bounds.h5", (8, 4096, 4096), zeros(700 * 2**20), "u1")
    with h5py.File(folder / "offset.h5", "w") as file:
        file.create_dataset("images", data=np.arange(3 * 81).reshape(3, 9, 9), chunks=(1, 9, 9), scaleoffset=0)
    with h5py.File(folder / "pixels.h5", "w") as file:  # each chunk holds a row of every image
        data = file.create_dataset("images", (512, 512, 512), "u1", chunks=(512, 1, 512), compression="gzip")
        for k in range(512):
            data.id.write_direct_chunk((0, k, 0), zlib.compress(bytes(range(256)) * 1024))
    with h5py.File(folder / "objects.h5", "w", libver="latest") as file:
        for k in range(11_000):
            file.create_group(str(k))
    header: dict[str, Any] = {"A_ORDER": 20_000, "B_ORDER": 20_000, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}
    gzip_tile(folder / "tile.fits")
    wild.telescope(folder / "order.fits", header=header)
    Image.new("RGB", (6000, 6000)).save(folder / "big.png")
    scans(folder / "scans.jpg")
    return {
        "encoded.npy": "makes more than it holds",
        "python2.npy": "makes more than it holds",
        "shared.npy": "makes more than it holds",
        "notes.npy": "damaged pickle",
        "steps.npy": "too many values",
        "minus.npy": "header is damaged",
        "stream.h5": "larger packed than unpacked",
        "twice.h5": "gzip or lzf once",
        "chunk.h5": "a chunk of more than 128 MiB",
        "in_bounds.h5": "unpacks to more than its size",
        "offset.h5": "gzip or lzf once",
        "pixels.h5": "parts of too many images",
        "objects.h5": "more than 10000 objects",
        "tile.fits": "a tile unpacks to more",
        "big.png": "more than 67108864 pixels",
        "scans.jpg": "more than 100 scans",
    }
