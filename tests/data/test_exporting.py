"""A dataset goes out into every layout, and `import` reads back what went."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from imported import Imported

from deeplense.data.exporting import LAYOUTS, export_dataset
from deeplense.data.store import Dataset
from deeplense.errors import UserError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back(layout: str, tiny_dataset: Path, tmp_path: Path) -> None:
    dataset = Dataset(tiny_dataset)
    folder = export_dataset(tiny_dataset, tmp_path / "out", layout)
    if layout == "webdataset":
        sources = {name: folder / f"{name}-000000.tar" for name in dataset.manifest.splits}
    else:
        sources = dict.fromkeys(dataset.manifest.splits, folder)
    for name, source in sources.items():
        got = Imported(source, tmp_path / f"back-{name}", splits=None)
        split = dataset.split(name)
        images = split.images(np.arange(len(split.ids))).numpy()
        mine = {id: image for id, image in got.image.items() if got.split[id] == name}
        assert len(mine) == len(images)
        for id, image in mine.items():
            k = int(id.replace("#", "/").rsplit("/", 1)[-1])
            np.testing.assert_array_equal(image, images[k])
            assert got.label[id] == dataset.manifest.classes[split.labels[k]]
            known = {p.name: v for p, v in zip(dataset.manifest.parameters, split.params[k], strict=True)}
            assert got.params[id] == pytest.approx({key: value for key, value in known.items() if np.isfinite(value)})


def test_bad_requests_are_one_line_and_write_nothing(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no layout 'zarr'.*known: folders, fits, hdf5, webdataset"):
        export_dataset(tiny_dataset, tmp_path / "out", "zarr")
    with pytest.raises(UserError, match="no split 'tset'"):
        export_dataset(tiny_dataset, tmp_path / "out", split="tset")
    with pytest.raises(UserError, match="no dataset here"):
        export_dataset(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="not an empty folder"):
        export_dataset(tiny_dataset, tmp_path / "full")
