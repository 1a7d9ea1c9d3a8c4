"""A trunk and the heads that share it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from deeplense.data.schema import Batch
from deeplense.models.heads import Head


class Network(nn.Module):
    """Preprocessed images (B, C, H, W) -> raw outputs (B, n_out) of each head, by name.

    Attributes:
        weights: of each head's loss.
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, Head], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)
        self.weights = dict(weights or dict.fromkeys(heads, 1.0))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.read(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, D)."""
        return self.trunk(images)  # type: ignore[no-any-return]

    def read(self, features: Tensor) -> dict[str, Tensor]:
        """What the heads make of features."""
        return {name: head(features) for name, head in self.heads.items()}

    def each(self) -> dict[str, Head]:
        """The heads, typed."""
        return {name: head for name, head in self.heads.items() if isinstance(head, Head)}

    def losses(
        self, raw: Mapping[str, Tensor], batch: Batch, label_smoothing: float = 0.0
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each head: means of −log p over its known truths (T,), and their weights (T,); see `Head.loss`."""
        return {name: head.loss(raw[name], batch, label_smoothing) for name, head in self.each().items()}

    def total(self, losses: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """The scalar to minimise: the heads' losses, weighted; those of a head's targets are added."""
        first, *rest = (self.weights[name] * loss.sum() for name, (loss, _) in losses.items())
        return sum(rest, first)
