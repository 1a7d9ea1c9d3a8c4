"""Twelve real Hubble lenses (SLACS) through a network trained on simulations: does `predict` read them and stay finite?

`python benchmarks/real_lenses.py folder_of_lenses [bundle.safetensors]`. The probabilities say nothing about dark
matter: the network knows only the lenses of its training.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from astropy.table import Table

import deeplense


def main(folder: str, bundle: str) -> None:
    out = Path(bundle).parent / "real_lenses.csv"
    deeplense.predict(bundle, [folder], out, pixel_scale=0.05)
    table = Table.read(out)
    numbers = np.array([table[name] for name in table.colnames if name.startswith("p_")])
    table.pprint_all()
    print(f"{len(table)} images, all finite: {bool(np.isfinite(numbers).all())}; "
          f"with a warning: {sum(bool(w) for w in table['warning'])}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "runs/quickstart/run/bundle.safetensors")
