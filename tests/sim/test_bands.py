"""Several bands: one lens, each band's own light, instrument and noise; one band is what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from astropy.io import fits
from lenstronomy.SimulationAPI.sim_api import SimAPI
from numpy.typing import NDArray

from deeplense import config
from deeplense.data.generate import manifest
from deeplense.errors import UserError
from deeplense.lensing import raytrace
from deeplense.sim import image, reference, source
from deeplense.sim.instrument import INSTRUMENTS
from deeplense.sim.observe import observe_block
from deeplense.sim.source import read_images
from deeplense.sim.world import World

LSST = {"g": {"instrument": "lsst_g"}, "r": {"instrument": "lsst_r"}, "i": {"instrument": "lsst_i"}}
SAME: dict[str, Any] = {"g": {}, "r": {}, "i": {}}
EMPTY = {"theta_E": 0.0, "mass": None, "gamma1": 0.0, "gamma2": 0.0}  # no lens


def world(bands: dict[str, Any] | None = None, source: dict[str, Any] | None = None, **simulation: Any) -> World:
    """model_2, 32 pixels."""
    tree = config.to_tree(config.load_recipe("model_2"))
    lens = simulation.pop("lens", {})
    tree["simulation"] |= {"size": 32, "supersampling": 2, "bands": bands or {}, **simulation}
    tree["simulation"]["source"] |= source or {}
    tree["simulation"]["lens"] |= lens
    return World(config.load_recipe(tree).simulation)


def images(w: World, n: int = 9, **more: Any) -> torch.Tensor:
    return observe_block(w, 4, "train", 0, n, **more).images


def picture(side: int = 40, channels: int = 3) -> NDArray[np.float64]:
    """(C, H, W): a galaxy whose light lies elsewhere in each channel, and is k times as much in the k-th."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    places = [(0, 3), (4, -2), (-3, -3)][:channels]
    spots = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in places]
    return np.stack([k * spot for k, spot in enumerate(spots, start=1)])


# one lens in all bands


def test_a_single_band_is_the_same_however_it_is_named() -> None:
    plain = world(exposure_time={"uniform": [500, 900]})
    named = world({"VIS": {"exposure_time": {"uniform": [500, 900]}}})
    assert plain.bands == named.bands == ["VIS"]
    assert [t.name for t in plain.truth] == [t.name for t in named.truth]
    assert torch.equal(images(plain), images(named))


def test_each_band_is_the_image_that_its_instrument_alone_takes() -> None:
    """Same scene, other instrument; magnitudes by the colours; the first band's noise is that of a single one."""
    colours = {"g-r": 0.7, "r-i": {"uniform": [0.1, 0.4]}}
    w = world(LSST, {"colours": colours})
    assert (w.bands, w.pixel_scale) == (["g", "r", "i"], 0.2)
    scene = w.scenes(4, "train", 0)[1][:4]
    seen = image.render(scene.to("cpu", torch.float64), w.size, w.pixel_scale, w.instruments)
    assert seen.shape == (4, 3, 32, 32)
    redder = {"g": 0.0, "r": 0.7, "i": 0.7 + scene.truth["source.colours.r-i"]}
    for k, name in enumerate(w.bands):
        alone = world(instrument=f"lsst_{name}")
        one = alone.scenes(4, "train", 0)[1][:4]
        expected = image.render(one.to("cpu", torch.float64), alone.size, alone.pixel_scale, alone.instrument)
        brighter = torch.as_tensor(10 ** (0.4 * redder[name])).reshape(-1, 1, 1)
        torch.testing.assert_close(seen[:, k], expected[:, 0] * brighter, rtol=1e-7, atol=0)
    assert torch.equal(images(w)[:, 0], images(world(instrument="lsst_g"))[:, 0])


