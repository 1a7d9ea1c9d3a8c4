"""Batches straight from the simulator: named by (seed, stream, epoch, rank, step), and the images of a dataset."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from deeplense import config, rng
from deeplense.data import generate
from deeplense.data.schema import Batch
from deeplense.data.simulated import SimLoader
from deeplense.data.store import Split, validate
from deeplense.errors import UserError
from deeplense.recipe import Recipe, Simulation

RECIPE = {
    "base": "model_2",
    "seed": 3,
    "simulation": {"size": 16, "pixel_scale": 0.25},
    "simulation.classes.cdm.number": 3,
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return config.load_recipe(RECIPE)


def loader(
    simulation: Simulation, epoch: int = 0, batch_size: int = 100, batches: int = 4, **options: object
) -> SimLoader:
    made = SimLoader(simulation, **({"seed": 3, "stream": "train"} | options), batch_size=batch_size, batches=batches)  # type: ignore[arg-type]
    made.set_epoch(epoch)
    return made


def joined(batches: SimLoader) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def hashes(batches: SimLoader) -> set[bytes]:
    return {image.numpy().tobytes() for image in joined(batches).image}


def test_batches_have_the_contract_of_stored_ones(recipe: Recipe) -> None:
    made = loader(recipe.simulation)
    batches = list(made)
    assert len(made) == len(batches) == 4
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.image.shape == (100, 1, 16, 16)
        assert [c.dtype for c in batch] == [torch.float32, torch.int64, torch.float32, torch.int64]
        assert [len(c) for c in batch] == [100] * 4
        assert bool(torch.isfinite(batch.image).all())
        assert batch.target.isnan().all()
    whole = joined(made)
    assert whole.id.tolist() == list(range(400))
    assert torch.bincount(whole.label[:399]).tolist() == [133] * 3
    assert made.manifest.classes == ["no_sub", "cdm", "axion"]
    assert (made.manifest.image.height, made.manifest.image.pixel_scale) == (16, 0.25)


def test_seed_stream_and_epoch_name_the_images(recipe: Recipe) -> None:
    first = joined(loader(recipe.simulation))
    again = joined(loader(recipe.simulation))
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
    seen = hashes(loader(recipe.simulation))
    assert len(seen) == 400  # no image twice
    for other in ({"seed": 4}, {"stream": "val"}, {"epoch": 1}):
        assert not seen & hashes(loader(recipe.simulation, **other))  # type: ignore[arg-type]


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
    reference = joined(loader(recipe.simulation, batch_size=600, batches=1))
    batches = joined(loader(recipe.simulation, batch_size=batch_size, batches=n // batch_size))
    k = len(batches.label)
    assert torch.equal(batches.image, reference.image[:k])
    assert torch.equal(batches.label, reference.label[:k])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_no_image_and_together_see_the_stream(recipe: Recipe, world_size: int) -> None:
    shares = [
        hashes(loader(recipe.simulation, batch_size=rng.BLOCK, batches=2, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert all(len(s) == 2 * rng.BLOCK for s in shares)
    alone = hashes(loader(recipe.simulation, batch_size=rng.BLOCK, batches=2 * world_size))
    assert set.union(*shares) == alone
    assert len(alone) == sum(map(len, shares))


def test_images_are_those_that_a_dataset_of_the_same_stream_stores(recipe: Recipe, tmp_path: Path) -> None:
    """Epoch e of the stream `train` is the split that would be called `train/e`."""
    for epoch in (0, 2):
        folder = tmp_path / str(epoch)
        task = generate.Task(config.to_tree(recipe), str(folder), f"train/{epoch}", 0, 300, "torch", "cpu")
        shard = generate.make_shard(task)
        assert shard.n == 300
        made = loader(recipe.simulation, epoch, batch_size=300, batches=1, target="source.center_x")
        manifest = made.manifest
        manifest.shards, manifest.splits = [shard], {shard.split: 300}
        stored = Split(folder / "train", shard.split, manifest).batch(
            np.arange(300), manifest.parameter("source.center_x")
        )
        fresh = next(iter(made))
        assert torch.equal(fresh.image, stored.image)
        assert torch.equal(fresh.label, stored.label)
        assert torch.equal(fresh.target, stored.target)


def test_a_target_leaves_out_the_images_without_it(recipe: Recipe) -> None:
    made = joined(loader(recipe.simulation, target="log10_m_axion"))
    assert len(made.label) == 400
    assert set(made.label.tolist()) == {2}
    assert bool(((made.target >= -24) & (made.target <= -22)).all())
    assert len(set(made.target.tolist())) == 400
    # every third image of the same stream
    every = joined(loader(recipe.simulation, batch_size=rng.BLOCK, batches=5))
    axions = every.label == 2
    assert torch.equal(made.image, every.image[axions][:400])
    assert torch.equal(made.id, every.id[axions][:400])


def test_an_unknown_target_names_the_nearest(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="no parameter 'log10_m_axon'; did you mean 'log10_m_axion'"):
        loader(recipe.simulation, target="log10_m_axon")


def test_a_world_that_makes_no_sense_is_refused(recipe: Recipe) -> None:
    wrong = copy.deepcopy(recipe.simulation)
    wrong.size = 3
    with pytest.raises(UserError, match=r"simulation\.size is 3; it must lie in"):
        loader(wrong)


def test_the_manifest_is_that_of_a_dataset_without_shards(recipe: Recipe, tmp_path: Path) -> None:
    """So that training on the fly and from disk give the same bundle."""
    out = generate.simulate(recipe, tmp_path / "d", splits="train=3", workers=1)
    stored, fresh = validate(out), loader(recipe.simulation).manifest
    assert (fresh.image, fresh.classes, fresh.parameters) == (stored.image, stored.classes, stored.parameters)
