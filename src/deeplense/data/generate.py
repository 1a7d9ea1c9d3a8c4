"""`simulate`: a dataset on disk from a recipe. Shards are independent, idempotent tasks.

An interrupted generation continues where it stopped and ends bit-identical to an uninterrupted one, because a shard
depends on the recipe, the seed and its number alone, and appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from deeplense import config, rng
from deeplense.data import schema, store
from deeplense.data.schema import ImageInfo, Manifest, Parameter, Shard
from deeplense.device import resolve_device
from deeplense.errors import UserError
from deeplense.recipe import Recipe
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World

SHARD_BLOCKS = 4
SHARD = SHARD_BLOCKS * rng.BLOCK  # images
PLAN = "simulation.json"  # what an unfinished folder is for
ENGINES = ("torch", "lenstronomy")


class Task(NamedTuple):
    """Everything that a worker needs to make one shard."""

    tree: dict[str, Any]
    folder: str
    split: str
    number: int
    n: int
    engine: str
    device: str


def simulate(
    recipe: str | Path | dict[str, Any] | Recipe,
    out: str | Path,
    per_class: int | None = None,
    splits: str | None = None,
    seed: int | None = None,
    workers: int | None = None,
    engine: str = "torch",
    cluster: str | None = None,
    device: str = "cpu",
    overrides: Sequence[str] = (),
) -> Path:
    """Simulate a dataset; run again, it finishes what was interrupted.

    Args:
        recipe: a shipped recipe's name, a YAML file, its content, or a `Recipe`.
        out: the dataset's folder.
        per_class: images of each class, in one split "train"; or
        splits: "train=900,val=300,test=300" images of all classes together; the recipe's when neither is given.
        seed: instead of the recipe's.
        workers: processes; one for each core when not given.
        engine: "torch", or "lenstronomy" (slow, the reference).
        cluster: address of a Dask scheduler, in place of processes here.
        device: "cpu", or "cuda" for one process on the GPU.
        overrides: `key.sub=value` strings.

    Returns:
        The dataset's folder.

    Raises:
        UserError: a bad recipe, a full disk, a folder that holds something else, or no cluster at the address.
    """
    overrides = [*overrides, *([] if seed is None else [f"seed={seed}"])]
    made = config.load_recipe(config.to_tree(recipe) if isinstance(recipe, Recipe) else recipe, overrides)
    world = World(made.simulation)
    made.splits = _splits(made, splits, per_class, len(world.classes))
    if engine not in ENGINES:
        raise UserError(f"engine '{engine}' is not one of {', '.join(ENGINES)}")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; give 1 or more")
    where = resolve_device(device)
    out = Path(out)
    if _claim(out, made, engine, where.type, world):
        return out
    tasks = [
        Task(
            config.to_tree(made),
            str(out.absolute()),
            split,
            number,
            min(SHARD, n - number * SHARD),
            engine,
            str(where),
        )
        for split, n in made.splits.items()
        for number in range(-(-n // SHARD))
    ]
    shards = _run(tasks, 1 if where.type != "cpu" else workers or os.cpu_count() or 1, cluster, out)
    manifest(made, world, shards).write(out)
    (out / PLAN).unlink()
    print(f"wrote {out}: {sum(made.splits.values())} images, {len(world.classes)} classes")
    return out


def manifest(recipe: Recipe, world: World, shards: list[Shard]) -> Manifest:
    """The sealed manifest of a simulated dataset."""
    unit = "electron" if recipe.simulation.noise == "triple" else "electron/s"
    return Manifest(
        name=recipe.name,
        image=ImageInfo(1, world.size, world.size, world.pixel_scale, unit, list(world.instrument.bands)),
        classes=world.classes,
        parameters=[Parameter(t.name, t.unit, t.prior) for t in world.truth],
        splits=dict(recipe.splits),
        shards=shards,
        recipe=config.to_tree(recipe),
        code_version=metadata.version("deeplense"),
        source="simulated",
    ).seal()


def make_shard(task: Task) -> Shard:
    """Make one shard, or take the one that is there (it is whole, and can be no other)."""
    path = Path(task.folder) / f"{task.split}-{task.number:05d}.h5"
    if path.exists():
        return Shard(path.name, task.split, task.n, schema.sha256(path))
    recipe = config.load_recipe(task.tree)
    world = World(recipe.simulation)
    images = np.empty((task.n, 1, world.size, world.size), np.float32)
    labels, truth, index = [], [], []
    for k in range(-(-task.n // rng.BLOCK)):
        start = k * rng.BLOCK
        n = min(rng.BLOCK, task.n - start)
        block = observe_block(
            world, recipe.seed, task.split, task.number * SHARD_BLOCKS + k, n, task.device, task.engine
        )
        images[start : start + n] = block.images.cpu().numpy()
        labels.append(block.labels)
        truth.append(block.truth)
        index.append(block.numbers)
    ids = [f"{task.split}-{i:08d}" for i in np.concatenate(index)]
    folder = Path(task.folder)
    return store.write_shard(
        folder, task.split, task.number, images, np.concatenate(labels), np.concatenate(truth), ids
    )


def _run(tasks: list[Task], workers: int, cluster: str | None, out: Path) -> list[Shard]:
    """All shards, in the order of the tasks, with a progress bar."""
    done: dict[int, Shard] = {}
    bar = tqdm(total=sum(t.n for t in tasks), unit="image", desc=f"simulate {out.name}")
    try:
        if cluster is None and (workers == 1 or len(tasks) == 1):
            for k, task in enumerate(tasks):
                done[k] = make_shard(task)
                bar.update(task.n)
        else:
            with _executor(min(workers, len(tasks)), cluster) as executor:
                futures: dict[Future[Shard], int] = {}
                try:
                    with _without_interrupts():
                        futures.update((executor.submit(make_shard, task), k) for k, task in enumerate(tasks))
                    for future in as_completed(futures):
                        k = futures[future]
                        done[k] = future.result()
                        bar.update(tasks[k].n)
                except BaseException:
                    for future in futures:
                        future.cancel()
                    raise
    except BrokenExecutor as error:
        raise UserError(f"{out}: a worker died, perhaps for lack of memory; run again with fewer --workers") from error
    except KeyboardInterrupt:
        bar.close()
        made = sum((out / f"{t.split}-{t.number:05d}.h5").exists() for t in tasks)
        print(f"\nstopped; the same command continues after {made} of {len(tasks)} shards ({out})")
        raise
    finally:
        bar.close()
    return [done[k] for k in range(len(tasks))]


@contextlib.contextmanager
def _executor(workers: int, cluster: str | None) -> Iterator[Executor]:
    if cluster is not None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UserError("--cluster needs Dask: pip install 'deeplense[cluster]'") from error
        try:
            client = Client(cluster, timeout="10s")
        except (OSError, ValueError) as error:
            raise UserError(f"--cluster {cluster}: no Dask scheduler answers there ({error})") from error
        with client:
            yield client.get_executor(retries=3)
        return
    # spawn, not fork: a forked copy of a process that has used threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(os.getpid(),)) as executor:
        yield executor


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started here never see Ctrl-C, which a terminal sends to all: they end the shard that they are at."""
    pressed: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    # the mask is what they inherit; the handler is for other threads of this process, which the mask leaves open
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt


def _start_worker(parent: int) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Workers of a killed parent must not live on."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _splits(recipe: Recipe, text: str | None, per_class: int | None, classes: int) -> dict[str, int]:
    if text is not None and per_class is not None:
        raise UserError("give either --per-class or --splits, not both")
    if per_class is not None:
        found = {"train": per_class * classes}
    elif text is not None:
        try:
            pairs = [(k.strip(), int(v)) for k, v in (part.split("=") for part in text.split(","))]
        except ValueError as error:
            raise UserError(f"--splits '{text}' is not like train=900,val=300,test=300") from error
        found = dict(pairs)
        if len(found) < len(pairs):
            raise UserError(f"--splits '{text}' names a split twice")
    else:
        found = dict(recipe.splits)
    for name, n in found.items():
        if n < 1 or not name.isidentifier():
            raise UserError(f"split {name}={n}: a split has a plain name and at least one image")
    return found


def _claim(out: Path, recipe: Recipe, engine: str, device: str, world: World) -> bool:
    """Make the folder ours; True when the very dataset is there already.

    Raises:
        UserError: the folder holds something else, or the disk is too small.
    """
    plan = {"recipe": config.to_tree(recipe), "engine": engine, "device": device}
    plan["code_version"] = metadata.version("deeplense")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    if (out / schema.MANIFEST).exists():
        old = schema.read_manifest(out)
        if json.dumps(old.recipe) != json.dumps(plan["recipe"]):
            raise UserError(f"{out}: holds another dataset; choose another --out or delete it")
        if all((out / shard.file).exists() for shard in old.shards):
            (out / PLAN).unlink(missing_ok=True)  # killed after its last file was written
            print(f"{out}: this dataset is complete already")
            return True
        if old.code_version != plan["code_version"]:
            raise UserError(
                f"{out}: shards are missing, and deeplense {old.code_version} made it; make it anew elsewhere"
            )
    elif (out / PLAN).exists():
        if (out / PLAN).read_text() != json.dumps(plan):
            raise UserError(f"{out}: holds another unfinished simulation; choose another --out or delete it")
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; choose another --out")
    need = sum(recipe.splits.values()) * (world.size**2 * 4 + 8 * len(world.truth) + 128)
    try:
        out.mkdir(parents=True, exist_ok=True)
        have = shutil.disk_usage(out).free + sum(p.stat().st_size for p in out.glob("*.h5"))
        for stale in out.glob(".*.tmp*"):
            stale.unlink()
        if need > have:
            raise UserError(f"{out}: needs {need / 1e9:.2f} GB, the disk has {have / 1e9:.2f}; free some or make fewer")
        with schema.atomic(out / PLAN) as temporary:
            temporary.write_text(json.dumps(plan))
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror})") from error
    return False
