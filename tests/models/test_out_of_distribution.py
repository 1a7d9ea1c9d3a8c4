from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from deeplense import bundle, config
from deeplense.data.schema import ImageInfo
from deeplense.data.store import Dataset
from deeplense.data.transforms import Preprocessor
from deeplense.models import Context, build_trunk
from deeplense.models.out_of_distribution import FALSE_ALARMS, FEATURES, Gaussian, OutOfDistribution, Tails
from deeplense.models.pixel_statistics import PixelStatistics
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World
from deeplense.training.fit import train


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("turn", [lambda x: x.transpose(2, 3), lambda x: x.flip(2), lambda x: x.rot90(1, (2, 3))])
def test_statistics_do_not_change_when_an_image_is_turned(turn: object) -> None:
    x = torch.randn((5, 2, 33, 33), generator=_draw(0)).cumsum(3)
    measure = PixelStatistics.fit(x)
    assert torch.allclose(measure(turn(x)), measure(x), atol=2e-3)  # type: ignore[operator]
    assert measure(x).shape == (5, measure.number)


def test_the_joint_distance_is_that_of_mahalanobis() -> None:
    """Of correlated normal rows: its square times their number is χ²."""
    mix = torch.eye(12) + 0.2 * torch.randn((12, 12), generator=_draw(1))
    rows = torch.randn((24000, 12), generator=_draw(2)) @ mix + 3
    d2 = 12 * Gaussian.fit(rows[:20000])(rows[20000:]).square().numpy()
    assert stats.kstest(d2, stats.chi2(12).cdf).statistic < 0.03


def test_the_farthest_statistic_counts_on_its_own_side() -> None:
    rows = torch.rand((5000, 3), generator=_draw(3)).square()  # a long tail above alone
    tails = Tails.fit(rows)
    centre = rows.median(0).values
    above, below = centre.clone(), centre.clone()
    above[1] += 0.5
    below[1] -= 0.5
    assert float(tails(below[None])) > 1.5 * float(tails(above[None]))


@pytest.mark.parametrize("n_features", [8, FEATURES + 40])
def test_the_share_of_false_alarms_is_as_stated(n_features: int) -> None:
    def lot(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = _draw(seed)
        return torch.randn((n, 1, 16, 16), generator=g), torch.randn((n, n_features), generator=g).exp()

    images, features = lot(2000, 4)
    statistics = PixelStatistics.fit(images)
    detector = OutOfDistribution.fit(statistics, statistics(images), features)
    false = int((detector(*lot(4000, 5)) > 1).sum())
    # beside its own, the binomial scatter of the 2,000 held-out images that set the limit
    assert stats.binom(4000, 0.4 * FALSE_ALARMS).ppf(1e-3) <= false <= stats.binom(4000, 1.9 * FALSE_ALARMS).ppf(0.999)


@pytest.fixture(scope="module")
def lenses() -> tuple[OutOfDistribution, torch.nn.Module, Preprocessor, Tensor]:
    """A detector for `quickstart` images on a network that has learned nothing, and unseen images."""
    recipe = config.load_recipe("quickstart")
    world = World(recipe.simulation)
    known = torch.cat([observe_block(world, 0, "val", k).images for k in range(4)])
    info = ImageInfo(1, world.size, world.size, world.pixel_scale)
    prepare = Preprocessor.fit(recipe.preprocess, info, [known])
    torch.manual_seed(0)
    trunk = build_trunk(recipe.model, Context(info, prepare)).eval()
    with torch.no_grad():
        x = prepare(known)
        statistics = PixelStatistics.fit(x)
        detector = OutOfDistribution.fit(statistics, statistics(x), trunk(x))
    return detector, trunk, prepare, observe_block(world, 0, "test", 0).images


KINDS = {
    "noise alone": lambda x, g: x[:, :, :4, :4].std() * torch.randn(x.shape, generator=g),
    "noise x 2": lambda x, g: x + 3**0.5 * x[:, :, :4, :4].std() * torch.randn(x.shape, generator=g),
    "flux x 2": lambda x, g: 2 * x,
    "shuffled": lambda x, g: x.flatten(2)[..., torch.randperm(x[0, 0].numel(), generator=g)].view_as(x),
    "constant": lambda x, g: torch.full_like(x, float(x.mean())),
    "saturated": lambda x, g: torch.minimum(x, x.flatten(1).quantile(0.97, 1)[:, None, None, None]),
    "negative": lambda x, g: -x,
    "zoomed": lambda x, g: (
        torch.nn.functional.interpolate(x, scale_factor=1.25, mode="area")[..., 8:72, 8:72] / 1.25**2
    ),
    "infinite": lambda x, g: torch.full_like(x, 3e38),
}


@pytest.mark.parametrize("kind", KINDS)
def test_strange_images_are_told(
    kind: str, lenses: tuple[OutOfDistribution, torch.nn.Module, Preprocessor, Tensor]
) -> None:
    detector, trunk, prepare, images = lenses
    with torch.no_grad():
        x, strange = prepare(images), prepare(KINDS[kind](images, _draw(6)))
        assert float((detector(x, trunk(x)) > 1).float().mean()) < 0.05
        distance = detector(strange, trunk(strange))
    assert bool(distance.isfinite().all())
    assert float((distance > 1).float().mean()) >= 0.95


def test_light_of_the_lens_is_strange_to_lenses_without(
    lenses: tuple[OutOfDistribution, torch.nn.Module, Preprocessor, Tensor],
) -> None:
    detector, trunk, prepare, _ = lenses
    light = ["simulation.lens_light={magnitude: 20.0, R_sersic: 0.8, n_sersic: 4.0}"]
    galaxy = observe_block(World(config.load_recipe("quickstart", light).simulation), 0, "test", 0).images
    with torch.no_grad():
        x = prepare(galaxy)
        assert float((detector(x, trunk(x)) > 1).float().mean()) > 0.95


def test_constant_images_are_like_themselves() -> None:
    x, features = torch.ones(8, 1, 9, 9), torch.zeros(8, 3)
    statistics = PixelStatistics.fit(x)
    detector = OutOfDistribution.fit(statistics, statistics(x), features)
    assert bool((detector(x, features) <= 1).all())
    assert bool((detector(x + 1, features) > 1).all())


def test_a_training_ends_with_a_detector_of_its_held_out_images(tmp_path: Path, tiny_dataset: Path) -> None:
    changes = ["training.epochs=2", "training.batch_size=16"]
    made = bundle.load(train("quickstart", tiny_dataset, tmp_path / "run", overrides=changes, device="cpu"), "cpu")
    images = Dataset(tiny_dataset).split("test").images(np.arange(32))
    for seen in (images, images.transpose(2, 3).flip(2)):
        distance = made.predict(seen).distance
        assert distance is not None
        assert (distance > 1).mean() < 0.2  # 32 held-out images know little
    distance = made.predict(0 * images).distance
    assert distance is not None
    assert (distance > 1).all()
