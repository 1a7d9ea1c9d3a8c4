"""A dataclass from parsed JSON: every field's type checked against its hint, nothing converted, nothing guessed."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")

DEEPEST = 32  # levels of a value whose content is free
LONGEST = 4096  # letters of a name


class Mismatch(ValueError):
    """Which value is not what its field holds; one line."""


def build(cls: type[T], tree: Any, where: str = "") -> T:
    """An instance of the dataclass `cls`; fields that are dataclasses, lists and mappings of them are built too.

    Args:
        where: the path of `tree` in its file, for messages.

    Raises:
        Mismatch: an unknown or missing key, or a value of another type than its hint.
    """
    if not isinstance(tree, dict):
        raise _wrong(where, tree, "a mapping")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    for key in tree:
        if key not in fields:
            raise Mismatch(f"unknown key {_join(where, short(key))}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in tree:
            raise Mismatch(f"{_join(where, name)} is missing")
    return cls(**{name: _value(hints[name], value, _join(where, name)) for name, value in tree.items()})


def short(value: Any) -> str:
    """A value in a message: one line, cut."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value`, if it is what `hint` says."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        (hint,) = (option for option in options if option is not type(None))  # only `X | None` is known here
        return _value(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, where)
    if origin is list and isinstance(value, list):
        return [_value(options[0], item, f"{where}[{k}]") for k, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _value(options[1], item, f"{where}.{short(key)}") for key, item in value.items()}
    if hint is Any:
        _check_depth(value, where)
        return value
    if not _is(hint, value):
        raise _wrong(where, value, _WANTED.get(hint, str(hint)))
    return value


def _is(hint: Any, value: Any) -> bool:
    if isinstance(value, bool):  # a bool is an int to Python
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and abs(value) < 2**63
    # what cannot be printed would break the one line of a message, or the terminal
    return hint is str and isinstance(value, str) and value.isprintable() and len(value) <= LONGEST


_WANTED = {int: "a whole number", float: "a finite number", str: "printable text", bool: "true or false"}


def _check_depth(value: Any, where: str, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise Mismatch(f"{where} is nested more than {DEEPEST} levels deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(item, where, depth + 1)


def _wrong(where: str, value: Any, wanted: str) -> Mismatch:
    return Mismatch(f"{where or 'the file'} is {short(value)}, but should be {wanted}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
