"""Studies with a quadratic in place of a training, and one with a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy import fake, make, rows

from deeplense import config
from deeplense.errors import UserError
from deeplense.recipe import Recipe
from deeplense.tuning import PRUNERS, SAMPLERS, study


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


def test_a_search_keeps_only_the_best_weights(tmp_path: Path, capsys: Any) -> None:
    best = config.load_recipe(study.search(fake, make(trials=16, pruner="none"), "sim", tmp_path / "s"))
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


def test_a_finished_study_runs_nothing_more(tmp_path: Path) -> None:
    study.search(fake, make(), "sim", tmp_path / "s")
    study.search(None, make(), "sim", tmp_path / "s")  # type: ignore[arg-type]
    study.search(fake, make(), "sim", tmp_path / "s", trials=6)
    assert len(rows(tmp_path / "s")) == 6


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


def test_what_fails_on_and_on_ends_the_run_and_the_next_one_goes_on(tmp_path: Path, capsys: Any) -> None:
    calls = 0

    def full(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(28, "No space left on device")
        fake(*args, **kwargs)

    made = make(trials=2, pruner="none", sampler="random")
    for said in (r"\d+ trainings of this run failed, the last one: OSError: .*No space left.*goes on once",) * 2:
        with pytest.raises(UserError, match=said):
            study.search(full, made, "sim", tmp_path / "s")
    assert (tmp_path / "s/best.yaml").exists()
    study.search(fake, made, "sim", tmp_path / "s")
    assert sum(r["state"] == "complete" for r in rows(tmp_path / "s")) == 2


@pytest.mark.parametrize("variable", study.LAUNCHED)
def test_a_launcher_is_refused(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    with pytest.raises(UserError, match=rf"{variable}=2.*once for each device, as in CUDA_VISIBLE_DEVICES=k"):
        study.tune(make(), "sim", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("given", "used"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_trial_has_one_device_of_several(
    given: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    devices = []

    def train(*args: Any, device: str, **kwargs: Any) -> None:
        devices.append(device)
        fake(*args, **kwargs)

    monkeypatch.setattr("deeplense.training.fit.train", train)
    study.tune(make(trials=1), "sim", tmp_path / "s", device=given)
    assert devices == [used]
    assert ("uses 1 of 2 GPUs" in capsys.readouterr().out) == (given in ("auto", "cuda"))


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
