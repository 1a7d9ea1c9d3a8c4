"""Small files in every form in the wild, in the exact shapes, types and folders of the published sets."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.io import fits
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]


def lens(size: int = 64, seed: int = 0) -> Array:
    """(size, size) float64 ≥ 0: a blob with positive noise, never symmetric, so that a transposed image shows."""
    y, x = np.mgrid[:size, :size] / size
    blob = np.exp(-((x - 0.4) ** 2 + 2 * (y - 0.5) ** 2) / 0.05)
    return blob + 0.1 * np.random.default_rng(seed).random((size, size))


def objects(*items: Any) -> Array:
    """Object array of the items, as `np.array([...], dtype=object)` made them."""
    array = np.empty(len(items), dtype=object)
    for k, item in enumerate(items):
        array[k] = item
    return array


def npy_bytes(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def object_npy(payload: bytes, shape: tuple[int, ...] = (2,)) -> bytes:
    """An `.npy` of objects with this pickle as payload."""
    return header_npy(shape, "|O") + payload


def header_npy(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    """The header of an `.npy`, without data."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def write(path: Path, content: bytes | Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else npy_bytes(content))
    return path


class Evil:
    """Unpickled by a trusting reader, it makes the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def model(root: Path, kind: str = "I", n: int = 4) -> Path:
    """Models I to III: folder per class, `<class>_sim_<128 bits>.npy`; axion is [image, mass in eV]."""
    for c, name in enumerate(("axion", "cdm", "no_sub")):
        for k in range(n):
            image = lens(150, 10 * c + k) * 1000 if kind == "I" else lens(64, 10 * c + k)
            image = image.astype(np.int64) if kind == "I" else image
            held = objects(image, 10.0 ** (-24 + 2 * k / max(1, n - 1))) if name == "axion" else image
            write(root / name / f"{name}_sim_{2**127 + 1000 * c + k}.npy", held)
    return root


def model_4_scripted(root: Path, n: int = 3) -> Path:
    for split in ("train", "val"):
        for c, name in enumerate(("axion", "cdm", "no")):
            for k in range(n):
                image = np.repeat(lens(64, 10 * c + k)[..., None], 3, axis=2)
                write(root / split / name / f"sim_{k}.npy", image / image.max())
    return root


def model_4_circulating(root: Path, n: int = 3) -> Path:
    for c, name in enumerate(("axion", "cdm", "no_sub")):
        for k in range(n):
            image = lens(64, 10 * c + k)
            write(root / name / f"{k}.npy", objects(image, np.array(1e-23)) if name == "axion" else image[None])
    return root


def common_test(root: Path, n: int = 3) -> Path:
    for split in ("train", "val"):
        for c, name in enumerate(("no", "sphere", "vort")):
            for k in range(n):
                image = lens(150, 10 * c + k)
                image = (image - image.min()) / (image.max() - image.min())
                write(root / "dataset" / split / name / f"{k}.npy", image[None])
    return root


def picture(path: Path, size: int = 150, seed: int = 0, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (lens(size, seed) * 200).clip(0, 255).astype(np.uint8)
    if mode == "colour":
        pixels = np.stack([pixels, pixels // 2, pixels // 3], axis=2)
    image = Image.fromarray(pixels)
    (image if mode in ("L", "colour") else image.convert(mode)).save(path)
    return path


def sub_no_sub(root: Path, n: int = 5) -> Path:
    for c, name in enumerate(("sub", "no_sub")):
        for k in range(n):
            picture(root / "lenses" / name / f"image_{10**38 + k}.jpg", seed=10 * c + k)
    return root


def lens_finding(root: Path, n: int = 3) -> Path:
    for split in ("train", "test"):
        for c, name in enumerate(("lenses", "nonlenses")):
            for k in range(n):
                image = np.stack([lens(64, 10 * c + k + band) for band in range(3)])
                write(root / f"{split}_{name}" / f"{k}.npy", (image / image.max()).astype(np.float32))
    return root


def super_resolution(root: Path, n: int = 3, real: bool = False) -> Path:
    for name, size in (("LR", 64 if real else 75), ("HR", 128 if real else 150)):
        for k in range(n):
            write(root / name / f"sample_{k}.npy", lens(size, k)[None].astype(np.float32 if real else np.float64))
    return root


def telescope(
    path: Path, size: int = 61, pixel_scale: float | None = 0.04, header: dict[str, Any] | None = None
) -> Path:
    """A cut-out with an empty primary HDU, a tangential WCS and a NaN pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = lens(size).astype(np.float32)
    image[0, 1] = np.nan
    hdu = fits.ImageHDU(image)
    if pixel_scale is not None:
        step = pixel_scale / 3600
        turned = step * np.array([[-0.6, 0.8], [0.8, 0.6]])  # a rotated sky
        hdu.header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=10.0, CRVAL2=-5.0, CRPIX1=30.0, CRPIX2=30.0)
        hdu.header.update({f"CD{i + 1}_{j + 1}": turned[i, j] for i in (0, 1) for j in (0, 1)})
    hdu.header.update(header or {})
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    return path


