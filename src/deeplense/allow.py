"""Classes of the user's own, which a recipe names `my_package.module:Class`: whose code a recipe may run.

A recipe can come from anywhere, inside a bundle too, so a name alone imports nothing. A module is trusted when the user
named it, or when the running program has imported it itself and it is no library.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from deeplense.errors import UserError, brief

_ALLOWED: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())


@contextlib.contextmanager
def allowed(*modules: str) -> Iterator[None]:
    """`with allowed("my_package"):` recipes may name classes of these modules and of what lies in them.

    Raises:
        UserError: a name that is none.
    """
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--allow {brief(name)}: give the name of a module, like my_package.networks")
    token = _ALLOWED.set((*_ALLOWED.get(), *modules))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def find_class(name: str, what: str, fits: Callable[[Any], bool], wanted: str) -> Any:
    """The class that `my_package.module:Class` names.

    Args:
        what: e.g. "network", for errors. fits: whether a class can serve; wanted: the same in words.

    Raises:
        UserError: its module is not trusted or cannot be imported, or there is no class in it that fits.
    """
    module, _, attribute = name.partition(":")
    told = f"{what} {brief(name)}"
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise UserError(f"{told} is no name of a class; write my_package.module:Class")
    named = any(f"{module}.".startswith(f"{trusted}.") for trusted in _ALLOWED.get())
    if not named and not _imported_by_caller(module):
        raise UserError(f"{told} is code of its own; add --allow {module} if you trust it")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a user's module raises when it is imported
        raise UserError(f"{told} cannot be imported: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, type) or not fits(found):
        raise UserError(f"{told} is not {wanted}")
    if not named and found.__module__.partition(".")[0] != module.partition(".")[0]:
        raise UserError(f"{told} is a class of {found.__module__}; add --allow {module} if you trust it")
    return found


def _imported_by_caller(module: str) -> bool:
    """Whether the program has this module, and it is not one that was installed or that comes with Python."""
    package = module.partition(".")[0]
    if module not in sys.modules or package == __name__.partition(".")[0]:
        return False
    return module == "__main__" or not any(map(_is_library, {module, package}))


def _is_library(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(file, str) or not Path(file).is_absolute():
        return True
    path = Path(file).resolve()
    own = [Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib")]
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(map(path.is_relative_to, own))
