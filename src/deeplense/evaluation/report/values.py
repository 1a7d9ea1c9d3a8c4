"""The report of a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense.answers import Value
from deeplense.bundle import Bundle
from deeplense.data.store import Dataset, Split
from deeplense.evaluation import gallery, metrics, plots
from deeplense.evaluation.report.base import Picture, Scores, interval_text, number_text, percent_text

# ranges of the truth whose errors are given apart, by the target's name
RANGES = {"log10_m_axion": {"[-24, -23.5]": (-24.0, -23.5), "[-23.5, -22]": (-23.5, -22.0)}}


class ValueEvaluation:
    """Of answers that are numbers; see `Evaluation`."""

    page, metric, better = "values.html", "MAE", "lower"

    def truth(self, bundle: Bundle, name: str, dataset: Dataset, split: Split) -> NDArray[Any]:
        return np.asarray(split.params[:, dataset.manifest.parameter(name)])

    def measure(self, bundle: Bundle, scores: Scores[Value], dataset: Dataset, seed: int) -> dict[str, Any]:
        answer, name = scores.answer, scores.name
        constant = _constant(bundle, name, dataset)
        found = metrics.regression(
            scores.truth,
            answer.mean,
            answer.scale,
            scores.log_p,
            scores.pit,
            constant,
            RANGES.get(name, {}),
            seed,
        )
        return {"task": found.pop("task"), "target": name, "unit": answer.unit, **found, "constant": constant}

    def compare(self, mine: Scores[Value], theirs: Scores[Value], seed: int) -> dict[str, Any]:
        found = metrics.compare_mae(mine.answer.mean, theirs.answer.mean, mine.truth, seed)
        return {**found, "metric": found["mae"]}

    def pictures(self, bundle: Bundle, scores: Scores[Value], measured: dict[str, Any], split: Split) -> list[Picture]:
        answer, truth = scores.answer, scores.truth
        # a unit that the name says already, as log10(eV) in log10_m_axion, is still a unit
        name = f"{answer.name} [{answer.unit}]" if answer.unit else answer.name
        return [
            Picture(
                "predicted",
                "Predicted against true",
                "Predicted means; on the dotted line they are right. A flat cloud means that the images do not "
                "say, and then the predicted standard deviations should be wide.",
                lambda: plots.predicted(truth, answer.mean, answer.scale, name),
            ),
            Picture(
                "errors",
                "Bias and scatter",
                "In eight equal bins of the true value. A network unsure of itself draws its mean towards the "
                "middle of the prior: a bias that is no fault. Scatter and bias together agree with the predicted "
                "standard deviation, averaged over all images, when that is calibrated.",
                lambda: plots.errors(truth, answer.mean, answer.scale, name),
            ),
            Picture(
                "coverage",
                "Coverage",
                "Left: how often the truth lies inside the predicted central interval; below the diagonal the "
                "network is over-confident. Right: where in the predicted distribution the truths lie; in the grey "
                "band end 95 % of the bars of a calibrated network.",
                lambda: plots.coverage(scores.pit),
            ),
            Picture(
                "gallery",
                "Best and worst images",
                "Asinh stretch; below each image its id, true value, predicted mean and standard deviation.",
                lambda: gallery.gallery(_rows(scores), _captions(scores), scores.position, split),
            ),
        ]

    def headline(self, measured: dict[str, Any]) -> str:
        return f"regression of {measured['target']}" + (f" [{measured['unit']}]" if measured["unit"] else "")

    def tiles(self, measured: dict[str, Any]) -> list[tuple[str, str, str]]:
        m = measured
        return [
            ("MAE", number_text(m["mae"]), interval_text(m["mae_ci"])),
            ("Constant’s MAE", number_text(m["mae_constant"]), f"always saying {m['constant']:.4g}"),
            ("RMSE", number_text(m["rmse"]), f"R² {number_text(m['r2'], 3)}"),
            ("90 % coverage", percent_text(m["coverage"]["0.9"]), f"of 68 %: {percent_text(m['coverage']['0.68'])}"),
            ("NLL", number_text(m["nll"]), f"bias {m['bias']:+.4f}"),
            ("Images", f"{m['n']:,}", f"{m['split']} split"),
        ]

    def columns(self, scores: Scores[Value]) -> dict[str, Sequence[Any]]:
        return {"target": scores.truth, **scores.answer.columns()}


def _constant(bundle: Bundle, name: str, dataset: Dataset) -> float:
    """What a network that ignores the image would say: the prior's median, else the training split's."""
    target = next(t for spec in bundle.specs for t in spec.targets if t.name == name)
    if target.low is not None and target.high is not None:
        return (target.low + target.high) / 2
    if "train" in dataset.manifest.splits:
        known = dataset.split("train").params[:, dataset.manifest.parameter(name)]
        if np.isfinite(known).any():
            return float(np.nanmedian(known))
    return target.mean


def _rows(scores: Scores[Value]) -> list[gallery.Row]:
    """Best and worst in units of the predicted scale, narrowest and widest."""
    scale = scores.answer.scale
    z = np.abs(scores.answer.mean - scores.truth) / scale
    every = np.ones(len(z), dtype=bool)
    return [
        gallery.row("smallest error / scale", every, z),
        gallery.row("largest error / scale", every, -z),
        gallery.row("most certain: least scale", every, scale),
        gallery.row("least certain: largest scale", every, -scale),
    ]


def _captions(scores: Scores[Value]) -> list[str]:
    columns = scores.truth, scores.answer.mean, scores.answer.scale
    return [f"true {t:.4g}\npred. {m:.4g} ± {s:.2g}" for t, m, s in zip(*columns, strict=True)]