def test_three_bands_agree_with_lenstronomy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", picture())
    light = {"magnitude": 20.0, "R_sersic": 0.5, "n_sersic": 3.0, "colours": {"g-r": 0.5}}
    envelope = {"magnitude": 21.0, "R_sersic": 1.0, "e2": 0.3}
    own = {"images": str(tmp_path), "image_width": 1.0}
    w = world(LSST, own, lens_light=light, lens_envelope=envelope, lens={"theta_E": 1.2, "mass": None})
    scene = w.scenes(0, "train", 0)[1][:2].to("cpu", torch.float64)
    args = (w.size, w.pixel_scale, w.instruments)
    ours, theirs = image.render(scene, *args), reference.render(scene, *args)
    assert ours.shape == theirs.shape == (2, 3, 32, 32)
    assert float((ours - theirs).abs().max() / theirs.max()) <= 1e-6
    assert torch.equal(images(w, 3, engine="lenstronomy").isfinite(), torch.ones(3, 3, 32, 32, dtype=torch.bool))


def test_rays_are_shot_once_for_all_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    true = raytrace.deflection

    def counted(*args: Any) -> Any:
        calls.append(1)
        return true(*args)

    monkeypatch.setattr(raytrace, "deflection", counted)
    number = []
    for bands in ({}, LSST):
        w = world(bands)
        scene = w.scenes(0, "train", 0)[1].to("cpu", torch.float32)
        calls.clear()
        image.render(scene, w.size, w.pixel_scale, w.instruments)
        number.append(len(calls))
    assert number[0] == number[1] > 0


def test_noise_is_independent_between_bands_and_does_not_depend_on_the_block() -> None:
    w = world(SAME)  # three times the same image
    whole = images(w, 200)
    assert torch.equal(whole[:7], images(w, 7))
    clean = images(world(SAME, noise="none"), 200)
    assert torch.equal(clean[:, 0], clean[:, 1])
    noise = (whole - clean).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(noise) - torch.eye(3)
    assert float(correlation.abs().max()) < 5 / noise.shape[1] ** 0.5
    # and so on devices that draw a batch at once
    scene = w.scenes(4, "train", 0)[0][:40].to("cpu", torch.float32)
    args = (clean[:40, :1], scene, w.instrument, w.pixel_scale, False, 0)
    first, second = (image._expose_batch(*args, stream) - clean[:40, :1] for stream in ("t", "t/band 1"))
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.05


def test_what_is_subtracted_is_subtracted_in_each_band() -> None:
    light = {"magnitude": 18.0, "R_sersic": 0.5, "colours": {"g-r": 1.0, "r-i": 1.0}}
    with_light = images(world(SAME, lens_light=light, lens_light_residual=0.0), 30)
    without = images(world(SAME), 30)
    noise = [(x - images(world(SAME, noise="none"), 30)).std((0, 2, 3)) for x in (with_light, without)]
    assert (noise[0] > noise[1]).all()
    assert noise[0][0] < noise[0][1] < noise[0][2]  # the redder the band, the more light was there
    assert float((with_light - without).mean().abs()) < 0.05 * float(noise[0].max())


def test_each_band_has_its_own_exposure_psf_and_number_of_kernels(tmp_path: Path) -> None:
    for k, side in enumerate((3, 5, 5)):
        np.save(tmp_path / f"{k}.npy", np.random.default_rng(k).random((side, side)))
    bands = {
        "g": {"psf": {"kernels": str(tmp_path)}, "exposure_time": {"uniform": [100, 200]}},
        "r": {"psf": {"moffat": [0.3, 3.0]}},
        "i": {"psf": {"kernels": str(tmp_path / "0.npy")}, "exposure_time": 1e6},
    }
    w = world(bands)
    scene = w.scenes(0, "train", 0)[0]
    names = [t.name for t in w.truth]
    assert {"bands.g.exposure_time", "bands.g.psf"} <= set(names)
    assert not {"bands.r.psf", "bands.i.psf", "bands.r.exposure_time", "exposure_time", "psf"} & set(names)
    assert torch.equal(scene.exposure, scene.truth["bands.g.exposure_time"])
    assert [s.psf is None for s in map(scene.band, range(3))] == [False, True, False]
    assert scene.band(2).psf is not None
    assert scene.band(2).psf.shape[1:] == (3, 3)
    assert set(scene.truth["bands.g.psf"].tolist()) == {0, 1, 2}
    assert float(scene.band(1).exposure[0]) == INSTRUMENTS["euclid_vis"].total_exposure
    assert w.instruments[1].psf_beta == 3.0
    noisy = images(w, 60) - images(world(bands, noise="none"), 60)
    assert float(noisy[:, 2].std()) < 0.1 * float(noisy[:, 1].std()) < 0.1 * float(noisy[:, 0].std())


