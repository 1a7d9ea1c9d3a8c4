"""The board's pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from deeplense.evaluation.plots import COLORS, MUTED, plain, styled

Rows = Sequence[dict[str, Any]]
MARKERS = "osD^vP*X"
CAPTIONS = {
    "quality": "Test figure of each entry: dots are seeds, bars the 95 % interval over images and seeds.",
    "cost": "What it takes to be that good: core-seconds of training.",
    "speed": "What it takes to ask: whole predictions a second on one core.",
    "curves": "The validation metric against the images seen in training, seed by seed.",
}
NAMES = {"auc": "macro AUC", "mae": "MAE"}


@styled
def quality(rows: Rows) -> Figure:
    figure = Figure(figsize=(7.5, 0.6 + 0.36 * len(rows)))
    axes = figure.add_subplot()
    for k, row in enumerate(reversed(rows)):
        color = COLORS[0]
        axes.plot(row["ci"], [k, k], color=color, alpha=0.45, linewidth=5, solid_capstyle="butt")
        axes.plot(row["each"], [k] * len(row["each"]), "o", color=color, markersize=4)
        axes.plot(row[row["metric"]], k, "|", color="black", markersize=12)
    axes.set_yticks(range(len(rows)), [plain(row["name"]) for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(NAMES[rows[0]["metric"]])
    return figure


@styled
def cost(rows: Rows) -> Figure:
    return _against(rows, "core_seconds", "core-seconds of training")


@styled
def speed(rows: Rows) -> Figure:
    asked = [row for row in rows if "images_s_onnx" in row] or list(rows)
    key = "images_s_onnx" if "images_s_onnx" in asked[0] else "images_s_torch"
    return _against(asked, key, f"images/s, {'ONNX' if key.endswith('onnx') else 'torch'}, one core")


@styled
def curves(rows: Rows) -> Figure:
    figure = Figure(figsize=(7.5, 4.6))
    axes = figure.add_subplot()
    for k, row in enumerate(rows):
        for j, curve in enumerate(row["curves"]):
            n, metric = zip(*curve, strict=True)
            style = "-" if k < len(COLORS) else "--"
            label = plain(row["name"]) if j == 0 else None
            axes.plot(n, metric, style, color=COLORS[k % len(COLORS)], linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("images seen")
    axes.set_ylabel("accuracy on the validation split" if rows[0]["metric"] == "auc" else "MAE, validation split")
    figure.legend(loc="outside right upper")
    return figure


FIGURES: dict[str, Callable[[Rows], Figure]] = {"quality": quality, "cost": cost, "speed": speed, "curves": curves}


def _against(rows: Rows, key: str, label: str) -> Figure:
    figure = Figure(figsize=(7.5, 4.6))
    axes = figure.add_subplot()
    for k, row in enumerate(rows):
        low, high = row["ci"]
        y = row[row["metric"]]
        color, marker = COLORS[k % len(COLORS)], MARKERS[k // len(COLORS) % len(MARKERS)]
        axes.plot([row[key]] * 2, [low, high], color=MUTED, linewidth=1)
        axes.plot(row[key], y, marker, color=color, markersize=7, linestyle="none", label=plain(row["name"]))
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel(NAMES[rows[0]["metric"]])
    figure.legend(loc="outside right upper")
    return figure