def slacs(root: Path, names: tuple[str, ...] = ("J0330-0020", "J0405-0455"), size: int = 41) -> Path:
    """Image, noise (1e8: masked) and PSF of each lens, without WCS, and a table."""
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        noise = np.full((size, size), 0.01, dtype=np.float32)
        noise[:2] = 1e8
        for file, pixels in (("image", lens(size, k)), ("noise", noise), ("psf", lens(15))):
            fits.writeto(root / name / f"{file}.fits", pixels.astype(np.float32))
    (root / "table.csv").write_text("name,z\n")
    return root


def hdf5(path: Path, images: Array, name: str = "images", **others: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in {name: images, **others}.items():
            file[key] = array
    return path


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def tarred(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        archive.add(folder, ".")
    return path


def traps(root: Path, flag: Path) -> dict[str, str]:
    """Bad files, and a part of the reason that each must be skipped for; the evil ones would make `flag`."""
    whole = npy_bytes(lens(64))
    evil = objects(lens(16), 1e-23)
    evil[1] = Evil(flag)
    wrapped = fits.PrimaryHDU(lens(20).astype(np.float32))
    content = io.BytesIO()
    wrapped.writeto(content)
    files: dict[str, tuple[bytes | Array, str]] = {
        "__MACOSX/axion/._1.npy": (b"\x00\x05\x16\x07", "hidden"),
        ".DS_Store": (b"\x00", "hidden"),
        "notes.txt": (b"hello", "not an image format"),
        "inner.zip": (b"PK", "archive inside"),
        "empty.npy": (b"", "empty file"),
        "empty.jpg": (b"", "empty file"),
        "empty.h5": (b"", "empty file"),
        "empty.fits": (b"", "empty file"),
        "truncated.npy": (whole[:-9], "truncated"),
        "cut_header.npy": (whole[:40], "header"),
        "no_npy.npy": (b"this is no npy file at all", "not an .npy file"),
        "huge.npy": (header_npy((10**12,)) + b"\0" * 64, "truncated"),
        "huge_header.npy": (b"\x93NUMPY\x02\x00" + (2**20).to_bytes(4, "little") + b" " * 2**20, "header"),
        "negative.npy": (header_npy((-4, -4)) + b"\0" * 128, "truncated"),
        "zero.npy": (np.zeros((0, 64)), "no pixels"),
        "zero_objects.npy": (np.zeros(0, dtype=object), "no pixels"),
        "flat.npy": (np.zeros(4095), "shape 4095"),
        "five.npy": (np.zeros((1, 1, 8, 8, 8)), "shape 1x1x8x8x8"),
        "cube.npy": (np.zeros((9, 9, 9)), "shape 9x9x9"),
        "scalar.npy": (np.array(3.0), "shape"),
        "text.npy": (np.array([["a", "b"], ["c", "d"]]), "not numbers"),
        "complex.npy": (np.zeros((64, 64), dtype=complex), "not numbers"),
        "records.npy": (np.zeros((64, 64), dtype=[("a", "f8")]), "not numbers"),
        "nan.npy": (np.full((64, 64), np.nan), "no finite pixel"),
        "bad_mass.npy": (objects(lens(16), -1.0), "axion mass"),
        "odd_mass.npy": (objects(lens(16), np.ones(3)), "object array"),
        "rows_differ.npy": (objects(np.ones(16), np.ones(15), np.ones(16)), "object array"),
        "evil.npy": (object_npy(pickle.dumps(evil)), f"would run code ({os.system.__module__}.system)"),
        "broken_pickle.npy": (npy_bytes(objects(lens(16), 1e-23))[:-30], "damaged pickle"),
        "truncated.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 9, "damaged"),
        "text.jpg": (b"not a picture", "damaged"),
        "truncated.fits": (content.getvalue()[:3000], "damaged"),
        "text.fits": (b"not a fits file" * 300, "damaged"),
        "text.h5": (b"not an hdf5 file" * 100, "damaged"),
        "noise.fits": (content.getvalue(), "not a science image"),
        "weight_map.fits": (content.getvalue(), "not a science image"),
    }
    for name, (held, _) in files.items():
        write(root / name, held)
    hdf5(root / "nothing.h5", np.zeros(5))
    hdf5(root / "two.h5", np.zeros((2, 9, 9)), "a", b=np.zeros((2, 9, 9)))
    with h5py.File(root / "hollow.h5", "w") as file:
        file.create_dataset("images", (10**9, 64, 64), "f4", chunks=(1, 64, 64))
    with h5py.File(root / "elsewhere.h5", "w") as file:
        file.create_dataset("images", (1, 9, 9), "f4", external=[(str(root / "flat.npy"), 0, 324)])
    (root / "dead.npy").symlink_to(root / "nowhere.npy")
    more = {
        "nothing.h5": "no array of images",
        "two.h5": "several arrays",
        "hollow.h5": "more pixels than it stores",
        "elsewhere.h5": "in other files",
        "dead.npy": "dead link",
    }
    return {name: reason for name, (_, reason) in files.items()} | more
