"""The whole report of a small classifier and a small regressor: files, figures, numbers, cautions."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk

from deeplense.bundle import load
from deeplense.data.schema import read_manifest
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.evaluation import gallery
from deeplense.evaluation.report import cards, evaluate
from deeplense.training.fit import train

FAST = {"training": {"epochs": 2, "batch_size": 16, "lr": 0.01}}
REGRESS = {"task": {"kind": "regress", "target": "log10_m_axion"}}


@pytest.fixture(scope="module")
def classifier(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train({"name": "small", **FAST}, tiny_dataset, tmp_path_factory.mktemp("c") / "run", device="cpu")


@pytest.fixture(scope="module")
def rival(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = {"name": "<rival> & co", "seed": 1, "training": {"epochs": 1, "batch_size": 64, "lr": 1e-6}}
    return train(tree, tiny_dataset, tmp_path_factory.mktemp("r") / "run", device="cpu")


@pytest.fixture(scope="module")
def regressor(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train({"name": "mass", **FAST, **REGRESS}, tiny_dataset, tmp_path_factory.mktemp("m") / "run", device="cpu")


@pytest.fixture(scope="module")
def of_classes(classifier: Path, rival: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reports") / "classes"
    assert evaluate(classifier, tiny_dataset, out, against=[rival], device="cpu") == out / "index.html"
    return out


@pytest.fixture(scope="module")
def of_target(regressor: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reports") / "target"
    evaluate(regressor, tiny_dataset, out, device="cpu")
    return out


def metrics_of(report: Path) -> dict[str, Any]:
    def never(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    found: dict[str, Any] = json.loads((report / "metrics.json").read_text(), parse_constant=never)
    return found


def table(report: Path) -> list[dict[str, str]]:
    with open(report / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """What a browser would fetch, the text, and whether tags are balanced."""

    EMPTY = ("meta", "img", "br", "link", "hr")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object")
        self.links += [held[key] or "" for key in ("src", "href", "srcset", "data") if key in held]
        if tag == "img":
            self.images.append(held["src"] or "")
            assert held["alt"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("report", "figures"),
    [
        ("of_classes", {"roc", "confusion", "reliability", "scores", "learning", "gallery"}),
        ("of_target", {"predicted", "errors", "coverage", "learning", "gallery"}),
    ],
)
def test_a_report_has_the_promised_files_and_stands_alone(
    report: str, figures: set[str], request: pytest.FixtureRequest
) -> None:
    out = request.getfixturevalue(report)
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == {"index.html", "metrics.json", "predictions.csv", *(f"figures/{name}.png" for name in figures)}
    page = Page(out / "index.html")
    assert "url(" not in (out / "index.html").read_text()
    assert len(page.images) == len(figures)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    embedded = {base64.b64decode(uri.partition(",")[2]) for uri in page.images}
    assert embedded == {(out / "figures" / f"{name}.png").read_bytes() for name in figures}
    for content in embedded:
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 5  # not blank
        # nothing is cut off: a margin of the page is white all around
        assert (pixels[:1] > 250).all()
        assert (pixels[-1:] > 250).all()


def test_metrics_of_a_classifier_have_the_promised_keys(of_classes: Path) -> None:
    found = metrics_of(of_classes)
    assert {"task", "n", "auc", "accuracy", "nll", "ece"} <= set(found)
    assert (found["task"], found["n"], found["split"]) == ("classify", 32, "test")
    assert {"macro", "macro_ci", "per_class"} <= set(found["auc"])
    assert set(found["auc"]["per_class"]) == {"axion", "cdm", "no_sub"}
    low, high = found["auc"]["macro_ci"]
    assert low <= found["auc"]["macro"] <= high


def test_predictions_of_a_classifier_give_its_metrics_again(
    of_classes: Path, classifier: Path, tiny_dataset: Path
) -> None:
    rows, found = table(of_classes), metrics_of(of_classes)
    classes = load(classifier, "cpu").classes
    assert list(rows[0]) == ["id", "label", *(f"p_{c}" for c in classes)]
    split = Dataset(tiny_dataset).split("test")
    assert [row["id"] for row in rows] == split.ids
    labels = np.array([classes.index(row["label"]) for row in rows])
    np.testing.assert_array_equal(labels, split.labels)
    p = np.array([[float(row[f"p_{c}"]) for c in classes] for row in rows])
    # eight digits are written, and scikit-learn wants an exact sum
    p /= p.sum(1, keepdims=True)
    assert found["auc"]["macro"] == pytest.approx(sk.roc_auc_score(labels, p, multi_class="ovr"))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, p.argmax(1)))
    assert found["nll"] == pytest.approx(sk.log_loss(labels, p), rel=1e-5)
    assert found["confusion"] == sk.confusion_matrix(labels, p.argmax(1)).tolist()


def test_metrics_of_a_regressor_have_the_promised_keys_and_follow_from_its_predictions(of_target: Path) -> None:
    rows, found = table(of_target), metrics_of(of_target)
    assert {"task", "target", "n", "mae", "mae_ci", "rmse", "r2", "nll", "coverage"} <= set(found)
    assert (found["task"], found["target"], found["n"]) == ("regress", "log10_m_axion", 11)
    assert set(found["coverage"]) == {"0.68", "0.9"}
    assert list(rows[0]) == ["id", "target", "mean", "scale", "q05", "q95"]
    columns = {key: np.array([float(row[key]) for row in rows]) for key in rows[0] if key != "id"}
    truth, mean = columns["target"], columns["mean"]
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, mean), rel=1e-6)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, mean), rel=1e-6)
    assert found["r2"] == pytest.approx(sk.r2_score(truth, mean), rel=1e-5)
    inside = (truth >= columns["q05"]) & (truth <= columns["q95"])
    assert found["coverage"]["0.9"] == pytest.approx(inside.mean())
    assert found["mae_constant"] == pytest.approx(np.abs(truth + 23).mean())  # the middle of the prior
    faint = truth <= -23.5
    assert found["mae_by_range"]["[-24, -23.5]"] == pytest.approx(np.abs(mean - truth)[faint].mean(), rel=1e-6)
    assert ((truth > -24) & (truth < -22)).all()


def test_only_images_with_a_value_of_the_target_are_judged(of_target: Path, tiny_dataset: Path) -> None:
    split = Dataset(tiny_dataset).split("test")
    expected = [id for id, mass in zip(split.ids, split.params[:, 0], strict=True) if np.isfinite(mass)]
    assert [row["id"] for row in table(of_target)] == expected


def test_the_comparison_names_the_better_one_and_escapes_the_other_ones_name(
    of_classes: Path, rival: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    (told,) = metrics_of(of_classes)["against"]
    assert (told["bundle"], told["recipe"]) == (str(rival), "<rival> & co")
    evaluate(rival, tiny_dataset, tmp_path / "other", device="cpu")
    alone = metrics_of(tmp_path / "other")["auc"]["macro"]
    assert told["auc"] == pytest.approx(alone)
    assert told["difference"] == pytest.approx(metrics_of(of_classes)["auc"]["macro"] - alone)
    assert told["difference_ci"][0] <= told["difference"] <= told["difference_ci"][1]
    page = Page(of_classes / "index.html").text
    assert "<rival> & co" in page
    clear = told["difference_ci"][0] > 0
    assert ("this one is better" in page) == clear
    assert "the other is better" not in page


def test_a_regressor_against_itself_differs_in_nothing(regressor: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    evaluate(regressor, tiny_dataset, tmp_path / "r", against=[regressor], split="val", device="cpu")
    (told,) = metrics_of(tmp_path / "r")["against"]
    assert (told["difference"], told["difference_ci"]) == (0.0, [0.0, 0.0])
    assert "no clear difference" in Page(tmp_path / "r" / "index.html").text


def test_the_page_shows_numbers_cards_limits_and_the_recipe(of_classes: Path, tiny_dataset: Path) -> None:
    page = Page(of_classes / "index.html").text
    found = metrics_of(of_classes)
    assert f"{found['auc']['macro']:.4f}" in page
    assert f"{100 * found['accuracy']:.2f} %" in page
    assert read_manifest(tiny_dataset).fingerprint in page
    assert "32 images of the test split" in page
    assert "not a measurement of dark matter in a real lens" in page
    assert "excluded by VLBI" in page  # it has a class axion
    assert "batch_size: 16" in page


def test_a_second_report_replaces_the_first_and_the_seed_repeats_it(
    rival: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r"
    evaluate(rival, tiny_dataset, out, split="val", device="cpu")
    assert f"wrote {out / 'index.html'}" in capsys.readouterr().out
    before = {name: (out / name).read_bytes() for name in ("metrics.json", "predictions.csv")}
    evaluate(rival, tiny_dataset, out, split="val", device="cpu")
    assert {name: (out / name).read_bytes() for name in before} == before
    assert metrics_of(out)["split"] == "val"
    evaluate(rival, tiny_dataset, out, split="val", seed=7, device="cpu")
    assert metrics_of(out)["auc"]["macro_ci"] != json.loads(before["metrics.json"])["auc"]["macro_ci"]
    assert not list(out.rglob(".*"))


def test_classes_in_another_order_or_one_without_images_are_no_obstacle(
    classifier: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "turned", 0, 0, 32, classes=("no_sub", "axion", "cdm"))
    evaluate(classifier, data, tmp_path / "r", device="cpu")
    split = Dataset(data).split("test")
    assert [row["label"] for row in table(tmp_path / "r")] == [("no_sub", "axion", "cdm")[k] for k in split.labels]
    two = make_dataset(tmp_path / "two", 0, 0, 2)  # an image of axion, one of cdm
    evaluate(classifier, two, tmp_path / "absent", device="cpu")
    found = metrics_of(tmp_path / "absent")
    assert found["auc"]["per_class"]["no_sub"] is None
    assert "AUC of 'no_sub' is undefined" in Page(tmp_path / "absent" / "index.html").text
    one = make_dataset(tmp_path / "one", 0, 0, 1)
    evaluate(classifier, one, tmp_path / "single", device="cpu")
    assert metrics_of(tmp_path / "single")["auc"]["macro"] is None


def test_a_report_without_history_or_with_a_broken_one_has_no_learning_curves(
    classifier: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "bundle.safetensors"
    moved.write_bytes(classifier.read_bytes())
    (tmp_path / "history.csv").write_text("epoch,loss\n1,0.3\n")
    evaluate(moved, tiny_dataset, tmp_path / "r", device="cpu")
    assert not (tmp_path / "r" / "figures" / "learning.png").exists()


def test_the_train_split_is_reported_with_a_caution(classifier: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    evaluate(classifier, tiny_dataset, tmp_path / "r", split="train", device="cpu")
    note, *_ = metrics_of(tmp_path / "r")["notes"]
    assert note.startswith("These are the images that the network was trained on")
    assert "trained on" in Page(tmp_path / "r" / "index.html").text


def test_notes_name_every_caution_and_no_other(classifier: Path, regressor: Path, tiny_dataset: Path) -> None:
    bundle, manifest = load(classifier, "cpu"), read_manifest(tiny_dataset)

    def said(**changes: Any) -> list[str]:
        return cards.notes(bundle, dataclasses.replace(manifest, **changes), "test")

    assert said() == []
    assert cards.notes(bundle, dataclasses.replace(manifest, fingerprint="another"), "train") == []
    for noise, cautions in (("none", 1), ("doubled", 1), ("once", 0), ("triple", 0)):
        assert len(said(recipe={"name": "x", "simulation": {"noise": noise}})) == cautions
    assert "noise-free ceiling" in said(recipe={"simulation": {"noise": "none"}})[0]
    (scale,) = said(image=dataclasses.replace(manifest.image, pixel_scale=0.05))
    assert "0.05″ a pixel, the training images had 0.1″" in scale
    assert "2.00 times its angular size" in scale
    assert said(image=dataclasses.replace(manifest.image, pixel_scale=0.1005)) == []
    assert said(image=dataclasses.replace(manifest.image, pixel_scale=None)) == []
    (faint,) = said(recipe={"name": "model_1"})
    assert "cdm is nearly invisible" in faint
    assert said(recipe={"name": "legacy/model_1"}) == []
    mass = load(regressor, "cpu")
    assert cards.notes(mass, dataclasses.replace(manifest, recipe={"name": "model_1"}), "test") == []


def test_limits_name_a_macro_lens_that_never_changes(classifier: Path) -> None:
    bundle = load(classifier, "cpu")
    assert not any("macro lens" in text for text in cards.limits(bundle))
    bundle.recipe.simulation.lens.theta_E = 1.2
    assert any("macro lens the same" in text for text in cards.limits(bundle))
    bundle.recipe.simulation.lens.theta_E = {"uniform": [1.0, 1.4]}
    assert not any("macro lens" in text for text in cards.limits(bundle))


def fails(match: str, bundle: Path, data: Path, out: Path, **options: Any) -> None:
    """It raises one line, and writes nothing."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as caught:
        evaluate(bundle, data, out, device="cpu", **options)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.rglob("*")) == before


