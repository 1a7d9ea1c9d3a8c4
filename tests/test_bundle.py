from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy import units
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deeplense.answers import Classes, Value
from deeplense.bundle import FORMAT, Bundle, load
from deeplense.data.schema import ImageInfo, Parameter
from deeplense.data.transforms import Preprocessor
from deeplense.device import resolve_device
from deeplense.errors import UserError
from deeplense.models import Context, build_network
from deeplense.models.heads import HeadSpec, Target
from deeplense.models.out_of_distribution import OutOfDistribution
from deeplense.models.pixel_statistics import PixelStatistics
from deeplense.recipe import Model, Preprocess, Recipe, Simulation

INFO = ImageInfo(1, 16, 16, 0.1, "counts")
MASS = Target("log10_m_axion", "log10(eV)", -23.0, 1.0, -24.0, -22.0)
RADIUS = Target("theta_E", "arcsec", 1.2, 0.3)
OLD = Path(__file__).parent / "old"

CLASSIFY = [HeadSpec("class", "categorical")]
REGRESS = [HeadSpec("value", "truncated_normal", [MASS])]
SEVERAL = [*CLASSIFY, HeadSpec("lens", "normal", [RADIUS]), HeadSpec("mass", "truncated_normal", [MASS], 0.5)]


def _images(n: int) -> torch.Tensor:
    return 5 * torch.randn((n, 1, 16, 16), generator=torch.Generator().manual_seed(n))


def _bundle(specs: list[HeadSpec], model: str = "compact") -> Bundle:
    recipe = Recipe(model=Model(model), preprocess=Preprocess(crop=14))
    torch.manual_seed(0)
    preprocess = Preprocessor.fit(recipe.preprocess, INFO, [_images(20)])
    parameters = [Parameter(t.name, t.unit, kind="scalar") for t in (RADIUS, MASS)]
    context = Context(INFO, preprocess, parameters, Simulation())
    network = build_network(recipe.model, specs, ["a", "b", "c"], context)
    network(preprocess(_images(30)))  # moves the running statistics of the norms
    for head in network.each().values():
        head.temperature.fill_(1.3)
    x = preprocess(_images(20))
    statistics = PixelStatistics.fit(x)
    detector = OutOfDistribution.fit(statistics, statistics(x), network.eval().features(x))
    about = (["a", "b", "c"], INFO, parameters, Simulation(), "print", {"epochs": 3}, "0.1")
    return Bundle(network, preprocess, detector, specs, recipe, *about)


@pytest.mark.parametrize("specs", [CLASSIFY, REGRESS, SEVERAL])
@pytest.mark.parametrize("model", ["compact", "resnet10t"])
def test_comes_back_as_it_was(tmp_path: Path, specs: list[HeadSpec], model: str) -> None:
    made = _bundle(specs, model)
    made.save(tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors", "cpu")
    images = _images(7)
    before, after = made.outputs(images), again.outputs(images)
    assert before.keys() == after.keys()
    assert all(np.allclose(before[k], after[k], atol=1e-5) for k in before)
    for head in again.heads.values():
        assert head.temperature.tolist() == pytest.approx([1.3])
    for field in dataclasses.fields(Bundle):
        if field.name not in ("network", "preprocess", "detector"):
            assert getattr(again, field.name) == getattr(made, field.name)
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_the_file_lists_its_parts(tmp_path: Path) -> None:
    _bundle(SEVERAL).save(tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["deeplense"])
        names = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
    assert about["format"] == FORMAT == 2
    assert names == set(about["parts"]) == {"preprocess", "trunk", "heads", "detector"}
    assert [h["name"] for h in about["heads"]] == ["class", "lens", "mass"]


def test_prediction_of_classes() -> None:
    made = _bundle(CLASSIFY)
    p = made.predict(_images(9), batch_size=4)
    assert list(p) == ["class"]
    assert isinstance(p["class"], Classes)
    assert np.allclose(p.probabilities.sum(1), 1)
    assert np.allclose(p.probabilities, torch.softmax(made.raw(_images(9))["class"] / 1.3, 1).numpy(), atol=1e-6)
    assert p.distance is not None
    assert p.distance.shape == (9,)
    with pytest.raises(AttributeError, match="no 'mean'"):
        _ = p.mean


def test_prediction_of_a_number() -> None:
    p = _bundle(REGRESS).predict(_images(9))
    assert list(p) == ["log10_m_axion"]
    assert ((p.q05 > -24) & (p.q05 < p.mean) & (p.mean < p.q95) & (p.q95 < -22)).all()
    assert (p.scale > 0).all()


def test_prediction_of_several_things() -> None:
    p = _bundle(SEVERAL).predict(_images(9))
    assert {name: type(answer) for name, answer in p.items()} == {
        "class": Classes,
        "theta_E": Value,
        "log10_m_axion": Value,
    }
    assert p.probabilities.shape == (9, 3)
    with pytest.raises(AttributeError, match="several answers have it: theta_E, log10_m_axion"):
        _ = p.mean
    assert list(p.columns()) == [
        *("class", "p_a", "p_b", "p_c"),
        *(f"{k}_theta_E" for k in ("mean", "scale", "q05", "q95")),
        *(f"{k}_log10_m_axion" for k in ("mean", "scale", "q05", "q95")),
        *("entropy_class", "entropy_theta_E", "entropy_log10_m_axion"),
    ]


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.numpy(),
        lambda x: x.numpy().astype(">f8"),
        lambda x: x.numpy()[:, 0],
        lambda x: np.moveaxis(x.numpy(), 1, 3),
        lambda x: x.double(),
        lambda x: x.numpy() * units.electron,
        lambda x: np.ma.masked_array(x.numpy(), np.zeros(x.shape, bool)),
        lambda x: np.asfortranarray(x.numpy()),
    ],
    ids=["numpy", "big-endian", "NHW", "channels last", "double", "astropy", "masked", "fortran"],
)
def test_images_come_in_any_form(form: Any) -> None:
    made, images = _bundle(CLASSIFY), _images(3)
    expected = made.predict(images).probabilities
    np.testing.assert_allclose(made.predict(form(images)).probabilities, expected, atol=1e-6)
    one = form(images)[0]
    np.testing.assert_allclose(made.predict(one).probabilities, expected[:1], atol=1e-6)


