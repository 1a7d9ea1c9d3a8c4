"""Batches straight from the simulator: (seed, stream, epoch) name them; their images are those of a dataset."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deeplense import config, rng
from deeplense.data import generate, pools, simulated
from deeplense.data.ahead import Share
from deeplense.data.schema import Batch
from deeplense.data.simulated import Kept, SimLoader, SimStream
from deeplense.data.store import Split, validate
from deeplense.errors import UserError
from deeplense.recipe import Recipe, Simulation
from deeplense.sim.observe import expose
from deeplense.sim.scene import Scene
from deeplense.sim.world import World
from deeplense.training.feed import make_feed

RECIPE = {
    "base": "model_2",
    "seed": 3,
    "simulation": {"size": 16, "pixel_scale": 0.25, "supersampling": 1},
    "simulation.classes.cdm.number": 3,
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return config.load_recipe(RECIPE)


def stream(simulation: Simulation, batch_size: int = 100, **options: Any) -> SimStream:
    return SimStream(simulation, **({"seed": 3, "name": "train", "batch_size": batch_size} | options))


def loader(
    simulation: Simulation, epoch: int = 0, images: int = 400, rank: int = 0, world_size: int = 1, **options: Any
) -> SimLoader:
    made = SimLoader(stream(simulation, **options), images, rank, world_size)
    made.set_epoch(epoch)
    return made


def joined(batches: Iterable[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def hashes(batches: Iterable[Batch]) -> set[bytes]:
    return {image.numpy().tobytes() for image in joined(batches).image}


def assert_same(a: Batch, b: Batch, rounding: float = 0.0) -> None:
    """Images to rounding, everything else exactly."""
    torch.testing.assert_close(a.image, b.image, rtol=rounding, atol=rounding * float(b.image.abs().max()))
    for one, other in zip(a[1:], b[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(stream, number) of every image that is rendered from now on."""
    seen: list[tuple[str, int]] = []

    def noted(world: World, clean: torch.Tensor, scene: Scene, seed: int, name: str) -> torch.Tensor:
        seen.extend((name, int(k)) for k in scene.index)
        return expose(world, clean, scene, seed, name)

    monkeypatch.setattr(simulated, "expose", noted)
    return seen


def test_batches_have_the_contract_of_stored_ones(recipe: Recipe) -> None:
    made = loader(recipe.simulation)
    batches = list(made)
    assert len(made) == len(batches) == 4
    columns = stream(recipe.simulation).manifest.parameters
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.image.shape == (100, 1, 16, 16)
        assert batch.params.shape == (100, len(columns))
        assert [c.dtype for c in batch] == [torch.float32, torch.int64, torch.float32, torch.int64]
        assert [len(c) for c in batch] == [100] * 4
        assert bool(torch.isfinite(batch.image).all())
    whole = joined(made)
    assert whole.id.tolist() == list(range(400))
    assert torch.bincount(whole.label[:399]).tolist() == [133] * 3
    mass = whole.params[:, [p.name for p in columns].index("log10_m_axion")]
    assert torch.equal(mass.isfinite(), whole.label == 2)


def test_seed_stream_and_epoch_name_the_images(recipe: Recipe) -> None:
    first = joined(loader(recipe.simulation))
    again = joined(loader(recipe.simulation))
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    seen = hashes(loader(recipe.simulation))
    assert len(seen) == 400  # no image twice
    others: list[dict[str, Any]] = [{"seed": 4}, {"name": "val"}, {"epoch": 1}]
    for other in others:
        assert not seen & hashes(loader(recipe.simulation, **other))


