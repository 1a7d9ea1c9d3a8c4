"""Workers that share a study: in processes of their own, failing, stopped, killed, asleep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from toy import fake, make, rows

from deeplense.errors import UserError
from deeplense.interruption import Terminated
from deeplense.tuning import attempts, life, study
from deeplense.tuning.opening import open_study

context = multiprocessing.get_context("spawn")
URLS = [None, "sqlite:///{}/study.db"]


def wait_for(what: Callable[[], Any]) -> None:
    end = time.monotonic() + 300  # for what would otherwise hang
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def together(recipe: Any, data: Any, out: Path, **kwargs: Any) -> None:
    """A training that waits until another process is in one too."""
    meeting = out.parent.parent / "meeting"
    meeting.mkdir(exist_ok=True)
    (meeting / str(os.getpid())).touch()
    wait_for(lambda: len(list(meeting.iterdir())) == 2)
    fake(recipe, data, out, **kwargs)


def endless(recipe: Any, data: Any, out: Path, **kwargs: Any) -> None:
    out.mkdir(parents=True)
    (out / "started").touch()
    time.sleep(1000)


def join(train: Any, out: Path, storage: str | None) -> None:
    """What a worker does."""
    study.search(train, make(sampler="random", pruner="none", trials=6), "sim", out, storage)


def opened(out: Path, storage: str | None = None) -> optuna.Study:
    return open_study(make(), "sim", [], out, storage)


@pytest.mark.parametrize("url", URLS)
def test_two_processes_share_a_study(url: str | None, tmp_path: Path) -> None:
    storage = url and url.format(tmp_path)
    workers = [context.Process(target=join, args=(together, tmp_path / "s", storage)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [w.exitcode for w in workers] == [0, 0]
    assert (tmp_path / "s/journal.log").exists() == (url is None)
    trials = open_study(make(sampler="random", pruner="none"), "sim", [], tmp_path / "s", storage).get_trials()
    assert {t.user_attrs["worker"][1] for t in trials} == {w.pid for w in workers}
    assert 6 <= sum(t.state == TrialState.COMPLETE for t in trials) <= 7  # a trial under way is finished
    assert len({t.params["training.lr"] for t in trials}) == len(trials)  # no two workers draw the same


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize("url", URLS)
def test_the_trial_of_a_killed_process_is_tried_again_at_once(url: str | None, tmp_path: Path) -> None:
    storage = url and url.format(tmp_path)
    worker = context.Process(target=join, args=(endless, tmp_path / "s", storage))
    worker.start()
    try:
        wait_for(lambda: list((tmp_path / "s").glob("trials/*/started")))
    finally:
        worker.kill()
        worker.join()
    join(fake, tmp_path / "s", storage)
    first, again, *others = rows(tmp_path / "s")
    assert (first["state"], first["message"]) == ("fail", "its process ended")
    assert again["state"] == "complete"
    assert again["training.lr"] == first["training.lr"]
    assert len(others) == 5


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_a_stopped_study_resumes_to_what_an_uninterrupted_one_finds(
    stop: type[BaseException], tmp_path: Path, capsys: Any
) -> None:
    made = make(sampler="random", pruner="none")
    calls = 0

    def stopped(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls in (4, 5, 6):
            raise stop
        fake(*args, **kwargs)

    for _ in range(3):
        with pytest.raises(stop):
            study.search(stopped, made, "sim", tmp_path / "s")
        assert "stopped after 3 of 5 trials; the same command" in capsys.readouterr().out
    assert (tmp_path / "s/best.yaml").exists()
    study.search(stopped, made, "sim", tmp_path / "s")
    study.search(fake, made, "sim", tmp_path / "whole")
    found = rows(tmp_path / "s")
    assert [r["state"] for r in found] == ["complete"] * 3 + ["fail"] * 3 + ["complete"] * 2
    assert {r["message"] for r in found if r["state"] == "fail"} == {"interrupted"}
    kept = [r["training.lr"] for r in found if r["state"] == "complete"]
    assert kept == [r["training.lr"] for r in rows(tmp_path / "whole")]


@pytest.mark.parametrize("error", [RuntimeError("no\nkernel"), KeyError("x"), UserError("x: bad"), MemoryError()])
def test_what_fails_is_recorded_and_tried_once_more(error: Exception, tmp_path: Path) -> None:
    tried: list[float] = []

    def failing(recipe: Any, *args: Any, **kwargs: Any) -> None:
        tried.append(recipe.training.lr)
        if len(tried) in (1, 3, 4):  # the first settings once, the second ones twice
            raise error
        fake(recipe, *args, **kwargs)

    study.search(failing, make(sampler="random", pruner="none", trials=3), "sim", tmp_path / "s")
    found = rows(tmp_path / "s")
    assert [r["state"] for r in found] == ["fail", "complete", "fail", "fail", "complete", "complete"]
    assert tried[0] == tried[1] != tried[2] == tried[3] != tried[4]
    messages = {r["message"] for r in found if r["state"] == "fail"}
    wanted = {"RuntimeError": "RuntimeError: no", "KeyError": "KeyError: 'x'", "UserError": "x: bad"}
    assert messages == {wanted.get(type(error).__name__, type(error).__name__)}
    assert (tmp_path / "s/trials/0/traceback.txt").exists() != isinstance(error, UserError)


def test_what_a_worker_found_after_it_was_given_up_is_dropped(tmp_path: Path, capsys: Any) -> None:
    """Its trial was given up and tried again by another worker while it slept, early, late, or before it failed."""

    def asleep(recipe: Any, data: Any, out: Path, on_epoch: Any) -> None:
        number = int(out.name)
        if number not in (0, 2, 4):  # the repeats
            return fake(recipe, data, out, on_epoch)
        if number == 2:
            fake(recipe, data, out, on_epoch)
        assert attempts.fail(opened(tmp_path / "s"), number, "its process ended")
        if number == 4:
            raise RuntimeError
        return fake(recipe, data, out, on_epoch) if number == 0 else None

    study.search(asleep, make(sampler="random", pruner="none", trials=3), "sim", tmp_path / "s")
    found = rows(tmp_path / "s")
    assert [r["state"] for r in found] == ["fail", "complete"] * 3
    assert {r["message"] for r in found[::2]} == {"its process ended"}
    for number in (0, 2, 4):
        assert found[number]["training.lr"] == found[number + 1]["training.lr"]
    lines = capsys.readouterr().out.splitlines()
    dropped = [line for line in lines if "was given up while this process slept; what it found is dropped" in line]
    assert [line.split()[1] for line in dropped] == ["0", "2", "4"]


def test_a_counter_that_stands_still_is_believed_only_after_having_been_watched(tmp_path: Path) -> None:
    """The other machine's clock plays no part; nor do its trials' times."""
    s, now = opened(tmp_path / "s"), 5000.0
    for beats in (None, 1, 1):
        trial = s.ask()
        trial.set_user_attr("worker", ["another machine", 1, "1"])
        if beats is not None:
            trial.set_user_attr("beats", beats)
    watch = life.Watch(lambda: now)
    assert watch.lost(s) == []
    now += life.STALE + 1
    trial.set_user_attr("beats", 2)
    assert [t.number for t in watch.lost(s)] == [0, 1]
    now += life.STALE - 1
    assert [t.number for t in watch.lost(s)] == [0, 1]
    now += 2
    assert [t.number for t in watch.lost(s)] == [0, 1, 2]
    assert life.Watch(lambda: now).lost(s) == []  # who looks for the first time knows nothing yet


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_on_one_machine_a_process_that_ended_is_known_at_once(tmp_path: Path) -> None:
    child = context.Process(target=time.sleep, args=(1000,))
    child.start()
    assert child.pid is not None
    dead, reused, alive = life.mark(child.pid), life.mark(os.getpid()), life.mark(os.getpid())
    os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: life.mark(child.pid or 0) != dead)  # not yet waited for: a zombie
    child.join()
    reused[2] = "1"  # the number of an earlier process
    s = opened(tmp_path / "s")
    for worker in (dead, reused, alive):
        s.ask().set_user_attr("worker", worker)
    assert [t.number for t in life.Watch().lost(s)] == [0, 1]


def test_a_running_trial_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "BEAT", 0.01)
    trial = optuna.create_study().ask()
    with life.signs(trial):
        assert trial.user_attrs["worker"] == life.mark(os.getpid())
        wait_for(lambda: trial.user_attrs.get("beats", 0) >= 2)
