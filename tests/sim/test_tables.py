"""Priors from files: samples and densities against what they were made from, and files that are no tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from deeplense import config, rng
from deeplense.errors import UserError
from deeplense.sim.priors import Prior
from deeplense.sim.world import World


def draws(path: Path, n: int = 20_000) -> np.ndarray[Any, np.dtype[np.float64]]:
    prior = Prior.parse({"table": str(path)}, "here")
    assert not prior.constant
    return prior.sample(rng.generator(3, "table"), (n,))


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".txt"])
def test_samples_are_drawn_each_as_often_as_any_other(tmp_path: Path, suffix: str) -> None:
    samples, path = np.array([3.0, -1.5, 7.25, 3.0]), tmp_path / f"samples{suffix}"
    if suffix == ".npy":
        np.save(path, samples)
    else:
        path.write_text("# a comment\nmass\n" + "\n".join(map(str, samples)) + "\n")
    found = draws(path)
    assert set(found) == {3.0, -1.5, 7.25}
    assert stats.binomtest(int((found == 3).sum()), len(found), 0.5).pvalue > 1e-3
    assert Prior.parse({"table": str(path)}, "x").bounds == (-1.5, 7.25)


def test_a_density_is_linear_between_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "density.csv"
    path.write_text("x,density\n0,0\n1,4\n3,4\n5,0\n")  # a trapezium
    assert stats.kstest(draws(path), stats.trapezoid(0.2, 0.6, 0, 5).cdf).pvalue > 1e-3


def test_a_density_may_be_zero_over_a_stretch(tmp_path: Path) -> None:
    path = tmp_path / "density.txt"
    path.write_text("0 0\n1 0\n2 3\n3 0\n4 0\n5 1\n5.5 1\n")
    found = draws(path)
    assert not ((found < 1) | ((found > 3) & (found < 4))).any()
    assert found.max() <= 5.5
    assert stats.binomtest(int((found < 3).sum()), len(found), 3 / 4).pvalue > 1e-3


def test_a_recipe_draws_from_a_table_and_stores_its_name(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", [0.9, 1.1])
    w = World(config.load_recipe("model_2", [f"simulation.source.R_sersic={{table: {tmp_path / 't.npy'}}}"]).simulation)
    (scene, *_) = w.scenes(0, "train", 0)
    assert set(scene.truth["source.R_sersic"].tolist()) == {0.9, 1.1}
    (truth,) = (t for t in w.truth if t.name == "source.R_sersic")
    assert truth.prior == {"table": str(tmp_path / "t.npy")}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", r"its shape is .*give a column of samples, or value and density"),
        ("1 2 3\n4 5 6\n", r"its shape is \(2, 3\)"),
        ("1\n2 3\n", "not a table of numbers .*rows of different lengths"),
        ("1\nnan\n", "holds NaN or infinite numbers"),
        ("a\nb\n", "not a table of numbers"),
        ("1 1\n1 2\n", "must increase from row to row"),
        ("1 1\n2 -1\n", "must not be negative"),
        ("1 0\n2 0\n", "nor zero everywhere"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"a\.b: .*bad\.txt: .*{wrong}") as found:
        Prior.parse({"table": str(path)}, "a.b")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["gone.csv", "table.xyz", "x\0y", "~nobody-here/t.csv", "folder.csv", "bytes.csv"])
def test_a_name_of_no_table_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "table.xyz").write_text("1\n")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x01")
    path = name if name.startswith("~") else str(tmp_path / name)
    with pytest.raises(UserError, match=r"a\.b: ") as found:
        Prior.parse({"table": path}, "a.b")
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match=r"a\.b: table takes the name of a file, not"):
        Prior.parse({"table": [1, 2]}, "a.b")
