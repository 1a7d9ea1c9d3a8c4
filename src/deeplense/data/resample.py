"""From one grid of pixels to another, by area."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def resample_matrix(n_in: int, n_out: int, ratio: float | None = None) -> NDArray[np.float32]:
    """(n_out, n_in) weights that average `n_in` pixels into `n_out` by the area that they share.

    The two grids have one centre. Each row sums to 1, so that surface brightness is kept; a row that no input
    pixel touches is 0.

    Args:
        ratio: input pixels per output pixel; `n_in / n_out` when not given.
    """
    ratio = n_in / n_out if ratio is None else ratio
    edge = n_in / 2 + (np.arange(n_out + 1) - n_out / 2) * ratio
    pixel = np.arange(n_in)
    shared = np.minimum(edge[1:, None], pixel + 1) - np.maximum(edge[:-1, None], pixel)
    # an overlap of rounding errors is none
    weight = np.where(shared > 1e-9, shared, 0.0)
    return np.asarray(weight / np.maximum(weight.sum(1, keepdims=True), 1e-9), np.float32)
