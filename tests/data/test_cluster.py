"""A Dask cluster: whatever happens to its workers, the bytes of a serial run or one line that says why not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import content, wait_for

from deeplense import config
from deeplense.data import generate, pools, schema
from deeplense.data.generate import Shared, Task, simulate
from deeplense.data.store import validate
from deeplense.errors import UserError

distributed = pytest.importorskip("distributed")
from distributed.diagnostics.plugin import SchedulerPlugin  # noqa: E402

TINY = tiny.TINY | {"splits": {f"part{k}": 800 for k in range(6)}}


class Interrupted(SchedulerPlugin):  # type: ignore[misc]
    """Notes the tasks that a worker took with it."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def transition(self, key: str, start: str, finish: str, *_: object, **__: object) -> None:
        if start == "processing" and finish != "memory":
            self.keys.append(key)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never changed by a test."""
    return simulate(TINY, tmp_path_factory.mktemp("serial") / "tiny", workers=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two processes with a nanny each, which replaces one that dies."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as made:
        yield made


def test_a_killed_worker_costs_a_retry_and_changes_no_bit(serial: Path, cluster: Any, tmp_path: Path) -> None:
    out, lost = tmp_path / "tiny", Interrupted()
    cluster.scheduler.add_plugin(lost, name="lost")
    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: len(list(out.glob("*.h5"))) >= 2)
        # a worker that has work is in the middle of it
        busy = wait_for(lambda: [w for w in list(cluster.scheduler.workers.values()) if w.processing])[0]
        killed.append(next(n.process.pid for n in cluster.workers.values() if n.worker_address == busy.address))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    simulate(TINY, out, cluster=cluster.scheduler_address)
    killer.join()
    cluster.scheduler.remove_plugin("lost")
    assert killed
    assert lost.keys, "the worker died idle, so nothing was tried"
    assert content(out) == content(serial)


def test_a_dataset_that_was_begun_here_is_finished_there(serial: Path, cluster: Any, tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    shutil.copytree(serial, out)
    (out / schema.MANIFEST).unlink()
    whole = sorted(out.glob("*.h5"))
    before = {path: path.stat().st_mtime_ns for path in whole[3:]}
    for path in whole[:3]:
        path.unlink()
    made = config.load_recipe(TINY)
    world = generate.World(made.simulation)
    with pytest.raises(UserError, match="is not empty"):  # shards of who knows what
        simulate(TINY, out, cluster=cluster.scheduler_address)
    plan = tmp_path / "plan"
    generate._claim(plan, made, "torch", "cpu", world, [])
    (plan / generate.PLAN).rename(out / generate.PLAN)
    simulate(TINY, out, cluster=cluster.scheduler_address)
    assert content(out) == content(serial)
    assert {path: path.stat().st_mtime_ns for path in whole[3:]} == before


def test_ctrl_c_withdraws_what_has_not_begun(cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o"
    recipe = {**TINY, "splits": {"train": 1024 * 200}}

    def press() -> None:
        wait_for(lambda: list(out.glob("*.h5")))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        simulate(recipe, out, cluster=cluster.scheduler_address)
    assert "stopped; the same command continues after" in capsys.readouterr().out
    wait_for(lambda: not cluster.scheduler.tasks)
    assert not (out / schema.MANIFEST).exists()
    assert len(list(out.glob("*.h5"))) < 100


def test_a_worker_that_always_dies_is_told_in_one_line(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "make_shard_elsewhere", _die)
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)  # 3 of them take long
    with pytest.raises(UserError, match="workers of one shard died each time, perhaps for lack of memory") as caught:
        simulate(TINY, tmp_path / "o", splits="train=4", cluster=cluster.scheduler_address)
    assert "\n" not in str(caught.value)
    wait_for(lambda: len(cluster.scheduler.workers) == 2)


def _die(task: Task, shared: Shared) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_sees_other_files_or_runs_other_code_says_so(tmp_path: Path) -> None:
    tree = config.to_tree(config.load_recipe(TINY))
    task = Task(tree, str(tmp_path / "o"), "train", 0, 4, "torch", "cpu")
    mark = tmp_path / "mark"
    answer = generate.make_shard_elsewhere(task, Shared(str(mark), generate._versions()))
    host = socket.gethostname()
    assert (
        str(answer) == f"{task.folder}: worker {host} does not see this folder; choose an --out that all workers share"
    )
    mark.touch()
    answer = generate.make_shard_elsewhere(task, Shared(str(mark), generate._versions() | {"torch": "0.1"}))
    assert isinstance(answer, UserError)
    assert "torch 0.1; install the same on both" in str(answer)
    assert list(tmp_path.iterdir()) == [mark]
    assert isinstance(generate.make_shard_elsewhere(task, Shared(str(mark), generate._versions())), schema.Shard)


def test_workers_on_another_file_system_write_nothing(tmp_path: Path) -> None:
    """A real one: the worker process has a disk of its own where the dataset should be."""
    unshare = shutil.which("unshare")
    (tmp_path / "disk").mkdir()
    hidden = [str(unshare), "-m", "sh", "-c", f'mount -t tmpfs tmpfs {tmp_path / "disk"} && exec "$@"', "sh"]
    if unshare is None or subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("a file system of one's own takes root")
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-dashboard", "--nthreads", "1"]
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen([*hidden, *worker, cluster.scheduler_address], stdout=log, stderr=log)
        try:
            with pytest.raises(UserError, match="does not see this folder; choose an --out that all workers share"):
                simulate(TINY, tmp_path / "disk" / "o", cluster=cluster.scheduler_address)
        finally:
            process.terminate()
            process.wait()
    assert [p.name for p in (tmp_path / "disk" / "o").iterdir()] == [generate.PLAN]


def test_a_scheduler_that_goes_away_is_told_in_one_line(serial: Path, tmp_path: Path) -> None:
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")
    out = tmp_path / "o"

    def close() -> None:
        wait_for(lambda: list(out.glob("*.h5")))
        cluster.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(UserError, match="the scheduler went away; run the same command again") as caught:
        simulate(TINY, out, cluster=cluster.scheduler_address)
    closer.join()
    assert "\n" not in str(caught.value)
    simulate(TINY, out, workers=1)
    validate(out, checksums=True)
    assert content(out) == content(serial)


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_something_else_that_listens_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greeting: bytes) -> None:
    monkeypatch.setattr(pools, "CONNECT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends = []

        def greet() -> None:
            while True:
                try:
                    ends.append(server.accept()[0])
                    ends[-1].sendall(greeting)
                except OSError:
                    return

        threading.Thread(target=greet, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--cluster {address}: no Dask scheduler answers there"):
            simulate(TINY, tmp_path / "o", cluster=address)
        for end in ends:
            end.close()
    assert not (tmp_path / "o").exists()


def test_a_worker_is_no_scheduler(cluster: Any, tmp_path: Path) -> None:
    address = next(iter(cluster.scheduler.workers))
    with pytest.raises(UserError, match="no Dask scheduler answers there, but a Worker"):
        simulate(TINY, tmp_path / "o", cluster=address)


def test_workers_without_the_package_say_so(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"it cannot import what it needs .*no_such_package.* need the same packages"):
        simulate(TINY, tmp_path / "o", cluster=cluster.scheduler_address)
