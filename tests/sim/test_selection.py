"""Which lenses are kept: coarse images against closed forms and full images, seeds, and selections that keep none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deeplense import config, rng
from deeplense.data.generate import simulate
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.evaluation.info import info
from deeplense.lensing.raytrace import Component
from deeplense.recipe import Selection
from deeplense.sim import image
from deeplense.sim.instrument import INSTRUMENTS
from deeplense.sim.selection import Light, View, chosen, look, possible
from deeplense.sim.world import World

REALISTIC = [n for n in config.shipped() if n.startswith("realistic/")]
ALONE = "simulation.classes={no_sub: {population: none}}"
EUCLID = INSTRUMENTS["euclid_vis"]


def view(beta: Any, flux: float = 100.0, size: float = 0.15, **lens: float) -> View:
    """Of sources at (beta, 0) or beta, behind lenses of one arcsec, in images of 6.4″."""
    x, y = np.broadcast_arrays(np.real(beta), np.imag(beta))
    n = len(x)
    names = ("e1", "e2", "center_x", "center_y", "a3", "phi3", "a4", "phi4", "gamma1", "gamma2")
    values = dict.fromkeys(names, 0.0) | {"theta_E": 1.0, "gamma": 2.0} | lens
    drawn = {f"lens.{k}": np.full(n, v) for k, v in values.items()}
    drawn |= {"source.center_x": x.astype(float), "source.center_y": y.astype(float)}
    one = torch.ones(n, 1, dtype=torch.float64)
    amp = flux / (2 * np.pi * size**2 / 1.6721**2)  # of a disc, I = amp · exp(−1.6721 (r/size − 1))
    shape = {"amp": one * amp / np.exp(1.6721), "R_sersic": one * size, "n_sersic": one, "e1": 0 * one, "e2": 0 * one}
    place = {f"center_{k}": torch.from_numpy(drawn[f"source.center_{k}"])[:, None] for k in "xy"}
    light = Light(Component("sersic", shape | place), [])
    return look(drawn, light, EUCLID, 0.1, 64, np.full(n, 2264.0))


def test_images_of_an_isothermal_sphere_are_two_inside_the_einstein_radius_and_one_beyond() -> None:
    turned = np.exp(1j * np.linspace(0, 6, 7))
    assert view(0.6 * turned).n_images.tolist() == [2.0] * 7
    assert view(1.15 * turned).n_images.tolist() == [1.0] * 7


def test_images_of_an_elliptical_lens_are_four_inside_the_caustic() -> None:
    assert view(np.array([0.02 + 0.01j, 0.45 + 0j]), e1=0.25).n_images.tolist() == [4.0, 2.0]
    assert view(np.array([0.02 + 0.01j]), gamma1=0.2).n_images.tolist() == [4.0]
    assert view(np.array([0.02 + 0.01j]), e1=0.25, gamma=2.2).n_images.tolist() == [4.0]


def test_magnification_is_two_over_beta() -> None:
    turned = np.exp(1j * np.linspace(0, 2 * np.pi, 24))
    for beta in (0.7, 0.9):  # of small ones more is magnified that lies nearer
        assert view(beta * turned).magnification.mean() == pytest.approx(2 / beta, rel=0.08)


def test_light_of_the_arc_beyond_the_field_is_seen() -> None:
    inside, outside = view(np.array([0.5 + 0j])), view(np.array([0.7 + 0j]), theta_E=2.4)
    assert inside.edge[0] < 0.01
    assert outside.edge[0] > 0.05
    assert chosen(inside, Selection()).tolist() == [True]
    assert chosen(outside, Selection()).tolist() == [False]


def test_a_lens_whose_outer_image_lies_beyond_the_field_is_not_kept_for_its_inner_one() -> None:
    drawn = {"lens.theta_E": np.array([1.0, 2.4, 0.4]), "source.center_x": np.array([0.5, 0.9, 0.1])}
    drawn |= {k: np.zeros(3) for k in ("source.center_y", "lens.center_x", "lens.center_y")}
    assert possible(drawn, 3.2, Selection(theta_E=0.5)).tolist() == [True, False, False]


def test_each_cut_is_obeyed() -> None:
    seen = View(*(np.array(v) for v in ([1, 2, 2, 2, 4], [9, 1, 9, 9, 9], [99, 99, 9, 99, 99], [0, 0, 0, 0.3, 0])))
    assert chosen(seen, Selection()).tolist() == [False, True, False, False, True]
    assert chosen(seen, Selection(magnification=2)).tolist() == [False, False, False, False, True]
    assert chosen(seen, Selection(images=4)).tolist() == [False, False, False, False, True]
    assert chosen(seen, Selection(images=1, signal_to_noise=0)).tolist() == [True, True, True, False, True]


def test_the_coarse_signal_to_noise_is_that_of_full_images() -> None:
    """Median within a tenth, nine in ten within 40 %: fluxes, pixels, PSF and clumps apart, it is the same sum."""
    w = World(config.load_recipe("realistic/euclid", [ALONE]).simulation)
    (scene,) = w.scenes(0, "train", 0, 96)
    arcs = dataclasses.replace(scene, lens_light=[]).to("cpu", torch.float64)
    front = dataclasses.replace(scene, source=[]).to("cpu", torch.float64)
    arc, before = (image.render(s, w.size, w.pixel_scale, w.instruments, 3)[:, 0].numpy() for s in (arcs, front))
    t = scene.exposure.numpy()[:, None, None]
    variance = w.instrument.background_sigma(w.pixel_scale, float(scene.exposure[0])) ** 2 + (arc + before) / t
    seen = arc > 0.5 * np.sqrt(variance)
    full = (arc * seen).sum((1, 2)) / np.sqrt((variance * seen).sum((1, 2)))
    ratio = full / scene.truth["arc_signal_to_noise"].numpy()
    assert np.median(ratio) == pytest.approx(1, abs=0.1)
    assert np.mean(np.abs(ratio - 1) < 0.4) > 0.9


@pytest.mark.parametrize("name", REALISTIC)
def test_every_lens_of_a_realistic_recipe_obeys_its_selection(name: str) -> None:
    w = World(config.load_recipe(name, [ALONE]).simulation)
    (scene,) = w.scenes(4, "val", 2)
    s = w.simulation.selection
    assert s is not None
    truth = {k: v.numpy() for k, v in scene.truth.items()}
    assert truth["arc_signal_to_noise"].min() >= s.signal_to_noise >= 20
    assert truth["n_images"].min() >= s.images == 2
    assert truth["lens.theta_E"].min() >= s.theta_E >= 0.5
    assert s.lens_magnitude is None or truth["lens_light.magnitude"].max() <= s.lens_magnitude
    assert (truth["z_source"] > truth["z_lens"]).all()
    reach = np.hypot(*(truth[f"source.{k}"] - truth[f"lens.{k}"] for k in ("center_x", "center_y")))
    assert (truth["lens.theta_E"] + reach).max() <= w.size * w.pixel_scale / 2
    assert w.selected is not None
    assert 0.02 < w.selected < 0.7


def test_lenses_do_not_depend_on_the_classes() -> None:
    one = World(config.load_recipe("realistic/hst", [ALONE]).simulation)
    (alone,) = one.scenes(0, "train", 1)
    several = World(config.load_recipe("realistic/hst").simulation).scenes(0, "train", 1)
    assert len(several) == 6
    for scene in several:
        rows = scene.index - rng.BLOCK
        for k in ("lens.theta_E", "z_lens", "source.magnitude", "source.center_x", "lens_light.R_sersic"):
            np.testing.assert_array_equal(scene.truth[k], alone.truth[k][rows], err_msg=k)


def test_lenses_do_not_depend_on_threads_or_on_how_many_are_asked_for() -> None:
    w = World(config.load_recipe("realistic/lsst", [ALONE]).simulation)
    (whole,), threads = w.scenes(0, "train", 0), torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        (part,) = w.scenes(0, "train", 0, 40)
    finally:
        torch.set_num_threads(threads)
    for k in whole.truth:
        np.testing.assert_array_equal(whole.truth[k][:40], part.truth[k], err_msg=k)


def test_data_sets_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    changes = [ALONE, "simulation.size=24", "simulation.pixel_scale=0.2"]
    made = [
        Dataset(
            simulate("realistic/hst", tmp_path / f"{n}", splits="train=300,val=20", workers=n, overrides=changes)
        ).manifest
        for n in (1, 2)
    ]
    assert [s.sha256 for s in made[0].shards] == [s.sha256 for s in made[1].shards]


def test_the_share_that_is_kept_is_stated(capsys: pytest.CaptureFixture[str]) -> None:
    text = info("realistic/hst")
    (line,) = (line for line in text.splitlines() if line.startswith("selected"))
    share = World(config.load_recipe("realistic/hst", [ALONE]).simulation).selected
    assert f"{share:.0%}" in line
    assert not any(line.startswith("selected") for line in info("model_2").splitlines())


def test_a_recipe_of_plain_priors_may_select_too() -> None:
    changes = ["simulation.selection={signal_to_noise: 30}", "simulation.source.center_x={uniform: [-1.5, 1.5]}"]
    w = World(config.load_recipe("model_2", changes).simulation)
    for scene in w.scenes(0, "train", 0):
        assert scene.truth["source.center_x"].abs().max() < 1.2
        assert scene.truth["n_images"].min() >= 2


def test_image_sources_are_selected_as_discs(tmp_path: Path) -> None:
    np.save(tmp_path / "galaxy.npy", np.pad(np.ones((8, 8)), 4))
    changes = [ALONE, f"simulation.source.images={tmp_path}", "simulation.source.clumps=0"]
    (scene,) = World(config.load_recipe("realistic/euclid", changes).simulation).scenes(0, "train", 0)
    assert scene.source[0].profile == "image"
    assert scene.truth["arc_signal_to_noise"].min() >= 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("selection.images=5", r"selection.images is 5; it must lie in \[0, 4\]"),
        ("selection.signal=5", "has no key 'signal'; did you mean 'signal_to_noise'"),
        ("selection.signal_to_noise=100000", "simulation.selection: it keeps 0 lenses of .*ask for less"),
        ("selection.theta_E=30", "simulation.selection: it keeps 0 lenses of"),
        ("selection.lens_magnitude=5", "simulation.selection: it keeps 0 lenses of"),
        (
            "selection={lens_magnitude: 20}\0lens_light=null",
            "selection.lens_magnitude: .*no lens_light with a magnitude",
        ),
        ("classes.no_sub.lens={e1: 0.1}", "a selection is alike for all classes; leave one of them out"),
    ],
)
def test_a_bad_selection_is_one_line(change: str, message: str) -> None:
    changes = [f"simulation.{c}" for c in change.split("\0")]
    with pytest.raises(UserError, match=message) as found:
        World(config.load_recipe("realistic/hst", changes).simulation)
    assert "\n" not in str(found.value)
