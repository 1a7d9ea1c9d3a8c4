"""What a dataset keeps of its dark matter makes the same deflections again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deeplense import config
from deeplense.data.generate import simulate
from deeplense.data.store import Dataset
from deeplense.lensing import raytrace
from deeplense.sim.substructure import HALO_COLUMNS
from deeplense.sim.substructure.base import padded
from deeplense.sim.world import Rebuilt, World

HEAVY = [f"simulation.classes.{name}.mass=[1e8, 1e10]" for name in ("cdm", "wdm", "sidm", "uldm")]
EXTRA = {
    "points": {"population": "point_masses", "mass": 1e7},
    "dots": {"population": "vortex", "points": 20, "mass": 1e9},
}
CHANGES = [
    *HEAVY,
    "simulation.size=32",
    "splits={train: 16}",
    *(f"simulation.classes.{k}={v}" for k, v in EXTRA.items()),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate("realistic/hst", tmp_path_factory.mktemp("record") / "hst", workers=1, overrides=CHANGES)


def deflection(mass: Rebuilt) -> torch.Tensor:
    x, y = raytrace.grid(7, 0.31, "cpu", torch.float64)
    bend = raytrace.deflection if mass.planes is None else mass.planes.deflection
    return torch.stack(bend(x, y, mass.mass))


def test_deflections_are_rebuilt_from_a_stored_dataset(folder: Path) -> None:
    recipe = config.load_recipe("realistic/hst", CHANGES)
    world, split = World(recipe.simulation), Dataset(folder).split("train")
    seen = set()
    for scene in world.scenes(recipe.seed, "train", 0, 16):
        index = scene.index.tolist()
        again = world.rebuild(scene.label, split.params[index], [split.halos(i) for i in index])
        ours, theirs = deflection(again), deflection(Rebuilt(scene.mass, scene.planes))
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-6
        smooth = deflection(Rebuilt([c for c in scene.mass if c.profile in ("epl", "multipole", "shear")], None))
        if world.classes[scene.label] != "no_sub":  # so that the dark matter is no small part of what agrees
            assert float((theirs - smooth).abs().max() / theirs.abs().max()) > 1e-5
        seen.add(world.classes[scene.label])
    assert seen == set(world.classes)


def test_rows_say_what_each_class_has(folder: Path) -> None:
    split = Dataset(folder).split("train")
    rows = {}
    for i, label in enumerate(split.labels.tolist()):
        rows[split.manifest.classes[label]] = split.halos(i)
    assert len(rows["no_sub"]) == 0
    assert not rows["axion"]["r_s"].any()
    assert rows["axion"]["angle"].all()
    for name in ("cdm", "wdm", "sidm", "uldm"):
        one = rows[name]
        assert all(one[k].all() for k in ("mass", "z", "concentration", "r_s", "r_trunc"))
        assert (one["r_core"] > 0).any() == (name in ("sidm", "uldm"))
        assert (one["soliton"] > 0).any() == (name == "uldm")


def test_images_without_rows_pad_to_nothing() -> None:
    one = np.ones(2, dtype=[(name, np.float32) for name in HALO_COLUMNS])
    columns, mask = padded([one[:0], one])
    assert mask.tolist() == [[False, False], [True, True]]
    assert all(np.isfinite(v).all() for v in columns.values())
