"""Any network of timm, by name, for any number of channels and any size of image."""

from __future__ import annotations

from typing import Any

import timm
from timm import is_model, list_models
from torch import Tensor, nn

from deeplense.errors import UserError

__all__ = ["TimmTrunk", "is_model", "list_models"]


class TimmTrunk(nn.Module):
    """A timm network without its classifier; `kwargs` go to its constructor.

    Attributes:
        backbone: timm's own.

    Raises:
        UserError: an argument that this network does not take, weights that cannot be fetched, or a stem that
            cannot keep the resolution.
    """

    def __init__(
        self,
        name: str,
        in_chans: int,
        image_size: tuple[int, int],
        pretrained: bool = False,
        stem_stride: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.backbone = _create(
            name, image_size, {"in_chans": in_chans, "pretrained": pretrained, **kwargs}, pretrained
        )
        if stem_stride is not None:
            _set_stem_stride(self.backbone, name, stem_stride)
        # networks with a layer between pooling and classifier say its width
        self.num_features = int(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features), pooled."""
        return self.backbone(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)


def _create(name: str, image_size: tuple[int, int], arguments: dict[str, Any], pretrained: bool) -> Any:
    common = {"num_classes": 0, **arguments}
    try:
        try:
            # transformers are built for one size, convolutional networks know no such argument
            return timm.create_model(name, img_size=image_size, **common)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, **common)
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
