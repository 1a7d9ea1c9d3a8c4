"""Generation: the same bytes whatever happens on the way, and a remedy for what cannot be."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY, content

from deeplense import cli, config
from deeplense.data import generate, pools, schema, store
from deeplense.data.generate import simulate
from deeplense.data.store import Dataset, validate
from deeplense.errors import UserError

SHARDS = ["test-00000.h5", *(f"train-0000{k}.h5" for k in range(4)), "val-00000.h5", "val-00001.h5"]


def fails(match: str, out: Path, recipe: Any = TINY, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        simulate(recipe, out, **({"workers": 1} | options))
    assert "\n" not in str(caught.value)


def forbidden(*_: object, **__: object) -> Any:
    raise AssertionError("nothing should be made")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of one block, so that a few hundred images are several."""
    monkeypatch.setattr(generate, "SHARD_BLOCKS", 1)
    monkeypatch.setattr(generate, "SHARD", 256)


def test_a_dataset_is_what_the_recipe_says(whole: Path) -> None:
    manifest = validate(whole, checksums=True)
    assert sorted(content(whole)) == ["dataset.json", *SHARDS]
    assert manifest.splits == TINY["splits"]
    assert manifest.classes == ["no_sub", "cdm"]
    assert (manifest.source, manifest.name, manifest.image.pixel_scale) == ("simulated", "tiny", 0.25)
    assert manifest.recipe is not None
    assert config.load_recipe(manifest.recipe) == config.load_recipe(TINY)
    ids: set[str] = set()
    for name, n in manifest.splits.items():
        split = Dataset(whole).split(name)
        assert np.abs(np.diff(np.bincount(split.labels))) <= 1
        assert split.ids == [f"{name}-{k:08d}" for k in range(n)]
        ids |= set(split.ids)
        center = split.params[:, manifest.parameter("source.center_x")]
        assert np.abs(center).max() <= 0.3
        number = split.params[:, manifest.parameter("n_sub")]
        np.testing.assert_array_equal(np.isnan(number), split.labels == 0)
        images = split.images(np.arange(n))
        assert bool(torch.isfinite(images).all())
        assert len({bytes(i.numpy().tobytes()) for i in images}) == n  # never the same image twice
    assert len(ids) == sum(TINY["splits"].values())


def test_per_class_and_splits(tmp_path: Path) -> None:
    out = simulate(TINY, tmp_path / "a", per_class=7, workers=1)
    assert validate(out).splits == {"train": 14}
    assert np.bincount(Dataset(out).split("train").labels).tolist() == [7, 7]
    out = simulate(TINY, tmp_path / "b", splits="dev=3, train=14", workers=1)
    assert validate(out).splits == {"dev": 3, "train": 14}
    # a split's images depend on its name and not on what else is made
    assert (tmp_path / "a/train-00000.h5").read_bytes() == (tmp_path / "b/train-00000.h5").read_bytes()
    train, dev = (Dataset(out).split(name).images(np.arange(3)) for name in ("train", "dev"))
    assert not torch.equal(train, dev)


def test_a_smaller_split_is_the_beginning_of_a_larger_one(whole: Path, tmp_path: Path) -> None:
    few = Dataset(simulate(TINY, tmp_path / "few", splits="train=300", workers=1)).split("train")
    many = Dataset(whole).split("train")
    assert torch.equal(few.images(np.arange(300)), many.images(np.arange(300)))
    np.testing.assert_array_equal(few.params, many.params[:300])


def test_the_seed_decides(tmp_path: Path) -> None:
    images = []
    for k, seed in enumerate((None, 5, 6)):
        out = simulate(TINY, tmp_path / str(k), splits="train=8", workers=1, seed=seed)
        assert Dataset(out).manifest.recipe["seed"] == (seed or 5)  # type: ignore[index]
        images.append(Dataset(out).split("train").images(np.arange(8)))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_recipe_by_any_name_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(config.dump(TINY))
    recipes: list[Any] = [TINY, path, str(path), config.load_recipe(TINY)]
    made = [
        simulate(r, tmp_path / str(k), splits="train=4", workers=1, overrides=["name=a"]) for k, r in enumerate(recipes)
    ]
    assert all(content(out) == content(made[0]) for out in made)
    assert TINY["name"] == "tiny"
    assert TINY["seed"] == 5


