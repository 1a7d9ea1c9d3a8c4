"""Networks: preprocessed images (B, C, H, W) in, raw outputs (B, n_out) of a head out.

To add one: a class in a file here, `Class(in_chans, num_classes, image_size, **kwargs)`, which takes at least
`drop_rate`, `drop_path_rate` and `stem_stride`, and a line in `MODELS`. A user's own needs neither: the
recipe names it `my_package.module:Class`, and it is called with `in_chans`, `num_classes`, `image_size`,
those of the three that the recipe sets, and `model.kwargs`.
"""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from torch import nn

from deeplense import config, recipe
from deeplense.errors import UserError
from deeplense.models.backbones import timm_network
from deeplense.models.compact import Compact

MODELS: dict[str, Any] = {"compact": Compact}


def build_network(config_: recipe.Model, shape: tuple[int, int, int], n_out: int) -> nn.Module:
    """The network that a recipe names, with fresh weights unless `pretrained`.

    Args:
        shape: (C, H, W) of the preprocessed images.

    Raises:
        UserError: no such network (nearest named), arguments it does not take, or images too small for it.
    """
    name, (channels, *size) = config_.name, shape
    if config_.stem_stride not in (None, 1, 2):
        raise UserError(f"model.stem_stride is {config_.stem_stride}; it must be 1 or 2")
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
            network = config.lookup(MODELS, name, "network")(**common, **kwargs)
        except TypeError as error:
            raise UserError(f"model.name '{name}' does not take what the recipe gives it: {error}") from error
    elif timm.is_model(name):
        network = timm_network(name, **common, pretrained=config_.pretrained, **kwargs)
    else:
        close = difflib.get_close_matches(name, [*MODELS, *timm.list_models()], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"model.name '{name}' is neither a network of deeplense nor of timm; {hint}")
    _probe(network, name, shape, n_out)
    return network  # type: ignore[no-any-return]


@torch.no_grad()
def _probe(network: nn.Module, name: str, shape: tuple[int, int, int], n_out: int) -> None:
    """Run two blank images through, so that a size that does not fit is found before training."""
    size = f"{shape[1]}x{shape[2]}"
    try:
        out = network.eval()(torch.zeros(2, *shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(f"model.name '{name}' cannot take {size} images ({why}); change preprocess.size") from error
    finally:
        network.train()
    if tuple(out.shape) != (2, n_out):
        raise UserError(
            f"model.name '{name}' gives {tuple(out.shape)[1:]} for a {size} image, but should give ({n_out},)"
        )
