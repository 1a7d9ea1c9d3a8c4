"""`predict` on files as they are in the wild: one row for every image, and a warning where one is due."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import wild
from astropy.io import fits
from astropy.table import Table

from deeplense.bundle import Bundle, Prediction, load
from deeplense.data import formats
from deeplense.data.adapt import adapt
from deeplense.data.formats import Foreign, read_images
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.inference import predict as predicting
from deeplense.inference.predict import UNFAMILIAR, predict
from deeplense.training.fit import train

SHARED = Path(__file__).parents[3] / "shared" / "data"
OLD = Path(__file__).parents[1] / "old"
FAST = {"training": {"epochs": 2, "batch_size": 16, "lr": 0.01}}
CLASSES = ["axion", "cdm", "no_sub"]
COLUMNS = ["id", "file", "class", *(f"p_{c}" for c in CLASSES), "entropy", "warning"]


@pytest.fixture(scope="module")
def bundle(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train({"name": "small", **FAST}, tiny_dataset, tmp_path_factory.mktemp("c") / "run", device="cpu")


@pytest.fixture(scope="module")
def regressor(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = {"name": "mass", **FAST, "task": {"kind": "regress", "target": "log10_m_axion"}}
    return train(tree, tiny_dataset, tmp_path_factory.mktemp("m") / "run", device="cpu")


def table(bundle: Path, *inputs: Path, out: Path, **options: Any) -> list[dict[str, str]]:
    assert predict(bundle, inputs, out, device="cpu", **options) == out
    with open(out, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(rows: list[dict[str, str]], *names: str) -> np.ndarray[Any, Any]:
    return np.array([[float(row[name]) for name in names] for row in rows])


def like_training(tiny_dataset: Path, folder: Path, n: int = 3) -> Path:
    """Test images of the tiny set as `.npy` files, (16, 16)."""
    split = Dataset(tiny_dataset).split("test")
    for k, image in enumerate(split.images(np.arange(n)).numpy()):
        wild.write(folder / f"{k}.npy", image[0])
    return folder


def test_a_dataset_gives_a_row_for_every_image_of_every_split(bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    rows = table(bundle, tiny_dataset, out=tmp_path / "t.csv", batch_size=50)
    assert list(rows[0]) == COLUMNS
    splits = {name: Dataset(tiny_dataset).split(name) for name in ("train", "val", "test")}
    assert [row["id"] for row in rows] == [id for split in splits.values() for id in split.ids]
    assert rows[-1]["file"] == f"{tiny_dataset}/test"
    images = torch.cat([split.images(np.arange(len(split))) for split in splits.values()])
    expected = load(bundle, "cpu").predict(images).probabilities
    assert expected is not None
    p = numbers(rows, *(f"p_{c}" for c in CLASSES))
    np.testing.assert_allclose(p, expected, atol=1e-6)
    assert [row["class"] for row in rows] == [CLASSES[k] for k in expected.argmax(1)]
    entropy = -(expected * np.log(expected)).sum(1)
    np.testing.assert_allclose(numbers(rows, "entropy")[:, 0], entropy, atol=1e-6)
    # hardly an image of the data that it was trained on is strange to it
    assert Counter(row["warning"] for row in rows)[""] > 120


def test_a_regressor_gives_mean_scale_and_quantiles(regressor: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    rows = table(regressor, like_training(tiny_dataset, tmp_path / "in", 8), out=tmp_path / "t.csv")
    assert list(rows[0]) == ["id", "file", "mean", "scale", "q05", "q95", "entropy", "warning"]
    images = Dataset(tiny_dataset).split("test").images(np.arange(8))
    expected = load(regressor, "cpu").predict(images)
    for name in ("mean", "scale", "q05", "q95"):
        np.testing.assert_allclose(numbers(rows, name)[:, 0], getattr(expected, name), atol=1e-5)
    mean, scale, low, high = numbers(rows, "mean", "scale", "q05", "q95").T
    assert ((low < mean) & (mean < high) & (low > -24) & (high < -22)).all()
    np.testing.assert_allclose(numbers(rows, "entropy")[:, 0], [np.log(s * np.sqrt(2 * np.pi * np.e)) for s in scale])


@pytest.mark.parametrize(
    ("make", "n", "size"),
    [
        (lambda root: wild.model(root, "I", n=2), 6, 150),
        (lambda root: wild.model(root, "II", n=2), 6, 64),
        (wild.model_4_circulating, 9, 64),
        (wild.common_test, 18, 150),
        (wild.sub_no_sub, 10, 150),
        (lambda root: wild.slacs(root), 2, 41),
    ],
    ids=["model I", "model II", "model IV circulating", "common test", "jpg", "slacs"],
)
def test_every_set_in_the_wild_gives_a_row_an_image(
    make: Callable[[Path], Path], n: int, size: int, bundle: Path, tmp_path: Path
) -> None:
    source = make(tmp_path / "set")
    rows = table(bundle, source, out=tmp_path / "t.csv")
    assert len(rows) == n == len({row["id"] for row in rows})
    p = numbers(rows, *(f"p_{c}" for c in CLASSES))
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    for row in rows:
        assert os.path.exists(row["file"])
        assert row["warning"].startswith(("pixel scale unknown", "4.9% of the pixels are NaN; pixel scale unknown"))
        assert f"cropped from {size}x{size} to 16x16 pixels" in row["warning"]
    # a folder and its zip say the same of the same image
    packed = table(bundle, wild.zipped(source, tmp_path / "set.zip"), out=tmp_path / "z.csv")
    keep = [name for name in COLUMNS if name != "file"]
    assert sorted([row[k] for k in keep] for row in packed) == sorted([row[k] for k in keep] for row in rows)


def test_images_of_three_bands_need_a_bundle_of_three_bands(
    bundle: Path, make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = wild.model_4_scripted(tmp_path / "scripted", n=1)
    with pytest.raises(UserError, match="6 x 3 channels, the bundle takes 1"):
        predict(bundle, [scripted], tmp_path / "t.csv", device="cpu")
    colour = make_dataset(tmp_path / "colour", channels=3)
    three = train({"training": {"epochs": 1, "batch_size": 32}}, colour, tmp_path / "run", device="cpu")
    lenses = wild.lens_finding(tmp_path / "lenses", n=1)
    assert len(table(three, scripted, lenses, out=tmp_path / "t.csv")) == 6 + 4
    one = wild.picture(tmp_path / "colour.png", mode="colour")
    grey = wild.picture(tmp_path / "grey.jpg")
    assert [row["id"] for row in table(three, one, grey, out=tmp_path / "u.csv")] == ["colour"]
    assert f"skipped 1 of the inputs: 1 x 1 channels, the bundle takes 3 (e.g. {grey})" in capsys.readouterr().out


def test_mixed_inputs_of_mixed_sizes_share_a_table(bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    inputs = [
        wild.write(tmp_path / "one.npy", wild.lens(64)),
        wild.picture(tmp_path / "two.jpg", 150),
        wild.telescope(tmp_path / "three.fits", pixel_scale=0.04),
        wild.zipped(wild.common_test(tmp_path / "set", n=1), tmp_path / "set.zip"),
        wild.tarred(like_training(tiny_dataset, tmp_path / "npy"), tmp_path / "npy.tar.gz"),
        wild.hdf5(tmp_path / "many.h5", np.stack([wild.lens(20, k) for k in range(3)])),
        tiny_dataset,
    ]
    rows = table(bundle, *inputs, out=tmp_path / "t.csv", batch_size=7)
    assert len(rows) == 1 + 1 + 1 + 6 + 3 + 3 + 128
    assert len({row["id"] for row in rows}) == len(rows)
    assert [row["id"] for row in rows[:3]] == ["one", "two", "three"]
    assert [row["id"] for row in rows[12:15]] == ["many#0", "many#1", "many#2"]
    # alone, the same image gets the same numbers
    alone = table(bundle, inputs[2], out=tmp_path / "alone.csv")[0]
    for name in COLUMNS[3:-1]:
        assert float(alone[name]) == pytest.approx(float(rows[2][name]), abs=1e-6)


def test_ids_stay_unique_whatever_the_inputs_are(bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    a, b = (like_training(tiny_dataset, tmp_path / name, 2) for name in ("a", "b"))
    shutil.copytree(a, tmp_path / "c" / "a")
    rows = table(bundle, a, b, tmp_path / "c" / "a", a, out=tmp_path / "t.csv")
    assert [row["id"] for row in rows] == ["0", "1", "b/0", "b/1", "a/0", "a/1", "a-2/0", "a-2/1"]
    assert rows[4]["file"] == str(tmp_path / "c" / "a" / "0.npy")


def test_a_telescope_image_goes_through_its_own_pixel_scale(bundle: Path, tmp_path: Path) -> None:
    path = wild.telescope(tmp_path / "t.fits", size=61, pixel_scale=0.04)
    (row,) = table(bundle, path, out=tmp_path / "t.csv", pixel_scale=9.0)  # its own wins
    said = row["warning"].split("; ")
    assert said[:2] == ["0.0% of the pixels are NaN", "resampled from 0.04 to 0.1 arcsec/pixel"]
    assert said[2] == "cropped from 24x24 to 16x16 pixels"
    (found,) = (item for item in read_images(path) if isinstance(item, Foreign))
    one = load(bundle, "cpu")
    image, _ = adapt(found.image, 0.04, one.image)
    expected = one.predict(torch.from_numpy(image[None])).probabilities
    assert expected is not None
    np.testing.assert_allclose(numbers([row], *(f"p_{c}" for c in CLASSES)), expected, atol=1e-5)


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_the_pixel_scale_of_the_user_is_that_of_images_without_one(
    bundle: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    source = like_training(tiny_dataset, tmp_path / "in", 1)
    assert table(bundle, source, out=tmp_path / "a.csv")[0]["warning"].startswith("pixel scale unknown")
    assert table(bundle, source, out=tmp_path / "b.csv", pixel_scale=0.1)[0]["warning"] == ""
    warning = table(bundle, source, out=tmp_path / "c.csv", pixel_scale=0.05)[0]["warning"]
    assert warning.startswith("resampled from 0.05 to 0.1 arcsec/pixel; padded from 8x8 to 16x16 pixels")


def test_an_image_unlike_the_training_images_is_marked(bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    image = Dataset(tiny_dataset).split("test").images(np.array([0])).numpy()[0, 0]
    images = {"same": image, "bright": 1e4 * image, "flat": np.zeros((16, 16)), "moved": np.roll(image, 7, axis=1)}
    for name, pixels in images.items():
        wild.write(tmp_path / "in" / f"{name}.npy", pixels)
    rows = table(bundle, tmp_path / "in", out=tmp_path / "t.csv", pixel_scale=0.1)
    assert {row["id"]: row["warning"] for row in rows} == {
        "same": "",
        **dict.fromkeys(("bright", "flat", "moved"), UNFAMILIAR),
    }


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".ecsv", ".fits"])
def test_every_kind_of_table_reads_back_equal(suffix: str, bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    source = like_training(tiny_dataset, tmp_path / "in", 3)
    wild.write(source / 'odd, "name".npy', wild.lens(16))
    wild.write(source / "Äther.npy", wild.lens(20))
    (source / os.fsdecode(b"caf\xe9.npy")).write_bytes(wild.npy_bytes(wild.lens(16)))  # not UTF-8
    out = predict(bundle, [source], tmp_path / f"table{suffix}", device="cpu", pixel_scale=0.1)
    found: dict[str, Any]
    if suffix == ".csv":
        with open(out, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        found = {name: list(column) for name, *column in zip(*rows, strict=True)}
    elif suffix == ".parquet":
        found = pq.read_table(out).to_pydict()
    elif suffix == ".ecsv":
        read = Table.read(out, format="ascii.ecsv")
        assert read.meta == {"BUNDLE": str(bundle), "DATAHASH": load(bundle, "cpu").fingerprint[:16]}
        # an empty text is a masked one in this format
        found = {name: np.ma.filled(read[name], "" if read[name].dtype.kind == "U" else None) for name in read.colnames}
        found = {name: column.tolist() for name, column in found.items()}
    else:
        with fits.open(out) as hdus:
            assert hdus[1].header["DATAHASH"] == load(bundle, "cpu").fingerprint[:16]
            found = {name: list(hdus[1].data[name]) for name in hdus[1].columns.names}
    assert list(found) == COLUMNS
    ids = ["0", "1", "2", "caf\\xe9", 'odd, "name"', "\\xc4ther" if suffix == ".fits" else "Äther"]
    assert sorted(found["id"]) == sorted(ids)
    row = found["id"].index("1")
    expected = load(bundle, "cpu").predict(Dataset(tiny_dataset).split("test").images(np.array([1]))).probabilities
    assert expected is not None
    np.testing.assert_allclose([float(found[f"p_{c}"][row]) for c in CLASSES], expected[0], atol=1e-6)
    assert found["class"][row] == CLASSES[expected[0].argmax()]
    assert found["warning"][row] == ""
    assert "cropped from 20x20" in found["warning"][found["id"].index(ids[-1])]


def test_a_bad_file_with_a_name_that_is_not_utf_8_is_told(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = like_training(tiny_dataset, tmp_path / "in", 1)
    (source / os.fsdecode(b"caf\xe9.npy")).write_bytes(b"")
    for inputs in (source, wild.tarred(source, tmp_path / "in.tar")):
        assert len(table(bundle, inputs, out=tmp_path / "t.csv")) == 1
        assert "1 x empty file (e.g. " in (said := capsys.readouterr().out)
        assert "caf\\xe9.npy)" in said


def test_no_more_than_a_batch_is_in_memory(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, predicted = 0, []

    def endless(source: Path, *_: Any) -> Iterator[Foreign]:
        nonlocal read
        for k in range(23):
            read += 1
            yield Foreign(str(k), "file", wild.lens(16, k)[None].astype(np.float32))

    original = Bundle.predict

    def counted(self: Bundle, images: torch.Tensor, batch_size: int = 256) -> Prediction:
        predicted.append(len(images))
        assert read == sum(predicted)  # nothing was read that is not predicted on
        return original(self, images, batch_size)

    monkeypatch.setattr(predicting, "read_images", endless)
    monkeypatch.setattr(Bundle, "predict", counted)
    rows = table(bundle, tmp_path, out=tmp_path / "t.csv", batch_size=5)
    assert predicted == [5, 5, 5, 5, 3]
    assert [row["id"] for row in rows] == [str(k) for k in range(23)]


def test_traps_cost_nothing_but_themselves_and_run_no_code(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, flag = tmp_path / "set", tmp_path / "flag"
    traps = wild.traps(source, flag)
    with pytest.raises(UserError, match=r"can be used: .*would run code") as caught:
        predict(bundle, [source], tmp_path / "t.csv", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "t.csv").exists()
    image = Dataset(tiny_dataset).split("test").images(np.array([0])).numpy()[0, 0]
    wild.write(source / "good.npy", wild.objects(image, np.array(1e-23)))
    (row,) = table(bundle, source, out=tmp_path / "t.csv", pixel_scale=0.1)
    assert (row["id"], row["warning"]) == ("good", "")
    told = capsys.readouterr().out
    assert f"skipped {len(traps)} of the inputs" in told
    assert "would run code" in told
    assert told.splitlines()[-1] == f"wrote {tmp_path / 't.csv'}: 1 images"
    assert not flag.exists()
    # the pickle does run in a reader that trusts it
    np.load(source / "evil.npy", allow_pickle=True)
    assert flag.exists()


def test_an_exported_network_gives_the_same_table(exported: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    source = like_training(tiny_dataset, tmp_path / "in", 5)
    wild.write(source / "bright.npy", 1e4 * wild.lens(16))
    ours, theirs = (table(b, source, out=tmp_path / "t.csv") for b in (OLD / "classifier.safetensors", exported))
    names = [f"p_{c}" for c in CLASSES]
    np.testing.assert_allclose(numbers(theirs, *names), numbers(ours, *names), atol=1e-4)
    assert [row["warning"] for row in theirs] == [row["warning"] for row in ours]


def test_bad_requests_are_one_line_and_write_nothing(bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    good = like_training(tiny_dataset, tmp_path / "in", 1)
    (tmp_path / "bare").mkdir()
    broken = wild.write(tmp_path / "broken.zip", b"PK nothing")
    out = tmp_path / "out" / "t.csv"
    bad: list[tuple[Path, list[Path], Path, dict[str, Any], str]] = [
        (tmp_path / "none.safetensors", [good], out, {}, "no such bundle"),
        (bundle, [good], out.with_suffix(".xlsx"), {}, r"unknown kind of table; end the name in \.csv, \.parquet"),
        (bundle, [], out, {}, "nothing to predict on"),
        (bundle, [tmp_path / "nowhere"], out, {}, "nowhere: no such file or folder"),
        (bundle, [good, tmp_path / "nowhere"], out, {}, "nowhere: no such file or folder"),
        (bundle, [tmp_path / "bare"], out, {}, "no image in .*bare can be used: none found"),
        (bundle, [bundle], out, {}, "can be used: 1 x not an image format"),
        (bundle, [broken], out, {}, "not a readable zip"),
        (bundle, [good], out, {"batch_size": 0}, "--batch-size 0"),
        *((bundle, [good], out, {"pixel_scale": x}, "--pixel-scale") for x in (0.0, -0.1, np.nan, np.inf)),
    ]
    for path, inputs, where, options, match in bad:
        with pytest.raises(UserError, match=match) as caught:
            predict(path, inputs, where, device="cpu", **options)
        assert "\n" not in str(caught.value)
    assert not out.parent.exists()
    out.parent.write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write"):
        predict(bundle, [good], out, device="cpu")


@pytest.mark.skipif(not (SHARED / "slacs").is_dir(), reason="needs the real data in ../shared/data beside the project")
def test_every_real_lens_gets_a_finite_prediction_and_a_warning(bundle: Path, tmp_path: Path) -> None:
    rows = table(bundle, SHARED / "slacs", out=tmp_path / "t.csv")
    assert len(rows) == 12
    assert {row["id"] for row in rows} == {f"{p.name}/image" for p in (SHARED / "slacs").iterdir() if p.is_dir()}
    p = numbers(rows, *(f"p_{c}" for c in CLASSES), "entropy")
    assert np.isfinite(p).all()
    assert all(row["warning"] for row in rows)


def test_a_dataset_is_read_in_parts_of_any_size(
    bundle: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table(bundle, tiny_dataset, out=tmp_path / "whole.csv")
    for pixels in (1, 256 * 5, 256 * 32):
        monkeypatch.setattr(formats, "TOGETHER", pixels)
        assert table(bundle, tiny_dataset, out=tmp_path / "parts.csv") == whole


def test_one_split_of_a_dataset(bundle: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    out = predict(bundle, [tiny_dataset], tmp_path / "t.csv", split="test")
    assert list(Table.read(out)["id"]) == [f"test/{k}" for k in range(32)]
    with pytest.raises(UserError, match="no split 'tset'"):
        predict(bundle, [tiny_dataset], tmp_path / "u.csv", split="tset")


def test_bands_in_extensions_and_files_are_taken_as_the_bundle_names_them(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colour = make_dataset(tmp_path / "colour", channels=3)
    three = train({"training": {"epochs": 1, "batch_size": 32}}, colour, tmp_path / "run", device="cpu")
    one = load(three, "cpu")
    one.image.bands = ["g", "r", "i"]
    planes = {band: wild.lens(16, k).astype(np.float32) for k, band in enumerate("igzr")}
    hdus = [fits.ImageHDU(pixels, name=band) for band, pixels in planes.items()]
    weight = fits.ImageHDU(wild.lens(16, 9).astype(np.float32), name="WHT")
    fits.HDUList([fits.PrimaryHDU(), weight, *hdus]).writeto(tmp_path / "extensions.fits")
    for band, pixels in planes.items():
        wild.write(tmp_path / "files" / f"obj_{band}.npy", pixels)
    wild.write(tmp_path / "expected.npy", np.stack([planes[band] for band in "gri"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicting, "_open", lambda path, device: one)
        rows = table(
            three, tmp_path / "expected.npy", tmp_path / "extensions.fits", tmp_path / "files", out=tmp_path / "t.csv"
        )
        assert [row["id"] for row in rows] == ["expected", "extensions", "obj"]
        for row in rows[1:]:
            assert numbers([row], *(f"p_{c}" for c in CLASSES)) == pytest.approx(
                numbers(rows[:1], *(f"p_{c}" for c in CLASSES)), abs=1e-6
            )
            assert "bands z left out" in row["warning"].lower().lower()
        said = capsys.readouterr().out
        assert "1 x extensions WHT left out (e.g. " in said
        assert "1 x files of bands g, r, i, z joined" in said
    with pytest.raises(UserError, match=r"bands g, r, i, z, the bundle takes 3; --bands names those to take"):
        predict(three, [tmp_path / "files"], tmp_path / "u.csv", device="cpu")
    out = predict(three, [tmp_path / "files"], tmp_path / "u.csv", device="cpu", bands="g,r,i")
    assert len(Table.read(out)) == 1
