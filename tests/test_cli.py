"""The command line: every verb from simulation to export, and one line for whatever is wrong."""

from __future__ import annotations

import contextlib
import csv
import inspect
import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deeplense import cli, config
from deeplense.cli import VERBS
from deeplense.data.store import validate

RECIPE = """
base: quickstart
name: tiny
splits: {train: 96, val: 32, test: 32}
simulation: {size: 16, pixel_scale: 0.25}
training: {epochs: 1, batch_size: 32}
tuning: {trials: 2, pruner: none, space: {training.lr: {log: [0.001, 0.01]}}}
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


def run(*words: str | Path) -> Result:
    """`deeplense WORDS` in this process; what it raises but for SystemExit fails the test."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
    return Result(int(code or 0), out.getvalue(), err.getvalue())


def script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The same as a user starts it."""
    command = [str(Path(sys.executable).with_name("deeplense")), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def fails(match: str, *words: str | Path) -> str:
    """Exactly one line on stderr, nothing on stdout, exit code 2."""
    result = run(*words)
    assert result.code == 2, result
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(match, line), line
    assert "Traceback" not in result.out + result.err
    return line


class Made(NamedTuple):
    """What the verbs made, one after the other."""

    recipe: Path
    dataset: Path
    run: Path
    report: Path
    table: Path
    onnx: Path
    study: Path
    results: dict[str, Result]

    @property
    def bundle(self) -> Path:
        return self.run / "bundle.safetensors"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp("cli")
    names = ("r.yaml", "dataset", "run", "report", "table.csv", "model.onnx", "study")
    m = Made(*(root / name for name in names), {})
    m.recipe.write_text(RECIPE)
    lines: dict[str, list[str | Path]] = {
        "simulate": [m.recipe, "--out", m.dataset, "--workers", "1"],
        "train": [m.recipe, "--data", m.dataset, "--out", m.run, "--device", "cpu", "training.lr=0.002"],
        "evaluate": [m.bundle, "--data", m.dataset, "--out", m.report, "--device", "cpu"],
        "predict": [m.bundle, m.dataset, "--out", m.table, "--device", "cpu"],
        "export": [m.bundle, "--out", m.onnx],
        "tune": [m.recipe, "--data", m.dataset, "--out", m.study, "--device", "cpu"],
    }
    for verb, words in lines.items():
        m.results[verb] = run(verb, *words)
    return m


def test_every_step_from_simulation_to_export(made: Made) -> None:
    for verb, result in made.results.items():
        assert result.code == 0, (verb, result)
        assert "Traceback" not in result.err
    assert validate(made.dataset, checksums=True).splits == {"train": 96, "val": 32, "test": 32}
    assert {p.name for p in made.run.iterdir()} == {
        "bundle.safetensors", "last.ckpt", "recipe.yaml", "history.csv", "log"
    }  # fmt: skip
    assert config.load_recipe(made.run / "recipe.yaml").training.lr == 0.002
    metrics = json.loads((made.report / "metrics.json").read_text())
    assert metrics["task"] == "classify"
    assert metrics["n"] == 32
    assert "<html" in (made.report / "index.html").read_text()
    with open(made.table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 96 + 32 + 32
    classes = ["no_sub", "cdm", "axion"]
    for row in rows:
        p = [float(row[f"p_{c}"]) for c in classes]
        assert sum(p) == pytest.approx(1, abs=1e-5)
        assert row["class"] == classes[int(np.argmax(p))]
    assert made.onnx.stat().st_size > 1000
    assert config.load_recipe(made.study / "best.yaml").training.epochs == 1
    with open(made.study / "history.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_every_step_says_where_it_wrote(made: Made) -> None:
    where = {"simulate": made.dataset, "train": made.bundle, "evaluate": made.report, "predict": made.table,
             "export": made.onnx, "tune": made.study}  # fmt: skip
    for verb, path in where.items():
        assert str(path) in made.results[verb].out, verb


def test_info_and_show(made: Made, tmp_path: Path) -> None:
    about = {str(s): run("info", s) for s in (made.dataset, made.bundle, made.recipe, "legacy/model_1")}
    assert all(r.code == 0 and r.out and not r.err for r in about.values())
    assert "train 96, val 32, test 32" in about[str(made.dataset)].out
    assert "no_sub, cdm, axion" in about[str(made.bundle)].out
    assert "16 x 16" in about[str(made.recipe)].out
    assert "every byte is as it was written" in run("info", made.dataset, "--verify").out
    picture = tmp_path / "lens.png"
    assert run("show", made.dataset, "--id", "test-00000002", "--out", picture).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_its_example_and_the_example_can_be_read(verb: str) -> None:
    result = run(verb, "--help")
    assert result.code == 0
    assert not result.err
    text = " ".join(result.out.split())
    example = VERBS[verb].example
    assert f"example: {example}" in text
    first, name, *words = shlex.split(example)
    assert (first, name) == ("deeplense", verb)
    # every option of the example is one that the help lists, with dashes
    options = [word for word in words if word.startswith("--")]
    assert all(option in text for option in options)
    assert not re.search(r"--\w*_", result.out)


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_every_verb_is_parsed_as_meant(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    function = VERBS[verb].load()

    def fake(**values: object) -> None:
        seen.update(values)

    fake.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    monkeypatch.setattr(cli.Verb, "load", lambda self: fake)
    words = shlex.split(VERBS[verb].example)[1:]
    result = run(*words)
    assert result.code == 0, result
    for word, value in itertools.pairwise(words):
        if word.startswith("--") and not value.startswith("--") and "=" not in value:
            assert str(seen[word[2:].replace("-", "_")]) == value
    for argument in VERBS[verb].positional:
        assert seen[argument.rstrip("+*?")] not in (None, "")


def test_overview_and_version() -> None:
    for words in ([], ["--help"], ["-h"]):
        result = run(*words)
        assert result.code == 0
        assert all(verb.example in result.out for verb in VERBS.values())
    assert run("--version").out == f"deeplense {metadata.version('deeplense')}\n"


def test_overrides_stand_anywhere(tmp_path: Path) -> None:
    """Before, between and after the options; each way makes the same bytes."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    a, b = "simulation.size=12", "simulation.source.R_sersic={uniform: [0.1, 0.2]}"
    orders: list[Callable[[Path], list[str | Path]]] = [
        lambda out: [recipe, a, b, "--out", out, "--splits", "train=5,val=2", "--workers", "1"],
        lambda out: [recipe, "--out", out, a, "--splits", "train=5,val=2", b, "--workers", "1"],
        lambda out: [recipe, "--out", out, "--splits", "train=5,val=2", "--workers", "1", a, b],
        lambda out: ["--out", out, "--splits", "train=5,val=2", "--workers", "1", recipe, b, a],
        lambda out: [b, "--out", out, "--splits", "train=5,val=2", recipe, "--workers", "1", a],
        lambda out: [recipe, f"--out={out}", "--splits=train=5,val=2", "--workers=1", b, a],
    ]
    for k, words in enumerate(orders):
        result = run("simulate", *words(tmp_path / str(k)))
        assert result.code == 0, result
    made = [{p.name: p.read_bytes() for p in (tmp_path / str(k)).iterdir()} for k in range(len(orders))]
    assert all(m == made[0] for m in made)
    manifest = validate(tmp_path / "0")
    assert (manifest.image.height, manifest.splits) == (12, {"train": 5, "val": 2})
    assert manifest.parameters[0].prior == {"uniform": [0.1, 0.2]}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("simlate quickstart", "no verb 'simlate'; did you mean 'simulate'"),
        ("--vers", "no verb '--vers'"),
        ("simulate", "required: .*recipe"),
        ("simulate quickstart", "required: out"),
        ("simulate quikstart --out OUT", "no recipe 'quikstart'.*did you mean 'quickstart'"),
        ("simulate quickstart extra --out OUT", "'extra' is not an override"),
        ("simulate quickstart --out OUT --nonsense 3", "--nonsense"),
        ("simulate quickstart --out OUT --seed x", "seed"),
        ("simulate quickstart --out OUT --seed -1", "seed"),
        ("simulate quickstart --out OUT --workers 1.5", "workers"),
        ("simulate quickstart --out OUT --engine fast", "engine 'fast'"),
        ("simulate quickstart --out OUT --device tpu", "--device tpu"),
        ("simulate quickstart --out OUT --splits train", "--splits 'train'"),
        ("simulate quickstart --out OUT simulation.sise=3", "has no key 'sise'; did you mean 'size'"),
        ("simulate quickstart --out OUT simulation.size=big", "recipe.simulation.size is 'big', but should be int"),
        ("simulate quickstart --out OUT simulation.size={", "not valid YAML"),
        (
            "simulate quickstart --out OUT 'simulation.source.center_x={uniform: [0.35, -0.35]}'",
            "simulation.source.center_x: uniform .*swap them",
        ),
        ("simulate quickstart --out OUT simulation.instrument=euclid", "did you mean 'euclid_vis'"),
        ("simulate quickstart --out OUT simulation.classes.cdm.numbr=3", "did you mean 'number'"),
        ("simulate quickstart --out /proc/none/x --per-class 1", "cannot write there"),
        ("import nowhere --out OUT", "nowhere: no such file or folder"),
        ("info nothing", "nothing: no dataset, bundle or recipe of this name"),
        ("info quickstart --verify", "--verify checks a dataset"),
        ("show quickstart --out lens.doc", "not a kind of picture"),
        ("show quickstart --out /proc/none/x.png", "No such file|cannot write"),
        ("train quickstart --data nowhere --out OUT", "nowhere: no dataset here"),
        ("train quickstart --data sim --out OUT training.epochs=0", "training.epochs is 0"),
        ("tune quickstart --data nowhere --out OUT", "nowhere: no dataset here"),
        ("evaluate none.safetensors --data nowhere --out OUT", "none.safetensors: no such bundle"),
        ("predict none.safetensors nowhere --out t.csv", "nowhere: no such file or folder"),
        ("predict none.safetensors --out t.csv", "required: inputs"),
        ("export none.safetensors --out OUT", "name the file MODEL.onnx"),
        ("export none.safetensors --out OUT/m.onnx", "none.safetensors: no such bundle"),
        ("benchmark fly", "fly"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path: Path, words: str, match: str) -> None:
    before = set(Path.cwd().iterdir())
    fails(match, *[w.replace("OUT", str(tmp_path / "out")) for w in shlex.split(words)])
    assert set(Path.cwd().iterdir()) == before
    assert not list((tmp_path / "out").rglob("*.h5"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(made: Made, tmp_path: Path) -> None:
    bundle, data, out = made.bundle, made.dataset, tmp_path / "out"
    for words in (
        ["simulate", made.recipe, "--out", out],
        ["train", made.recipe, "--data", data, "--out", out],
        ["tune", made.recipe, "--data", data, "--out", out],
        ["evaluate", bundle, "--data", data, "--out", out],
        ["predict", bundle, data, "--out", tmp_path / "t.csv"],
    ):
        fails("--device cuda: this machine has no such device; use --device cpu", *words, "--device", "cuda")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_another_version(made: Made, tmp_path: Path) -> None:
    with safe_open(made.bundle, framework="pt") as file:
        about = json.loads(file.metadata()["deeplense"])
    old = tmp_path / "old.safetensors"
    save_file(load_file(made.bundle), old, {"deeplense": json.dumps({**about, "format": 99, "code_version": "9.9"})})
    for words in (
        ["info", old],
        ["predict", old, made.dataset, "--out", tmp_path / "t.csv"],
        ["evaluate", old, "--data", made.dataset, "--out", tmp_path / "r"],
        ["export", old, "--out", tmp_path / "m.onnx"],
    ):
        fails(r"old.safetensors: bundle format 99, this code reads 2; train it again, or use deeplense 9\.9", *words)


@pytest.mark.parametrize("how", ["cut", "text", "empty", "foreign"])
def test_a_file_that_is_no_bundle(made: Made, tmp_path: Path, how: str) -> None:
    path = tmp_path / "b.safetensors"
    data = made.bundle.read_bytes()
    if how == "foreign":
        save_file(load_file(made.bundle), path)
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "text": b"no bundle", "empty": b""}[how])
    fails("b.safetensors: (damaged|not a bundle)", "predict", path, made.dataset, "--out", tmp_path / "t.csv")
    fails("b.safetensors: (damaged|not a bundle)", "info", path)


