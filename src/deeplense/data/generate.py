"""`simulate`: a dataset on disk from a recipe. Shards are independent, idempotent tasks.

An interrupted generation continues where it stopped and ends bit-identical to an uninterrupted one, because a shard
depends on the recipe, the seed and its number alone, and appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Generator, Sequence
from concurrent.futures import BrokenExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from deeplense import config, rng
from deeplense.allow import allowed
from deeplense.data import pools, schema, store
from deeplense.data.schema import ImageInfo, Manifest, Parameter, Shard
from deeplense.device import resolve_device
from deeplense.errors import UserError
from deeplense.recipe import Recipe
from deeplense.sim import truth_maps
from deeplense.sim.lenses import Lenses
from deeplense.sim.observe import HaloTable, observe_block
from deeplense.sim.substructure import HALO_COLUMNS
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
    allow: tuple[str, ...] = ()  # modules of the recipe's own populations
    maps: tuple[str, ...] = ()  # truths to keep


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
    truth: str | None = None,
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
        truth: maps to keep beside the images, e.g. "kappa,deflection,source"; keys of `TRUTH_MAPS`.
        overrides: `key.sub=value` strings.

    Returns:
        The dataset's folder.

    Raises:
        UserError: a bad recipe, a truth map that it cannot give, a full disk, a folder that holds something else, or
            no cluster at the address.
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
    if cluster is not None:  # an address that does not answer is found before anything is written
        pools.check(cluster)
    maps = () if truth is None else tuple(truth_maps.chosen(truth, world))
    if _claim(out, made, engine, where.type, world, maps):
        return out
    tree, folder, own = config.to_tree(made), str(out.absolute()), _own_modules(made)
    tasks = [
        Task(tree, folder, split, number, min(SHARD, n - number * SHARD), engine, str(where), own, maps)
        for split, n in made.splits.items()
        for number in range(-(-n // SHARD))
    ]
    shards = _run(tasks, 1 if where.type != "cpu" else workers or os.cpu_count() or 1, cluster, out)
    _sweep(out)
    manifest(made, world, shards, () if world.halos_per_image is None else HALO_COLUMNS, maps).write(out)
    (out / PLAN).unlink()
    print(f"wrote {out}: {sum(made.splits.values())} images, {len(world.classes)} classes")
    return out


def manifest(
    recipe: Recipe, world: World, shards: list[Shard], halo_columns: Sequence[str] = (), maps: Sequence[str] = ()
) -> Manifest:
    """The sealed manifest of a simulated dataset."""
    planes = truth_maps.plane_names(maps, world)
    unit: str = "electron" if recipe.simulation.noise == "triple" else recipe.simulation.unit
    if recipe.simulation.scale_to_max:
        unit = "maximum"
    return Manifest(
        name=recipe.name,
        image=ImageInfo(len(world.bands), world.size, world.size, world.pixel_scale, unit, world.bands),
        classes=world.classes,
        parameters=parameters(world),
        splits=dict(recipe.splits),
        shards=shards,
        recipe=config.to_tree(recipe),
        code_version=metadata.version("deeplense"),
        source="simulated",
        halo_columns=list(halo_columns),
        maps=[name for name, _ in planes],
        map_units=[unit for _, unit in planes],
    ).seal()


def parameters(world: World) -> list[Parameter]:
    """Of every image of a world."""
    return [Parameter(t.name, t.unit, t.prior, t.kind, list(t.pair), t.period) for t in world.truth]


def make_shard(task: Task) -> Shard:
    """Make one shard, or take the one that is there (it is whole, and can be no other)."""
    path = _path(task)
    if path.exists():
        return Shard(path.name, task.split, task.n, schema.sha256(path))
    with allowed(*task.allow):
        recipe, world = _world(json.dumps(task.tree))
    images = np.empty((task.n, len(world.bands), world.size, world.size), np.float32)
    rest, maps = [], []
    for k in range(-(-task.n // rng.BLOCK)):
        start = k * rng.BLOCK
        n = min(rng.BLOCK, task.n - start)
        number = task.number * SHARD_BLOCKS + k
        block = _block(world, recipe.seed, task.split, number, n, task.device, task.engine)
        images[start : start + n] = block.images.cpu().numpy()
        rest.append(block[1:])
        if task.maps:
            lenses = Lenses(world, world.scenes(recipe.seed, task.split, number, n), recipe.seed, task.split)
            maps.append(truth_maps.make_maps(lenses, task.maps))
    labels, truth, index, tables = zip(*rest, strict=True)
    ids = [f"{task.split}-{i:08d}" for i in np.concatenate(index)]
    halos = None if world.halos_per_image is None else HaloTable.joined(tables)
    folder = Path(task.folder)
    columns = images, np.concatenate(labels), np.concatenate(truth), ids, halos
    return store.write_shard(folder, task.split, task.number, *columns, np.concatenate(maps) if maps else None)


def _path(task: Task) -> Path:
    return Path(task.folder) / f"{task.split}-{task.number:05d}.h5"


_block = functools.lru_cache(1)(observe_block)


@functools.lru_cache(1)
def _world(tree: str) -> tuple[Recipe, World]:
    """Made once for all shards of a process."""
    recipe = config.build(Recipe, json.loads(tree), "recipe")
    return recipe, World(recipe.simulation)


def _own_modules(recipe: Recipe) -> tuple[str, ...]:
    """Whose code workers must run too; `World` has seen that each is trusted."""
    s = recipe.simulation
    named = (str(spec["population"]) for spec in (*s.classes.values(), *([s.sky] if s.sky else [])))
    return tuple(sorted({name.partition(":")[0] for name in named if ":" in name}))


class Shared(NamedTuple):
    """What a worker elsewhere must find before it makes a shard: this very folder, and the same code."""

    mark: str
    versions: dict[str, str]


def make_shard_elsewhere(task: Task, shared: Shared) -> Shard | UserError:
    """`make_shard` on a machine that may see other files; an error that would come again is returned, not raised."""
    host = socket.gethostname()
    if not Path(shared.mark).exists():
        return UserError(
            f"{task.folder}: worker {host} does not see this folder; choose an --out that all workers share"
        )
    if (found := _versions()) != shared.versions:
        here, there = (" ".join(f"{k} {v}" for k, v in sorted(x.items())) for x in (shared.versions, found))
        return UserError(f"worker {host} runs {there}, and this machine {here}; install the same on both")
    try:
        return make_shard(task)
    except UserError as error:
        return error


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("deeplense", "numpy", "torch")}


def _run(tasks: list[Task], workers: int, cluster: str | None, out: Path) -> list[Shard]:
    """All shards, in the order of the tasks, with a progress bar."""
    done: dict[int, Shard] = {}
    bar = tqdm(total=sum(t.n for t in tasks), unit="image", desc=f"simulate {out.name}")
    try:
        with contextlib.closing(_made(tasks, workers, cluster, out)) as made:
            for k, shard in made:
                if isinstance(shard, UserError):
                    raise shard
                done[k] = shard
                bar.update(tasks[k].n)
    except BrokenExecutor as error:
        raise UserError(f"{out}: a worker died, perhaps for lack of memory; run again with fewer --workers") from error
    except KeyboardInterrupt:
        bar.close()
        there = sum(_path(task).exists() for task in tasks)
        print(f"\nstopped; the same command continues after {there} of {len(tasks)} shards ({out})")
        raise
    finally:
        bar.close()
    return [done[k] for k in range(len(tasks))]


def _made(
    tasks: list[Task], workers: int, cluster: str | None, out: Path
) -> Generator[tuple[int, Shard | UserError], None, None]:
    """Shards in the order in which they are finished."""
    if cluster is not None:
        mark = out.absolute() / f".{secrets.token_hex(8)}.tmp"
        mark.touch()
        try:
            with pools.cluster(cluster) as pool:
                there = functools.partial(make_shard_elsewhere, shared=Shared(str(mark), _versions()))
                yield from pools.finished(pool, there, tasks)
        finally:
            mark.unlink(missing_ok=True)
    elif _alone(tasks, workers):
        yield from ((k, make_shard(task)) for k, task in enumerate(tasks))
    else:
        with pools.processes(min(workers, len(tasks))) as pool:
            yield from pools.finished(pool, make_shard, tasks)


def _alone(tasks: list[Task], workers: int) -> bool:
    """Whether this process has made all shards before others, which must start first, would have.

    The first block that is missing tells; it is not made again here.
    """
    missing = [task for task in tasks if not _path(task).exists()]
    workers = min(workers, len(missing))
    if workers <= 1:
        return True
    first = missing[0]
    recipe, world = _world(json.dumps(first.tree))
    n, start = min(rng.BLOCK, first.n), time.perf_counter()
    _block(world, recipe.seed, first.split, first.number * SHARD_BLOCKS, n, first.device, first.engine)
    seconds = (time.perf_counter() - start) / n * sum(task.n for task in missing)
    return seconds * (1 - 1 / workers) < pools.START


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


def _begun(out: Path) -> set[Path]:
    """What processes that were killed had begun to write."""
    return set(out.glob(".*.tmp*"))


def _sweep(out: Path) -> None:
    for stale in _begun(out):
        stale.unlink(missing_ok=True)


def _claim(out: Path, recipe: Recipe, engine: str, device: str, world: World, maps: Sequence[str]) -> bool:
    """Make the folder ours; True when the very dataset is there already.

    Raises:
        UserError: the folder holds something else, or the disk is too small.
    """
    plan = {"recipe": config.to_tree(recipe), "engine": engine, "device": device}
    plan["code_version"] = metadata.version("deeplense")
    planes = [name for name, _ in truth_maps.plane_names(maps, world)]
    plan |= {"maps": planes} if maps else {}
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    if (out / schema.MANIFEST).exists():
        old = schema.read_manifest(out)
        if json.dumps(old.recipe) != json.dumps(plan["recipe"]) or old.maps != planes:
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
    elif out.is_dir() and set(out.iterdir()) - _begun(out):
        raise UserError(f"{out}: is not empty; choose another --out")
    halos = 4 * len(HALO_COLUMNS) * (world.halos_per_image or 0)
    image = 4 * (len(world.bands) + len(planes)) * world.size**2 + 8 * len(world.truth) + 128 + halos
    need = sum(recipe.splits.values()) * image
    try:
        out.mkdir(parents=True, exist_ok=True)
        have = shutil.disk_usage(out).free + sum(p.stat().st_size for p in out.glob("*.h5"))
        _sweep(out)
        if need > have:
            raise UserError(f"{out}: needs {need / 1e9:.2f} GB, the disk has {have / 1e9:.2f}; free some or make fewer")
        with schema.atomic(out / PLAN) as temporary:
            temporary.write_text(json.dumps(plan))
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror})") from error
    return False
