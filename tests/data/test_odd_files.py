"""Forms that no standard names, but people have: read with every class and number, or refused with a reason."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from imported import Imported, refused
from PIL import Image
from pyarrow import parquet

N = 6
KINDS = ("cdm", "no_sub")


def stack(*shape: int) -> Any:
    return np.random.default_rng([7, *shape]).normal(5, 1, (N, *shape)).astype(np.float32)


def check(got: Imported, images: Any, name: str, classes: tuple[str, ...] = KINDS) -> None:
    """Image k of `images` is called `name` with k in it, and of every second class."""
    assert len(got.image) == len(images)
    for k, image in enumerate(images):
        id = name.format(k)
        np.testing.assert_array_equal(got.image[id], image if image.ndim == 3 else image[None])
        assert got.label[id] == classes[k % 2]


def objects(rows: Any) -> Any:
    array = np.empty(len(rows), dtype=object)
    for k, row in enumerate(rows):
        array[k] = row
    return array


@pytest.mark.parametrize("form", ["PE()", "QD()", "PJ()"])
def test_a_fits_column_of_variable_length_is_one_of_images_where_all_rows_are_alike(tmp_path: Path, form: str) -> None:
    images = np.rint(10 * stack(16, 16))
    columns = [
        fits.Column("name", "8A", array=[f"o{k}" for k in range(N)]),
        fits.Column("stamp", form, array=objects([image.reshape(-1) for image in images])),
        fits.Column("label", "8A", array=[KINDS[k % 2] for k in range(N)]),
        fits.Column("z", "E", array=np.arange(N) / 8),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    got = Imported(tmp_path / "t.fits", tmp_path / "out")
    check(got, images, "t#{}")
    assert got.params["t#3"] == {"z": 3 / 8}


@pytest.mark.parametrize("kind", ["fits", "parquet"])
def test_a_column_of_rows_of_different_lengths_is_named_and_not_dropped(tmp_path: Path, kind: str) -> None:
    rows = [np.ones((16 if k else 15) ** 2, np.float32) for k in range(N)]
    if kind == "fits":
        columns = [fits.Column("stamp", "PE()", array=objects(rows)), fits.Column("z", "E", array=np.zeros(N))]
        fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    else:
        parquet.write_table(pa.table({"stamp": [r.tolist() for r in rows], "z": [0.0] * N}), tmp_path / "t.parquet")
    assert "stamp (rows of different lengths" in refused(tmp_path / f"t.{kind}", tmp_path / "out")


def test_rows_that_name_the_same_bytes_again_and_again_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "t.fits"
    fits.BinTableHDU.from_columns([fits.Column("stamp", "PE()", array=objects([np.ones(256, "f4")] * N))]).writeto(path)
    content = path.read_bytes()
    start = content.index(b"END" + b" " * 77, 2880) // 2880 * 2880 + 2880  # of the table: (length, place) of each row
    rows = np.array([[256 * N, 0]] * N, dtype=">i4").tobytes()
    path.write_bytes(content[:start] + rows + content[start + len(rows) :])
    assert "declares more than it stores" in refused(path, tmp_path / "out")


def wds(path: Path, keys: list[str], images: Any, first: int) -> None:
    with tarfile.open(path, "w") as tar:
        for j, (key, image) in enumerate(zip(keys, images, strict=True)):
            file = io.BytesIO()
            np.save(file, image)
            said = {"npy": file.getvalue(), "cls": KINDS[(first + j) % 2].encode()}
            said["json"] = json.dumps({"theta_E": 1 + first + j}).encode()
            for ending, content in said.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("unique", [True, False])
def test_a_folder_of_tars_is_one_webdataset(tmp_path: Path, unique: bool) -> None:
    source, images = tmp_path / "set", stack(20, 20)
    source.mkdir()
    (source / "README").write_text("what it is")
    for s in range(2):
        keys = [f"{k + 3 * s if unique else k:06}" for k in range(3)]
        wds(source / f"lenses-{s:04}.tar", keys, images[3 * s : 3 * s + 3], 3 * s)
    got = Imported(source, tmp_path / "out")
    ids = [f"{k:06}" for k in range(6)] if unique else [f"{'0001_' * (k > 2)}{k % 3:06}" for k in range(6)]
    for k, id in enumerate(ids):
        np.testing.assert_array_equal(got.image[id][0], images[k])
        assert (got.label[id], got.params[id]) == (KINDS[k % 2], {"theta_E": 1 + k})


def test_archives_of_different_names_are_classes_or_splits(tmp_path: Path) -> None:
    for name in ("train", "test"):
        wds(tmp_path / f"{name}-0.tar", ["1", "2"], stack(20, 20)[:2], 0)
    got = Imported(tmp_path, tmp_path / "out", splits=None)
    assert got.split == {"train/1": "train", "train/2": "train", "test/1": "test", "test/2": "test"}


def test_an_archive_among_images_is_left_out_and_said(tmp_path: Path) -> None:
    source = tmp_path / "set"
    source.mkdir()
    np.save(source / "1.npy", stack(20, 20)[0])
    wds(source / "again.tar", ["1"], stack(20, 20)[:1], 0)
    got = Imported(source, tmp_path / "out")
    assert list(got.image) == ["1"]
    assert got.says("an archive inside the source")


@pytest.mark.parametrize("form", ["attributes", "arrays", "channels", "no_groups"])
def test_hdf5_with_a_group_for_each_object(tmp_path: Path, form: str) -> None:
    images = stack(3, 20, 20) if form == "channels" else stack(20, 20)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for k, image in enumerate(images):
            if form == "no_groups":
                thing = data = file.create_dataset(f"lens_{k}", data=image)
            else:
                thing = file.create_group(f"data/lens_{k}")
                data = thing.create_dataset("image", data=image)
                thing["psf"] = np.ones((7, 7))
            data.attrs["pixel_scale"] = 0.05
            if form == "arrays":
                thing["theta_E"], thing["label"] = 1 + k / 8, KINDS[k % 2]
            else:
                thing.attrs["theta_E"], thing.attrs["label"] = 1 + k / 8, KINDS[k % 2]
    got = Imported(tmp_path / "x.h5", tmp_path / "out")
    check(got, images, "x/lens_{}")
    assert [got.params[f"x/lens_{k}"] for k in range(N)] == [{"theta_E": 1 + k / 8} for k in range(N)]
    assert got.manifest.image.pixel_scale == pytest.approx(0.05)
    assert got.says("arrays psf left out") == (form != "no_groups")


def test_a_number_that_is_a_class_is_no_parameter_and_a_place_is_no_class(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for k, image in enumerate(stack(20, 20)):
            group = file.create_group(f"lens_{k}")
            group["image"] = image
            group.attrs["x"], group.attrs["y"], group.attrs["label"] = 0.25 + k, 0.5 + k, k % 2
    got = Imported(tmp_path / "x.h5", tmp_path / "out")
    check(got, stack(20, 20), "x/lens_{}", ("0", "1"))
    assert got.params["x/lens_3"] == {"x": 3.25, "y": 3.5}


def test_hdf5_groups_of_classes_that_hold_groups_of_objects(tmp_path: Path) -> None:
    images, kinds = stack(20, 20), ("cdm", "no_sub", "wdm", "sidm", "uldm", "axion")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for k, image in enumerate(images):
            for copy in range(2):
                file[f"{kinds[k]}/lens_{copy}/image"] = image + copy
    got = Imported(tmp_path / "x.h5", tmp_path / "out")
    assert got.manifest.classes == sorted(kinds)
    for k, kind in enumerate(kinds):
        np.testing.assert_array_equal(got.image[f"x/{kind}/lens_1"][0], images[k] + 1)
        assert got.label[f"x/{kind}/lens_1"] == kind


def test_hdf5_groups_of_classes_with_arrays_of_images_stay_that(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for kind in ("hot", "cold"):
            file[f"{kind}/images"] = stack(20, 20)[:4]
    got = Imported(tmp_path / "x.h5", tmp_path / "out")
    assert sorted(set(got.label.values())) == ["cold", "hot"]
    assert {image.shape for image in got.image.values()} == {(1, 20, 20)}


def test_npz_files_of_one_array_are_classes(tmp_path: Path) -> None:
    source, images = tmp_path / "set", stack(20, 20)
    source.mkdir()
    for c, kind in enumerate(KINDS):
        np.savez(source / f"{kind}.npz", images[3 * c : 3 * c + 3])
    got = Imported(source, tmp_path / "out")
    for k, image in enumerate(images):
        id = f"{KINDS[k // 3]}#{k % 3}"
        np.testing.assert_array_equal(got.image[id][0], image)
        assert got.label[id] == KINDS[k // 3]


def test_npz_of_arrays_kept_as_objects(tmp_path: Path) -> None:
    images = stack(20, 20)
    np.savez(tmp_path / "x.npz", images=objects(images), label=objects([KINDS[k % 2] for k in range(N)]))
    check(Imported(tmp_path / "x.npz", tmp_path / "out"), images, "x#{}")


def test_transparency_is_left_out_and_said(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (N, 20, 20, 2)).astype(np.uint8)
    for k in range(N):
        Image.fromarray(pixels[k], "LA").save(tmp_path / f"{k}.png")
    got = Imported(tmp_path, tmp_path / "out")
    for k in range(N):
        np.testing.assert_array_equal(got.image[f"{k}"][0], pixels[k, ..., 0])
    assert got.says(f"{N} x transparency left out")


def named(folder: Path, table: str) -> Path:
    folder.mkdir()
    for k, image in enumerate(stack(20, 20)):
        np.save(folder / f"o{k}.npy", image)
    (folder / "labels.csv").write_text(table)
    return folder


def test_a_table_with_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    rows = "".join(f"o{k};{KINDS[k % 2]};{k},5\n" for k in range(N))
    got = Imported(named(tmp_path / "set", "\ufeffid;class;z\n" + rows), tmp_path / "out")
    check(got, stack(20, 20), "o{}")
    assert [got.params[f"o{k}"]["z"] for k in range(N)] == [k + 0.5 for k in range(N)]


ROWS = "".join(f"o{k},{KINDS[k % 2]},{k}\n" for k in range(N))


def test_ids_that_come_twice_and_say_the_same_are_named(tmp_path: Path) -> None:
    got = Imported(named(tmp_path / "set", "id,class,z\n" + ROWS + "o2,cdm,2\n"), tmp_path / "out")
    check(got, stack(20, 20), "o{}")
    assert got.says("1 ids come twice, and say the same (e.g. o2)")
    assert got.says("images by column 'id'")


@pytest.mark.parametrize(("row", "why"), [("o2,no_sub,2\n", "name different classes"), ("o2,cdm,9\n", "differ in 'z'")])
def test_ids_that_come_twice_and_disagree_are_refused(tmp_path: Path, row: str, why: str) -> None:
    told = refused(named(tmp_path / "set", "id,class,z\n" + ROWS + row), tmp_path / "out")
    assert "two rows with the id 'o2'" in told
    assert why in told
