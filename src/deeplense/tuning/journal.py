"""The file that the workers of a study share, and what becomes of it when one of them is killed in mid-write."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from deeplense.errors import UserError


def open_journal(path: Path) -> JournalStorage:
    """Open or create a journal; of a torn last line it is told that it was set aside.

    Raises:
        UserError: a line before the last one is damaged.
        OSError: the file cannot be read or written.
    """
    journal = Journal(path)
    journal.set_torn_tail_aside(whole_line=True)
    try:
        return JournalStorage(journal)
    except (UserError, OSError):
        raise
    except Exception as error:  # JSON, but not what Optuna writes: it trips where it trips
        raise journal.damaged(journal.line) from error


class Journal(JournalFileBackend):  # type: ignore[misc]
    """Optuna's file, in which a line torn by a killed writer or a full disk costs that line alone.

    Attributes:
        line: the number of the last line that was read, from 1.
    """

    def __init__(self, path: Path) -> None:
        # absolute: the lock is a link to it, whose age nobody could tell if it led nowhere
        self.path, self.line = path.resolve(), 0
        self.lock = JournalFileSymlinkLock(str(self.path))
        super().__init__(str(self.path), self.lock)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        self.line = log_number_from
        try:
            for log in super().read_logs(log_number_from):
                self.line += 1
                yield log
        except (ValueError, RecursionError) as error:
            raise self.damaged(self.line + 1) from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.set_torn_tail_aside()  # or this line would be joined to it
        super().append_logs(logs)

    def set_torn_tail_aside(self, whole_line: bool = False) -> None:
        """Move a last line without its end, or if `whole_line` one that is no JSON either, to a file beside."""
        if not self._torn_tail(whole_line):
            return
        with self._locked():  # then nobody is just writing it
            if not (tail := self._torn_tail(whole_line)):
                return
            aside = self.path.with_name(f"{self.path.name}.torn")
            with open(aside, "ab") as file:
                file.write(tail.rstrip(b"\n") + b"\n")
            os.truncate(self.path, self.path.stat().st_size - len(tail))
        print(
            f"{self.path}: its last line was torn, as a killed process leaves it; set aside in {aside.name}", flush=True
        )

    def damaged(self, line: int) -> UserError:
        """The error that names a line."""
        return UserError(
            f"{self.path}: line {line} is damaged; restore the file from a copy, cut it off before that line, "
            "or choose another --out"
        )

    def _torn_tail(self, whole_line: bool) -> bytes:
        with open(self.path, "rb") as file:
            if not (size := file.seek(0, os.SEEK_END)):
                return b""
            file.seek(size - 1)
            ended = file.read() == b"\n"
            if ended and not whole_line:
                return b""
            file.seek(0)
            content = file.read()
        tail = content[content.rfind(b"\n", 0, len(content) - 1) + 1 :]
        return b"" if ended and _is_json(tail) else tail

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
