from __future__ import annotations

import gzip
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wild
from astropy.io import fits
from PIL import Image

from deeplense.data import budget
from deeplense.data.formats import Foreign, Skipped, read_images
from deeplense.data.store import Dataset
from deeplense.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def images(source: Path) -> dict[str, Foreign]:
    """By id; fails on anything skipped."""
    found = list(read_images(source))
    assert [item for item in found if isinstance(item, Skipped)] == []
    by_id = {item.id: item for item in found if isinstance(item, Foreign)}
    assert len(by_id) == len(found)
    for item in by_id.values():
        assert item.image.dtype == np.float32
        assert item.image.flags.c_contiguous
    return by_id


def one(path: Path, content: bytes | np.ndarray) -> Foreign | Skipped:
    (found,) = read_images(wild.write(path, content))
    return found


@pytest.mark.parametrize(
    ("make", "shape", "labels", "n"),
    [
        (wild.model, (1, 150, 150), {"axion", "cdm", "no_sub"}, 12),
        (lambda root: wild.model(root, "II"), (1, 64, 64), {"axion", "cdm", "no_sub"}, 12),
        (wild.model_4_scripted, (3, 64, 64), {"axion", "cdm", "no_sub"}, 18),
        (wild.model_4_circulating, (1, 64, 64), {"axion", "cdm", "no_sub"}, 9),
        (wild.common_test, (1, 150, 150), {"axion", "cdm", "no_sub"}, 18),
        (wild.sub_no_sub, (1, 150, 150), {"sub", "no_sub"}, 10),
        (wild.lens_finding, (3, 64, 64), {"lens", "nonlens"}, 12),
        (lambda root: wild.super_resolution(root, real=True) / "LR", (1, 64, 64), {None}, 3),
    ],
    ids=["model 1", "model 2", "model 4 scripted", "model 4", "common test", "sub/no_sub", "lens finding", "LR"],
)
@pytest.mark.parametrize("packed", ["folder", "zip", "tar", "tar.gz"])
def test_published_sets(
    tmp_path: Path, make: Callable[[Path], Path], shape: tuple[int, ...], labels: set[str | None], n: int, packed: str
) -> None:
    folder = make(tmp_path / "set")
    source = folder
    if packed == "zip":
        source = wild.zipped(folder, tmp_path / "set.zip")
    elif packed.startswith("tar"):
        source = wild.tarred(folder, tmp_path / f"set.{packed}")
    found = images(source)
    assert {item.image.shape for item in found.values()} == {shape}
    assert {item.label for item in found.values()} == labels
    assert len(found) == n
    expected = {f.relative_to(folder).with_suffix("").as_posix() for f in folder.rglob("*.*") if f.is_file()}
    assert set(found) == expected


def test_model_1_values_and_masses(tmp_path: Path) -> None:
    found = images(wild.model(tmp_path / "set", "I", n=3))
    axion = [item for item in found.values() if item.label == "axion"]
    assert [round(item.params["log10_m_axion"], 9) for item in axion] == [-24, -23, -22]
    assert all(item.params == {} for item in found.values() if item.label != "axion")
    for k, item in enumerate(axion):
        np.testing.assert_array_equal(item.image[0], (wild.lens(150, k) * 1000).astype(np.int64))


@pytest.mark.parametrize("mass", [3e-23, np.array(3e-23), [3e-23], np.array([3e-23]), np.float32(3e-23)])
def test_masses_in_every_form(tmp_path: Path, mass: object) -> None:
    found = one(tmp_path / "a.npy", wild.objects(wild.lens(16), mass))
    assert isinstance(found, Foreign)
    assert found.params["log10_m_axion"] == pytest.approx(np.log10(3e-23), abs=1e-6)


