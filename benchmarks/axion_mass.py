"""Regression of log10 of the axion mass on legacy/model_1: MAE and coverage beside the constant predictor's.

`python benchmarks/axion_mass.py [folder for the results]`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import deeplense

RECIPE = "legacy/axion_mass"


def main(out: Path) -> None:
    deeplense.simulate(RECIPE, out / "data")
    start = time.perf_counter()
    bundle = deeplense.train(RECIPE, out / "data", out / "run")
    minutes = (time.perf_counter() - start) / 60
    deeplense.evaluate(bundle, out / "data", out / "report")
    found = json.loads((out / "report" / "metrics.json").read_text())
    low, high = found["mae_ci"]
    print(f"{RECIPE}: trained in {minutes:.1f} min; {found['n']} test images: MAE {found['mae']:.4f} "
          f"[{low:.4f}, {high:.4f}] (constant predictor {found['mae_constant']:.4f}), R2 {found['r2']:.3f}, "
          f"coverage of 90 % {found['coverage']['0.9']:.3f}, of 68 % {found['coverage']['0.68']:.3f}; "
          f"MAE by range {found['mae_by_range']}")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/axion_mass"))
