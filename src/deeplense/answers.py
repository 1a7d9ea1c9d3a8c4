"""What a trained network says about N images, typed: in NumPy alone, so that a small computer can say it too.

To add a kind of answer: a dataclass here with `of`, `shapes` and `columns`, a line in `ANSWERS`, and one in each dict
that is keyed by it (`EVALUATIONS`, `TASK` and `KNOWS` of the report, `DIFFERENCES` of the export).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass
class Classes:
    """Which of K classes.

    Attributes:
        classes: their names, in order. probabilities: (N, K).
    """

    classes: list[str]
    probabilities: Floats

    outputs = ("probabilities",)

    @classmethod
    def of(cls, about: Mapping[str, Any], outputs: Mapping[str, Floats]) -> Classes:
        """From what a head says of itself and its `outputs`."""
        return cls(list(about["classes"]), outputs["probabilities"])

    @staticmethod
    def shapes(about: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Of the outputs, after their first axis.

        Raises:
            TypeError, KeyError: not what a head says of itself.
        """
        names = about["classes"]
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
            raise TypeError("classes are names, all different")
        return {"probabilities": (len(names),)}

    @property
    def entropy(self) -> Floats:
        """(N,) nat."""
        p = self.probabilities
        return np.asarray(np.maximum(-(p * np.log(np.maximum(p, np.finfo(float).tiny))).sum(1), 0.0))

    def columns(self) -> dict[str, Any]:
        """Of a table of predictions; names before any `_suffix`."""
        likeliest = [self.classes[k] for k in self.probabilities.argmax(1)]
        return {"class": likeliest, **{f"p_{c}": self.probabilities[:, k] for k, c in enumerate(self.classes)}}


@dataclass
class Value:
    """A number.

    Attributes:
        name, unit: of what. mean, scale, q05, q95: (N,) mean, standard deviation, 5 % and 95 % quantiles, in the unit.
    """

    name: str
    unit: str
    mean: Floats
    scale: Floats
    q05: Floats
    q95: Floats

    outputs = ("mean", "scale", "q05", "q95")

    @classmethod
    def of(cls, about: Mapping[str, Any], outputs: Mapping[str, Floats]) -> Value:
        """From what a head says of itself and its `outputs`."""
        return cls(about["name"], about["unit"], *(outputs[k] for k in cls.outputs))

    @staticmethod
    def shapes(about: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """As `Classes.shapes`."""
        if not isinstance(about["name"], str) or not isinstance(about["unit"], str):
            raise TypeError("name and unit are text")
        return dict.fromkeys(Value.outputs, ())

    @property
    def entropy(self) -> Floats:
        """(N,) nat: of the normal distribution of that scale."""
        return np.asarray(0.5 * np.log(2 * np.pi * np.e * self.scale**2))

    def columns(self) -> dict[str, Any]:
        """Of a table of predictions; names before any `_suffix`."""
        return {k: getattr(self, k) for k in self.outputs}


Answer = Classes | Value

# what a head calls its answer -> the answer's type
ANSWERS: dict[str, type[Classes] | type[Value]] = {"classes": Classes, "value": Value}


class Prediction(Mapping[str, Answer]):
    """Every answer about N images, by name: a classifier's is its head's name, a number's its own.

    Where one answer alone has an attribute, the prediction has it too: `prediction.probabilities`, `prediction.mean`.

    Attributes:
        distance: (N,) how far the images lie from the training images; above 1 the answers mean nothing;
            None where nobody asked.
    """

    def __init__(self, answers: Mapping[str, Answer], distance: Floats | None = None) -> None:
        self._answers, self.distance = dict(answers), distance

    @classmethod
    def of(cls, about: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, NDArray[Any]]) -> Prediction:
        """From what heads say of their answers, and a network's outputs, named by `output_names`."""
        answers = {}
        for name, said in about.items():
            kind = ANSWERS[said["answer"]]
            found = {k: outputs[output_name(about, name, k)].astype(np.float64) for k in kind.outputs}
            answers[name] = kind.of(said, found)
        return cls(answers, outputs["distance"].astype(np.float64) if "distance" in outputs else None)

    def __getitem__(self, name: str) -> Answer:
        return self._answers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        having = [name for name, answer in self._answers.items() if hasattr(answer, attribute)]
        if len(having) == 1:
            return getattr(self._answers[having[0]], attribute)
        which = f"several answers have it: {', '.join(having)}" if having else f"the answers are: {', '.join(self)}"
        raise AttributeError(f"a prediction has no '{attribute}' of its own; {which}")

    def columns(self) -> dict[str, Any]:
        """Of a table of predictions; see `column_names`."""
        about = {name: _said(answer) for name, answer in self.items()}
        values = {
            output_name(about, name, column): value
            for name, answer in self.items()
            for column, value in answer.columns().items()
        }
        return values | {f"entropy{'' if len(self) == 1 else f'_{name}'}": a.entropy for name, a in self.items()}


def output_name(about: Mapping[str, Mapping[str, Any]], name: str, output: str) -> str:
    """`mean` where there is one number, `mean_theta_E` where there are several; of classes likewise."""
    alike = sum(said["answer"] == about[name]["answer"] for said in about.values())
    return output if alike == 1 else f"{output}_{name}"


def _said(answer: Answer) -> dict[str, str]:
    return {"answer": next(name for name, kind in ANSWERS.items() if isinstance(answer, kind))}
