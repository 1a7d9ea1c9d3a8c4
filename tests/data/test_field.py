"""Small inputs as people have them, one kind a folder: each reads to what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from deeplense.data.importing import import_dataset
from deeplense.data.store import Dataset

FIELD = next((p / "shared" / "field" for p in Path(__file__).parents if (p / "shared" / "field").is_dir()), None)

pytestmark = pytest.mark.skipif(FIELD is None, reason="needs ../shared/field beside the project")


class Imported:
    """An import of one split: image, class and numbers of each id."""

    def __init__(self, kind: str, out: Path, **options: Any) -> None:
        assert FIELD is not None
        self.source = FIELD / kind
        dataset = Dataset(import_dataset(self.source, out, splits="train=1", **options))
        self.manifest = dataset.manifest
        split = dataset.split("train")
        pixels = split.images(np.arange(len(split.ids))).numpy()
        names = [*self.manifest.classes, None]
        self.image = dict(zip(split.ids, pixels, strict=True))
        self.label = dict(zip(split.ids, [names[k] for k in split.labels], strict=True))
        self.params = dict(zip(split.ids, split.params, strict=True))

    def says(self, part: str) -> bool:
        return any(part in note for note in self.manifest.notes)


def test_bands_in_own_files(tmp_path: Path) -> None:
    got = Imported("01_bands_in_own_files", tmp_path / "out")
    assert sorted(got.image) == [
        f"{c}/imageSDSS_{n + k}" for c, n in (("lens", 100000), ("nonlens", 110000)) for k in range(6)
    ]
    assert got.manifest.image.bands == ["R", "I", "G", "U"]
    for id, image in got.image.items():
        folder, name = id.split("/")
        files = [
            got.source / folder / f"Band{k + 1}" / f"{name.replace('_', f'_{b}-')}.fits" for k, b in enumerate("RIGU")
        ]
        np.testing.assert_array_equal(image, np.stack([fits.getdata(f) for f in files]))
        assert got.label[id] == folder
    assert got.says("files of bands R, I, G, U joined")


def test_bands_in_extensions(tmp_path: Path) -> None:
    got = Imported("02_bands_in_extensions", tmp_path / "out")
    assert got.label == {"lens/0": "lens", "nonlens/0": "nonlens"}
    assert got.manifest.image.bands == ["VIS", "NIR_Y", "NIR_J", "NIR_H"]
    for id, image in got.image.items():
        with fits.open(got.source / f"{id}.fits") as hdus:
            np.testing.assert_array_equal(image, np.stack([hdu.data for hdu in hdus[1:]]))


def test_image_in_a_fits_table(tmp_path: Path) -> None:
    got = Imported("04_fits_table_image", tmp_path / "out")
    assert got.label == {f"{c}/{k}": c for c in ("slsim_lenses", "slsim_nonlenses") for k in range(3)}
    for id, image in got.image.items():
        expected = fits.getdata(got.source / f"{id}.fits", 1)["image"].reshape(1, 41, 41)
        np.testing.assert_array_equal(image, expected)
    assert got.says("arrays meta left out")


def test_npy_stacks_one_a_class(tmp_path: Path) -> None:
    got = Imported("05_npy_stack_deeplenstronomy", tmp_path / "out")
    assert got.label == {f"CONFIGURATION_{c}_images#{k}": f"CONFIGURATION_{c}" for c in (1, 2) for k in range(3)}
    for id, image in got.image.items():
        name, row = id.split("#")
        np.testing.assert_array_equal(image, np.load(got.source / f"{name}.npy")[int(row)])


def test_five_bands(tmp_path: Path) -> None:
    got = Imported("07_five_bands", tmp_path / "out", bands="g,r,i,z,y")
    assert got.label == {"lens/0": "lens", "nonlens/0": "nonlens"}
    assert got.manifest.image.bands == ["g", "r", "i", "z", "y"]
    np.testing.assert_array_equal(got.image["lens/0"], np.load(got.source / "lens" / "0.npy"))


@pytest.mark.parametrize("kind", ["fit", "fitsgz", "npz", "pkl", "tif"])
def test_suffixes(tmp_path: Path, kind: str) -> None:
    got = Imported(f"08_suffix_{kind}", tmp_path / "out")
    assert got.label == {"lens/0": "lens"}
    (file,) = (got.source / "lens").iterdir()
    if kind in ("fit", "fitsgz"):
        expected = fits.getdata(file)
    elif kind == "npz":
        expected = np.load(file)["image"]
    elif kind == "pkl":
        expected = np.load(file, allow_pickle=True)
    else:
        from PIL import Image

        expected = np.asarray(Image.open(file))
    np.testing.assert_array_equal(got.image["lens/0"], expected[None])


@pytest.mark.parametrize("options", [{}, {"id": "id_str", "class_": "is_lens"}, {"id": "file_loc"}])
def test_labels_in_a_csv(tmp_path: Path, options: dict[str, str]) -> None:
    assert FIELD is not None
    table = {"labels": str(FIELD / "09_csv_labels" / "labels.csv")} if options else {}
    got = Imported("09_csv_labels", tmp_path / "out", **table, **options)
    assert got.label == {f"images/img_{k}": str(k % 2) for k in range(4)}
    assert got.says("classes from column 'is_lens'")
    assert got.says("guessed; --id") is (options == {} or "id" not in options)


def test_labels_in_hdf5(tmp_path: Path) -> None:
    import h5py

    got = Imported("10_hdf5_with_labels", tmp_path / "out")
    with h5py.File(got.source / "Galaxy10_like.h5") as file:
        for k in range(6):
            id = f"Galaxy10_like#{k}"
            np.testing.assert_array_equal(got.image[id], np.moveaxis(file["images"][k], -1, 0))
            assert got.label[id] == str(file["ans"][k])
            np.testing.assert_array_equal(got.params[id], [file["redshift"][k]])
    assert [p.name for p in got.manifest.parameters] == ["redshift"]
    assert got.manifest.image.pixel_scale == pytest.approx(0.262)
