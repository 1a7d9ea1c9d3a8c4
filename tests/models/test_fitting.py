"""Sizes, stems and patches that fit small images, chosen and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deeplense.bundle import load
from deeplense.data.schema import ImageInfo
from deeplense.data.transforms import Preprocessor
from deeplense.errors import UserError
from deeplense.models import Context, build_network
from deeplense.models.fitting import left_out, patch_size, settled
from deeplense.recipe import Model, Preprocess, Recipe
from deeplense.training.fit import train


def _settled(model: dict[str, Any], n: int, **preprocess: Any) -> tuple[Recipe, str]:
    config = Recipe(model=Model(**model), preprocess=Preprocess(**preprocess))
    made, told = settled(config, ImageInfo(1, n, n, 0.05))
    return made, "; ".join(told)


def test_a_size_is_changed_only_where_the_network_wants_it() -> None:
    made, told = _settled({"name": "coatnet_nano_rw_224"}, 150, size="auto")
    assert made.preprocess.size == 160
    assert "160, the size nearest to the images' that coatnet_nano_rw_224 takes" in told
    made, told = _settled({"name": "resnet18"}, 150, size="auto")
    assert (made.preprocess.size, told) == (None, "")
    untouched = Recipe()
    assert settled(untouched, ImageInfo(1, 150, 150)) == (untouched, [])
    with pytest.raises(UserError, match="training settles"):
        Preprocessor(Preprocess(size="auto"), ImageInfo(1, 150, 150))


def test_a_size_that_does_not_fit_names_one_that_does() -> None:
    image = ImageInfo(1, 150, 150)
    context = Context(image, Preprocessor(Preprocess(), image))
    with pytest.raises(UserError, match=r"cannot take 150x150 images .*; preprocess\.size=160 fits, and auto finds it"):
        build_network(Model("coatnet_nano_rw_224"), [], [], context)


@pytest.mark.parametrize(
    ("name", "size", "stem", "patch", "says"),
    [
        ("resnet18", 64, 1, None, "64x64 images: 1"),
        ("resnet18", 150, None, None, "as it is"),
        ("compact", 64, None, None, "compact as it is"),
        ("compact", 16, 1, None, "16x16 images: 1"),
        ("vit_tiny_patch16_224", 64, None, 8, "patches of 8 pixels"),
        ("vit_tiny_patch16_224", 160, None, None, "as they are"),
    ],
)
def test_stems_and_patches(name: str, size: int, stem: int | None, patch: int | None, says: str) -> None:
    made, told = _settled({"name": name, "stem_stride": "auto"}, size)
    assert made.model.stem_stride == stem
    assert made.model.kwargs.get("patch_size") == patch
    assert says in told


@pytest.mark.parametrize(("n", "patch"), [(64, 8), (150, 15), (96, 12), (224, 16), (30, 16), (50, 5), (80, 10)])
def test_patches_cover_the_image(n: int, patch: int) -> None:
    expected = {150: 10}.get(n, patch)  # 15 is none of the usual
    assert patch_size(16, (n, n)) == expected


def test_what_patches_leave_out_is_said(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"model": {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 1, "patch_size": 5}}}
    train({**small, "training": {"epochs": 1}}, tiny_dataset, tmp_path / "run", device="cpu")
    assert "leave out the border of 16x16 images and see 15x15" in capsys.readouterr().out
    assert left_out(object(), (1, 16, 16)) == []
    auto = {"model": {"stem_stride": "auto"}, "preprocess": {"size": "auto"}, "training": {"epochs": 1}}
    path = train(auto, tiny_dataset, tmp_path / "auto", device="cpu")
    assert "model.stem_stride=auto, 16x16 images: 1" in capsys.readouterr().out
    assert load(path, "cpu").recipe.model.stem_stride == 1
    train(auto, tiny_dataset, tmp_path / "auto", device="cpu", resume=True, overrides=["training.epochs=2"])
