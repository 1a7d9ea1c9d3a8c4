"""What a board's file says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deeplense import config, trees
from deeplense.errors import UserError
from deeplense.recipe import Recipe

KEYS = ("recipe", "splits", "common", "budget", "seeds", "ideal", "entries")
BUDGETS = ("images", "core_seconds")


@dataclass(frozen=True)
class Entry:
    """One row: settings of the recipe as a dotted path each, and a budget of its own."""

    name: str
    settings: dict[str, Any]
    budget: dict[str, float]


@dataclass
class Board:
    """A protocol and its entries.

    Attributes:
        base: the recipe that all entries start from; its simulation makes the data.
        seeds: of the trainings; the data are the same for all.
        ideal: the best that any network can reach, by metric (`auc` or `mae`), where somebody knows it.
    """

    entries: list[Entry]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    ideal: dict[str, float] = field(default_factory=dict)
    base: Recipe = field(default_factory=Recipe)

    @property
    def units(self) -> list[tuple[Entry, int]]:
        """Every training: each entry's first seed before any one's second."""
        return [(entry, seed) for seed in self.seeds for entry in self.entries]

    def recipe_of(self, entry: Entry, seed: int, epochs: int | None = None) -> Recipe:
        """Of one training. The splits stay those of the data.

        Raises:
            UserError: a setting that the recipe does not have, or that makes no sense.
        """
        settings = entry.settings | {"seed": seed} | ({} if epochs is None else {"training.epochs": epochs})
        return _with(self.base, settings)


def read_board(path: str | Path) -> Board:
    """A board from a YAML file.

    Raises:
        UserError: no such file, or what it says makes no sense; entries are looked at when they run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such board; write one with recipe, budget and entries (docs/leaderboard.md)")
    if path.stat().st_size > trees.LONGEST:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes; a board has {trees.LONGEST:,} at most")
    tree = trees.read_yaml(path.read_text(errors="replace"), str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is no board; it wants recipe, budget and entries")
    for key in tree:
        if key not in KEYS:
            raise UserError(f"{path}: has no key '{key}'; {config.nearest(str(key), KEYS)}")
    entries = tree.get("entries")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: entries is missing: name a network each, as {{compact: {{}}}}")
    seeds = tree.get("seeds", [0, 1, 2])
    if not (isinstance(seeds, list) and seeds and all(isinstance(s, int) and s >= 0 for s in seeds)):
        raise UserError(f"{path}: seeds is {seeds!r}; give a list of whole numbers")
    ideal = tree.get("ideal", {})
    if not (isinstance(ideal, dict) and all(k in ("auc", "mae") and _positive(v) for k, v in ideal.items())):
        raise UserError(f"{path}: ideal is {ideal!r}; give auc or mae")
    base = config.load_recipe(str(tree.get("recipe", "quickstart")))
    common = tree.get("common", {})
    if not isinstance(common, dict):
        raise UserError(f"{path}: common is {common!r}; give settings of the recipe")
    settings = common | ({"splits": tree["splits"]} if "splits" in tree else {})
    base = _with(base, settings)
    budget = _budget(tree.get("budget"), f"{path}: budget")
    return Board([_entry(path, n, e, budget) for n, e in entries.items()], seeds, ideal, base)


def _entry(path: Path, name: Any, tree: Any, budget: dict[str, float]) -> Entry:
    where = f"{path}: entries.{name}"
    if not (isinstance(name, str) and name and all(c.isalnum() or c in "-_." for c in name) and name[0] != "."):
        raise UserError(f"{where}: a name has letters, digits, '-', '_' and '.' only; it is a folder's name too")
    settings = dict(tree) if isinstance(tree, dict) else {} if tree is None else None
    if settings is None:
        raise UserError(f"{where} is {tree!r}; give settings of the recipe, as {{model.name: resnet18}}")
    own = settings.pop("budget", None)
    for key in settings:
        if key == "seed" or str(key).split(".")[0] in ("splits", "simulation"):
            raise UserError(f"{where}: {key} is the same for all; set it for the whole board")
    return Entry(name, settings, budget if own is None else _budget(own, f"{where}.budget"))


def _with(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    tree = config.to_tree(recipe)
    for key, value in settings.items():
        config.set_path(tree, str(key), value)
    made: Recipe = config.build(Recipe, tree, "recipe")
    return made


def _budget(tree: Any, where: str) -> dict[str, float]:
    if not (isinstance(tree, dict) and len(tree) == 1 and next(iter(tree)) in BUDGETS):
        raise UserError(f"{where} is {tree!r}; give {{images: 100000}} or {{core_seconds: 600}}")
    ((kind, value),) = tree.items()
    if not _positive(value):
        raise UserError(f"{where}.{kind} is {value!r}; it must be a positive number")
    return {kind: float(value)}


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
