"""A dataset from anywhere: whatever its manifest or its shards hold, the answer is a dataset or one line."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from deeplense import typed
from deeplense.data import schema, store
from deeplense.data.formats import read_images
from deeplense.data.schema import ImageInfo, Manifest, Parameter
from deeplense.data.store import Dataset, validate
from deeplense.errors import UserError
from deeplense.sim.observe import HaloTable
from deeplense.sim.substructure import HALO_COLUMNS


@pytest.fixture
def mock(tmp_path: Path) -> Path:
    """Six images of 5 x 5 pixels in two shards, with a table of halos; every field of the manifest is filled."""
    folder, shards = tmp_path / "mock", []
    for number, n in enumerate((4, 2)):
        table = HaloTable(np.ones((n, len(HALO_COLUMNS)), np.float32), np.arange(n + 1))
        images, params = np.full((n, 1, 5, 5), number, np.float32), np.zeros((n, 1))
        ids = [f"{number}/{k}" for k in range(n)]
        shards.append(store.write_shard(folder, "train", number, images, np.arange(n) % 2, params, ids, table))
    Manifest(
        "mock",
        ImageInfo(1, 5, 5, 0.1, "electron/s", ["a"]),
        ["x", "y"],
        [Parameter("m", "Msun", {"uniform": [0, 1]})],
        {"train": 6},
        shards,
        {"seed": 1, "simulation": {"size": 5}},
        "0.1",
        source="simulated",
        halo_columns=list(HALO_COLUMNS),
    ).seal().write(folder)
    return folder


def one_line(folder: Path) -> str:
    """What is wrong, however the dataset is used; empty when nothing is."""
    try:
        validate(folder)
        for item in read_images(folder):
            assert item.file
        dataset = Dataset(folder)
        split = dataset.split(next(iter(dataset.manifest.splits)))
        split.halos(len(split) - 1)
        dataset.locate(split.ids[-1])
    except UserError as error:
        return str(error) if str(error).isprintable() else ""
    return ""


def test_any_flipped_byte_of_the_manifest_is_found(mock: Path) -> None:
    path = mock / schema.MANIFEST
    good = path.read_bytes()
    validate(mock)
    for k in range(len(good)):
        for new in {good[k] ^ 1 << k % 8, 0x20} - {good[k]}:
            path.write_bytes(good[:k] + bytes([new]) + good[k + 1 :])
            with pytest.raises(UserError):
                schema.read_manifest(mock).check_seal(mock)
    for text in (good + b"\n", good.replace(b"\n", b"\r\n"), good[:-1]):
        path.write_bytes(text)
        with pytest.raises(UserError):
            validate(mock)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every mapping or list of a tree with each of its keys."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


STRANGE = [None, -1, 0, 2**70, 1.5, float("nan"), "", "a\nb", "\x1b[31m", [], {}, [[]], {"a": 1}, True, "x" * 5000]


def test_any_strange_value_anywhere_is_one_line(mock: Path) -> None:
    path = mock / schema.MANIFEST
    text = path.read_text()
    for number in range(sum(1 for _ in places(json.loads(text)))):
        for value in [*STRANGE, KeyError]:
            tree = json.loads(text)
            holder, key = list(places(tree))[number]
            if value is KeyError:
                del holder[key]
            else:
                holder[key] = value
            path.write_text(json.dumps(tree))
            changed = json.loads(json.dumps(tree)) != json.loads(text)
            assert one_line(mock) or not changed, (key, value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t["shards"][0].update(file="../outside.h5"), "should be the name of a file beside it"),
        (lambda t: t["shards"][0].update(file="/etc/passwd"), "should be the name of a file beside it"),
        (lambda t: t["shards"][0].update(file="a\\b"), "should be the name of a file beside it"),
        (lambda t: t["shards"][0].update(n=True), r"shards\.0\.n is True, but should be int"),
        (lambda t: t["shards"][0].update(n=-4), r"shards\[0\].n is -4"),
        (lambda t: t["shards"][0].update(split="dev"), "which splits does not name"),
        (lambda t: t.update(classes=["x", "x"]), "classes has a name twice"),
        (lambda t: t.update(classes="xy"), "classes is 'xy', but should be list"),
        (lambda t: t["image"].update(height=2**14, width=2**13), "an image of 1 x 16384 x 8192 pixels"),
        (lambda t: t["image"].update(pixel_scale=0), "image.pixel_scale is 0"),
        (lambda t: t["image"].update(bands=["a", "b"]), "image.bands are 2, channels 1"),
        (lambda t: t["image"].pop("width"), "image.width is missing"),
        (lambda t: t["parameters"][0].update(colour=1), r"parameters\.0 has no key 'colour'"),
        (lambda t: t.update(recipe=[1]), r"recipe is \[1\], but should be"),
        (lambda t: t.update(name="a\nb"), "manifest.name is 'a.nb', but should be printable text"),
    ],
)
def test_what_a_manifest_may_not_say(mock: Path, change: Callable[[dict[str, Any]], object], match: str) -> None:
    path = mock / schema.MANIFEST
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=match):
        schema.read_manifest(mock)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe{}", b"[" * 10**5, b'{"recipe": ' + b'{"a":' * 500 + b"1" + b"}" * 501, b'{"name": ' + b"9" * 5000],
)
def test_files_that_are_no_manifest(mock: Path, content: bytes) -> None:
    (mock / schema.MANIFEST).write_bytes(content)
    assert "dataset.json: " in one_line(mock)


def test_a_deep_recipe_is_refused(mock: Path) -> None:
    tree = json.loads((mock / schema.MANIFEST).read_text())
    tree["recipe"] = json.loads('{"a":' * 40 + "1" + "}" * 40)
    (mock / schema.MANIFEST).write_text(json.dumps(tree))
    assert "more than 32 levels deep" in one_line(mock)


def test_every_field_of_the_manifest_has_a_type_that_is_checked() -> None:
    for cls in (Manifest, ImageInfo, Parameter, schema.Shard):
        whole = {f.name: object() for f in dataclasses.fields(cls)}
        for name in whole:
            if (cls, name) != (Parameter, "prior"):  # free by definition
                with pytest.raises(UserError):
                    typed._value(typed.fields(cls)[name], whole[name], name)


def replace(name: str, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


def link(name: str, target: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = target

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "S120")
    layout[:] = h5py.VirtualSource("other.h5", "id", (4,))
    del file["id"]
    file.create_virtual_dataset("id", layout)


def attribute(value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file["halo"].attrs.__setitem__("columns", value)


SHARD_DAMAGE: dict[str, Callable[[h5py.File], None]] = {
    "external storage": replace("id", shape=(4,), dtype="S8", external=[("/etc/passwd", 0, 32)]),
    "virtual": virtual,
    "external link": link("id", h5py.ExternalLink("other.h5", "/id")),
    "soft link": link("id", h5py.SoftLink("/label")),
    "group": lambda file: (file.__delitem__("id"), file.create_group("id"))[0],  # type: ignore[func-returns-value]
    "not UTF-8": replace("id", data=np.array([b"\xff"] * 4)),
    "text": replace("id", data=np.array(["a"] * 4, dtype=h5py.string_dtype())),
    "long ids": replace("id", shape=(4,), dtype="S1000"),
    "same ids": replace("id", data=np.array([b"a"] * 4)),
    "float labels": replace("label", data=np.zeros(4)),
    "other order": replace("label", data=np.zeros(4, ">i8")),
    "small labels": replace("label", data=np.zeros(4, np.int8)),
    "packed": replace("params", data=np.zeros((4, 1)), compression="gzip"),
    "complex": replace("params", data=np.zeros((4, 1), complex)),
    "scalar": replace("params", data=1.0),
    "hollow images": replace("image", shape=(4, 1, 5, 5), dtype="f4"),
    "no halo_start": lambda file: file.__delitem__("halo_start"),
    "no halo": lambda file: file.__delitem__("halo"),
    "starts of text": replace("halo_start", data=np.array([b"a"] * 5)),
    "long starts": replace("halo_start", data=np.array([0, 1, 2, 3, 99])),
    "columns of numbers": attribute(3),
    "columns not UTF-8": attribute(np.array([b"\xff"] * 5)),
    "columns of text": attribute("mass"),
}


@pytest.mark.parametrize("name", SHARD_DAMAGE)
def test_a_shard_that_is_not_plain_is_one_line(mock: Path, name: str) -> None:
    with h5py.File(mock / "other.h5", "w") as file:
        file["id"] = np.array([b"secret"] * 4)
    assert one_line(mock) == ""
    with h5py.File(mock / "train-00000.h5", "r+") as file:
        SHARD_DAMAGE[name](file)
    assert str(mock) in one_line(mock)


def test_mutated_shards_are_a_dataset_or_one_line(mock: Path) -> None:
    path = mock / "train-00000.h5"
    good = path.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(good)
        for k in draw.integers(0, len(good), draw.integers(1, 8)):
            bad[k] = draw.integers(0, 256)
        path.write_bytes(bad[: draw.integers(1, len(good))] if draw.random() < 0.2 else bad)
        one_line(mock)


def test_ids_that_cannot_be_printed_are_escaped(mock: Path) -> None:
    with h5py.File(mock / "train-00000.h5", "r+") as file:
        replace("id", data=np.array([b"a\nb", b"\x1b[31m", b"c", b"d"]))(file)
    assert Dataset(mock).split("train").ids[:3] == ["a\\nb", "\\x1b[31m", "c"]


def test_any_number_of_shards_is_open_at_once(mock: Path) -> None:
    """With no more files than a few, by the rules of the system."""
    manifest = schema.read_manifest(mock)
    first = manifest.shards[0]
    manifest.shards = []
    for k in range(200):
        (mock / f"copy-{k}.h5").symlink_to(mock / first.file)
        manifest.shards.append(dataclasses.replace(first, file=f"copy-{k}.h5"))
    manifest.splits = {"train": 800}
    manifest.seal().write(mock)
    code = f"""if True:
        import resource
        import numpy as np
        from deeplense.data.store import Dataset
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        split = Dataset({str(mock)!r}).split("train")
        print(len(split), split.images(np.arange(0, 800, 4)).shape[0])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["800", "200"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] != 64


