"""`info` and `show`: what they say and draw of datasets, bundles, recipes and of nothing of the kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from deeplense import config
from deeplense.bundle import load
from deeplense.data.generate import simulate
from deeplense.data.schema import read_manifest
from deeplense.data.store import Dataset
from deeplense.errors import UserError
from deeplense.evaluation import inject
from deeplense.evaluation import show as showing
from deeplense.evaluation.forward import Forward
from deeplense.evaluation.info import info
from deeplense.evaluation.show import show
from deeplense.sim.macro import MACRO, macro_lens
from deeplense.sim.world import World
from deeplense.training.fit import train

SMALL = ["simulation.size=24", "splits={train: 4, test: 9}"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate("quickstart", tmp_path_factory.mktemp("sim") / "data", workers=1, overrides=SMALL)


def said(text: str) -> dict[str, str]:
    return {line.split("  ")[0]: line.partition("  ")[2].strip() for line in text.splitlines()}


def test_info_of_a_dataset(tiny_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = info(tiny_dataset)
    assert capsys.readouterr().out == text + "\n"
    found = said(text)
    assert found["dataset"] == "tiny"
    assert found["images"] == "train 64, val 32, test 32"
    assert found["shape"] == "1 x 16 x 16, 0.1″ a pixel, unit counts"
    assert found["classes"] == "axion, cdm, no_sub"
    assert found["parameters"] == "log10_m_axion [log10(eV)]"
    assert found["fingerprint"] == read_manifest(tiny_dataset).fingerprint[:16]
    assert "not checked" in found["bytes"]


def test_verify_finds_a_changed_byte_that_plain_info_does_not(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "d", 3, 0, 3)
    assert "every byte" in said(info(data, verify=True))["bytes"]
    with h5py.File(data / "test-00000.h5", "r+") as file:
        file["image"][0, 0, 0, 0] += 1
    info(data)
    with pytest.raises(UserError, match=r"test-00000\.h5: its bytes have changed"):
        info(data, verify=True)
    (data / "test-00000.h5").unlink()
    with pytest.raises(UserError, match=r"test-00000\.h5: missing"):
        info(data)


def test_info_of_a_bundle(tiny_dataset: Path, tmp_path: Path) -> None:
    tree = {"name": "one", "training": {"epochs": 1, "batch_size": 64}}
    path = train(tree, tiny_dataset, tmp_path / "run", device="cpu")
    found = said(info(path))
    bundle = load(path, "cpu")
    assert found["bundle"] == "one"
    assert found["predicts"] == "axion, cdm, no_sub"
    assert found["network"] == f"compact, {sum(p.numel() for p in bundle.network.parameters()):,} parameters"
    assert found["input"] == "1 x 16 x 16, 0.1″ a pixel"
    assert float(found["val_loss"]) == pytest.approx(bundle.summary["val_loss"], rel=1e-3)
    assert found["data"] == read_manifest(tiny_dataset).fingerprint[:16]


@pytest.mark.usefixtures("galaxies")
@pytest.mark.parametrize("name", list(config.shipped()))
def test_info_of_every_shipped_recipe(name: str) -> None:
    found = said(info(name))
    recipe = config.load_recipe(name)
    assert found["recipe"] == name
    assert found["classes"] == ", ".join(recipe.simulation.classes)
    assert found["image"].startswith(f"{recipe.simulation.size} x {recipe.simulation.size}, ")
    assert found["noise"] == recipe.simulation.noise


def test_info_of_nonsense_is_one_line(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "text.yaml").write_text("- a\n- b\n")
    (tmp_path / "false.safetensors").write_bytes(b"no weights")
    bad: list[tuple[Path | str, str]] = [
        ("quickstrat", "quickstart"),
        (tmp_path / "none", "none"),
        (tmp_path, "no dataset here"),
        (tmp_path / "none.safetensors", "none.safetensors: no dataset, bundle or recipe of this name"),
        (tmp_path / "false.safetensors", "no bundle"),
        (tmp_path / "binary.yaml", r"binary\.yaml"),
        (tmp_path / "picture.png", r"picture\.png"),
        (tmp_path / "text.yaml", r"text\.yaml"),
    ]
    for source, match in bad:
        with pytest.raises(UserError, match=match) as caught:
            info(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="--verify checks a dataset"):
        info("quickstart", verify=True)


def test_an_image_rendered_again_is_the_stored_one_to_the_last_photon(simulated: Path) -> None:
    recipe = config.load_recipe(read_manifest(simulated).recipe or {})
    split = Dataset(simulated).split("test")
    for row in range(len(split)):
        panels = showing._again(recipe, "test", row)
        stored = split.images(np.array([row]))[0].numpy()
        np.testing.assert_allclose(panels["rendered again"], stored, rtol=1e-4, atol=1e-4 * stored.max())
        # noise is what the clean image lacks, and it has no bias
        noise = stored - panels["without noise"]
        assert 0 < np.abs(noise).mean() < 0.2 * stored.max()
        name = Dataset(simulated).manifest.classes[split.labels[row]]
        effect = panels["effect of substructure"]
        np.testing.assert_allclose(effect, panels["without noise"] - panels["without substructure"], atol=1e-6)
        assert (np.abs(effect).max() > 1e-3 * stored.max()) == (name != "no_sub")


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_show_draws_one_image_in_every_format(simulated: Path, suffix: str, tmp_path: Path) -> None:
    out = show(simulated, tmp_path / f"one{suffix}", id="test-00000002")
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert out.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    if suffix == ".svg":
        text = out.read_text()
        for title in ("stored", "rendered again", "without noise", "without substructure", "effect of substructure"):
            assert f"<!-- {title} -->" in text
        assert "test-00000002" in text


def test_show_draws_recipes_and_datasets(
    simulated: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, out in (("quickstart", "recipe"), (simulated, "data"), (tiny_dataset, "tiny")):
        path = show(source, tmp_path / f"{out}.svg")
        assert f"wrote {path}" in capsys.readouterr().out
        text = path.read_text()
        for name in ("no_sub", "cdm", "axion"):  # a row for each class
            assert f"<!-- {name} -->" in text
    pixels = np.asarray(Image.open(show(simulated, tmp_path / "data.png")).convert("L"))
    assert (pixels[0] > 250).all()
    assert (pixels[-1] > 250).all()
    assert pixels.std() > 20


def test_an_image_that_was_not_simulated_is_shown_as_it_is(tiny_dataset: Path, tmp_path: Path) -> None:
    text = show(tiny_dataset, tmp_path / "one.svg", id="test/0").read_text()
    assert "<!-- stored -->" in text
    assert "rendered again" not in text
    mass = Dataset(tiny_dataset).split("test").params[0, 0]
    assert f"log10_m_axion = {mass:.4g}" in text


def test_a_dataset_without_labels_or_with_nan_pixels_is_shown(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "d", 0, 0, 8)
    with h5py.File(data / "test-00000.h5", "r+") as file:
        file["label"][...] = -1
        file["image"][0, 0, 3:, :] = np.nan
    assert "<!-- unlabelled -->" in show(data, tmp_path / "all.svg").read_text()
    assert "unlabelled" in show(data, tmp_path / "one.svg", id="test/0").read_text()


def test_bad_requests_are_one_line_and_write_nothing(simulated: Path, tmp_path: Path) -> None:
    bad: list[tuple[Path | str, str, str | None, str]] = [
        (simulated, "a.png", "test-99999999", "no image with id 'test-99999999'.*train-00000000"),
        (simulated, "a.gif", None, r"a\.gif: not a kind of picture"),
        (simulated, "a", None, "not a kind of picture"),
        ("quickstart", "a.png", "test-00000000", "--id names an image of a dataset"),
        ("quickstrat", "a.png", None, "quickstart"),
        (tmp_path, "a.png", None, "no dataset here"),
    ]
    for source, out, id, match in bad:
        with pytest.raises(UserError, match=match) as caught:
            show(source, tmp_path / "out" / out, id=id)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_marks_and_residual_are_drawn_on_request(simulated: Path, tmp_path: Path) -> None:
    cdm = Dataset(simulated).manifest.classes.index("cdm")
    split = Dataset(simulated).split("test")
    id = split.ids[int(np.flatnonzero(split.labels == cdm)[0])]
    plain = show(simulated, tmp_path / "plain.svg", id=id).read_text()
    text = show(simulated, tmp_path / "all.svg", id=id, also="critical_curves, caustics,residual").read_text()
    for label in ("critical curves", "caustics", "residual"):
        assert f"<!-- {label} -->" in text
        assert f"<!-- {label} -->" not in plain
    for source, of, also, match in (
        (simulated, id, "curves", "no mark for --also 'curves'.*critical_curves"),
        (simulated, None, "halos", "--also halos: give --id of an image of a simulated dataset"),
        ("quickstart", None, "halos", "--also halos: give --id"),
    ):
        with pytest.raises(UserError, match=match):
            show(source, tmp_path / "none.svg", id=of, also=also)


def test_a_scene_of_another_version_is_an_error(simulated: Path) -> None:
    with pytest.raises(UserError, match="another version of the code"):
        showing._find([], 3)


def test_without_substructure_the_whole_macro_lens_stays() -> None:
    names = ("theta_E", "e1", "e2", "center_x", "center_y", "gamma1", "gamma2", "a3", "phi3", "a4", "phi4")
    for gamma in (2.0, 2.2):
        drawn = {f"lens.{k}": np.full(1, 0.1) for k in names} | {"lens.gamma": np.full(1, gamma)}
        assert {c.profile for c in macro_lens(drawn)} <= set(MACRO)


def test_one_halo_is_injected(simulated: Path, tmp_path: Path) -> None:
    id = Dataset(simulated).split("test").ids[0]
    for source, of in ((simulated, id), ("model_2", None)):
        text = show(source, tmp_path / "halo.svg", id=of, inject="1e10,0.6,-0.2,12").read_text()
        for label in ("without the halo", "with the halo", "effect of the halo", "effect of the halo [σ]"):
            assert f"<!-- {label} -->" in text
        assert "a halo of 1e+10 Msun at (0.6″, -0.2″), c = 12, χ = " in text
    for text, match in (
        ("1e9", "--inject 1e9: give mass"),
        ("1e9,a,0", "give mass"),
        ("1e9,0,0,1,2", "give mass"),
        ("-1e9,0,0", "mass is -1e\\+09; it must be positive"),
    ):
        with pytest.raises(UserError, match=match):
            show("model_2", tmp_path / "none.svg", inject=text)
    with pytest.raises(UserError, match=r"--inject 1e9,0,0: give --id of an image"):
        show(simulated, tmp_path / "none.svg", inject="1e9,0,0")


def test_the_injected_halos_residual_is_in_units_of_the_noise() -> None:
    lens = World("model_2").draw(1)
    found = inject.panels(lens, inject.parse("1e10,0.6,-0.2"))
    change = found["with the halo"] - found["without the halo"]
    np.testing.assert_allclose(found["effect of the halo"], change, atol=1e-6 * found["with the halo"].max())
    forward = Forward(lens.world, lens.scenes[0])
    sigma = forward.variance(torch.from_numpy(found["without the halo"][0]).double()).sqrt().numpy()
    np.testing.assert_allclose(found["effect of the halo [σ]"][0], found["effect of the halo"][0] / sigma, rtol=1e-4)
    assert inject.total(found) == pytest.approx(np.sqrt(((change[0] / sigma) ** 2).sum()), rel=1e-3)