# colours


def flux(w: World, n: int = 12) -> NDArray[np.float64]:
    """(n, C) of scenes without a lens [counts/s]."""
    scene = w.scenes(0, "train", 0)[0][:n].to("cpu", torch.float64)
    return image.render(scene, 64, 0.101, w.instruments, 2).sum((2, 3)).numpy()


def test_colours_are_differences_of_magnitudes_between_zero_points() -> None:
    w = world(LSST, {"colours": {"g-r": {"uniform": [0.2, 0.9]}}, "clumps": 3}, lens=EMPTY)
    total = flux(w)
    magnitude = np.array([i.zero_point for i in w.instruments]) - 2.5 * np.log10(total)
    drawn = w.scenes(0, "train", 0)[0].truth["source.colours.g-r"][:12]
    np.testing.assert_allclose(magnitude[:, 0] - magnitude[:, 1], drawn, atol=1e-3)
    np.testing.assert_allclose(magnitude[:, 1] - magnitude[:, 2], 0, atol=1e-3)
    (told,) = [t for t in w.truth if t.name == "source.colours.g-r"]
    assert (told.unit, told.prior) == ("mag", {"uniform": [0.2, 0.9]})


def test_amplitudes_have_colours_too() -> None:
    toy = {"magnitude": None, "amplitude": 3.0, "colours": {"g-r": 2.5}}
    total = flux(world(SAME, toy, instrument="gaussian_toy", pixel_scale=0.101, lens=EMPTY))
    np.testing.assert_allclose(total[:, 1:] / total[:, :1], 10, rtol=1e-6)


def test_an_envelope_adds_its_light() -> None:
    first, second = {"magnitude": 20.0, "R_sersic": 0.3}, {"magnitude": 21.0, "R_sersic": 0.6, "colours": {"g-r": 1.0}}
    dark = {"magnitude": 60.0}
    whole = flux(world(SAME, dark, lens=EMPTY, lens_light=first, lens_envelope=second))
    ratio = whole / flux(world(SAME, dark, lens=EMPTY, lens_light=first))
    np.testing.assert_allclose(ratio[0], [1 + 10**-0.4, 2, 2], rtol=0.02)


# pictures of galaxies


