"""An exported network: it starts without the libraries that trained it, and a damaged file is told in one line."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import wild
from onnx import TensorProto, helper, numpy_helper

from deeplense.answers import Prediction
from deeplense.bundle import Bundle
from deeplense.errors import UserError
from deeplense.inference import runtime
from deeplense.inference.predict import LOST, predict
from deeplense.inference.runtime import OnnxBundle

OLD = Path(__file__).parents[1] / "old"
IMAGES = np.load(OLD / "images.npy")
HEAVY = {"torch", "torchvision", "sklearn", "lightning", "timm", "optuna", "matplotlib", "scipy", "pandas"}
SIGNATURE = re.compile(rb'"sha256": "[0-9a-f]{64}"')


@pytest.fixture(scope="module")
def inputs(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    wild.write(folder / "npy" / "one.npy", wild.lens(16))
    wild.write(folder / "npy" / "two.npy", wild.lens(20))
    return {
        "npy": folder / "npy",
        "zip": wild.zipped(folder / "npy", folder / "npy.zip"),
        "jpg": wild.picture(folder / "picture.jpg"),
        "h5": wild.hdf5(folder / "many.h5", np.stack([wild.lens(20, k) for k in range(3)])),
        "fits": wild.telescope(folder / "telescope.fits", pixel_scale=0.04),
        "dataset": tiny_dataset,
    }


def run(code: str, *arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("table", ["t.csv", "t.parquet"])
@pytest.mark.parametrize(
    ("kinds", "n", "also"),
    [
        (["npy", "zip"], 4, set()),
        (["jpg"], 1, {"PIL"}),
        (["h5", "dataset"], 3 + 128, {"h5py"}),
        (["fits"], 1, {"astropy"}),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, list) else "",
)
def test_only_what_reads_and_writes_is_imported(
    table: str, kinds: list[str], n: int, also: set[str], exported: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    code = """
import sys
from deeplense.cli import main
main(["predict", *sys.argv[1:]])
print(*{name.partition(".")[0] for name in sys.modules})
"""
    out = tmp_path / table
    *_, wrote, modules = run(code, exported, *(inputs[k] for k in kinds), "--out", out).splitlines()
    assert wrote == f"wrote {out}: {n} images"
    written = {"pyarrow"} if table.endswith("parquet") else set()
    assert set(modules.split()) & (HEAVY | {"astropy", "h5py", "PIL", "pyarrow"}) <= also | written


def test_every_input_is_predicted_where_torch_cannot_be_imported(
    exported: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    code = """
import sys
for name in ("torch", "torchvision", "sklearn", "lightning", "timm"):
    sys.modules[name] = None
from deeplense.cli import main
main(["predict", *sys.argv[1:]])
"""
    there, here = tmp_path / "there.csv", tmp_path / "here.csv"
    assert f"wrote {there}: {2 + 2 + 1 + 3 + 1 + 128} images" in run(
        code, exported, *inputs.values(), "--out", there, "--pixel-scale", "0.1"
    )
    predict(exported, list(inputs.values()), here, pixel_scale=0.1)
    assert there.read_bytes() == here.read_bytes()


def resigned(content: bytes) -> bytes:
    """With a checksum that fits, so that what comes after it is tested."""
    found = SIGNATURE.search(content)
    return runtime.signed(content.replace(found[0], runtime.UNSIGNED.encode())) if found else content


def outcome(path: Path) -> str:
    """What comes of predicting: nothing, or the error's message. Any other error fails the test."""
    said = ""
    try:
        OnnxBundle(path, 1).predict(IMAGES[:2]).columns()
    except UserError as error:
        said = str(error)
    assert said.isprintable(), repr(said)
    assert len(said) < 1000
    return said


