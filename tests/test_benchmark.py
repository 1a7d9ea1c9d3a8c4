"""`benchmark` measures what it says, on this machine, and prints it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from deeplense import benchmark, cli
from deeplense.data.loaders import StoredLoader
from deeplense.errors import UserError


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(benchmark, "IMAGES", 96)
    rate = benchmark._rate
    monkeypatch.setattr(benchmark, "_rate", lambda work: rate(work, seconds=0.1))
    path = tmp_path / "small.yaml"
    path.write_text("base: quickstart\nsimulation: {size: 16, pixel_scale: 0.25}\ntraining: {batch_size: 32}\n")
    return str(path)


def test_loading_has_a_rate(recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0
    iterate = StoredLoader.__iter__

    def counted(self: StoredLoader) -> Any:
        nonlocal seen
        for batch in iterate(self):
            seen += len(batch.label)
            yield batch

    monkeypatch.setattr(StoredLoader, "__iter__", counted)
    start = time.perf_counter()
    rates = benchmark.benchmark("load", recipe, "cpu")
    seconds = time.perf_counter() - start
    assert list(rates) == ["load"]
    assert math.isfinite(rates["load"])
    # all images of every epoch, the warm-up's 96 apart, in no more than the time that passed
    assert rates["load"] >= (seen - 96) / seconds > 0
    assert seen % 96 == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["load", f"{rates['load']:,.0f}"]
    assert f"images/s  ({recipe}, cpu" in line


def test_all_verbs_have_rates(recipe: str) -> None:
    rates = benchmark.benchmark(None, recipe, "cpu")
    assert list(rates) == ["simulate", "load", "train", "predict"]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates.values())


def test_a_rate_is_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a clock of its own: each call does 5 units in 0.25 s, and the warm-up does not count."""
    now = 0.0
    calls: list[int] = []

    def work(k: int) -> int:
        nonlocal now
        now += 100.0 if k == 0 else 0.25
        calls.append(k)
        return 5

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now)
    assert benchmark._rate(work) == pytest.approx(20)
    assert calls == list(range(9))


def test_bad_input(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no benchmark 'lod'; did you mean 'load'"):
        benchmark.benchmark("lod", recipe)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["benchmark", "load", "--recipe", "quikstart"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: no recipe 'quikstart'")
