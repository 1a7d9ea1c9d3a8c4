"""The board's table, as CSV, JSON, Markdown and a page with pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deeplense.data import schema
from deeplense.data.store import Dataset
from deeplense.evaluation.plots import png
from deeplense.leaderboard import plots
from deeplense.leaderboard.board import Board
from deeplense.leaderboard.measure import interval_over_seeds

# key -> (heading, format); of the mean over seeds
COLUMNS = {
    "auc": ("macro AUC", "{:.4f}"),
    "accuracy": ("accuracy", "{:.4f}"),
    "mae": ("MAE", "{:.4f}"),
    "coverage_90": ("90 % intervals cover", "{:.3f}"),
    "nll": ("−log p", "{:.4f}"),
    "ece": ("ECE", "{:.4f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "epochs": ("epochs", "{:,.0f}"),
    "images_seen": ("images seen", "{:,.0f}"),
    "core_seconds": ("core-seconds", "{:,.0f}"),
    "images_s_train": ("images/s and core, training", "{:,.0f}"),
    "images_s_torch": ("images/s, torch", "{:,.0f}"),
    "images_s_onnx": ("images/s, ONNX", "{:,.0f}"),
    "share": ("share of the ideal", "{:.3f}"),
}


def collect(board: Board, out: Path) -> list[dict[str, Any]]:
    """A row an entry, the best first, and those that failed last."""
    rows = []
    for entry in board.entries:
        folders = [out / "entries" / entry.name / f"seed-{s}" for s in board.seeds]
        done = [f for f in folders if (f / "result.json").exists()]
        results = [json.loads((f / "result.json").read_text()) for f in done]
        failed = [json.loads((f / "failed.json").read_text())["why"] for f in folders if (f / "failed.json").exists()]
        row: dict[str, Any] = {"name": entry.name, "seeds": len(done), "failed": failed[0] if failed else ""}
        if results:
            keys = [k for k in results[0] if all(r.get(k) is not None for r in results)]
            row |= {k: float(np.mean([r[k] for r in results])) for k in keys if k != "seed"}
            row["images_s_train"] = row["images_seen"] / row["core_seconds"]
            metric = "auc" if "auc" in row else "mae"
            each = [float(r[metric]) for r in results]
            row |= {"metric": metric, "each": each, "ci": interval_over_seeds([_said(f) for f in done])}
            if metric in board.ideal:
                ideal = board.ideal[metric]
                row["share"] = (row["auc"] - 0.5) / (ideal - 0.5) if metric == "auc" else ideal / row["mae"]
            row["curves"] = [_curve(f / "run" / "history.csv", r) for f, r in zip(done, results, strict=True)]
        rows.append(row)
    return sorted(rows, key=_rank)


def write(board: Board, rows: list[dict[str, Any]], dataset: Dataset, out: Path) -> Path:
    """All files; returns the page."""
    shown = {k: c for k, c in COLUMNS.items() if any(k in row for row in rows)}
    _text(out / "leaderboard.json", json.dumps({"recipe": board.base.name, "entries": rows}, indent=1))
    _text(out / "leaderboard.csv", _csv(rows, shown))
    _text(out / "leaderboard.md", _markdown(rows, shown))
    trained = [row for row in rows if row["seeds"]]
    figures = {name: png(draw(trained)) for name, draw in plots.FIGURES.items()}
    for name, content in figures.items():
        with schema.atomic(out / f"{name}.png") as temporary:
            temporary.write_bytes(content)
    here = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    page = here.get_template("leaderboard.html").render(
        name=board.base.name,
        splits=dataset.manifest.splits,
        seeds=board.seeds,
        headings=["entry", *(h for k, (h, _) in shown.items())],
        rows=[[row["name"], *_cells(row, shown)] for row in trained],
        failed=[(row["name"], row["failed"]) for row in rows if row["failed"]],
        figures={k: base64.b64encode(v).decode() for k, v in figures.items()},
        captions=plots.CAPTIONS,
    )
    _text(out / "index.html", page)
    print(_markdown(rows, {k: shown[k] for k in shown if k in ("auc", "accuracy", "mae", "core_seconds")}))
    print(f"wrote {out / 'index.html'}")
    return out / "index.html"


def _rank(row: dict[str, Any]) -> float:
    if not row["seeds"]:
        return float("inf")
    return float(-row["auc"] if "auc" in row else row["mae"])


def _cells(row: dict[str, Any], shown: dict[str, tuple[str, str]]) -> list[str]:
    cells = []
    for key, (_, form) in shown.items():
        cell = form.format(row[key]) if key in row else "–"
        if key == row.get("metric"):
            low, high = (form.format(v) for v in row["ci"])
            cell += f" [{low}, {high}]"
        cells.append(cell)
    return cells


def _markdown(rows: list[dict[str, Any]], shown: dict[str, tuple[str, str]]) -> str:
    lines = [f"| entry | {' | '.join(h for h, _ in shown.values())} |", "|---" * (len(shown) + 1) + "|"]
    lines += [f"| {row['name']} | {' | '.join(_cells(row, shown))} |" for row in rows if row["seeds"]]
    return "\n".join(lines)


def _csv(rows: list[dict[str, Any]], shown: dict[str, tuple[str, str]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["entry", "seeds", *shown, "ci_low", "ci_high", "failed"])
    for row in rows:
        writer.writerow(
            [row["name"], row["seeds"], *(row.get(k, "") for k in shown), *row.get("ci", ["", ""]), row["failed"]]
        )
    return file.getvalue()


def _said(folder: Path) -> dict[str, Any]:
    with np.load(folder / "said.npz") as file:
        return dict(file)


def _curve(path: Path, result: dict[str, Any]) -> list[list[float]]:
    """Images seen so far, and the validation metric, epoch by epoch."""
    with open(path, newline="") as file:
        metric = [float(row["val_metric"]) for row in csv.DictReader(file)]
    return [[result["images_seen"] * (k + 1) / result["epochs"], m] for k, m in enumerate(metric)]


def _text(path: Path, text: str) -> None:
    with schema.atomic(path) as temporary:
        temporary.write_text(text)
