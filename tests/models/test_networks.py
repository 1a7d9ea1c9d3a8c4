"""The contract of every network, and a handful of timm's."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from torch import nn

from deeplense.allow import allowed
from deeplense.data.schema import ImageInfo
from deeplense.data.transforms import Preprocessor
from deeplense.errors import UserError
from deeplense.models import MODELS, Context, build_trunk, probe
from deeplense.models.graph import neighbours
from deeplense.models.physics_informed import PhysicsInformed
from deeplense.recipe import Model, Preprocess

TIMM = ["resnet18", "efficientnet_b0", "mobilenetv4_conv_small", "vit_tiny_patch16_224", "convnext_atto"]


def build(model: Model, shape: tuple[int, int, int]) -> Any:
    preprocess = Preprocessor(Preprocess(), ImageInfo(*shape, pixel_scale=0.1))
    trunk = build_trunk(model, Context(ImageInfo(*shape), preprocess))
    probe(trunk, model.name, shape)
    return trunk


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*MODELS, *TIMM])
def test_contract(name: str, channels: int) -> None:
    trunk = build(Model(name, dropout=0.1, drop_path=0.1), (channels, 64, 64))
    assert trunk.training
    out = trunk.forward_features(torch.randn(2, channels, 64, 64))
    assert out.shape == (2, trunk.num_features)
    out.sum().backward()
    assert all(p.grad is not None for p in trunk.parameters())
    trunk.eval()
    x = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        assert torch.allclose(trunk(x)[:1], trunk.forward_features(x[:1]), atol=1e-4)


def _awake(trunk: Any) -> Any:
    """Norms that do something, where blocks start as their shortcuts."""
    torch.manual_seed(0)
    for p in trunk.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, std=0.5)
    return trunk.eval()


@pytest.mark.parametrize("size", [32, 33, 50])
@pytest.mark.parametrize("stem_stride", [None, 1])
def test_equivariant_features_do_not_change_with_the_image(size: int, stem_stride: int | None) -> None:
    network = _awake(build(Model("equivariant", stem_stride=stem_stride), (2, size, size)))
    x = torch.randn(3, 2, size, size)
    with torch.no_grad():
        features = network(x)
        for k in range(8):
            image = torch.rot90(x if k < 4 else x.flip(3), k % 4, (2, 3))
            assert torch.allclose(network(image), features, atol=1e-5 * float(features.abs().max()))
        assert not torch.allclose(network(x.roll(5, 3)), features, rtol=1e-3)


def test_the_source_of_a_perfect_proposal_explains_the_image() -> None:
    network = build(Model("physics_informed"), (1, 64, 64))
    assert isinstance(network, PhysicsInformed)
    lens = torch.tensor([[math.log(0.5), 0.1, -0.05, 0.03, 0.02, 0.05, -0.02]])

    def left_over(proposal: torch.Tensor) -> float:
        x, y = network.trace(lens)
        image = torch.exp(-((x - 0.06) ** 2 + (y + 0.03) ** 2) / (2 * 0.08**2)).view(1, 1, 64, 64)
        _, again = network.reconstruct(image, *network.trace(proposal))
        return float((image - again).square().sum() / image.square().sum())

    assert left_over(lens) < 0.02
    wrong = lens.clone()
    wrong[0, 0] -= 0.1
    assert left_over(wrong) > 3 * left_over(lens)


def test_tracing_is_the_lens_equation_of_lenstronomy() -> None:
    network = build(Model("physics_informed"), (1, 20, 24))
    assert isinstance(network, PhysicsInformed)
    lens = torch.tensor([[math.log(0.5), 0.1, -0.05, 0.03, 0.02, 0.05, -0.02]])
    x, y = (c[0].double().numpy() for c in (network.x, network.y))
    theirs = LensModel(["SIE", "SHEAR"])
    sie = {"theta_E": 0.5, "e1": 0.1, "e2": -0.05, "center_x": 0.05, "center_y": -0.02}
    shear = {"gamma1": 0.03, "gamma2": 0.02, "ra_0": 0.05, "dec_0": -0.02}
    beta_x, beta_y = theirs.ray_shooting(x, y, [sie, shear])
    ours = [c[0].double().numpy() for c in network.trace(lens)]
    np.testing.assert_allclose(ours[0], beta_x - 0.05, atol=1e-5)
    np.testing.assert_allclose(ours[1], beta_y + 0.02, atol=1e-5)
    # the pixels lie half a width apart, from one edge to the other of the longer side
    np.testing.assert_allclose(np.diff(x[:24]), 1 / 12, atol=1e-6)
    assert x.min() == pytest.approx(-1 + 1 / 24)


def test_neighbours_are_the_nearest() -> None:
    points = torch.randn(2, 30, 3)
    found = neighbours(points, 4)
    assert (found[:, :, 0] == torch.arange(30)).all()
    nearest = torch.cdist(points, points).topk(4, largest=False).indices
    assert (found.sort(-1).values == nearest.sort(-1).values).all()
    with pytest.raises(UserError, match="fewer than k = 9"):
        build(Model("graph"), (1, 8, 8))


@pytest.mark.parametrize("name", ["compact", "depthwise"])
@pytest.mark.parametrize("size", [(16, 16), (150, 150), (33, 47)])
def test_compact_takes_any_size_and_is_small(name: str, size: tuple[int, int]) -> None:
    network = build(Model(name), (1, *size))
    assert sum(p.numel() for p in network.parameters()) < 1_000_000


@pytest.mark.parametrize("name", ["compact", "resnet18"])
def test_stem_stride_1_keeps_resolution(name: str) -> None:
    def first_map(stride: int | None) -> torch.Size:
        network = build(Model(name, stem_stride=stride), (1, 32, 32))
        stem = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        shapes: list[torch.Size] = []
        stem.register_forward_hook(lambda *a: shapes.append(a[2].shape))
        network(torch.zeros(2, 1, 32, 32))
        return shapes[0][2:]

    assert first_map(None) == (16, 16)
    assert first_map(1) == (32, 32)


@pytest.mark.parametrize(
    ("model", "shape", "says"),
    [
        (Model("resnet1"), (1, 32, 32), "resnet"),
        (Model("copmact"), (1, 32, 32), "compact"),
        (Model("nowhere.at_all:Net"), (1, 32, 32), "add --allow nowhere.at_all"),
        (Model("vit_tiny_patch16_224", stem_stride=1), (1, 32, 32), "patches"),
        (Model("resnet18", stem_stride=3), (1, 32, 32), "stem_stride"),
        (Model("vgg11", kwargs={"nonsense": 1}), (1, 32, 32), "nonsense"),
        (Model("compact", kwargs={"nonsense": 1}), (1, 32, 32), "nonsense"),
        (
            Model("compact", kwargs={"pretrained": True}),
            (1, 32, 32),
            "model.kwargs.pretrained: model.pretrained says it",
        ),
        (Model("resnet18", kwargs={"img_size": 3}), (1, 32, 32), "model.kwargs.img_size: preprocess.size says it"),
        (Model("resnet18", kwargs={"checkpoint_path": "x"}), (1, 32, 32), "checkpoint_path: is no setting"),
        (Model("resnet18", kwargs={"features_only": True}), (1, 32, 32), "features_only: is no setting"),
        (Model("compact", kwargs={"widths": [0, -1, "a", 3]}), (1, 32, 32), "does not take what the recipe gives"),
        (Model("compact", dropout=1.5), (1, 32, 32), r"model.dropout is 1.5; it must lie in \[0, 1\)"),
        (Model("compact", pretrained=True), (1, 32, 32), "pretrained"),
        (Model("vit_tiny_patch16_224"), (1, 8, 8), "8x8"),
    ],
)
def test_bad_models_say_what_to_do(model: Model, shape: tuple[int, int, int], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        build(model, shape)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_fetched_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(UserError, match="no weights"):
        build(Model("resnet18", pretrained=True), (1, 32, 32))


class Flat(nn.Module):
    def __init__(self, in_chans: int, image_size: tuple[int, int], gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.num_features = 5
        self.layer = nn.Linear(in_chans * image_size[0] * image_size[1], 5)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.gain * self.layer(x.flatten(1))
        return out

    forward = forward_features


class Curious(Flat):
    def __init__(self, in_chans: int, image_size: tuple[int, int], context: Context) -> None:
        super().__init__(in_chans, image_size)
        self.pixel_scale = context.preprocess.view.pixel_scale


class Classifier(nn.Module):
    def __init__(self, in_chans: int, image_size: tuple[int, int]) -> None:
        super().__init__()


def test_a_users_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_package")
    for cls in (Flat, Curious, Classifier):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "my_package", module)
    with allowed("my_package"):
        trunk = build(Model("my_package:Flat", kwargs={"gain": 2.0}), (2, 8, 8))
        assert isinstance(trunk, Flat)
        assert trunk.gain == 2.0
        assert build(Model("my_package:Curious"), (2, 8, 8)).pixel_scale == 0.1
        with pytest.raises(UserError, match=r"no trunk.*forward_features.*num_features"):
            build(Model("my_package:Classifier"), (2, 8, 8))
