"""`simulate --truth`: maps beside the images, by the same scenes, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from deeplense.data.generate import simulate
from deeplense.data.store import Dataset, validate
from deeplense.errors import UserError
from deeplense.sim.truth_maps import TRUTH_MAPS
from deeplense.sim.world import World

SMALL = ["simulation.size=16"]
EVERY = ",".join(TRUTH_MAPS)
SPLITS = "train=5,test=4"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("truth") / "data"
    return simulate("model_2", out, splits=SPLITS, seed=3, workers=1, truth=EVERY, overrides=SMALL)


def test_maps_are_those_of_the_images_scenes(kept: Path) -> None:
    validate(kept, checksums=True)
    split = Dataset(kept).split("test")
    lenses = World("model_2", SMALL).draw(4, seed=3, stream="test")
    expected = {
        "kappa": lenses.kappa(),
        "potential": lenses.potential(),
        "deflection_y": lenses.deflection()[1],
        "shear1": lenses.shear()[0],
        "magnification": lenses.magnification(),
        "time_delay": lenses.time_delay(),
        "source": lenses.source()[:, 0],
        "lensed_source": lenses.source(lensed=True)[:, 0],
        "lens_light": lenses.lens_light()[:, 0],
        "noiseless": lenses.image()[:, 0],
    }
    found = split.maps(np.arange(4))
    assert list(found) == split.manifest.maps
    assert dict(zip(split.manifest.maps, split.manifest.map_units, strict=True))["time_delay"] == "day"
    for name, theirs in expected.items():
        np.testing.assert_array_equal(found[name], theirs.to(torch.float32).numpy(), err_msg=name)
    two = split.maps(np.array([3, -4]))["kappa"]
    np.testing.assert_array_equal(two, found["kappa"][[3, 0]])


def test_images_are_the_same_with_and_without(kept: Path, tmp_path: Path) -> None:
    plain = simulate("model_2", tmp_path / "plain", splits=SPLITS, seed=3, workers=1, overrides=SMALL)
    ours, theirs = Dataset(kept), Dataset(plain)
    assert torch.equal(ours.split("train").images(np.arange(5)), theirs.split("train").images(np.arange(5)))
    assert theirs.manifest.maps == []
    assert ours.manifest.fingerprint != theirs.manifest.fingerprint
    with pytest.raises(UserError, match="holds no maps; simulate it with --truth"):
        theirs.split("test").maps(np.arange(2))
    with pytest.raises(UserError, match="holds another dataset"):
        simulate("model_2", plain, splits=SPLITS, seed=3, workers=1, truth="kappa", overrides=SMALL)


def test_several_bands_have_a_plane_each(tmp_path: Path) -> None:
    bands = "simulation.bands={g: {instrument: euclid_vis}, r: {instrument: euclid_vis}}"
    out = simulate(
        "model_2", tmp_path / "d", splits="test=2", workers=1, truth="source,kappa", overrides=[*SMALL, bands]
    )
    assert Dataset(out).manifest.maps == ["source.g", "source.r", "kappa"]
    assert Dataset(out).split("test").maps(np.arange(2))["source.r"].shape == (2, 16, 16)


@pytest.mark.parametrize(
    ("recipe", "truth", "said"),
    [
        ("model_2", "kapa", r"no truth map 'kapa'; did you mean 'kappa'"),
        ("model_2", "kappa,kappa", r"--truth names kappa twice"),
        ("legacy/model_2", "time_delay", r"--truth time_delay: no time delays of a recipe with faulty distances"),
    ],
)
def test_maps_that_cannot_be_given_are_refused_before_anything_is_written(
    recipe: str, truth: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        simulate(recipe, tmp_path / "out", splits="test=2", workers=1, truth=truth, overrides=SMALL)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_shards_whose_maps_are_not_those_of_the_manifest_are_refused(kept: Path) -> None:
    path = kept / "test-00000.h5"
    before = path.read_bytes()
    try:
        with h5py.File(path, "r+") as file:
            del file["map"]
            file["map"] = np.zeros((4, 2, 16, 16), np.float32)
        with pytest.raises(UserError, match=r"test-00000\.h5: its truth maps do not fit the manifest"):
            validate(kept)
        with pytest.raises(UserError, match="its truth maps do not fit the manifest"):
            Dataset(kept).split("test").maps(np.arange(1))
    finally:
        path.write_bytes(before)
