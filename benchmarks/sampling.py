"""How far images of each recipe are from fully sampled ones: χ = √Σ(difference/σ)², σ the recipe's noise.

`python benchmarks/sampling.py [scenes a recipe] [recipes …]`, one process of one thread. The truth has 81 rays a pixel
and the PSF on their grid; only what a mass grid sums is taken from nine nodes a pixel, between which it is interpolated
(`exact` as the last argument: from all 81). Model IV's galaxies are made here: a disc, with arms and
knots no sharper than the seeing of Galaxy10's pictures.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time

import numpy as np
import torch
from torch import Tensor

from deeplense import config
from deeplense.sim import image, surface
from deeplense.sim.image import Sampling
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

RECIPES = ("realistic/hst", "realistic/euclid", "realistic/lsst", "model_1", "model_2", "model_3", "model_4")
CELLS = 9
FEW = 4  # scenes at once: temporaries of 81 rays a pixel are large


def galaxies(folder: str) -> None:
    generator = np.random.default_rng(0)
    x, y = np.meshgrid(*[np.linspace(-1, 1, 200)] * 2)
    for k in range(10):
        q, turn = generator.uniform(0.4, 1), generator.uniform(0, np.pi)
        u, v = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / q
        r = np.hypot(u, v)
        disc = np.exp(-6 * r) * (1 + 0.6 * np.cos(2 * np.arctan2(v, u) - 9 * np.log(r + 0.05)))
        for _ in range(20):
            a, b, width = *generator.normal(0, 0.25, 2), generator.uniform(0.017, 0.05)
            disc += generator.uniform(0.1, 1) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * width**2))
        np.save(f"{folder}/{k}.npy", np.stack([disc, disc**1.1, disc**1.2]).astype(np.float32))


def truth(w: World, scene: Scene, exact: bool) -> Tensor:
    """Images of 81 rays a pixel."""
    gridded = [c for c in scene.mass if c.mesh]
    if exact or not gridded:
        return image.render(scene, w.size, w.pixel_scale, w.instruments, CELLS)
    coarse = surface._Lens.of(scene, w.size * 3, w.pixel_scale / 3).parts[1]
    rest = dataclasses.replace(scene, mass=[c for c in scene.mass if not c.mesh])
    lens = surface._Lens.of(rest, w.size * CELLS, w.pixel_scale / CELLS)
    between = coarse._replace(alpha_x=surface._between(coarse.alpha_x), alpha_y=surface._between(coarse.alpha_y))
    lens = lens._replace(parts=[*lens.parts, between])
    seen = []
    for band, instrument in enumerate(w.instruments):
        bright = lens.seen(scene.band(band))
        seen.append(image._blur(bright, instrument, w.pixel_scale, CELLS))
    return torch.stack(seen, 1) * w.pixel_scale**2


def sigma(w: World, scene: Scene, clean: Tensor) -> Tensor:
    """Of the noise in each pixel."""
    found = []
    for k, instrument in enumerate(w.instruments):
        t = scene.band(k).exposure
        sky = torch.tensor([instrument.background_sigma(w.pixel_scale, float(s)) for s in t])
        found.append((sky[:, None, None] ** 2 + clean[:, k] / t[:, None, None]).sqrt())
    return torch.stack(found, 1)


def chi(w: World, n: int, samplings: tuple[Sampling, ...], exact: bool) -> dict[Sampling, np.ndarray]:
    """Of n scenes, taken from all classes in turn."""
    found: dict[Sampling, list[Tensor]] = {s: [] for s in samplings}
    each = -(-n // len(w.classes))
    with torch.no_grad():
        for scene in w.scenes(11, "sampling", 0) if n <= 200 else ():
            moved = scene[:each].to("cpu", torch.float32)
            for some in torch.split(torch.arange(len(moved)), FEW):
                few = moved[some]
                best = truth(w, few, exact)
                noise = sigma(w, few, best)
                for s in samplings:
                    off = (image.render(few, w.size, w.pixel_scale, w.instruments, s) - best) / noise
                    found[s].append(off.square().sum((1, 2, 3)).sqrt())
    return {s: torch.cat(c)[:n].numpy() for s, c in found.items()}


def main(n: int, recipes: list[str], exact: bool) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        galaxies(folder)
        for name in recipes:
            more = [f"simulation.source.images={folder}"] if name == "model_4" else []
            w = World(config.load_recipe(name, more).simulation)
            start = time.perf_counter()
            for sampling, values in chi(w, n, ("adaptive", 1), exact).items():
                print(f"{name}, {sampling}: chi median {np.median(values):.2f}, 95 % {np.quantile(values, 0.95):.2f}, "
                      f"largest {values.max():.2f}, below 3 in {100 * (values < 3).mean():.1f} % of {len(values)}",
                      flush=True)  # fmt: skip
            print(f"    {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    words = sys.argv[1:]
    exact = "exact" in words
    words = [word for word in words if word != "exact"]
    main(int(words[0]) if words else 200, words[1:] or list(RECIPES), exact)
