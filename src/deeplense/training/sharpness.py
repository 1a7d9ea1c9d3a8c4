"""Sharpness-aware steps: down the gradient not of here, but of the worst place nearby."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class SharpnessAware(Optimizer):
    """Around any optimiser: uphill by `radius`, take the gradient there, and step from here with it (Foret et al. 2021,
    arXiv:2010.01412, algorithm 1). A step computes the loss twice, and so takes a closure."""

    def __init__(self, inner: Optimizer, radius: float) -> None:
        self.inner, self.radius = inner, radius
        super().__init__(inner.param_groups, {})
        # one list and one state for both, so that schedules and checkpoints see what steps
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            raise ValueError("a sharpness-aware step computes the loss twice: give a closure")
        loss = self._computed(closure)
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients: list[Tensor] = [p.grad for p in moved if p.grad is not None]
        if gradients:
            length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            uphill = [g * (self.radius / (length + 1e-12)) for g in gradients]
            torch._foreach_add_(moved, uphill)
            self._computed(closure)
            torch._foreach_sub_(moved, uphill)
        self.inner.step()
        return loss

    @staticmethod
    def _computed(closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            return closure()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
