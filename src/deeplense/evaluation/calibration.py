"""Do predicted probabilities mean what they say?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 15


def reliability(
    confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean confidence, accuracy and number of images in equal-width bins of confidence; empty bins left out.

    Args:
        confidence: (N,) probability of the predicted class. correct: (N,).
    """
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    n = np.bincount(bin_of, minlength=bins)
    used = n > 0
    mean = np.bincount(bin_of, confidence, bins)[used] / n[used]
    return mean, np.bincount(bin_of, correct, bins)[used] / n[used], n[used]


def ece(probabilities: Floats, labels: NDArray[np.int64], bins: int = BINS) -> float:
    """Expected calibration error of the predicted class, equal-width bins (Guo et al. 2017, 1706.04599).

    Args:
        probabilities: (N, K). labels: (N,).
    """
    confidence, accuracy, n = reliability(probabilities.max(1), probabilities.argmax(1) == labels, bins)
    return float((n * np.abs(confidence - accuracy)).sum() / n.sum())


def wilson(share: Any, n: Any, z: float = 1.96) -> tuple[Any, Any]:
    """Interval of a binomial share, sane at 0 and 1 (Wilson 1927)."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def coverage(pit: Floats, level: float | Floats) -> Any:
    """Share of truths inside the central interval of the given probability; `level` when calibrated.

    Args:
        pit: (N,) predicted cumulative probability of each truth (probability integral transform).
        level: a number, or an array of them.
    """
    half = np.abs(np.asarray(pit) - 0.5)
    return (half <= np.asarray(level)[..., None] / 2).mean(-1)
