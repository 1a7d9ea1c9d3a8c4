"""`realistic/hst` with hundreds of truncated NFW halos, against lenstronomy on the same scenes; the error of the mesh.

`python benchmarks/realistic.py [scenes for lenstronomy]`, both with two processes of one thread; float32. Ours is
timed as rendering alone, like the peer, and as a whole: scenes drawn, rendered, with noise.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from deeplense import config
from deeplense.sim import image, reference
from deeplense.sim.observe import observe_block
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

RECIPE, CDM, WORKERS = "realistic/hst", 1, 2
OVERRIDES = ["simulation.classes.cdm.sigma_sub=0.035", "simulation.classes.cdm.log10_m_host=13.0"]  # about 300 halos
EQUAL = 3  # sub-pixels a side that lenstronomy needs for a median chi like ours
SPLITS = 8  # blocks of scenes that our processes render


def world(*more: str) -> World:
    return World(config.load_recipe(RECIPE, [*OVERRIDES, *more]).simulation)


def scenes(w: World, block: int) -> Scene:
    return w.scenes(3, "benchmark", block)[CDM]


def render_ours(block: int, *more: str) -> tuple[int, float, float]:
    """Images, seconds, mean number of halos."""
    torch.set_num_threads(1)
    w = world(*more)
    scene = scenes(w, block).to("cpu", torch.float32)
    args = w.size, w.pixel_scale, w.instrument, w.simulation.supersampling
    image.render(scene, *args)  # compiles, where asked to
    start = time.perf_counter()
    for _ in range(4):
        image.render(scene, *args)
    return 4 * len(scene), time.perf_counter() - start, float(scene.truth["n_sub"].mean())


def whole_ours(block: int) -> tuple[int, float]:
    torch.set_num_threads(1)
    recipe = config.load_recipe(RECIPE, [*OVERRIDES, "simulation.classes={cdm: {population: cdm, sigma_sub: 0.035}}"])
    w = World(recipe.simulation)
    observe_block(w, 0, "benchmark", block, 8)
    start = time.perf_counter()
    observe_block(w, 0, "benchmark", block)
    return 256, time.perf_counter() - start


def render_theirs(first: int, n: int) -> tuple[int, float]:
    torch.set_num_threads(1)
    w = world("simulation.mesh=false")
    scene = scenes(w, 0)[first : first + n]
    start = time.perf_counter()
    reference.render(scene, w.size, w.pixel_scale, w.instrument, EQUAL)
    return n, time.perf_counter() - start


def mesh_error(block: int) -> dict[str, np.ndarray]:
    """Largest |with mesh − exact| of each image in units of the noise's σ in that pixel, by class."""
    torch.set_num_threads(1)
    w, plain = world(), world("simulation.mesh=false")
    args, sky = (w.size, w.pixel_scale, w.instrument), w.instrument.background_rate(w.pixel_scale)
    found = {}
    for meshed, scene in zip(w.scenes(3, "benchmark", block), plain.scenes(3, "benchmark", block), strict=True):
        if any(c.mesh for c in meshed.mass):
            exact, t = image.render(scene, *args), scene.exposure[:, None, None, None]
            sigma = ((exact + sky) * t + w.instrument.read_sigma(w.pixel_scale) ** 2).sqrt() / t
            error = image.render(meshed.to("cpu", torch.float32), *args).double() - exact
            found[w.classes[scene.label]] = (error.abs() / sigma).amax((1, 2, 3)).numpy()
    return found


def main(n: int) -> None:
    with ProcessPoolExecutor(WORKERS) as pool:
        blocks = list(pool.map(mesh_error, range(6)))
        for name in blocks[0]:
            errors = np.concatenate([b[name] for b in blocks])
            print(f"mesh, {name}: largest error in a pixel, of {len(errors)} images: {errors.max():.4f} sigma of the "
                  f"noise, median of images {np.median(errors):.4f}")  # fmt: skip
        ours = list(pool.map(render_ours, range(SPLITS)))
        rate = WORKERS * sum(k for k, _, _ in ours) / sum(s for _, s, _ in ours)
        print(f"{RECIPE}, {np.mean([h for _, _, h in ours]):.0f} halos an image, rendering: {rate:.0f} images/s")
        fused = list(pool.map(render_ours, range(SPLITS), ["simulation.compile=true"] * SPLITS))
        compiled = WORKERS * sum(k for k, _, _ in fused) / sum(s for _, s, _ in fused)
        print(f"the same with compile: true, compiled before: {compiled:.0f} images/s")
        whole = list(pool.map(whole_ours, range(SPLITS)))
        both = WORKERS * sum(k for k, _ in whole) / sum(s for _, s in whole)
        print(f"drawing, rendering and noise: {both:.0f} images/s")
        theirs = list(pool.map(render_theirs, range(0, WORKERS * n, n), [n] * WORKERS))
        peer = sum(k / s for k, s in theirs)
        print(f"lenstronomy, the same scenes: {peer:.1f} images/s -> ratio {rate / peer:.1f} (bar: 20)")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
