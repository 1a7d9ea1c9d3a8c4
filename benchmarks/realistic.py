"""`realistic/hst` as it is, all its classes and their halos along the line of sight, against lenstronomy's deflectors.

`python benchmarks/realistic.py [blocks] [scenes a class for lenstronomy]`, both with two processes of one thread;
float32. Ours is timed as rendering alone, like the peer, and as a whole: scenes drawn, rendered, with noise.
lenstronomy sums every halo at every ray of the same decoupled planes, on equal sub-pixels: `EQUAL` a side, with which
its images are about as near as ours to fully sampled ones (the first lines; without substructure, which does not matter
here), and `FEW`, with which they are not.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from sampling import chi

from deeplense import config
from deeplense.sim import image, reference
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World

RECIPE, WORKERS = "realistic/hst", 2
EQUAL, FEW = 7, 3


def world() -> World:
    return World(config.load_recipe(RECIPE).simulation)


def accuracy(n: int) -> None:
    smooth = config.load_recipe(RECIPE, ["simulation.classes={no_sub: {population: none}}"])
    for sampling, values in chi(World(smooth.simulation), n, ("adaptive", FEW, 5, EQUAL), False).items():
        print(f"sampling {sampling}: chi median {np.median(values):.2f}, 95 % {np.quantile(values, 0.95):.1f}, below 3 "
              f"in {np.mean(values < 3):.1%} of {n}", flush=True)  # fmt: skip


def render_ours(block: int) -> dict[str, float]:
    """Class -> mean seconds an image."""
    torch.set_num_threads(1)
    w = world()
    args = w.size, w.pixel_scale, w.instruments, w.simulation.supersampling
    found = {}
    for scene in (s.to("cpu", torch.float32) for s in w.scenes(3, "benchmark", block)):
        image.render(scene[:2], *args)
        start = time.perf_counter()
        image.render(scene, *args)
        found[w.classes[scene.label]] = (time.perf_counter() - start) / len(scene)
    return found


def whole_ours(block: int) -> float:
    """Mean seconds an image."""
    torch.set_num_threads(1)
    w = world()
    observe_block(w, 0, "benchmark", block, 8)
    start = time.perf_counter()
    images = observe_block(w, 0, "benchmark", block).images
    return (time.perf_counter() - start) / len(images)


def render_theirs(job: tuple[int, int, int]) -> float:
    """Seconds of one image: its class, its number, and sub-pixels a side."""
    label, number, cells = job
    torch.set_num_threads(1)
    w = world()
    scene = w.scenes(3, "benchmark", 0)[label][number : number + 1]
    start = time.perf_counter()
    reference.render(scene, w.size, w.pixel_scale, w.instruments, cells)
    return time.perf_counter() - start


def main(blocks: int, n: int) -> None:
    torch.set_num_threads(1)
    accuracy(80)
    with ProcessPoolExecutor(WORKERS) as pool:
        ours = list(pool.map(render_ours, range(blocks)))
        each = {name: float(np.mean([o[name] for o in ours])) for name in ours[0]}
        print(f"{RECIPE}, rendering, ms an image: " + ", ".join(f"{k} {1e3 * v:.1f}" for k, v in each.items()))
        rate = WORKERS / float(np.mean(list(each.values())))
        print(f"rendering: {rate:.0f} images/s")
        whole = WORKERS / float(np.mean(list(pool.map(whole_ours, range(blocks)))))
        print(f"drawing, rendering and noise: {whole:.0f} images/s", flush=True)
        for cells in (FEW, EQUAL):
            jobs = [(label, k, cells) for label in range(len(each)) for k in range(n)]
            peer = WORKERS / float(np.mean(list(pool.map(render_theirs, jobs))))
            print(f"lenstronomy, {cells} sub-pixels a side: {peer:.2f} images/s -> ratio {rate / peer:.0f}, "
                  f"with drawing and noise on our side alone {whole / peer:.0f} (bar: 20)", flush=True)  # fmt: skip


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(*(int(sys.argv[k]) if len(sys.argv) > k else default for k, default in ((1, 4), (2, 2))))
