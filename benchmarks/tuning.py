"""Tune the compact network on the quickstart data: two samplers, two pruners, a killed study, and the gain in AUC.

`python benchmarks/tuning.py [trials] [folder for the results]`; uses the dataset and the run of `make quickstart`.
The first study is killed (SIGKILL) after its third trial and goes on. Each `best.yaml` is trained as it is and
compared with the default on the test split by a paired bootstrap.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import deeplense

QUICKSTART = Path("runs/quickstart")
STUDIES = {"tpe": "median", "cmaes": "hyperband"}


def command(out: Path, sampler: str, pruner: str, trials: int) -> list[str]:
    """The command line of a study."""
    words = ["tune", "quickstart", "--data", str(QUICKSTART / "dataset"), "--out", str(out), "--trials", str(trials)]
    program = str(Path(sys.executable).with_name("deeplense"))
    return [program, *words, f"tuning.sampler={sampler}", f"tuning.pruner={pruner}"]


def kill_after(words: list[str], lines: int) -> None:
    """Start the study, and kill it once it has printed so many trials."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for k, line in enumerate(process.stdout, 1):
            print(line, end="", flush=True)
            if k == lines:
                process.kill()
    print(f"killed after {lines} trials", flush=True)


def main(trials: int, out: Path) -> None:
    default = QUICKSTART / "run" / "bundle.safetensors"
    for k, (sampler, pruner) in enumerate(STUDIES.items()):
        study, start = out / sampler, time.perf_counter()
        words = command(study, sampler, pruner, trials)
        if k == 0 and not study.exists():
            kill_after(words, 3)
        subprocess.run(words, check=True)
        minutes = (time.perf_counter() - start) / 60
        bundle = deeplense.train(study / "best.yaml", QUICKSTART / "dataset", study / "best")
        deeplense.evaluate(bundle, QUICKSTART / "dataset", study / "report", against=[default])
        found = json.loads((study / "report" / "metrics.json").read_text())
        (against,) = found["against"]
        low, high = against["difference_ci"]
        gain = f"{against['difference']:+.5f} [{low:+.5f}, {high:+.5f}]"
        print(f"{sampler} + {pruner}, {trials} trials in {minutes:.1f} min: macro AUC {found['auc']['macro']:.5f},",
              f"the default's {against['auc']:.5f}: {gain}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12, Path(sys.argv[2] if len(sys.argv) > 2 else "runs/tuning"))
