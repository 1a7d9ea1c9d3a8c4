"""What a training's detector of strange images is fitted on: validation images, turned as in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from deeplense.bundle import Bundle, load
from deeplense.data.adapt import adapt
from deeplense.data.generate import simulate
from deeplense.data.store import Dataset
from deeplense.models.out_of_distribution import FALSE_ALARMS, OutOfDistribution
from deeplense.models.pixel_statistics import PixelStatistics
from deeplense.training import keep, module
from deeplense.training.fit import train

SMALL = ["training.epochs=1", "model.kwargs={widths: [8, 16], depths: [1, 1]}"]
VAL, TEST = 400, 500


@pytest.fixture(scope="module")
def lenses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The macro lens of `quickstart` stands the same way in every image."""
    changes = ["simulation.size=32", f"splits={{train: 192, val: {VAL}, test: {TEST}}}"]
    return simulate("quickstart", tmp_path_factory.mktemp("lenses") / "d", workers=1, overrides=changes)


@pytest.fixture(scope="module")
def trained(lenses: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load(train("quickstart", lenses, tmp_path_factory.mktemp("run") / "r", overrides=SMALL), "cpu")


@pytest.fixture(scope="module")
def images(lenses: Path) -> Tensor:
    return Dataset(lenses).split("test").images(np.arange(TEST))


def flagged(bundle: Bundle, images: Tensor) -> int:
    distance = bundle.predict(images).distance
    assert distance is not None
    return int((distance > 1).sum())


@pytest.mark.parametrize(
    "turn", [lambda x: x, lambda x: x.flip(2), lambda x: x.rot90(1, (2, 3))], ids=["as it is", "mirrored", "turned"]
)
def test_alarms_on_images_like_the_held_out_ones_are_as_rare_as_stated(
    turn: Callable[[Tensor], Tensor], trained: Bundle, images: Tensor
) -> None:
    """The limit is an order statistic of the held-out images, so that alarms on others follow a beta-binomial law."""
    above = round(VAL * FALSE_ALARMS)
    law = stats.betabinom(TEST, above, VAL + 1 - above)
    assert flagged(trained, turn(images)) <= law.ppf(0.999)


@pytest.mark.parametrize("times", [1.25, 0.8])
def test_pixels_of_another_size_are_strange(times: float, trained: Bundle, images: Tensor) -> None:
    one = trained.image
    assert one.pixel_scale is not None
    seen = np.stack([adapt(image, one.pixel_scale / times, one)[0] for image in images.numpy()])
    assert flagged(trained, torch.from_numpy(seen)) >= 0.95 * TEST


def test_statistics_are_those_of_validation_images(trained: Bundle, lenses: Path) -> None:
    assert isinstance(trained.detector, OutOfDistribution)
    measured = trained.detector.statistics(trained.inputs(Dataset(lenses).split("val").images(np.arange(VAL))))
    torch.testing.assert_close(trained.detector.jointly.mean, measured.mean(0), atol=1e-4, rtol=1e-4)


def test_of_many_validation_images_some_of_each_batch_are_kept(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(tmp_path / "data", n_val=300)  # a batch of 256 and one of 44
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(OutOfDistribution):
        @classmethod
        def fit(cls, statistics: PixelStatistics, measured: Tensor, features: Tensor) -> OutOfDistribution:
            seen.append((measured, features))
            return OutOfDistribution.fit(statistics, measured, features)

    monkeypatch.setattr(keep, "OutOfDistribution", Watched)
    monkeypatch.setattr(module, "HELD_OUT", 20)
    path = train("quickstart", data, tmp_path / "run", overrides=[*SMALL, "training.epochs=2"])
    kept = np.r_[0:10, 256:266]
    made = load(path, "cpu")
    assert isinstance(made.detector, OutOfDistribution)
    expected = made.detector.statistics(made.inputs(Dataset(data).split("val").images(kept)))
    assert seen
    for measured, features in seen:
        assert features.shape == (20, 16)
        torch.testing.assert_close(measured, expected, atol=1e-4, rtol=1e-4)
