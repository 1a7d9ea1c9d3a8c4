"""From scenes to observed images: the one path that datasets, training on the fly and pictures share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense import rng
from deeplense.allocator import keep_freed_memory
from deeplense.sim import image
from deeplense.sim.scene import Scene
from deeplense.sim.world import World


class Block(NamedTuple):
    """Images in the order of the stream.

    Attributes:
        images: (n, 1, H, W) float32. labels: (n,). truth: (n, P), see `World.truth`. numbers: (n,) in the stream.
    """

    images: Tensor
    labels: NDArray[np.int64]
    truth: NDArray[np.float64]
    numbers: NDArray[np.int64]


def observe(
    world: World,
    scene: Scene,
    seed: int,
    stream: str,
    device: torch.device | str = "cpu",
    engine: str = "torch",
) -> Tensor:
    """Noisy images of a scene, (B, 1, H, W) float32 on the device."""
    s = world.simulation
    if engine == "lenstronomy":
        from deeplense.sim import reference  # its import takes seconds

        clean = reference.render(scene, world.size, world.pixel_scale, world.instrument, s.supersampling)
        clean = clean.to(device, torch.float32)
    else:
        moved = scene.to(device, torch.float32)
        clean = image.render(moved, world.size, world.pixel_scale, world.instrument, s.supersampling)
    return image.add_noise(
        clean, scene.to(device, torch.float32), world.instrument, world.pixel_scale, s.noise, seed, stream
    )


def observe_block(
    world: World,
    seed: int,
    stream: str,
    block: int,
    n: int = rng.BLOCK,
    device: torch.device | str = "cpu",
    engine: str = "torch",
) -> Block:
    """The first n images of a block; (seed, stream, block) decide them."""
    keep_freed_memory()
    images = torch.empty((n, 1, world.size, world.size), device=device)
    truth = np.empty((n, len(world.truth)))
    for scene in world.scenes(seed, stream, block, n):
        rows = scene.index.numpy() - block * rng.BLOCK
        images[torch.from_numpy(rows).to(device)] = observe(world, scene, seed, stream, device, engine)
        truth[rows] = world.truth_row(scene)
    index = block * rng.BLOCK + np.arange(n)
    return Block(images, world.labels(index), truth, index)
