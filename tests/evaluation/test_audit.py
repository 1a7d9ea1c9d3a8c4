"""`audit` finds a leak that was put in, in the feature that it was put in, and none where there is none."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deeplense import cli
from deeplense.data import store
from deeplense.data.schema import ImageInfo, Manifest
from deeplense.errors import UserError
from deeplense.evaluation import features, metrics, separability
from deeplense.evaluation.audit import LEAK, audit

Ints = NDArray[np.int64]
SIZE = 16
Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2


def write(
    folder: Path, n: int, leak: str = "", classes: tuple[str, ...] = ("a", "b"), labels: Ints | None = None
) -> Path:
    """Rings of random radius, brightness and noise; one property of class "b" is changed."""
    draw = np.random.default_rng(1)
    labels = draw.permutation(np.arange(n) % len(classes)) if labels is None else labels
    if leak == "order":
        labels = np.sort(labels)
    odd = labels == 1

    def spread(low: float, high: float) -> NDArray[np.float64]:
        return draw.uniform(low, high, (n, 1, 1))

    def changed(kind: str, factor: float) -> NDArray[np.float64]:
        return np.where(odd & (leak == kind), factor, 1.0)[:, None, None]

    radius = spread(3, 5) * changed("radius", 1.25)
    ring = spread(9, 11) * changed("flux", 1.1) * np.exp(-((np.hypot(X, Y) - radius) ** 2) / 2) / radius
    images = ring + 0.2 * spread(0.9, 1.1) * changed("noise", 1.2) * draw.standard_normal((n, SIZE, SIZE))
    ids = [f"lens-{i:05d}" for i in range(n)]
    shard = store.write_shard(
        folder, "train", 0, images[:, None].astype(np.float32), labels.astype(np.int64), np.empty((n, 0)), ids
    )
    image = ImageInfo(1, SIZE, SIZE)
    Manifest("rings", image, list(classes), [], {"train": n}, [shard]).seal().write(folder)
    return folder


def pairs_of(result: dict[str, Any], group: str) -> dict[tuple[str, str], tuple[float, float, float]]:
    return {(p["first"], p["second"]): (p["auc"], *p["ci"]) for p in result["features"][group]["pairs"]}


def test_nothing_is_found_where_classes_differ_in_name_only(tmp_path: Path) -> None:
    result = audit(write(tmp_path / "d", 900, classes=("a", "b", "c")), tmp_path / "out")
    assert list(result["features"]) == [*features.FEATURES, "together", "file_order"]
    for name in result["features"]:
        found = pairs_of(result, name)
        assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
        for auc, low, high in found.values():
            assert low <= LEAK
            assert low < auc < high
            assert 0.4 < auc < 0.6
    assert (result["leaks"], result["worst"]) == ([], None)
    assert result["sentence"].startswith("No simple feature")
    assert any("can hide" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("leak", "named"), [("flux", "total_flux"), ("noise", "noise_level"), ("radius", "einstein_radius")]
)
def test_a_leak_between_two_classes_is_found_and_named(leak: str, named: str, tmp_path: Path) -> None:
    result = audit(write(tmp_path / "d", 900, leak, ("a", "b", "c")), tmp_path / "out")
    assert named in result["leaks"]
    assert "together" in result["leaks"]
    assert "file_order" not in result["leaks"]
    assert "b" in (result["worst"]["first"], result["worst"]["second"])
    assert pairs_of(result, named)["a", "b"][1] > 0.6
    assert pairs_of(result, named)["a", "c"][1] <= LEAK
    assert result["sentence"].startswith(f"{result['worst']['feature']} leaks most: alone it tells")
    if leak != "radius":  # a radius shows in every profile
        assert result["worst"]["feature"] == named
        others = set(features.FEATURES) - {named}
        assert all(pairs_of(result, o)["a", "b"][0] < pairs_of(result, named)["a", "b"][0] - 0.05 for o in others)


def test_files_sorted_by_class_are_found_and_images_are_not_blamed(tmp_path: Path) -> None:
    result = audit(write(tmp_path / "d", 400, "order"), tmp_path / "out")
    assert result["leaks"] == ["file_order"]
    assert result["worst"] is None
    assert "file_order leaks: it tells a from b" in result["sentence"]
    assert pairs_of(result, "file_order")["a", "b"][0] > 0.95


def test_classes_that_take_turns_are_found_in_the_file_order(tmp_path: Path) -> None:
    result = audit(write(tmp_path / "d", 300, classes=("a", "b", "c"), labels=np.arange(300) % 3), tmp_path / "out")
    assert pairs_of(result, "file_order")["b", "c"][1] > 0.95


def test_the_folder_holds_json_table_and_picture_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "out", write(tmp_path / "d", 300)
    cli.main(["audit", str(data), "--out", str(out), "--most", "200", "--seed", "3"])
    result = json.loads((out / "audit.json").read_text())
    assert (result["n"], result["classes"], result["seed"]) == (200, {"a": 100, "b": 100}, 3)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == result["sentence"]
    with open(out / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(result["features"])
    for row in rows:
        group = result["features"][row["feature"]]
        expected = group["macro"] if row["first"] == "each" else group["pairs"][0]["auc"]
        assert float(row["auc"]) == pytest.approx(expected, abs=1e-6)
        assert row["feature"] in printed
    assert Image.open(out / "leaks.png").size > (600, 400)
    assert sorted(p.name for p in out.iterdir()) == ["audit.json", "leaks.png", "table.csv"]


def test_the_same_seed_gives_the_same_audit_and_another_seed_does_not(tmp_path: Path) -> None:
    data = write(tmp_path / "d", 300)
    first, again, other = (audit(data, tmp_path / f"out{k}", most=200, seed=s) for k, s in enumerate((0, 0, 1)))
    assert first == again
    assert first["features"] != other["features"]


def test_two_classes_have_one_auc_whether_of_the_pair_or_macro(tmp_path: Path) -> None:
    result = audit(write(tmp_path / "d", 300, "flux"), tmp_path / "out")
    for group in result["features"].values():
        assert group["macro"] == pytest.approx(group["pairs"][0]["auc"], abs=1e-9)
        assert group["macro_ci"] == pytest.approx(group["pairs"][0]["ci"], abs=1e-9)


def test_a_feature_without_information_has_auc_one_half_on_average() -> None:
    found = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        labels = draw.permutation(np.arange(120) % 2)
        found.append(separability.areas({"x": draw.standard_normal((120, 2))}, labels, seed)["x"][0][0])
    assert np.mean(found) == pytest.approx(0.5, abs=3 * np.std(found) / 40**0.5)
    assert np.std(found) > 0.02


def test_intervals_are_those_of_the_exact_bootstrap() -> None:
    draw = np.random.default_rng(0)
    positive = np.arange(400) % 3 == 0
    scores = np.round(draw.standard_normal(400) + 0.8 * positive, 1)  # with ties
    auc, influence = separability.auc_and_influence(scores, positive)
    weights = np.concatenate(list(metrics.resample(positive, 1000, 0)))
    exact = metrics.auc(scores, positive, weights)
    assert auc + weights @ influence == pytest.approx(exact, abs=0.01)
    assert metrics.interval(auc + weights @ influence) == pytest.approx(metrics.interval(exact), abs=0.003)


def test_no_image_is_scored_by_a_model_that_saw_it() -> None:
    draw = np.random.default_rng(0)
    labels = draw.permutation(np.arange(200) % 2)
    fold, x = separability.folds(labels, 0), draw.standard_normal((200, 3))
    for f, k in itertools.product(range(separability.FOLDS), (0, 1)):
        assert ((fold == f) & (labels == k)).sum() == 20
    before, _ = separability.out_of_fold(x, labels, fold, [(0, 1)])
    flipped = np.where(fold == 2, 1 - labels, labels)  # the truth of a fold must not change its own scores
    after, _ = separability.out_of_fold(x, flipped, fold, [(0, 1)])
    assert (before == after)[fold == 2].all()
    assert (before != after)[fold != 2].any()


def test_a_column_that_could_never_be_measured_is_no_obstacle() -> None:
    x, labels = np.full((100, 2), np.nan), np.arange(100) % 2
    assert separability.areas({"x": x}, labels, 0)["x"][0] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("labels", "most", "message"),
    [
        (np.full(120, -1), 20_000, "has no labels; audit a split that has"),
        (np.zeros(120), 20_000, "has one class only, 'a'"),
        (np.arange(120) < 30, 20_000, "only 30 of 'b'; an audit needs 50"),
        (np.arange(120) % 2, 60, "--most 60: an audit of 2 classes needs 50 images of each, 100 in all"),
    ],
)
def test_too_little_to_audit_is_one_line_with_the_remedy(labels: Ints, most: int, message: str, tmp_path: Path) -> None:
    data = write(tmp_path / "d", 120, labels=np.asarray(labels, dtype=np.int64))
    with pytest.raises(UserError, match=message) as error:
        audit(data, tmp_path / "out", most=most)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_split_a_file_as_out_and_no_dataset_are_refused(
    make_dataset: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "d", 200, 0, 0)
    with pytest.raises(UserError, match="no split 'test'"):
        audit(data, tmp_path / "out", split="test")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; choose another --out"):
        audit(data, tmp_path / "file")
    with pytest.raises(SystemExit) as stop:
        cli.main(["audit", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "no dataset here" in capsys.readouterr().err
