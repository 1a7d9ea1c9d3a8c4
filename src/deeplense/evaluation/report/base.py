"""What a report asks of each kind of answer.

To add a kind: an `Evaluation` in a file of its own with its part of the page beside it (`NAME.html`), and a line in
`EVALUATIONS` of `deeplense.evaluation.report.evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deeplense.bundle import Bundle
from deeplense.data.store import Dataset, Split

Floats = NDArray[np.float64]
A = TypeVar("A")


@dataclass
class Picture:
    """A figure of the report."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


@dataclass
class Scores(Generic[A]):
    """One answer on the N images of a split that have its truth.

    Attributes:
        name: of the answer. answer: on these images. position: (N,) in the split.
        truth: (N,) index into the bundle's classes, or the value.
        log_p: (N,) log-probability or log-density of the truth. pit: (N,) cumulative probability of a value's truth.
    """

    name: str
    answer: A
    position: NDArray[np.int64]
    truth: NDArray[Any]
    log_p: Floats
    pit: Floats


class Evaluation(Protocol[A]):
    """Of one kind of answer.

    Attributes:
        page: the template of its part of the page. metric: what rivals are compared by; better: "higher" or "lower".
    """

    page: str
    metric: str
    better: str

    def truth(self, bundle: Bundle, name: str, dataset: Dataset, split: Split) -> NDArray[Any]:
        """(n,) truths of a whole split in the bundle's terms; −1 or NaN where there is none.

        Raises:
            UserError: the dataset cannot have them.
        """

    def measure(self, bundle: Bundle, scores: Scores[A], dataset: Dataset, seed: int) -> dict[str, Any]:
        """Its part of `metrics.json`, with `task`, `n` and `notes`."""

    def compare(self, mine: Scores[A], theirs: Scores[A], seed: int) -> dict[str, Any]:
        """A rival on the same images: its metric, `difference` and `difference_ci`."""

    def pictures(self, bundle: Bundle, scores: Scores[A], measured: dict[str, Any], split: Split) -> list[Picture]:
        """Figures; the last one is the gallery."""

    def headline(self, measured: dict[str, Any]) -> str:
        """What was done, e.g. "regression of theta_E"."""

    def tiles(self, measured: dict[str, Any]) -> list[tuple[str, str, str]]:
        """Name, value and small print of the headline figures."""

    def columns(self, scores: Scores[A]) -> dict[str, Sequence[Any]]:
        """Of `predictions.csv`, the truth first; names before any `_suffix`."""


def interval_text(pair: list[float] | None, digits: int = 4) -> str:
    return f"{pair[0]:.{digits}f} to {pair[1]:.{digits}f}" if pair else ""


def number_text(x: float | None, digits: int = 4) -> str:
    return "–" if x is None else f"{x:.{digits}f}"


def percent_text(x: float, digits: int = 1) -> str:
    return f"{100 * x:.{digits}f} %"
