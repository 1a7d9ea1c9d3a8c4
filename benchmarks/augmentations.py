"""A picture of every augmentation at a strength that one can see: `python benchmarks/augmentations.py OUT.png`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from deeplense import config, rng
from deeplense.data.augment import Augmenter
from deeplense.data.disturb import disturbed
from deeplense.data.schema import Batch
from deeplense.data.transforms import View
from deeplense.recipe import Augment
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World
from deeplense.training.mixing import mixed

STILL = Augment(d4=False)
SHOWN = {
    "as it is": STILL,
    "d4": Augment(),
    "rotate=180": dataclasses.replace(STILL, rotate=180),
    "shift=10": dataclasses.replace(STILL, shift=10),
    "noise=2": dataclasses.replace(STILL, noise=2),
    "blur=2": dataclasses.replace(STILL, blur=2),
    "gradient=5": dataclasses.replace(STILL, gradient=5),
    "cosmic_rays=3": dataclasses.replace(STILL, cosmic_rays=3),
    "mask=0.3": dataclasses.replace(STILL, mask=0.3),
}
COLUMNS = 3


def main(out: str = "docs/figures/augmentations.png") -> None:
    world = World(config.load_recipe("realistic/euclid").simulation)
    images = observe_block(world, 5, "augmentations", 0, 8).images
    batch = Batch(images, torch.zeros(8, dtype=torch.long), torch.empty(8, 0), torch.arange(8))
    torch.manual_seed(1)
    rows = {name: _augmented(batch, c) for name, c in SHOWN.items()}
    rows["training.mixup=1"], rows["training.cutmix=1"] = (mixed(batch, *a).images for a in ((1.0, 0.0), (0.0, 1.0)))
    figure = Figure(figsize=(9.6, 5.0), layout="constrained")
    axes = figure.subplots(4, 3 * COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    scale = float(images.std())
    cmap = matplotlib.colormaps["magma"].with_extremes(bad="#9CA3AF")

    def stretched(image: torch.Tensor) -> np.ndarray:
        return np.arcsinh(image.numpy() / scale * 5)

    for k, (name, changed) in enumerate(rows.items()):
        for j in range(COLUMNS):
            ax = axes[k // 3, COLUMNS * (k % 3) + j]
            limits = stretched(images[j, 0].amin()), stretched(images[j, 0].amax())
            ax.imshow(stretched(changed[j, 0]), vmin=limits[0], vmax=limits[1], cmap=cmap, origin="lower")
            if j == 1:
                ax.set_title(name, fontsize=9)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    print(f"wrote {out}")


def _augmented(batch: Batch, augment: Augment) -> torch.Tensor:
    raw = disturbed(batch.image, augment, rng.torch_generator(0, "disturb"))
    turn = Augmenter(augment, view=View(0.1, 0.0, 0.0))
    return turn(batch._replace(image=raw), rng.torch_generator(0, "augment")).image


if __name__ == "__main__":
    main(*sys.argv[1:])