def test_a_split_is_a_dataset_of_pytorch(mock: Path) -> None:
    split = Dataset(mock).split("train")
    one = split[4]
    assert one.image.shape == (1, 5, 5)
    assert (int(one.label), int(one.id)) == (0, 4)
    assert torch.equal(split[-1].image, split[5].image)
    assert torch.equal(split[np.int64(5)].image, split[5].image)
    for i in (6, -7):
        with pytest.raises(IndexError):
            split[i]
    assert sum(1 for _ in split) == 6  # type: ignore[misc]
    loader = torch.utils.data.DataLoader(split, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    batches = list(loader)
    assert [type(b) for b in batches] == [schema.Batch, schema.Batch]
    assert torch.cat([b.image for b in batches]).equal(split.images(np.arange(6)))
    assert torch.cat([b.label for b in batches]).tolist() == split.labels.tolist()
    assert torch.cat([b.id for b in batches]).tolist() == list(range(6))


def test_files_have_the_mode_of_any_new_file(mock: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    with schema.atomic(tmp_path / "private.bin") as temporary:
        temporary.touch(mode=0o600)
    for path in (mock / schema.MANIFEST, mock / "train-00000.h5", tmp_path / "private.bin"):
        assert path.stat().st_mode == expected, path


def test_a_file_is_flushed_before_it_has_its_name_and_then_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(schema.os, "fsync", lambda k: seen.append(Path(f"/proc/self/fd/{k}").resolve().name))
    with schema.atomic(tmp_path / "x.csv") as temporary:
        temporary.write_text("1")
    assert seen == [temporary.name, tmp_path.name]
