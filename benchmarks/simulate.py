"""Simulate Model I with noise: ours to disk, against DeepLenseSim's own way and lenstronomy with cached distances.

`python benchmarks/simulate.py [workers] [our images]`; all with the same number of processes in the same run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import peers

from deeplense import config
from deeplense.data.generate import SHARD, Task, make_shard
from deeplense.data.pools import start_worker


def theirs(kind: str, cached: bool, seed: int, n: int) -> int:
    rng = np.random.default_rng(seed)
    for _ in range(n):
        peers.model_1(kind, rng, cached)
    return n


def peer_rate(pool: ProcessPoolExecutor, workers: int, kind: str, cached: bool, n: int) -> float:
    run = lambda n: list(pool.map(theirs, [kind] * workers, [cached] * workers, range(workers), [n] * workers))  # noqa: E731
    run(2)
    start = time.perf_counter()
    return sum(run(n)) / (time.perf_counter() - start)


def our_rate(workers: int, shards: int) -> float:
    """Images a second to disk once the processes run; their start is printed beside it by `main`."""
    import os

    tree = config.to_tree(config.load_recipe("model_1"))
    with tempfile.TemporaryDirectory() as folder:
        tasks = [Task(tree, folder, "train", k, SHARD, "torch", "cpu") for k in range(shards + workers)]
        with ProcessPoolExecutor(workers, initializer=start_worker, initargs=(os.getpid(),)) as pool:
            list(pool.map(make_shard, tasks[:workers]))
            start = time.perf_counter()
            list(pool.map(make_shard, tasks[workers:]))
            seconds = time.perf_counter() - start
            for path in Path(folder).glob("*"):
                path.unlink()
    return shards * SHARD / seconds


def main(workers: int, images: int) -> None:
    ours = our_rate(workers, max(workers, images // SHARD))
    print(f"deeplense simulate model_1, noise, three classes, to disk: {ours:.0f} images/s, {workers} processes")
    for cached, name in ((False, "DeepLenseSim's own way"), (True, "lenstronomy, distances cached")):
        with ProcessPoolExecutor(workers) as pool:
            rates = {kind: peer_rate(pool, workers, kind, cached, 60) for kind in peers.CLASSES}
        together = 3 / sum(1 / r for r in rates.values())
        listed = ", ".join(f"{k} {v:.0f}" for k, v in rates.items())
        print(f"{name}: {listed}; three classes equally {together:.0f} images/s -> ratio {ours / together:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2, int(sys.argv[2]) if len(sys.argv) > 2 else 8192)
