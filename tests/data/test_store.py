"""The store: written whole, read as written, and any change found."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from deeplense import config
from deeplense.data import schema, store
from deeplense.data.schema import ImageInfo, Manifest, Parameter
from deeplense.data.store import Dataset, validate
from deeplense.errors import UserError


@pytest.fixture
def mock(tmp_path: Path) -> Path:
    """Two shards of train (7 and 5 images, 2 channels, 4 x 6 pixels) and one of test; some kB."""
    return write_mock(tmp_path / "mock")


def write_mock(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    shards = []
    for split, number, n in (("train", 0, 7), ("train", 1, 5), ("test", 0, 3)):
        images = draw.normal(size=(n, 2, 4, 6)).astype(np.float32)
        labels = draw.integers(0, 3, n)
        params = np.where(draw.random((n, 2)) < 0.3, np.nan, draw.normal(size=(n, 2)))
        ids = [f"{split}/å/{number}/{k}" for k in range(n)]
        shards.append(store.write_shard(folder, split, number, images, labels, params, ids))
    Manifest(
        name="mock",
        image=ImageInfo(2, 4, 6, 0.1, "electron/s", ["a", "b"]),
        classes=["x", "y", "z"],
        parameters=[Parameter("m", "Msun", {"log_uniform": [1, 10]}), Parameter("r")],
        splits={"train": 12, "test": 3},
        shards=shards,
    ).seal().write(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object], seal: bool = False) -> None:
    """Edit the manifest; with `seal`, as one would who also knows how to compute its fingerprint."""
    path = folder / schema.MANIFEST
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    if seal:
        config.build(Manifest, tree, "manifest").seal().write(folder)


def flip(path: Path, offset: int) -> None:
    """Change one bit of one byte."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def offset_of(path: Path, column: str) -> int:
    with h5py.File(path) as file:
        return int(file[column].id.get_offset())


def fails(match: str, folder: Path, checksums: bool = False) -> None:
    with pytest.raises(UserError, match=match) as caught:
        validate(folder, checksums)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_dataset_is_valid_and_reads_like_h5py_reads_it(mock: Path) -> None:
    manifest = validate(mock, checksums=True)
    assert sorted(p.name for p in mock.iterdir()) == [
        "dataset.json", "test-00000.h5", "train-00000.h5", "train-00001.h5"
    ]  # fmt: skip
    assert sum(p.stat().st_size for p in mock.iterdir()) < 20_000
    for name, n in manifest.splits.items():
        split = Dataset(mock).split(name)
        with_h5py: dict[str, list[Any]] = {"image": [], "label": [], "params": [], "id": []}
        for path in sorted(mock.glob(f"{name}-*.h5")):
            with h5py.File(path) as file:
                for column, parts in with_h5py.items():
                    parts.append(file[column][:])
        whole = {k: np.concatenate(v) for k, v in with_h5py.items()}
        assert len(split) == n
        np.testing.assert_array_equal(split.images(np.arange(n)).numpy(), whole["image"])
        np.testing.assert_array_equal(split.labels, whole["label"])
        np.testing.assert_array_equal(split.params, whole["params"])
        assert [i.encode() for i in split.ids] == list(whole["id"])
        assert np.isnan(split.params).any()


def test_images_come_in_the_order_asked_for_across_shards(mock: Path) -> None:
    split = Dataset(mock).split("train")
    whole = np.concatenate([h5py.File(mock / f"train-0000{k}.h5")["image"][:] for k in (0, 1)])
    for index in ([11, 0, 6, 7, 7, 3], [6], [7], [], list(range(11, -1, -1))):
        order = np.array(index, dtype=np.int64)
        np.testing.assert_array_equal(split.images(order).numpy(), whole[order])
    batch = split.batch(np.array([8, 2, 9]))
    rows = [2, 8, 9]  # grouped by shard
    np.testing.assert_array_equal(batch.image.numpy(), whole[rows])
    np.testing.assert_array_equal(batch.params.numpy(), split.params[rows].astype(np.float32))
    assert batch.id.tolist() == rows
    assert batch.label.tolist() == split.labels[rows].tolist()
    assert [c.dtype for c in batch] == [torch.float32, torch.int64, torch.float32, torch.int64]


def test_what_is_done_to_images_never_reaches_the_file(mock: Path) -> None:
    split = Dataset(mock).split("test")
    split._images[0].zero_()
    split.images(np.arange(3)).fill_(7)
    validate(mock, checksums=True)


