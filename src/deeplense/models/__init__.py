"""Networks: preprocessed images (B, C, H, W) in, raw outputs (B, n_out) of a head out.

To add one: a class in a file here, `Class(in_chans, num_classes, image_size, **kwargs)`, which takes at least
`drop_rate`, `drop_path_rate` and `stem_stride`, and a line in `MODELS`. A user's own needs neither: the
recipe names it `my_package.module:Class` (see `deeplense.allow`), a subclass of `nn.Module`, and it is called with
`in_chans`, `num_classes`, `image_size`, those of the three that the recipe sets, and `model.kwargs`.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import timm
import torch
from torch import nn

from deeplense import config, recipe
from deeplense.allow import find_class
from deeplense.errors import UserError
from deeplense.models.backbones import timm_network
from deeplense.models.compact import Compact

MODELS: dict[str, Any] = {"compact": Compact}

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


def build_network(config_: recipe.Model, shape: tuple[int, int, int], n_out: int) -> nn.Module:
    """The network that a recipe names, with fresh weights unless `pretrained`.

    Args:
        shape: (C, H, W) of the preprocessed images.

    Raises:
        UserError: no such network (nearest named), arguments it does not take, or images too small for it.
    """
    config_ = config.build(recipe.Model, dataclasses.asdict(config_), "model")
    name, (channels, *size) = config_.name, shape
    for key in config_.kwargs:
        if key in SAID_ELSEWHERE:
            raise UserError(f"model.kwargs.{key}: {SAID_ELSEWHERE[key]} says it; leave it out")
        if key in FORBIDDEN:
            raise UserError(f"model.kwargs.{key}: is no setting of a network; leave it out")
    given = {
        "drop_rate": config_.dropout,
        "drop_path_rate": config_.drop_path,
        "stem_stride": config_.stem_stride,
    }
    kwargs: dict[str, Any] = {k: v for k, v in given.items() if v} | config_.kwargs
    common: dict[str, Any] = {"in_chans": channels, "num_classes": n_out, "image_size": tuple(size)}
    if name in MODELS or ":" in name:
        if config_.pretrained:
            raise UserError(f"model.pretrained: there are no weights for '{name}'; set it to false")
        try:
            network = (MODELS.get(name) or _own(name))(**common, **kwargs)
        except UserError:
            raise
        except Exception as error:  # its arguments are the recipe's, and may be anything
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"model.name '{name}' does not take what the recipe gives it: {why}") from error
    elif timm.is_model(name):
        network = timm_network(name, **common, pretrained=config_.pretrained, **kwargs)
    else:
        close = difflib.get_close_matches(name, [*MODELS, *timm.list_models()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"model.name '{name}' is neither a network of deeplense nor of timm; {hint}")
    _probe(network, name, shape, n_out)
    return network  # type: ignore[no-any-return]


def _own(name: str) -> Any:
    return find_class(name, "network", lambda cls: issubclass(cls, nn.Module), "a network: a subclass of nn.Module")


@torch.no_grad()
def _probe(network: nn.Module, name: str, shape: tuple[int, int, int], n_out: int) -> None:
    """Run two blank images through, so that a size that does not fit is found before training."""
    size = f"{shape[1]}x{shape[2]}"
    try:
        out = network.eval()(torch.zeros(2, *shape))
        got = tuple(out.shape)
    except Exception as error:  # whatever its layers raise, or no tensor
        why = " ".join(str(error).split())[:120]
        raise UserError(f"model.name '{name}' cannot take {size} images ({why}); change preprocess.size") from error
    finally:
        network.train()
    if got != (2, n_out):
        raise UserError(f"model.name '{name}' gives {got[1:]} for a {size} image, but should give ({n_out},)")
