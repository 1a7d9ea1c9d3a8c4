"""The table of halos that a shard keeps: whose they are, what they sum to, and what the validator finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from deeplense import config, rng
from deeplense.data import generate, pools, schema, store
from deeplense.data.generate import simulate
from deeplense.data.simulated import SimLoader, SimStream
from deeplense.data.store import Dataset, Split, validate
from deeplense.errors import UserError
from deeplense.evaluation.show import show
from deeplense.sim.observe import HaloTable, observe_block
from deeplense.sim.substructure import HALO_COLUMNS
from deeplense.sim.world import World

FEW = {"mass": [1e8, 1e10], "sigma_sub": {"uniform": [0.0, 0.1]}}
TINY: dict[str, Any] = {
    "name": "halos",
    "seed": 6,  # whose first image of "test" has no halos
    "splits": {"train": 300, "val": 11, "test": 1},
    "simulation": {
        "size": 16,
        "supersampling": 1,
        "pixel_scale": 0.3,
        "z_lens": {"uniform": [0.3, 0.7]},
        "lens": {"theta_E": {"uniform": [0.9, 1.3]}, "e1": 0.1},
        "source": {"magnitude": 20.0, "R_sersic": 0.3},
        "classes": {
            "no_sub": {"population": "none"},
            "cdm": {"population": "cdm", **FEW},
            "wdm": {"population": "wdm", **FEW},
        },
    },
}


@pytest.fixture(scope="module")
def small_shards() -> Any:
    """Shards of one block, so that 300 images are two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "SHARD_BLOCKS", 1)
        patch.setattr(generate, "SHARD", rng.BLOCK)
        yield