def test_pictures_with_a_channel_for_each_band(tmp_path: Path) -> None:
    """Every form of file gives the same; colours are those of the pixels, or the recipe's."""
    three = picture()
    np.save(tmp_path / "a.npy", three)
    np.save(tmp_path / "b.npy", np.moveaxis(three, 0, -1))
    fits.writeto(tmp_path / "c.fits", three)
    with h5py.File(tmp_path / "d.h5", "w") as file:  # as Galaxy10 DECaLS
        file["images"] = np.moveaxis(np.stack([three, three]), 1, -1)
        file["ans"] = np.arange(2)
    expected = read_images(str(tmp_path / "a.npy"), "x", 3)
    assert expected.pixels.shape == (1, 3, 40, 40)
    np.testing.assert_allclose(expected.flux, [[1, 2, 3]], rtol=0.01)
    np.testing.assert_allclose(expected.pixels.sum((2, 3)), 1, rtol=1e-5)
    for name in ("b.npy", "c.fits", "d.h5"):
        found = read_images(str(tmp_path / name), "x", 3)
        assert torch.equal(found.pixels[-1], expected.pixels[0])
        torch.testing.assert_close(found.flux[-1], expected.flux[0])
    own = {"images": str(tmp_path / "a.npy"), "image_width": 3.0}
    by_pixels = flux(world(SAME, own, lens=EMPTY))
    np.testing.assert_allclose(by_pixels / by_pixels[:, :1], [[1, 2, 3]] * 12, rtol=0.02)
    by_recipe = flux(world(SAME, own | {"colours": {"g-r": 0.0, "r-i": 2.5}}, lens=EMPTY))
    np.testing.assert_allclose(by_recipe / by_recipe[:, :1], [[1, 1, 10]] * 12, rtol=0.01)
    swapped = read_images(str(tmp_path / "a.npy"), "x", 3, (2, 1, 0))
    assert torch.equal(swapped.pixels, expected.pixels.flip(1))
    two = read_images(str(tmp_path / "a.npy"), "x", 2, (0, 2))
    assert torch.equal(two.pixels, expected.pixels[:, [0, 2]])
    assert torch.equal(read_images(str(tmp_path / "a.npy"), "x", 1, (1,)).pixels, expected.pixels[:, 1:2])


