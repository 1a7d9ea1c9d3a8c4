"""A recipe that takes no time, and what tests of its datasets share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 5,
    "splits": {"train": 3500, "val": 1030, "test": 20},
    "simulation": {
        "size": 16,
        "supersampling": 1,
        "pixel_scale": 0.25,
        "lens": {"theta_E": 1.2, "e1": 0.1},
        "source": {"magnitude": 20.0, "center_x": {"uniform": [-0.3, 0.3]}, "R_sersic": 0.3},
        "classes": {"no_sub": {"population": "none"}, "cdm": {"population": "point_masses", "number": {"poisson": 3}}},
    },
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def content(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def wait_for(what: Callable[[], Any], seconds: float = 90) -> Any:
    """A deadline for what would otherwise hang, not a measurement."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found
