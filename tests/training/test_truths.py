"""Truths that turn with the images, and several answers at once, from training to the report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from deeplense import rng
from deeplense.bundle import load
from deeplense.data import store
from deeplense.data.schema import ImageInfo, Manifest, Parameter
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.evaluation.report import evaluate
from deeplense.inference.predict import predict
from deeplense.training.fit import train

PLACE, SHAPE = ["x", "y"], ["e1", "e2"]
PARAMETERS = [
    Parameter("x", "arcsec", kind="x", pair=PLACE),
    Parameter("y", "arcsec", kind="y", pair=PLACE),
    Parameter("e1", kind="spin2", pair=SHAPE),
    Parameter("e2", kind="spin2", pair=SHAPE),
    Parameter("colour"),
]
SMALL = ["training.batch_size=32", "model.kwargs={widths: [16, 32], depths: [1, 1]}", "training.lr=0.01"]


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Elliptical blobs; the class says which way they are stretched."""
    folder, size, scale = tmp_path_factory.mktemp("blobs") / "data", 16, 0.1
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) * scale
    shards, splits = [], {"train": 512, "val": 128, "test": 256}
    for split, n in splits.items():
        draw = rng.generator(0, split)
        cx, cy = draw.uniform(-0.25, 0.25, (2, n))
        angle, c = draw.uniform(0, np.pi, n), draw.uniform(0.3, 0.5, n)
        e1, e2 = c * np.cos(2 * angle), c * np.sin(2 * angle)
        q = ((1 - c) / (1 + c))[:, None, None]
        dx, dy = x - cx[:, None, None], y - cy[:, None, None]
        cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
        along, across = cos * dx + sin * dy, -sin * dx + cos * dy
        images = 20 * np.exp(-(q * along**2 + across**2 / q) / (2 * 0.2**2)) + draw.standard_normal((n, size, size))
        labels = (c > 0.4).astype(np.int64)
        e2[::4] = e1[::4] = np.nan  # of some, nobody knows the shape
        params = np.stack([cx, cy, e1, e2, cx * cy], 1)
        ids = [f"{split}/{i}" for i in range(n)]
        shards.append(store.write_shard(folder, split, 0, images[:, None].astype(np.float32), labels, params, ids))
    Manifest("blobs", ImageInfo(1, size, size, scale), ["round", "long"], PARAMETERS, splits, shards).seal().write(
        folder
    )
    return folder


def _train(data: Path, out: Path, *more: str) -> Path:
    return train({}, data, out, overrides=[*SMALL, *more], device="cpu")


@pytest.mark.parametrize("target", ["x", "e2"])
def test_places_and_shapes_are_learned_with_the_default_augmentation(blobs: Path, tmp_path: Path, target: str) -> None:
    task = ["task.kind=regress", f"task.target={target}", "training.epochs=12"]
    evaluate(_train(blobs, tmp_path / "run", *task), blobs, tmp_path / "report", device="cpu")
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["r2"] > 0.9  # with truths left behind, 0


def test_a_truth_that_turns_in_an_unknown_way_is_refused(blobs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target 'colour'.*augment\.d4=false"):
        _train(blobs, tmp_path / "run", "task.kind=regress", "task.target=colour")
    assert not (tmp_path / "run").exists()
    _train(blobs, tmp_path / "run", "task.kind=regress", "task.target=colour", "augment.d4=false", "training.epochs=1")


def test_several_answers_go_all_the_way(blobs: Path, tmp_path: Path) -> None:
    more = "place: {kind: regress, targets: [x, y]}, e: {kind: regress, targets: [e1]}"
    heads = f"task.heads={{class: {{kind: classify}}, {more}}}"
    path = _train(blobs, tmp_path / "run", heads, "training.epochs=8")
    with open(tmp_path / "run" / "history.csv") as file:
        row = list(csv.DictReader(file))[-1]
    assert {"val_loss_class", "val_accuracy_class", "val_loss_place", "val_MAE_place", "val_MAE_e"} <= set(row)
    parts = [float(row[f"val_loss_{name}"]) for name in ("class", "place", "e")]
    assert float(row["val_loss"]) == pytest.approx(sum(parts), rel=1e-5)

    evaluate(path, blobs, tmp_path / "report", device="cpu", against=[path])
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert list(found["answers"]) == ["class", "x", "y", "e1"]
    assert found["task"] == "classify"
    assert found["answers"]["x"]["r2"] > 0.8
    assert found["answers"]["e1"]["n"] == 192  # where it is known
    assert {m["against"][0]["difference"] for m in found["answers"].values()} == {0.0}
    page = (tmp_path / "report" / "index.html").read_text()
    for text in ("classification of round, long; regression of x [arcsec]", "ROC curves", "Best and worst images"):
        assert text in page
    figures = {p.name for p in (tmp_path / "report" / "figures").iterdir()}
    assert {"class-roc.png", "x-predicted.png", "e1-coverage.png", "learning.png"} <= figures
    with open(tmp_path / "report" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["id", "label", "p_round", "p_long"]
    assert [c for c in rows[0] if c.startswith("target_")] == ["target_x", "target_y", "target_e1"]
    assert sum(r["target_e1"] == "" for r in rows) == 64

    table = predict(path, [blobs], tmp_path / "t.csv", split="test", device="cpu")
    with open(table) as file:
        said = list(csv.DictReader(file))
    assert [r["id"] for r in said] == [r["id"] for r in rows]
    assert [float(r["mean_x"]) for r in said] == pytest.approx([float(r["mean_x"]) for r in rows], abs=1e-5)
    assert "entropy_class" in said[0]


def test_a_head_whose_truth_the_data_lack_is_not_judged(blobs: Path, tmp_path: Path, tiny_dataset: Path) -> None:
    heads = "task.heads={class: {kind: classify}, place: {kind: regress, targets: [x]}}"
    path = _train(blobs, tmp_path / "run", heads, "training.epochs=1")
    bare = tmp_path / "bare"
    split = Dataset(blobs).split("test")
    some = np.arange(40)
    shard = store.write_shard(
        bare, "test", 0, split.images(some).numpy(), split.labels[some], np.empty((40, 0)), split.ids[:40]
    )
    Manifest("bare", load(path, "cpu").image, ["round", "long"], [], {"test": 40}, [shard]).seal().write(bare)
    evaluate(path, bare, tmp_path / "report", device="cpu")
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert "answers" not in found
    assert any("do not know 'x'" in note for note in found["notes"])
