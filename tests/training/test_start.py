"""From a bundle, with balanced classes, and on with a finished run."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deeplense.bundle import load
from deeplense.data import store
from deeplense.data.loaders import StoredLoader
from deeplense.data.schema import read_manifest
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.training.fit import train

QUICK = ["training.batch_size=16", "model.kwargs={widths: [8, 16], depths: [1, 1]}", "training.lr=0.01"]


def _train(data: Path, out: Path, *more: str, **kwargs: Any) -> Path:
    return train({}, data, out, overrides=[*QUICK, *more], device="cpu", **kwargs)


def _rows(out: Path) -> list[dict[str, float]]:
    with open(out / "history.csv") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_a_finished_run_goes_on_with_more_epochs_where_the_new_schedule_stands(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    _train(tiny_dataset, tmp_path / "run", "training.epochs=2")
    _train(tiny_dataset, tmp_path / "run", "training.epochs=5", resume=True)
    rows = _rows(tmp_path / "run")
    assert [r["epoch"] for r in rows] == [1, 2, 3, 4, 5]
    whole: list[float] = []
    _train(tiny_dataset, tmp_path / "whole", "training.epochs=5", on_epoch=lambda _, r: whole.append(r["lr"]))
    assert [r["lr"] for r in rows[2:]] == pytest.approx(whole[2:])
    assert load(tmp_path / "run" / "bundle.safetensors", "cpu").recipe.training.epochs == 5


@pytest.mark.parametrize("change", ["training.lr=0.001", "training.schedule=constant"])
def test_a_finished_run_goes_on_with_another_rate(tiny_dataset: Path, tmp_path: Path, change: str) -> None:
    first = ["training.schedule=plateau", "training.epochs=1"]
    _train(tiny_dataset, tmp_path / "run", *first)
    _train(tiny_dataset, tmp_path / "run", *first, "training.epochs=2", "training.warmup=0", change, resume=True)
    expected = 0.001 if "lr" in change else 0.01
    assert _rows(tmp_path / "run")[1]["lr"] == pytest.approx(expected)


def test_fine_tuning_starts_from_the_weights(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = _train(tiny_dataset, tmp_path / "old", "training.epochs=6")
    still = ["training.epochs=1", "training.lr=1.0e-9", "training.calibrate=false", "seed=3"]
    tuned = _train(tiny_dataset, tmp_path / "tuned", f"training.init={old}", *still)
    assert "starting from" in capsys.readouterr().out
    before, after = (load(path, "cpu").network.state_dict() for path in (old, tuned))
    weights = [k for k in before if "running" not in k and "tracked" not in k and "temperature" not in k]
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in weights)


def test_a_frozen_trunk_stays_and_another_head_is_fresh(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = _train(tiny_dataset, tmp_path / "old", "training.epochs=1")
    more = ["task.kind=regress", "task.target=log10_m_axion", "training.freeze=trunk", "training.epochs=2"]
    new = _train(tiny_dataset, tmp_path / "new", f"training.init={old}", "training.batch_size=8", *more)
    assert "fresh heads: value" in capsys.readouterr().out
    before, after = (load(path, "cpu").network for path in (old, new))
    assert all(torch.equal(v, after.trunk.state_dict()[k]) for k, v in before.trunk.state_dict().items())


def test_a_slower_trunk(tiny_dataset: Path, tmp_path: Path) -> None:
    old = _train(tiny_dataset, tmp_path / "old", "training.epochs=1")
    runs = {}
    for factor in ("0.01", "1.0"):
        path = _train(
            tiny_dataset, tmp_path / factor, f"training.init={old}", f"training.trunk_lr={factor}", "training.epochs=1"
        )
        runs[factor] = load(path, "cpu").network
    start = load(old, "cpu").network
    name = "stem.0.weight"

    def moved(network: Any, part: str, key: str) -> float:
        return float((getattr(network, part).state_dict()[key] - getattr(start, part).state_dict()[key]).norm())

    assert moved(runs["0.01"], "trunk", name) < 0.05 * moved(runs["1.0"], "trunk", name)
    assert moved(runs["0.01"], "heads", "class.last.weight") > 0.2 * moved(runs["1.0"], "heads", "class.last.weight")


def test_bad_starts(tiny_dataset: Path, tmp_path: Path) -> None:
    old = _train(tiny_dataset, tmp_path / "old", "training.epochs=1")
    with pytest.raises(UserError, match=r"training\.init=.*another stem\.0\.weight"):
        _train(tiny_dataset, tmp_path / "a", f"training.init={old}", "model.kwargs={widths: [4, 6], depths: [1, 1]}")
    with pytest.raises(UserError, match="no such bundle"):
        _train(tiny_dataset, tmp_path / "b", "training.init=nowhere.safetensors")
    with pytest.raises(UserError, match=r"training\.freeze.*training\.init"):
        _train(tiny_dataset, tmp_path / "c", "training.freeze=trunk")
    with pytest.raises(UserError, match=r"training\.sources\.more"):
        _train(tiny_dataset, tmp_path / "d", "training.sources={more: sim}")


@pytest.fixture
def lopsided(tmp_path: Path, make_dataset: Callable[..., Path]) -> Path:
    """Forty images of one class, one of the other."""
    whole = make_dataset(tmp_path / "whole", n_train=400, n_val=60, n_test=60, classes=("axion", "cdm"))
    manifest, shards = read_manifest(whole), []
    for name in ("train", "val", "test"):
        split = Dataset(whole).split(name)
        rare = np.flatnonzero(split.labels == 1)
        keep = np.sort(np.concatenate([np.flatnonzero(split.labels == 0), rare[: max(len(rare) // 40, 2)]]))
        ids = [split.ids[k] for k in keep]
        images = split.images(keep).numpy()
        shards.append(store.write_shard(tmp_path / "few", name, 0, images, split.labels[keep], split.params[keep], ids))
        manifest.splits[name] = len(keep)
    manifest.shards = shards
    manifest.seal().write(tmp_path / "few")
    return tmp_path / "few"


@pytest.mark.parametrize("balance", ["weights", "sampler"])
def test_a_rare_class_is_found_when_classes_weigh_alike(lopsided: Path, tmp_path: Path, balance: str) -> None:
    made = load(_train(lopsided, tmp_path / balance, "training.epochs=4", f"training.balance={balance}"), "cpu")
    test = Dataset(lopsided).split("test")
    said = made.predict(test.images(np.arange(len(test)))).probabilities.argmax(1)
    assert (said[test.labels == 1] == 1).mean() >= 0.5
    assert (said[test.labels == 0] == 0).mean() > 0.7


def test_a_balanced_epoch_shows_classes_equally_often(lopsided: Path) -> None:
    split = Dataset(lopsided).split("train")
    loader = StoredLoader(split, 16, shuffle=True, strata=split.labels)
    labels = np.concatenate([b.label.numpy() for b in loader])
    assert len(labels) == len(split)
    assert abs(np.bincount(labels)[0] - np.bincount(labels)[1]) <= 1
    again = np.concatenate([b.id.numpy() for b in StoredLoader(split, 16, shuffle=True, strata=split.labels)])
    np.testing.assert_array_equal(again, np.concatenate([b.id.numpy() for b in loader]))


class Mine(nn.Module):
    def __init__(self, in_chans: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.num_features = in_chans * image_size[0] * image_size[1]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    forward = forward_features


def test_a_class_of_the_running_program_trains(tmp_path: Path, tiny_dataset: Path) -> None:
    changes = [f"model.name='{__name__}:Mine'", "training.epochs=1", "training.batch_size=32"]
    made = train("quickstart", tiny_dataset, tmp_path / "run", overrides=changes, device="cpu")
    assert isinstance(load(made, "cpu").network.trunk, Mine)
