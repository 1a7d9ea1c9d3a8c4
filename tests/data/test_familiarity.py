from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from deeplense import bundle, config
from deeplense.data.familiarity import Familiarity
from deeplense.data.schema import ImageInfo
from deeplense.data.store import Dataset
from deeplense.data.transforms import Preprocessor
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World
from deeplense.training.fit import train


def noise(n: int, seed: int, channels: int = 1) -> torch.Tensor:
    return torch.randn((n, channels, 32, 32), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_the_same_kind_are_familiar_and_others_are_not(channels: int) -> None:
    know = Familiarity.fit(noise(600, 0, channels))
    assert float((know(noise(600, 1, channels)) > 1).float().mean()) < 0.01
    x = noise(50, 2, channels)
    y = torch.linspace(-1, 1, 32)[:, None]
    strangers = {"flat": 0 * x, "noisier": 1.5 * x, "brighter": x + 1, "blob": x + 3 * torch.exp(-20 * (y**2 + y.T**2))}
    for name, images in strangers.items():
        assert bool((know(images) > 1).all()), name


def test_distance_is_mahalanobis_of_uncorrelated_features() -> None:
    """Cell means of white noise are normal: their part of the squared distance is χ² in cells."""
    know = Familiarity.fit(noise(4000, 3))
    features = (know._features(noise(2000, 4)) - know.mean) @ know.whiten
    d2 = features.square().sum(1).numpy()
    assert d2.mean() == pytest.approx(features.shape[1], rel=0.1)
    assert d2.std() == pytest.approx(stats.chi2(features.shape[1]).std(), rel=0.25)


def test_constant_training_images_are_familiar_to_themselves() -> None:
    x = torch.ones(8, 1, 9, 9)
    know = Familiarity.fit(x)
    assert bool(torch.isfinite(know(x)).all())
    assert bool((know(x + 1) > 1).all())


def test_a_bundle_knows_its_lenses_turned_and_mirrored_but_not_other_lenses(tmp_path: Path, tiny_dataset: Path) -> None:
    path = train("quickstart", tiny_dataset, tmp_path / "run", overrides=["training.epochs=1"])
    trained = bundle.load(path, "cpu")
    images = Dataset(tiny_dataset).split("test").images(np.arange(32))
    assert float((trained.distance(images) > 1).mean()) < 0.1
    assert float((trained.distance(images.transpose(2, 3).flip(2)) > 1).mean()) < 0.1
    assert bool((trained.distance(0 * images) > 1).all())


def test_light_of_the_lens_is_unfamiliar_to_lenses_without() -> None:
    recipe = config.load_recipe("quickstart")
    world = World(recipe.simulation)
    arcs = torch.cat([observe_block(world, 0, "train", k).images for k in range(4)])
    info = ImageInfo(1, world.size, world.size)
    prepare = Preprocessor.fit(recipe.preprocess, info, [arcs])
    know = Familiarity.fit(prepare(arcs))
    again = observe_block(world, 0, "test", 0).images
    assert float((know(prepare(again)) > 1).float().mean()) < 0.02
    light = ["simulation.lens_light={magnitude: 20.0, R_sersic: 0.8, n_sersic: 4.0}"]
    galaxy = observe_block(World(config.load_recipe("quickstart", light).simulation), 0, "test", 0).images
    assert float((know(prepare(galaxy)) > 1).float().mean()) > 0.95
