from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.data.resample import resample_matrix
from deeplense.data.schema import ImageInfo
from deeplense.data.stretches import INVERSES, STRETCHES, asinh
from deeplense.data.transforms import Preprocessor, noise_of
from deeplense.errors import UserError
from deeplense.recipe import Preprocess

INFO = ImageInfo(1, 20, 20)


def _images(n: int = 50, channels: int = 1, size: int = 20, noise: float = 2.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*2 * [torch.arange(size) - size / 2], indexing="ij")
    arc = 300 * torch.exp(-(((x**2 + y**2).sqrt() - 5) ** 2))
    return arc + noise * torch.randn((n, channels, size, size), generator=draw) + 7.0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_resampling_averages(n_in: int, n_out: int) -> None:
    weight = resample_matrix(n_in, n_out)
    assert weight.shape == (n_out, n_in)
    np.testing.assert_allclose(weight.sum(1), 1, atol=1e-5)
    # the mean of the image is kept: each input pixel counts equally
    np.testing.assert_allclose(weight.sum(0), n_out / n_in, atol=1e-4)


def test_resampling_known_values() -> None:
    np.testing.assert_array_equal(resample_matrix(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(resample_matrix(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(resample_matrix(5, 5), np.eye(5))


def test_resampling_with_a_ratio_keeps_the_centre() -> None:
    # two input pixels become one, on a wider canvas: outside there is nothing
    weight = resample_matrix(4, 4, ratio=2.0)
    np.testing.assert_array_equal(weight, [[0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 0]])


def test_size_agrees_with_average_pooling() -> None:
    images = _images(3)
    config = Preprocess(size=5, stretch="none", normalise="none")
    expected = torch.nn.functional.avg_pool2d(images, 4)
    assert torch.allclose(Preprocessor(config, INFO)(images), expected, rtol=1e-5)


def test_crop_is_central() -> None:
    images = _images(2)
    made = Preprocessor(Preprocess(crop=10, stretch="none", normalise="none"), INFO)
    assert made.output_shape == (1, 10, 10)
    assert torch.equal(made(images), images[:, :, 5:15, 5:15])


@pytest.mark.parametrize("stretch", ["asinh", "log", "none"])
def test_per_set_gives_zero_mean_unit_spread_per_channel(stretch: str) -> None:
    images = _images(channels=2)
    images[:, 1] *= 50
    config = Preprocess(stretch=stretch, normalise="per_set")  # type: ignore[arg-type]
    made = Preprocessor.fit(config, ImageInfo(2, 20, 20), [images[:20], images[20:]])
    out = made(images)
    assert torch.allclose(out.mean((0, 2, 3)), torch.zeros(2), atol=1e-4)
    assert torch.allclose(out.std((0, 2, 3)), torch.ones(2), atol=1e-3)


def test_per_image() -> None:
    out = Preprocessor.fit(Preprocess(normalise="per_image"), INFO, [_images()])(_images(4))
    assert torch.allclose(out.mean((1, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(out.std((1, 2, 3)), torch.ones(4), atol=1e-2)


def test_scale_is_the_noise_where_there_is_noise() -> None:
    images = _images(size=60, noise=20.0) - 7.0
    info = ImageInfo(1, 60, 60)
    assert Preprocessor.fit(Preprocess(), info, [images]).scale.item() == pytest.approx(20.0, rel=0.1)
    assert Preprocessor.fit(Preprocess(scale=3.0), info, [images]).scale.item() == 3.0


def test_scale_of_clean_data_is_a_share_of_the_bright_pixels() -> None:
    made = Preprocessor.fit(Preprocess(), INFO, [_images(noise=0.0) - 7.0])
    assert 1.0 < made.scale.item() < 10.0


@pytest.mark.parametrize("value", [0.0, -5.0])
def test_constant_images_stay_finite(value: float) -> None:
    images = torch.full((4, 1, 20, 20), value)
    for stretch, normalise in itertools.product(("asinh", "log", "none"), ("per_set", "per_image", "none")):
        config = Preprocess(stretch=stretch, normalise=normalise)  # type: ignore[arg-type]
        assert Preprocessor.fit(config, INFO, [images])(images).isfinite().all()


def test_missing_pixels_become_sky() -> None:
    images = _images()
    made = Preprocessor.fit(Preprocess(), INFO, [images])
    holed, filled = images[:1].clone(), images[:1].clone()
    holed[0, 0, 3, 4], holed[0, 0, 5, 5] = torch.nan, torch.inf
    filled[0, 0, 3, 4] = filled[0, 0, 5, 5] = float(np.median(images))
    assert torch.allclose(made(holed), made(filled))
    assert Preprocessor.fit(Preprocess(), INFO, [holed])(holed).isfinite().all()


def test_statistics_in_parts_are_those_of_the_whole() -> None:
    """To the last bit, so that no training changes."""
    images = _images(300, channels=2)
    images[:, 1] = images[:, 1].abs() ** 1.5
    images[5, 0, 3, 4] = torch.nan
    made = Preprocessor.fit(Preprocess(), ImageInfo(2, 20, 20), images.split(70))
    rows = images.transpose(0, 1).flatten(1)
    sky = torch.tensor([np.median(row[row.isfinite()].numpy()) for row in rows])
    whole = torch.where(images.isfinite(), images, sky[:, None, None])
    rows = whole.transpose(0, 1).flatten(1)
    noise = whole.diff(dim=2).diff(dim=3).transpose(0, 1).flatten(1).abs().median(dim=1).values * (1.4826 / 2)
    scale = np.maximum(np.percentile(rows.numpy(), 99, axis=1) / 100, noise.numpy())
    stretched = made._stretch(whole).transpose(0, 1).flatten(1).double()
    for name, value in {
        "sky": sky, "scale": torch.from_numpy(scale), "mean": stretched.mean(1).float(),
        "std": stretched.std(1, correction=0).float(),
    }.items():  # fmt: skip
        assert torch.equal(getattr(made, name).flatten(), value), name


def test_to_fit_takes_no_more_than_twice_the_data() -> None:
    code = """if True:
        import resource, torch
        from deeplense.data.schema import ImageInfo
        from deeplense.data.transforms import Preprocessor
        from deeplense.recipe import Preprocess

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        torch.set_num_threads(1)
        Preprocessor.fit(Preprocess(), ImageInfo(1, 64, 64), [torch.rand(64, 1, 64, 64)])
        before = peak()
        images = torch.rand(12_800, 1, 64, 64)
        Preprocessor.fit(Preprocess(), ImageInfo(1, 64, 64), [images])
        print((peak() - before) / 200)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.1  # a part in work is a twentieth


def test_asinh_against_double_precision() -> None:
    sizes = np.logspace(-44, np.log10(1.6e38), 200_001)
    x = torch.from_numpy(np.concatenate([-sizes, [0.0], sizes]).astype(np.float32))
    truth = torch.asinh(x.double())
    error = ((asinh(x).double() - truth) / truth).abs()
    assert error[x != 0].max() <= 2e-7
    assert asinh(x)[x == 0].eq(0).all()
    assert asinh(torch.tensor([torch.nan])).isnan().all()
    assert asinh(torch.tensor([torch.inf, -torch.inf])).isfinite().all()


def test_asinh_has_its_gradient_everywhere() -> None:
    x = torch.tensor([-1e38, -1e10, -3.0, -1e-3, -1e-5, 0.0, 1e-30, 1e-4, 0.1, 1.0, 1e5], requires_grad=True)
    (gradient,) = torch.autograd.grad(asinh(x).sum(), x)
    expected = 1 / torch.sqrt(1 + x.detach().double() ** 2)
    assert torch.allclose(gradient.double(), expected, rtol=1e-5, atol=1e-37)


def test_asinh_is_the_same_in_an_exported_graph(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Stretch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return asinh(x)

    x = torch.tensor([-1e38, -50.0, -1e-3, 0.0, 1e-7, 2e-4, 0.3, 1e20])
    torch.onnx.export(Stretch().eval(), (x,), tmp_path / "a.onnx", dynamo=True, opset_version=18, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(out, np.arcsinh(x.numpy().astype(np.float64)), rtol=2.5e-7, atol=0)


def test_state_rebuilds_it() -> None:
    config = Preprocess(crop=18, size=9)
    made = Preprocessor.fit(config, INFO, [_images()])
    again = Preprocessor(config, INFO)
    again.load_state_dict(made.state_dict())
    assert torch.equal(made(_images(3)), again(_images(3)))


@pytest.mark.parametrize("config", [Preprocess(crop=21), Preprocess(crop=0), Preprocess(size=0)])
def test_impossible_geometry_is_an_error(config: Preprocess) -> None:
    with pytest.raises(UserError, match="preprocess"):
        Preprocessor(config, INFO)


def test_resizing_needs_a_square() -> None:
    with pytest.raises(UserError, match="square"):
        Preprocessor(Preprocess(size=8), ImageInfo(1, 20, 30))
    assert Preprocessor(Preprocess(crop=20, size=8), ImageInfo(1, 20, 30)).output_shape == (1, 8, 8)


def test_images_without_a_finite_pixel_are_an_error() -> None:
    with pytest.raises(UserError, match="finite"):
        Preprocessor.fit(Preprocess(), INFO, [torch.full((2, 1, 20, 20), torch.nan)])


def test_onnx_gives_the_same_for_any_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = Preprocessor.fit(Preprocess(crop=18, size=8), INFO, [_images()]).eval()
    path = tmp_path / "p.onnx"
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        made, (_images(2),), dynamo=True, opset_version=18, dynamic_shapes=({0: batch},), verbose=False
    )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    images = _images(5)
    images[0, 0, 9, 9] = torch.nan
    (out,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert np.allclose(out, made(images).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", STRETCHES)
def test_stretches_rise_and_leave_small_pixels_alone(name: str) -> None:
    x = torch.linspace(0, 1e4, 1001)
    y = STRETCHES[name](x)
    assert (y.diff() > 0).all()
    small = torch.tensor([1e-3, 1e-2])
    assert torch.allclose(STRETCHES[name](small), small, rtol=0.02)
    assert torch.allclose(INVERSES[name](y), x, rtol=1e-3)
    if name != "log":
        assert torch.allclose(STRETCHES[name](-x), -y)
        assert torch.allclose(INVERSES[name](-y), -x, rtol=1e-3)
    known = {"sqrt": 2 * (101**0.5 - 1), "power": 4 * (101**0.25 - 1), "log": np.log(101), "asinh": np.arcsinh(100)}
    if name in known:
        assert float(STRETCHES[name](torch.tensor(100.0))) == pytest.approx(known[name], rel=1e-5)


def test_the_noise_of_an_image_is_measured_beside_its_light() -> None:
    images = _images(20, channels=2, size=60, noise=2.0)
    assert torch.allclose(noise_of(images), torch.tensor(2.0), rtol=0.25)
    assert noise_of(torch.randn(5, 1, 100, 100) * 3).flatten().tolist() == pytest.approx([3.0] * 5, rel=0.05)
    scaled = Preprocessor(Preprocess(scale="per_image", stretch="none", normalise="none"), ImageInfo(2, 60, 60))
    assert torch.allclose(scaled(images), scaled(1000 * images), rtol=1e-4)


def test_a_round_galaxy_is_subtracted_and_an_arc_is_not() -> None:
    y, x = torch.meshgrid(*2 * [torch.arange(41) - 20.0], indexing="ij")
    galaxy = 100 * torch.exp(-torch.hypot(x, y) / 6)
    arc = 20 * torch.exp(-(((x - 10) ** 2 + y**2) / 8))
    subtracted = Preprocessor(Preprocess(subtract="radial", stretch="none", normalise="none"), ImageInfo(1, 41, 41))
    left = subtracted((galaxy + arc)[None, None])[0, 0]
    assert float(subtracted(galaxy[None, None]).abs().max()) < 12  # of 100, in the cusp
    assert float(left[20, 30]) == pytest.approx(20, rel=0.15)
    turned = subtracted((galaxy + arc).rot90()[None, None])[0, 0]
    assert torch.allclose(turned, left.rot90(), atol=1e-3)


def test_min_max_fills_the_range() -> None:
    made = Preprocessor.fit(Preprocess(normalise="min_max"), INFO, [_images()])
    out = made(_images())
    assert torch.allclose(out.amax((1, 2, 3)), torch.ones(50), atol=1e-5)
    assert torch.allclose(out.amin((1, 2, 3)), -torch.ones(50), atol=1e-5)
