"""Trunks: preprocessed images (B, C, H, W) in, features (B, D) out, for the heads.

To add one: a class in a file here, `Class(in_chans, image_size, **kwargs)`, with `num_features` (D) and
`forward_features`, which takes at least `drop_rate`, `drop_path_rate` and `stem_stride`, and a line in `MODELS`. With
an argument `context` it is told of image geometry, PSF, pre-processing and parameters (`deeplense.models.context`). A
user's own, a subclass of `nn.Module`, needs no line: the recipe names it `my_package.module:Class` (see
`deeplense.allow`), and it is called with `in_chans`, `image_size`, those of the three that the recipe sets, and
`model.kwargs`.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from deeplense import config, recipe
from deeplense.allow import find_class
from deeplense.errors import UserError
from deeplense.models.bounded import check_numbers
from deeplense.models.compact import Compact
from deeplense.models.context import Context
from deeplense.models.depthwise import Depthwise
from deeplense.models.equivariant import Equivariant
from deeplense.models.fitting import nearest_size
from deeplense.models.graph import Graph
from deeplense.models.heads import HeadSpec, build_head
from deeplense.models.network import Network
from deeplense.models.physics_informed import PhysicsInformed

__all__ = ["MODELS", "Context", "Network", "build_network", "build_trunk", "probe"]

MODELS: dict[str, Any] = {
    "compact": Compact,
    "depthwise": Depthwise,
    "equivariant": Equivariant,
    "graph": Graph,
    "physics_informed": PhysicsInformed,
}

RESIZE = "change preprocess.size"  # how the message about a size that does not fit ends

# what model.kwargs may not hold: where the recipe says it, or else only what loads files or gives no tensor
SAID_ELSEWHERE = {
    "pretrained": "model.pretrained",
    "drop_rate": "model.dropout",
    "drop_path_rate": "model.drop_path",
    "stem_stride": "model.stem_stride",
    "model_name": "model.name",
    "in_chans": "the data",
    "num_classes": "the data",
    "image_size": "preprocess.size",
    "img_size": "preprocess.size",
}
FORBIDDEN = (
    "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn", "checkpoint_path",
    "cache_dir", "scriptable", "exportable", "no_jit", "features_only", "feature_cfg", "name",
)  # fmt: skip


def build_network(
    config_: recipe.Model, specs: Sequence[HeadSpec], classes: Sequence[str], context: Context, probed: bool = True
) -> Network:
    """The trunk that a recipe names, with fresh weights unless `pretrained`, and its heads.

    Args:
        classes: of the data, in order. probed: run blank images through, so that a size that does not fit is found.

    Raises:
        UserError: no such network (nearest named), arguments it does not take, or images too small for it.
    """
    try:
        trunk = build_trunk(config_, context)
        if probed:
            probe(trunk, config_.name, context.preprocess.output_shape)
    except UserError as error:
        if RESIZE not in str(error) or not probed:
            raise
        size = nearest_size(config_, context.preprocess.config, context.image)
        hint = RESIZE if size is None else f"preprocess.size={size} fits, and auto finds it"
        raise UserError(str(error).replace(RESIZE, hint)) from error
    num_features: Any = trunk.num_features
    heads = {s.name: build_head(s, num_features, classes, context.parameters) for s in specs}
    return Network(trunk, heads, {s.name: s.weight for s in specs})


def build_trunk(config_: recipe.Model, context: Context) -> nn.Module:
    """The trunk alone; see `build_network`."""
    config_ = config.build(recipe.Model, dataclasses.asdict(config_), "model")
    name, (channels, *size) = config_.name, context.preprocess.output_shape
    for key in config_.kwargs:
        if key in SAID_ELSEWHERE:
            raise UserError(f"model.kwargs.{key}: {SAID_ELSEWHERE[key]} says it; leave it out")
        if key in FORBIDDEN:
            raise UserError(f"model.kwargs.{key}: is no setting of a network; leave it out")
    check_numbers(config_.kwargs, "model.kwargs")
    given = {
        "drop_rate": config_.dropout,
        "drop_path_rate": config_.drop_path,
        "stem_stride": None if config_.stem_stride == "auto" else config_.stem_stride,
    }
    kwargs: dict[str, Any] = {k: v for k, v in given.items() if v} | config_.kwargs
    common: dict[str, Any] = {"in_chans": channels, "image_size": tuple(size)}
    if name in MODELS or ":" in name:
        if config_.pretrained:
            raise UserError(f"model.pretrained: there are no weights for '{name}'; set it to false")
        made = MODELS.get(name) or _own(name)
        if "context" in inspect.signature(made).parameters:
            common["context"] = context
        try:
            trunk = made(**common, **kwargs)
        except UserError:
            raise
        except Exception as error:  # its arguments are the recipe's, and may be anything
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"model.name '{name}' does not take what the recipe gives it: {why}") from error
        if not hasattr(trunk, "forward_features") or not isinstance(getattr(trunk, "num_features", None), int):
            raise UserError(f"model.name '{name}' is no trunk: it needs forward_features(images) and num_features")
    else:
        from deeplense.models.backbones import TimmTrunk, is_model, list_models  # the import of timm takes seconds

        if not is_model(name):
            close = difflib.get_close_matches(name, [*MODELS, *list_models()], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
            raise UserError(f"model.name '{name}' is neither a network of deeplense nor of timm; {hint}")
        trunk = TimmTrunk(name, **common, pretrained=config_.pretrained, **kwargs)
    return trunk  # type: ignore[no-any-return]


def _own(name: str) -> Any:
    return find_class(name, "network", lambda cls: issubclass(cls, nn.Module), "a network: a subclass of nn.Module")


@torch.no_grad()
def probe(trunk: nn.Module, name: str, shape: tuple[int, int, int]) -> None:
    """Run two blank images (C, H, W) through.

    Raises:
        UserError: they do not fit, or what comes out is not (2, num_features).
    """
    size = f"{shape[1]}x{shape[2]}"
    try:
        out = trunk.eval()(torch.zeros(2, *shape))
        got = tuple(out.shape)
    except Exception as error:  # whatever its layers raise, or no tensor
        why = " ".join(str(error).split())[:120]
        raise UserError(f"model.name '{name}' cannot take {size} images ({why}); {RESIZE}") from error
    finally:
        trunk.train()
    if got != (2, trunk.num_features):
        raise UserError(
            f"model.name '{name}' gives {got[1:]} for a {size} image, but should give ({trunk.num_features},) features"
        )
