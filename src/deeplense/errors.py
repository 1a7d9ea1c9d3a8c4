"""The one exception that means "the input is wrong, and here is the remedy", and what its messages are made of."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Bad input. The message is one line that names the file or field and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """


def nearest(key: str, known: Iterable[str]) -> str:
    """The rest of an error message: `; did you mean 'x'?` and the known keys."""
    known = list(known)
    alike = [name for name in known if name.lower() == key.lower()]  # h0 is H0, not w0
    close = alike or difflib.get_close_matches(key[:100], known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}(known: {', '.join(known)})"


def brief(value: Any) -> str:
    """A value as Python writes it, in one line and cut where it is long."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 100
