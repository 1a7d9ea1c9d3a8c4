"""Any network of timm, by name, for any number of channels and any size of image."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from deeplense.errors import UserError


def timm_network(
    name: str,
    in_chans: int,
    num_classes: int,
    image_size: tuple[int, int],
    pretrained: bool = False,
    stem_stride: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A timm network; `kwargs` go to its constructor.

    Raises:
        UserError: an argument that this network does not take, weights that cannot be fetched, or a stem that
            cannot keep the resolution.
    """
    common = {"in_chans": in_chans, "num_classes": num_classes, "pretrained": pretrained, **kwargs}
    try:
        try:
            # transformers are built for one size, convolutional networks know no such argument
            network = timm.create_model(name, img_size=image_size, **common)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            network = timm.create_model(name, **common)
    except TypeError as error:
        raise UserError(f"model.name '{name}' does not take what the recipe gives it: {_line(error)}") from error
    except Exception as error:
        if pretrained:
            raise UserError(
                f"model.pretrained: no weights for '{name}' ({_line(error)}); go online or set it to false"
            ) from error
        size = "x".join(map(str, image_size))
        raise UserError(
            f"model.name '{name}' cannot be built for {size} images ({_line(error)}); change preprocess.size"
        ) from error
    if stem_stride is not None:
        _set_stem_stride(network, name, stem_stride)
    return network  # type: ignore[no-any-return]


def _set_stem_stride(network: nn.Module, name: str, stride: int) -> None:
    strided = (m for m in network.modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1)
    stem = next(strided, None)
    if stem is None or stem.stride == stem.kernel_size:
        raise UserError(
            f"model.stem_stride: '{name}' cuts its image into patches; leave it out or choose another network"
        )
    stem.stride = (stride, stride)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
