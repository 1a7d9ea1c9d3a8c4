"""The contract of every network, and a handful of timm's."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from deeplense.allow import allowed
from deeplense.errors import UserError
from deeplense.models import MODELS, build_network
from deeplense.recipe import Model

TIMM = ["resnet18", "efficientnet_b0", "mobilenetv4_conv_small", "vit_tiny_patch16_224", "convnext_atto"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*MODELS, *TIMM])
def test_contract(name: str, channels: int) -> None:
    network = build_network(Model(name, dropout=0.1, drop_path=0.1), (channels, 64, 64), 3)
    assert network.training
    out = network(torch.randn(2, channels, 64, 64))
    assert out.shape == (2, 3)
    out.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    network.eval()
    x = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network(x)[:1], network(x[:1]), atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (150, 150), (33, 47)])
def test_compact_takes_any_size_and_is_small(size: tuple[int, int]) -> None:
    network = build_network(Model("compact"), (1, *size), 2)
    assert sum(p.numel() for p in network.parameters()) < 1_000_000


@pytest.mark.parametrize("name", ["compact", "resnet18"])
def test_stem_stride_1_keeps_resolution(name: str) -> None:
    def first_map(stride: int | None) -> torch.Size:
        network = build_network(Model(name, stem_stride=stride), (1, 32, 32), 2)
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
        build_network(model, shape, 2)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_fetched_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(UserError, match="no weights"):
        build_network(Model("resnet18", pretrained=True), (1, 32, 32), 2)


class Flat(nn.Module):
    def __init__(self, in_chans: int, num_classes: int, image_size: tuple[int, int], gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.layer = nn.Linear(in_chans * image_size[0] * image_size[1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.gain * self.layer(x.flatten(1))
        return out


def test_a_users_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_package")
    module.Flat = Flat  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_package", module)
    with allowed("my_package"):
        network = build_network(Model("my_package:Flat", kwargs={"gain": 2.0}), (2, 8, 8), 5)
    assert isinstance(network, Flat)
    assert network.gain == 2.0