def test_shapes_of_npy(tmp_path: Path) -> None:
    image = wild.lens(16)
    colour = np.stack([image, 2 * image, 3 * image])
    forms = {
        "two_d": (image, image[None]),
        "fortran": (np.asfortranarray(image), image[None]),
        "channel_first": (colour, colour),
        "channel_last": (np.moveaxis(colour, 0, 2), colour),
        "uint8": ((image * 50).astype(np.uint8), (image * 50).astype(np.uint8)[None]),
        "big_endian": (image.astype(">f4"), image[None]),
        "rows": (wild.objects(*image), image[None]),
        "numbers": (image.astype(object), image[None]),
        "pair_of_rows": (wild.objects(wild.objects(*image), 1e-23), image[None]),
        "flat": (image.ravel(), image[None]),
        "flat_label": (np.append(image.ravel(), 2), image[None]),
        "column_label": (np.append(image.ravel(), 0)[:, None], image[None]),
    }
    labels = {}
    for name, (array, expected) in forms.items():
        found = one(tmp_path / f"{name}.npy", array)
        assert isinstance(found, Foreign), (name, found)
        np.testing.assert_array_equal(found.image, expected.astype(np.float32), err_msg=name)
        labels[name] = found.label
    assert labels.pop("flat_label") == "2"
    assert labels.pop("column_label") == "0"
    assert set(labels.values()) == {None}


def test_nan_pixels_are_kept_and_counted(tmp_path: Path) -> None:
    image = wild.lens(16)
    image[0, :4] = np.nan, np.inf, -np.inf, 1e300  # the last overflows float32
    found = one(tmp_path / "a.npy", image)
    assert isinstance(found, Foreign)
    assert found.nan_share == 4 / 256
    assert np.isnan(found.image[0, 0, :4]).all()
    np.testing.assert_array_equal(found.image[0, 1:], image[1:].astype(np.float32))


def test_pictures(tmp_path: Path) -> None:
    shapes = {
        "grey.jpg": "L",
        "grey_as_colour.png": "RGB",
        "colour.png": "colour",
        "palette.png": "P",
        "alpha.png": "RGBA",
    }
    for name, mode in shapes.items():
        wild.picture(tmp_path / name, 20, mode=mode)
    deep = (wild.lens(20) * 3e4).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    found = images(tmp_path)
    assert {k: v.image.shape[0] for k, v in found.items()} == {
        **dict.fromkeys(("grey", "grey_as_colour", "palette", "alpha", "deep"), 1),
        "colour": 3,
    }
    np.testing.assert_array_equal(found["deep"].image[0], deep)
    # 8 bits a pixel, not upside down
    np.testing.assert_array_equal(found["grey_as_colour"].image[0], (wild.lens(20) * 200).clip(0, 255).astype(np.uint8))


def test_fits_pixel_scale(tmp_path: Path) -> None:
    bare = {"CDELT1": -0.05 / 3600, "CDELT2": 0.05 / 3600}
    cases = {
        "wcs": ({"pixel_scale": 0.04}, 0.04),
        "none": ({"pixel_scale": None}, None),
        "cdelt": ({"pixel_scale": None, "header": bare}, 0.05),
        "cd": ({"pixel_scale": None, "header": {"CD1_1": -0.03 / 3600, "CD2_2": 0.03 / 3600}}, 0.03),
        "unit": ({"pixel_scale": None, "header": {"CDELT1": 0.2, "CDELT2": 0.2, "CUNIT1": "arcsec"}}, 0.2),
        "meaningless": ({"pixel_scale": None, "header": {"CDELT1": 1.0, "CDELT2": 1.0}}, None),
    }
    for name, (options, expected) in cases.items():
        (found,) = images(wild.telescope(tmp_path / f"{name}.fits", **options)).values()
        assert found.pixel_scale == (None if expected is None else pytest.approx(expected)), name
        assert found.image.shape == (1, 61, 61)
        assert found.nan_share == 1 / 61**2
        np.testing.assert_array_equal(found.image[0, 1:], wild.lens(61).astype(np.float32)[1:])


@pytest.mark.parametrize("packed", ["folder", "zip", "tar", "tar.gz"])
def test_companion_noise_masks_pixels(tmp_path: Path, packed: str) -> None:
    folder = wild.slacs(tmp_path / "slacs")
    source = {
        "folder": lambda: folder,
        "zip": lambda: wild.zipped(folder, tmp_path / "s.zip"),
        "tar": lambda: wild.tarred(folder, tmp_path / "s.tar"),
        "tar.gz": lambda: wild.tarred(folder, tmp_path / "s.tar.gz"),
    }[packed]()
    found = list(read_images(source))
    good = {item.id: item for item in found if isinstance(item, Foreign)}
    assert set(good) == {"J0330-0020/image", "J0405-0455/image"}
    for item in good.values():
        assert item.nan_share == pytest.approx(2 / 41)
        assert np.isnan(item.image[0, :2]).all()
        assert np.isfinite(item.image[0, 2:]).all()
    reasons = sorted(item.reason for item in found if isinstance(item, Skipped))
    assert reasons == ["not a science image"] * 4 + ["not an image format"]


