"""Generation killed or interrupted at any moment: nothing half-written, no process left, the same bytes in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from tiny import ENVIRONMENT, TINY, content, wait_for

from deeplense import config
from deeplense.data import schema
from deeplense.data.generate import simulate

LAUNCHER = """
import os, random, resource, signal, sys
from deeplense import cli
from deeplense.data.generate import World, config
recipe, out = sys.argv[1:]
World(config.load_recipe(recipe).simulation)  # what takes time is imported once, here
def live(seconds=0.0, renames=0):
    "One life, killed after so much time of computing (load does not change it) or just before it renames a file."
    pid = os.fork()
    if pid == 0:
        seen = []
        def hook(event, _):
            if event == "os.rename":
                seen.append(event)
                if len(seen) == renames:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal, unhandled, ends a process as SIGKILL does
        try:
            cli.main(["simulate", recipe, "--out", out, "--workers", "1"])
        except SystemExit as stop:
            os._exit(stop.code)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    there = os.listdir(out) if os.path.isdir(out) else []
    print("life", code, sum(name.endswith(".h5") and name[0] != "." for name in there), flush=True)
live(renames=1)  # its plan
live(renames=2)  # its first shard
used = resource.getrusage(resource.RUSAGE_CHILDREN)
shard = (used.ru_utime + used.ru_stime) / 1.2  # about what one takes
live(renames=3)  # its second shard
draw = random.Random(3)
for _ in range(7):
    live(seconds=draw.uniform(0.02, 1.0) * shard)
live()
"""


def test_killed_at_ten_random_moments_it_ends_bit_identical(whole: Path, tmp_path: Path) -> None:
    """From before the first file to well within a shard; what one life has finished, the next one keeps."""
    (tmp_path / "r.yaml").write_text(config.dump(TINY))
    out = tmp_path / "o"
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(tmp_path / "r.yaml"), str(out)],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=600,
    )  # fmt: skip
    lives = [tuple(map(int, line.split()[1:])) for line in done.stdout.splitlines() if line.startswith("life")]
    assert len(lives) == 11, done.stderr
    assert all(code in (-signal.SIGKILL, -signal.SIGPROF) for code, _ in lives[:-1]), lives
    assert [shards for _, shards in lives[:3]] == [0, 0, 1]
    assert lives[-1] == (0, len(list(whole.glob("*.h5"))))
    assert content(out) == content(whole)


def children(pid: int) -> set[int]:
    """Living children of a process."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.add(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(recipe: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("deeplense")), "simulate", str(recipe), "--out", str(out), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_of_a_killed_parent_end_and_leave_nothing_bad(tmp_path: Path) -> None:
    long = {**TINY, "splits": {"train": 1024 * 300}}
    (tmp_path / "r.yaml").write_text(config.dump(long))
    out = tmp_path / "o"
    run, workers = start(tmp_path / "r.yaml", out, "--workers", "2"), set[int]()
    try:
        wait_for(lambda: list(out.glob("*.h5")))
        workers = children(run.pid)
        assert len(workers) >= 2
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        wait_for(lambda: not any(alive(pid) for pid in workers))
    finally:
        for pid in filter(alive, [run.pid, *workers]):
            os.kill(pid, signal.SIGKILL)
    assert not (out / schema.MANIFEST).exists()
    made = list(out.glob("*.h5"))
    expected = simulate({**long, "splits": {"train": 1024 * 3}}, tmp_path / "serial", workers=1)
    for path in made:
        if (expected / path.name).exists():
            assert path.read_bytes() == (expected / path.name).read_bytes()
        with h5py.File(path) as file:  # a whole one: how large it is depends on its halos
            assert all(len(file[name]) == 1024 for name in ("image", "label", "id"))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="takes process groups")
def test_ctrl_c_of_a_terminal_stops_all_processes_with_one_line(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the workers too, here while they are starting."""
    (tmp_path / "r.yaml").write_text(config.dump({**TINY, "splits": {"train": 1024 * 300}}))
    run = start(tmp_path / "r.yaml", tmp_path / "o", "--workers", "2")
    try:
        wait_for(lambda: len(children(run.pid)) >= 3)  # two workers and a resource tracker
        os.killpg(run.pid, signal.SIGINT)
        out, err = run.communicate(timeout=90)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130
    assert "stopped; the same command continues after" in out
    assert "of 300 shards" in out
    assert "Traceback" not in err
    assert "Error" not in err
