"""Images unlike the training images: how many of each kind a bundle flags, and how many of its own kind by mistake.

`python benchmarks/strange.py [share] [epochs] [recipe …]`: simulates each recipe at a share of its sizes (1 when not
given; fewer than a hundred validation images cannot show what one in a hundred reaches), trains a few epochs (4), and
counts on the test images and on what is made of them. The first half of the kinds must be found; the second half is
subtle, or spoils no prediction, and is given as it is.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

import deeplense
from deeplense import bundle as bundles
from deeplense import config
from deeplense.data.adapt import adapt
from deeplense.data.schema import ImageInfo
from deeplense.data.store import Dataset

RECIPES = ("quickstart", "realistic/euclid", "realistic/hst")
MOST = 1000  # images of a kind


class Kinds:
    """What is made of images (N, 1, H, W); sky and noise are those of their border."""

    def __init__(self, images: Tensor, info: ImageInfo) -> None:
        self.images, self.info = images, info
        self.draw = torch.Generator().manual_seed(0)
        _, _, height, width = images.shape
        edge = max(1, height // 20)
        frame = torch.ones(height, width, dtype=torch.bool)
        frame[edge:-edge, edge:-edge] = False
        border = images[..., frame]
        self.sky = border.median(2, keepdim=True).values[..., None]
        self.sigma = 1.4826 * (border - self.sky[..., 0]).abs().median(2).values.median()
        self.y, self.x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        self.peak = images.amax((2, 3), keepdim=True) - self.sky

    def noise(self, times: float = 1.0) -> Tensor:
        return times * self.sigma * torch.randn(self.images.shape, generator=self.draw)

    def pixels(self, times: float) -> Tensor:
        """As an instrument with pixels so many times larger gives them, of which `predict` does not know the scale."""
        other = dataclasses.replace(self.info, pixel_scale=times)
        return torch.stack([torch.from_numpy(adapt(image.numpy(), 1.0, other)[0]) for image in self.images])

    def shuffled(self) -> Tensor:
        rows = self.images.flatten(1)
        order = torch.rand(rows.shape, generator=self.draw).argsort(1)
        return rows.gather(1, order).view_as(self.images)

    def saturated(self) -> Tensor:
        """Cut off at the 90th percentile of the pixels above 3 sigma."""
        bright = torch.where(self.images > self.sky + 3 * self.sigma, self.images, torch.nan)
        limit = bright.flatten(1).nanquantile(0.9, 1).nan_to_num(torch.inf)  # where nothing is bright
        return self.images.clamp(max=limit[:, None, None, None])

    def blank_half(self) -> Tensor:
        return torch.where(self.x < self.info.width // 2, self.images, self.sky)

    def star(self) -> Tensor:
        """As bright as the image's brightest pixel, anywhere."""
        y, x = torch.rand((2, len(self.images), 1, 1, 1), generator=self.draw) * self.info.height
        return self.images + self.peak * torch.exp(-((self.y - y) ** 2 + (self.x - x) ** 2) / 4)

    def galaxy(self) -> Tensor:
        """As bright as the image's brightest pixel, in its middle: the light of a lens."""
        radius = torch.hypot(self.y - (self.info.height - 1) / 2, self.x - (self.info.width - 1) / 2)
        return self.images + self.peak * torch.exp(-radius / (self.info.height / 16))

    def hot_pixel(self) -> Tensor:
        images = self.images.clone()
        images[..., self.info.height // 3, self.info.width // 5] += 50 * self.sigma
        return images


FOUND: dict[str, Callable[[Kinds], Tensor]] = {
    "noise alone": lambda k: k.sky + k.noise(),
    "noise x 2": lambda k: k.images + k.noise(3**0.5),
    "flux x 2": lambda k: 2 * k.images,
    "pixels 1.25 x larger": lambda k: k.pixels(1.25),
    "pixels 1.25 x smaller": lambda k: k.pixels(0.8),
    "shuffled pixels": Kinds.shuffled,
    "constant": lambda k: k.images.mean((1, 2, 3), keepdim=True).expand_as(k.images),
    "saturated": Kinds.saturated,
    "negative": lambda k: -k.images,
}
SUBTLE: dict[str, Callable[[Kinds], Tensor]] = {
    "noise x 1.25": lambda k: k.images + k.noise(0.75),
    "flux x 1.25": lambda k: 1.25 * k.images,
    "averaged over 3 x 3 pixels": lambda k: functional.avg_pool2d(k.images, 3, 1, 1),
    "sky brighter by 1 sigma": lambda k: k.images + k.sigma,
    "half of it blank": Kinds.blank_half,
    "a galaxy in the middle": Kinds.galaxy,
    "moved by a sixth": lambda k: k.images.roll(k.info.height // 6, 2),
    "a star somewhere": Kinds.star,
    "a hot pixel of 50 sigma": Kinds.hot_pixel,
}


def shares(recipe: str, share: float, epochs: int, folder: Path) -> dict[str, str]:
    """Of each kind, in per cent."""
    sizes = config.load_recipe(recipe).splits
    splits = ",".join(f"{name}={round(n * share)}" for name, n in sizes.items())
    data = deeplense.simulate(recipe, folder / "data", splits=splits)
    path = deeplense.train(recipe, data, folder / "run", overrides=[f"training.epochs={epochs}"], device="cpu")
    made, test = bundles.load(path, "cpu"), Dataset(data).split("test")

    def flagged(images: Tensor) -> int:
        distance = made.predict(images).distance
        assert distance is not None
        return int((distance > 1).sum())

    k, n = flagged(test.images(np.arange(len(test)))), len(test)
    low, high = stats.binomtest(k, n).proportion_ci(method="exact")
    found = {"test images": f"{k / n:.2%} [{low:.2%}, {high:.2%}] of {n:,}"}
    found["turned by 90°"] = f"{flagged(test.images(np.arange(n)).rot90(1, (2, 3))) / n:.2%}"
    kinds = Kinds(test.images(np.arange(min(n, MOST))), made.image)
    for name, make in (FOUND | SUBTLE).items():
        images = make(kinds)
        found[name] = f"{flagged(images) / len(images):.1%}"
    return found


def main(share: float, epochs: int, recipes: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir=".") as name:
        columns = [shares(recipe, share, epochs, Path(name) / str(k)) for k, recipe in enumerate(recipes)]
    print(f"\n| | {' | '.join(recipes)} |\n|{'---|' * (len(recipes) + 1)}")
    for kind in columns[0]:
        print(f"| {kind} | {' | '.join(column[kind] for column in columns)} |")


if __name__ == "__main__":
    main(
        float(sys.argv[1]) if len(sys.argv) > 1 else 1.0,
        int(sys.argv[2]) if len(sys.argv) > 2 else 4,
        sys.argv[3:] or RECIPES,
    )