def test_whole_numbers_and_masks_are_images_too() -> None:
    made = _bundle(CLASSIFY)
    counts = _images(2).round().to(torch.int16)
    np.testing.assert_array_equal(
        made.predict(counts.numpy()).probabilities, made.predict(counts.float()).probabilities
    )
    holed = _images(2)
    mask = np.zeros(holed.shape, bool)
    mask[0, 0, 3, 4] = True
    masked = made.predict(np.ma.masked_array(holed.numpy(), mask)).probabilities
    holed[0, 0, 3, 4] = torch.nan
    np.testing.assert_array_equal(masked, made.predict(holed).probabilities)


def test_no_image_is_no_answer_and_a_wrong_shape_an_error() -> None:
    made = _bundle(SEVERAL)
    assert made.raw(_images(1)[:0])["class"].shape == (0, 3)
    assert made.predict(_images(1)[:0]).probabilities.shape == (0, 3)
    for wrong in (torch.zeros(2, 3, 16, 16), np.zeros((16, 15)), np.zeros(256), np.zeros((1, 1, 1, 16, 16))):
        with pytest.raises(UserError, match=r"\(N, 1, 16, 16\)"):
            made.predict(wrong)
    with pytest.raises(UserError, match="not numbers"):
        made.predict(np.array([["a"] * 16] * 16))


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    with pytest.raises(UserError, match="no such bundle"):
        load(path)
    _bundle(CLASSIFY).save(path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not a bundle", whole[:4]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"b\.safetensors"):
            load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not a bundle"):
        load(path)


def test_any_changed_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    _bundle(CLASSIFY).save(path)
    whole = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(len(whole) - 100_000, len(whole), 20):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << 3
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load(path)


def _rewritten(path: Path, **changes: Any) -> None:
    """The same weights with other metadata."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["deeplense"])
    save_file(load_file(path), path, metadata={"deeplense": json.dumps(about | changes)})


def test_another_version_names_both(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_file({}, path, metadata={"deeplense": json.dumps({"format": 99, "code_version": "7.0"})})
    with pytest.raises(UserError, match=rf"format 99, this code reads {FORMAT}.*deeplense 7\.0"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parts": ["trunk", "flow"]}, "parts trunk, flow"),
        ({"heads": [{"name": "class", "kind": "oracle", "targets": [], "weight": 1}]}, "no head 'oracle'"),
        ({"heads": []}, "do not fit"),
        ({"classes": ["a", "b"]}, "do not fit"),
        ({"image": {"channels": 1, "height": 10**6, "width": 10**6}}, "1000000 x 1000000"),
        ({"image": {"channels": -1, "height": 16, "width": 16}}, "-1 x 16 x 16"),
        ({"image": None}, "cannot be rebuilt|do not fit"),
        ({"recipe": {"model": {"kwargs": {"widths": [2**16] * 4}}}}, "do not fit"),
        ({"recipe": {"model": {"name": "vit_giant_patch14_224"}}}, "do not fit"),
        ({"recipe": 7}, "b.safetensors"),
        ({"detector": "oracle"}, "no detector 'oracle'; one of out_of_distribution, cells"),
        ({"detector": "cells"}, "do not fit"),
        ({"detector": ["cells"]}, "do not fit|no detector"),
    ],
)
def test_what_does_not_fit_the_weights_is_refused_before_it_is_built(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = tmp_path / "b.safetensors"
    _bundle(CLASSIFY).save(path)
    _rewritten(path, **changes)
    with pytest.raises(UserError, match=says) as caught:
        load(path, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["classifier", "regressor"])
def test_bundles_of_format_1_say_what_they_said(name: str) -> None:
    said = json.loads((OLD / "said.json").read_text())[name]
    old = load(OLD / f"{name}.safetensors", "cpu")
    p = old.predict(np.load(OLD / "images.npy"))
    for output, values in said.items():
        np.testing.assert_allclose(getattr(p, output), values, atol=2e-6)


def test_a_bundle_of_format_1_becomes_one_of_today(tmp_path: Path) -> None:
    old = load(OLD / "classifier.safetensors", "cpu")
    old.save(tmp_path / "b.safetensors")
    images = np.load(OLD / "images.npy")
    before, after = old.predict(images), load(tmp_path / "b.safetensors", "cpu").predict(images)
    np.testing.assert_allclose(after.probabilities, before.probabilities)
    np.testing.assert_allclose(after.distance, before.distance)


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    for absent in ("cuda:99", "tpu", "cpu:3"):
        with pytest.raises(UserError, match="--device"):
            resolve_device(absent)
