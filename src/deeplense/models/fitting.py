"""What of a network fits small images: the size of the image, the stem, the patches; chosen before training."""

from __future__ import annotations

import dataclasses
from typing import Any

from deeplense import recipe
from deeplense.data.schema import ImageInfo
from deeplense.data.transforms import Preprocessor
from deeplense.errors import UserError

CELLS = 4  # of a convolutional network's last map, on a side
TOKENS = 8  # patches of a transformer, on a side
PATCHES = (16, 14, 12, 10, 8, 6, 5, 4)  # pixels
SMALL = 32  # pixels: below, our own networks keep the resolution
STEP, TRIES = 32, 8  # sizes that networks of five halvings, and windows of 7 or 8, take


def settled(config: recipe.Recipe, image: ImageInfo) -> tuple[recipe.Recipe, list[str]]:
    """The recipe with what it leaves to us: `preprocess.size: auto` and `model.stem_stride: auto`; and what was chosen,
    a line each.

    Raises:
        UserError: the network takes none of the sizes near.
    """
    told: list[str] = []
    model, preprocess = config.model, config.preprocess
    stem = model.stem_stride == "auto"
    model = dataclasses.replace(model, stem_stride=None) if stem else model
    if preprocess.size == "auto":
        preprocess = dataclasses.replace(preprocess, size=None)
        if why := _refused(model, preprocess, image):
            size = nearest_size(model, preprocess, image)
            if size is None:
                raise UserError(why)
            told.append(f"preprocess.size=auto: {size}, the size nearest to the images' that {model.name} takes")
            preprocess = dataclasses.replace(preprocess, size=size)
    if stem:
        (_, *size_) = Preprocessor(preprocess, image).output_shape
        model, line = _with_stem(model, (size_[0], size_[1]), image.channels)
        told.append(line)
    return dataclasses.replace(config, model=model, preprocess=preprocess), told


def nearest_size(model: recipe.Model, preprocess: recipe.Preprocess, image: ImageInfo) -> int | None:
    """The size nearest to that of the images which a network takes; None: none of those tried."""
    n = preprocess.size if isinstance(preprocess.size, int) else preprocess.crop or min(image.height, image.width)
    near = sorted(range(STEP, 2 * n + STEP + 1, STEP), key=lambda size: (abs(size - n), -size))
    fits = (size for size in near[:TRIES] if not _refused(model, dataclasses.replace(preprocess, size=size), image))
    return next(fits, None)


def patch_size(default: int, image_size: tuple[int, int]) -> int:
    """Of a transformer: the largest that gives `TOKENS` patches on a side and leaves no pixel out; where there is none,
    its own."""

    def fits(p: int) -> bool:
        return min(image_size) // p >= TOKENS and not any(n % p for n in image_size)

    return next((p for p in (default, *PATCHES) if p <= default and fits(p)), default)


def left_out(trunk: Any, shape: tuple[int, int, int]) -> list[str]:
    """A line where a transformer's patches do not cover the image (C, H, W): what is left over, it does not see."""
    patch = _patch_of(getattr(trunk, "backbone", None))
    if patch is None or not any(n % patch for n in shape[1:]):
        return []
    seen = "x".join(str(n // patch * patch) for n in shape[1:])
    return [
        f"patches of {patch} pixels leave out the border of {shape[1]}x{shape[2]} images and see {seen}; set "
        "preprocess.crop or preprocess.size to a multiple"
    ]


def _refused(model: recipe.Model, preprocess: recipe.Preprocess, image: ImageInfo) -> str:
    """Why a network does not take images that were preprocessed so; "" where it does."""
    from deeplense.models import Context, build_trunk, probe  # they ask for sizes in turn

    try:
        made = Preprocessor(preprocess, image)
        trunk = build_trunk(dataclasses.replace(model, pretrained=False), Context(image, made))
        probe(trunk, model.name, made.output_shape)
    except UserError as error:
        return str(error)
    return ""


def _with_stem(model: recipe.Model, size: tuple[int, int], channels: int) -> tuple[recipe.Model, str]:
    from deeplense.models import MODELS

    where = f"model.stem_stride=auto, {size[0]}x{size[1]} images"
    if model.name in MODELS or ":" in model.name:
        if min(size) >= SMALL:
            return model, f"{where}: {model.name} as it is"
        return dataclasses.replace(model, stem_stride=1), f"{where}: 1"
    from deeplense.models.backbones import TimmTrunk

    made = TimmTrunk(model.name, channels, size, **model.kwargs).backbone
    patch, reduction = _patch_of(made), _reduction_of(made)
    if patch is not None and reduction in (None, patch):
        chosen = patch_size(patch, size)
        if chosen == patch or "patch_size" in model.kwargs:
            return model, f"{where}: patches of {patch} pixels, as they are"
        return (
            dataclasses.replace(model, kwargs=model.kwargs | {"patch_size": chosen}),
            f"{where}: patches of {chosen} pixels (model.kwargs.patch_size), for {patch}",
        )
    if patch is not None or reduction is None or min(size) / reduction >= CELLS:
        return model, f"{where}: {model.name} as it is"
    return dataclasses.replace(model, stem_stride=1), f"{where}: 1"


def _patch_of(network: Any) -> int | None:
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple | list) else patch
    return patch if isinstance(patch, int) else None


def _reduction_of(network: Any) -> int | None:
    """The image's size over that of the last map, where a network of timm says so."""
    about = getattr(network, "feature_info", None)
    last = about[-1] if isinstance(about, list) and about else None
    return int(last["reduction"]) if isinstance(last, dict) and "reduction" in last else None
