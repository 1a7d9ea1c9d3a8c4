"""From scenes to observed images: the one path that datasets, training on the fly and pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense import rng
from deeplense.allocator import keep_freed_memory
from deeplense.lensing.raytrace import Component
from deeplense.sim import image
from deeplense.sim.scene import Scene
from deeplense.sim.substructure import HALO_COLUMNS
from deeplense.sim.world import World

REFERENCE = 5  # sub-pixels a side that lenstronomy, which knows none but equal ones, takes for "adaptive"


class HaloTable(NamedTuple):
    """Every halo of n images.

    Attributes:
        rows: (M, C) float32, a halo each, with columns `HALO_COLUMNS`.
        start: (n + 1,), image i has the rows from start[i] up to start[i + 1].
    """

    rows: NDArray[np.float32]
    start: NDArray[np.int64]

    @classmethod
    def of(cls, scenes: Sequence[Scene], rows: Sequence[NDArray[np.int64]], n: int) -> HaloTable:
        """Of the scenes whose images stand at `rows` of n."""
        count = np.zeros(n, np.int64)
        found = [(at, *_halo_rows(s.halos)) for s, at in zip(scenes, rows, strict=True) if s.halos is not None]
        for at, number, _ in found:
            count[at] = number
        start = np.concatenate([[0], np.cumsum(count)])
        table = np.empty((start[-1], len(HALO_COLUMNS)), np.float32)
        for at, number, values in found:
            within = np.arange(len(values)) - np.repeat(np.cumsum(number) - number, number)
            table[np.repeat(start[at], number) + within] = values
        return cls(table, start)

    @classmethod
    def joined(cls, tables: Sequence[HaloTable]) -> HaloTable:
        """One table after the other."""
        ends = np.cumsum([0] + [len(t.rows) for t in tables])
        starts = [t.start[1:] + end for t, end in zip(tables, ends[:-1], strict=True)]
        return cls(np.concatenate([t.rows for t in tables]), np.concatenate([[0], *starts]))


class Block(NamedTuple):
    """Images in the order of the stream.

    Attributes:
        images: (n, C, H, W) float32. labels: (n,). truth: (n, P), see `World.truth`. numbers: (n,) in the stream.
        halos: of the n images.
    """

    images: Tensor
    labels: NDArray[np.int64]
    truth: NDArray[np.float64]
    numbers: NDArray[np.int64]
    halos: HaloTable


def observe(
    world: World,
    scene: Scene,
    seed: int,
    stream: str,
    device: torch.device | str = "cpu",
    engine: str = "torch",
) -> Tensor:
    """Noisy images of a scene, (B, C, H, W) float32 on the device, in the recipe's unit."""
    return expose(world, rendered(world, scene, device, engine), scene, seed, stream)


def rendered(world: World, scene: Scene, device: torch.device | str = "cpu", engine: str = "torch") -> Tensor:
    """Noiseless images of a scene, (B, C, H, W) float32 counts/s on the device."""
    s = world.simulation
    if engine == "lenstronomy":
        from deeplense.sim import reference  # its import takes seconds

        cells = REFERENCE if s.supersampling == "adaptive" else s.supersampling
        clean = reference.render(scene, world.size, world.pixel_scale, world.instruments, cells)
        return clean.to(device, torch.float32)
    moved = scene.to(device, torch.float32)
    return image.render(moved, world.size, world.pixel_scale, world.instruments, s.supersampling)


def expose(world: World, clean: Tensor, scene: Scene, seed: int, stream: str) -> Tensor:
    """Noiseless images [counts/s] as the recipe's detector gives them, in the recipe's unit; the scene's deflectors and
    sources are not looked at."""
    s, device = world.simulation, clean.device
    noisy = image.add_noise(
        clean, scene.to(device, torch.float32), world.instruments, world.pixel_scale, s.noise, seed, stream
    )
    if s.unit == "MJy/sr":
        each = [i.megajanskys(world.pixel_scale) for i in world.instruments]
        noisy = noisy * noisy.new_tensor(each)[:, None, None]
    if not s.scale_to_max:
        return noisy
    brightest = noisy.nan_to_num(0).amax((1, 2, 3), keepdim=True)
    return noisy.clamp_min(0) / brightest.clamp_min(torch.finfo(noisy.dtype).tiny)


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
    images = torch.empty((n, len(world.bands), world.size, world.size), device=device)
    truth = np.empty((n, len(world.truth)))
    scenes = world.scenes(seed, stream, block, n)
    places = [scene.index.numpy() - block * rng.BLOCK for scene in scenes]
    for scene, rows in zip(scenes, places, strict=True):
        images[torch.from_numpy(rows).to(device)] = observe(world, scene, seed, stream, device, engine)
        truth[rows] = world.truth_row(scene)
    index = block * rng.BLOCK + np.arange(n)
    return Block(images, world.labels(seed, stream, block)[:n], truth, index, HaloTable.of(scenes, places, n))


def _halo_rows(halos: Component) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """How many halos each image has, (B,), and all of them, (M, C)."""
    columns = torch.stack([halos.params[name] for name in HALO_COLUMNS], dim=-1)
    there = torch.ones(columns.shape[:2], dtype=torch.bool) if halos.mask is None else halos.mask
    return there.sum(1).numpy(), columns[there].to(torch.float32).numpy()
