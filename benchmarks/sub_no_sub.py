"""The DeepLense evaluation set "sub / no_sub": imported, split 80/20 by seed, trained, scored on the held-out fifth.

`python benchmarks/sub_no_sub.py lenses.zip [folder for the results]`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import deeplense


def main(source: str, out: Path) -> None:
    deeplense.import_dataset(source, out / "data", splits="train=0.8,test=0.2")
    start = time.perf_counter()
    bundle = deeplense.train("sub_no_sub", out / "data", out / "run")
    minutes = (time.perf_counter() - start) / 60
    deeplense.evaluate(bundle, out / "data", out / "report")
    found = json.loads((out / "report" / "metrics.json").read_text())
    low, high = found["auc"]["macro_ci"]
    print(f"sub/no_sub: trained in {minutes:.1f} min; {found['n']} held-out images: AUC {found['auc']['macro']:.5f}",
          f"[{low:.5f}, {high:.5f}], accuracy {found['accuracy']:.4f} (bar: AUC 0.999)")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "runs/sub_no_sub"))
