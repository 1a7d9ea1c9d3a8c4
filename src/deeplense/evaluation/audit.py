"""`audit`: can a trivial feature give the class away? Simple features, each and together, against the class."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from deeplense import rng
from deeplense.data import schema
from deeplense.data.store import Dataset, Split
from deeplense.errors import UserError
from deeplense.evaluation import features, metrics, plots, separability

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOGETHER, ORDER = "together", "file_order"
LEAK = 0.52  # an interval that lies above this is a leak
FEWEST = 50  # images of a class
WIDE = 0.02  # half-width of an interval above which a small leak can hide
BATCH = 256


def audit(
    dataset: str | Path, out: str | Path, split: str = "train", most: int = 20_000, seed: int = 0
) -> dict[str, Any]:
    """Can a trivial feature give the class away? AUC of simple features, each and together, for every pair of classes.

    Writes `OUT/audit.json`, `table.csv` (a row for each feature and pair, and its macro AUC) and `leaks.png`; each
    file is replaced whole. `audit.json`:

        dataset, fingerprint, split, seed, folds, resamples, threshold
        n: images used. classes: {name: images used}
        features: {group: {columns, macro, macro_ci, pairs: [{first, second, auc, ci}, …]}}, where macro is the mean
            one-vs-rest AUC, ci a bootstrap 95 % interval, and the groups are those of `features.FEATURES`, then
            "together" (all of these) and "file_order". The order of files is no feature of an image and is often that
            of the classes, one folder after the other, so it is judged apart.
        worst: {feature, first, second, auc, ci} of the feature of an image that leaks most; null when none leaks
        leaks: [names of groups with an interval above the threshold]
        notes: cautions. sentence: the verdict

    Args:
        dataset: its folder.
        out: the folder to write.
        most: images used, drawn at random, the same number of each class if there are as many.
        seed: of the choice of images, the folds and the bootstrap.

    Returns:
        The content of `audit.json`.

    Raises:
        UserError: no such dataset or split, fewer than two classes with labels, or too few images of one.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    data = Dataset(dataset)
    images = data.split(split)
    position, names = _choose(data, images, most, seed)
    present, labels = np.unique(images.labels[position], return_inverse=True)
    names = [names[k] for k in present]
    groups = _measure(images, position)
    pairs = separability.pairs(len(names))
    areas = separability.areas(groups, labels, seed)
    found = {
        name: _summary(groups[name].shape[1], value, drawn, pairs, names) for name, (value, drawn) in areas.items()
    }
    result = {
        "dataset": data.manifest.name,
        "fingerprint": data.manifest.fingerprint,
        "split": split,
        "seed": seed,
        "folds": separability.FOLDS,
        "resamples": metrics.RESAMPLES,
        "threshold": LEAK,
        "n": len(labels),
        "classes": {name: int((labels == k).sum()) for k, name in enumerate(names)},
        "features": found,
        **_verdict(found),
        "notes": _notes(found, [c for c in data.manifest.classes if c not in names]),
    }
    _write(out / "table.csv", _csv(found).encode())
    _write(out / "leaks.png", plots.png(draw(result)))
    _write(out / "audit.json", json.dumps(result, indent=1, allow_nan=False).encode())
    print(f"wrote {out / 'audit.json'}, table.csv and leaks.png\n")
    print(_table(result))
    return result


def _choose(data: Dataset, images: Split, most: int, seed: int) -> tuple[Ints, list[str]]:
    """Positions of at most `most` labelled images, in order, and the names of all classes."""
    names, where = data.manifest.classes, f"{data.folder}: split '{images.name}'"
    have = {k: np.flatnonzero(images.labels == k) for k in range(len(names))}
    have = {k: rows for k, rows in have.items() if len(rows)}
    if not have:
        raise UserError(f"{where} has no labels; audit a split that has, or import the data with --classes")
    if len(have) == 1:
        raise UserError(f"{where} has one class only, '{names[next(iter(have))]}'; there is nothing to tell apart")
    share = most // len(have)
    if share < FEWEST:
        raise UserError(
            f"--most {most}: an audit of {len(have)} classes needs {FEWEST} images of each, {FEWEST * len(have)} in all"
        )
    few = [f"{len(rows)} of '{names[k]}'" for k, rows in have.items() if len(rows) < FEWEST]
    if few:
        raise UserError(f"{where} has only {', '.join(few)}; an audit needs {FEWEST} images of each class: add some")
    draw = rng.generator(seed, "audit/images")
    return np.sort(np.concatenate([draw.permutation(rows)[:share] for rows in have.values()])), names