def test_scenes_that_are_used_again_have_other_noise(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    once = [joined(loader(recipe.simulation, epoch)) for epoch in (0, 1)]
    source = stream(recipe.simulation, reuse=3)
    drawn: list[int] = []
    scenes = World.scenes

    def noted(world: World, seed: int, name: str, block: int) -> list[Scene]:
        drawn.append(block)
        return scenes(world, seed, name, block)

    monkeypatch.setattr(World, "scenes", noted)
    epochs = [joined(source.batches(Share(epoch, 400))) for epoch in range(4)]
    assert torch.equal(epochs[0].image, once[0].image)
    assert torch.equal(epochs[3].image, once[1].image)
    for again in epochs[1:3]:
        assert torch.equal(again.params.nan_to_num(), epochs[0].params.nan_to_num())
        assert torch.equal(again.id, epochs[0].id)
        difference = again.image - epochs[0].image
        assert not (difference == 0).flatten(1).all(1).any()
        # two exposures differ by the noise of both: far less than two scenes do
        assert difference.square().mean() < 0.1 * (epochs[0].image - epochs[3].image).square().mean()
    assert len(drawn) == 2 * len(set(drawn))
    resumed = joined(stream(recipe.simulation, reuse=3).batches(Share(2, 400)))
    assert torch.equal(resumed.image, epochs[2].image)


def test_a_resumed_run_sees_what_it_would_have_seen(recipe: Recipe) -> None:
    """Epoch 2 is the same whether epochs 0 and 1 were seen before or not."""
    made = loader(recipe.simulation)
    for epoch in (0, 1):
        made.set_epoch(epoch)
        list(made)
    made.set_epoch(2)
    assert torch.equal(joined(made).image, joined(loader(recipe.simulation, epoch=2)).image)


@pytest.mark.parametrize("batch_size", [1, 64, 256, 300])
def test_the_size_of_batches_does_not_change_the_images(recipe: Recipe, batch_size: int) -> None:
    n = min(4 * batch_size, 600)
    reference = joined(loader(recipe.simulation, images=n, batch_size=600))
    batches = list(loader(recipe.simulation, images=n, batch_size=batch_size))
    assert [len(batch.id) for batch in batches] == [min(batch_size, n - k) for k in range(0, n, batch_size)]
    assert_same(joined(batches), reference)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("targets", [[], ["log10_m_axion"]])
def test_any_number_of_processes_sees_the_same_batches(recipe: Recipe, world_size: int, targets: list[str]) -> None:
    options: dict[str, Any] = {"images": 334, "batch_size": 50, "targets": targets, "epoch": 1}
    shares = [list(loader(recipe.simulation, rank=r, world_size=world_size, **options)) for r in range(world_size)]
    alone = list(loader(recipe.simulation, **options))
    assert {len(share) for share in shares} == {len(alone)} == {7}
    for whole, *parts in zip(alone, *shares, strict=True):
        together = Batch(*(torch.empty_like(column) for column in whole))
        for rank, part in enumerate(parts):
            for column, rows in zip(together, part, strict=True):
                column[rank::world_size] = rows
        assert_same(together, whole, rounding=1e-5)


def test_a_process_renders_its_own_images_alone(recipe: Recipe, rendered: list[tuple[str, int]]) -> None:
    share = joined(loader(recipe.simulation, images=334, batch_size=50, rank=1, world_size=3))
    assert sorted(number for _, number in rendered) == share.id.tolist()
    assert len(rendered) == 6 * 17 + 11


def test_more_processes_than_images_in_a_batch_are_refused(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="5 processes cannot share a batch of 4 images; start fewer of them"):
        loader(recipe.simulation, images=104, batch_size=50, world_size=5)


def test_images_are_those_that_a_dataset_of_the_same_stream_stores(recipe: Recipe, tmp_path: Path) -> None:
    """Epoch e of the stream `train` is the split that would be called `train/e`."""
    for epoch in (0, 2):
        folder = tmp_path / str(epoch)
        task = generate.Task(config.to_tree(recipe), str(folder), f"train/{epoch}", 0, 300, "torch", "cpu")
        shard = generate.make_shard(task)
        assert shard.n == 300
        manifest = stream(recipe.simulation).manifest
        manifest.shards, manifest.splits = [shard], {shard.split: 300}
        stored = Split(folder / "train", shard.split, manifest)
        fresh = joined(loader(recipe.simulation, epoch, images=300))
        assert torch.equal(fresh.image, stored.images(np.arange(300)))
        np.testing.assert_array_equal(fresh.label, stored.labels)
        np.testing.assert_array_equal(fresh.params, stored.params.astype(np.float32))


def test_a_target_leaves_out_the_images_without_it(recipe: Recipe, rendered: list[tuple[str, int]]) -> None:
    made = joined(loader(recipe.simulation, targets=["log10_m_axion"]))
    assert set(made.label.tolist()) == {2}
    assert sorted(number for _, number in rendered) == made.id.tolist()  # they are not even rendered
    # every third image of the same stream
    every = joined(loader(recipe.simulation, images=1280, batch_size=rng.BLOCK))
    axions = every.label == 2
    assert_same(made, Batch(*(column[axions][:400] for column in every)), rounding=1e-5)


def test_of_several_targets_an_image_has_any(recipe: Recipe) -> None:
    made = stream(recipe.simulation, targets=["log10_m_axion", "n_sub"])
    batch = next(made.batches(Share(0, 100)))
    assert bool(batch.params[:, made.columns].isfinite().any(1).all())
    assert set(batch.label.tolist()) == {1, 2}
    simulation = replace(recipe.simulation, classes=dict(recipe.simulation.classes))
    simulation.classes["axion"] = {**simulation.classes["axion"], "number": 0}
    nothing = stream(simulation, targets=["vortex_angle"])
    with pytest.raises(UserError, match="no image of the simulation has a value of vortex_angle"):
        next(nothing.batches(Share(0, 100)))


def test_validation_images_are_made_once(recipe: Recipe, rendered: list[tuple[str, int]]) -> None:
    made = Kept(loader(recipe.simulation, images=130))
    assert not rendered
    first = joined(made)
    made.set_epoch(3)
    assert_same(joined(made), first)
    assert len(rendered) == len(first.id) == 130


@pytest.mark.parametrize("val_images", [300, 512, 3])
def test_a_training_renders_nothing_twice_and_nothing_else(
    rendered: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, val_images: int
) -> None:
    """The images on which the pre-processing is fitted are those with which the first epoch begins."""
    monkeypatch.setattr(pools, "START", np.inf)  # all of it here
    made = config.load_recipe(
        RECIPE, ["training.batch_size=48", "training.steps_per_epoch=24", f"training.val_images={val_images}"]
    )
    feed = make_feed(made, "sim", torch.device("cpu"))
    assert (feed.n_train, feed.fresh) == (24 * 48, True)
    assert sum(len(images) for images in feed.sample) == 22 * 48
    train, val = feed.train(0, 1)["labelled"], feed.val(0, 1)
    for epoch in (0, 1):
        train.set_epoch(epoch)
        assert sum(len(batch.id) for batch in train) == 24 * 48
        sizes = [len(batch.id) for batch in val]
        assert sum(sizes) == val_images
        assert max(sizes) - min(sizes) < len(sizes)
    assert len(set(rendered)) == len(rendered) == 2 * 24 * 48 + val_images


def test_the_first_batches_are_no_others(recipe: Recipe) -> None:
    whole = list(stream(recipe.simulation).batches(Share(0, 400)))
    for first in (whole[:2], whole, [*whole, whole[0]]):
        for rank in (0, 1):
            made = SimLoader(stream(recipe.simulation), 400, rank, 2, list(first))
            for batch, expected in zip(made, whole, strict=True):
                assert_same(batch, Batch(*(column[rank::2] for column in expected)), rounding=1e-5)
            made.set_epoch(1)
            assert_same(joined(made), joined(loader(recipe.simulation, 1, rank=rank, world_size=2)))


def test_an_unknown_target_names_the_nearest(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="no parameter 'log10_m_axon'; did you mean 'log10_m_axion'"):
        stream(recipe.simulation, targets=["log10_m_axon"])


def test_a_world_that_makes_no_sense_is_refused(recipe: Recipe) -> None:
    wrong = copy.deepcopy(recipe.simulation)
    wrong.size = 3
    with pytest.raises(UserError, match=r"simulation\.size is 3; it must lie in"):
        stream(wrong)


def test_the_manifest_is_that_of_a_dataset_without_shards(recipe: Recipe, tmp_path: Path) -> None:
    """So that training on the fly and from disk give the same bundle."""
    out = generate.simulate(recipe, tmp_path / "d", splits="train=3", workers=1)
    stored, fresh = validate(out), stream(recipe.simulation).manifest
    assert (fresh.image, fresh.classes, fresh.parameters) == (stored.image, stored.classes, stored.parameters)
