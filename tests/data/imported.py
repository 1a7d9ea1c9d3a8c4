"""What an import holds, by id, and the line with which it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplense.data.importing import import_dataset
from deeplense.data.store import Dataset, validate
from deeplense.errors import UserError


class Imported:
    """Image, class, numbers and split of each id."""

    def __init__(self, source: Path, out: Path, **options: Any) -> None:
        folder = import_dataset(source, out, **{"splits": "train=1"} | options)
        self.manifest = validate(folder, checksums=True)
        names = [*self.manifest.classes, None]
        columns = [p.name for p in self.manifest.parameters]
        self.image: dict[str, Any] = {}
        self.label: dict[str, str | None] = {}
        self.params: dict[str, dict[str, float]] = {}
        self.split: dict[str, str] = {}
        for name in self.manifest.splits:
            split = Dataset(folder).split(name)
            pixels = split.images(np.arange(len(split.ids))).numpy()
            for k, id in enumerate(split.ids):
                self.image[id], self.label[id], self.split[id] = pixels[k], names[split.labels[k]], name
                self.params[id] = {c: v for c, v in zip(columns, split.params[k], strict=True) if np.isfinite(v)}

    def says(self, part: str) -> bool:
        return any(part in note for note in self.manifest.notes)


def refused(source: Path, out: Path, **options: Any) -> str:
    """The one line."""
    with pytest.raises(UserError) as caught:
        import_dataset(source, out, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)
