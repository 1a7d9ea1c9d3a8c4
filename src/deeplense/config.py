"""Recipes: YAML ⇄ dataclasses. An unknown key is an error that names the nearest known one.

A recipe may start from another (`base: legacy/model_2`) and state only what differs. Sections merge; values, priors
and free mappings (classes, splits, search space) are replaced whole. A dotted key (`simulation.classes.cdm.number: 25`)
reaches inside those too, in YAML as on the command line.

What a file may hold is in `trees.py`, what a field takes in `typed.py`, whose code a recipe may run in `allow.py`.
"""

from __future__ import annotations

import dataclasses
import typing
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from deeplense import trees
from deeplense.errors import UserError, brief, nearest
from deeplense.recipe import Recipe, Simulation
from deeplense.typed import build, dataclass_in, fields, optional

__all__ = [
    "Tree",
    "build",
    "dump",
    "load_recipe",
    "load_simulation",
    "lookup",
    "nearest",
    "set_path",
    "shipped",
    "to_tree",
]

T = TypeVar("T")
Tree = dict[str, Any]

Said = str | Path | Tree | Recipe | Simulation

BASES = 16  # recipes that may stand one on another


def lookup(registry: typing.Mapping[str, T], name: str, what: str) -> T:
    """`registry[name]`.

    Raises:
        UserError: no such name (the nearest is named).
    """
    if name not in registry:
        raise UserError(f"no {what} {brief(name)}; {nearest(name, registry)}")
    return registry[name]


def shipped() -> dict[str, Path]:
    """Names and files of the recipes in the package."""
    root = Path(str(resources.files("deeplense"))) / "recipes"
    return {str(p.relative_to(root).with_suffix("")): p for p in sorted(root.rglob("*.yaml"))}


def load_recipe(source: str | Path | Tree, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        source: the name of a shipped recipe, the path of a YAML file, or an already parsed mapping.
        overrides: `key.sub=value` strings, values in YAML.

    Raises:
        UserError: no such recipe, bad YAML, unknown key (nearest named), wrong type, or a number out of its range.
    """
    if isinstance(source, dict):
        trees.check_plain(source, "recipe")
        tree = _resolve(source, "recipe")
    else:
        tree = _resolve(_read(source), str(source))
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{brief(text)} is not an override; write key.sub=value")
        set_path(tree, path, trees.read_yaml(value, brief(text)))
    return build(Recipe, tree, "recipe")


def load_simulation(said: Said, overrides: typing.Sequence[str] = ()) -> Simulation:
    """The `simulation` section of whatever says a recipe; whoever made it, its numbers lie in their ranges.

    Raises:
        UserError: as of `load_recipe`.
    """
    if isinstance(said, Simulation):
        built: Simulation = build(Simulation, dataclasses.asdict(said), "simulation")
        if not overrides:
            return built
        said = Recipe(simulation=built)
    return load_recipe(to_tree(said) if isinstance(said, Recipe) else said, overrides).simulation


def to_tree(recipe: Recipe) -> Tree:
    """The recipe as plain mappings, complete."""
    return dataclasses.asdict(recipe)


def dump(tree: Tree | Recipe) -> str:
    """YAML text of a recipe."""
    tree = to_tree(tree) if isinstance(tree, Recipe) else tree
    return yaml.dump(tree, Dumper=trees.Dumper, sort_keys=False, allow_unicode=True)


def set_path(tree: Tree, path: str, value: Any) -> None:
    """Set `a.b.c` in a recipe's tree.

    Raises:
        UserError: a recipe has no such path (the nearest key is named).
    """
    keys = path.split(".")
    node: Any = tree
    cls: type | None = Recipe
    for depth, key in enumerate(keys):
        here = ".".join(keys[:depth]) or "recipe"
        if cls is not None and isinstance(node, dict):
            known = fields(cls)
            if key not in known:
                raise UserError(f"{here} has no key {brief(key)}; {nearest(key, known)}")
            cls = dataclass_in(known[key])
        elif not isinstance(node, dict) or (key not in node and depth < len(keys) - 1):
            raise UserError(f"{here} has no key {brief(key)}; {nearest(key, node if isinstance(node, dict) else ())}")
        if depth == len(keys) - 1:
            node[key] = value
        else:
            if node.get(key) is None:
                node[key] = _default(keys[: depth + 1])
            node = node[key]


def _read(source: str | Path) -> Tree:
    names = shipped()
    path = names.get(str(source), Path(source))
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long for a name, or a byte that no name has
        there = False
    if not there:
        raise UserError(
            f"no recipe {brief(str(source))}: neither a file nor a shipped recipe; {nearest(str(source), names)}"
        )
    if path.stat().st_size > trees.LONGEST:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes; a recipe has {trees.LONGEST:,} at most")
    try:
        tree = trees.read_yaml(path.read_text(), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, e.g. 'base: quickstart'")
    return tree


def _resolve(tree: Tree, where: str, seen: tuple[str, ...] = ()) -> Tree:
    tree = trees.unshared(tree)
    base = tree.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{where}: base is {brief(base)}, but should be the name or file of one recipe")
    if base is not None and base in seen:
        raise UserError(f"{where}: 'base' runs in a circle: {' -> '.join((*seen, base))}")
    if len(seen) == BASES:
        raise UserError(f"{where}: {BASES} recipes stand on this one already; write it in fewer")
    dotted = {key: tree.pop(key) for key in list(tree) if "." in str(key)}
    merged = _merge(_resolve(_read(base), str(base), (*seen, base)), tree, Recipe) if base else tree
    for path, value in dotted.items():
        set_path(merged, str(path), value)
    return merged


def _merge(old: Tree, new: Tree, cls: Any) -> Tree:
    known = fields(cls)
    for key, value in new.items():
        inner = dataclass_in(known.get(key))
        if inner and isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(old[key], value, inner)
        elif not (inner and value is None and not optional(known[key])):  # an empty section changes nothing
            old[key] = value
    return old


def _default(keys: list[str]) -> Any:
    """The default of a section, as a mapping, so that a path may reach into what the YAML leaves out."""
    node: Any = Recipe()
    for key in keys:
        node = getattr(node, key, None) if not isinstance(node, dict) else node.get(key)
    return dataclasses.asdict(node) if dataclasses.is_dataclass(node) and not isinstance(node, type) else (node or {})
