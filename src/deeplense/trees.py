"""Trees of plain values, as YAML and JSON hold them, read within bounds: no file exhausts memory, time or the stack.

Plain are null, truth values, integers of 64 bits, finite numbers, text, lists, and mappings. Nothing else comes out of
a file, and nothing in one is ever made into an object.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import yaml

from deeplense.errors import UserError, brief

DEEPEST = 32  # levels
MOST = 10_000  # values, an alias counted wherever it stands; every 100 characters of a text are one
ALIASES = 200
LONGEST = 1 << 18  # characters of YAML
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # a terminal obeys some, and prints no surrogate


def check_plain(tree: Any, where: str, most: int = MOST) -> None:
    """See that all of a tree is plain, and that it is small.

    Raises:
        UserError: it is not, or it holds itself.
    """
    known: dict[int, tuple[int, int]] = {}  # of what stands in several places

    def measure(node: Any, where: str, depth: int) -> tuple[int, int]:
        """Number of values and levels."""
        if not isinstance(node, dict | list | tuple):
            return _leaf(node, where), 0
        if id(node) not in known:
            if depth == DEEPEST:
                raise UserError(f"{where}: more than {DEEPEST} levels deep, or within itself; write it flatter")
            values, levels = 1, 0
            for key, value in node.items() if isinstance(node, dict) else enumerate(node):
                n, below = measure(value, f"{where}.{short(key)}", depth + 1)
                values, levels = values + n + _leaf(key, where), max(levels, below)
                if values > most:
                    raise UserError(f"{where}: more than {most:,} values; it must be smaller")
            known[id(node)] = values, levels + 1
        values, levels = known[id(node)]
        if depth + levels > DEEPEST:
            raise UserError(f"{where}: more than {DEEPEST} levels deep; write it flatter")
        return values, levels

    measure(tree, where, 0)


def unshared(tree: Any) -> Any:
    """A copy in which nothing stands in two places, so that a change in one is none in the other."""
    if isinstance(tree, dict):
        return {key: unshared(value) for key, value in tree.items()}
    return [unshared(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _leaf(value: Any, where: str) -> int:
    if isinstance(value, str):
        if CONTROL.search(value):
            raise UserError(f"{where} is {brief(value)}; take the control characters out")
        return 1 + len(value) // 100
    if isinstance(value, bool) or value is None:
        return 1
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UserError(f"{where} is a whole number of {value.bit_length()} bits; give one of 64 at most")
        return 1
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where} is {value}; give a finite number")
        return 1
    raise UserError(f"{where} is of type {type(value).__name__}; give text, a number, a list or a mapping")


def short(key: Any) -> str:
    """A key as it stands in a dotted path, cut where it is long."""
    return str(key)[:60]


def read_yaml(text: str, where: str) -> Any:
    """The tree in a text of YAML: 1e12 is a number, 2024-01-01 is text, and an alias may stand for what is small.

    Raises:
        UserError: not YAML, or out of bounds.
    """
    if len(text) > LONGEST:
        raise UserError(f"{where}: {len(text):,} characters; a recipe has {LONGEST:,} at most")
    try:
        tree = yaml.load(text, Loader)
    except RecursionError as error:
        raise UserError(f"{where}: more than {DEEPEST} levels deep; write it flatter") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: what looks like a number or a date and is none
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}") from error
    check_plain(tree, where)
    return tree


def read_json(text: str | bytes, where: str) -> Any:
    """The tree in a text of JSON that holds a recipe among others, of any size: JSON has no aliases.

    Raises:
        UserError: not JSON, or nested too deeply.
    """
    try:
        tree = json.loads(text)
        level = [tree]
        for _ in range(2 * DEEPEST):
            level = [v for node in level if isinstance(node, dict | list) for v in _below(node)]
            if not level:
                return tree
        raise RecursionError
    except RecursionError as error:
        raise UserError(f"{where}: not valid JSON (nested too deeply)") from error
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise UserError(f"{where}: not valid JSON ({' '.join(str(error).split())[:200]})") from error


def _below(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


class Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e12 as a string, where recipes mean the number; and they know no dates."""

    aliases = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.aliases > ALIASES:
            raise yaml.MarkedYAMLError(problem=f"more than {ALIASES} aliases")
        self.nodes += 1
        if self.nodes > 2 * MOST:  # keys and values
            raise yaml.MarkedYAMLError(problem=f"more than {MOST:,} values")
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST:  # in PyYAML before 6.0.4 '<<' of what itself has '<<' multiplies
            raise yaml.MarkedYAMLError(problem=f"a mapping of more than {MOST:,} keys")


class Dumper(yaml.SafeDumper):
    """Quotes a string that `Loader` would read as a number."""


for _side in (Loader, Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in Loader.yaml_implicit_resolvers.items()
}
