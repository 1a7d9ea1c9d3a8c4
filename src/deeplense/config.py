"""Recipes: YAML ⇄ dataclasses. An unknown key is an error that names the nearest known one.

A recipe may start from another (`base: legacy/model_2`) and state only what differs. Sections merge; values, priors
and free mappings (classes, splits, search space) are replaced whole. A dotted key (`simulation.classes.cdm.number: 25`)
reaches inside those too, in YAML as on the command line.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import importlib
import re
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from deeplense.errors import UserError
from deeplense.recipe import Recipe

T = TypeVar("T")
Tree = dict[str, Any]


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """The rest of an error message: `; did you mean 'x'?` and the known keys."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}(known: {', '.join(known)})"


def lookup(registry: typing.Mapping[str, T], name: str, what: str) -> T | Any:
    """`registry[name]`, or the class that `my_package.module:Class` names.

    Raises:
        UserError: no such name (the nearest is named), or the import fails.
    """
    if name in registry:
        return registry[name]
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError, SyntaxError) as error:
            raise UserError(f"{what} '{name}' cannot be imported: {error}") from error
    raise UserError(f"no {what} '{name}'; {nearest(name, registry)}")


def build(cls: type[T], tree: Tree, where: str) -> T:
    """An instance of the dataclass `cls` from a mapping, with types checked.

    Raises:
        UserError: an unknown key or a value of the wrong type, named by its dotted path below `where`.
    """
    _check_keys(cls, tree, where)
    parser = _parser(typing.cast(Any, cls))
    try:
        return typing.cast(T, parser.instantiate_classes(parser.parse_object({"it": tree})).it)
    except (ArgumentError, TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{where}: {_blame(cls, tree, where) or ' '.join(lines)[:300]}") from error


@functools.lru_cache
def _parser(hint: Any) -> ArgumentParser:
    """A parser of one value; to make it takes longer than to use it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=hint)
    return parser


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
        UserError: no such recipe, bad YAML, unknown key (nearest named) or wrong type.
    """
    tree = source if isinstance(source, dict) else _read(source)
    tree = _resolve(tree, str(source) if not isinstance(source, dict) else "recipe")
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"'{text}' is not an override; write key.sub=value")
        try:
            set_path(tree, path, yaml.load(value, _Loader))
        except yaml.YAMLError as error:
            raise UserError(f"'{text}': not valid YAML: {' '.join(str(error).split())}") from error
    recipe = build(Recipe, tree, "recipe")
    if recipe.seed < 0:
        raise UserError(f"recipe.seed is {recipe.seed}; it must not be negative")
    return recipe


def to_tree(recipe: Recipe) -> Tree:
    """The recipe as plain mappings, complete."""
    return dataclasses.asdict(recipe)


def dump(tree: Tree | Recipe) -> str:
    """YAML text of a recipe."""
    tree = to_tree(tree) if isinstance(tree, Recipe) else tree
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def set_path(tree: Tree, path: str, value: Any) -> None:
    """Set `a.b.c` in a recipe's tree.

    Raises:
        UserError: a recipe has no such path (the nearest key is named).
    """
    keys = path.split(".")
    node: Any = tree
    cls: Any = Recipe
    for depth, key in enumerate(keys):
        here = ".".join(keys[:depth]) or "recipe"
        if dataclasses.is_dataclass(cls):
            known = {f.name: typing.get_type_hints(cls)[f.name] for f in dataclasses.fields(cls)}
            if key not in known:
                raise UserError(f"{here} has no key '{key}'; {nearest(key, known)}")
            cls = _dataclass_in(known[key])
        elif not isinstance(node, dict) or (key not in node and depth < len(keys) - 1):
            known_keys = list(node) if isinstance(node, dict) else []
            raise UserError(f"{here} has no key '{key}'; {nearest(key, known_keys)}")
        if depth == len(keys) - 1:
            node[key] = value
        else:
            if node.get(key) is None:
                node[key] = _default(keys[: depth + 1])
            node = node[key]


def _read(source: str | Path) -> Tree:
    names = shipped()
    path = names.get(str(source), Path(source))
    if not path.is_file():
        raise UserError(f"no recipe '{source}': neither a file nor a shipped recipe; {nearest(str(source), names)}")
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections, e.g. 'base: quickstart'")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e12 as a string; recipes mean the number."""


class _Dumper(yaml.SafeDumper):
    """Quotes a string that `_Loader` would read as a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def _resolve(tree: Tree, where: str, seen: tuple[str, ...] = ()) -> Tree:
    tree = copy.deepcopy(tree)
    base = tree.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{where}: base is {base!r}, but should be the name or file of one recipe")
    if base is not None and base in seen:
        raise UserError(f"{where}: 'base' runs in a circle: {' -> '.join((*seen, base))}")
    dotted = {key: tree.pop(key) for key in list(tree) if "." in str(key)}
    merged = _merge(_resolve(_read(base), str(base), (*seen, base)), tree, Recipe) if base else tree
    for path, value in dotted.items():
        set_path(merged, str(path), value)
    return merged


def _merge(old: Tree, new: Tree, cls: Any) -> Tree:
    hints = typing.get_type_hints(cls)
    for key, value in new.items():
        inner = _dataclass_in(hints.get(key))
        if inner and isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(old[key], value, inner)
        elif not (inner and value is None and not _optional(hints[key])):  # an empty section changes nothing
            old[key] = value
    return old


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _dataclass_in(hint: Any) -> Any:
    """The dataclass in `X` or `X | None`, else None."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else (hint,)
    return next((o for o in options if dataclasses.is_dataclass(o)), None)


def _default(keys: list[str]) -> Any:
    """The default of a section, as a mapping, so that a path may reach into what the YAML leaves out."""
    node: Any = Recipe()
    for key in keys:
        node = getattr(node, key, None) if not isinstance(node, dict) else node.get(key)
    return dataclasses.asdict(node) if dataclasses.is_dataclass(node) and not isinstance(node, type) else (node or {})


def _check_keys(cls: Any, tree: Any, where: str) -> None:
    if not isinstance(tree, dict):
        raise UserError(f"{where} must be a mapping of keys, not {tree!r}")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key, value in tree.items():
        if key not in known:
            raise UserError(f"{where} has no key '{key}'; {nearest(str(key), known)}")
        inner = _dataclass_in(hints[key])
        if inner and value is not None:
            _check_keys(inner, value, f"{where}.{key}")
        elif value is None and not inner and not _optional(hints[key]):
            raise UserError(f"{where}.{key} is null; give a value, or leave the key out")
        # YAML reads a bare `no:` as False
        strange = [k for k in value if not isinstance(k, str)] if isinstance(value, dict) else []
        if strange and not inner:
            raise UserError(f"{where}.{key} has the key {strange[0]!r}; names are text, so put it in quotes")


def _blame(cls: Any, tree: Tree, where: str) -> str:
    """Name the one field whose value has the wrong type, by trying each alone."""
    hints = typing.get_type_hints(cls)
    for key, value in tree.items():
        inner = _dataclass_in(hints[key])
        if inner and isinstance(value, dict):
            if found := _blame(inner, value, f"{where}.{key}"):
                return found
            continue
        try:
            _parser(hints[key]).parse_object({"it": value})
        except (ArgumentError, TypeError, ValueError):
            hint = hints[key]
            wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            return f"{where}.{key} is {value!r}, but should be {wanted}"
    return ""
