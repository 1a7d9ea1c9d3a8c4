"""Batches made ahead, in a process of their own, while the network trains on those before.

Images pass through a ring of batches in shared memory, which that process fills and this one empties; the rest of a
batch is small and passes through a pipe. The process is never further ahead than the ring is long.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import traceback
import weakref
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from deeplense import rng
from deeplense.data import pools
from deeplense.data.schema import Batch
from deeplense.errors import UserError


class Share(NamedTuple):
    """What one process wants of an epoch: rows rank, rank + world_size, … of each batch from `start` on."""

    epoch: int
    images: int  # of the epoch, over all processes
    start: int = 0
    rank: int = 0
    world_size: int = 1


class Source(Protocol):
    """What makes the batches; it must be possible to pickle it."""

    batch_size: int  # of all processes together

    def batches(self, share: Share) -> Iterator[Batch]: ...
    def close(self) -> None: ...


def ahead(source: Source, image: tuple[int, int, int], seconds: float) -> Source:
    """The source made `Ahead` where that is worth a process: its batches would keep this one busy for some seconds."""
    if seconds < 2 * pools.START or (os.cpu_count() or 1) < 2 or multiprocessing.current_process().daemon:
        return source
    try:
        return Ahead(source, image)
    except RuntimeError as error:
        print(f"images are made between the steps, not beside them: no shared memory ({error})", file=sys.stderr)
        return source


class Ahead:
    """The batches of a source, made ahead. After an epoch the process goes on with the next one.

    It starts at once, and ends with `close`, with the last reference to this object, or with this process.

    Args:
        image: (C, H, W) of the source's images.

    Raises:
        UserError: what the source raises; the process was killed.
        RuntimeError: there is no shared memory for the ring.
    """

    process: BaseProcess
    _begun: bool  # it was told where to begin
    _due: Share | None  # what it makes next

    def __init__(self, source: Source, image: tuple[int, int, int]) -> None:
        self.source, self.batch_size = source, source.batch_size
        # a block comes all at once: the network works on it while the next one is made
        depth = 2 + -(-rng.BLOCK // self.batch_size)
        self._ring = torch.empty((depth, self.batch_size, *image)).share_memory_()  # type: ignore[no-untyped-call]
        self._start()

    def batches(self, share: Share) -> Iterator[Batch]:
        """The batches of a share; they are begun now, not when the first is taken."""
        if share != self._due:  # the first one, or out of turn
            if self._begun:
                self.close()
                self._start()
            self._send(share)
            self._begun = True
        self._due = None  # of one that is left half-way
        return self._received(share)

    def close(self) -> None:
        """End the process; it would be started again for more batches."""
        self._due = None
        self._end()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        arguments = os.getpid(), self.source, self._ring, there
        self.process = context.Process(target=_make, args=arguments, daemon=True)
        with pools.starting():
            self.process.start()
        there.close()
        self._end = weakref.finalize(self, _end, self.process, self._pipe)
        self._begun = False
        self._due = None

    def _received(self, share: Share) -> Iterator[Batch]:
        for first in range(share.start * self.batch_size, share.images, self.batch_size):
            slot, *rest = self._receive()
            columns = [torch.from_numpy(column) for column in rest]
            image = self._ring[slot, : len(columns[0])].clone()
            self._send(slot)
            if first + self.batch_size >= share.images:
                self._due = share._replace(epoch=share.epoch + 1, start=0)
            yield Batch(image, *columns)

    def _send(self, what: Share | int) -> None:
        with contextlib.suppress(OSError):  # when it has died, the next batch tells why
            self._pipe.send(what)

    def _receive(self) -> Any:
        try:
            found = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise UserError("the process that makes the images died, perhaps for lack of memory; run again") from error
        if isinstance(found, Exception):
            raise found
        return found


def _end(process: BaseProcess, pipe: Connection) -> None:
    process.kill()  # it holds nothing that it would have to put away
    process.join()
    pipe.close()


def _make(parent: int, source: Source, ring: Tensor, pipe: Connection) -> None:
    """What the process does: batches for ever, as long as the ring has room for one."""
    pools.start_worker(parent)
    free = list(range(len(ring)))
    try:
        share: Share = pipe.recv()
        while True:
            for image, *rest in source.batches(share):
                slot = free.pop() if free else pipe.recv()
                ring[slot, : len(image)] = image
                pipe.send((slot, *(column.numpy() for column in rest)))
            share = share._replace(epoch=share.epoch + 1, start=0)
    except (EOFError, BrokenPipeError):  # nobody is there any more
        return
    except Exception as error:
        if not isinstance(error, UserError):
            error.add_note(traceback.format_exc())
        pipe.send(error)
