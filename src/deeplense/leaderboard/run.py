"""`leaderboard`: train every entry with every seed, and write the table."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeplense.bundle import load
from deeplense.data import schema
from deeplense.data.generate import simulate
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.leaderboard import outputs
from deeplense.leaderboard.board import Board, Entry, read_board
from deeplense.leaderboard.claims import Watch, claimed
from deeplense.leaderboard.measure import core_seconds, epochs_for, judge
from deeplense.training.fit import train

POLL = 5.0  # s


def leaderboard(
    board: str | Path, out: str | Path, data: str | Path | None = None, workers: int | None = None, retry: bool = False
) -> Path:
    """Train and judge networks under one protocol; returns `OUT/index.html`.

    Every entry is trained with every seed on the same images; its epoch is chosen on the validation split, and the
    test split is looked at once. The same command goes on where it was stopped, and on several machines with a common
    disk shares the work. An entry that fails is told, and the others go on.

    Args:
        board: a YAML file: recipe, splits, common, budget, seeds, ideal, entries. data: a dataset; simulated into
            OUT/data when not given. workers: processes that simulate. retry: what failed before is tried again.

    Raises:
        UserError: a board that makes no sense, or no entry that could be trained.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what is finished is kept.
    """
    made, out = read_board(board), Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    _same_protocol(made, out)
    dataset = _data(made, out, data, workers)
    if retry:
        for entry, seed in made.units:
            (_folder(out, entry, seed) / "failed.json").unlink(missing_ok=True)
    _all(made, out, dataset)
    rows = outputs.collect(made, out)
    if not any(row["seeds"] for row in rows):
        raise UserError(f"{out}: no entry could be trained; the first says: {rows[0]['failed']}")
    return outputs.write(made, rows, dataset, out)


def _all(board: Board, out: Path, dataset: Dataset) -> None:
    """Work until everything is done, by this process or another."""
    watch = Watch()
    n = len(board.units)
    while True:
        left = [(e, s) for e, s in board.units if not _done(_folder(out, e, s))]
        if not left:
            return
        worked = False
        for entry, seed in left:
            folder = _folder(out, entry, seed)
            claim = folder / "claim.json"
            if watch.dead(claim):
                print(f"{entry.name}, seed {seed}: whoever had it has stopped; taken over")
                watch.take_over(claim)
            with claimed(claim) as mine:
                if mine and not _done(folder):
                    done = sum(_done(_folder(out, e, s)) for e, s in board.units)
                    print(f"[{done + 1}/{n}] {entry.name}, seed {seed}", flush=True)
                    _one(board, entry, seed, dataset, folder)
                    worked = True
        if not worked:
            time.sleep(POLL)  # the rest is in other hands


def _one(board: Board, entry: Entry, seed: int, dataset: Dataset, folder: Path) -> None:
    """Train and judge; what it raises for the user is written down."""
    try:
        epochs = _epochs(board, entry, dataset, folder.parent)
        recipe = board.recipe_of(entry, seed, epochs)
        began, since = core_seconds(), time.perf_counter()
        path = train(recipe, dataset.folder, folder / "run", resume=(folder / "run").exists(), device=_device())
        spent = {"core_seconds": core_seconds() - began, "seconds": time.perf_counter() - since}
        numbers, said = judge(path, dataset)
        seen = epochs * load(path, "cpu").summary["n_train"]
        with schema.atomic(folder / "said.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **said)  # type: ignore[arg-type]
        _write(folder / "result.json", numbers | spent | {"seed": seed, "epochs": epochs, "images_seen": seen})
    except (UserError, RuntimeError, MemoryError) as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        print(f"{entry.name}, seed {seed}: failed: {why}")
        _write(folder / "failed.json", {"why": why})


def _epochs(board: Board, entry: Entry, dataset: Dataset, folder: Path) -> int:
    """The same for all seeds, and after an interruption."""
    plan = folder / "plan.json"
    if not plan.exists():
        recipe = board.recipe_of(entry, board.seeds[0])
        n = dataset.manifest.splits["train"]
        afford = epochs_for(recipe, entry.budget, dataset.folder, n, folder / f"timing-{time.time_ns()}")
        _write(plan, {"budget": entry.budget, "epochs": afford})
    epochs: int = json.loads(plan.read_text())["epochs"]
    return epochs


def _data(board: Board, out: Path, data: str | Path | None, workers: int | None) -> Dataset:
    if data is not None:
        return Dataset(data)
    folder, watch = out / "data", Watch()
    while True:
        if watch.dead(out / "data.claim"):
            watch.take_over(out / "data.claim")
        with claimed(out / "data.claim") as mine:
            if mine:
                return Dataset(simulate(board.base, folder, workers=workers))
        time.sleep(POLL)


def _same_protocol(board: Board, out: Path) -> None:
    """A folder holds one board; entries and seeds may come and go, what they share may not."""
    from deeplense import config

    protocol: dict[str, Any] = {"recipe": config.to_tree(board.base)}
    path = out / "protocol.json"
    if path.exists():
        old = json.loads(path.read_text())
        if old != json.loads(json.dumps(protocol)):
            raise UserError(f"{out}: holds a board of another recipe, splits or common settings; choose another --out")
    else:
        _write(path, protocol)


def _folder(out: Path, entry: Entry, seed: int) -> Path:
    return out / "entries" / entry.name / f"seed-{seed}"


def _done(folder: Path) -> bool:
    return (folder / "result.json").exists() or (folder / "failed.json").exists()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with schema.atomic(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=1))
