"""What stops a recipe that makes no sense: one line that names the key."""

from __future__ import annotations

from typing import Any

from deeplense.errors import UserError


def check(fine: bool, where: str, wrong: str) -> None:
    """Raises: UserError: "where: wrong"."""
    if not fine:
        raise UserError(f"{where}: {wrong}")


def one_of(section: Any, a: str, b: str, where: str) -> None:
    """Raises: UserError: both or neither of two keys are given."""
    given = [k for k in (a, b) if getattr(section, k) is not None]
    check(len(given) == 1, where, f"give either {a} or {b}" + (", not both" if given else ""))