@pytest.fixture(scope="module")
def whole(small_shards: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed by a test."""
    return simulate(TINY, tmp_path_factory.mktemp("whole") / "halos", workers=1)


@pytest.fixture
def mock(tmp_path: Path) -> Path:
    """Four images with 2, 0, 3 and 1 halos."""
    rows = np.arange(6 * len(HALO_COLUMNS), dtype=np.float32).reshape(6, len(HALO_COLUMNS))
    table = HaloTable(rows, np.array([0, 2, 2, 5, 6]))
    images = np.zeros((4, 1, 8, 8), np.float32)
    folder = tmp_path / "mock"
    shard = store.write_shard(folder, "train", 0, images, np.zeros(4, np.int64), np.zeros((4, 0)), "abcd", table)
    image = schema.ImageInfo(1, 8, 8)
    made = schema.Manifest("mock", image, ["x"], [], {"train": 4}, [shard], halo_columns=list(HALO_COLUMNS))
    made.seal().write(folder)
    return folder


def test_each_image_has_the_halos_of_its_scene(whole: Path) -> None:
    manifest = validate(whole, checksums=True)
    world = World(config.load_recipe(TINY).simulation)
    assert manifest.halo_columns == list(HALO_COLUMNS)
    for name, n in TINY["splits"].items():
        split = Dataset(whole).split(name)
        for block in range(-(-n // rng.BLOCK)):
            for scene in world.scenes(TINY["seed"], name, block, min(rng.BLOCK, n - block * rng.BLOCK)):
                for row, i in enumerate(scene.index.tolist()):
                    found = split.halos(i)
                    if scene.halos is None:
                        assert len(found) == 0
                        continue
                    there = scene.halos.mask[row]  # type: ignore[index]
                    for column in HALO_COLUMNS:
                        wanted = scene.halos.params[column][row][there].numpy().astype(np.float32)
                        np.testing.assert_array_equal(found[column], wanted)


def test_halos_sum_to_the_stored_truth(whole: Path) -> None:
    split = Dataset(whole).split("train")
    column = split.manifest.parameter
    counts = np.array([len(split.halos(i)) for i in range(len(split))])
    has = split.labels > 0
    assert not counts[~has].any()
    assert np.isnan(split.params[~has, column("n_sub")]).all()
    assert len(set(counts.tolist())) > 10
    for i in np.flatnonzero(has & (counts > 0))[:100]:
        halos = split.halos(i)
        half = 16 * 0.3 / 2
        seen = halos[(np.abs(halos["x"]) < half) & (np.abs(halos["y"]) < half)]
        assert len(seen) == split.params[i, column("n_sub")]
        assert 1e8 <= halos["mass"].min() <= halos["mass"].max() <= 1e10
        np.testing.assert_allclose(halos["z"], split.params[i, column("z_lens")], rtol=1e-6)
        # what tides leave of a halo is less than its M200
        if len(seen):
            assert np.log10(seen["mass"].sum(dtype=float)) > split.params[i, column("log10_m_sub")]


def test_the_last_image_and_one_from_the_end(whole: Path) -> None:
    split = Dataset(whole).split("train")
    np.testing.assert_array_equal(split.halos(-1), split.halos(299))
    with pytest.raises(IndexError):
        split.halos(300)


def test_a_smaller_split_has_the_same_halos(whole: Path, tmp_path: Path) -> None:
    few = Dataset(simulate(TINY, tmp_path / "few", splits="train=50", workers=1)).split("train")
    many = Dataset(whole).split("train")
    for i in range(50):
        np.testing.assert_array_equal(few.halos(i), many.halos(i))


def test_a_split_of_one_image_without_halos_has_an_empty_table(whole: Path) -> None:
    with h5py.File(whole / "test-00000.h5") as file:
        assert file["halo"].shape == (0, len(HALO_COLUMNS))
        assert file["halo_start"][:].tolist() == [0, 0]
    assert len(Dataset(whole).split("test").halos(0)) == 0


def test_any_reader_can_tell_the_columns_and_their_units(whole: Path) -> None:
    with h5py.File(whole / "train-00001.h5") as file:
        table, start = file["halo"], file["halo_start"]
        assert (table.dtype, start.dtype) == (np.float32, np.int64)
        assert len(start) == 300 - rng.BLOCK + 1
        assert start[-1] == len(table)
        units = {k.decode(): u.decode() for k, u in zip(table.attrs["columns"], table.attrs["units"], strict=True)}
    assert list(units) == list(HALO_COLUMNS)
    assert (units["mass"], units["x"], units["y"]) == ("Msun", "arcsec", "arcsec")


def test_an_image_of_a_dataset_with_halos_can_be_shown(whole: Path, tmp_path: Path) -> None:
    assert show(whole, tmp_path / "one.png", id="train-00000299").stat().st_size > 10_000


def test_classes_without_halos_write_no_table(tmp_path: Path) -> None:
    recipe = {**TINY, "simulation": {**TINY["simulation"], "classes": {"no_sub": {"population": "none"}}}}
    out = simulate(recipe, tmp_path / "smooth", splits="train=3", workers=1)
    assert validate(out).halo_columns == []
    with h5py.File(out / "train-00000.h5") as file:
        assert sorted(file) == ["id", "image", "label", "params"]
    with pytest.raises(UserError, match="dataset 'halos' holds no table of halos"):
        Dataset(out).split("train").halos(0)


def test_a_dataset_from_before_there_were_tables_stays_valid(tiny_dataset: Path, tmp_path: Path) -> None:
    """With the fingerprint that it had: a bundle knows its data by it."""
    tree = json.loads((tiny_dataset / schema.MANIFEST).read_text())
    del tree["halo_columns"], tree["checksum"]
    tree["schema_version"] = 1
    (tmp_path / schema.MANIFEST).write_text(json.dumps(tree))
    for shard in tree["shards"]:
        (tmp_path / shard["file"]).symlink_to(tiny_dataset / shard["file"])
    assert validate(tmp_path, checksums=True).fingerprint == tree["fingerprint"]
    bare = schema.Manifest("m", schema.ImageInfo(1, 8, 8, 0.1, "e"), ["a"], [schema.Parameter("p")], {"t": 0}, [])
    assert bare.seal().fingerprint == "56d3fce268a2951b93da7446f498aa325abf301d284e23e083d055b165ed1696"


def test_a_table_reads_as_it_was_written(mock: Path) -> None:
    validate(mock, checksums=True)
    split = Dataset(mock).split("train")
    assert [len(split.halos(i)) for i in range(4)] == [2, 0, 3, 1]
    assert split.halos(2)["y"].tolist() == [22.0, 32.0, 42.0]
    assert split.halos(3)["mass"].tolist() == [50.0]


@pytest.mark.parametrize(
    ("start", "match"),
    [
        ([0, 2, 1, 5, 6], "halo_start does not share 6 halos among 4 images"),
        ([1, 2, 2, 5, 6], "does not share"),
        ([0, 2, 2, 5, 7], "does not share"),
        ([0, 2, 2, 6], "does not share"),
        (None, "its table of halos does not fit the manifest"),
    ],
)
def test_starts_that_do_not_share_the_halos_are_found(mock: Path, start: list[int] | None, match: str) -> None:
    with h5py.File(mock / "train-00000.h5", "r+") as file:
        del file["halo_start"]
        if start is not None:
            file["halo_start"] = np.array(start)
    with pytest.raises(UserError, match=f"train-00000.h5: .*{match}"):
        validate(mock)


def _columns(file: h5py.File) -> None:
    file["halo"].attrs["columns"] = np.array([k.encode() for k in ("mass", "y", "x", *HALO_COLUMNS[3:])])


def _table(value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        old = dict(file["halo"].attrs)
        del file["halo"]
        file["halo"] = value
        file["halo"].attrs.update(old)

    return change


@pytest.mark.parametrize(
    "change", [_columns, _table(np.zeros((6, 4), np.float32)), _table(np.zeros((6, len(HALO_COLUMNS))))]
)
def test_a_table_of_other_columns_is_found(mock: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(mock / "train-00000.h5", "r+") as file:
        change(file)
    with pytest.raises(UserError, match=r"train-00000.h5: halos have columns .*, the manifest says"):
        validate(mock)


def test_a_manifest_that_forgets_or_renames_the_table_is_found(mock: Path) -> None:
    path = mock / schema.MANIFEST
    tree = json.loads(path.read_text())
    for columns, match in (([], "does not fit the manifest"), ([*"abcdefghij"], "halos have columns")):
        path.write_text(json.dumps(tree | {"halo_columns": columns}))
        with pytest.raises(UserError, match=match):
            validate(mock)


def test_a_block_keeps_the_halos_in_the_order_of_its_images() -> None:
    world = World(config.load_recipe(TINY).simulation)
    part, all_ = (observe_block(world, 5, "train", 1, n) for n in (20, rng.BLOCK))
    end = part.halos.start[-1]
    np.testing.assert_array_equal(part.halos.rows, all_.halos.rows[:end])
    np.testing.assert_array_equal(part.halos.start, all_.halos.start[:21])
    joined = HaloTable.joined([all_.halos, part.halos])
    np.testing.assert_array_equal(joined.rows, np.concatenate([all_.halos.rows, part.halos.rows]))
    np.testing.assert_array_equal(np.diff(joined.start), [*np.diff(all_.halos.start), *np.diff(part.halos.start)])


def test_two_workers_store_what_training_on_the_fly_sees(tmp_path: Path) -> None:
    """Realistic populations too: mass sheets, granules, a mesh, drawn redshifts."""
    heavy = [f"simulation.classes.{k}.mass=[1e9, 1e10]" for k in ("cdm", "wdm", "sidm", "uldm")]
    changes = ["simulation.size=16", "simulation.pixel_scale=0.3", "simulation.supersampling=1", *heavy]
    recipe = config.load_recipe("realistic/hst", changes)
    tasks = [
        generate.Task(
            config.to_tree(recipe), str(tmp_path / str(epoch)), f"train/{epoch}", 0, rng.BLOCK, "torch", "cpu"
        )
        for epoch in (0, 1)
    ]
    with pools.processes(2) as pool:
        shards = dict(pools.finished(pool, generate.make_shard, tasks))
    for epoch, task in enumerate(tasks):
        stream = SimStream(recipe.simulation, recipe.seed, "train", rng.BLOCK)
        loader = SimLoader(stream, rng.BLOCK)
        loader.set_epoch(epoch)
        manifest = stream.manifest
        manifest.shards, manifest.splits = [shards[epoch]], {task.split: rng.BLOCK}
        split = Split(Path(task.folder) / "train", task.split, manifest)
        stored, fresh = split.batch(np.arange(rng.BLOCK)), next(iter(loader))
        assert torch.equal(fresh.image, stored.image)
        assert torch.equal(fresh.label, stored.label)
        assert set(split.labels.tolist()) == set(range(len(manifest.classes)))