def test_bad_input_is_one_line_and_writes_nothing(
    classifier: Path, regressor: Path, tiny_dataset: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    large = make_dataset(data / "large", 0, 0, 6, size=20)
    others = make_dataset(data / "others", 0, 0, 6, classes=("axion", "wdm"))
    out = tmp_path / "out" / "report"
    out.parent.mkdir()
    fails(r"images are 1 x 20 x 20, the bundle takes 1 x 16 x 16", classifier, large, out)
    fails(r"images are 1 x 20 x 20", regressor, large, out)
    fails("has wdm, unknown to the bundle and lacks cdm, no_sub", classifier, others, out)
    fails("no split 'nowhere'", classifier, tiny_dataset, out, split="nowhere")
    fails("no dataset here", classifier, tmp_path / "none", out)
    fails("no such bundle", tmp_path / "none.safetensors", tiny_dataset, out)
    fails("no such bundle", classifier, tiny_dataset, out, against=[tmp_path / "none.safetensors"])
    fails("--against .*it predicts log10_m_axion, not class", classifier, tiny_dataset, out, against=[regressor])
    fails("--against .*it predicts class, not log10_m_axion", regressor, tiny_dataset, out, against=[classifier])
    massless = make_dataset(data / "massless", 0, 0, 6, classes=("cdm", "no_sub"))
    fails("no image of split 'test' has a 'log10_m_axion'", regressor, massless, out)
    # another target
    manifest = read_manifest(large)
    manifest.image = load(regressor, "cpu").image
    manifest.parameters[0].name = "log10_m_sub"
    renamed = make_dataset(data / "renamed", 0, 0, 6)
    manifest.shards = read_manifest(renamed).shards
    manifest.seal().write(renamed)
    fails("no parameter 'log10_m_axion'", regressor, renamed, out)
    taken = out.parent / "file"
    taken.write_text("thesis")
    fails("is a file; choose another --out", classifier, tiny_dataset, taken)
    assert taken.read_text() == "thesis"


def test_a_dataset_without_labels_cannot_judge_a_classifier(
    classifier: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    import h5py

    data = make_dataset(tmp_path / "blind", 0, 0, 6)
    with h5py.File(data / "test-00000.h5", "r+") as file:
        file["label"][...] = -1
    (tmp_path / "out").mkdir()
    fails("no image of split 'test' has a label", classifier, data, tmp_path / "out" / "r")


def test_the_gallery_ranks_images_and_its_stretch_keeps_order() -> None:
    image = np.geomspace(1e-3, 1e3, 64, dtype=np.float32).reshape(1, 8, 8)
    image[0, 3, 3] = np.nan
    shown = gallery.stretch(image)
    assert np.isnan(shown[3, 3])
    known = shown[np.isfinite(shown)]
    assert known.min() >= 0
    assert known.max() == 1
    assert (np.diff(known) >= 0).all()
    assert gallery.stretch(np.full((1, 4, 4), np.nan, np.float32)).shape == (4, 4)
    assert np.isfinite(gallery.stretch(np.ones((3, 4, 4), np.float32))).all()
