"""One training of several processes on the CPU, as torchrun starts it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from tiny import ENVIRONMENT, wait_for
from torch import nn

from deeplense.bundle import load
from deeplense.data.schema import Batch
from deeplense.models.out_of_distribution import OutOfDistribution
from deeplense.training.objectives import over_processes
from deeplense.training.processes import Processes, launched, synchronise

SMALL = ["training.batch_size=16", "model.kwargs={widths: [8, 16], depths: [1, 1]}", "training.lr=0.01"]
MAIN = "import sys; from deeplense.cli import main; main(sys.argv[1:])"


def _start(processes: int, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    script = tmp_path / "run.py"
    script.write_text(MAIN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(launcher if processes > 1 else [sys.executable]), str(script), "train", *arguments, "--device", "cpu"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)


def _history(out: Path) -> list[dict[str, str]]:
    with open(out / "history.csv") as file:
        return list(csv.DictReader(file))


def test_two_processes_give_the_losses_of_one(tiny_dataset: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: small\n")
    heads = "task.heads={class: {kind: classify}, mass: {kind: regress, targets: [log10_m_axion]}}"
    rows, measured = {}, {}
    for n in (1, 2):
        out = tmp_path / f"run{n}"
        more = ["training.epochs=3", "training.ema_decay=0.9", "augment.shift=1", "augment.rotate=20", heads]
        done = _start(n, tmp_path, str(recipe), "--data", str(tiny_dataset), "--out", str(out), *SMALL, *more)
        text, _ = done.communicate()
        assert done.returncode == 0, text
        assert text.count("wrote ") == 1
        rows[n] = _history(out)
        made = load(out / "bundle.safetensors", "cpu")
        assert made.summary["epochs"] <= 3
        assert isinstance(made.detector, OutOfDistribution)
        measured[n] = made.detector.jointly.mean
    for one, two in zip(rows[1], rows[2], strict=True):
        for name in one:
            if name != "seconds":
                assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5, abs=1e-5), name
    # held-out images of all processes, turned alike
    torch.testing.assert_close(measured[2], measured[1], atol=1e-3, rtol=1e-3)


def test_a_killed_process_ends_the_run_and_leaves_a_good_checkpoint(
    tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    data, out = make_dataset(tmp_path / "data", n_train=400), tmp_path / "run"
    arguments = ["quickstart", "--data", str(data), "--out", str(out), *SMALL, "training.epochs=1000"]
    running = _start(2, tmp_path, *arguments)
    wait_for(lambda: (out / "last.ckpt").exists() and len(_history(out)) >= 1, 240)
    workers = [p for p in psutil.Process(running.pid).children(recursive=True) if "run.py" in " ".join(p.cmdline())]
    ranks = {int(p.environ()["RANK"]): p for p in workers if "RANK" in p.environ()}
    os.kill(ranks[1].pid, signal.SIGKILL)
    text, _ = running.communicate(timeout=240)
    assert running.returncode != 0
    # whichever comes first to the process that is left: the broken connection, or the launcher's SIGTERM
    assert "another process of this training ended" in text or "the same command with --resume continues" in text
    assert "[rank0]: Traceback" not in text  # the launcher writes one of its own
    epochs = len(_history(out))
    assert load(out / "bundle.safetensors", "cpu").summary["epochs"] <= epochs
    more = _start(1, tmp_path, *arguments[:-1], f"training.epochs={epochs + 1}", "--resume")
    text, _ = more.communicate()
    assert more.returncode == 0, text
    assert len(_history(out)) == epochs + 1


def test_what_launchers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched() is None
    for name, value in {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Processes(8, 4, 2)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert launched() is None
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Processes(6, 2, 3)


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    x = torch.randn(7, 3, 4, 4) * 5 + 100
    mine = x[rank::world].clone().requires_grad_()
    synchronise(norm)
    y = norm(mine)
    (y**3).sum().backward()
    # means over known truths, which processes have unequally many of
    label = torch.tensor([0, 1, -1, -1, 2, 0, 1])[rank::world]
    batch = Batch(torch.empty(0), label, torch.empty(0), label)
    values = torch.arange(7.0)[rank::world]
    known = batch.label >= 0
    losses = {"class": (values[known].mean()[None], known.sum().float()[None])}
    weighed = over_processes(losses)["class"][0]
    torch.save((y, mine.grad, norm.running_mean, norm.running_var, weighed), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_batch_norms_and_masked_means_are_those_of_all_images(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (2, port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    x = (torch.randn(7, 3, 4, 4) * 5 + 100).requires_grad_()
    y = norm(x)
    (y**3).sum().backward()
    assert x.grad is not None
    for rank, (mine, gradient, mean, variance, _) in enumerate(parts):
        assert torch.allclose(mine, y[rank::2], atol=1e-4)
        assert torch.allclose(gradient, x.grad[rank::2], atol=2e-4)
        assert torch.allclose(mean, norm.running_mean)  # type: ignore[arg-type]
        assert torch.allclose(variance, norm.running_var, rtol=1e-4)  # type: ignore[arg-type]
    whole = torch.arange(7.0)[torch.tensor([0, 1, 4, 5, 6])].mean()
    assert sum(float(part[-1]) for part in parts) / 2 == pytest.approx(float(whole))
