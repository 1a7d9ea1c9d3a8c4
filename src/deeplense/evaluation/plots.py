"""Figures of the report. Each function returns a `Figure`; nothing touches pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from deeplense.evaluation import calibration, metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Okabe & Ito: told apart by colour-blind readers
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
INK, MUTED, FAINT = "#222222", "#6B7280", "#E5E7EB"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.edgecolor": "#9CA3AF",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": "#9CA3AF",
    "ytick.color": "#9CA3AF",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
}
styled = mpl.rc_context(STYLE)


def png(figure: Figure) -> bytes:
    """The figure as a PNG of 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def plain(text: str) -> str:
    """Names as they are: matplotlib takes what stands between two dollars for mathematics, and hides from a legend
    what begins with an underscore."""
    text = text.replace("$", r"\$")
    return f"\u2060{text}" if text.startswith("_") else text


def color(k: int) -> str:
    """Of the k-th class."""
    return COLORS[k % len(COLORS)]


@styled
def roc(probabilities: Floats, labels: Ints, classes: Sequence[str], auc: dict[str, Any]) -> Figure:
    """One-vs-rest ROC curves, and the same with a logarithmic false-positive rate, where rare lenses live."""
    figure = Figure(figsize=(8.6, 4.0))
    whole, rare = figure.subplots(1, 2)
    floor = 1 / max(min((labels != k).sum() for k in range(len(classes))), 10)
    for k, name in enumerate(classes):
        if auc[name] is None:
            continue
        false, true, _ = roc_curve(labels == k, probabilities[:, k])
        style = "-" if k < len(COLORS) else "--"
        whole.plot(false, true, style, color=color(k), label=plain(f"{name}  {auc[name]:.4f}"))
        rare.plot(np.maximum(false, floor), true, style, color=color(k))
    line = np.geomspace(floor, 1, 100)
    whole.plot([0, 1], [0, 1], ":", color=MUTED, lw=1)
    rare.plot(line, line, ":", color=MUTED, lw=1)
    whole.set(xlabel="false-positive rate", ylabel="true-positive rate", xlim=(-0.02, 1), ylim=(0, 1.02))
    rare.set(xlabel="false-positive rate (logarithmic)", xscale="log", xlim=(floor, 1), ylim=(0, 1.02))
    if any(area is not None for area in auc.values()):
        whole.legend(loc="lower right", title="area under the curve", title_fontsize=9)
    return figure


