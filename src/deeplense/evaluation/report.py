"""`evaluate`: a bundle and a stored dataset become a report that can be mailed."""

from __future__ import annotations

import base64
import csv
import datetime
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from deeplense import bundle as bundles
from deeplense.bundle import Bundle
from deeplense.data import schema
from deeplense.data.store import Dataset, Split
from deeplense.errors import UserError
from deeplense.evaluation import cards, gallery, metrics, plots
from deeplense.evaluation.scores import Scores, score

AXION_RANGES = {"[-24, -23.5]": (-24.0, -23.5), "[-23.5, -22]": (-23.5, -22.0)}


@dataclass
class Picture:
    """A figure of the report."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


def evaluate(
    bundle: str | Path,
    data: str | Path,
    out: str | Path,
    against: Sequence[str | Path] = (),
    split: str = "test",
    device: str = "auto",
    seed: int = 0,
) -> Path:
    """Report how good a bundle is on a split of a dataset; returns `OUT/index.html`.

    Writes beside it `metrics.json`, `predictions.csv` and `figures/*.png`; each file is replaced whole.

    Args:
        against: other bundles, compared on the same images by a paired bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: no such bundle, dataset or split; or images, classes or target that are not the bundle's.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    one, dataset = bundles.load(bundle, device), Dataset(data)
    images = dataset.split(split)
    rivals = [(path, bundles.load(path, device)) for path in against]
    for path, rival in rivals:
        _check_rival(one, rival, path)
    scores = score(one, dataset, images, "predict")
    summary = {**_measure(one, dataset, scores, seed), "split": split}
    summary["notes"] = cards.notes(one, dataset.manifest, split) + summary["notes"]
    summary["against"] = [_compare(p, r, one, scores, dataset, images, seed) for p, r in rivals]
    pictures = _pictures(one, scores, summary, images, _history(Path(bundle).parent / "history.csv"))
    figures = [_save_picture(out, picture) for picture in pictures]
    _write(out / "metrics.json", json.dumps(summary, indent=1, allow_nan=False))
    _write_predictions(out / "predictions.csv", one, scores, images)
    page = (
        _environment()
        .get_template("report.html")
        .render(
            metrics=summary,
            tiles=_tiles(summary),
            figures=figures,
            target=one.target,
            dataset_card=cards.dataset_card(dataset.manifest, dataset.folder),
            model_card=cards.model_card(one, Path(bundle)),
            limits=cards.limits(one),
            recipe=cards.recipe_yaml(one),
            title=f"{one.recipe.name} on {dataset.manifest.name}",
            version=version("deeplense"),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            seed=seed,
            resamples=metrics.RESAMPLES,
        )
    )
    _write(out / "index.html", page)
    print(f"wrote {out / 'index.html'}")
    return out / "index.html"


def _measure(one: Bundle, dataset: Dataset, scores: Scores, seed: int) -> dict[str, Any]:
    if one.target is None:
        return metrics.classification(scores.probabilities, scores.truth, one.classes, seed)
    name = one.target.name
    ranges = AXION_RANGES if name == "log10_m_axion" else {}
    constant = _constant(one, dataset)
    found = metrics.regression(
        scores.truth, scores.mean, scores.scale, scores.log_p, scores.pit, constant, ranges, seed
    )
    return {"task": found.pop("task"), "target": name, **found, "constant": constant}


def _constant(one: Bundle, dataset: Dataset) -> float:
    """What a network that ignores the image would say: the prior's median, else the training split's."""
    assert one.target is not None
    if one.target.low is not None and one.target.high is not None:
        return (one.target.low + one.target.high) / 2
    if "train" in dataset.manifest.splits:
        known = dataset.split("train").params[:, dataset.manifest.parameter(one.target.name)]
        if np.isfinite(known).any():
            return float(np.nanmedian(known))
    return one.target.mean


def _check_rival(one: Bundle, rival: Bundle, path: str | Path) -> None:
    mine, its = one.target and one.target.name, rival.target and rival.target.name
    if mine != its:
        raise UserError(
            f"--against {path}: it predicts {its or 'classes'}, not {mine or 'classes'}; compare bundles of one task"
        )


def _compare(
    path: str | Path, rival: Bundle, one: Bundle, scores: Scores, dataset: Dataset, images: Split, seed: int
) -> dict[str, Any]:
    theirs = score(rival, dataset, images, "against")
    about = {"bundle": str(path), "recipe": rival.recipe.name}
    if one.target is not None:
        return {**about, **metrics.compare_mae(scores.mean, theirs.mean, scores.truth, seed)}
    columns = [rival.classes.index(c) for c in one.classes]
    return {
        **about,
        **metrics.compare_auc(scores.probabilities, theirs.probabilities[:, columns], scores.truth, seed),
    }


def _pictures(
    one: Bundle, scores: Scores, summary: dict[str, Any], images: Split, history: dict[str, Any] | None
) -> list[Picture]:
    make = _class_pictures if one.target is None else _target_pictures
    pictures = make(one, scores, summary, images)
    if history is not None:
        metric = "accuracy" if one.target is None else "MAE"
        caption = "Every epoch of the training. The bundle holds the epoch of least validation loss."
        pictures.insert(-1, Picture("learning", "Learning curves", caption, lambda: plots.learning(history, metric)))
    return pictures


