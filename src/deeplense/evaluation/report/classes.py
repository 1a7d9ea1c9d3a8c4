"""The report of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense.answers import Classes
from deeplense.bundle import Bundle
from deeplense.data.store import Dataset, Split
from deeplense.errors import UserError
from deeplense.evaluation import gallery, metrics, plots
from deeplense.evaluation.report.base import Picture, Scores, interval_text, number_text, percent_text


class ClassEvaluation:
    """Of answers that are classes; see `Evaluation`."""

    page, metric, better = "classes.html", "macro AUC", "higher"

    def truth(self, bundle: Bundle, name: str, dataset: Dataset, split: Split) -> NDArray[Any]:
        mine, theirs = bundle.classes, dataset.manifest.classes
        strange = [c for c in theirs if c not in mine]
        absent = [c for c in mine if c not in theirs]
        if strange or absent:
            what = [f"has {', '.join(strange)}, unknown to the bundle"] if strange else []
            what += [f"lacks {', '.join(absent)}"] if absent else []
            raise UserError(
                f"{dataset.folder}: {' and '.join(what)}; the bundle's classes are {', '.join(mine)}: "
                "import the data with those names"
            )
        to_bundle = np.array([*(mine.index(c) for c in theirs), -1])  # unlabelled is -1, the last
        return to_bundle[split.labels]

    def measure(self, bundle: Bundle, scores: Scores[Classes], dataset: Dataset, seed: int) -> dict[str, Any]:
        return metrics.classification(scores.answer.probabilities, scores.truth, scores.answer.classes, seed)

    def compare(self, mine: Scores[Classes], theirs: Scores[Classes], seed: int) -> dict[str, Any]:
        columns = [theirs.answer.classes.index(c) for c in mine.answer.classes]
        found = metrics.compare_auc(
            mine.answer.probabilities, theirs.answer.probabilities[:, columns], mine.truth, seed
        )
        return {**found, "metric": found["auc"]}

    def pictures(
        self, bundle: Bundle, scores: Scores[Classes], measured: dict[str, Any], split: Split
    ) -> list[Picture]:
        p, truth, classes = scores.answer.probabilities, scores.truth, scores.answer.classes
        return [
            Picture(
                "roc",
                "ROC curves",
                "Each class against the rest. Right: the same curves where false positives are rare.",
                lambda: plots.roc(p, truth, classes, measured["auc"]["per_class"]),
            ),
            Picture(
                "confusion",
                "Confusion matrix",
                "Rows are true classes. Percentages are shares of a row, with counts below.",
                lambda: plots.confusion(np.array(measured["confusion"]), classes),
            ),
            Picture(
                "reliability",
                "Reliability",
                "How often the predicted class is right, against the probability that it was given, in 15 bins "
                "of equal width with 95 % intervals. On the dotted line probabilities are what they say; below "
                "it the network is over-confident. ECE is the mean distance from that line, weighted by images.",
                lambda: plots.reliability(p, truth, measured["ece"]),
            ),
            Picture(
                "scores",
                "Scores",
                "Distribution of each class's probability, by true class.",
                lambda: plots.class_scores(p, truth, classes),
            ),
            Picture(
                "gallery",
                "Most and least certain images",
                "Asinh stretch; below each image its id, true class, predicted class and its probability.",
                lambda: gallery.gallery(_rows(scores), _captions(scores), scores.position, split),
            ),
        ]

    def headline(self, measured: dict[str, Any]) -> str:
        return f"classification of {', '.join(measured['classes'])}"

    def tiles(self, measured: dict[str, Any]) -> list[tuple[str, str, str]]:
        m = measured
        return [
            ("Macro AUC", number_text(m["auc"]["macro"]), interval_text(m["auc"]["macro_ci"])),
            ("Accuracy", percent_text(m["accuracy"], 2), " to ".join(percent_text(x, 2) for x in m["accuracy_ci"])),
            ("Balanced accuracy", percent_text(m["accuracy_balanced"], 2), "classes weigh alike"),
            ("NLL", number_text(m["nll"]), f"{np.log(len(m['classes'])):.4f} when guessing"),
            ("ECE", number_text(m["ece"]), "0 is calibrated"),
            ("Images", f"{m['n']:,}", f"{m['split']} split"),
        ]

    def columns(self, scores: Scores[Classes]) -> dict[str, Sequence[Any]]:
        classes = scores.answer.classes
        values: dict[str, Any] = {f"p_{c}": scores.answer.probabilities[:, k] for k, c in enumerate(classes)}
        return {"label": [classes[k] for k in scores.truth], **values}


def _rows(scores: Scores[Classes]) -> list[gallery.Row]:
    """Most and least certain, right and wrong."""
    confidence = scores.answer.probabilities.max(1)
    right = scores.answer.probabilities.argmax(1) == scores.truth
    return [
        gallery.row("right, most certain", right, -confidence),
        gallery.row("right, least certain", right, confidence),
        gallery.row("wrong, most certain", ~right, -confidence),
        gallery.row("wrong, least certain", ~right, confidence),
    ]


def _captions(scores: Scores[Classes]) -> list[str]:
    classes = scores.answer.classes
    return [
        f"true {classes[truth]}\n{classes[int(p.argmax())]}  p = {_rounded(p.max())}"
        for truth, p in zip(scores.truth, scores.answer.probabilities, strict=True)
    ]


def _rounded(p: float) -> str:
    """Three digits, and never 1.000 for what is less."""
    return f"{p:.3f}" if p < 0.9995 else f"1 − {max(1 - p, 1e-9):.0e}"
