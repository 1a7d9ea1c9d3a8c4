"""Every kind of file reads to its shapes, values, classes and numbers."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
import wild
from astropy.io import fits
from astropy.table import Table
from imported import Imported, refused
from PIL import Image
from pyarrow import parquet

from deeplense.data.formats import read_images
from deeplense.data.found import Asked, Foreign, Skipped


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def cutout(path: Path, primary: Any = None, **extensions: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hdus = [fits.ImageHDU(pixels, name=name) for name, pixels in extensions.items()]
    fits.HDUList([fits.PrimaryHDU(primary), *hdus]).writeto(path)
    return path


@pytest.fixture
def bands(tmp_path: Path) -> Path:
    for c, name in enumerate(("lens", "nonlens")):
        for k in range(4):
            for b, band in enumerate("gri"):
                cutout(tmp_path / "set" / name / f"obj{k}_{band}.fits", noise(20, 20, seed=100 * c + 10 * k + b))
    return tmp_path / "set"


@pytest.mark.parametrize("packed", ["folder", "zip", "tar", "tar.gz"])
def test_files_of_bands_are_joined_in_any_container(tmp_path: Path, bands: Path, packed: str) -> None:
    source = bands
    if packed != "folder":
        source = (wild.zipped if packed == "zip" else wild.tarred)(bands, tmp_path / f"set.{packed}")
    got = Imported(source, tmp_path / "out")
    assert got.manifest.image.bands == ["g", "r", "i"]
    assert len(got.image) == 8
    for c, name in enumerate(("lens", "nonlens")):
        for k in range(4):
            expected = [noise(20, 20, seed=100 * c + 10 * k + b) for b in range(3)]
            np.testing.assert_array_equal(got.image[f"{name}/obj{k}"], np.stack(expected))
            assert got.label[f"{name}/obj{k}"] == name


def test_bands_that_are_kept_apart_share_a_split(tmp_path: Path, bands: Path) -> None:
    got = Imported(bands, tmp_path / "out", bands="none", splits="train=0.5,test=0.5")
    assert len(got.image) == 24
    assert all(len({got.split[f"{c}/obj{k}_{b}"] for b in "gri"}) == 1 for c in ("lens", "nonlens") for k in range(4))
    assert set(got.split.values()) == {"train", "test"}


def test_bands_in_the_order_that_is_asked_for(tmp_path: Path, bands: Path) -> None:
    got = Imported(bands, tmp_path / "out", bands="r,g")
    assert got.manifest.image.bands == ["r", "g"]
    np.testing.assert_array_equal(got.image["lens/obj1"], np.stack([noise(20, 20, seed=10 + b) for b in (1, 0)]))
    assert got.says("skipped 8 x a band that --bands does not name")


def test_an_object_that_lacks_a_band_is_left_out_and_named(tmp_path: Path, bands: Path) -> None:
    (bands / "lens" / "obj2_r.fits").unlink()
    got = Imported(bands, tmp_path / "out")
    assert len(got.image) == 7
    assert got.says("skipped 1 x band r of the object is missing")
    (bands / "lens" / "obj3_r.fits").write_bytes(b"damaged")
    got = Imported(bands, tmp_path / "again")
    assert len(got.image) == 6
    assert got.says("skipped 1 x damaged: not readable as .fits")


def test_bands_of_different_sizes_are_one_line(tmp_path: Path) -> None:
    for name in ("lens", "nonlens"):
        cutout(tmp_path / "set" / name / "0_g.fits", noise(20, 20))
        cutout(tmp_path / "set" / name / "0_r.fits", noise(24, 24))
        cutout(tmp_path / "ext" / name / "0.fits", VIS=noise(20, 20), NIR_Y=noise(24, 24))
    said = refused(tmp_path / "set", tmp_path / "out")
    assert "bands of different sizes, g 20x20, r 24x24; --bands names those of one size" in said
    assert "bands of different sizes, VIS 20x20, NIR_Y 24x24" in refused(tmp_path / "ext", tmp_path / "out")
    for source, band in (("set", "r"), ("ext", "NIR_Y")):
        got = Imported(tmp_path / source, tmp_path / f"{source}.out", bands=band)
        assert got.image["lens/0"].shape == (1, 24, 24)


@pytest.mark.parametrize(
    ("extensions", "taken", "left"),
    [
        ({"WHT": 1, "SCI": 2, "DQ": 3}, [2], "WHT, DQ"),
        ({"VIS": 1, "VIS_RMS": 2, "NIR_H": 3, "NIR_Y": 4, "NIR_H_MASK": 5}, [1, 4, 3], "VIS_RMS, NIR_H_MASK"),
        ({"VIS_FLUX": 1, "VIS_MERPSF": 2, "NIR_Y_FLUX": 3}, [1, 3], "VIS_MERPSF"),
        ({"F814W": 1, "F160W": 2, "F475W": 3, "ERR": 4}, [3, 1, 2], "ERR"),
    ],
)
def test_extensions(tmp_path: Path, extensions: dict[str, int], taken: list[int], left: str) -> None:
    planes = {name: noise(20, 20, seed=k) for name, k in extensions.items()}
    cutout(tmp_path / "set" / "lens" / "0.fits", **planes)
    got = Imported(tmp_path / "set", tmp_path / "out")
    np.testing.assert_array_equal(got.image["lens/0"], np.stack([noise(20, 20, seed=k) for k in taken]))
    assert got.says(f"extensions {left} left out")


def test_an_image_before_its_error_and_axes_of_length_1(tmp_path: Path) -> None:
    cutout(tmp_path / "set" / "lens" / "0.fits", noise(20, 20), ERR=noise(20, 20, seed=1))
    cutout(tmp_path / "set" / "lens" / "1.fits", noise(1, 1, 20, 20))
    got = Imported(tmp_path / "set", tmp_path / "out")
    np.testing.assert_array_equal(got.image["lens/0"][0], noise(20, 20))
    np.testing.assert_array_equal(got.image["lens/1"][0], noise(1, 1, 20, 20)[0, 0])


@pytest.mark.parametrize("name", ["{}_weight", "{}.rms", "{}_psf", "masks/{}", "{}-dq"])
@pytest.mark.parametrize("suffix", [".fits", ".npy"])
def test_weights_noise_and_masks_beside_an_image_are_no_images(tmp_path: Path, name: str, suffix: str) -> None:
    for k in range(2):
        for path, seed in ((f"{k}", k), (name.format(k), 7 + k)):
            file = tmp_path / "set" / f"{path}{suffix}"
            pixels = noise(20, 20, seed=seed)
            cutout(file, pixels) if suffix == ".fits" else wild.write(file, pixels)
    got = Imported(tmp_path / "set", tmp_path / "out")
    assert set(got.image) == {"0", "1"}
    np.testing.assert_array_equal(got.image["1"][0], noise(20, 20, seed=1))
    assert got.says("skipped 2 x not a science image")


def test_fits_tables_of_images(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    flat = noise(5, 400)
    Table({"image": flat, "label": [0, 1, 0, 1, 1], "z": np.arange(5.0), "psf": noise(5, 81)}).write(
        tmp_path / "set/t.fits"
    )
    got = Imported(tmp_path / "set", tmp_path / "out")
    for k in range(5):
        np.testing.assert_array_equal(got.image[f"t#{k}"], flat[k].reshape(1, 20, 20))
        assert (got.label[f"t#{k}"], got.params[f"t#{k}"]) == (str([0, 1, 0, 1, 1][k]), {"z": float(k)})
    assert got.says("arrays psf left out")
    assert got.says("classes from 'label' (guessed; --label names another)")


def packed(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(arrays))
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        rows = {name: a.reshape(len(a), -1).tolist() if a.ndim > 1 else a for name, a in arrays.items()}
        parquet.write_table(pa.table(rows), path)


@pytest.mark.parametrize("suffix", [".npz", ".pkl", ".h5", ".parquet"])
def test_named_arrays_with_labels_and_numbers(tmp_path: Path, suffix: str) -> None:
    images, label, z = noise(6, 20, 20), np.arange(6) % 3, np.linspace(0, 1, 6)
    packed(
        tmp_path / "set" / f"d{suffix}", {"images": images, "ans": label, "redshift": z, "pxscale": np.full(6, 0.26)}
    )
    got = Imported(tmp_path / "set", tmp_path / "out")
    for k in range(6):
        np.testing.assert_array_equal(got.image[f"d#{k}"][0], images[k])
        assert (got.label[f"d#{k}"], got.params[f"d#{k}"]) == (str(label[k]), {"redshift": z[k]})
    assert got.manifest.image.pixel_scale == pytest.approx(0.26)
    assert refused(tmp_path / "set", tmp_path / "no", images="pictures").startswith("--images 'pictures': no array")


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_an_array_a_class_and_a_file_an_object(tmp_path: Path, suffix: str) -> None:
    packed(tmp_path / "classes" / f"d{suffix}", {"hot": noise(6, 20, 20), "cold": noise(4, 20, 20)})
    got = Imported(tmp_path / "classes", tmp_path / "a")
    assert got.label == {f"d/{c}#{k}": c for c, n in (("hot", 6), ("cold", 4)) for k in range(n)}
    np.testing.assert_array_equal(got.image["d/cold#3"][0], noise(4, 20, 20)[3])
    for k in range(3):
        packed(
            tmp_path / "objects" / f"{k}{suffix}",
            {"g": noise(20, 20, seed=k), "r": noise(20, 20), "label": np.array(k % 2)},
        )
    got = Imported(tmp_path / "objects", tmp_path / "b")
    np.testing.assert_array_equal(got.image["2"], np.stack([noise(20, 20, seed=2), noise(20, 20)]))
    assert (got.label, got.manifest.image.bands) == ({"0": "0", "1": "1", "2": "0"}, ["g", "r"])


def test_splits_of_arrays(tmp_path: Path) -> None:
    x, y = noise(30, 20, 20), np.arange(30) % 2
    packed(tmp_path / "set" / "d.npz", {"x_train": x[:20], "y_train": y[:20], "x_test": x[20:], "y_test": y[20:]})
    got = Imported(tmp_path / "set", tmp_path / "out", splits=None)
    assert got.manifest.splits == {"train": 20, "test": 10}
    assert got.label["d/test#3"] == str(y[23])
    np.testing.assert_array_equal(got.image["d/test#3"][0], x[23])


def test_one_array_of_several_is_named_by_the_user(tmp_path: Path) -> None:
    arrays = {
        "a": noise(6, 20, 20),
        "b": noise(6, 20, 20, seed=1),
        "nested/kind": np.arange(6) % 2,
        "class": np.arange(6) % 3,
    }
    packed(tmp_path / "set" / "d.h5", arrays)
    assert "several arrays, a, b, and not one alone is named image; name it with --images" in refused(
        tmp_path / "set", tmp_path / "out"
    )
    assert "are both classes, and disagree; name one with --label" in refused(
        tmp_path / "set", tmp_path / "out", images="b"
    )
    got = Imported(tmp_path / "set", tmp_path / "out", images="b", label="kind")
    np.testing.assert_array_equal(got.image["d#5"][0], arrays["b"][5])
    assert got.label["d#5"] == "1"


def test_parquet_of_encoded_pictures_with_names_of_classes(tmp_path: Path) -> None:
    pixels = (noise(3, 20, 20, 3) * 40 + 128).clip(0, 255).astype(np.uint8)
    files = []
    for one in pixels:
        file = io.BytesIO()
        Image.fromarray(one).save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    told = {"info": {"features": {"label": {"names": ["lens", "nonlens"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": files, "label": [1, 0, 1]}).replace_schema_metadata({"huggingface": json.dumps(told)})
    (tmp_path / "set").mkdir()
    parquet.write_table(table, tmp_path / "set" / "d.parquet")
    got = Imported(tmp_path / "set", tmp_path / "out")
    assert got.label == {"d#0": "nonlens", "d#1": "lens", "d#2": "nonlens"}
    np.testing.assert_array_equal(got.image["d#1"], np.moveaxis(pixels[1], -1, 0))


def test_webdataset(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard-0.tar", "w") as archive:
        for k in range(4):
            about = json.dumps({"theta_E": 1.0 + k, "survey": "x"}).encode()
            image = wild.npy_bytes(noise(20, 20, seed=k))
            for name, content in (
                (f"{k:06}.cls", str(k % 2).encode()),
                (f"{k:06}.img.npy", image),
                (f"{k:06}.json", about),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    got = Imported(tmp_path / "shard-0.tar", tmp_path / "out")
    assert got.label == {f"{k:06}": str(k % 2) for k in range(4)}
    np.testing.assert_array_equal(got.image["000003"][0], noise(20, 20, seed=3))
    assert got.params["000003"] == {"theta_E": 4.0}


def test_pages_and_depths_of_tiff(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pages = [Image.fromarray(noise(20, 20, seed=k)) for k in range(3)]
    pages[0].save(tmp_path / "set" / "pages.tif", save_all=True, append_images=pages[1:])
    deep = (noise(20, 20) * 1e4 + 3e4).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    got = Imported(tmp_path / "set", tmp_path / "out")
    np.testing.assert_array_equal(got.image["pages"], np.stack([noise(20, 20, seed=k) for k in range(3)]))
    np.testing.assert_array_equal(Imported(tmp_path / "deep.tiff", tmp_path / "b").image["deep"][0], deep)


def test_a_gzipped_file_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    from deeplense.data import budget

    path = wild.write(tmp_path / "set" / "bomb.fits.gz", gzip.compress(bytes(2**24)))
    monkeypatch.setattr(budget, "MOST_BYTES", 2**20)
    (found,) = read_images(path)
    assert isinstance(found, Skipped)
    assert "unpacks to more than 1 MiB" in found.reason


def test_a_pickle_of_arrays_runs_nothing(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    wild.write(tmp_path / "set" / "evil.pkl", pickle.dumps({"image": noise(20, 20), "label": wild.Evil(flag)}))
    (found,) = read_images(tmp_path / "set")
    assert isinstance(found, Skipped)
    assert "would run code" in found.reason
    assert not flag.exists()


def test_a_parquet_of_runs_is_measured_by_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeplense.data import budget

    (tmp_path / "set").mkdir()
    parquet.write_table(pa.table({"image": [[0.0] * 400] * 4000}), tmp_path / "set" / "runs.parquet")
    assert (tmp_path / "set" / "runs.parquet").stat().st_size < 2**17
    monkeypatch.setattr(budget, "MOST_BYTES", 2**20)
    (found,) = read_images(tmp_path / "set")
    assert isinstance(found, Skipped)
    assert "unpacks to more than" in found.reason


def test_classes_that_disagree_are_no_matter_of_a_prediction(tmp_path: Path) -> None:
    packed(tmp_path / "d.h5", {"images": noise(6, 20, 20), "label": np.arange(6) % 3, "class": np.arange(6) % 2})
    assert "disagree" in refused(tmp_path / "d.h5", tmp_path / "out")
    found = list(read_images(tmp_path / "d.h5", asked=Asked(label=None)))
    assert [one.label for one in found if isinstance(one, Foreign)] == [None] * 6


def test_a_numbered_array_an_image_in_groups_of_classes(tmp_path: Path) -> None:
    packed(tmp_path / "d.h5", {f"{c}/{k}": noise(20, 20, seed=k) for c in ("cdm", "axion") for k in range(3)})
    got = Imported(tmp_path / "d.h5", tmp_path / "out")
    assert got.label == {f"d/{c}/{k}": c for c in ("cdm", "axion") for k in range(3)}
    np.testing.assert_array_equal(got.image["d/axion/2"][0], noise(20, 20, seed=2))