def test_single_file_with_companion(tmp_path: Path) -> None:
    folder = wild.slacs(tmp_path / "slacs") / "J0330-0020"
    (found,) = read_images(folder / "image.fits")
    assert isinstance(found, Foreign)
    assert (found.id, found.file) == ("image", str(folder / "image.fits"))
    assert found.nan_share > 0
    fits.writeto(folder / "noise.fits", np.ones((5, 5)), overwrite=True)
    (skipped,) = read_images(folder / "image.fits")
    assert isinstance(skipped, Skipped)
    assert "another shape" in skipped.reason


def test_hdf5_rows(tmp_path: Path) -> None:
    stack = np.stack([wild.lens(20, k) for k in range(7)])
    wild.hdf5(tmp_path / "set" / "plain.h5", stack, "images", label=np.arange(7))
    wild.hdf5(tmp_path / "set" / "bands.hdf5", stack[:6].reshape(2, 3, 20, 20), "deep/image_data")
    wild.hdf5(tmp_path / "set" / "last.h5", np.moveaxis(stack[:6].reshape(2, 3, 20, 20), 1, 3), "x")
    wild.hdf5(tmp_path / "set" / "single.h5", stack[0], "image")
    for source in (tmp_path / "set", wild.zipped(tmp_path / "set", tmp_path / "set.zip")):
        found = images(source)
        assert set(found) == {
            *(f"plain#{k}" for k in range(7)),
            *(f"{name}#{k}" for name in ("bands", "last") for k in (0, 1)),
            "single",
        }
        np.testing.assert_array_equal(found["plain#5"].image[0], stack[5].astype(np.float32))
        np.testing.assert_array_equal(found["bands#1"].image, stack[3:6].astype(np.float32))
        np.testing.assert_array_equal(found["last#1"].image, stack[3:6].astype(np.float32))


def test_a_bad_row_costs_that_row(tmp_path: Path) -> None:
    stack = np.stack([wild.lens(20, k) for k in range(3)])
    stack[1] = np.nan
    found = list(read_images(wild.hdf5(tmp_path / "a.h5", stack)))
    assert [type(item) for item in found] == [Foreign, Skipped, Foreign]


def test_a_class_a_file(tmp_path: Path) -> None:
    for name in ("axion", "no_sub"):
        wild.hdf5(tmp_path / f"{name}.h5", np.stack([wild.lens(20, k) for k in range(2)]))
    assert {item.label for item in images(tmp_path).values()} == {"axion", "no_sub"}


def test_a_dataset(tiny_dataset: Path) -> None:
    found = images(tiny_dataset)
    split = Dataset(tiny_dataset).split("val")
    item = found[split.ids[4]]
    np.testing.assert_array_equal(item.image, split.images(np.array([4]))[0].numpy())
    assert item.label == ("axion", "cdm", "no_sub")[4 % 3]
    assert item.pixel_scale == 0.1
    assert len(found) == 128
    assert found[split.ids[0]].params["log10_m_axion"] == split.params[0, 0]


def test_ids_stay_unique(tmp_path: Path) -> None:
    wild.write(tmp_path / "a" / "x.npy", wild.lens(16))
    wild.picture(tmp_path / "a" / "x.png", 16)
    wild.picture(tmp_path / "a" / "x.jpg", 16)
    assert set(images(tmp_path)) == {"a/x", "a/x.npy", "a/x.png"}


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    wild.write(tmp_path / "far" / "1.npy", wild.lens(16))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cdm").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "circle").symlink_to(tmp_path / "set")
    assert set(images(tmp_path / "set")) == {"cdm/1"}


