"""Bundles of format 1 (deeplense 0.1), read as if they were of today's: the one place that knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deeplense.errors import UserError

Tree = dict[str, Any]

CELLS = 8  # a side, fewer in small images


class Cells(nn.Module):
    """Its detector of strange images: Mahalanobis distance of mean and spread of the pixels in 8 x 8 cells.

    Preprocessed images (B, C, H, W), their features unused -> distance (B,), in units of the training images' largest.

    Args:
        shape: (C, H, W) of the preprocessed images.
    """

    mean: Tensor
    whiten: Tensor
    limit: Tensor

    def __init__(self, shape: tuple[int, int, int], num_features: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.cells = max(1, min(CELLS, height // 2, width // 2))
        n = 2 * channels * self.cells**2
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("whiten", torch.zeros(n, n))
        self.register_buffer("limit", torch.tensor(1.0))

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        means = functional.adaptive_avg_pool2d(images, self.cells)
        spread = (functional.adaptive_avg_pool2d(images.square(), self.cells) - means.square()).clamp_min(0)
        found = torch.cat([means.flatten(1), (spread.sqrt() + 1e-3).log().flatten(1)], dim=1)
        return ((found - self.mean) @ self.whiten).square().mean(1).sqrt() / self.limit


def upgraded(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[Tree, dict[str, Tensor]]:
    """Metadata and weights in the form of format 2.

    Raises:
        UserError: a user's own network, whose last layer cannot be told from the rest.
    """
    target = about["target"]
    head = {
        "name": "class" if target is None else "value",
        "targets": [] if target is None else [target],
        "weight": 1.0,
    }
    head["kind"] = "categorical" if target is None else "normal" if target["low"] is None else "truncated_normal"
    model = about["recipe"]["model"]["name"]
    last = _last_layer(model)
    new: dict[str, Tensor] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "network":
            of_head = rest.startswith(f"{last}.")
            trunk = rest if model == "compact" else f"backbone.{rest}"
            new[f"heads.{head['name']}.last.{rest[len(last) + 1 :]}" if of_head else f"trunk.{trunk}"] = value
        elif part == "head":
            new[f"heads.{head['name']}.{rest}"] = value.reshape(1)
        else:
            new[f"detector.{rest}" if part == "familiarity" else key] = value
    parameters = [] if target is None else [{"name": target["name"], "unit": target["unit"]}]
    made = {k: about[k] for k in ("recipe", "classes", "image", "fingerprint", "summary", "code_version")}
    made |= {"parts": ["preprocess", "trunk", "heads", "detector"], "detector": "cells", "heads": [head]}
    return {**made, "parameters": parameters, "simulation": None}, new


def _last_layer(model: str) -> str:
    if model == "compact":
        return "head.3"
    import timm  # takes seconds

    if ":" in model or not timm.is_model(model):
        raise UserError(f"a bundle of format 1 of the network '{model}'; train it again")
    return str(timm.get_pretrained_cfg(model).classifier)