def _measure(images: Split, position: Ints) -> dict[str, Floats]:
    """(N, k) of every group; `together` and `file_order` last."""
    parts = []
    with tqdm(total=len(position), desc="measure", unit="image", disable=None) as bar:
        for start in range(0, len(position), BATCH):
            here = position[start : start + BATCH]
            parts.append(features.measure(images.images(here)))
            bar.update(len(here))
    groups = {name: np.concatenate([part[name] for part in parts]) for name in features.FEATURES}
    groups[TOGETHER] = np.concatenate(list(groups.values()), 1)
    groups[ORDER] = features.file_order(position, [images.ids[k] for k in position])
    return groups


def _summary(
    columns: int, value: Floats, drawn: Floats, pairs: Sequence[tuple[int, int]], names: Sequence[str]
) -> dict[str, Any]:
    return {
        "columns": columns,
        "macro": float(value[-1]),
        "macro_ci": metrics.interval(drawn[:, -1]),
        "pairs": [
            {"first": names[a], "second": names[b], "auc": float(value[p]), "ci": metrics.interval(drawn[:, p])}
            for p, (a, b) in enumerate(pairs)
        ],
    }


def worst(group: dict[str, Any]) -> dict[str, Any]:
    """The pair that a group of features tells apart best."""
    pair: dict[str, Any] = max(group["pairs"], key=lambda p: (p["auc"], p["ci"][0]))
    return pair


def _leaks(group: dict[str, Any]) -> bool:
    return any(p["ci"][0] > LEAK for p in group["pairs"])


def _verdict(found: dict[str, Any]) -> dict[str, Any]:
    """Which groups leak, the worst feature of an image, and one sentence."""
    leaks = [name for name, group in found.items() if _leaks(group)]
    alone = [name for name in leaks if name in features.FEATURES]
    order = _told(worst(found[ORDER])) if ORDER in leaks else ""
    best = max(alone, key=lambda name: (worst(found[name])["auc"], worst(found[name])["ci"][0]), default=None)
    all_of_it = worst(found[TOGETHER])
    if best is not None:
        text = f"{best} leaks most: alone it tells {_told(worst(found[best]))}"
        text += f"; all features of an image together tell {_told(all_of_it)}" if TOGETHER in leaks else ""
    elif TOGETHER in leaks:
        text = f"No feature of an image leaks alone, but together they tell {_told(all_of_it)}"
    else:
        text = f"No simple feature of an image, alone or together, tells two classes apart with an AUC above {LEAK:g}"
    if order:
        text += f"; file_order leaks: it tells {order}, so shuffle before anything reads the files in order"
    return {
        "worst": None if best is None else {"feature": best, **worst(found[best])},
        "leaks": leaks,
        "sentence": text + ".",
    }


def _told(pair: dict[str, Any]) -> str:
    low, high = pair["ci"]
    return f"{pair['first']} from {pair['second']} with an AUC of {pair['auc']:.3f} ({low:.3f} to {high:.3f})"


def _notes(found: dict[str, Any], absent: Sequence[str]) -> list[str]:
    width = max((p["ci"][1] - p["ci"][0]) / 2 for p in found[TOGETHER]["pairs"])
    notes = [f"No image of {', '.join(absent)} in this split."] if absent else []
    if width > WIDE:
        notes.append(f"Intervals reach ±{width:.3f}: a leak smaller than that can hide; audit more images.")
    return notes


def _csv(found: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["feature", "first", "second", "auc", "low", "high"])
    for name, group in found.items():
        rows = [("each", "rest", group["macro"], group["macro_ci"])]
        rows += [(p["first"], p["second"], p["auc"], p["ci"]) for p in group["pairs"]]
        writer.writerows([name, a, b, *(f"{x:.6f}" for x in (auc, *ci))] for a, b, auc, ci in rows)
    return text.getvalue()