@pytest.mark.parametrize("lost", [["val-00001.h5"], ["train-00000.h5", "test-00000.h5"]])
def test_lost_shards_are_made_again_and_no_others(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: list[str]
) -> None:
    made: list[str] = []
    write = store.write_shard

    def noted(folder: Path, split: str, number: int, *rest: Any) -> Any:
        made.append(f"{split}-{number:05d}.h5")
        return write(folder, split, number, *rest)

    monkeypatch.setattr(store, "write_shard", noted)
    for finished in (True, False):
        out = tmp_path / f"copy-{finished}"
        shutil.copytree(whole, out)
        for name in lost:
            (out / name).unlink()
        if not finished:
            unfinish(out)
        made.clear()
        simulate(TINY, out, workers=1)
        assert sorted(made) == sorted(lost)
        assert content(out) == content(whole)


def unfinish(out: Path) -> None:
    """As it was before the manifest was written."""
    plan = {
        "recipe": json.loads((out / schema.MANIFEST).read_text())["recipe"],
        "engine": "torch",
        "device": "cpu",
        "code_version": json.loads((out / schema.MANIFEST).read_text())["code_version"],
    }
    (out / generate.PLAN).write_text(json.dumps(plan))
    (out / schema.MANIFEST).unlink()


def test_a_finished_dataset_is_left_as_it_is(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    (out / generate.PLAN).write_text("killed between its last two files")
    monkeypatch.setattr(generate, "make_shard", forbidden)
    assert simulate(TINY, out) == out
    assert "complete already" in capsys.readouterr().out
    assert content(out) == content(whole)
    before = content(out)
    fails("holds another dataset; choose another --out or delete it", out, seed=6)
    fails("holds another dataset", out, splits="train=3")
    assert content(out) == before


def test_a_finished_dataset_of_another_version_is_not_mended(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    (out / "val-00001.h5").unlink()
    manifest = schema.read_manifest(out)
    dataclasses.replace(manifest, code_version="0.0.1").write(out)
    fails("shards are missing.*0.0.1", out)


def test_an_unfinished_simulation_of_something_else_is_left_alone(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole, out)
    unfinish(out)
    before = content(out)
    for options in ({"seed": 6}, {"splits": "train=3"}, {"engine": "lenstronomy"}):
        fails("holds another unfinished simulation", out, **options)
    assert content(out) == before


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years")
    fails("thesis: is not empty; choose another --out", tmp_path / "thesis")
    fails("thesis.tex: is a file; choose another --out", tmp_path / "thesis" / "thesis.tex")
    fails("cannot write there .Not a directory", tmp_path / "thesis" / "thesis.tex" / "x")
    (tmp_path / "thesis" / "dataset.json").write_text("{}")
    fails("schema version None", tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years"
    (tmp_path / "empty").mkdir()
    validate(simulate(TINY, tmp_path / "empty", splits="train=2", workers=1))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"splits": "train"}, "--splits 'train' is not like train=900"),
        ({"splits": "train=x"}, "--splits 'train=x'"),
        ({"splits": "train=0"}, "split train=0"),
        ({"splits": "../x=3"}, "plain name"),
        ({"splits": "train=1,train=2"}, "names a split twice"),
        ({"per_class": 0}, "split train=0"),
        ({"per_class": 3, "splits": "train=3"}, "not both"),
        ({"engine": "galsim"}, "engine 'galsim' is not one of torch, lenstronomy"),
        ({"workers": 0}, "--workers is 0"),
        ({"seed": -1}, r"seed is -1; it must lie in \[0, "),
        ({"device": "tpu"}, "--device tpu: no such kind of device"),
        ({"overrides": ["simulation.source.center_x={uniform: [1, 0]}"]}, "swap them"),
        ({"overrides": ["simulation.source.R_sersic={normal: [0.1, 1]}"]}, r"simulation.source.R_sersic: draws -"),
        ({"overrides": ["simulation.source.R_sersic=0"]}, r"R_sersic is 0.0; it must lie in \(0, "),
        ({"overrides": ["simulation.lens.e1=0.8", "simulation.lens.e2=0.7"]}, "lens.e1: draws an ellipticity of 1.06"),
        ({"overrides": ["simulation.lens.theta_E=-1"]}, r"theta_E is -1.0; it must lie in \[0, "),
        ({"overrides": ["simulation.exposure_time=0"]}, r"exposure_time is 0.0; it must lie in \(0, "),
        ({"overrides": ["simulation.cosmology.Om0=-1"]}, r"cosmology.Om0 is -1.0; it must lie in \(0, 1\]"),
        ({"overrides": ["simulation.z_source_convention=0.2"]}, "z_source_convention: 0.2 is not beyond z_lens"),
    ],
)
def test_bad_input_is_found_before_anything_is_written(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    fails(match, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    for device in ("cuda", "cuda:3"):
        fails(f"--device {device}: this machine has no such device; use --device cpu", tmp_path / "o", device=device)
    assert not (tmp_path / "o").exists()


def test_a_disk_that_is_too_small_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    need = sum(TINY["splits"].values()) * 16 * 16 * 4
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, need))
        patch.setattr(generate, "make_shard", forbidden)
        fails(r"needs 0.01 GB, the disk has 0.00; free some or make fewer", tmp_path / "o")
    validate(simulate(TINY, tmp_path / "o", workers=1))


