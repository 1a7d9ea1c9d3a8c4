"""Generation by several processes: only where that is quicker, and then the same bytes."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from tiny import ENVIRONMENT, TINY, content

from deeplense import config
from deeplense.data import generate, pools
from deeplense.data.generate import simulate
from deeplense.data.store import validate
from deeplense.errors import UserError
from deeplense.sim.observe import Block, observe_block
from deeplense.sim.world import World


def test_two_workers_write_the_same_bytes_as_one(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    processes = pools.processes
    monkeypatch.setattr(pools, "START", 0)  # no job is too small
    monkeypatch.setattr(pools, "processes", lambda workers: started.append(workers) or processes(workers))
    out = simulate(TINY, tmp_path / "two", workers=2)
    assert started == [2]
    assert content(out) == content(whole)


def test_no_process_is_started_for_a_small_job(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many splits it has, and nor for the last shards of a larger one; no image is made twice."""
    made: list[tuple[object, ...]] = []

    def noted(world: World, seed: int, *block: Any) -> Block:
        made.append(block[:2])
        return observe_block(world, seed, *block)

    monkeypatch.setattr(pools, "START", 60)  # whatever else the machine is doing
    monkeypatch.setattr(pools, "processes", None)
    monkeypatch.setattr(generate, "_block", functools.lru_cache(1)(noted))
    validate(simulate(TINY, tmp_path / "small", splits="train=60,val=30,dev=20,test=10", workers=8))
    assert sorted(made) == [("dev", 0), ("test", 0), ("train", 0), ("val", 0)]
    shutil.copytree(whole, tmp_path / "large")
    for name in ("test-00000.h5", "val-00001.h5"):
        (tmp_path / "large" / name).unlink()
    simulate(TINY, tmp_path / "large", workers=8)
    assert content(tmp_path / "large") == content(whole)


def test_processes_are_started_for_a_large_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        pass

    def processes(workers: int) -> Any:
        raise Started(workers)

    monkeypatch.setattr(pools, "processes", processes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(10**12))
    with pytest.raises(Started, match="3"):
        simulate(TINY, tmp_path / "o", splits="train=10000000", workers=3)


SCRIPT = """
import sys, deeplense
from deeplense.data import pools
pools.START = 0
deeplense.simulate(sys.argv[1], sys.argv[2], splits="train=4,val=3", workers=2)
print("once")
"""


def test_a_script_without_a_guard_is_run_once(tmp_path: Path) -> None:
    """Its processes do not import it, and so do not start others."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "r.yaml").write_text(config.dump(TINY))
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "r.yaml"), str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("once") == 1
    assert validate(tmp_path / "o").splits == {"train": 4, "val": 3}


def test_a_worker_that_dies_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future
    from concurrent.futures.process import BrokenProcessPool

    class Dying:
        def submit(self, *_: object) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(BrokenProcessPool("A process in the process pool was terminated abruptly"))
            return future

    dying = pools.Pool(Dying(), lambda: 2)  # type: ignore[arg-type]
    monkeypatch.setattr(pools, "START", 0)
    monkeypatch.setattr(pools, "processes", lambda _: contextlib.nullcontext(dying))
    with pytest.raises(UserError, match="o: a worker died, perhaps for lack of memory; run again with fewer --workers"):
        simulate(TINY, tmp_path / "o", workers=2)
