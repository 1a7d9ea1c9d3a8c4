from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import wild

from deeplense.data import importing, place, store
from deeplense.data.formats import Foreign, read_images
from deeplense.data.importing import import_dataset
from deeplense.data.schema import Manifest
from deeplense.data.store import Dataset, validate
from deeplense.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def counts(folder: Path) -> dict[str, dict[str, int]]:
    dataset = Dataset(folder)
    names = ["none", *dataset.manifest.classes]
    return {
        split: dict(sorted(Counter(names[k + 1] for k in dataset.split(split).labels).items()))
        for split in dataset.manifest.splits
    }


def fails(match: str, source: Path, out: Path, **options: object) -> None:
    """It raises one line, and leaves nothing behind."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as caught:
        import_dataset(source, out, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.rglob("*")) == before


def test_every_image_arrives_with_its_label_and_mass(tmp_path: Path) -> None:
    source = wild.model(tmp_path / "set", "II", n=10)
    out = import_dataset(source, tmp_path / "out", pixel_scale=0.05)
    manifest = validate(out, checksums=True)
    assert manifest.classes == ["axion", "cdm", "no_sub"]
    assert counts(out) == {
        "train": {"axion": 8, "cdm": 8, "no_sub": 8},
        "val": {"axion": 1, "cdm": 1, "no_sub": 1},
        "test": {"axion": 1, "cdm": 1, "no_sub": 1},
    }
    assert (manifest.image.pixel_scale, manifest.image.height, manifest.name) == (0.05, 64, "out")
    assert manifest.source == str(source)
    (mass,) = manifest.parameters
    assert (mass.name, mass.unit, mass.prior) == ("log10_m_axion", "log10(eV)", None)
    truth = {item.id: item for item in read_images(source) if isinstance(item, Foreign)}
    seen = set()
    for name in manifest.splits:
        split = Dataset(out).split(name)
        for k, id in enumerate(split.ids):
            np.testing.assert_array_equal(split.images(np.array([k]))[0].numpy(), truth[id].image)
            assert manifest.classes[split.labels[k]] == truth[id].label
            expected = truth[id].params.get("log10_m_axion", np.nan)
            np.testing.assert_array_equal(split.params[k], [expected])
            seen.add(id)
    assert seen == set(truth)


def test_same_dataset_from_folder_zip_tar_and_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = wild.model(tmp_path / "set", "II", n=5)
    sources = [
        folder,
        wild.zipped(folder, tmp_path / "set.zip"),  # in reverse order
        wild.tarred(folder, tmp_path / "set.tar.gz"),
    ]
    outs = [import_dataset(source, tmp_path / f"out{k}") for k, source in enumerate(sources)]
    prints = {validate(out).fingerprint for out in outs}
    assert len(prints) == 1
    assert len({(out / "train-00000.h5").read_bytes() for out in outs}) == 1
    other = import_dataset(folder, tmp_path / "other", seed=1)
    assert validate(other).fingerprint not in prints
    assert set(Dataset(other).split("test").ids) != set(Dataset(outs[0]).split("test").ids)


def test_shards_are_small_and_mix_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "SHARD", 16)
    source = wild.model_4_circulating(tmp_path / "set", n=32)
    out = import_dataset(source, tmp_path / "out", splits="train=1")
    manifest = validate(out, checksums=True)
    assert [s.n for s in manifest.shards] == [16] * 6
    labels = Dataset(out).split("train").labels.reshape(6, 16)
    assert all(set(row) == {0, 1, 2} for row in labels)
    assert np.abs(np.diff(labels.ravel())).sum() > 50  # in file order it would be 2


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (wild.model_4_scripted, {s: {"axion": 3, "cdm": 3, "no_sub": 3} for s in ("train", "val")}),
        (wild.common_test, {s: {"axion": 3, "cdm": 3, "no_sub": 3} for s in ("train", "val")}),
        (wild.lens_finding, {s: {"lens": 3, "nonlens": 3} for s in ("train", "test")}),
    ],
    ids=["model 4", "common test", "lens finding"],
)
def test_splits_from_folders(tmp_path: Path, make, expected: dict[str, dict[str, int]]) -> None:  # type: ignore[no-untyped-def]
    source = make(tmp_path / "set")
    out = import_dataset(source, tmp_path / "out")
    assert counts(out) == expected
    for split in expected:
        assert all(split in id for id in Dataset(out).split(split).ids)


def test_splits_of_the_user_win(tmp_path: Path) -> None:
    source = wild.lens_finding(tmp_path / "set", n=5)
    out = import_dataset(source, tmp_path / "out", splits="train=0.5, dev=0.3,test=0.2")
    assert counts(out) == {
        "train": {"lens": 5, "nonlens": 5},
        "test": {"lens": 2, "nonlens": 2},
        "dev": {"lens": 3, "nonlens": 3},
    }
    ids = [set(Dataset(out).split(name).ids) for name in ("train", "dev", "test")]
    assert len(set.union(*ids)) == sum(map(len, ids)) == 20


def test_classes(tmp_path: Path) -> None:
    common = wild.common_test(tmp_path / "common")
    out = import_dataset(common, tmp_path / "a", classes="sphere=halo, vort=string,no=plain")
    assert Dataset(out).manifest.classes == ["halo", "plain", "string"]
    out = import_dataset(common, tmp_path / "b", classes="vort,No")
    assert counts(out)["train"] == {"No": 3, "vort": 3}
    out = import_dataset(wild.sub_no_sub(tmp_path / "sub"), tmp_path / "c")
    assert Dataset(out).manifest.classes == ["no_sub", "sub"]
    out = import_dataset(common, tmp_path / "d", classes="none")
    assert Dataset(out).manifest.classes == []
    assert set(Dataset(out).split("train").labels) == {-1}
    validate(out)


def test_labels_inside_the_files(tmp_path: Path) -> None:
    for k in range(10):
        wild.write(tmp_path / "set" / f"{k}.npy", np.append(wild.lens(16, k).ravel(), k % 2))
    out = import_dataset(tmp_path / "set", tmp_path / "out", splits="train=1")
    assert counts(out) == {"train": {"0": 5, "1": 5}}
    out = import_dataset(tmp_path / "set", tmp_path / "named", splits="train=1", classes="0=no_sub,1=cdm")
    assert counts(out) == {"train": {"cdm": 5, "no_sub": 5}}


def test_images_of_several_sizes_are_cropped_to_one_unless_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = wild.super_resolution(tmp_path / "set")
    fails(
        r"several sizes, 75x75 \(3 images\), 150x150 \(3 images\)|several sizes, 150x150 \(3 images\), 75x75",
        source,
        tmp_path / "out",
        classes="none",
        size="refuse",
    )
    out = import_dataset(source, tmp_path / "out", classes="none", splits="train=1")
    assert "3 images cropped or padded to 75x75 pixels, from" in capsys.readouterr().out
    split = Dataset(out).split("train")
    for k, id in enumerate(split.ids):
        whole = np.load(source / f"{id}.npy")
        edge = (whole.shape[-1] - 75) // 2
        np.testing.assert_array_equal(
            split.images(np.array([k]))[0].numpy(), whole[:, edge : edge + 75, edge : edge + 75].astype(np.float32)
        )
    out = import_dataset(source, tmp_path / "wide", classes="none", size="80x100")
    assert (Dataset(out).manifest.image.height, Dataset(out).manifest.image.width) == (80, 100)


def test_images_that_no_name_classifies_are_imported_without_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = wild.super_resolution(tmp_path / "set") / "HR"
    out = import_dataset(source, tmp_path / "out", splits="train=1")
    assert counts(out) == {"train": {"none": 3}}
    assert "no name tells a class (e.g. sample_0); --classes" in capsys.readouterr().out


def test_an_unknown_folder_is_a_class_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = wild.model_4_circulating(tmp_path / "mixed")
    wild.write(mixed / "wdm" / "0.npy", wild.lens(64))
    fails(r"no image of --classes hot \(folders with images: .*wdm", mixed, tmp_path / "never", classes="cdm,hot")
    out = import_dataset(mixed, tmp_path / "out", splits="train=1")
    assert counts(out) == {"train": {"axion": 3, "cdm": 3, "no_sub": 3, "wdm": 1}}
    said = "unknown names taken as classes of their own: wdm (--classes a=b renames them)"
    assert said in capsys.readouterr().out
    assert said in Dataset(out).manifest.notes


def test_a_set_of_one_class_is_named_by_its_own_folder(tmp_path: Path) -> None:
    wild.model(tmp_path / "set", "II")
    out = import_dataset(tmp_path / "set" / "axion", tmp_path / "out", splits="train=1")
    assert counts(out) == {"train": {"axion": 4}}


def test_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = wild.model_4_circulating(tmp_path / "set", n=10)
    flag = tmp_path / "flag"
    for k in range(3):
        wild.write(source / "cdm" / f"bad{k}.npy", wild.object_npy(pickle.dumps(wild.objects(wild.Evil(flag), 1.0))))
    wild.write(source / "cdm" / "empty.npy", b"")
    nan = wild.lens(64)
    nan[3, 3] = np.nan
    wild.write(source / "cdm" / "nan.npy", nan)
    out = import_dataset(source, tmp_path / "out", splits="train=0.8,test=0.2")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "train test"
    assert "axion 8 2" in lines
    assert "cdm 9 2" in lines
    assert "no_sub 8 2" in lines
    (evil,) = (line for line in lines if "would run code" in line)
    assert evil.startswith("skipped 3 x would run code (")
    assert "bad0.npy" in evil
    assert any(line.startswith("skipped 1 x empty file") for line in lines)
    assert any("1 image" in line and "NaN" in line for line in lines)
    assert lines[-1] == f"wrote {out}: 31 images of 1x64x64, 3 classes"
    assert not flag.exists()


def test_nothing_but_traps(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    wild.traps(tmp_path / "set", flag)
    fails(r"no image could be read \(.*would run code", tmp_path / "set", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    fails("no image could be read", tmp_path / "bare", tmp_path / "out")
    assert not flag.exists()


def test_pixel_scales(tmp_path: Path) -> None:
    for k, scale in enumerate((0.04, 0.04, 0.05)):
        wild.telescope(tmp_path / "set" / f"{k}.fits", pixel_scale=scale)
    fails(
        "pixel scales from 0.04 to 0.05 arcsec; give --pixel-scale", tmp_path / "set", tmp_path / "out", classes="none"
    )
    out = import_dataset(tmp_path / "set", tmp_path / "given", classes="none", pixel_scale=0.045)
    assert Dataset(out).manifest.image.pixel_scale == 0.045
    (tmp_path / "set" / "2.fits").unlink()
    out = import_dataset(tmp_path / "set", tmp_path / "found", classes="none")
    assert Dataset(out).manifest.image.pixel_scale == pytest.approx(0.04)
    assert np.isnan(Dataset(out).split("train").images(np.array([0])).numpy()).sum() == 1
    wild.telescope(tmp_path / "set" / "3.fits", pixel_scale=None)
    out = import_dataset(tmp_path / "set", tmp_path / "unknown", classes="none")
    assert Dataset(out).manifest.image.pixel_scale is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"splits": "train=0.8,test=0.3"}, "sum to 1"),
        ({"splits": "train"}, "--splits 'train' is not like"),
        ({"splits": "train=0.5,train=0.5"}, "--splits"),
        ({"splits": "train=nan"}, "--splits"),
        ({"splits": "a/b=1"}, "--splits"),
        ({"classes": "cdm,"}, "--classes 'cdm,' is not like"),
        ({"classes": "cdm,cdm=x"}, "--classes"),
        ({"classes": "cdm="}, "--classes"),
        ({"pixel_scale": -1.0}, "--pixel-scale"),
        ({"pixel_scale": float("nan")}, "--pixel-scale"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, object], match: str) -> None:
    fails(match, wild.model_4_circulating(tmp_path / "set"), tmp_path / "out", **options)


def test_out_is_taken(tmp_path: Path, tiny_dataset: Path) -> None:
    source = wild.model_4_circulating(tmp_path / "set")
    fails("no such file", tmp_path / "nowhere", tmp_path / "out")
    fails("is a dataset already", tiny_dataset, tmp_path / "out")
    out = import_dataset(source, tmp_path / "out")
    fails("already exists; choose another --out", source, out)
    wild.write(tmp_path / "full" / "thesis.tex", b"years")
    fails("not an empty folder", source, tmp_path / "full")
    fails("not an empty folder", source, tmp_path / "full" / "thesis.tex")
    (tmp_path / "empty").mkdir()
    validate(import_dataset(source, tmp_path / "empty"))
    validate(import_dataset(source, source / "inside"))


def test_some_without_split_folder(tmp_path: Path) -> None:
    source = wild.lens_finding(tmp_path / "set")
    wild.write(source / "lenses" / "0.npy", np.zeros((3, 64, 64)))
    fails("lenses/0 is in none of the split folders; give --splits", source, tmp_path / "out")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = wild.model_4_circulating(tmp_path / "set", n=4)
    written = store.write_shard

    def second_fails(folder: Path, split: str, *arguments: object, **named: object) -> object:
        if split == "val":
            raise UserError(f"{folder}: cannot write (No space left on device)")
        return written(folder, split, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_shard", second_fails)
        fails("No space left", source, tmp_path / "out", splits="train=0.5,val=0.5")
    with monkeypatch.context() as patch:
        patch.setattr(importing, "_scratch", lambda folder: open("/dev/full", "wb"))  # noqa: SIM115
        fails("cannot write .No space left", source, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", lambda dir: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Quota")))
        fails("cannot write .Quota", source, tmp_path / "out")


def test_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = wild.model_4_circulating(tmp_path / "set", n=4)

    def stop(self: Manifest, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["set"]


def test_long_ids_stay_apart(tmp_path: Path) -> None:
    for k in range(3):
        wild.write(tmp_path / "set" / f"{k}é" / ("é" * 60) / "cdm" / ("ü" * 80 + ".npy"), wild.lens(16, k))
    out = import_dataset(tmp_path / "set", tmp_path / "out", splits="train=1")
    ids = Dataset(out).split("train").ids
    assert len(set(ids)) == 3
    assert all(id.endswith("ü") for id in ids)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared/data beside the project")
def test_real_sub_no_sub_set(tmp_path: Path) -> None:
    out = import_dataset(SHARED / "sub_nosub_train.zip", tmp_path / "out", splits="train=0.8,test=0.2")
    assert counts(out) == {"train": {"no_sub": 2400, "sub": 2400}, "test": {"no_sub": 600, "sub": 600}}
    image = Dataset(out).manifest.image
    assert (image.channels, image.height, image.width) == (1, 150, 150)
    assert Dataset(out).split("train").images(np.arange(50)).max() <= 255
    shutil.rmtree(out)


def test_leftovers_of_a_killed_import_are_swept_by_the_next(tmp_path: Path) -> None:
    source = wild.model_4_circulating(tmp_path / "set", n=4)
    code = f"""if True:
        import os, signal
        from deeplense.data import importing
        importing._split = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        importing.import_dataset({str(source)!r}, {str(tmp_path / "out")!r})
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".out.*.tmp")
    other = tmp_path / ".out.1-2.tmp"  # of one that still runs
    other.mkdir()
    with place.locked(other):
        import_dataset(source, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.1-2.tmp", "out", "set"]
    assert not left.exists()


def test_a_source_whose_name_cannot_be_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = wild.model_4_circulating(tmp_path / "a\n\x1b[31m", n=4)
    wild.write(source / "b\nad.txt", b"x")
    out = import_dataset(source, tmp_path / "o\nut", splits="train=1")
    manifest = validate(out, checksums=True)
    assert (manifest.name, Path(manifest.source).name) == ("o\\nut", "a\\n\\x1b[31m")
    assert "b\\nad.txt" in capsys.readouterr().out