def _table(result: dict[str, Any]) -> str:
    """What is printed: a line for each group, cautions, the sentence."""
    lines = [f"{'feature':<19} {'macro AUC':<22} worst pair"]
    for name, group in result["features"].items():
        low, high = group["macro_ci"]
        pair = worst(group)
        mark = "  <- leaks" if name in result["leaks"] else ""
        lines.append(
            f"{name:<19} {group['macro']:.3f} [{low:.3f}, {high:.3f}]   {pair['auc']:.3f} "
            f"[{pair['ci'][0]:.3f}, {pair['ci'][1]:.3f}] {pair['first']} | {pair['second']}{mark}"
        )
    return "\n".join([*lines, "", *result["notes"], result["sentence"]])


@plots.styled
def draw(result: dict[str, Any]) -> Figure:
    """Macro and worst-pair AUC of every group with intervals; the pairs of classes, all features together."""
    groups, names = result["features"], list(result["classes"])
    size = max(2.6, 0.75 * len(names))
    figure = Figure(figsize=(6.6 + size, max(4.2, 1.6 + size)))
    left, right = figure.subplots(1, 2, width_ratios=(5.2, size))
    for row, (name, group) in enumerate(reversed(groups.items())):
        pair = worst(group)
        hot = plots.COLORS[1] if name in result["leaks"] else plots.COLORS[0]
        _dot(left, row - 0.14, group["macro"], group["macro_ci"], plots.MUTED, "s", 4)
        _dot(left, row + 0.14, pair["auc"], pair["ci"], hot, "o", 6)
    left.axvline(0.5, color=plots.MUTED, lw=1, ls=":")
    left.axvline(LEAK, color=plots.COLORS[1], lw=1, ls="--")
    ends = [x for g in groups.values() for ci in (g["macro_ci"], worst(g)["ci"]) for x in ci]
    low, high = min(0.48, min(ends)), max(0.6, max(ends))
    left.set(xlim=(low - 0.02, high + 0.02), ylim=(-0.6, len(groups) - 0.4), xlabel="AUC, with 95 % intervals")
    left.set_yticks(range(len(groups)), [n.replace("_", " ") for n in reversed(groups)])
    left.axhline(0.5, color=plots.MUTED, lw=0.8)
    left.axhline(1.5, color=plots.MUTED, lw=0.8)
    left.set_title(plots.plain(f"{result['dataset']}, {result['split']}: {result['n']:,} images"))
    for label, hue, marker in (
        ("worst pair, leaks", plots.COLORS[1], "o"),
        ("worst pair", plots.COLORS[0], "o"),
        ("macro", plots.MUTED, "s"),
    ):
        left.plot([], [], marker, color=hue, ms=5, label=label)
    left.plot([], [], ls="--", lw=1, color=plots.COLORS[1], label=f"{LEAK:g}: a leak above")
    figure.legend(loc="outside lower left", ncols=4)
    _matrix(right, groups[TOGETHER]["pairs"], names)
    return figure


def _dot(axes: Axes, y: float, x: float, ci: Sequence[float], color: str, marker: str, size: float) -> None:
    errors = np.maximum([[x - ci[0]], [ci[1] - x]], 0)
    axes.errorbar([x], [y], xerr=errors, fmt=marker, ms=size, color=color, elinewidth=1.4)


def _matrix(axes: Axes, pairs: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Lower triangle: AUC of each pair, its interval below."""
    grid = np.full((len(names), len(names)), np.nan)
    for p in pairs:
        i, j = names.index(p["second"]), names.index(p["first"])
        grid[i, j] = p["auc"]
        ink = "white" if p["auc"] > 0.8 else plots.INK
        axes.text(j, i - 0.12, f"{p['auc']:.3f}", ha="center", va="center", color=ink, fontsize=10)
        axes.text(j, i + 0.2, "{:.3f}-{:.3f}".format(*p["ci"]), ha="center", va="center", color=ink, fontsize=6.5)
    axes.imshow(grid[1:, :-1], cmap="Oranges", vmin=0.5, vmax=1, extent=(-0.5, len(names) - 1.5, len(names) - 0.5, 0.5))
    labels = [plots.plain(name) for name in names]
    axes.set_xticks(range(len(names) - 1), labels[:-1], rotation=0 if len(names) <= 3 else 45)
    axes.set_yticks(range(1, len(names)), labels[1:])
    axes.set_title("all features together")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _write(path: Path, content: bytes) -> None:
    with schema.atomic(path) as temporary:
        temporary.write_bytes(content)
