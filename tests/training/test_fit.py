from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deeplense.bundle import load
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.training.fit import train

QUICK = ["training.batch_size=16", "model.kwargs={widths: [8, 16], depths: [1, 1]}", "training.lr=0.01"]


class Stop(Exception):
    pass


def _train(data: Path | str, out: Path, *more: str, **kwargs: Any) -> Path:
    return train({}, data, out, overrides=[*QUICK, *more], device="cpu", **kwargs)


def _stop_after(last: int, error: type[BaseException] = Stop) -> Callable[[int, dict[str, float]], None]:
    def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == last:
            raise error

    return on_epoch


def _state(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(out / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_learns_and_leaves_what_it_promises(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[int, float]] = []
    bundle = _train(
        tiny_dataset,
        tmp_path / "run",
        "training.epochs=15",
        on_epoch=lambda e, m: seen.append((e, m["val_loss"])),
    )
    captured = capsys.readouterr()
    assert captured.err == ""
    assert str(bundle) in captured.out
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert files == {"bundle.safetensors", "last.ckpt", "recipe.yaml", "history.csv", "log"}
    with open(tmp_path / "run" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "train_loss", "val_loss", "val_metric", "lr", "seconds"]
    assert [(int(r["epoch"]), float(r["val_loss"])) for r in rows] == seen
    made = load(bundle, "cpu")
    best = min(rows, key=lambda r: float(r["val_loss"]))
    assert made.summary["best_epoch"] == int(best["epoch"])
    assert made.summary["n_train"] == 64
    test = Dataset(tiny_dataset).split("test")
    p = made.predict(test.images(np.arange(len(test)))).probabilities
    assert (p.argmax(1) == test.labels).mean() > 0.8


def test_regression_with_a_bounded_prior(tiny_dataset: Path, tmp_path: Path) -> None:
    task = ["task.kind=regress", "task.target=log10_m_axion", "training.epochs=2", "training.batch_size=4"]
    made = load(_train(tiny_dataset, tmp_path / "run", *task), "cpu")
    (spec,) = made.specs
    assert spec.kind == "truncated_normal"
    assert dataclasses.astuple(spec.targets[0])[2:] == (-23, 1, -24, -22)
    assert made.summary["n_train"] == 22
    with pytest.raises(UserError, match="log10_m_axion"):
        _train(tiny_dataset, tmp_path / "other", "task.kind=regress", "task.target=log10_maxion")
    with pytest.raises(UserError, match=r"task\.target"):
        _train(tiny_dataset, tmp_path / "other", "task.kind=regress")


@pytest.mark.parametrize(
    ("schedule", "policy"),
    [
        ("one_cycle", []),
        ("plateau", ["training.accumulate=2", "training.optimizer=lamb"]),
        ("cosine_restarts", ["training.swa=0.6"]),
        ("cyclic", []),
        ("warmup_stable_decay", ["training.sam=0.05", "training.optimizer=muon"]),
    ],
)
def test_resumed_equals_uninterrupted(tiny_dataset: Path, tmp_path: Path, schedule: str, policy: list[str]) -> None:
    options = [
        "training.epochs=4",
        f"training.schedule={schedule}",
        *policy,
        "model.dropout=0.2",
        "model.drop_path=0.2",
        "training.ema_decay=0.8",
        "augment.rotate=5",
        "augment.shift=0.5",
    ]
    _train(tiny_dataset, tmp_path / "whole", *options)
    with pytest.raises(Stop):
        _train(tiny_dataset, tmp_path / "parts", *options, on_epoch=_stop_after(2))
    assert load(tmp_path / "parts" / "bundle.safetensors", "cpu").summary["epochs"] <= 2
    _train(tiny_dataset, tmp_path / "parts", *options, resume=True)
    whole, parts = _state(tmp_path / "whole"), _state(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    histories = [(tmp_path / run / "history.csv").read_text() for run in ("whole", "parts")]
    a, b = ([line.rsplit(",", 1)[0] for line in text.splitlines()] for text in histories)
    assert a == b


def test_seeds_matter(tiny_dataset: Path, tmp_path: Path) -> None:
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        _train(tiny_dataset, tmp_path / run, "training.epochs=1", f"seed={seed}")
    a, b, c = (_state(tmp_path / run) for run in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["network.trunk.stem.0.weight"], c["network.trunk.stem.0.weight"])


def test_ctrl_c_keeps_the_best_and_tells_how_to_go_on(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(tiny_dataset, tmp_path / "run", on_epoch=_stop_after(1, KeyboardInterrupt))
    assert "--resume" in capsys.readouterr().out
    assert load(tmp_path / "run" / "bundle.safetensors", "cpu").summary["epochs"] == 1
    with pytest.raises(UserError, match="holds a run already"):
        _train(tiny_dataset, tmp_path / "run")
    with pytest.raises(UserError, match=r"training\.weight_decay"):
        _train(tiny_dataset, tmp_path / "run", "training.weight_decay=0.5", resume=True)


def test_resume_wants_the_same_data(tiny_dataset: Path, tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    _train(tiny_dataset, tmp_path / "run", "training.epochs=1")
    with pytest.raises(UserError, match="other data"):
        _train(make_dataset(tmp_path / "data", seed=1), tmp_path / "run", "training.epochs=1", resume=True)
    (tmp_path / "run" / "last.ckpt").write_bytes(b"junk")
    with pytest.raises(UserError, match="damaged"):
        _train(tiny_dataset, tmp_path / "run", "training.epochs=1", resume=True)


def test_resume_of_nothing_starts(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _train(tiny_dataset, tmp_path / "run", "training.epochs=1", resume=True).is_file()
    assert "from the beginning" in capsys.readouterr().out


def test_patience_stops_and_stays_stopped(tiny_dataset: Path, tmp_path: Path) -> None:
    options = [
        "training.epochs=30",
        "training.patience=2",
        "training.lr=1.0e-12",
        "training.schedule=constant",
    ]
    _train(tiny_dataset, tmp_path / "run", *options)
    rows = (tmp_path / "run" / "history.csv").read_text()
    assert len(rows.splitlines()) < 30
    _train(tiny_dataset, tmp_path / "run", *options, resume=True)
    assert (tmp_path / "run" / "history.csv").read_text() == rows


def test_without_a_validation_split(
    tmp_path: Path, make_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", n_val=0)
    made = load(_train(data, tmp_path / "run", "training.epochs=1"), "cpu")
    assert made.summary["n_train"] == 58
    assert "validating on 6 of its 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epochs=0", "epochs"),
        ("training.lr=-1", "lr"),
        ("training.ema_decay=1.5", "ema_decay"),
        ("model.name=resnet1", "resnet"),
        ("preprocess.crop=99", "crop"),
    ],
)
def test_bad_recipes_leave_nothing(tiny_dataset: Path, tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        _train(tiny_dataset, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_one_class_cannot_be_classified(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    data = make_dataset(tmp_path / "data", classes=["no_sub"])
    with pytest.raises(UserError, match="two classes"):
        _train(data, tmp_path / "run")


def test_divergence_stops_with_one_line_and_keeps_what_was_good(tiny_dataset: Path, tmp_path: Path) -> None:
    run, plain = tmp_path / "run", ["training.optimizer=sgd", "training.schedule=constant", "training.clip_norm=0"]
    _train(tiny_dataset, run, "training.epochs=1", *plain)
    kept = load(run / "bundle.safetensors", "cpu").summary
    wild = ["training.epochs=3", "training.lr=1.0e+38"]
    with pytest.raises(UserError, match=r"^epoch 2, step \d+ \(seed 0\): the loss is not finite; lower training\.lr"):
        _train(tiny_dataset, run, *plain, *wild, resume=True)
    assert load(run / "bundle.safetensors", "cpu").summary == kept
    _train(tiny_dataset, run, "training.epochs=2", *plain, resume=True)
    assert load(run / "bundle.safetensors", "cpu").summary["epochs"] == 2


@pytest.mark.parametrize("task", [[], ["task.kind=regress", "task.target=log10_m_axion"]])
def test_straight_from_the_simulator(tmp_path: Path, task: list[str]) -> None:
    small = [
        "training.epochs=2",
        "training.steps_per_epoch=2",
        "training.val_images=16",
        "simulation.size=16",
    ]
    options = {"overrides": [*QUICK, *small, *task], "device": "cpu"}
    with pytest.raises(Stop):
        train("quickstart", "sim", tmp_path / "a", on_epoch=_stop_after(1), **options)  # type: ignore[arg-type]
    train("quickstart", "sim", tmp_path / "a", resume=True, **options)  # type: ignore[arg-type]
    train("quickstart", "sim", tmp_path / "b", **options)  # type: ignore[arg-type]
    a, b = _state(tmp_path / "a"), _state(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a)
