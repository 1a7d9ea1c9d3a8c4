"""Real lenses (SLACS, Hubble ACS F814W) against those of `realistic/slacs`: by what can simple features tell them?

`python benchmarks/slacs.py FOLDER [PICTURE]`: FOLDER has LENS_NAME/image.fits (e-/s, 0.05 arcsec, the lens in the
middle) and noise.fits, whose 1e8 marks masked pixels. Some minutes on one core. Prints the AUC of every group of the
audit's features and the single features that differ most, and draws both kinds of images.

Real lenses are few, so each is shown to the classifier in its eight orientations, and judged by one that has seen none
of them: the AUC is the chance that a lens left out looks more real than a simulated one left out. Intervals: 95 % of
bootstrap samples of the real lenses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

from deeplense.evaluation import features, metrics, plots
from deeplense.evaluation.separability import BOOSTING, auc_and_influence
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World

Floats = NDArray[np.float64]
SIZE, SIMULATED, MASKED, SHOWN = 101, 768, 1e7, 12  # odd, as the real images are, so that the same pixel is the middle
ALONE = "simulation.classes={no_sub: {population: none}}"


def real(folder: Path) -> tuple[list[str], Tensor]:
    """Names, and (N, SIZE, SIZE) with NaN where masked."""
    files = sorted(folder.glob("*/image.fits"))
    found = []
    for file in files:
        image = fits.getdata(file).astype(np.float32)
        image[fits.getdata(file.with_name("noise.fits")) > MASKED] = np.nan
        i, j = ((n - SIZE) // 2 for n in image.shape)
        found.append(image[i : i + SIZE, j : j + SIZE])
    return [file.parent.name for file in files], torch.from_numpy(np.stack(found))


def simulated(masks: Tensor, changes: Sequence[str]) -> Tensor:
    """(SIMULATED, SIZE, SIZE), each with the mask of one of the real lenses: what people leave out is no light."""
    world = World("realistic/slacs", [ALONE, f"simulation.size={SIZE}", *changes])
    images = torch.cat([observe_block(world, 0, "slacs", block).images[:, 0] for block in range(SIMULATED // 256)])
    masks = torch.cat([turned(m) for m in masks])
    which = torch.randint(len(masks), (len(images),), generator=torch.Generator().manual_seed(0))
    return images.masked_fill(masks[which], torch.nan)


def turned(image: Tensor) -> Tensor:
    """The eight orientations of an image."""
    return torch.stack([torch.rot90(x, k) for k in range(4) for x in (image, image.flip(0))])


def told(each: list[Floats], false: Floats) -> tuple[float, list[float]]:
    """AUC and its interval. each: (8, k) features of each real lens. false: (M, k) of simulated ones."""
    fold, areas = np.arange(len(false)) % len(each), []
    for k, held in enumerate(each):
        seen = np.concatenate([*(x for j, x in enumerate(each) if j != k), false[fold != k]])
        label = np.arange(len(seen)) < 8 * (len(each) - 1)
        with threadpool_limits(1, "openmp"):
            model = HistGradientBoostingClassifier(**BOOSTING, early_stopping=False, random_state=0).fit(seen, label)
            score = np.append(model.decision_function(false[fold == k]), model.decision_function(held).mean())
        areas.append(auc_and_influence(score, np.arange(len(score)) == len(score) - 1)[0])
    drawn = np.random.default_rng(0).choice(areas, (10_000, len(areas))).mean(1)
    return float(np.mean(areas)), metrics.interval(drawn)


def main(folder: Path, picture: str, changes: Sequence[str] = ()) -> None:
    names, ours = real(folder)
    theirs = simulated(ours.isnan(), changes)
    groups = [features.measure(turned(image)[:, None]) for image in ours]
    false = features.measure(theirs[:, None])
    print(f"{len(names)} real lenses, {len(theirs)} simulated")
    for name in (*features.FEATURES, "together"):
        wanted = list(features.FEATURES) if name == "together" else [name]
        columns = [np.concatenate([g[w] for w in wanted], 1) for g in (*groups, false)]
        area, (low, high) = told(columns[:-1], columns[-1])
        print(f"    {name:<20} AUC {area:.2f} [{low:.2f}, {high:.2f}]")
    alone = []
    for name in features.FEATURES:
        for k in range(false[name].shape[1]):
            one, many = np.array([g[name][:, k].mean() for g in groups]), false[name][:, k]
            label = np.arange(len(one) + len(many)) < len(one)
            area = auc_and_influence(np.nan_to_num(np.concatenate([one, many])), label)[0]
            alone.append((abs(area - 0.5), f"{name}[{k}]", area, *np.nanpercentile(one, [16, 50, 84]),
                          *np.nanpercentile(many, [16, 50, 84])))  # fmt: skip
    print("    the features that differ most, real and simulated (16, 50, 84 %):")
    for _, name, area, *values in sorted(alone, reverse=True)[:16]:
        print(f"    {name:<24} AUC {area:.2f}  " + "  ".join(f"{v:9.4g}" for v in values))
    draw(names, ours, theirs).savefig(picture, dpi=100)


@plots.styled
def draw(names: Sequence[str], ours: Tensor, theirs: Tensor) -> Figure:
    """Real lenses above, simulated ones below, in one stretch."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.subplots(4, SHOWN // 2)
    for k, axes in enumerate(grid.flat):
        images, title = (ours, names[k]) if k < SHOWN else (theirs, "")
        image = images[k % SHOWN].nan_to_num(0.0).numpy()
        axes.imshow(np.arcsinh(image / 0.02), cmap="gray", vmin=-1, vmax=6, origin="lower")
        axes.set_title(title, fontsize=8)
        axes.set(xticks=[], yticks=[])
    grid[0, 0].set_ylabel("SLACS")
    grid[2, 0].set_ylabel("realistic/slacs")
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "slacs.png", sys.argv[3:])
