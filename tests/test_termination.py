"""SIGTERM to a verb: exit status 143, a line that says how to go on, and nothing lost."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny import ENVIRONMENT, TINY, wait_for

from deeplense import cli, config
from deeplense.data.store import validate
from deeplense.interruption import Terminated, terminable

DEADLINE = 300.0  # s, for what would otherwise hang
RECIPE = """
base: quickstart
name: long
model: {kwargs: {widths: [8, 16], depths: [1, 1]}}
training: {epochs: 30, batch_size: 32}
tuning: {trials: 1, space: {training.lr: {log: [0.001, 0.01]}}}
"""


def start(*words: str | Path) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("deeplense")), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def terminate(run: subprocess.Popen[str], when: Any) -> tuple[str, str]:
    """What it printed, sent SIGTERM once `when()` holds."""
    try:
        wait_for(lambda: when() or run.poll() is not None, DEADLINE)
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=DEADLINE)
    finally:
        run.kill()
    assert run.returncode == 143, (run.returncode, out, err)
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped by SIGTERM; the same command")
    return out, err


def goes_on(*words: str | Path) -> None:
    cli.main([*map(str, words)])


def losses(out: Path) -> list[str]:
    with open(out / "history.csv", newline="") as file:
        return [row["val_loss"] for row in csv.DictReader(file)]


def test_a_terminated_training_says_how_to_go_on_and_goes_on(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    out = tmp_path / "run"
    words = ["train", tmp_path / "r.yaml", "--data", tiny_dataset, "--out", out, "--device", "cpu"]
    told, err = terminate(start(*words), (out / "last.ckpt").exists)
    assert "stopped; the same command with --resume continues from epoch" in told
    assert "the same command with --resume goes on" in err
    before = losses(out)
    assert 1 <= len(before) < 30
    goes_on(*words, "--resume")
    assert len(losses(out)) == 30
    assert losses(out)[: len(before)] == before


def test_a_terminated_study_tries_the_same_settings_again(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    out = tmp_path / "study"
    words = ["tune", tmp_path / "r.yaml", "--data", tiny_dataset, "--out", out, "--device", "cpu"]
    told, _ = terminate(start(*words), (out / "trials/0/last.ckpt").exists)
    assert told == f"stopped after 0 of 1 trials; the same command with --out {out} goes on\n"
    goes_on(*words)
    with open(out / "history.csv", newline="") as file:
        first, again = csv.DictReader(file)
    assert (first["state"], first["message"], again["state"]) == ("fail", "interrupted", "complete")
    assert first["training.lr"] == again["training.lr"]


def test_a_terminated_simulation_goes_on(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(config.dump({**TINY, "splits": {"train": 1024 * 12}}))
    out = tmp_path / "o"
    words = ["simulate", tmp_path / "r.yaml", "--out", out, "--workers", "1"]
    told, _ = terminate(start(*words), lambda: list(out.glob("*.h5")))
    assert "stopped; the same command continues after" in told
    goes_on(*words)
    assert validate(out).splits == {"train": 1024 * 12}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_ends_with_143(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on after SIGTERM")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "_run", terminated)
    with pytest.raises(SystemExit) as end:
        cli.main([verb])
    assert end.value.code == 143
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stopped by SIGTERM; the same command")
    assert signal.getsignal(signal.SIGTERM) is before


def test_putting_in_order_is_not_terminated_again() -> None:
    done = []

    @terminable()
    def stopped() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(True)

    with pytest.raises(Terminated):
        stopped()
    assert done


def test_another_thread_leaves_sigterm_alone() -> None:
    seen = []

    def look() -> None:
        with terminable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_training_leaves_sigterm_to_its_caller(tiny_dataset: Path, tmp_path: Path) -> None:
    """Lightning would end a Python program with 0."""
    from deeplense.training.fit import train

    before, seen = signal.getsignal(signal.SIGTERM), []

    def look(epoch: int, row: dict[str, float]) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    overrides = ["training.epochs=1", "training.batch_size=16"]
    train("quickstart", tiny_dataset, tmp_path / "run", overrides=overrides, device="cpu", on_epoch=look)
    assert [*seen, signal.getsignal(signal.SIGTERM)] == [before, before]
