"""Names of classes, images and parameters stand in figures as they are written, whatever matplotlib makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text

from deeplense.data import schema
from deeplense.evaluation import audit, plots
from deeplense.evaluation.plots import plain
from deeplense.evaluation.report import evaluate
from deeplense.evaluation.show import show
from deeplense.training.fit import train

CLASSES = ["a$b$", r"$\frac{$_{", "_c"]


def texts(figure: Figure) -> list[str]:
    figure.canvas.draw()  # type: ignore[attr-defined]
    return [t.get_text() for t in figure.findobj(Text) if isinstance(t, Text)]


def shown(text: str) -> str:
    """What a reader sees of a text; fails where it is mathematics."""
    drawn, math = Text(0, 0, text)._preprocess_math(text)  # type: ignore[attr-defined]
    assert not math, text
    return str(drawn)


@pytest.mark.parametrize("name", [*CLASSES, "$", "$$", r"\$", r"\$$\$", "a", "", "x_{1}^2", r"\alpha $x$ \$y\$"])
def test_plain_is_what_a_reader_sees(name: str) -> None:
    assert shown(plain(name)).removeprefix("\u2060") == name
    assert not is_math_text(plain(name))
    assert not plain(name).startswith("_")


def test_every_figure_shows_the_names_and_none_is_left_out_of_a_legend() -> None:
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(3), 60)
    labels = np.arange(60) % 3
    counts = np.full((3, 3), 5)
    values = draw.normal(size=60)
    figures = {
        "roc": plots.roc(probabilities, labels, CLASSES, dict.fromkeys(CLASSES, 0.5)),
        "confusion": plots.confusion(counts, CLASSES),
        "scores": plots.class_scores(probabilities, labels, CLASSES),
    }
    for figure in figures.values():
        seen = "\n".join(map(shown, (t for t in texts(figure) if not t.startswith("$\\mathdefault"))))
        assert all(name in seen for name in CLASSES), seen
    for figure in (
        plots.predicted(values, values, abs(values) + 1, "a$b$"),
        plots.errors(values, values, values**2, "a$b$"),
    ):
        assert any(shown(t) == "true a$b$" for t in texts(figure) if "true" in t)


@pytest.fixture
def dollars(make_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    """A dataset whose classes and ids mean something to matplotlib."""
    folder = make_dataset(tmp_path / "d$x$", 64, 32, 60, classes=CLASSES)
    manifest = schema.read_manifest(folder)
    for shard in manifest.shards:
        with h5py.File(folder / shard.file, "r+") as file:
            ids = [rf"{k}$\x_{{${shard.split[:2]}" for k in range(shard.n)]
            del file["id"]
            file["id"] = np.array([i.encode() for i in ids])
        shard.sha256 = schema.sha256(folder / shard.file)
    manifest.name = "$n$"
    manifest.seal().write(folder)
    return folder


def test_report_audit_and_pictures_of_such_names(dollars: Path, tmp_path: Path) -> None:
    changes = ["training.epochs=1", "training.batch_size=32", "name='$r_{$'"]
    made = train("quickstart", dollars, tmp_path / "run", overrides=changes, device="cpu")
    page = evaluate(made, dollars, tmp_path / "report", device="cpu").read_text()
    assert "a$b$" in page
    assert {"roc.png", "confusion.png", "gallery.png"} <= {p.name for p in (tmp_path / "report/figures").iterdir()}
    show(dollars, tmp_path / "all.png")
    show(dollars, tmp_path / "one.png", id=r"3$\x_{$te")
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_the_figure_of_an_audit_shows_such_names() -> None:
    group = {
        "macro": 0.5,
        "macro_ci": [0.4, 0.6],
        "pairs": [{"first": CLASSES[0], "second": CLASSES[1], "auc": 0.5, "ci": [0.4, 0.6]}],
    }
    result = {"features": {audit.TOGETHER: group, "flux": group}, "classes": CLASSES[:2], "leaks": [], "dataset": "$d$",
              "split": "test", "n": 9}  # fmt: skip
    seen = "\n".join(map(shown, texts(audit.draw(result))))
    assert all(name in seen for name in (*CLASSES[:2], "$d$, test"))