def test_a_picture_of_one_channel_serves_all_bands(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", picture(channels=1)[0])
    own = {"images": str(tmp_path), "image_width": 2.0, "image_channels": [2, 1, 0], "colours": {"g-r": 2.5}}
    w = world(SAME, own, lens=EMPTY)
    scene = w.scenes(0, "train", 0)[0][:3].to("cpu", torch.float64)
    seen = image.render(scene, 32, 0.101, w.instruments)
    torch.testing.assert_close(seen[:, 1], 10 * seen[:, 0])
    torch.testing.assert_close(seen[:, 2], seen[:, 1])


def test_pictures_are_shared_between_splits_when_asked(tmp_path: Path) -> None:
    for k in range(10):
        np.save(tmp_path / f"{k}.npy", picture())
    w = world(SAME, {"images": str(tmp_path), "share_images": True})
    for stream in ("train", "val"):
        assert set(w.scenes(0, stream, 0)[0].truth["source.image"].tolist()) == set(range(10))


@pytest.mark.parametrize(
    ("content", "channels", "message"),
    [
        (picture(channels=2), None, "a.npy: 2 channels, but 3 bands; choose with image_channels"),
        (picture(), [0, 1, 3], "a.npy: has the channels 0 to 2"),
        (picture() * np.array([1, 0, 1])[:, None, None], None, "a.npy: no light above"),
    ],
)
def test_pictures_of_other_channels_are_one_line(
    tmp_path: Path, content: NDArray[np.float64], channels: Sequence[int] | None, message: str
) -> None:
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(UserError, match=message) as error:
        world(SAME, {"images": str(tmp_path), "image_channels": channels})
    assert str(error.value).startswith("simulation.source.images: ")
    assert "\n" not in str(error.value)


def test_too_many_or_mixed_pictures_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(4):
        np.save(tmp_path / f"{k}.npy", picture())
    monkeypatch.setattr(source, "MOST", 3 * 40 * 40 * 3 * 4)
    with pytest.raises(UserError, match=r"3\.npy: more than .* in memory; choose fewer"):
        read_images(str(tmp_path), "x", 3)
    np.save(tmp_path / "1.npy", picture()[0])
    with pytest.raises(UserError, match=r"1\.npy: 1 channels, but 3 in the images before it"):
        read_images(str(tmp_path), "x", 3)


# faults of Model IV, each alone


def test_a_class_may_have_a_macro_lens_of_its_own() -> None:
    own = {"theta_E": {"normal": [0.8, 0.1]}, "gamma1": 0.0}
    base = {"lens": {"theta_E": 1.5, "mass": None, "gamma1": 0.05}}
    cdm = {"population": "point_masses"}
    plain = world(**base, classes={"no_sub": {"population": "none"}, "cdm": cdm})
    w = world(**base, classes={"no_sub": {"population": "none", "lens": own}, "cdm": cdm})
    alone, halos = w.scenes(0, "train", 0)
    assert 0.75 < float(alone.truth["lens.theta_E"].mean()) < 0.85
    assert 0.05 < float(alone.truth["lens.theta_E"].std()) < 0.15
    assert (alone.truth["lens.gamma1"] == 0).all()
    assert (halos.truth["lens.theta_E"] == 1.5).all()
    assert (halos.truth["lens.gamma1"] == 0.05).all()
    assert [c.alike for c in alone.mass[:2]] == [False, False]
    assert [t.prior for t in w.truth if t.name in ("lens.theta_E", "lens.gamma1")] == [None, None]
    other = w.labels(4, "train", 0)[:8] == 1  # as it was
    assert torch.equal(images(w, 8)[other], images(plain, 8)[other])
    with pytest.raises(UserError, match=r"classes\.cdm\.lens\.mass: simulation\.lens has theta_E"):
        world(**base, classes={"cdm": cdm | {"lens": {"mass": 1e12}}})


def test_images_divided_by_their_maximum() -> None:
    plain, scaled = images(world(LSST)), images(world(LSST, scale_to_max=True))
    torch.testing.assert_close(scaled, plain.clamp_min(0) / plain.amax((1, 2, 3), keepdim=True))
    recipe = config.load_recipe("model_2", ["simulation.scale_to_max=true"])
    assert manifest(recipe, World(recipe.simulation), []).image.unit == "maximum"


@pytest.mark.usefixtures("galaxies")
def test_model_4_and_its_legacy() -> None:
    right, legacy = (World(config.load_recipe(n).simulation) for n in ("model_4", "legacy/model_4"))
    assert right.bands == ["F106", "F129", "F158"]
    assert right.classes == ["no_sub", "cdm", "uldm"]
    assert [t.name for t in right.truth if t.name == "lens.theta_E" and t.prior is not None] == ["lens.theta_E"]
    assert legacy.bands == ["g", "r", "i"]
    assert legacy.instruments == [INSTRUMENTS["euclid_vis_1_9_2"]] * 3
    assert legacy.deflection_scale == pytest.approx(0.6343, abs=1e-4)
    seen = images(legacy, 6)
    assert float(seen.min()) == 0
    torch.testing.assert_close(seen.amax((1, 2, 3)), torch.ones(6))


@pytest.mark.filterwarnings("ignore:Cosmology is provided")
@pytest.mark.usefixtures("galaxies")
def test_legacy_model_4_without_halos_is_the_image_that_its_script_makes() -> None:
    """lenstronomy's SimAPI with the script's numbers, rays stopped at the source; the picture's sky is taken away."""
    off = ["simulation.scale_to_max=false", "simulation.classes={smooth: {population: none}}"]
    w = World(config.load_recipe("legacy/model_4", off).simulation)
    (scene,) = w.scenes(0, "train", 0)
    row = int(torch.nonzero(scene.truth["source.flip"] > 0)[0])
    drawn = {k: float(v[row]) for k, v in scene.truth.items()}
    ours = image.render(scene[row : row + 1].to("cpu", torch.float64), w.size, w.pixel_scale, w.instruments)[0]
    camera = {"pixel_scale": 0.101, "exposure_time": 565.0, "num_exposures": 4, "magnitude_zero_point": 24.0}
    camera |= {"read_noise": 4.2, "sky_brightness": 22.35, "ccd_gain": 3.1, "seeing": 0.16, "psf_type": "GAUSSIAN"}
    model = {"lens_model_list": ["SIE", "SHEAR"], "lens_redshift_list": [0.5, 0.5], "z_source": 1.0}
    model |= {"z_source_convention": 2.5, "source_redshift_list": [1.0], "source_light_model_list": ["INTERPOL"]}
    model |= {"lens_light_model_list": ["SERSIC_ELLIPSE"] * 2, "cosmo": FlatLambdaCDM(H0=69.7, Om0=0.2814)}
    lens = [{"theta_E": 1.5, "e1": 0.0, "e2": 0.0, "center_x": 0.0, "center_y": 0.0}, {"gamma1": 0.05, "gamma2": 0.0}]
    shapes = [
        {"R_sersic": 0.4, "n_sersic": 2.3, "e1": 0.0, "e2": 0.05},
        {"R_sersic": 1.5, "n_sersic": 1.2, "e1": 0, "e2": 0.3},
    ]
    pixels = read_images("galaxies", "x", 3).pixels[int(drawn["source.image"])].double().numpy()
    place = {k: drawn[f"source.{k}"] for k in ("center_x", "center_y")}
    for k, (magnitude, brightness) in enumerate([(22.0, 17.0), (19.0, 18.0), (18.0, 19.0)]):
        api = SimAPI(64, camera, model)
        source = {"image": pixels[k], "scale": 0.0025 * 256 / 32, "phi_G": drawn["source.angle"], **place}
        front = [
            {"center_x": 0, "center_y": 0, "magnitude": m, **s} for m, s in zip((brightness, 28.0), shapes, strict=True)
        ]
        amplitudes = api.magnitude2amplitude(front, [{"magnitude": magnitude, **source}])
        theirs = api.image_model_class({}).image(lens, amplitudes[1], amplitudes[0])
        assert np.abs(ours[k].numpy() - theirs).max() <= 1e-4 * theirs.max()


def test_without_galaxies_model_4_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"images: no such file or folder: galaxies; put images .* Galaxy10") as error:
        World(config.load_recipe("model_4").simulation)
    assert "\n" not in str(error.value)


