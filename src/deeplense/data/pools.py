"""Who makes the shards: processes here, or the workers of a Dask cluster.

Tasks are handed out in a bounded window, so that a million of them take no more memory than a hundred.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from importlib import metadata
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, TypeVar

import torch

from deeplense.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 3  # tasks handed out for each that can run at a time
PACKAGE = "deeplense"
CONNECT = 8.0  # s, to wait for a scheduler's answer
START = 4.0  # s, that a process of this machine takes before its first image, nearly all of it imports


class Pool(NamedTuple):
    """An executor, and how many tasks it can run at a time, which a cluster may change."""

    executor: Executor
    slots: Callable[[], int]


def finished(pool: Pool, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
    """(position, result) of each task as it ends; closed early, it withdraws what has not begun."""
    futures: dict[Future[R], int] = {}
    left = iter(enumerate(tasks))
    try:
        while True:
            with starting():
                for k, task in islice(left, max(0, AHEAD * pool.slots() - len(futures))):
                    futures[pool.executor.submit(function, task)] = k
            if not futures:
                return
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                yield futures.pop(future), future.result()
    finally:
        for future in futures:
            future.cancel()


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Pool]:
    """Processes of this machine."""
    # spawn, not fork: a forked copy of a process that has used threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(os.getpid(),)) as executor:
        yield Pool(executor, lambda: workers)


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Pool]:
    """The workers of a Dask scheduler. A task whose worker dies goes to another one.

    Raises:
        UserError: the scheduler goes away, or its workers cannot do the task.
    """
    from distributed import Client, KilledWorker
    from distributed.comm import CommClosedError

    with Client(address, set_as_default=False) as client:
        if not client.nthreads():
            print(f"--cluster {address}: no worker there yet; waiting for one", file=sys.stderr)
        try:
            client.run(metadata.version, PACKAGE)  # a worker without it would end itself, and the task wait forever
            # not pure: results of an earlier run must not stand in for files that are gone
            yield Pool(client.get_executor(retries=3, pure=False), lambda: max(16, sum(client.nthreads().values())))
        except KilledWorker as error:
            raise UserError(
                f"--cluster {address}: the workers of one shard died each time, perhaps for lack of memory; "
                "give them more and run the same command again"
            ) from error
        except (ImportError, RuntimeError) as error:
            cause = error if isinstance(error, ImportError) else error.__cause__
            if not isinstance(cause, ImportError):
                raise
            raise UserError(
                f"--cluster {address}: it cannot import what it needs ({cause}); scheduler and workers need the same "
                "packages as this machine"
            ) from error
        except Exception as error:
            # a lost connection shows in many ways
            lost = isinstance(error, (CancelledError, CommClosedError)) or _raised_by(error).startswith("distributed.")
            if client.status == "running" and not lost:
                raise
            raise UserError(f"--cluster {address}: the scheduler went away; run the same command again") from error


def _raised_by(error: BaseException) -> str:
    """The module in which an error was raised: of a lost task Dask's own code trips, before it knows."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""


def check(address: str) -> None:
    """Ask whether a Dask scheduler answers at the address; a client would hang where something else listens.

    Raises:
        UserError: none does.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UserError("--cluster needs Dask: pip install 'deeplense[cluster]'") from error
    with ThreadPoolExecutor(1) as thread:  # the caller may run in an event loop
        try:
            kind = thread.submit(lambda: asyncio.run(asyncio.wait_for(_kind(address), CONNECT))).result()
        except Exception as error:  # whatever an answer in another language leads to
            said = str(error) or f"nothing within {CONNECT:g} s"
            raise UserError(f"--cluster {address}: no Dask scheduler answers there ({said})") from error
    if kind != "Scheduler":
        raise UserError(f"--cluster {address}: no Dask scheduler answers there, but a {kind}")


async def _kind(address: str) -> str:
    """What part of Dask listens there."""
    from distributed.core import rpc

    async with rpc(address, timeout=CONNECT) as there:
        return str((await there.identity())["type"])


def start_worker(parent: int) -> None:
    """What a process does first."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Workers of a killed parent must not live on."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Where processes are started: they see neither Ctrl-C nor the caller's script.

    A terminal sends Ctrl-C to all; these end with their parent, or with the shard that they are at. The script would
    be run again in each of them, and start others, where it lacks an `if __name__ == "__main__"`.
    """
    resource_tracker.ensure_running()  # it is started with the first process, and would take the mask away again
    pressed: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    # the mask is what they inherit; the handler is for other threads of this process, which the mask leaves open
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    script = vars(sys.modules["__main__"])
    named: dict[str, Any] = {name: script[name] for name in ("__file__", "__spec__") if name in script}
    script.update(dict.fromkeys(named))
    try:
        yield
    finally:
        script.update(named)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt
