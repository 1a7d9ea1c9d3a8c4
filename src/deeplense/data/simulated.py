"""Training straight from the simulator: images never seen twice, the same `Batch` as from disk."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense import recipe, rng
from deeplense.allocator import keep_freed_memory
from deeplense.data.ahead import Share, Source
from deeplense.data.generate import manifest
from deeplense.data.schema import Batch
from deeplense.errors import UserError
from deeplense.sim.observe import expose, rendered
from deeplense.sim.scene import Scene
from deeplense.sim.world import World


class Drawn(NamedTuple):
    """Of a block: the truth of all its images, and at some rows the noiseless ones."""

    truth: NDArray[np.float64]
    rows: NDArray[np.int64]
    parts: list[tuple[Tensor, Tensor, Scene]]


class SimStream:
    """The images of a stream that a task can use, numbered in the order of the stream and cut into batches.

    Batch k of an epoch has the images k * batch_size, k * batch_size + 1, …, whoever renders them. Scenes are drawn in
    blocks, and of a block only the images that are asked for are rendered. On the CPU an image is the same to rounding,
    and its noise exactly, whatever is rendered beside it; on a GPU the noise of an image depends on the others too, so
    that only the scenes are the same for another number of processes.

    Args:
        simulation: the world. name: of the stream, e.g. "train"; another one never shares an image.
        batch_size: over all processes together.
        reuse: epochs that show the same scenes, each with noise of its own; their noiseless images are kept in memory.
        targets: parameters; an image can be used when it has a value of any. All can when none is given.
        device: where the images are made, and stay.

    Attributes:
        manifest: of a dataset of such images, without splits and shards.

    Raises:
        UserError: the simulation makes no sense, has no such parameter, or (with the first batch) no usable image.
    """

    def __init__(
        self,
        simulation: recipe.Simulation,
        seed: int,
        name: str,
        batch_size: int,
        targets: Sequence[str] = (),
        device: torch.device | str = "cpu",
        reuse: int = 1,
    ) -> None:
        self.world = World(simulation)
        self.seed, self.name, self.batch_size, self.device = seed, name, batch_size, device
        self.targets, self.reuse = list(targets), reuse
        self._kept: dict[tuple[str, int], Drawn] = {}  # by stream and block
        self.manifest = manifest(
            recipe.Recipe(name="on the fly", seed=seed, splits={}, simulation=simulation), self.world, []
        )
        self.columns = [self.manifest.parameter(target) for target in self.targets]

    def __reduce__(self) -> tuple[Any, ...]:
        # a world is made again more quickly than sent
        made = (self.world.simulation, self.seed, self.name, self.batch_size, self.targets, self.device, self.reuse)
        return SimStream, made

    def close(self) -> None:
        """Nothing was started."""

    def another(self, **changes: Any) -> SimStream:
        """Another stream of the same world: one with another name, batch size or device."""
        made = copy.copy(self)
        vars(made).update({"_kept": {}} | changes)
        return made

    def batches(self, share: Share) -> Iterator[Batch]:
        """The batches of a share."""
        keep_freed_memory()
        parts, left = self._blocks(share), [self._empty()]
        for first in range(share.start * self.batch_size, share.images, self.batch_size):
            n = len(range(share.rank, min(self.batch_size, share.images - first), share.world_size))
            while sum(len(part.id) for part in left) < n:
                left.append(next(parts))
            columns: list[Tensor] = [torch.cat(column) for column in zip(*left, strict=True)]
            yield Batch(*(c[:n] for c in columns))
            left = [Batch(*(c[n:] for c in columns))]

    def _blocks(self, share: Share) -> Iterator[Batch]:
        """The images of a share, block by block."""
        pool, again = divmod(share.epoch, self.reuse)
        stream, start = f"{self.name}/{pool}", share.start * self.batch_size
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] == stream}
        seen = 0  # usable images of the blocks before
        for block in itertools.count():
            if not self.columns and seen + rng.BLOCK <= start:
                seen += rng.BLOCK
                continue
            kept = self._kept.get((stream, block))
            scenes = [] if kept else self.world.scenes(self.seed, stream, block)
            truth = kept.truth if kept else self._truth(scenes)
            known = np.isfinite(truth[:, self.columns]).any(1)
            usable = np.flatnonzero(known) if self.columns else np.arange(rng.BLOCK)
            if not seen and not len(usable):
                raise UserError(f"no image of the simulation has a value of {' or '.join(self.targets)}")
            number = seen + np.arange(len(usable))
            mine = number % self.batch_size % share.world_size == share.rank
            rows = usable[mine & (start <= number) & (number < share.images)]
            seen += len(usable)
            if len(rows):
                if kept is None or not np.array_equal(kept.rows, rows):
                    scenes = scenes or self.world.scenes(self.seed, stream, block)
                    kept = Drawn(truth, rows, [part for scene in scenes for part in self._rendered(scene, rows)])
                    if self.reuse > 1:
                        self._kept[stream, block] = kept
                images = self._exposed(kept, f"{stream}/again {again}" if again else stream)
                labels = self.world.labels(self.seed, stream, block)[rows]
                rest = labels, truth[rows].astype(np.float32), block * rng.BLOCK + rows
                yield Batch(images, *(torch.from_numpy(column) for column in rest))

    def _truth(self, scenes: list[Scene]) -> NDArray[np.float64]:
        truth = np.empty((rng.BLOCK, len(self.manifest.parameters)))
        for scene in scenes:
            truth[_places(scene)] = self.world.truth_row(scene)
        return truth

    def _exposed(self, drawn: Drawn, stream: str) -> Tensor:
        images = torch.empty((len(drawn.rows), *self.image), device=self.device)
        for at, clean, scene in drawn.parts:
            images[at.to(self.device)] = expose(self.world, clean, scene, self.seed, stream)
        return images

    def _rendered(self, scene: Scene, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor, Scene]]:
        """Where a scene's images stand among those at some rows of a block, without noise, and what exposes them."""
        wanted = np.flatnonzero(np.isin(_places(scene), rows))
        if len(wanted):
            at = torch.from_numpy(np.searchsorted(rows, _places(scene)[wanted]))
            some = scene[torch.from_numpy(wanted)]
            yield at, rendered(self.world, some, self.device), some.exposed_only()

    @property
    def image(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return len(self.world.bands), self.world.size, self.world.size

    def _empty(self) -> Batch:
        none = torch.empty(0, dtype=torch.int64)
        params = torch.empty((0, len(self.manifest.parameters)))
        return Batch(torch.empty((0, *self.image), device=self.device), none, params, none)


def _places(scene: Scene) -> NDArray[np.int64]:
    """Rows of a scene's images in their block."""
    return np.asarray(scene.index.numpy() % rng.BLOCK)


class SimLoader:
    """Epochs of a stream. What an epoch shows depends on (seed, stream, epoch) alone, so a resumed run sees what it
    would have seen.

    Args:
        source: of the batches: a `SimStream`, or one that is made `Ahead`.
        images: of an epoch, over all processes.
        rank, world_size: this process among several. It gets rows rank, rank + world_size, … of every batch, so that
            any number of processes sees the same batches.
        first: batches with which epoch 0 begins, made already, of all processes; forgotten after that epoch.

    Raises:
        UserError: more processes than images in a batch.
    """

    def __init__(
        self, source: Source, images: int, rank: int = 0, world_size: int = 1, first: list[Batch] | None = None
    ) -> None:
        self.source, self.images, self.rank, self.world_size, self.epoch = source, images, rank, world_size, 0
        self.first = first or []
        smallest = images - (len(self) - 1) * source.batch_size
        if world_size > smallest:
            raise UserError(f"{world_size} processes cannot share a batch of {smallest} images; start fewer of them")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, and with it the images."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.images // self.source.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.epoch:
            self.first.clear()
        made = self.first[: len(self)]
        rest: Iterator[Batch] = iter(())
        if len(made) < len(self):
            # asked for before the others are used, so that what works ahead can begin
            rest = self.source.batches(Share(self.epoch, self.images, len(made), self.rank, self.world_size))
        for batch in made:
            yield Batch(*(column[self.rank :: self.world_size] for column in batch))
        yield from rest


class Kept:
    """The batches of a loader's first epoch, made when they are first asked for and then kept: for validation."""

    def __init__(self, loader: SimLoader) -> None:
        self.loader = loader
        self._batches: list[Batch] = []

    def set_epoch(self, epoch: int) -> None:
        """Every epoch has the same images."""

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        if not self._batches:
            self._batches = list(self.loader)
        return iter(self._batches)