# bad input


@pytest.mark.parametrize(
    ("bands", "simulation", "message"),
    [
        ({"g": {"instrument": "lsst_q"}}, {}, "no instrument 'lsst_q'"),
        ({"g": {"instrment": "lsst_g"}}, {}, r"simulation\.bands\.g has no key 'instrment'; did you mean"),
        ({"g": {"instrument": "lsst_g"}, "V": {}}, {}, r"simulation\.pixel_scale: the bands have \[0.101, 0.2\]"),
        ({"g": {"psf": {"gaussian": -1}}}, {}, r"simulation\.bands\.g\.psf: the FWHM -1"),
        ({"g": {"exposure_time": 0}, "r": {}}, {}, r"simulation\.bands\.g\.exposure_time is 0.0; it must lie in"),
        (LSST, {"source": {"colours": {"g-i": 0.3}}}, r"source\.colours: no colour 'g-i' \(known: g-r, r-i\)"),
        ({}, {"source": {"colours": {"g-r": 0.3}}}, r"source\.colours: no colour 'g-r' \(known: none"),
        (LSST, {"source": {"colours": {"g-r": "red"}}}, "colours"),
        (LSST, {"source": {"images": ".", "image_channels": [0]}}, r"source\.image_channels: \[0\] names 1 channels"),
        (LSST, {"source": {"image_channels": [0, -1, 1]}}, r"image_channels\.1 is -1; it must lie in \[0, 100\]"),
        (SAME, {"instrument": "gaussian_toy"}, r"source\.magnitude: the instrument has no zero point"),
        ({}, {"lens_envelope": {"magnitude": 20.0}}, "lens_envelope: there is no lens_light"),
        ({}, {"classes": {"a": {"population": "none", "lens": {"thetaE": 1}}}}, "did you mean 'theta_E'"),
        ({}, {"classes": {"a": {"population": "none", "lens": 3}}}, r"classes\.a\.lens must be a mapping"),
    ],
)
def test_bands_that_make_no_sense(bands: dict[str, Any], simulation: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        world(bands, **simulation)
    assert "\n" not in str(error.value)
