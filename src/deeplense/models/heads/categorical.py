"""Which class: one logit each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.nn import functional

from deeplense.data.schema import Batch
from deeplense.models.heads.base import Head, Truths


class CategoricalHead(Head):
    """Probabilities of the classes.

    Attributes:
        class_weight: (K,) weights of the classes in the loss, for data that are out of balance; None: all alike.
        weigh_training: whether they hold in training too, and not only in validation.
    """

    metric_name = "accuracy"

    def __init__(self, num_features: int, name: str, truths: Truths) -> None:
        super().__init__(num_features, len(truths.classes))
        self.name, self.classes = name, truths.classes
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", None, persistent=False)
        self.weigh_training = True

    def distribution(self, raw: Tensor) -> Categorical:
        return Categorical(logits=raw.float() / self.temperature)

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.label.clamp_min(0)[:, None], (batch.label >= 0)[:, None]

    def loss(self, raw: Tensor, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        known = batch.label >= 0
        weight = self.class_weight if self.weigh_training or not self.training else None
        total = functional.cross_entropy(
            raw.float() / self.temperature,
            batch.label,
            weight,
            ignore_index=-1,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        each = known.to(total.dtype) if weight is None else weight[batch.label.clamp_min(0)] * known
        count = each.sum()[None]
        return total[None] / count.clamp_min(torch.finfo(count.dtype).tiny), count

    def metric(self, raw: Tensor, batch: Batch) -> Tensor:
        known = batch.label >= 0
        return (raw.argmax(1) == batch.label)[known].float().mean()

    @torch.no_grad()
    def judge(self, answer: str, raw: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        log_p: Tensor = self.distribution(raw).log_prob(truth)  # type: ignore[no-untyped-call]
        return log_p, raw.new_empty(0)

    def outputs(self, raw: Tensor) -> dict[str, dict[str, Tensor]]:
        return {self.name: {"probabilities": torch.softmax(raw.float() / self.temperature, 1)}}

    def about(self) -> dict[str, dict[str, Any]]:
        return {self.name: {"answer": "classes", "classes": self.classes}}