def test_a_disk_that_fills_up_on_the_way(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either with a shard or with the manifest, its last file; what is there stays good."""
    replace = os.replace
    for last in ("train-00002.h5", schema.MANIFEST):

        def full(source: Any, target: Any, last: str = last) -> None:
            if Path(target).name == last:
                raise OSError(28, "No space left on device")
            replace(source, target)

        out = tmp_path / last
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            fails(f"{last}: cannot write .No space left on device.; free some space and run again", out)
        with pytest.raises(UserError, match="an unfinished dataset"):
            Dataset(out)
        assert set(content(out)) - {generate.PLAN} <= {*SHARDS}
        simulate(TINY, out, workers=1)
        assert content(out) == content(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB: one shard of 1024 images of 16 x 16 takes 1.2."""
    mount, tool = tmp_path / "disk", shutil.which("mount")
    mount.mkdir()
    if os.geteuid() != 0 or tool is None:
        pytest.skip("mounting takes root")
    done = subprocess.run([tool, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = small_disk / "o"
    fails("needs 0.01 GB, the disk has 0.00", out)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 10**12))  # another user was quicker
    fails("train-00000.h5: cannot write .No space left on device", out)
    assert list(content(out)) == [generate.PLAN]


def test_lenstronomy_draws_the_same_dataset(tmp_path: Path) -> None:
    pytest.importorskip("lenstronomy")
    clean = ["simulation.noise=none", "simulation.supersampling=2"]
    made = {
        e: Dataset(simulate(TINY, tmp_path / e, splits="train=12", workers=1, engine=e, overrides=clean)).split("train")
        for e in generate.ENGINES
    }
    ours, theirs = (made[e].images(np.arange(12)) for e in generate.ENGINES)
    assert not torch.equal(ours, theirs)
    assert float((ours - theirs).abs().max() / theirs.max()) < 2e-5
    np.testing.assert_array_equal(made["torch"].params, made["lenstronomy"].params)
    assert made["torch"].ids == made["lenstronomy"].ids


def test_what_a_failing_shard_says_comes_through_and_a_new_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make, made = generate.make_shard, 0

    def interrupted(task: generate.Task) -> Any:
        nonlocal made
        if made == 2:
            raise KeyboardInterrupt
        made += 1
        return make(task)

    arguments = ["simulate", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "o"), "--workers", "1"]
    (tmp_path / "r.yaml").write_text(config.dump({**TINY, "splits": {"train": 1000, "val": 30}}))
    with monkeypatch.context() as patch:
        patch.setattr(generate, "make_shard", interrupted)
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
    assert stopped.value.code == 130
    assert f"stopped; the same command continues after 2 of 5 shards ({tmp_path / 'o'})" in capsys.readouterr().out
    cli.main(arguments)
    assert "wrote" in capsys.readouterr().out
    cli.main([*arguments[:3], str(tmp_path / "whole"), *arguments[4:]])
    assert content(tmp_path / "o") == content(tmp_path / "whole")


def test_no_scheduler_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    fails("--cluster nonsense://x: no Dask scheduler answers there", tmp_path / "a", cluster="nonsense://x")
    monkeypatch.setattr(pools, "CONNECT", 0.3)
    address = "tcp://127.0.0.1:9"
    fails(f"--cluster {address}: no Dask scheduler answers there", tmp_path / "b", cluster=address)
    assert not list(tmp_path.iterdir())


def test_a_dask_cluster_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: None
) -> None:
    distributed = pytest.importorskip("distributed")
    splits = "train=600,val=20"
    serial = simulate(TINY, tmp_path / "serial", splits=splits, workers=1)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        out = simulate(TINY, tmp_path / "cluster", splits=splits, cluster=cluster.scheduler_address)
        assert content(out) == content(serial)

        # a failure there is the same line as here
        def full(path: Path) -> None:
            if path.suffix == ".h5":
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(schema, "flush", full)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(10**12))
        fails(".h5: cannot write .No space left", tmp_path / "b", splits=splits, cluster=cluster.scheduler_address)
    assert len(list(out.glob("*.h5"))) == 4