def test_an_image_is_found_by_its_id(mock: Path) -> None:
    split, row = Dataset(mock).locate("train/å/1/3")
    assert (split.name, row) == ("train", 10)
    with pytest.raises(UserError, match=r"no image with id 'nope' .the first one is 'train/å/0/0'"):
        Dataset(mock).locate("nope")
    with pytest.raises(UserError, match=r"no split 'val' .it has: train, test"):
        Dataset(mock).split("val")


def test_the_same_content_gives_the_same_bytes(mock: Path, tmp_path: Path) -> None:
    other = write_mock(tmp_path / "other")
    for path in mock.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


@pytest.mark.parametrize("column", ["image", "label", "params", "id"])
def test_one_flipped_bit_is_found(mock: Path, column: str) -> None:
    path = mock / "train-00001.h5"
    flip(path, offset_of(path, column))
    fails("train-00001.h5: its bytes have changed", mock, checksums=True)


def test_any_flipped_byte_of_a_shard_is_found(mock: Path) -> None:
    path = mock / "test-00000.h5"
    good = path.read_bytes()
    for offset in np.linspace(0, len(good) - 1, 40).astype(int):
        flip(path, int(offset))
        fails("test-00000.h5: its bytes have changed", mock, checksums=True)
        path.write_bytes(good)
    validate(mock, checksums=True)


def test_a_missing_or_cut_or_foreign_shard_is_named(mock: Path) -> None:
    path = mock / "train-00001.h5"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    fails("train-00001.h5: not a readable shard", mock)
    path.write_bytes(b"no HDF5")
    fails("train-00001.h5: not a readable shard", mock)
    with h5py.File(path, "w") as file:
        file["image"] = np.zeros((5, 2, 4, 6), np.float32)
    fails("train-00001.h5: not a readable shard", mock)
    path.unlink()
    fails("train-00001.h5: missing", mock)
    with pytest.raises(UserError, match=r"train-00001.h5: not a readable shard"):
        Dataset(mock).split("train")


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("image", np.zeros((5, 2, 4, 5), np.float32), r"images are \(5, 2, 4, 5\) float32, the manifest says"),
        ("image", np.zeros((5, 2, 4, 6), np.float64), r"images are \(5, 2, 4, 6\) float64"),
        ("image", np.zeros((4, 2, 4, 6), np.float32), r"images are \(4, 2, 4, 6\) float32"),
        ("label", np.zeros(4, np.int64), "columns do not fit"),
        ("params", np.zeros((5, 1)), "columns do not fit"),
        ("id", np.array([b"a"]), "columns do not fit"),
        ("label", np.array([0, 1, 2, 3, 0]), "labels outside the 3 classes"),
        ("label", np.array([0, 1, 2, -2, 0]), "labels outside the 3 classes"),
    ],
)
def test_a_shard_that_does_not_fit_its_manifest_is_named(mock: Path, column: str, value: Any, match: str) -> None:
    path = mock / "train-00001.h5"
    with h5py.File(path, "r+") as file:
        del file[column]
        file[column] = value
    fails(f"train-00001.h5: {match}", mock)


def test_compressed_images_are_refused(mock: Path) -> None:
    """They have no place in the file that could be mapped."""
    path = mock / "train-00001.h5"
    with h5py.File(path, "r+") as file:
        data = file["image"][:]
        del file["image"]
        file.create_dataset("image", data=data, compression="gzip")
    fails("train-00001.h5: images are", mock)


def test_label_minus_one_means_unknown(mock: Path) -> None:
    path = mock / "train-00001.h5"
    with h5py.File(path, "r+") as file:
        file["label"][0] = -1
    validate(mock)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["classes"].reverse(),
        lambda t: t["classes"].__setitem__(0, "q"),
        lambda t: t["parameters"][0].update(name="mass"),
        lambda t: t["parameters"][0].update(unit="kg"),
        lambda t: t["parameters"][0].update(prior={"log_uniform": [1, 11]}),
        lambda t: t["image"].update(pixel_scale=0.2),
        lambda t: t["image"].update(unit="electron"),
        lambda t: t["image"].update(bands=["b", "a"]),
        lambda t: t["shards"].reverse(),
        lambda t: t["shards"][0].update(sha256="0" * 64),
        lambda t: t.update(fingerprint=""),
    ],
)
def test_an_edited_manifest_is_found(mock: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(mock, change)
    fails("dataset.json: fingerprint does not fit its content", mock)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t["splits"].update(train=13), "split 'train' should hold 13 images, its shards list 12"),
        (lambda t: t["splits"].update(val=1), "split 'val' should hold 1 images, its shards list 0"),
        (lambda t: t["shards"].pop(), "split 'test' should hold 3 images, its shards list 0"),
        (lambda t: t["image"].update(width=5), r"images are .* the manifest says \(7, 2, 4, 5\)"),
        (lambda t: t["parameters"].pop(), "columns do not fit"),
        (lambda t: t["classes"].pop(), "labels outside the 2 classes"),
        (lambda t: t["shards"][0].update(file="gone.h5"), "gone.h5: missing"),
        (lambda t: t["shards"].append(t["shards"][0]), "shards has a name twice"),
    ],
)
def test_a_manifest_that_contradicts_its_shards_is_found(
    mock: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    edit(mock, change, seal=True)
    fails(match, mock)


@pytest.mark.parametrize("version", [0, 3, "1", None, True])
def test_another_schema_version_is_refused(mock: Path, version: Any) -> None:
    edit(mock, lambda t: t.update(schema_version=version))
    fails(f"dataset.json: schema version {version!r}, this code reads 1 and 2", mock)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"schema_version": 1}', '{"schema_version": 1, "image": 3}'])