@styled
def confusion(counts: NDArray[Any], classes: Sequence[str]) -> Figure:
    """Rows are the truth; colour and percentage are shares of a row, counts below."""
    n = len(classes)
    figure = Figure(figsize=(2.4 + 0.95 * n, 1.5 + 0.85 * n))
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i in range(n):
        for j in range(n):
            ink = "white" if share[i, j] > 0.65 else INK
            axes.text(j, i - 0.1, f"{100 * share[i, j]:.1f} %", ha="center", va="center", color=ink, fontsize=11)
            axes.text(j, i + 0.2, f"{counts[i, j]:,}", ha="center", va="center", color=ink, fontsize=8.5)
    names = [plain(name) for name in classes]
    axes.set_xticks(range(n), names, rotation=0 if n <= 5 else 45)
    axes.set_yticks(range(n), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@styled
def reliability(probabilities: Floats, labels: Ints, ece: float) -> Figure:
    """Accuracy against confidence with 95 % intervals, and how often each confidence occurs."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    mean, accuracy, n = calibration.reliability(confidence, correct)
    low, high = calibration.wilson(accuracy, n)
    figure = Figure(figsize=(4.6, 4.8))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    start = 1 / probabilities.shape[1]
    top.plot([0, 1], [0, 1], ":", color=MUTED, lw=1)
    errors = np.maximum([accuracy - low, high - accuracy], 0)
    top.errorbar(mean, accuracy, errors, fmt="o-", ms=5, color=COLORS[0], ecolor="#7FB8D8", elinewidth=1.4)
    top.text(0.96, 0.06, f"ECE {ece:.4f}", transform=top.transAxes, color=INK, ha="right")
    top.set(ylabel="accuracy", xlim=(start - 0.03, 1.02), ylim=(min(start, low.min()) - 0.03, 1.02))
    bottom.hist(confidence, np.linspace(0, 1, calibration.BINS + 1), color=COLORS[0], alpha=0.75, log=True)
    bottom.set(xlabel="confidence: probability of the predicted class", ylabel="images", ylim=(0.7, 2 * n.max()))
    bottom.yaxis.set_minor_formatter(NullFormatter())
    return figure


@styled
def class_scores(probabilities: Floats, labels: Ints, classes: Sequence[str]) -> Figure:
    """Probability of each class, for images of each true class."""
    columns = min(len(classes), 3)
    rows = -(-len(classes) // columns)
    figure = Figure(figsize=(2.95 * columns + 0.3, 2.5 * rows + 0.5))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    bins = np.linspace(0, 1, 31)
    for k, axes in enumerate(panels.flat):
        if k >= len(classes):
            axes.set_visible(False)
            continue
        for j, name in enumerate(classes):
            style: dict[str, Any] = {"lw": 2.2 if j == k else 1.3, "color": color(j)}
            axes.hist(probabilities[labels == j, k], bins, histtype="step", log=True, label=plain(name), **style)
        axes.set(title=plain(f"probability of {classes[k]}"), xlim=(0, 1), xticks=(0, 0.25, 0.5, 0.75, 1))
        axes.set_xticklabels(("0", "", "0.5", "", "1"))
        if k % columns == 0:
            axes.set_ylabel("images")
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, [f"true {n}" for n in names], loc="outside lower center", ncols=min(len(names), 4))
    return figure


@styled
def predicted(truth: Floats, mean: Floats, scale: Floats, name: str) -> Figure:
    """Predicted against true: a density of all images and, right, a few with their predicted error bars."""
    figure = Figure(figsize=(8.8, 4.2))
    density, some = figure.subplots(1, 2, sharex=True, sharey=True)
    low, high = min(truth.min(), mean.min()), max(truth.max(), mean.max())
    if len(truth) >= 500:
        edges = np.linspace(low, high, 51)
        *_, mesh = density.hist2d(truth, mean, [edges, edges], cmap="Blues", cmin=1)
        figure.colorbar(mesh, ax=density, label="images", pad=0.02)
    else:
        density.plot(truth, mean, "o", ms=4, color=COLORS[0], alpha=0.6, mec="none")
    shown = np.argsort(truth)[np.linspace(0, len(truth) - 1, min(len(truth), 60)).astype(int)]
    bars: dict[str, Any] = {"ms": 3.5, "color": COLORS[0], "ecolor": "#7FB8D8", "elinewidth": 1}
    some.errorbar(truth[shown], mean[shown], scale[shown], fmt="o", **bars)
    for axes in (density, some):
        axes.plot([low, high], [low, high], ":", color=INK, lw=1.2)
        axes.set(xlabel=plain(f"true {name}"), xlim=_margin(truth))
        axes.xaxis.set_major_locator(MaxNLocator(6))
    density.set(ylabel=plain(f"predicted {name}"), title=f"all {len(truth):,} images")
    some.set_title(f"{len(shown)} of them, with predicted standard deviations")
    return figure


@styled
def errors(truth: Floats, mean: Floats, scale: Floats, name: str) -> Figure:
    """Bias and scatter in bins of the truth; the whole error beside what the network claims."""
    bins = metrics.in_bins(truth, mean)
    figure = Figure(figsize=(8.6, 3.6))
    left, right = figure.subplots(1, 2)
    left.axhline(0, color=MUTED, lw=1, ls=":")
    left.errorbar(bins["centre"], bins["bias"], 1.96 * bins["bias_error"], fmt="o-", color=COLORS[0], ms=5)
    left.set(xlabel=plain(f"true {name}"), ylabel="mean of predicted − true", title="bias, with 95 % intervals")
    claimed = metrics.in_bins(truth, truth + scale)["bias"]
    whole = np.hypot(bins["bias"], bins["scatter"])
    right.plot(bins["centre"], bins["scatter"], "o-", color=COLORS[0], ms=5, label="scatter of predicted − true")
    right.plot(bins["centre"], whole, "^:", color=COLORS[2], ms=5, label="scatter and bias together")
    right.plot(bins["centre"], claimed, "s--", color=COLORS[1], ms=4, label="mean predicted standard deviation")
    right.set(xlabel=plain(f"true {name}"), ylabel="size of the error", title="scatter")
    right.set_ylim(0, 1.5 * max(whole.max(initial=0), claimed.max(initial=0), 1e-9))
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(6))
    return figure


@styled
def coverage(pit: Floats) -> Figure:
    """Share of truths inside central intervals, and where in its distribution each truth lies."""
    figure = Figure(figsize=(8.6, 3.8))
    left, right = figure.subplots(1, 2)
    level = np.linspace(0, 1, 101)
    low, high = calibration.wilson(level, len(pit))
    left.fill_between(level, low, high, color=FAINT, lw=0, label="95 % band of a calibrated network")
    left.plot(level, level, ":", color=MUTED, lw=1)
    left.plot(level, calibration.coverage(pit, level), color=COLORS[0], label="this network")
    left.set(
        xlabel="probability of the predicted interval",
        ylabel="share of truths inside",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    left.legend(loc="upper left")
    bins = 20 if len(pit) >= 400 else 10
    right.hist(pit, np.linspace(0, 1, bins + 1), weights=np.full(len(pit), bins / len(pit)), color="#7FB8D8")
    low, high = calibration.wilson(1 / bins, len(pit))
    right.axhspan(low * bins, high * bins, color=INK, alpha=0.1, lw=0)
    right.axhline(1, color=MUTED, lw=1.2, ls=":")
    right.set(xlabel="predicted cumulative probability of the truth", ylabel="density", xlim=(0, 1))
    right.set_title("flat when calibrated, ∪ when over-confident")
    return figure


@styled
def learning(history: dict[str, Floats], metric: str) -> Figure:
    """Losses, validation metric and learning rate over the epochs; `history`: columns of history.csv."""
    figure = Figure(figsize=(8.6, 3.2))
    panels = figure.subplots(1, 3)
    epoch, marker = history["epoch"], "o-" if len(history["epoch"]) < 40 else "-"
    panels[0].plot(epoch, history["train_loss"], marker, ms=3, color=COLORS[0], label="training")
    panels[0].plot(epoch, history["val_loss"], marker, ms=3, color=COLORS[1], label="validation")
    panels[0].set_title("loss: −log p")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high + 0.2 * (high - low))  # room for the legend
    panels[0].legend(loc="upper right", ncols=2, columnspacing=1, handlelength=1.2)
    panels[1].plot(epoch, history["val_metric"], marker, ms=3, color=COLORS[1])
    panels[1].set_title(f"validation {metric}")
    panels[2].plot(epoch, history["lr"], marker, ms=3, color=COLORS[6])
    panels[2].set_title("learning rate")
    if (history["lr"] > 0).all():
        panels[2].set_yscale("log")
        panels[2].yaxis.set_minor_formatter(NullFormatter())
    for axes in panels:
        _epochs(axes)
    return figure


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _margin(x: Floats) -> tuple[float, float]:
    """A range that leaves 3 % free on both sides."""
    free = 0.03 * max(float(np.ptp(x)), 1e-9)
    return float(x.min()) - free, float(x.max()) + free
