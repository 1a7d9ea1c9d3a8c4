"""deeplense: simulate strong gravitational lenses, learn their dark matter, and report it honestly.

The verbs of the command line are functions here: `deeplense.simulate(...)`, `deeplense.train(...)`,
`deeplense.load(bundle).predict(images)`.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

__version__ = metadata.version("deeplense")

# imported on first use, so that `import deeplense` and `deeplense --help` take no time
_WHERE = {
    "World": "deeplense.sim.world",
    "Lens": "deeplense.sim.named",
    "Lenses": "deeplense.sim.lenses",
    "to_lenstronomy": "deeplense.sim.exchange",
    "from_lenstronomy": "deeplense.sim.exchange",
    "simulate": "deeplense.data.generate",
    "import_dataset": "deeplense.data.importing",
    "Dataset": "deeplense.data.store",
    "info": "deeplense.evaluation.info",
    "show": "deeplense.evaluation.show",
    "audit": "deeplense.evaluation.audit",
    "train": "deeplense.training.fit",
    "tune": "deeplense.tuning.study",
    "evaluate": "deeplense.evaluation.report",
    "predict": "deeplense.inference.predict",
    "export": "deeplense.inference.export",
    "benchmark": "deeplense.benchmark",
    "load": "deeplense.bundle",
    "load_recipe": "deeplense.config",
    "allowed": "deeplense.allow",
    "UserError": "deeplense.errors",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'deeplense' has no attribute '{name}'")