def test_any_changed_byte_is_noticed(exported: Path, tmp_path: Path) -> None:
    content, draw, path = exported.read_bytes(), np.random.default_rng(0), tmp_path / "m.onnx"
    for k in range(200):
        damaged = bytearray(content)
        damaged[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
        cut, longer = damaged[: draw.integers(len(damaged))], content + bytes(1 + k)
        path.write_bytes({1: cut, 2: longer}.get(k % 8, damaged))
        assert re.search("its bytes have changed|not an ONNX file of this deeplense", outcome(path))


@pytest.mark.filterwarnings("ignore:.* encountered in")
def test_damage_that_the_checksum_does_not_show_is_told_in_one_line(exported: Path, tmp_path: Path) -> None:
    content, draw, path = exported.read_bytes(), np.random.default_rng(1), tmp_path / "m.onnx"
    ends = len(content) - 8000  # most of what names and describes
    told = 0
    for k in range(300):
        damaged = bytearray(content)
        damaged[draw.integers(ends if k % 2 else 0, len(content))] = int(draw.integers(256))
        path.write_bytes(resigned(bytes(damaged[: draw.integers(len(damaged))] if k % 10 == 0 else damaged)))
        told += outcome(path) != ""
    assert told > 60


def remade(exported: Path, path: Path, change: Callable[[Any, dict[str, Any]], Any]) -> Path:
    """The file after `change` of its graph and metadata."""
    model = onnx.load(exported)
    (entry,) = model.metadata_props
    about = json.loads(entry.value)
    change(model.graph, about)
    entry.value = json.dumps(about)
    path.write_bytes(resigned(model.SerializeToString()))
    return path


def declared(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def renamed(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = new if name == old else name
    next(v for v in (*graph.input, *graph.output) if v.name == old).name = new


def constant(graph: Any, name: str, value: Any) -> None:
    """An output that no longer depends on the images."""
    node = next(n for n in graph.node if name in n.output)
    node.output[list(node.output).index(name)] = "unused"
    graph.node.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda graph, about: about.update(format=99), "export format 99, not 2"),
        (lambda graph, about: about.update(format=[]), r"export format \[\], not 2"),
        (lambda graph, about: about.update(answers=[]), "its metadata.answers is"),
        (lambda graph, about: about.update(answers={}), "no answer"),
        (lambda graph, about: about["answers"].update(x={"answer": "eval"}), "an answer 'eval', not classes or value"),
        (lambda graph, about: about["answers"].update(x={"answer": ["classes"]}), "do not describe the answer 'x'"),
        (lambda graph, about: about["answers"].update(x={"answer": "value", "name": 3, "unit": ""}), "answer 'x'"),
        (lambda graph, about: about["answers"].update(x={"answer": "value"}), "do not describe the answer 'x'"),
        (lambda graph, about: about["answers"]["class"].update(classes=["a", "a", "b"]), "answer 'class'"),
        (lambda graph, about: about["answers"]["class"].update(classes=[1, 2, 3]), "answer 'class'"),
        (lambda graph, about: about["answers"]["class"].update(classes=["a"]), "'probabilities' of shape"),
        (lambda graph, about: about.pop("image"), "image"),
        (lambda graph, about: about["image"].update(channels="1"), "its metadata.image.channels is '1'"),
        (lambda graph, about: about["image"].update(height=10**9), "1000000000"),
        (lambda graph, about: about["image"].update(height=8, width=32), "'image' of shape"),
        (lambda graph, about: about["image"].update({"class_path": "os.system"}), "no key 'class_path'"),
        (lambda graph, about: about.update(classes=7), "its metadata.classes is 7"),
        (lambda graph, about: about.update(fingerprint=None), "its metadata.fingerprint"),
        (lambda graph, about: renamed(graph, "image", "pixels"), "its graph takes pixels, not image"),
        (lambda graph, about: renamed(graph, "distance", "far"), "its graph gives probabilities, far, not"),
        (lambda graph, about: graph.input[0].CopyFrom(declared("image", TensorProto.FLOAT, [1, 1, 16, 16])), "'image'"),
        (lambda graph, about: graph.output.pop(), "its graph gives probabilities, not"),
        (lambda graph, about: constant(graph, "distance", np.zeros(7, np.float32)), "'distance'"),
        (lambda graph, about: constant(graph, "distance", np.zeros((), np.float32)), "'distance'|not a readable"),
        (lambda graph, about: constant(graph, "distance", np.zeros(2, np.int64)), "'distance'|not a readable"),
    ],
)
def test_a_graph_that_is_not_what_its_metadata_say(change: Any, says: str, exported: Path, tmp_path: Path) -> None:
    path = remade(exported, tmp_path / "m.onnx", change)
    assert re.search(says, outcome(path))


def test_what_is_not_for_the_program_may_be_anything(exported: Path, tmp_path: Path) -> None:
    hostile = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "flag")]}}
    path = remade(exported, tmp_path / "m.onnx", lambda graph, about: about.update(recipe=hostile, summary=hostile))
    assert outcome(path) == ""
    assert not (tmp_path / "flag").exists()


def test_a_graph_that_gives_no_number_gives_no_table(exported: Path, tmp_path: Path) -> None:
    def change(graph: Any, about: Any) -> None:
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.nan, tensor.name))

    path = remade(exported, tmp_path / "m.onnx", change)
    wild.write(tmp_path / "one.npy", wild.lens(16))
    with pytest.raises(UserError, match="gives no finite number for any of 1 images"):
        predict(path, [tmp_path / "one.npy"], tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


def test_an_image_without_a_finite_prediction_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Bundle.predict

    def holed(self: Bundle, images: Any, batch_size: int = 256) -> Prediction:
        found = original(self, images, batch_size)
        found.probabilities[images.mean((1, 2, 3)) > 100] = np.nan
        return found

    monkeypatch.setattr(Bundle, "predict", holed)
    for k, brightness in enumerate((1, 1000, 1)):
        wild.write(tmp_path / "in" / f"{k}.npy", brightness * wild.lens(16))
    predict(OLD / "classifier.safetensors", [tmp_path / "in"], tmp_path / "t.csv", device="cpu")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [LOST in row["warning"] for row in rows] == [False, True, False]
