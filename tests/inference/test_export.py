"""An exported network against the bundle that it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deeplense import recipe
from deeplense.bundle import Bundle, Prediction, Target, load
from deeplense.data.familiarity import Familiarity
from deeplense.data.store import Dataset
from deeplense.data.transforms import Preprocessor
from deeplense.errors import UserError
from deeplense.inference import export as exporting
from deeplense.inference import parity
from deeplense.inference.export import OnnxBundle, export
from deeplense.models import build_network
from deeplense.models.heads import head_for

TARGET = Target("log10_m_axion", "log10(eV)", -23.0, 2 / 12**0.5, -24.0, -22.0)


def make_bundle(data: Path, path: Path, steps: int = 20, target: Target | None = None, **model: Any) -> Path:
    """A bundle trained for a few steps, with a temperature that is not 1."""
    dataset = Dataset(data)
    task = recipe.Task("regress", target.name) if target else recipe.Task()
    made = recipe.Recipe(name="made", task=task, model=recipe.Model(**model))
    train = dataset.split("train")
    column = dataset.manifest.parameter(target.name) if target else None
    index = np.arange(len(train))
    if column is not None:
        index = index[np.isfinite(train.params[:, column])]
    batch = train.batch(index, column)
    torch.manual_seed(0)
    preprocess = Preprocessor.fit(made.preprocess, dataset.manifest.image, [batch.image])
    head = head_for(made.task, dataset.manifest.classes, target)
    network = build_network(made.model, preprocess.output_shape, head.n_out)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    x = preprocess(batch.image)
    for _ in range(steps):
        optimizer.zero_grad()
        head.loss(network(x), batch).backward()
        optimizer.step()
    head.temperature.fill_(1.7)
    manifest = dataset.manifest
    about = (made, manifest.classes, manifest.image, target, "f", {"n": 1})
    Bundle(network.eval(), preprocess, head, Familiarity.fit(x), *about).save(path)
    return path


@pytest.fixture(scope="module")
def compact(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tiny_dataset, tmp_path_factory.mktemp("bundle") / "bundle.safetensors")


@pytest.fixture(scope="module")
def exported(compact: Path) -> Path:
    return export(compact, compact.with_name("model.onnx"))


def images(data: Path) -> torch.Tensor:
    return Dataset(data).split("test").images(np.arange(32))


def test_any_batch_size_agrees_with_the_bundle(compact: Path, exported: Path, tiny_dataset: Path) -> None:
    x = images(tiny_dataset)
    x[0, 0, 3, 4] = torch.nan  # pre-processing is in the graph
    ours, theirs = load(compact, "cpu").predict(x), OnnxBundle(exported, threads=1)
    for batch_size in (1, 5, 32):
        np.testing.assert_allclose(theirs.predict(x, batch_size).probabilities, ours.probabilities, atol=1e-5)
    assert theirs.raw(x[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("model", "target"), [({"name": "resnet10t", "stem_stride": 1}, None), ({"name": "compact"}, TARGET)]
)
def test_timm_networks_and_regressors(
    model: dict[str, Any], target: Target | None, tiny_dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    path = make_bundle(tiny_dataset, tmp_path / "b.safetensors", 3, target, **model)
    out = export(path, tmp_path / "m.onnx", data=tiny_dataset)
    ours, theirs = (b.predict(images(tiny_dataset)) for b in (load(path, "cpu"), OnnxBundle(out, 1)))
    for name in ("probabilities", "mean", "scale", "q05", "q95"):
        if (column := getattr(ours, name)) is not None:
            np.testing.assert_allclose(getattr(theirs, name), column, atol=1e-4)
    text = capsys.readouterr().out
    assert "float32 against the bundle on 32 images: max |Δ" in text
    assert ("MAE" if target else "AUC") in text


@pytest.mark.parametrize("stretch", ["asinh", "log", "none"])
def test_random_images_look_like_training_images_to_the_network(stretch: Any, tiny_dataset: Path) -> None:
    dataset = Dataset(tiny_dataset)
    config = recipe.Preprocess(stretch=stretch)
    preprocess = Preprocessor.fit(config, dataset.manifest.image, [dataset.split("train").images(np.arange(64))])
    head = head_for(recipe.Task(), ["a", "b"], None)
    about = (recipe.Recipe(), ["a", "b"], dataset.manifest.image)
    familiarity = Familiarity(preprocess.output_shape)
    made = Bundle(torch.nn.Identity(), preprocess, head, familiarity, *about)
    x = preprocess(parity.random_sample(made).images)
    if stretch == "log":  # nothing lies below 0
        assert x.std() == pytest.approx(1, abs=0.5)
    else:
        assert (x.mean(), x.std()) == pytest.approx((0, 1), abs=0.05)


def test_int8_keeps_class_and_preprocessing(compact: Path, exported: Path, tiny_dataset: Path, capsys: Any) -> None:
    out = export(compact, exported.with_name("int8.onnx"), int8=True, data=tiny_dataset)
    assert "int8 against the bundle on 32 images" in capsys.readouterr().out
    p, q = (b.predict(images(tiny_dataset)).probabilities for b in (OnnxBundle(exported, 1), OnnxBundle(out, 1)))
    assert p is not None
    assert q is not None
    assert 0 < np.abs(p - q).max() < 0.1
    assert np.mean(p.argmax(1) == q.argmax(1)) > 0.9
    assert out.stat().st_size < 0.5 * exported.stat().st_size
    nodes = onnx.load(out).graph.node
    front = {n.op_type for n in nodes if n.name.startswith("preprocess/")}
    assert "Asinh" in front
    assert "QuantizeLinear" not in front
    assert OnnxBundle(out).precision == "int8"


def test_metadata_rebuilds_the_bundle(compact: Path, exported: Path) -> None:
    ours, theirs = load(compact, "cpu"), OnnxBundle(exported)
    for name in ("recipe", "classes", "image", "target", "fingerprint", "summary"):
        assert getattr(theirs, name) == getattr(ours, name)
    assert float(theirs.head.temperature) == pytest.approx(1.7)
    # a program without deeplense finds what it needs
    session = onnxruntime.InferenceSession(exported)
    about = json.loads(session.get_modelmeta().custom_metadata_map["deeplense"])
    assert (about["name"], about["task"], about["head"]) == ("made", "classify", "CategoricalHead")
    assert [(i.name, i.shape[1:], i.type) for i in session.get_inputs()] == [("image", [1, 16, 16], "tensor(float)")]
    assert [o.name for o in session.get_outputs()] == ["raw"]


def test_a_file_that_disagrees_is_not_left(
    compact: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(exported)
    del model.metadata_props[:]
    kernel = next(w for w in model.graph.initializer if len(w.dims) == 4)
    kernel.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(kernel) * np.float32(1.05), kernel.name))
    monkeypatch.setattr(exporting, "_graph", lambda *_: model)
    with pytest.raises(UserError, match="more than the tolerance, nothing written"):
        export(compact, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class Fixed:
    """A bundle that has made up its mind."""

    target = None

    def __init__(self, probabilities: np.ndarray) -> None:
        self.probabilities = probabilities

    def predict(self, images: torch.Tensor) -> Prediction:
        return Prediction(torch.empty(0), probabilities=self.probabilities)


@pytest.mark.parametrize("known", [True, False])
def test_int8_is_refused_for_what_it_loses(known: bool) -> None:
    labels = np.arange(300) % 3
    sure = np.eye(3)[labels]
    close, far = 0.995 * sure + 0.005 / 3, np.roll(sure, 1, axis=1)
    far[12:] = sure[12:]  # one class in 25 is another
    truth = parity.Sample(torch.zeros(300, 1, 1, 1), labels if known else labels * 0 - 1, np.full(300, np.nan))
    text = parity.check(Fixed(sure), Fixed(close), truth, exact=False)  # type: ignore[arg-type]
    assert ("AUC 1.0000 -> 1.0000" in text) == known
    with pytest.raises(UserError, match="without --int8"):
        parity.check(Fixed(sure), Fixed(far), truth, exact=False)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="without --int8"):
        parity.check(Fixed(sure), Fixed(sure * np.nan), truth, exact=False)  # type: ignore[arg-type]


def test_bad_requests(compact: Path, tiny_dataset: Path, make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        export(compact, tmp_path / "m.onnx", int8=True)
    with pytest.raises(UserError, match=r"MODEL\.onnx"):
        export(compact, tmp_path / "m.bin")
    with pytest.raises(UserError, match="images are 1x20x20, the bundle takes 1x16x16"):
        export(compact, tmp_path / "m.onnx", data=make_dataset(tmp_path / "other", size=20))
    assert not list(tmp_path.glob("*.onnx"))


def test_files_that_are_not_ours(compact: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        OnnxBundle(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="not a readable ONNX file"):
        OnnxBundle(compact)
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(exported.read_bytes()[:-5000])
    with pytest.raises(UserError, match="not a readable ONNX file"):
        OnnxBundle(truncated)
    for value, message in (
        ("null", "not an ONNX file of deeplense"),
        ("{", "not an ONNX"),
        ('{"format": 99}', "format 99"),
    ):
        model = onnx.load(exported)
        model.metadata_props[0].value = value
        onnx.save(model, tmp_path / "foreign.onnx")
        with pytest.raises(UserError, match=message):
            OnnxBundle(tmp_path / "foreign.onnx")
