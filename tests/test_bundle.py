from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deeplense.bundle import FORMAT, Bundle, load
from deeplense.data.familiarity import Familiarity
from deeplense.data.schema import ImageInfo
from deeplense.data.transforms import Preprocessor
from deeplense.device import resolve_device
from deeplense.errors import UserError
from deeplense.models import build_network
from deeplense.models.heads import Target, head_for
from deeplense.recipe import Model, Preprocess, Recipe, Task

INFO = ImageInfo(1, 16, 16, 0.1, "counts")
TARGET = Target("log10_m_axion", "log10(eV)", -23.0, 1.0, -24.0, -22.0)


def _images(n: int) -> torch.Tensor:
    return 5 * torch.randn((n, 1, 16, 16), generator=torch.Generator().manual_seed(n))


def _bundle(task: Task, model: str = "compact") -> Bundle:
    recipe = Recipe(task=task, model=Model(model), preprocess=Preprocess(crop=14))
    target = TARGET if task.kind == "regress" else None
    torch.manual_seed(0)
    preprocess = Preprocessor.fit(recipe.preprocess, INFO, [_images(20)])
    head = head_for(task, ["a", "b", "c"], target)
    head.temperature.fill_(1.3)
    network = build_network(recipe.model, preprocess.output_shape, head.n_out)
    network(preprocess(_images(30)))  # moves the running statistics of the norms
    about = (["a", "b", "c"], INFO, target, "print", {"epochs": 3}, "0.1")
    familiarity = Familiarity.fit(preprocess(_images(20)))
    return Bundle(network, preprocess, head, familiarity, recipe, *about)


CLASSIFY, REGRESS = Task(), Task("regress", "log10_m_axion")


@pytest.mark.parametrize("task", [CLASSIFY, REGRESS])
@pytest.mark.parametrize("model", ["compact", "resnet10t"])
def test_comes_back_as_it_was(tmp_path: Path, task: Task, model: str) -> None:
    made = _bundle(task, model)
    made.save(tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors", "cpu")
    images = _images(7)
    assert torch.allclose(made.raw(images), again.raw(images), atol=1e-5)
    assert again.head.temperature.item() == pytest.approx(1.3)
    for field in ("recipe", "classes", "image", "target", "fingerprint", "summary", "code_version"):
        assert getattr(again, field) == getattr(made, field)
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_prediction_of_classes() -> None:
    p = _bundle(CLASSIFY).predict(_images(9), batch_size=4)
    assert p.raw.shape == (9, 3)
    assert p.probabilities is not None
    assert np.allclose(p.probabilities.sum(1), 1)
    assert np.allclose(p.probabilities, torch.softmax(p.raw / 1.3, 1).numpy(), atol=1e-6)
    assert p.mean is None


def test_prediction_of_a_target() -> None:
    p = _bundle(REGRESS).predict(_images(9))
    assert p.probabilities is None
    assert p.q05 is not None and p.mean is not None and p.q95 is not None and p.scale is not None  # noqa: PT018
    assert ((p.q05 > -24) & (p.q05 < p.mean) & (p.mean < p.q95) & (p.q95 < -22)).all()
    assert (p.scale > 0).all()


def test_no_image_is_no_answer_and_a_wrong_shape_an_error() -> None:
    made = _bundle(CLASSIFY)
    assert made.raw(_images(1)[:0]).shape == (0, 3)
    with pytest.raises(UserError, match=r"\(N, 1, 16, 16\)"):
        made.raw(torch.zeros(2, 3, 16, 16))


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


def test_another_version_names_both(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    save_file({}, path, metadata={"deeplense": json.dumps({"format": 99, "code_version": "7.0"})})
    with pytest.raises(UserError, match=rf"format 99, this code reads {FORMAT}.*deeplense 7\.0"):
        load(path)


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    made = _bundle(CLASSIFY)
    made.recipe.model.kwargs = {"widths": [8, 8, 8, 8]}
    made.save(path)
    with pytest.raises(UserError, match="do not fit"):
        load(path)


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    for absent in ("cuda:99", "tpu", "cpu:3"):
        with pytest.raises(UserError, match="--device"):
            resolve_device(absent)
