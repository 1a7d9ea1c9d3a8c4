"""Training straight from the simulator."""

from __future__ import annotations

import time

import numpy as np
import torch

from deeplense.data.ahead import Share, ahead
from deeplense.data.simulated import Kept, SimLoader, SimStream
from deeplense.recipe import Recipe
from deeplense.training.feed import SAMPLE, VALIDATION_BATCH, Feed, Loader, Wanted
from deeplense.training.objectives import LABELLED


def fresh_feed(recipe: Recipe, wanted: Wanted, device: torch.device) -> Feed:
    """The feed of a recipe's simulation: no image is seen twice.

    Raises:
        UserError: the simulation makes no sense, or has no such target.
    """
    config = recipe.training
    size, images = config.batch_size, config.batch_size * config.steps_per_epoch
    targets = [] if wanted.classes else wanted.targets  # every image has a class
    train = SimStream(recipe.simulation, recipe.seed, "train", size, targets, device, config.reuse)
    n = -(-SAMPLE // size) * size
    start = time.perf_counter()
    first = list(train.another(device="cpu").batches(Share(0, n)))  # the first epoch begins with these
    seconds = (time.perf_counter() - start) / n * (config.epochs * images - n)
    source = ahead(train, train.image, seconds) if device.type == "cpu" else train
    # not more in a batch than VALIDATION_BATCH, and about as many in the last one as in the others
    val = train.another(
        reuse=1, name="val", batch_size=-(-config.val_images // -(-config.val_images // VALIDATION_BATCH))
    )

    def train_loaders(rank: int, world_size: int) -> dict[str, Loader]:
        return {LABELLED: SimLoader(source, images, rank, world_size, first)}

    def val_loader(rank: int, world_size: int) -> Loader:
        return Kept(SimLoader(val, config.val_images, rank, world_size))

    manifest = train.manifest
    manifest.splits = {"train": images, "val": config.val_images}
    params = np.concatenate([batch.params.double().numpy() for batch in first])
    labels = np.concatenate([batch.label.numpy() for batch in first])
    sample = [batch.image for batch in first]
    return Feed(
        manifest.seal(),
        images,
        True,
        train_loaders,
        val_loader,
        sample,
        wanted.targets,
        labels,
        params,
        recipe.simulation,
        source.close,
    )
