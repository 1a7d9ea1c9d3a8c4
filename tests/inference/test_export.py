"""An exported network against the bundle that it came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small import small_bundle

from deeplense import recipe
from deeplense.answers import Prediction
from deeplense.bundle import Bundle, load
from deeplense.data.schema import ImageInfo
from deeplense.data.store import Dataset
from deeplense.data.transforms import Preprocessor
from deeplense.errors import UserError
from deeplense.inference.export import export, graph, parity
from deeplense.inference.runtime import OnnxBundle
from deeplense.models import Context, build_network
from deeplense.models.heads import HEADS, HeadSpec, Target
from deeplense.models.heads.base import Truths
from deeplense.models.out_of_distribution import OutOfDistribution
from deeplense.models.pixel_statistics import PixelStatistics

MASS = HeadSpec("value", "truncated_normal", [Target("log10_m_axion", "log10(eV)", -23.0, 2 / 12**0.5, -24.0, -22.0)])
FREE = HeadSpec("free", "normal", [Target("log10_m_axion", "log10(eV)", -23.0, 2 / 12**0.5)])
CLASS = HeadSpec("class", "categorical")


def make_bundle(data: Path, path: Path, steps: int = 20, specs: Sequence[HeadSpec] = (CLASS,), **model: Any) -> Path:
    """A bundle trained for a few steps, with a temperature that is not 1."""
    dataset = Dataset(data)
    manifest = dataset.manifest
    made = recipe.Recipe(name="made", model=recipe.Model(**model))
    batch = dataset.split("train").batch(np.arange(64))
    torch.manual_seed(0)
    preprocess = Preprocessor.fit(made.preprocess, manifest.image, [batch.image])
    context = Context(manifest.image, preprocess, manifest.parameters)
    network = build_network(made.model, specs, manifest.classes, context)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    x = preprocess(batch.image)
    for _ in range(steps):
        optimizer.zero_grad()
        network.total(network.losses(network(x), batch)).backward()
        optimizer.step()
    for head in network.each().values():
        head.temperature.fill_(1.7)
    about = (list(specs), made, manifest.classes, manifest.image, manifest.parameters, None, "f", {"n": 1})
    statistics = PixelStatistics.fit(x)
    detector = OutOfDistribution.fit(statistics, statistics(x), network.eval().features(x))
    Bundle(network, preprocess, detector, *about).save(path)
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
        found = [theirs.predict(part.numpy()) for part in torch.split(x, batch_size)]
        np.testing.assert_allclose(np.concatenate([f.probabilities for f in found]), ours.probabilities, atol=1e-5)
        np.testing.assert_allclose(np.concatenate([f.distance for f in found]), ours.distance, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "specs"),
    [({"name": "resnet10t", "stem_stride": 1}, [CLASS, FREE]), ({"name": "compact"}, [CLASS, MASS])],
)
def test_every_answer_leaves_the_graph_by_its_name(
    model: dict[str, Any],
    specs: list[HeadSpec],
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = make_bundle(tiny_dataset, tmp_path / "b.safetensors", 3, specs, **model)
    out = export(path, tmp_path / "m.onnx", data=tiny_dataset)
    session = onnxruntime.InferenceSession(out)
    names = ["probabilities", "mean", "scale", "q05", "q95"]
    assert [o.name for o in session.get_outputs()] == [*names, "distance"]
    x = images(tiny_dataset)
    ours, theirs = load(path, "cpu").predict(x), OnnxBundle(out, 1).predict(x.numpy())
    assert list(ours) == list(theirs)
    for name in names:
        np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), atol=1e-4)
    text = capsys.readouterr().out
    assert "float32 against the bundle on 32 images:" in text
    assert "MAE" in text
    assert "AUC" in text


def test_narrow_far_and_wide_numbers_agree_too(tiny_dataset: Path, tmp_path: Path) -> None:
    bundle = load(make_bundle(tiny_dataset, tmp_path / "b.safetensors", 1, [MASS]), "cpu")
    raw = torch.tensor([[a, b] for a in (-20.0, -2.0, 0.0, 2.0, 20.0) for b in (-30.0, -4.0, 0.0, 30.0)])

    class Given(torch.nn.Module):
        def forward(self, raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(bundle.heads["value"].outputs(raw)["log10_m_axion"].values())

    program = torch.onnx.export(
        Given(), (raw,), dynamic_shapes=({0: torch.export.Dim("n")},), dynamo=True, verbose=False
    )
    assert program is not None
    program.save(tmp_path / "head.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "head.onnx")
    found = session.run(None, {session.get_inputs()[0].name: raw.numpy()})
    for ours, theirs in zip(Given()(raw), found, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), atol=2e-5)


@pytest.mark.parametrize("name", ["graph", "physics_informed"])
def test_every_network_leaves_as_it_is(name: str) -> None:
    bundle = small_bundle(recipe.Recipe(model=recipe.Model(name)), image=ImageInfo(1, 20, 20))
    model = graph._trace(bundle.network.trunk, (torch.zeros(2, 1, 20, 20),), ["x"], ["features"], bundle)
    x = torch.randn(3, 1, 20, 20)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, bundle.network.features(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["student_t", "mixture", "flow"])
def test_every_posterior_leaves_as_it_is(kind: str) -> None:
    targets = [Target("a", "", -23.0, 0.6, -24.0, -22.0)]
    torch.manual_seed(0)
    head = HEADS[kind](4, kind, Truths([], targets, [0])).eval()

    class Said(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(v for each in head.outputs(raw).values() for v in each.values())

    raw, bundle = 3 * torch.randn(5, head.n_out), small_bundle(recipe.Recipe())
    names = [f"out_{k}" for k in range(4)]
    model = graph._trace(Said(), (raw[:2],), ["raw"], names, bundle)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"raw": raw.numpy()})
    with torch.no_grad():
        for theirs, ours in zip(found, Said()(raw), strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4)


@pytest.mark.parametrize("stretch", ["asinh", "log", "sqrt", "power", "none"])
def test_random_images_look_like_training_images_to_the_network(stretch: Any, tiny_dataset: Path) -> None:
    dataset = Dataset(tiny_dataset)
    config = recipe.Preprocess(stretch=stretch)
    preprocess = Preprocessor.fit(config, dataset.manifest.image, [dataset.split("train").images(np.arange(64))])
    context = Context(dataset.manifest.image, preprocess)
    network = build_network(recipe.Model(), [CLASS], ["a", "b"], context)
    about = ([CLASS], recipe.Recipe(), ["a", "b"], dataset.manifest.image)
    made = Bundle(network, preprocess, OutOfDistribution(preprocess.output_shape, 160), *about)
    x = preprocess(parity.random_sample(made).images)
    if stretch == "log":  # nothing lies below 0
        assert x.std() == pytest.approx(1, abs=0.5)
    else:
        assert (x.mean(), x.std()) == pytest.approx((0, 1), abs=0.05)


def test_int8_keeps_class_and_preprocessing(compact: Path, exported: Path, tiny_dataset: Path, capsys: Any) -> None:
    out = export(compact, exported.with_name("int8.onnx"), int8=True, data=tiny_dataset)
    assert "int8 against the bundle on 32 images" in capsys.readouterr().out
    x = images(tiny_dataset).numpy()
    p, q = (b.predict(x).probabilities for b in (OnnxBundle(exported, 1), OnnxBundle(out, 1)))
    assert 0 < np.abs(p - q).max() < 0.1
    assert np.mean(p.argmax(1) == q.argmax(1)) > 0.9
    assert out.stat().st_size < 0.5 * exported.stat().st_size
    nodes = onnx.load(out).graph.node
    for part in ("preprocess/", "heads/"):
        assert "QuantizeLinear" not in {n.op_type for n in nodes if n.name.startswith(part)}
    assert "QuantizeLinear" in {n.op_type for n in nodes}
    assert OnnxBundle(out).precision == "int8"


def test_a_program_without_deeplense_finds_what_it_needs(compact: Path, exported: Path) -> None:
    ours, theirs = load(compact, "cpu"), OnnxBundle(exported)
    for name in ("classes", "image", "fingerprint"):
        assert getattr(theirs, name) == getattr(ours, name)
    session = onnxruntime.InferenceSession(exported)
    about = json.loads(session.get_modelmeta().custom_metadata_map["deeplense"])
    assert about["name"] == "made"
    assert about["answers"] == {"class": {"answer": "classes", "classes": ours.classes}}
    assert [(i.name, i.shape[1:], i.type) for i in session.get_inputs()] == [("image", [1, 16, 16], "tensor(float)")]
    assert [o.name for o in session.get_outputs()] == ["probabilities", "distance"]


def test_a_file_that_disagrees_is_not_left(
    compact: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(exported)
    del model.metadata_props[:]
    kernel = next(w for w in model.graph.initializer if len(w.dims) == 4)
    kernel.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(kernel) * np.float32(1.05), kernel.name))
    monkeypatch.setattr(graph, "make", lambda *_: model)
    with pytest.raises(UserError, match="more than the tolerance, nothing written"):
        export(compact, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


class Fixed:
    """A bundle that has made up its mind."""

    def __init__(self, probabilities: np.ndarray) -> None:
        self.probabilities = probabilities

    def predict(self, images: Any) -> Prediction:
        return Prediction.of(
            {"class": {"answer": "classes", "classes": ["a", "b", "c"]}}, {"probabilities": self.probabilities}
        )


@pytest.mark.parametrize("known", [True, False])
def test_int8_is_refused_for_what_it_loses(known: bool) -> None:
    labels = np.arange(300) % 3
    sure = np.eye(3)[labels]
    close, far = 0.9995 * sure + 0.0005 / 3, np.roll(sure, 1, axis=1)
    far[2:] = sure[2:]  # one class in 150 is another
    truth = parity.Sample(torch.zeros(300, 1, 1, 1), {"class": labels} if known else {})
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


def test_files_that_are_not_ours(compact: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        OnnxBundle(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="not an ONNX file of this deeplense"):
        OnnxBundle(compact)
