"""Studies with a quadratic in place of a training, and one with a training."""

from __future__ import annotations

import csv
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from deeplense import config
from deeplense.errors import UserError
from deeplense.recipe import Recipe, Training, Tuning
from deeplense.tuning import PRUNERS, SAMPLERS, study

SPACE: dict[str, dict[str, list[Any]]] = {
    "training.lr": {"log": [1e-4, 1e-1]},
    "model.dropout": {"float": [0.0, 0.5]},
    "training.schedule": {"choice": ["one_cycle", "constant"]},
}


def make(**tuning: Any) -> Recipe:
    return Recipe(name="toy", training=Training(epochs=4), tuning=Tuning(**({"space": SPACE, "trials": 5} | tuning)))


def fake(recipe: Recipe, data: Any, out: Path, on_epoch: Callable[[int, dict[str, float]], None]) -> None:
    """Learns best at lr = 1e-2 and dropout = 0.1; writes what a training would."""
    out.mkdir(parents=True)
    (out / "bundle.safetensors").write_bytes(b"weights")
    (out / "last.ckpt").write_bytes(b"state")
    (out / "history.csv").write_text("epoch\n")
    loss = (np.log10(recipe.training.lr) + 2) ** 2 + (recipe.model.dropout - 0.1) ** 2
    for epoch in range(1, recipe.training.epochs + 1):
        on_epoch(epoch, {"val_loss": loss + 1 / epoch, "val_metric": 0.5})


def slow(*args: Any, **kwargs: Any) -> None:
    time.sleep(0.1)
    fake(*args, **kwargs)


def join(out: str) -> None:
    """What a second worker does."""
    study.search(slow, make(sampler="random", pruner="none", trials=6), "sim", out)


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_with_every_pruner(sampler: str, pruner: str, tmp_path: Path) -> None:
    best = study.search(fake, make(sampler=sampler, pruner=pruner), "sim", tmp_path / "s")
    found = rows(tmp_path / "s")
    assert len(found) == 5
    assert {r["state"] for r in found} <= {"complete", "pruned"}
    assert config.load_recipe(best).training.lr != Recipe().training.lr
    assert (tmp_path / "s/history.png").stat().st_size > 10_000
    assert (tmp_path / "s/importance.png").stat().st_size > 5_000


def test_a_search_beats_chance_and_keeps_only_the_best_weights(tmp_path: Path, capsys: Any) -> None:
    best = config.load_recipe(study.search(fake, make(trials=16, pruner="none"), "sim", tmp_path / "s"))
    assert 3e-3 < best.training.lr < 3e-2
    complete = [r for r in rows(tmp_path / "s") if r["state"] == "complete"]
    winner = min(complete, key=lambda r: float(r["value"]))
    assert float(winner["training.lr"]) == best.training.lr
    weights = [p.parent.name for p in (tmp_path / "s/trials").glob("*/bundle.safetensors")]
    assert weights == [winner["trial"]]
    assert not list((tmp_path / "s/trials").rglob("*.ckpt"))
    assert len(list((tmp_path / "s/trials").glob("*/history.csv"))) == 16
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17
    assert lines[-1].startswith(f"best: trial {winner['trial']}")


def test_pruning_stops_bad_trials_early(tmp_path: Path) -> None:
    study.search(fake, make(sampler="random", trials=12), "sim", tmp_path / "s")
    found = rows(tmp_path / "s")
    values = {s: [float(r["value"]) for r in found if r["state"] == s] for s in ("complete", "pruned")}
    assert values["pruned"]
    assert min(values["complete"]) < min(values["pruned"])


