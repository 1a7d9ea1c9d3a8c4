"""Batches made ahead in another process: the same ones, a bounded number of them, and no process left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from numbered import Failing, Numbered
from tiny import ENVIRONMENT, TINY, wait_for

from deeplense import config
from deeplense.data import pools
from deeplense.data.ahead import Ahead, Share, ahead
from deeplense.data.schema import Batch
from deeplense.data.simulated import SimStream
from deeplense.errors import UserError
from deeplense.training.fit import train


@pytest.fixture(scope="module")
def stream() -> SimStream:
    return SimStream(config.load_recipe(TINY).simulation, 5, "train", 100)


@pytest.fixture(scope="module")
def made(stream: SimStream) -> Iterator[Ahead]:
    there = Ahead(stream, stream.image)
    yield there
    there.close()


def assert_same(a: Iterator[Batch], b: Iterator[Batch], n: int) -> None:
    """To the last bit."""
    for _ in range(n):
        for one, other in zip(next(a), next(b), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_the_batches_are_the_same(made: Ahead, stream: SimStream) -> None:
    for share in (Share(4, 730, 3, 1, 2), Share(5, 730, 0, 1, 2), Share(6, 730, 0, 1, 2)):
        found = made.batches(share)
        process = made.process
        assert_same(found, stream.batches(share), 8 - share.start)
        assert made.process is process  # one for all epochs


def test_an_epoch_out_of_turn(made: Ahead, stream: SimStream) -> None:
    assert_same(made.batches(Share(2, 400)), stream.batches(Share(2, 400)), 2)


def test_after_an_epoch_left_half_way_and_when_it_is_killed(made: Ahead, stream: SimStream) -> None:
    batches = made.batches(Share(2, 10**6))
    assert_same(batches, stream.batches(Share(2, 10**6)), 2)
    os.kill(made.process.pid or 0, signal.SIGKILL)
    with pytest.raises(UserError, match="the process that makes the images died, perhaps for lack of memory") as told:
        list(batches)
    assert "\n" not in str(told.value)


def test_it_is_ahead_by_a_bounded_number(tmp_path: Path) -> None:
    numbers = Numbered(tmp_path / "log")
    made = Ahead(numbers, (1, 2, 2))
    taken = made.batches(Share(0, 128 * 6))
    wait_for(lambda: numbers.begun() == 5)  # the ring's four, and one that has no room
    for epoch in range(3):
        for k in range(6):
            batch = next(taken)
            assert (float(batch.image[0, 0, 0, 0]), int(batch.label[0])) == (k, epoch)
            wait_for(lambda n=6 * epoch + k: numbers.begun() == n + 6)
        taken = made.batches(Share(epoch + 1, 128 * 6))
    time.sleep(0.2)
    assert numbers.begun() == 18 + 5
    kept = batch.image.clone()
    next(taken)
    assert torch.equal(batch.image, kept)  # what was given is never written over
    made.close()


@pytest.mark.parametrize("error", [UserError("simulation.size: wrong"), KeyError("images")])
def test_what_the_source_raises_comes_through_and_it_ends_when_closed(tmp_path: Path, error: Exception) -> None:
    made = Ahead(Failing(tmp_path / "log", error), (1, 2, 2))
    assert len(list(made.batches(Share(0, 256)))) == 2
    with pytest.raises(type(error)) as told:
        next(made.batches(Share(1, 256)))
    assert str(told.value) == str(error)
    # where it was raised is told where it is not bad input
    assert ("numbered.py" in "".join(getattr(told.value, "__notes__", []))) == isinstance(error, KeyError)
    made.close()
    assert not made.process.is_alive()


def test_it_ends_when_forgotten(tmp_path: Path) -> None:
    made = Ahead(Numbered(tmp_path / "log"), (1, 2, 2))
    process = made.process
    next(made.batches(Share(0, 1280)))
    assert process.is_alive()
    del made
    gc.collect()
    assert not process.is_alive()


def test_only_where_it_is_worth_a_process(
    stream: SimStream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(Ahead, "_start", lambda _: None)
    assert ahead(stream, stream.image, seconds=pools.START) is stream
    assert isinstance(ahead(stream, stream.image, seconds=100), Ahead)

    def full(_: torch.Tensor) -> Any:
        raise RuntimeError("No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    assert ahead(stream, stream.image, seconds=100) is stream
    told = capsys.readouterr().err
    assert told.startswith("images are made between the steps, not beside them: no shared memory (No space left")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert ahead(stream, stream.image, seconds=100) is stream


def test_training_is_the_same_and_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, too: its first epoch begins without what the pre-processing was fitted on."""
    before = set(multiprocessing.active_children())
    small = ["training.batch_size=400", "training.steps_per_epoch=4", "training.val_images=20", "training.epochs=2"]
    small += ["model.kwargs={widths: [4], depths: [1]}", "simulation.size=16"]

    def stop(epoch: int, _: dict[str, float]) -> None:
        raise InterruptedError

    states = []
    for name, start in (("here", float("inf")), ("ahead", 0.0)):
        monkeypatch.setattr(pools, "START", start)
        if start == 0:
            with pytest.raises(InterruptedError):
                train("quickstart", "sim", tmp_path / name, overrides=small, device="cpu", on_epoch=stop)
        train("quickstart", "sim", tmp_path / name, overrides=small, device="cpu", resume=start == 0)
        states.append(torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


SCRIPT = """
import sys
from pathlib import Path
from numbered import Numbered
from deeplense.data.ahead import Ahead, Share
made = Ahead(Numbered(Path(sys.argv[1])), (1, 2, 2))
batches = made.batches(Share(0, 10**9))
next(batches)
try:
    print(made.process.pid, flush=True)
    for _ in batches: pass
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="takes process groups")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    """Killed, or by the Ctrl-C of a terminal, which is sent to both; a script needs no guard."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "log")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        (os.kill if how == signal.SIGKILL else os.killpg)(run.pid, how)
        out, err = run.communicate(timeout=90)
        wait_for(lambda: not alive(worker))
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    if how == signal.SIGINT:
        assert (run.returncode, out, err) == (0, "stopped\n", "")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a process that has ended may wait to be fetched by whoever has adopted it
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
