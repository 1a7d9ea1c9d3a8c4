from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TINY

from deeplense.data.generate import simulate


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven shards of `TINY`, made in one go; never changed by a test."""
    return simulate(TINY, tmp_path_factory.mktemp("whole") / "tiny", workers=1)