def test_traps(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    root = tmp_path / "set"
    expected = wild.traps(root, flag)
    wild.write(root / "good.npy", wild.lens(64))
    found = list(read_images(root))
    reasons = {Path(item.file).relative_to(root).as_posix(): item.reason for item in found if isinstance(item, Skipped)}
    assert set(reasons) == set(expected)
    for name, part in expected.items():
        assert part in reasons[name], name
        assert "\n" not in reasons[name]
    (good,) = (item for item in found if isinstance(item, Foreign))
    assert good.id == "good"
    assert not flag.exists()


def test_promises_are_not_allocated(tmp_path: Path) -> None:
    files = {
        "huge.npy": wild.header_npy((10**12,)),
        "huge_objects.npy": wild.object_npy(b"N.", (10**12,)),
        "huge_bytes.npy": wild.object_npy(b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"."),
    }
    card = (
        "".join(
            f"{k:<8}= {v:>20}".ljust(80)
            for k, v in {
                "SIMPLE": "T",
                "BITPIX": -64,
                "NAXIS": 2,
                "NAXIS1": 10**6,
                "NAXIS2": 10**6,
            }.items()
        )
        + "END"
    )
    files["huge.fits"] = card.ljust(2880).encode()
    for name, content in files.items():
        wild.write(tmp_path / name, content)
    tracemalloc.start()
    found = list(read_images(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [type(item) for item in found] == [Skipped] * len(files)
    assert peak < 2**24


def test_memory_stays_bounded(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).random((600, 128, 128), dtype=np.float32)  # 39 MB
    wild.hdf5(tmp_path / "set" / "a.h5", stack)
    for k in range(100):
        wild.write(tmp_path / "set" / f"{k}.npy", stack[k].astype(np.float64))
    archive = wild.tarred(tmp_path / "set", tmp_path / "set.tar")
    for source, limit in ((tmp_path / "set", 2**26), (archive, 2**27)):  # a block of 64 MiB, or the member in memory
        tracemalloc.start()
        assert sum(isinstance(item, Foreign) for item in read_images(source)) == 700
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit


def test_bad_members_of_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    good = wild.npy_bytes(wild.lens(16))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside.npy", good)
        archive.writestr("/etc/absolute.npy", good)
        archive.writestr("bomb.npy", wild.npy_bytes(np.zeros((1000, 1000))))
        archive.writestr("windows\\1.npy", good)
        archive.writestr("./cdm//2.npy", good)
        archive.writestr("damaged.npy", good)
    content = bytearray(path.read_bytes())
    at = content.index(b"damaged.npy") + 200
    content[at : at + 50] = bytes(50)
    path.write_bytes(content)
    monkeypatch.setattr(budget, "LARGEST", 10**6)
    before = sorted(tmp_path.rglob("*"))
    found = list(read_images(path))
    reasons = {item.file.removeprefix(f"{path}/"): item.reason for item in found if isinstance(item, Skipped)}
    assert reasons == {
        "../../outside.npy": "its path leaves the archive",
        "/etc/absolute.npy": "its path leaves the archive",
        "bomb.npy": "larger than 0 GiB",
        "damaged.npy": "damaged in the archive",
    }
    assert {item.id for item in found if isinstance(item, Foreign)} == {"windows/1", "cdm/2"}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.93])
def test_damaged_archives(tmp_path: Path, name: str, kept: float) -> None:
    folder = wild.model(tmp_path / "set", "II", n=2)
    pack = wild.zipped if name.endswith("zip") else wild.tarred
    path = pack(folder, tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(b"no archive" if kept == 1 else content[: int(kept * len(content))])
    with pytest.raises(UserError, match=name) as caught:
        list(read_images(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_cut_between_its_files_is_damaged(tmp_path: Path, name: str) -> None:
    folder = wild.model_4_circulating(tmp_path / "set")
    path = wild.tarred(folder, tmp_path / "a.tar")
    with tarfile.open(path) as archive:
        start = archive.getmembers()[5].offset
    for cut in (start, start + 100):
        content = path.read_bytes()[:cut]
        (tmp_path / "b.tar").write_bytes(content)
        (tmp_path / "b.tar.gz").write_bytes(gzip.compress(content))
        with pytest.raises(UserError, match="ends too early"):
            list(read_images(tmp_path / name.replace("a.", "b.")))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(read_images(tmp_path / "nowhere"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared/data beside the project")
def test_real_hubble_lenses() -> None:
    found = list(read_images(SHARED / "slacs"))
    good = {item.id: item for item in found if isinstance(item, Foreign)}
    assert len(good) == 12
    assert good["J0330-0020/image"].image.shape == (1, 201, 201)
    noise = fits.getdata(SHARED / "slacs" / "J0330-0020" / "noise.fits")
    assert good["J0330-0020/image"].nan_share == pytest.approx(np.mean(noise > 1e7))
    assert all(item.pixel_scale is None and item.label is None for item in good.values())
    assert sum(isinstance(item, Skipped) for item in found) == 25