def test_a_damaged_dataset(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in made.dataset.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "train-00000.h5").read_bytes())
    data[5000] ^= 1
    (copy / "train-00000.h5").write_bytes(data)
    fails("train-00000.h5: its bytes have changed", "info", copy, "--verify")
    (copy / "train-00000.h5").unlink()
    fails("train-00000.h5: ", "info", copy)
    fails("train-00000.h5: ", "train", made.recipe, "--data", copy, "--out", tmp_path / "r", "--device", "cpu")
    fails("no image with id 'x'", "show", made.dataset, "--id", "x", "--out", tmp_path / "x.png")


def test_a_tuning_path_that_the_recipe_does_not_have(made: Made, tmp_path: Path) -> None:
    space = "tuning.space={training.learning_rate: {log: [0.001, 0.01]}, training.l: {log: [0.001, 0.01]}}"
    fails("training.*'learning_rate'", "tune", made.recipe, "--data", made.dataset, "--out", tmp_path / "s", space)
    space = "tuning.space={model.dropot: {float: [0.0, 0.5]}}"
    line = fails("'dropot'", "tune", made.recipe, "--data", made.dataset, "--out", tmp_path / "s", space)
    assert "did you mean 'dropout'?" in line


def test_folders_that_hold_something_are_not_overwritten(made: Made) -> None:
    before = {p: p.read_bytes() for p in made.run.rglob("*") if p.is_file()}
    fails("holds a run already", "train", made.recipe, "--data", made.dataset, "--out", made.run)
    fails("holds another dataset", "simulate", made.recipe, "--out", made.dataset, "--seed", "9")
    fails("r.yaml: is a file", "simulate", made.recipe, "--out", made.recipe)
    assert {p: p.read_bytes() for p in made.run.rglob("*") if p.is_file()} == before
    validate(made.dataset, checksums=True)


def test_as_a_program(tmp_path: Path) -> None:
    """The installed script, in processes of its own."""
    version = script("--version")
    assert (version.returncode, version.stdout) == (0, f"deeplense {metadata.version('deeplense')}\n")
    wrong = script("simulate", "quickstart", "--out", tmp_path / "o", "simulation.sise=3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    (line,) = wrong.stderr.splitlines()
    assert line.startswith("error: simulation has no key 'sise'; did you mean 'size'?")


def test_a_reader_that_stops_reading_is_no_error() -> None:
    """`deeplense --help | head -1`."""
    command = f"{shlex.quote(str(Path(sys.executable).with_name('deeplense')))} --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert run("info", "quickstart") == Result(130, "", "")
