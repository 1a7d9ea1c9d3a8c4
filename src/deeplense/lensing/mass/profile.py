"""What a deflector is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

Deflection = tuple[Tensor, Tensor]


class MassProfile(NamedTuple):
    """A deflector.

    Attributes:
        function: `(x, y, **parameters) -> (alpha_x, alpha_y)`; of a circular profile `(r², **parameters) -> α/r`, and
            `center_x`, `center_y` are dealt with by the ray shooter, which is faster for many of them.
        strength: parameters that switch it off when zero (masked entries of a padded array).
        summed: the function sums over all N itself, on a grid of rays without a temporary for each.
        potential: ψ [arcsec²] with ∇ψ = α, of the arguments of `function`, up to a constant; None: nobody wrote it, and
            maps of the potential are refused.
    """

    function: Callable[..., Any]
    strength: tuple[str, ...]
    circular: bool = False
    summed: bool = False
    potential: Callable[..., Tensor] | None = None
