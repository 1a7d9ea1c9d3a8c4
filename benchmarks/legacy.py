"""Legacy recipes against lenstronomy driven with DeepLenseSim's parameters.

Per class: Kolmogorov–Smirnov p of the images' means, variances, and of pixels (one random pixel of the inner part of
each image, so that draws are independent). `python benchmarks/legacy.py [images] [seed]`
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import peers
import torch
from scipy import stats

from deeplense import config
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World


def theirs(name: str, kind: str, k: int, seed: int) -> np.ndarray:
    draw = {"legacy/model_1": peers.model_1, "legacy/model_2": peers.model_2}[name]
    return draw(kind, np.random.default_rng([k, seed, peers.CLASSES.index(kind)]), cached=True).astype(float)


def ours(name: str, n: int, seed: int) -> dict[str, np.ndarray]:
    world = World(config.load_recipe(name).simulation)
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in world.classes}
    for block in range(-(-3 * n // 256)):
        made = observe_block(world, seed, "legacy", block)
        for image, label in zip(made.images[:, 0].double().numpy(), made.labels, strict=True):
            found[world.classes[label]].append(image)
    return {kind: np.stack(images[:n]) for kind, images in found.items()}


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    rng = np.random.default_rng(3)
    n, size = len(a), a.shape[-1]
    inner = lambda: rng.integers(size // 4, 3 * size // 4, (2, n))  # noqa: E731
    (ai, aj), (bi, bj) = inner(), inner()
    return {
        "mean": stats.ks_2samp(a.mean((1, 2)), b.mean((1, 2))).pvalue,
        "variance": stats.ks_2samp(a.var((1, 2)), b.var((1, 2))).pvalue,
        "pixels": stats.ks_2samp(a[np.arange(n), ai, aj], b[np.arange(n), bi, bj]).pvalue,
    }


def main(n: int, seed: int) -> None:
    torch.set_num_threads(1)
    print(f"KS p-values, {n} images a class: ours against lenstronomy with DeepLenseSim's parameters")
    worst = 1.0
    with ProcessPoolExecutor(2) as pool:
        for name in ("legacy/model_1", "legacy/model_2"):
            mine = ours(name, n, seed)
            for kind in peers.CLASSES:
                images = np.stack(list(pool.map(theirs, [name] * n, [kind] * n, range(n), [seed] * n, chunksize=10)))
                p = compare(mine[kind], images)
                worst = min(worst, *p.values())
                print(f"{name:15} {kind:7}", "  ".join(f"{k} {v:.3f}" for k, v in p.items()),
                      f"  mean {mine[kind].mean():.4g} / {images.mean():.4g}",
                      f"  max {mine[kind].max():.4g} / {images.max():.4g}")  # fmt: skip
    print(f"smallest p {worst:.3f} (18 tests; bar: > 0.01)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, int(sys.argv[2]) if len(sys.argv) > 2 else 12)
