"""Does a long simulation take more memory, or get slower, than a short one?

`python benchmarks/scale.py [images] [workers] [size]`: small images without substructure to disk, noise once, after a
thousand for comparison; peak memory of the parent and of its workers over time, throughput of the first and the last
tenth by the clock, and by the processor's time, which other programs disturb less. Needs Linux (/proc). The data are
deleted afterwards.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import deeplense
from deeplense.data import store
from deeplense.data.generate import SHARD

RECIPE: dict[str, Any] = {
    "name": "scale",
    "simulation": {
        "size": 16,
        "pixel_scale": 0.2,
        "lens": {"theta_E": {"uniform": [0.8, 1.2]}, "e1": {"normal": [0, 0.1]}, "gamma1": {"normal": [0, 0.03]}},
        "source": {"magnitude": {"uniform": [21, 23]}, "center_x": {"uniform": [-0.3, 0.3]}, "R_sersic": 0.3},
        "classes": {"a": {"population": "none"}, "b": {"population": "none"}},
    },
}


class Memory(threading.Thread):
    """Samples the resident memory of this process and its children [MB], and their processor time [s].

    Attributes:
        rows: (time, parent, biggest child, seconds of all) of each sample.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.rows: list[tuple[float, float, float, float]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            family = [os.getpid(), *children(os.getpid())]
            parent, *sizes = (resident(pid) for pid in family)
            self.rows.append((time.time(), parent, max(sizes, default=0.0), sum(map(seconds, family))))

    def peak(self, start: float, end: float) -> tuple[float, float]:
        """Of the parent and of the biggest worker between two times."""
        there = np.array([row[1:3] for row in self.rows if start <= row[0] <= end])
        return tuple(there.max(0)) if len(there) else (np.nan, np.nan)

    def seconds(self, at: np.ndarray) -> np.ndarray:
        """Processor time spent until then."""
        times, _, _, spent = zip(*self.rows, strict=True)
        return np.interp(at, times, spent)


def seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def children(parent: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def run(images: int, workers: int, size: int) -> None:
    """Simulate, and print memory and throughput tenth by tenth."""
    with tempfile.TemporaryDirectory() as name:
        memory = Memory()
        memory.start()
        recipe = {**RECIPE, "simulation": {**RECIPE["simulation"], "size": size}}
        out = deeplense.simulate(recipe, Path(name) / "data", splits=f"train={images}", workers=workers)
        end = time.time()
        memory.over.set()
        memory.join()
        # what happens once the workers run: their start and a shorter last shard are left out
        done = np.sort([p.stat().st_mtime for p in out.glob("*.h5") if p.name != f"train-{images // SHARD:05d}.h5"])
        parent, worker = memory.peak(0, end)
        print(f"{images:,} images, {workers} workers: peak memory {parent:.0f} MB here, {worker:.0f} MB in a worker")
        if len(done) < 40:
            return
        edges = np.linspace(0, len(done) - 1, 11).astype(int)
        rates = np.diff(edges) * SHARD / np.diff(done[edges])
        efficiency = np.diff(edges) * SHARD / np.diff(memory.seconds(done[edges]))
        for k, rate in enumerate(rates):
            parent, worker = memory.peak(done[edges[k]], done[edges[k + 1]])
            print(f"  tenth {k + 1:2d}: {rate:7,.0f} images/s, {efficiency[k]:,.0f} a core-second, "
                  f"{parent:.0f} MB here, {worker:.0f} MB in a worker")  # fmt: skip
        print(f"  throughput, last tenth over first: {rates[-1] / rates[0]:.3f} by the clock, "
              f"{efficiency[-1] / efficiency[0]:.3f} by processor time")  # fmt: skip
        start = time.perf_counter()
        store.validate(out, checksums=True)
        print(f"  valid, {sum(p.stat().st_size for p in out.iterdir()) / 1e9:.2f} GB checked "
              f"in {time.perf_counter() - start:.0f} s")  # fmt: skip


if __name__ == "__main__":
    given = [int(a) for a in sys.argv[1:]]
    images, workers, size = given + [1_000_000, 2, 16][len(given) :]
    run(1000, workers, size)
    run(images, workers, size)
