"""`evaluate`: figures, table and page."""

from __future__ import annotations

import base64
import csv
import datetime
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deeplense import bundle as bundles
from deeplense.answers import Answer, Classes, Value
from deeplense.bundle import Bundle
from deeplense.data import schema
from deeplense.data.store import Dataset, Split
from deeplense.errors import UserError
from deeplense.evaluation import metrics, plots
from deeplense.evaluation.report import cards
from deeplense.evaluation.report.base import Evaluation, Picture, Scores
from deeplense.evaluation.report.classes import ClassEvaluation
from deeplense.evaluation.report.scores import score
from deeplense.evaluation.report.values import ValueEvaluation

EVALUATIONS: dict[type, Evaluation[Any]] = {Classes: ClassEvaluation(), Value: ValueEvaluation()}

Scored = Mapping[str, Scores[Answer]]


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
    scored = score(one, dataset, images, EVALUATIONS)
    measured = {name: _of(s).measure(one, s, dataset, seed) for name, s in scored.items()}
    theirs = [(path, rival, score(rival, dataset, images, EVALUATIONS, "against")) for path, rival in rivals]
    for name, m in measured.items():
        m["split"] = split
        m["against"] = [_compare(scored[name], s[name], path, r, seed) for path, r, s in theirs]
    summary = _summary(measured)
    missing = [
        f"The data do not know '{name}': that answer is not judged here."
        for name in one.answers()
        if name not in scored
    ]
    summary["notes"] = cards.notes(one, dataset.manifest, split) + missing + summary["notes"]
    parts = [_part(one, s, measured[name], images, out, len(scored) > 1) for name, s in scored.items()]
    learning = _learning(one, Path(bundle).parent / "history.csv", out)
    _write(out / "metrics.json", json.dumps(summary, indent=1, allow_nan=False))
    _write_predictions(out / "predictions.csv", scored, images)
    page = (
        _environment()
        .get_template("report.html")
        .render(
            metrics=summary,
            parts=parts,
            learning=learning,
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


def _of(scores: Scores[Answer]) -> Evaluation[Any]:
    return EVALUATIONS[type(scores.answer)]


def _summary(measured: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """`metrics.json`: of one answer its metrics; of several those of the first, and all of them under `answers`."""
    first = dict(next(iter(measured.values())))
    if len(measured) > 1:
        first["answers"] = dict(measured)
        first["notes"] = [note for m in measured.values() for note in m["notes"]]
    return first


def _check_rival(one: Bundle, rival: Bundle, path: str | Path) -> None:
    if one.answers() != rival.answers():
        mine, its = (", ".join(b.answers()) for b in (one, rival))
        raise UserError(f"--against {path}: it predicts {its}, not {mine}; compare bundles of one task")


def _compare(
    mine: Scores[Answer], theirs: Scores[Answer], path: str | Path, rival: Bundle, seed: int
) -> dict[str, Any]:
    return {"bundle": str(path), "recipe": rival.recipe.name, **_of(mine).compare(mine, theirs, seed)}


def _part(
    one: Bundle, scores: Scores[Answer], measured: dict[str, Any], images: Split, out: Path, several: bool
) -> dict[str, Any]:
    """What the page shows of one answer."""
    kind = _of(scores)
    pictures = kind.pictures(one, scores, measured, images)
    prefix = f"{scores.name}-" if several else ""
    return {
        "name": scores.name if several else "",
        "headline": kind.headline(measured),
        "page": kind.page,
        "metrics": measured,
        "metric": kind.metric,
        "better": kind.better,
        "tiles": kind.tiles(measured),
        "figures": [_save_picture(out, picture, prefix) for picture in pictures],
    }


def _learning(one: Bundle, history: Path, out: Path) -> dict[str, str] | None:
    """Learning curves, where the run's history is beside the bundle."""
    columns = _history(history)
    if columns is None:
        return None
    metric = next(iter(one.heads.values())).metric_name
    caption = "Every epoch of the training. The bundle holds the epoch of least validation loss."
    picture = Picture("learning", "Learning curves", caption, lambda: plots.learning(columns, metric))
    return _save_picture(out, picture, "")


def _history(path: Path) -> dict[str, Any] | None:
    """Columns of a run's history.csv, if there is a readable one."""
    names = ("epoch", "train_loss", "val_loss", "val_metric", "lr")
    try:
        with open(path, newline="") as file:
            rows = [[float(row[name]) for name in names] for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return dict(zip(names, np.array(rows).T, strict=True)) if rows else None


def _save_picture(out: Path, picture: Picture, prefix: str) -> dict[str, str]:
    content = plots.png(picture.draw())
    with schema.atomic(out / "figures" / f"{prefix}{picture.name}.png") as temporary:
        temporary.write_bytes(content)
    return {
        "name": picture.name,
        "title": picture.title,
        "caption": picture.caption,
        "uri": f"data:image/png;base64,{base64.b64encode(content).decode()}",
    }


def _write_predictions(path: Path, scored: Scored, images: Split) -> None:
    """A row for every image with any truth; what is not known of it stays empty."""
    every = np.unique(np.concatenate([s.position for s in scored.values()]))
    table: dict[str, list[str]] = {"id": [images.ids[k] for k in every]}
    for name, scores in scored.items():
        rows = np.searchsorted(every, scores.position)
        alike = sum(type(s.answer) is type(scores.answer) for s in scored.values())
        for column, values in _of(scores).columns(scores).items():
            cells = table.setdefault(column if alike == 1 else f"{column}_{name}", [""] * len(every))
            for row, value in zip(rows, values, strict=True):
                cells[row] = value if isinstance(value, str) else f"{value:.8g}"
    with schema.atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


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