def test_what_is_no_manifest(mock: Path, text: str) -> None:
    (mock / schema.MANIFEST).write_text(text)
    fails("dataset.json: not (valid JSON|a dataset manifest)", mock)


def test_manifest_with_an_unknown_key(mock: Path) -> None:
    edit(mock, lambda t: t.update(colour="red"))
    fails("dataset.json: not a dataset manifest .*colour", mock)


def test_no_dataset_and_an_unfinished_one(mock: Path, tmp_path: Path) -> None:
    (mock / schema.MANIFEST).unlink()
    fails("an unfinished dataset .no dataset.json.; run the same command again", mock)
    fails("no dataset here", tmp_path / "nowhere")


def test_a_manifest_reads_as_it_was_written(mock: Path) -> None:
    manifest = schema.read_manifest(mock)
    assert dataclasses.asdict(manifest) == json.loads((mock / schema.MANIFEST).read_text())
    assert manifest.parameter("r") == 1
    with pytest.raises(UserError, match="dataset 'mock' has no parameter 'q'"):
        manifest.parameter("q")


def write_one(folder: Path) -> object:
    images = np.zeros((4, 1, 64, 64), np.float32)
    return store.write_shard(folder, "train", 0, images, np.zeros(4, np.int64), np.zeros((4, 0)), "abcd")


@pytest.mark.parametrize("moment", ["flush", "rename"])
def test_a_shard_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, {"flush": "fsync", "rename": "replace"}[moment], fail)
    with pytest.raises(UserError, match=r"train-00000.h5: cannot write .No space left on device.; free some space"):
        write_one(tmp_path / "d")
    assert list((tmp_path / "d").iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_one(tmp_path / "d")
    assert list((tmp_path / "d").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 kB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    tool = shutil.which("mount")
    if os.geteuid() != 0 or tool is None:
        pytest.skip("mounting takes root")
    done = subprocess.run([tool, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    # 0 to 60 kB are free, and the shard takes 67: it stops at another place each time; HDF5 itself may not notice
    for spare in range(0, 64, 4):
        (small_disk / "filler").write_bytes(bytes(1024 * (60 - spare)))
        with pytest.raises(UserError, match="cannot write") as caught:
            write_one(small_disk)
        assert "\n" not in str(caught.value)
        assert [p.name for p in small_disk.iterdir()] == ["filler"]
        (small_disk / "filler").unlink()


def test_an_old_file_survives_a_failed_write(tmp_path: Path) -> None:
    target = tmp_path / "x.csv"
    target.write_text("old")

    def fail() -> None:
        with schema.atomic(target) as temporary:
            assert temporary.suffix == ".csv"
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with schema.atomic(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_manifest_that_does_not_fit_the_disk(mock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = schema.read_manifest(mock)
    (mock / schema.MANIFEST).unlink()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"dataset.json: cannot write .No space left"):
        manifest.write(mock)
    assert not list(mock.glob("*.json")) + list(mock.glob(".*"))


def test_ids_are_cut_to_their_end(tmp_path: Path) -> None:
    """The end of a path tells images apart; its beginning is often shared."""
    long = ["a" * 200 + f"/{k}.npy" for k in range(2)]
    images = np.zeros((2, 1, 8, 8), np.float32)
    store.write_shard(tmp_path, "train", 0, images, np.zeros(2, np.int64), np.zeros((2, 0)), long)
    with h5py.File(tmp_path / "train-00000.h5") as file:
        assert [i.decode() for i in file["id"][:]] == [name[-store.ID_LENGTH :] for name in long]
