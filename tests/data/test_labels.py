"""Classes and numbers from tables, file names, folders and groups; sizes; strange pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import wild
from astropy.table import Table
from imported import Imported, refused

from deeplense.cli import main
from deeplense.data.store import Dataset


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k in range(6):
        wild.write(tmp_path / "set" / "cutouts" / f"obj_{k}.npy", wild.lens(20, k))
    return tmp_path / "set"


def table(path: Path, **columns: Any) -> str:
    if path.suffix == ".csv":
        rows = zip(*columns.values(), strict=True)
        path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]))
    else:
        Table(columns).write(path)
    return str(path)


NAMES = [f"obj_{k}" for k in (3, 1, 0, 5, 4, 2)]
EXPECTED = {f"cutouts/obj_{k}": ("ab"[k % 2], {"theta_E": k / 4}) for k in range(6)}


@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".fits", ".parquet"])
@pytest.mark.parametrize("form", ["{}", "{}.npy", "/data/cutouts/{}.npy", "cutouts/{}"])
def test_tables_in_any_order_and_way_of_naming(tmp_path: Path, images: Path, suffix: str, form: str) -> None:
    said = table(
        tmp_path / f"t{suffix}",
        who=[form.format(name) for name in NAMES],
        morph=["ab"[int(name[-1]) % 2] for name in NAMES],
        theta_E=[int(name[-1]) / 4 for name in NAMES],
        other=np.arange(6.0),
    )
    got = Imported(images, tmp_path / "out", labels=said, id="who", class_="morph", targets="theta_E")
    assert {id: (got.label[id], got.params[id]) for id in got.image} == EXPECTED
    assert not got.says("guessed")
    got = Imported(images, tmp_path / "guess", labels=said)
    assert {id: got.label[id] for id in got.image} == {id: label for id, (label, _) in EXPECTED.items()}
    assert got.params["cutouts/obj_3"] == {"theta_E": 0.75, "other": 0.0}
    assert got.says("images by column 'who' (guessed; --id names another)")
    assert got.says("classes from column 'morph' (guessed; --class names another)")


def test_a_table_in_the_folder_is_found_and_said(tmp_path: Path, images: Path) -> None:
    table(images / "labels.csv", name=NAMES, label=[int(n[-1]) % 2 for n in NAMES])
    (images / "notes.csv").write_text("something,else\n1.5,2\n")
    got = Imported(images, tmp_path / "out")
    assert got.label == {f"cutouts/obj_{k}": str(k % 2) for k in range(6)}
    assert got.says("labels.csv: classes from column 'label'")
    table(images / "more.csv", name=NAMES, z=np.arange(6))
    assert "labels.csv and more.csv both name the images; give one as --labels" in refused(images, tmp_path / "no")


def test_rows_without_images_and_images_without_rows_are_counted(tmp_path: Path, images: Path) -> None:
    said = table(tmp_path / "t.csv", id=["obj_0", "obj_1", "obj_2", "obj_9"], label=["x", "y", "", "x"])
    got = Imported(images, tmp_path / "out", labels=said)
    assert {id[-1]: label for id, label in got.label.items() if label} == {"0": "x", "1": "y"}
    assert got.says("1 rows belong to no image")
    assert got.says("no row for 3 of 6 images (e.g. cutouts/obj_3)")
    assert got.says("4 images have no class (e.g. cutouts/obj_2)")


def test_bad_tables_are_one_line(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "out"
    other = table(tmp_path / "other.csv", id=[f"zz{c}" for c in "abcdef"], label=list("xyxyxy"))
    said = refused(images, out, labels=other, id="id")
    assert (
        "none of 6 rows belongs to one of 6 images by column 'id' (a row says 'zza', an image is 'cutouts/obj_0')"
        in said
    )
    two = table(tmp_path / "two.csv", id=NAMES, label=list("xyxyxy"), **{"class": list("xxyyxx")})
    assert "'label' and 'class' are both classes, and disagree; name one with --class" in refused(
        images, out, labels=two
    )
    agree = table(tmp_path / "agree.csv", id=NAMES, label=list("xyxyxy"), **{"class": [0, 1, 0, 1, 0, 1]})
    assert set(Imported(images, tmp_path / "agreed", labels=agree).label.values()) == {"x", "y"}
    twice = table(tmp_path / "twice.csv", id=[*NAMES, "obj_3"], label=list("xyxyxyy"))
    assert "two rows with the id 'obj_3' name different classes" in refused(images, out, labels=twice, id="id")
    assert "--class 'lable' is not a column; did you mean 'label'?" in refused(
        images, out, labels=other, class_="lable"
    )
    assert "--targets 'label' holds text" in refused(images, out, labels=agree, targets="label")
    assert "give it with --labels" in refused(images, out, class_="label")
    (tmp_path / "uneven.csv").write_text("id,label\nobj_0,1\nobj_1\n")
    assert "row 2 has 1 values, its first line 2 names" in refused(images, out, labels=str(tmp_path / "uneven.csv"))
    for name, content in (("empty.csv", b""), ("broken.parquet", b"PAR1"), ("broken.fits", b"SIMPLE"), ("a.xlsx", b"")):
        (tmp_path / name).write_bytes(content)
        assert name in refused(images, out, labels=str(tmp_path / name))
    assert "no such table" in refused(images, out, labels=str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize("pattern", ["{class}_{id}_{theta_E}", r"(?P<class>[a-z]+)_\d+_(?P<theta_E>[0-9.]+)"])
def test_classes_and_numbers_in_names_of_files(tmp_path: Path, pattern: str) -> None:
    for k in range(4):
        wild.write(tmp_path / "set" / f"{('hot', 'cold')[k % 2]}_{k}_{k / 2}.npy", wild.lens(20, k))
    got = Imported(tmp_path / "set", tmp_path / "out", pattern=pattern)
    assert got.label == {"hot_0_0.0": "hot", "cold_1_0.5": "cold", "hot_2_1.0": "hot", "cold_3_1.5": "cold"}
    assert got.params["cold_3_1.5"] == {"theta_E": 1.5}
    assert "matches none of 4 names (e.g. 'cold_1_0.5')" in refused(
        tmp_path / "set", tmp_path / "no", pattern="x{class}"
    )
    assert "names nothing" in refused(tmp_path / "set", tmp_path / "no", pattern="abc")


def test_synonyms_of_classes_are_joined(tmp_path: Path) -> None:
    for k, name in enumerate(("no_substructure", "subhalo", "vortex", "vort")):
        wild.write(tmp_path / "set" / name / f"{k}.npy", wild.lens(20, k))
    got = Imported(tmp_path / "set", tmp_path / "out")
    assert list(got.label.values()).count("axion") == 2
    assert got.label["subhalo/1"] == "cdm"
    assert got.label["no_substructure/0"] == "no_sub"


def test_a_folder_for_each_object_is_no_class(tmp_path: Path) -> None:
    for k in range(4):
        wild.write(tmp_path / "set" / f"J{k:04}" / "image.npy", wild.lens(20, k))
    got = Imported(tmp_path / "set", tmp_path / "out")
    assert got.manifest.classes == []
    assert got.says("no name tells a class (e.g. J0000/image)")


def test_strange_images_are_counted_and_named(tmp_path: Path) -> None:
    nan, capped = wild.lens(20, 1), wild.lens(20, 2).clip(0, 0.5)
    nan[3, 3] = np.nan
    blind = np.stack([wild.lens(20), np.zeros((20, 20)), wild.lens(20)])
    kinds = {"blank": np.zeros((20, 20)), "constant": np.full((20, 20), 2.0), "nan": nan, "capped": capped}
    for name, pixels in (kinds | {"fine": wild.lens(20, 3)}).items():
        wild.write(tmp_path / "set" / f"{name}.npy", pixels)
    got = Imported(tmp_path / "set", tmp_path / "out")
    assert [note for note in got.manifest.notes if note.startswith("1 images")] == [
        "1 images are blank (all pixels 0) (e.g. blank)",
        "1 images are constant (e.g. constant)",
        "1 images have NaN pixels (e.g. nan)",
        "1 images look saturated (more than 1% of the pixels at the highest value) (e.g. capped)",
    ]
    wild.write(tmp_path / "bands" / "0.npy", blind)
    assert Imported(tmp_path / "bands", tmp_path / "b").says("1 images have a constant or empty channel (e.g. 0)")


def test_pixel_scales_are_resampled_to_the_one_that_is_given(tmp_path: Path) -> None:
    for k, scale in enumerate((0.04, 0.08)):
        wild.telescope(tmp_path / "set" / f"{k}.fits", size=60, pixel_scale=scale)
    got = Imported(tmp_path / "set", tmp_path / "out", pixel_scale=0.08)
    assert got.says("1 images resampled to 0.08 arcsec/pixel, from 0.04 to 0.04")
    # four pixels of half the side are one, in flux
    whole = wild.lens(60).astype(np.float32)
    expected = whole[20:40, 20:40].reshape(10, 2, 10, 2).sum((1, 3))
    np.testing.assert_allclose(got.image["0"][0][25:35, 25:35], expected, rtol=1e-5)


def test_the_command_line_has_an_option_called_class(tmp_path: Path, images: Path, capsys: Any) -> None:
    said = table(tmp_path / "t.csv", who=NAMES, morph=["ab"[int(n[-1]) % 2] for n in NAMES], z=np.arange(6))
    options = f"--out {tmp_path / 'out'} --labels {said} --id who --class morph --targets z --size 16 --bands none"
    main(["import", str(images), *options.split()])
    manifest = Dataset(tmp_path / "out").manifest
    assert (manifest.classes, manifest.image.height, [p.name for p in manifest.parameters]) == (["a", "b"], 16, ["z"])
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    assert "--class CLASS" in capsys.readouterr().out


def challenge(path: Path, n: int = 4, size: int = 91) -> Path:
    """The form of the Roman data challenge: a group a system, attributes as pairs (value, description)."""
    with h5py.File(path, "w") as file:
        file.attrs["author"] = ("somebody", "who made it")
        for k in range(n):
            group = file.create_group(f"images/strong_lens_{k:08}")
            numbers = {"uid": k, "z_lens": 0.5, "z_source": 1.5, "theta_e": 1 + k / 8, "main_halo_mass": 1e13}
            for name, value in (numbers | {"substructure": k % 2 == 0, "detector": f"SCA{k}"}).items():
                group.attrs[name] = (str(value), "a description")
            for b, band in enumerate(("F106", "F129", "F158")):
                pixels = 1 + 0.02 * np.random.default_rng([k, b]).normal(size=(size, size))
                pixels[5, 6] = 99 if k == 1 else 1
                data = group.create_dataset(f"exposure_{k:08}_{band}", data=pixels)
                for name, value in {"pixel_scale": 0.11, "units": "MJy/sr", "snr": 10 * b + k, "filter": band}.items():
                    data.attrs[name] = (str(value), "a description")
    return path


def test_roman_data_challenge(tmp_path: Path) -> None:
    got = Imported(challenge(tmp_path / "rung_1.h5"), tmp_path / "out")
    image = got.manifest.image
    assert (image.channels, image.height, image.unit, image.bands) == (3, 91, "MJy/sr", ["F106", "F129", "F158"])
    assert image.pixel_scale == pytest.approx(0.11)
    for k in range(4):
        id = f"rung_1/strong_lens_{k:08}"
        expected = np.stack([1 + 0.02 * np.random.default_rng([k, b]).normal(size=(91, 91)) for b in range(3)])
        expected[:, 5, 6] = np.nan if k == 1 else 1
        np.testing.assert_array_equal(got.image[id], expected.astype(np.float32))
        assert got.label[id] == ("sub", "no_sub")[k % 2]
        numbers = {"z_lens": 0.5, "z_source": 1.5, "theta_e": 1 + k / 8, "main_halo_mass": 1e13}
        numbers |= {"substructure": float(k % 2 == 0)} | {
            f"snr_F{f}": 10.0 * b + k for b, f in enumerate((106, 129, 158))
        }
        assert got.params[id] == numbers
    assert got.says("1 x corrupt pixels")
    assert got.says("classes from the attribute 'substructure' (guessed; --label names another)")
    one = Imported(tmp_path / "rung_1.h5", tmp_path / "one", bands="F158")
    assert one.image["rung_1/strong_lens_00000000"].shape == (1, 91, 91)
    assert "no attribute of this name" in refused(tmp_path / "rung_1.h5", tmp_path / "no", label="subs")


def test_a_system_without_a_band_costs_itself(tmp_path: Path) -> None:
    with h5py.File(challenge(tmp_path / "r.h5"), "a") as file:
        del file["images/strong_lens_00000002/exposure_00000002_F129"]
    got = Imported(tmp_path / "r.h5", tmp_path / "out")
    assert len(got.image) == 3
    assert got.says("skipped 1 x strong_lens_00000002: band F129 is missing (it has F106, F158)")
