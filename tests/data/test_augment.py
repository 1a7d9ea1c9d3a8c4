from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from deeplense import config
from deeplense.data.augment import Augmenter
from deeplense.data.generate import parameters
from deeplense.data.schema import Batch, ImageInfo, Parameter
from deeplense.data.transforms import Preprocessor, View
from deeplense.errors import UserError
from deeplense.recipe import Augment, Preprocess
from deeplense.sim import image
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _batch(images: torch.Tensor) -> Batch:
    n = len(images)
    return Batch(images, torch.zeros(n, dtype=torch.long), torch.empty(n, 0), torch.arange(n))


def _turned(config_: Augment, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return Augmenter(config_, view=View(1.0, 0.0, 0.0))(_batch(images), _generator(seed)).image


def _orbit(image: torch.Tensor) -> list[torch.Tensor]:
    turned = [torch.rot90(image, k, (1, 2)) for k in range(4)]
    return turned + [t.flip(2) for t in turned]


def test_d4_gives_all_eight_symmetries_equally_often() -> None:
    image = torch.randn(1, 9, 9)
    out = _turned(Augment(), image.expand(8000, -1, -1, -1))
    counts = [int((out == element).flatten(1).all(1).sum()) for element in _orbit(image)]
    assert sum(counts) == 8000
    # each count is binomial around 1000 with a standard deviation of 30
    assert min(counts) > 850
    assert max(counts) < 1150


def test_images_that_are_not_square_get_four_flips() -> None:
    image = torch.randn(1, 6, 9)
    out = _turned(Augment(), image.expand(400, -1, -1, -1))
    flips = [image, image.flip(1), image.flip(2), image.flip(1, 2)]
    counts = [int((out == flip).flatten(1).all(1).sum()) for flip in flips]
    assert sum(counts) == 400
    assert min(counts) > 60


def test_off_is_identity_and_the_generator_decides() -> None:
    images = torch.randn(20, 2, 8, 8)
    assert torch.equal(_turned(Augment(d4=False), images), images)
    both = Augment(shift=1.0, rotate=10.0)
    assert torch.equal(_turned(both, images, 1), _turned(both, images, 1))
    assert not torch.equal(_turned(both, images, 1), _turned(both, images, 2))


def test_shift_moves_the_centroid_by_at_most_its_size() -> None:
    for height, width in ((33, 33), (33, 49)):
        y = torch.arange(height)[:, None] - (height - 1) / 2
        x = torch.arange(width) - (width - 1) / 2
        blob = torch.exp(-(x**2 + y**2) / 18).expand(300, 1, -1, -1)
        out = _turned(Augment(d4=False, shift=2.0), blob)
        flux = out.sum((1, 2, 3))
        for axis in (x, y):
            moved = (out * axis).sum((1, 2, 3)) / flux
            assert 1.8 < moved.abs().max() < 2.05
            assert moved.mean().abs() < 0.25
        assert torch.allclose(flux, blob.sum((1, 2, 3)), rtol=1e-2)


def test_rotation_keeps_distances_in_oblong_images() -> None:
    height, width = 41, 61
    y = torch.arange(height)[:, None] - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    spot = torch.exp(-((x - 12) ** 2 + y**2) / 8).expand(200, 1, -1, -1)
    out = _turned(Augment(d4=False, rotate=30.0), spot)
    flux = out.sum((1, 2, 3))
    cx, cy = (out * x).sum((1, 2, 3)) / flux, (out * y).sum((1, 2, 3)) / flux
    assert torch.allclose(torch.hypot(cx, cy), torch.tensor(12.0), atol=0.15)
    angle = torch.rad2deg(torch.atan2(cy, cx))
    assert 27 < angle.abs().max() < 30.5


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_turns_an_image_alike(world_size: int) -> None:
    augment = Augmenter(Augment(shift=1.0, rotate=10.0), view=View(1.0, 0.0, 0.0))
    batch = _batch(torch.randn(13, 1, 9, 9))  # some have one more
    whole = augment(batch, _generator(), whole=16)
    for rank in range(world_size):
        share = Batch(*(column[rank::world_size] for column in batch))
        assert torch.equal(augment(share, _generator(), rank, world_size, 16).image, whole.image[rank::world_size])


# Truths against an independent oracle: the image that the moved truths themselves give.


def _simulation(vary: bool, shifted: bool = False) -> dict[str, Any]:
    """`shifted`: without what stays at the image's centre, shear and vortex."""

    def prior(low: float, high: float) -> Any:
        return {"uniform": [low, high]} if vary else 0.0

    tree: dict[str, Any] = {
        "size": 24,
        "instrument": "gaussian_toy",
        "pixel_scale": 0.2,
        "exposure_time": 1000.0,
        "noise": "none",
        "supersampling": 4,
        "psf": {"gaussian": 0.7},  # so that pixels hold all that an interpolation needs
        "lens": {
            "theta_E": 1.1,
            **{k: prior(-0.2, 0.2) for k in ("e1", "e2", "gamma1", "gamma2", "center_x", "center_y")},
            "a3": 0.05,
            "phi3": prior(0.0, 2 * math.pi / 3),
            "a4": 0.05,
            "phi4": prior(0.0, math.pi / 2),
        },
        "source": {
            "amplitude": 20.0,
            "R_sersic": 0.4,
            **{k: prior(-0.3, 0.3) for k in ("e1", "e2", "center_x", "center_y")},
        },
        "classes": {"axion": {"population": "vortex", "mass": 3.0e11, "log10_m_axion": -24.0}},
    }
    if shifted:
        tree["lens"] |= {"gamma1": 0.0, "gamma2": 0.0}
        tree["classes"] = {"no_sub": {"population": "none"}}
    return tree


def _world(tree: dict[str, Any]) -> World:
    return World(config.load_recipe({"simulation": tree}).simulation)


def _again(truth: dict[str, float]) -> torch.Tensor:
    """The image of given truths, (C, H, W)."""
    tree = _simulation(False, "vortex_angle" not in truth)
    for name, value in truth.items():
        section, _, key = name.partition(".")
        if section in ("lens", "source"):
            tree[section][key] = value
    world = _world(tree)
    (scene,) = world.scenes(0, "x", 0, 1)
    for component in scene.mass:
        if component.profile == "line_mass":
            component.params["angle"] = torch.tensor([[truth["vortex_angle"]]], dtype=torch.float64)
    return image.render(scene.to("cpu", torch.float32), world.size, world.pixel_scale, world.instruments, 4)[0]


@pytest.mark.parametrize(
    ("augment", "tolerance"),
    [(Augment(), 2e-5), (Augment(d4=False, rotate=180.0), 0.03), (Augment(rotate=20.0, shift=2.0), 0.03)],
)
def test_truths_move_with_the_image(augment: Augment, tolerance: float) -> None:
    world = _world(_simulation(True, bool(augment.shift)))
    block = observe_block(world, 3, "x", 0, 12)
    known = parameters(world)
    names = [p.name for p in known]
    turning = [p.name for p in known if p.kind != "scalar"]
    assert {"lens.e1", "lens.center_y", "lens.phi3", "lens.phi4", "source.center_x", "source.e2"} <= set(turning)
    assert augment.shift or {"lens.gamma2", "vortex_angle"} <= set(turning)
    truths = torch.from_numpy(block.truth).float()
    batch = Batch(block.images, torch.from_numpy(block.labels), truths, torch.arange(12))
    moved = Augmenter(augment, known, turning, View(0.2, 0.0, 0.0))(batch, _generator(1))
    assert moved.params.isfinite().all()
    inner = slice(6, 18) if augment.rotate else slice(None)  # what came in at the border is no sky
    told = 0
    for k in range(12):
        found, expected, before = (
            x[..., inner, inner]
            for x in (
                moved.image[k],
                _again(dict(zip(names, moved.params[k].double().tolist(), strict=True))),
                _again(dict(zip(names, batch.params[k].double().tolist(), strict=True))),
            )
        )
        assert (found - expected).abs().max() < tolerance * expected.max()
        told += bool((found - before).abs().max() > 2 * tolerance * expected.max())
    assert told > 8  # truths that stay behind are noticed


def test_an_odd_crop_moves_the_centre() -> None:
    info = ImageInfo(1, 9, 9, 0.5)
    view = Preprocessor(Preprocess(crop=8), info).view
    assert view == View(0.5, -0.25, -0.25)
    pair = ["x", "y"]
    known = [Parameter("x", kind="x", pair=pair), Parameter("y", kind="y", pair=pair)]
    images = torch.zeros(40, 1, 9, 9)
    images[:, :, 6, 3] = 1.0  # at x = -0.5, y = 1
    params = torch.tensor([-0.5, 1.0]).expand(40, 2)
    cropped = Preprocessor(Preprocess(crop=8, stretch="none", normalise="none"), info)(images)
    batch = Batch(cropped, torch.zeros(40).long(), params, torch.arange(40))
    out = Augmenter(Augment(), known, pair, view)(batch, _generator())
    for k in range(40):
        row, column = (int(i) for i in out.image[k, 0].nonzero()[0])
        assert out.params[k].tolist() == pytest.approx([(column - 4) * 0.5, (row - 4) * 0.5], abs=1e-6)


def test_what_nobody_knows_is_refused_or_becomes_nan() -> None:
    unknown, mass = Parameter("q"), Parameter("m", kind="scalar")
    lone = Parameter("x", kind="x", pair=["x", "y"])
    with pytest.raises(UserError, match=r"target 'q'.*augment\.scalars.*augment\.d4=false"):
        Augmenter(Augment(), [unknown], ["q"])
    with pytest.raises(UserError, match=r"target 'x'.*'y'"):
        Augmenter(Augment(), [lone], ["x"])
    both = [lone, Parameter("y", kind="y", pair=["x", "y"])]
    with pytest.raises(UserError, match="--pixel-scale"):
        Augmenter(Augment(shift=1.0), both, ["x"])
    Augmenter(Augment(d4=False), [unknown], ["q"])
    Augmenter(Augment(scalars=["q"]), [unknown], ["q"])
    batch = Batch(torch.zeros(3, 1, 4, 4), torch.zeros(3).long(), torch.ones(3, 2), torch.arange(3))
    out = Augmenter(Augment(), [unknown, mass], ["m"])(batch, _generator())
    assert out.params[:, 0].isnan().all()
    assert torch.equal(out.params[:, 1], torch.ones(3))
