"""Simulate on a Dask cluster whose workers are killed on the way, against a serial run: the bytes must be the same.

`python benchmarks/cluster.py [shards] [workers]`; one worker is killed after a quarter of the shards, and the process
that took its place after a half.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from distributed import LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin
from scale import RECIPE

import deeplense
from deeplense.data.generate import SHARD


class Lost(SchedulerPlugin):
    """Counts the tasks that a worker took with it."""

    count = 0

    def transition(self, key: str, start: str, finish: str, *_: object, **__: object) -> None:
        self.count += start == "processing" and finish != "memory"


def digest(folder: Path) -> tuple[int, str]:
    """Number of files and SHA-256 over all names and contents."""
    found, files = hashlib.sha256(), sorted(folder.iterdir())
    for path in files:
        found.update(path.name.encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return len(files), found.hexdigest()


def kill_worker(cluster: Any, out: Path, moments: list[int], killed: list[int]) -> None:
    """Kill worker 0 when so many shards are there, while it has work."""
    for moment in moments:
        while len(list(out.glob("*.h5"))) < moment or not (address := busy(cluster)):
            time.sleep(0.005)
        killed.append(cluster.workers[0].process.pid)
        os.kill(killed[-1], signal.SIGKILL)
        while cluster.workers[0].worker_address == address:
            time.sleep(0.05)


def busy(cluster: Any) -> str | None:
    """Address of worker 0 if it has a task."""
    state = cluster.scheduler.workers.get(cluster.workers[0].worker_address)
    return state.address if state is not None and state.processing else None


def main(shards: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        splits = f"train={shards * SHARD}"
        start = time.perf_counter()
        serial = deeplense.simulate(RECIPE, folder / "serial" / "d", splits=splits, workers=1)
        print(f"serial: {time.perf_counter() - start:.0f} s")
        with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster:
            lost, killed = Lost(), list[int]()
            cluster.scheduler.add_plugin(lost, name="lost")
            out = folder / "cluster" / "d"
            plan = (cluster, out, [shards // 4, shards // 2], killed)
            killer = threading.Thread(target=kill_worker, args=plan, daemon=True)
            killer.start()
            start = time.perf_counter()
            deeplense.simulate(RECIPE, out, splits=splits, cluster=cluster.scheduler_address)
            print(f"cluster of {workers}: {time.perf_counter() - start:.0f} s")
        ours, theirs = digest(out), digest(serial)
        print(f"killed {len(killed)} processes (pids {killed}), which cost {lost.count} tasks a new start")
        print(f"serial  {theirs[0]} files {theirs[1]}")
        print(f"cluster {ours[0]} files {ours[1]} -> {'identical' if ours == theirs else 'DIFFERENT'}")
        if ours != theirs or len(killed) != 2:
            sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200, int(sys.argv[2]) if len(sys.argv) > 2 else 4)
