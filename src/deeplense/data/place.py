"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from deeplense.data import schema
from deeplense.errors import UserError


def check_free(out: Path) -> None:
    """Raises: UserError: something is there already."""
    if (out / schema.MANIFEST).exists():
        raise UserError(f"{out}: already exists; choose another --out")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is not an empty folder; choose another --out")


@contextlib.contextmanager
def folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` only if nothing was raised."""
    place = out.absolute()
    hidden = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        _sweep(place)
        hidden.mkdir(parents=True)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # without locks, nobody sweeps
                held.enter_context(locked(hidden))
            yield hidden
        if out.exists():
            out.rmdir()
        os.replace(hidden, out)
        schema.flush(place.parent)
    except OSError as error:
        raise UserError(f"{out}: cannot write ({error.strerror or error}); free some space and run again") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove what imports into the same place had begun when they were killed."""
    begun = [p for p in out.parent.iterdir() if p.name.startswith(f".{out.name}.")] if out.parent.is_dir() else []
    for stale in begun:
        if stale.name.endswith(".tmp") and stale.is_dir():
            with contextlib.suppress(OSError), locked(stale):
                shutil.rmtree(stale)


@contextlib.contextmanager
def locked(held: Path) -> Iterator[None]:
    """Hold a folder; the lock ends with the process, however it ends.

    Raises:
        OSError: another process holds it, or its file system knows no locks.
    """
    opened = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)
