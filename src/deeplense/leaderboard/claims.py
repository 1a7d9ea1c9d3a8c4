"""Who works on what: a board's trainings are shared by any number of processes on machines with a common disk.

A claim is a file whose counter its holder moves on. One whose counter stands still for `PATIENCE` seconds of the
watcher's own clock is dead, and is taken over; the clocks of two machines are never compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

BEAT, PATIENCE = 5.0, 60.0  # s


class Watch:
    """What this process has seen of the claims of others."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[str, float]] = {}

    def dead(self, claim: Path) -> bool:
        """Whether nobody has moved a claim on for long enough; False where there is none."""
        try:
            text = claim.read_text()
        except OSError:
            self._seen.pop(claim, None)
            return False
        if claim not in self._seen or self._seen[claim][0] != text:
            self._seen[claim] = text, time.monotonic()
            return False
        return time.monotonic() - self._seen[claim][1] > PATIENCE

    def take_over(self, claim: Path) -> None:
        """Remove a dead claim, unless another process was faster."""
        with contextlib.suppress(OSError):
            mine = claim.with_name(f".dead-{uuid.uuid4().hex}")
            os.rename(claim, mine)
            mine.unlink()


@contextlib.contextmanager
def claimed(claim: Path) -> Iterator[bool]:
    """Whether this process has it, from now to the end."""
    claim.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        yield False
        return
    who, stop = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}", threading.Event()

    def beat() -> None:
        count = 0
        while True:
            with contextlib.suppress(OSError):
                claim.write_text(json.dumps({"who": who, "beats": count}))
            count += 1
            if stop.wait(BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        stop.set()
        thread.join()
        claim.unlink(missing_ok=True)
