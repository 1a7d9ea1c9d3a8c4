"""From a plain mapping to a dataclass, types and ranges checked.

A value becomes what the field's type says and nothing else: no text in a recipe names what is made of it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union

from deeplense.errors import UserError, brief, nearest
from deeplense.recipe import Range
from deeplense.trees import MOST, check_plain, short

T = TypeVar("T")


def build(cls: type[T], tree: Any, where: str, most: int = MOST) -> T:
    """An instance of the dataclass `cls` from a mapping of plain values; it shares nothing with the mapping.

    Fields may be of None, bool, int, float, str, Any (a plain value), Literal, lists, tuples, mappings, dataclasses and
    unions of these. `Annotated[float, Range(0, 1)]` bounds a number, of a prior one that is constant.

    Args:
        most: values that the mapping may hold.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of its range, named by its dotted path below
            `where`, or whatever `cls` itself refuses.
    """
    check_plain(tree, where, most)
    return typing.cast(T, _section(cls, tree, where))


@functools.lru_cache(maxsize=256)
def fields(cls: Any) -> dict[str, Any]:
    """Types of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself; without ranges."""
    if typing.get_origin(hint) is Annotated:
        return options(typing.get_args(hint)[0])
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def optional(hint: Any) -> bool:
    return type(None) in options(hint) or Any in options(hint)


def dataclass_in(hint: Any) -> Any:
    """The dataclass in `X` or `X | None`, else None."""
    return next((o for o in options(hint) if dataclasses.is_dataclass(o)), None)


def _section(cls: Any, tree: Any, where: str) -> Any:
    if not isinstance(tree, dict):
        raise UserError(f"{where} must be a mapping of keys, not {brief(tree)}")
    known, values = fields(cls), {}
    for key, value in tree.items():
        if key not in known:
            raise UserError(f"{where} has no key {brief(str(key))}; {nearest(str(key), known)}")
        if value is not None or optional(known[key]):
            values[key] = _value(known[key], value, f"{where}.{key}")
        elif not dataclass_in(known[key]):  # an empty section is as when it is left out
            raise UserError(f"{where}.{key} is null; give a value, or leave the key out")
    for f in dataclasses.fields(cls):
        if f.init and f.name not in values and f.default is f.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}.{f.name} is missing")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())[:300]}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type says it.

    Raises:
        UserError: it does not fit.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        found = _value(arguments[0], value, where)
        _check_ranges(found, arguments[1:], where)
        return found
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where, hint)
    if hint is Any:
        return _copy(value, where)
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, where)
    kind = origin or hint
    if isinstance(value, dict) and kind in (dict, Mapping):
        inner = arguments[1] if arguments else Any
        return {_name(k, where): _value(inner, v, f"{where}.{short(k)}") for k, v in value.items()}
    if isinstance(value, list | tuple) and kind in (list, tuple, Sequence):
        return _items(kind, arguments, value, where, hint)
    fits = type(value) is hint or (value is None and hint is None)
    if kind is Literal:
        fits = any(type(a) is type(value) and a == value for a in arguments)
    if isinstance(value, int | float) and not isinstance(value, bool) and hint is float:
        return float(value)
    if isinstance(value, int | float | str) and not isinstance(value, bool) and not fits:
        fits = isinstance(hint, type) and hint in (int, str) and isinstance(value, hint)  # a subclass, e.g. of str
    if not fits:
        raise UserError(f"{where} is {brief(value)}, but should be {_told(hint)}")
    return value


def _one_of(members: Sequence[Any], value: Any, where: str, hint: Any) -> Any:
    alike = [m for m in members if {Any, *_shapes(type(value))} & _shapes(m)]
    if len(alike) == 1:  # its own error says more
        return _value(alike[0], value, where)
    for member in sorted(alike, key=lambda m: m is not type(value)):
        try:
            return _value(member, value, where)
        except UserError:
            continue
    raise UserError(f"{where} is {brief(value)}, but should be {_told(hint)}")


def _shapes(hint: Any) -> set[Any]:
    """What kinds of value a type takes: a mapping, a list, nothing, anything, or else a scalar."""
    if len(members := options(hint)) > 1:
        return set().union(*map(_shapes, members))
    kind = typing.get_origin(members[0]) or members[0]
    if kind in (dict, Mapping) or dataclasses.is_dataclass(kind):
        return {dict}
    if kind in (list, tuple, Sequence):
        return {list}
    return {kind if kind in (Any, type(None)) else str}


def _items(kind: Any, arguments: Sequence[Any], value: Sequence[Any], where: str, hint: Any) -> Any:
    inner = list(arguments[:1] or (Any,)) * len(value)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise UserError(f"{where} is {brief(value)}, but should be {_told(hint)}")
        inner = list(arguments)
    found = [_value(h, v, f"{where}.{k}") for k, (h, v) in enumerate(zip(inner, value, strict=True))]
    return tuple(found) if kind is tuple else found


def _copy(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {_name(k, where): _copy(v, f"{where}.{short(k)}") for k, v in value.items()}
    return [_copy(v, f"{where}.{k}") for k, v in enumerate(value)] if isinstance(value, list | tuple) else value


def _name(key: Any, where: str) -> str:
    if not isinstance(key, str):  # YAML reads a bare `no:` as False
        raise UserError(f"{where} has the key {key!r}; names are text, so put it in quotes")
    return key


def _check_ranges(value: Any, ranges: Sequence[Any], where: str) -> None:
    for range_ in ranges:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(range_, Range) and number and not range_.holds(value):
            raise UserError(f"{where} is {value}; it must lie in {range_}")


def _told(hint: Any) -> str:
    """A type in an error message."""
    if typing.get_origin(hint) is Annotated:
        inner, *more = typing.get_args(hint)
        ranges = [f" in {r}" for r in more if isinstance(r, Range) and math.isfinite(r.high)]
        return _told(inner) + "".join(ranges)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(_told, typing.get_args(hint)))
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) and not typing.get_origin(hint) else str(hint).replace("typing.", "")