def _class_pictures(one: Bundle, scores: Scores, summary: dict[str, Any], images: Split) -> list[Picture]:
    p, truth, classes = scores.probabilities, scores.truth, one.classes
    return [
        Picture(
            "roc",
            "ROC curves",
            "Each class against the rest. Right: the same curves where false positives are rare.",
            lambda: plots.roc(p, truth, classes, summary["auc"]["per_class"]),
        ),
        Picture(
            "confusion",
            "Confusion matrix",
            "Rows are true classes. Percentages are shares of a row, with counts below.",
            lambda: plots.confusion(np.array(summary["confusion"]), classes),
        ),
        Picture(
            "reliability",
            "Reliability",
            "How often the predicted class is right, against the probability that it was given, in 15 bins "
            "of equal width with 95 % intervals. On the dotted line probabilities are what they say; below "
            "it the network is over-confident. ECE is the mean distance from that line, weighted by images.",
            lambda: plots.reliability(p, truth, summary["ece"]),
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
            lambda: gallery.gallery(gallery.class_rows(scores), scores, images, classes),
        ),
    ]


def _target_pictures(one: Bundle, scores: Scores, summary: dict[str, Any], images: Split) -> list[Picture]:
    assert one.target is not None
    # a unit that the name says already, as log10(eV) in log10_m_axion, is still a unit
    name = f"{one.target.name} [{one.target.unit}]" if one.target.unit else one.target.name
    truth, mean, scale = scores.truth, scores.mean, scores.scale
    return [
        Picture(
            "predicted",
            "Predicted against true",
            "Predicted means; on the dotted line they are right. A flat cloud means that the images do not "
            "say, and then the predicted standard deviations should be wide.",
            lambda: plots.predicted(truth, mean, scale, name),
        ),
        Picture(
            "errors",
            "Bias and scatter",
            "In eight equal bins of the true value. A network unsure of itself draws its mean towards the "
            "middle of the prior: a bias that is no fault. Scatter and bias together agree with the predicted "
            "standard deviation, averaged over all images, when that is calibrated.",
            lambda: plots.errors(truth, mean, scale, name),
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
            lambda: gallery.gallery(gallery.target_rows(scores), scores, images, one.classes),
        ),
    ]


def _tiles(m: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and small print of the headline figures."""

    def ci(pair: list[float] | None, digits: int = 4) -> str:
        return f"{pair[0]:.{digits}f} to {pair[1]:.{digits}f}" if pair else ""

    def number(x: float | None, digits: int = 4) -> str:
        return "–" if x is None else f"{x:.{digits}f}"

    def percent(x: float, digits: int = 1) -> str:
        return f"{100 * x:.{digits}f} %"

    if m["task"] == "classify":
        return [
            ("Macro AUC", number(m["auc"]["macro"]), ci(m["auc"]["macro_ci"])),
            ("Accuracy", percent(m["accuracy"], 2), " to ".join(percent(x, 2) for x in m["accuracy_ci"])),
            ("NLL", number(m["nll"]), f"{np.log(len(m['classes'])):.4f} when guessing"),
            ("ECE", number(m["ece"]), "0 is calibrated"),
            ("Images", f"{m['n']:,}", f"{m['split']} split"),
        ]
    return [
        ("MAE", number(m["mae"]), ci(m["mae_ci"])),
        ("Constant’s MAE", number(m["mae_constant"]), f"always saying {m['constant']:.4g}"),
        ("RMSE", number(m["rmse"]), f"R² {number(m['r2'], 3)}"),
        ("90 % coverage", percent(m["coverage"]["0.9"]), f"of 68 %: {percent(m['coverage']['0.68'])}"),
        ("NLL", number(m["nll"]), f"bias {m['bias']:+.4f}"),
        ("Images", f"{m['n']:,}", f"{m['split']} split"),
    ]


def _history(path: Path) -> dict[str, Any] | None:
    """Columns of a run's history.csv, if there is a readable one."""
    names = ("epoch", "train_loss", "val_loss", "val_metric", "lr")
    try:
        with open(path, newline="") as file:
            rows = [[float(row[name]) for name in names] for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return dict(zip(names, np.array(rows).T, strict=True)) if rows else None


def _save_picture(out: Path, picture: Picture) -> dict[str, str]:
    content = plots.png(picture.draw())
    with schema.atomic(out / "figures" / f"{picture.name}.png") as temporary:
        temporary.write_bytes(content)
    return {
        "name": picture.name,
        "title": picture.title,
        "caption": picture.caption,
        "uri": f"data:image/png;base64,{base64.b64encode(content).decode()}",
    }


def _write_predictions(path: Path, one: Bundle, scores: Scores, images: Split) -> None:
    ids = [images.ids[k] for k in scores.position]
    header: list[str]
    rows: Iterable[Sequence[Any]]
    if one.target is None:
        header = ["id", "label", *(f"p_{c}" for c in one.classes)]
        labels = (one.classes[k] for k in scores.truth)
        rows = ([i, c, *(f"{x:.8g}" for x in p)] for i, c, p in zip(ids, labels, scores.probabilities, strict=True))
    else:
        header = ["id", "target", "mean", "scale", "q05", "q95"]
        columns = np.stack([scores.truth, scores.mean, scores.scale, scores.q05, scores.q95], 1)
        rows = ([i, *(f"{x:.8g}" for x in row)] for i, row in zip(ids, columns, strict=True))
    with schema.atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write(path: Path, text: str) -> None:
    with schema.atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
