"""Three bands all the way: simulate, look, train, report, audit, predict, export; and from the simulator itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplense.bundle import load
from deeplense.data.generate import simulate
from deeplense.data.importing import import_dataset
from deeplense.data.schema import read_manifest
from deeplense.data.simulated import SimLoader, SimStream
from deeplense.data.store import Dataset, validate
from deeplense.evaluation.audit import audit
from deeplense.evaluation.gallery import picture, stretch
from deeplense.evaluation.info import info
from deeplense.evaluation.report import evaluate
from deeplense.evaluation.show import show
from deeplense.inference.export import export
from deeplense.inference.predict import predict
from deeplense.inference.runtime import OnnxBundle
from deeplense.training.fit import train

SMALL = [
    "simulation.size=24",
    "simulation.pixel_scale=0.25",
    "simulation.supersampling=1",
    "simulation.classes={no_sub: {population: none}, cdm: {population: point_masses}}",
    "splits={train: 120, val: 20, test: 20}",
    "training.epochs=1",
    "training.batch_size=32",
    "training.steps_per_epoch=2",
    "training.val_images=20",
]


@pytest.mark.usefixtures("galaxies")
def test_three_bands_all_the_way(tmp_path: Path) -> None:
    data = simulate("model_4", tmp_path / "data", workers=1, overrides=SMALL)
    validate(data)
    about = read_manifest(data).image
    assert (about.channels, about.bands) == (3, ["F106", "F129", "F158"])
    assert "shape        3 x 24 x 24" in info(data)
    for source, id in (("model_4", None), (data, None), (data, "test-00000001")):
        pixels = np.asarray(Image.open(show(source, tmp_path / "look.png", id)).convert("RGB"))
        assert pixels.std() > 10
    bundle = train("model_4", data, tmp_path / "run", overrides=SMALL, device="cpu")
    assert load(bundle, "cpu").preprocess.output_shape == (3, 24, 24)
    report = evaluate(bundle, data, tmp_path / "report", device="cpu")
    assert "F106, F129, F158" in report.read_text()
    assert audit(data, tmp_path / "audit")["features"]["total_flux"]["columns"] == 3
    table = predict(bundle, [data], tmp_path / "table.csv", device="cpu", split="test")
    assert len(table.read_text().splitlines()) == 21
    # and from files that hold channels last, as Model IV was written
    folder = tmp_path / "files" / "no"
    folder.mkdir(parents=True)
    images = Dataset(data).split("test").images(np.arange(4)).numpy()
    for k, image in enumerate(images):
        np.save(folder / f"sim_{k}.npy", np.moveaxis(image, 0, -1).astype(np.float64))
    known = predict(bundle, [tmp_path / "files"], tmp_path / "files.csv", device="cpu").read_text()
    assert len(known.splitlines()) == 5
    imported = Dataset(import_dataset(tmp_path / "files", tmp_path / "imported", splits="test=1"))
    assert imported.manifest.image.channels == 3
    order = np.argsort(imported.split("test").ids)
    np.testing.assert_array_equal(imported.split("test").images(order).numpy(), images)
    exported = OnnxBundle(export(bundle, tmp_path / "model.onnx", data=data))
    p, q = (b.predict(images).probabilities for b in (load(bundle, "cpu"), exported))
    np.testing.assert_allclose(p, q, atol=1e-5)


@pytest.mark.usefixtures("galaxies")
def test_training_from_the_simulator_sees_three_bands(tmp_path: Path) -> None:
    bundle = load(train("model_4", "sim", tmp_path / "run", overrides=SMALL, device="cpu"), "cpu")
    assert bundle.image.bands == ["F106", "F129", "F158"]
    loader = SimLoader(SimStream(bundle.recipe.simulation, 0, "train", 5), 10)
    assert [tuple(batch.image.shape) for batch in loader] == [(5, 3, 24, 24)] * 2


def test_three_channels_are_a_colour_picture() -> None:
    y, x = np.mgrid[:32, :32] - 15.5
    draw = np.random.default_rng(0)
    image = draw.normal(0, 0.05, (3, 32, 32)).astype(np.float32)
    for k, place in enumerate((-8, 0, 8)):  # one light for each channel, of another brightness
        image[k] += 10.0**k * np.exp(-((x - place) ** 2 + y**2) / 8)
    blue_first, red_first = picture(image, True), picture(image, False)
    assert blue_first.shape == (32, 32, 3)
    assert 0 <= blue_first.min() <= blue_first.max() <= 1
    np.testing.assert_allclose(blue_first, red_first[..., ::-1], atol=1e-6)
    assert [int(red_first[16, 16 + place].argmax()) for place in (-8, 0, 8)] == [0, 1, 2]
    dark = red_first[:4]  # noise is grey
    assert float((dark.max(-1) - dark.min(-1)).mean()) < 0.1
    image[1, 5, 5] = np.nan
    assert len(set(picture(image, True)[5, 5].tolist())) == 1
    five = np.stack([image[0], image[1], image[1] * 3, image[2], image[2]])
    expected = picture(np.stack([image[0], image[1] * 3, image[2]]), True)
    np.testing.assert_array_equal(picture(five, True), expected)  # the first, the middle and the last band
    np.testing.assert_array_equal(picture(image[:1], True), stretch(image[:1]))
    assert np.isnan(picture(np.full((3, 4, 4), np.nan, np.float32), True)).all()
    assert np.isfinite(picture(np.zeros((3, 4, 4), np.float32), True)).all()
