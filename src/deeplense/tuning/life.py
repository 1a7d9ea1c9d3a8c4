"""Signs of life: which running trials still have a process.

A trial carries the mark of its process and a counter that this process moves on. It counts as lost when its process
is known to have ended, which a worker on the same machine can see, or when whoever looks has itself watched the
counter stand still for long enough. The clocks of two machines are never compared.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

BEAT = 10.0  # s between two signs of life of a running trial
STALE = 60.0  # s for which one must be seen without any


@contextlib.contextmanager
def signs(trial: optuna.Trial) -> Iterator[None]:
    """Give them while the trial runs, in the study itself, because a journal file has no heartbeat of its own."""
    trial.set_user_attr("worker", mark(os.getpid()))
    done = threading.Event()

    def beat() -> None:
        for count in itertools.count(1):
            if done.wait(BEAT):
                return
            # a full disk or a server that is away for a while: the next one may get through
            with contextlib.suppress(Exception):
                trial.set_user_attr("beats", count)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Watch:
    """Looks at the running trials of a study from time to time.

    Attributes:
        clock: seconds of this process alone.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._seen: dict[int, tuple[Any, float]] = {}  # number -> the counter, and since when it has stood there

    def lost(self, study: optuna.Study) -> list[FrozenTrial]:
        """Running trials that have no process any more, as far as can be known now."""
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in running if _has_ended(trial.user_attrs.get("worker")) or self._stands_still(trial)]

    def _stands_still(self, trial: FrozenTrial) -> bool:
        now, beats = self.clock(), trial.user_attrs.get("beats")
        before, since = self._seen.get(trial.number, (None, now))
        self._seen[trial.number] = (beats, since if beats == before else now)
        return beats == before and now - since > STALE


def mark(pid: int) -> list[Any]:
    """A process among all that ever were: where it runs, its number, when it started; blanks for what is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # containers number their processes anew, and another user's may be hidden
        where = f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    except OSError:
        return ["", pid, ""]  # no /proc
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [where, pid, ""]
    return [where, pid, "" if state in "ZX" else fields[18]]


def _has_ended(worker: Any) -> bool:
    """Known to have ended: on this machine, where nothing of that number runs, or what started at another time."""
    if not isinstance(worker, list) or len(worker) != 3 or not isinstance(worker[1], int):
        return False
    now = mark(worker[1])
    return worker[0] != "" and worker[0] == now[0] and worker != now