def test_a_stopped_study_resumes_to_what_an_uninterrupted_one_finds(tmp_path: Path, capsys: Any) -> None:
    made = make(sampler="random", pruner="none")
    calls = 0

    def stopped(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        fake(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        study.search(stopped, made, "sim", tmp_path / "s")
    assert "stopped after 3 of 5 trials; the same command" in capsys.readouterr().out
    assert (tmp_path / "s/best.yaml").exists()
    study.search(fake, made, "sim", tmp_path / "s")
    study.search(fake, made, "sim", tmp_path / "whole")
    states = [r["state"] for r in rows(tmp_path / "s")]
    assert states == ["complete"] * 3 + ["fail"] + ["complete"] * 2
    assert [r["training.lr"] for r in rows(tmp_path / "s")][:5] == [r["training.lr"] for r in rows(tmp_path / "whole")]


def test_a_finished_study_runs_nothing_more(tmp_path: Path) -> None:
    study.search(fake, make(), "sim", tmp_path / "s")
    study.search(None, make(), "sim", tmp_path / "s")  # type: ignore[arg-type]
    study.search(fake, make(), "sim", tmp_path / "s", trials=6)
    assert len(rows(tmp_path / "s")) == 6


def test_a_trial_whose_process_died_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = study._open(make(), "sim", [], tmp_path / "s", None)
    dead, alive = opened.ask(), opened.ask()
    dead.set_user_attr("alive", time.time() - 2 * study.STALE)
    alive.set_user_attr("alive", time.time())
    study._fail_stale(opened)
    assert [t.state for t in opened.get_trials()] == [TrialState.FAIL, TrialState.RUNNING]


def test_a_running_trial_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "BEAT", 0.02)
    trial = optuna.create_study().ask()
    with study._signs_of_life(trial):
        first = trial.user_attrs["alive"]
        time.sleep(0.2)
    assert trial.user_attrs["alive"] > first


@pytest.mark.parametrize("url", [None, "sqlite:///{}/study.db"])
def test_two_processes_share_a_study(url: str | None, tmp_path: Path) -> None:
    if url is not None:
        storage = url.format(tmp_path)
        study.search(fake, make(trials=2), "sim", tmp_path / "s", storage)
        study.search(fake, make(trials=4), "sim", tmp_path / "s", storage)
        assert not (tmp_path / "s/journal.log").exists()
        assert len(rows(tmp_path / "s")) == 4
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=join, args=(str(tmp_path / "s"),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0]
    found = rows(tmp_path / "s")
    assert 6 <= sum(r["state"] == "complete" for r in found) <= 7  # a trial under way is finished
    assert len({r["training.lr"] for r in found}) == len(found)  # no two workers draw the same


def test_refused_settings_fail_alone(tmp_path: Path) -> None:
    def picky(recipe: Recipe, *args: Any, **kwargs: Any) -> None:
        if recipe.training.schedule == "constant":
            raise UserError("training.schedule: not constant")
        fake(recipe, *args, **kwargs)

    study.search(picky, make(sampler="random"), "sim", tmp_path / "s")
    found = rows(tmp_path / "s")
    assert sum(r["state"] in ("complete", "pruned") for r in found) == 5
    failed = [r for r in found if r["state"] == "fail"]
    assert failed
    assert {r["message"] for r in failed} == {"training.schedule: not constant"}


def test_a_study_of_failures_says_why(tmp_path: Path) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise UserError("model.name: too big")

    with pytest.raises(UserError, match=r"no trial ran to its end; the last one: model.name: too big"):
        study.search(never, make(trials=3), "sim", tmp_path / "s")

    def diverge(*args: Any, on_epoch: Any, **kwargs: Any) -> None:
        on_epoch(1, {"val_loss": float("nan")})

    with pytest.raises(UserError, match="never finite"):
        study.search(diverge, make(trials=3), "sim", tmp_path / "t")


def test_another_study_in_the_folder_is_refused(tmp_path: Path) -> None:
    study.search(fake, make(trials=2), "sim", tmp_path / "s")
    other = make(trials=2)
    other.training.batch_size = 7
    with pytest.raises(UserError, match=r"holds another study \(it differs in training.batch_size\)"):
        study.search(fake, other, "sim", tmp_path / "s")


@pytest.mark.parametrize(
    "storage", ["nonsense", "postgresql://user:secret@nowhere.invalid/db", "sqlite:////no/where/x.db"]
)
def test_a_storage_that_does_not_open_is_one_line(storage: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot open the study") as caught:
        study.search(fake, make(), "sim", tmp_path / "s", storage)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_nothing_starts_with_a_wrong_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'lr'"):
        study.search(fake, make(space={"training.lrr": {"log": [1e-4, 1e-2]}}), "sim", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_best_yaml_states_only_what_differs(tmp_path: Path) -> None:
    overrides = ["training.epochs=3", "tuning.space={training.lr: {log: [1e-4, 1e-2]}}"]
    best = study.search(fake, "quickstart", "sim", tmp_path / "s", trials=2, overrides=overrides)
    text = best.read_text()
    assert text.startswith("base: quickstart\ntraining.epochs: 3\ntraining.lr: ")
    assert len(text.splitlines()) == 3
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: quickstart\nname: mine\n")
    best = study.search(fake, mine, "sim", tmp_path / "t", trials=2, overrides=overrides)
    assert f"base: {mine}\n" in best.read_text()
    assert config.load_recipe(best).name == "mine"


def test_tunes_a_network_and_best_yaml_trains_as_it_is(tiny_dataset: Path, tmp_path: Path) -> None:
    from deeplense.bundle import load
    from deeplense.training.fit import train

    made = make(trials=3, space={"training.lr": {"log": [1e-3, 1e-2]}}, pruner="hyperband")
    made.training.epochs = 2
    made.training.batch_size = 16
    best = study.tune(made, tiny_dataset, tmp_path / "s", device="cpu")
    values = [float(r["value"]) for r in rows(tmp_path / "s") if r["state"] == "complete"]
    again = load(train(best, tiny_dataset, tmp_path / "run", device="cpu"), "cpu")
    assert again.summary["val_loss"] == pytest.approx(min(values), rel=1e-5)
