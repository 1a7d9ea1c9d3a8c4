"""Priors: what a recipe's `{kind: [arguments]}` means, drawn in blocks.

To add one: a `Kind` with its check and its draw, one line in `PRIORS`. `{table: file}` draws from a file (`tables.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from deeplense import config
from deeplense.errors import UserError, brief
from deeplense.sim.tables import Table, read_table

Array = NDArray[np.float64]
LARGEST = 1e20  # number in a prior, of either sign; draws and powers of what is larger overflow
MEAN = 1e9  # of a poisson


class Kind(NamedTuple):
    """Names of the arguments (one with dots is any number of them), a check that returns what is wrong (or ''), the
    draw, and what it cannot leave."""

    arguments: tuple[str, ...]
    check: Callable[..., str]
    draw: Callable[..., Array]
    bounds: Callable[..., tuple[float, float]] = lambda low, high, *_: (low, high)


def power_law(rng: Generator, shape: tuple[int, ...], low: float, high: float, slope: float) -> Array:
    """dN/dm ∝ m^slope between low and high, by inversion of the cumulative distribution."""
    u = rng.random(shape)
    k = slope + 1
    if abs(k) < 1e-9:
        return np.asarray(low * (high / low) ** u)
    return np.asarray((low**k + (high**k - low**k) * u) ** (1 / k))


def choice(rng: Generator, shape: tuple[int, ...], *values: float) -> Array:
    """One of the values, each as likely as any other; one that is named twice is twice as likely."""
    return np.asarray(np.array(values)[rng.integers(len(values), size=shape)])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _ordered(low: float, high: float, *_: float) -> str:
    return "" if low < high else f"low {low:g} is not below high {high:g}; swap them"


def _positive(low: float, high: float, *_: float) -> str:
    return _ordered(low, high) or ("" if low > 0 else f"low {low:g} must be positive")


def _steep(low: float, high: float, slope: float) -> str:
    if wrong := _positive(low, high):
        return wrong
    if low < 1 / LARGEST:
        return f"low {low:g} is too small; give {1 / LARGEST:g} or more"
    return "" if abs(slope) <= 10 else f"slope {slope:g} is not in [-10, 10]"


def _truncated(mean: float, sigma: float, low: float, high: float) -> str:
    if wrong := _ordered(low, high) or ("" if sigma > 0 else f"sigma {sigma:g} must be positive"):
        return wrong
    near = low - 30 * sigma < mean < high + 30 * sigma  # beyond, the distribution function has no digits left
    return "" if near else f"the range [{low:g}, {high:g}] lies more than 30 sigma from the mean {mean:g}"


def truncated_normal(
    rng: Generator, shape: tuple[int, ...], mean: float, sigma: float, low: float, high: float
) -> Array:
    """Normal within [low, high], by inversion of the cumulative distribution."""
    from scipy import stats  # its import takes a second, which most recipes are spared

    return np.asarray(stats.truncnorm.ppf(rng.random(shape), (low - mean) / sigma, (high - mean) / sigma, mean, sigma))


PRIORS: dict[str, Kind] = {
    "uniform": Kind(("low", "high"), _ordered, lambda rng, shape, low, high: rng.uniform(low, high, shape)),
    "log_uniform": Kind(
        ("low", "high"),
        _positive,
        lambda rng, shape, low, high: np.exp(rng.uniform(np.log(low), np.log(high), shape)),
    ),
    "normal": Kind(
        ("mean", "sigma"),
        lambda mean, sigma: "" if sigma > 0 else f"sigma {sigma:g} must be positive",
        lambda rng, shape, mean, sigma: rng.normal(mean, sigma, shape),
        lambda *_: (-np.inf, np.inf),
    ),
    "truncated_normal": Kind(
        ("mean", "sigma", "low", "high"), _truncated, truncated_normal, lambda mean, sigma, low, high: (low, high)
    ),
    "power_law": Kind(("low", "high", "slope"), _steep, power_law),
    "poisson": Kind(
        ("mean",),
        lambda mean: "" if 0 <= mean <= MEAN else f"mean {mean:g} must not be negative, nor above {MEAN:g}",
        lambda rng, shape, mean: rng.poisson(mean, shape).astype(float),
        lambda mean: (0.0, np.inf),
    ),
    "choice": Kind(("values...",), lambda *_: "", choice, lambda *values: (min(values), max(values))),
}
TABLE = "table"


@dataclass(frozen=True)
class Prior:
    """One parameter's distribution.

    Attributes:
        kind: key of `PRIORS`, "table" or "constant". arguments: its numbers. table: what its file says.
    """

    kind: str
    arguments: tuple[float, ...]
    table: Table | None = None

    @classmethod
    def parse(cls, spec: Any, where: str) -> Prior:
        """From a recipe: a number, or `{kind: [arguments]}` (one argument may stand without brackets).

        Raises:
            UserError: unknown kind (nearest named), wrong number of arguments, a reversed range, or a file that is no
                table.
        """
        if _number(spec):
            return cls("constant", (float(spec),))
        if not isinstance(spec, dict) or len(spec) != 1:
            raise UserError(f"{where}: {brief(spec)} is not a prior; write a number or {{uniform: [low, high]}}")
        ((name, arguments),) = spec.items()
        if name == TABLE:
            if not isinstance(arguments, str):
                raise UserError(f"{where}: table takes the name of a file, not {brief(arguments)}")
            return cls(TABLE, (), read_table(arguments, where))
        kind: Kind = config.lookup(PRIORS, str(name), f"{where}: prior")
        values = arguments if isinstance(arguments, list | tuple) else [arguments]
        right = len(values) > 0 if kind.arguments[0].endswith("...") else len(values) == len(kind.arguments)
        if not right or not all(map(_number, values)):
            takes = f"[{', '.join(kind.arguments)}] as numbers up to {LARGEST:g}"
            raise UserError(f"{where}: {name} takes {takes}, not {brief(arguments)}")
        if wrong := kind.check(*values):
            raise UserError(f"{where}: {name} {list(values)}: {wrong}")
        return cls(str(name), tuple(float(v) for v in values))

    @property
    def constant(self) -> bool:
        return self.kind == "constant"

    @property
    def bounds(self) -> tuple[float, float]:
        """What no draw leaves."""
        if self.table is not None:
            return self.table.bounds
        return (self.arguments[0],) * 2 if self.constant else PRIORS[self.kind].bounds(*self.arguments)

    def sample(self, rng: Generator, shape: tuple[int, ...]) -> Array:
        """Draws of the given shape, float64; a constant uses no randomness."""
        if self.constant:
            return np.full(shape, self.arguments[0])
        if self.table is not None:
            return self.table.draw(rng, shape)
        return PRIORS[self.kind].draw(rng, shape, *self.arguments)
