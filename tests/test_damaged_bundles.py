"""A bundle may come from anywhere, and arrive in any state: it predicts, or one line says why not."""

from __future__ import annotations

import copy
import json
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deeplense import bundle
from deeplense.errors import UserError

OLD = Path(__file__).parent / "old"
IMAGES = np.load(OLD / "images.npy")
Place = tuple[str | int, ...]
# fmt: off
HOSTILE: list[Any] = [
    None, True, -1, 0, 0.5, 2, 10**9, 2**62, 1e300, -1e-9, "", "x", "no_sub", "a\nb", "\x1b[31m", "\ud800", [], [1],
    [None], ["a"] * 3, {}, {"a": 1}, {"class_path": "os.system"},
]
# fmt: on


@pytest.fixture(scope="module", params=["classifier", "regressor"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle of today's format."""
    path = tmp_path_factory.mktemp("whole") / "b.safetensors"
    bundle.load(OLD / f"{request.param}.safetensors", "cpu").save(path)
    return path


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["deeplense"])


def outcome(path: Path) -> str:
    """What comes of predicting: nothing, or the error's message. Any other error, or a warning, fails the test."""
    said = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with np.errstate(all="ignore"):
                bundle.load(path, "cpu").predict(IMAGES[:1]).columns()
    except UserError as error:
        said = str(error)
    assert said.isprintable(), repr(said)
    assert len(said) < 1000
    return said


def test_damaged_bytes_are_told_in_one_line(whole: Path, tmp_path: Path) -> None:
    draw, content, path = np.random.default_rng(0), whole.read_bytes(), tmp_path / "b.safetensors"
    header = 8 + int.from_bytes(content[:8], "little")
    told = 0
    for k in range(60):
        damaged = bytearray(content)
        damaged[draw.integers(header if k % 2 else len(content))] ^= 1 << int(draw.integers(8))
        path.write_bytes(damaged[: draw.integers(len(damaged))] if k % 5 == 0 else damaged + bytes(k % 3))
        told += outcome(path) != ""
    assert told > 30


def places(tree: Any, here: Place = ()) -> Iterator[Place]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*here, key)
        yield from places(value, (*here, key))


def changed(tree: Any, place: Place, value: Any) -> Any:
    """A copy with another value there; without it for `...`."""
    tree = node = copy.deepcopy(tree)
    for key in place[:-1]:
        node = node[key]
    if value is ...:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return tree


def test_any_other_metadata_are_told_in_one_line(whole: Path, tmp_path: Path) -> None:
    draw, about, state = np.random.default_rng(1), metadata(whole), load_file(whole)
    everywhere, path = list(places(about)), tmp_path / "b.safetensors"
    told = 0
    for k in range(100):
        place = everywhere[draw.integers(len(everywhere))]
        value = [*HOSTILE, ...][k % (len(HOSTILE) + 1)]
        save_file(state, path, {"deeplense": json.dumps(changed(about, place, value))})
        told += outcome(path) != ""
    assert told > 50


@pytest.mark.parametrize("key", ["widths", "depths"])
@pytest.mark.parametrize("number", [10**6, 10**9, 2**62, 1e300])
def test_a_number_that_asks_for_any_size_takes_no_memory(key: str, number: float, whole: Path, tmp_path: Path) -> None:
    about, path = metadata(whole), tmp_path / "b.safetensors"
    about["recipe"]["model"]["kwargs"] |= {key: [number] * len(about["recipe"]["model"]["kwargs"][key])}
    save_file(load_file(whole), path, {"deeplense": json.dumps(about)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert f"model.kwargs.{key}.0 is {number}" in outcome(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**18  # KiB


def test_a_network_deeper_than_its_weights_is_not_built(whole: Path, tmp_path: Path) -> None:
    about, path = metadata(whole), tmp_path / "b.safetensors"
    about["recipe"]["model"]["kwargs"]["depths"][0] = 2**16
    save_file(load_file(whole), path, {"deeplense": json.dumps(about)})
    assert "it asks for more than" in outcome(path)


def test_weights_of_other_types_shapes_and_values(whole: Path, tmp_path: Path) -> None:
    about, state, path = metadata(whole), load_file(whole), tmp_path / "b.safetensors"
    told = 0
    for k, name in enumerate(sorted(state)):
        one = state[name]
        others = [one.double(), one[None], one.bool(), torch.full_like(one, 1e4), torch.zeros_like(one), None]
        made = others[k % len(others)]
        now = {n: t for n, t in (state | {name: made}).items() if t is not None}
        about["weights_sha256"] = bundle._digest(now)
        save_file(now, path, {"deeplense": json.dumps(about)})
        told += outcome(path) != ""
    assert told >= len(state) // 6
