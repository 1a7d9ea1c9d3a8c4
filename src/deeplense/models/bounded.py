"""Building no more of a network than may be meant: a number in a file can ask for any depth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules import module

from deeplense.errors import UserError

LARGEST = 2**16  # number that says what a network is like: layers, channels, heads


@contextlib.contextmanager
def at_most(layers: int) -> Iterator[None]:
    """`with at_most(1000):` a network is built of so many modules, however deeply they lie within each other.

    Raises:
        UserError: there is one more.
    """
    made = 0

    def count(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal made
        made += 1
        if made > layers:
            raise UserError(f"it asks for more than {layers} layers")

    hook = module.register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_numbers(value: Any, where: str) -> None:
    """See that a network's arguments hold no number that makes a list of it fill the memory.

    Raises:
        UserError: one does.
    """
    if isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise UserError(f"{where} is {value}; it must lie in [-{LARGEST}, {LARGEST}]")
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            check_numbers(inner, f"{where}.{key}")
