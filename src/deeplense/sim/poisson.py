"""Poisson numbers, exact, several times as quick as drawing each pixel by rejection. CPU only.

Three ranges of the rate λ: the faintest pixels share one draw, the brightest are inverted from a normal number, and for
the rest probabilities are added up until they exceed a uniform number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

FAINT, BRIGHT = 0.05, 4.0
TOGETHER = 5  # probabilities added up for all pixels, before those that are left are taken apart


def poisson(rate: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Draws of the given rates.

    Thinning, for the faintest: counts of rate `FAINT` in each, as one draw of their total scattered evenly, of which
    each is kept with probability rate/`FAINT`.
    """
    flat = rate.ravel()
    out = np.zeros(flat.shape, np.float32)
    middle = np.flatnonzero((flat >= FAINT) & (flat < BRIGHT))
    out[middle] = added_up(generator.random(len(middle)), flat[middle].astype(np.float64))
    bright = np.flatnonzero(flat >= BRIGHT)
    if len(bright):
        seed = torch.Generator().manual_seed(int(generator.integers(2**62)))
        normal = torch.empty(len(bright)).normal_(generator=seed).numpy()
        out[bright] = inverted(normal, flat[bright])
    faint = np.flatnonzero(flat < FAINT)
    if len(faint):
        proposed = faint[generator.integers(len(faint), size=generator.poisson(FAINT * len(faint)))]
        np.add.at(out, proposed[generator.random(len(proposed)) * FAINT < flat[proposed]], 1)
    return out.reshape(rate.shape)


def added_up(u: NDArray[np.float64], rate: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The smallest k with P(X ≤ k) ≥ u, for rates up to `BRIGHT`."""
    probability = np.exp(-rate)
    total = probability.copy()
    k = (u > total).view(np.uint8)
    for n in range(1, TOGETHER):
        probability *= rate
        probability *= 1 / n
        total += probability
        k += (u > total).view(np.uint8)
    left: NDArray[Any] = np.flatnonzero(u > total)
    rest: tuple[NDArray[Any], ...] = (u[left], rate[left], probability[left], total[left])
    n = TOGETHER
    while len(left):
        u, rate, probability, total = rest
        probability = probability * rate / n
        total = total + probability
        beyond = (u > total) & (probability > 1e-18)  # which ends where nothing can be added
        k[left] += beyond.view(np.uint8)
        left, rest = left[beyond], (u[beyond], rate[beyond], probability[beyond], total[beyond])
        n += 1
    return k


def inverted(w: NDArray[Any], rate: NDArray[Any]) -> NDArray[Any]:
    """The smallest k with P(X ≤ k) ≥ Φ(w), for rates of at least `BRIGHT` (Giles 2016, ACM TOMS 42:7, Algorithm 955).

    k is the integer part of the quantile x of the continuous extension of the distribution, which an asymptotic series
    gives to (0.02 + 0.008 |w|⁵)/λ^1.5; where an integer is nearer than that and than x is rounded, the distribution
    function itself decides, in float64. So float32 gives the same numbers, twice as quickly.

    Args:
        w, rate: of one dtype, float32 or float64.
    """
    root, w2 = np.sqrt(rate), w * w
    x = w2 * (1 / 270)
    x += 7 / 810
    x *= w2
    x -= 8 / 405
    x /= rate
    x += rate
    x += root * w
    term = w2 * (1 / 6)
    x += term
    x += 1 / 3
    term /= -12
    term -= 1 / 36
    term *= w
    term /= root
    x += term
    k: NDArray[Any] = np.floor(x)
    w2 *= w2
    w2 *= np.abs(w)
    w2 *= 0.008
    w2 += 0.02
    w2 /= rate * root
    w2 += (rate + x) * (8 * np.finfo(x.dtype).eps)
    distance = np.abs(x - np.rint(x))
    near = np.flatnonzero((distance < w2) & (x > 1))
    if len(near):
        above, p = np.rint(x[near]), special.ndtr(w[near].astype(np.float64))
        k[near] = above - (special.pdtr(above - 1.0, rate[near].astype(np.float64)) >= p)
    few = np.flatnonzero(x <= 1)
    if len(few):
        p, mean, found = special.ndtr(w[few].astype(np.float64)), rate[few].astype(np.float64), 0
        while (below := special.pdtr(found, mean) < p).any():
            found = found + below
        k[few] = found
    return k
