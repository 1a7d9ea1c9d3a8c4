"""Ray shooting: sums, chunks, the magnification as a Jacobian."""

import shutil
from dataclasses import replace

import pytest
import torch

from deeplense.lensing import raytrace
from deeplense.lensing.raytrace import Component


def lens(B: int = 2, N: int = 7) -> list[Component]:
    g = torch.Generator().manual_seed(3)
    one = torch.ones(B, 1, dtype=torch.float64)
    sie = {"theta_E": 1.3 * one, "e1": 0.1 * one, "e2": -0.05 * one, "center_x": 0 * one, "center_y": 0 * one}
    halos = {k: torch.rand(B, N, generator=g, dtype=torch.float64) for k in ("theta_E2", "center_x", "center_y")}
    halos["theta_E2"] = halos["theta_E2"] * 1e-3
    return [
        Component("sie", sie),
        Component("shear", {"gamma1": 0.05 * one, "gamma2": 0.01 * one}),
        Component("point_mass", halos),
    ]


def test_open_grid_equals_full_grid() -> None:
    x, y = raytrace.grid(16, 0.2, "cpu", torch.float64)
    full = raytrace.deflection(x.expand(2, 16, 16), y.expand(2, 16, 16), lens())
    for a, b in zip(raytrace.deflection(x, y, lens()), full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = raytrace.grid(16, 0.2, "cpu", torch.float64)
    whole = raytrace.deflection(x, y, lens())
    monkeypatch.setattr(raytrace, "CHUNK", 600)
    for a, b in zip(raytrace.deflection(x, y, lens()), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def halos(N: int = 9) -> list[Component]:
    g = torch.Generator().manual_seed(4)
    params = {k: torch.rand(2, N, generator=g) for k in ("R_s", "alpha_Rs", "r_trunc", "center_x", "center_y")}
    return [
        Component("tnfw", {k: v + 0.05 for k, v in params.items()}, torch.arange(N)[None] < torch.tensor([[N], [4]]))
    ]


def fused(mass: list[Component]) -> list[Component]:
    raytrace._fused.cache_clear()
    return [replace(c, fused=True) for c in mass]


def test_fused_sum_is_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its formulas and chunks, left to run without the compiler, which takes too long here."""
    x, y = raytrace.grid(16, 0.2, "cpu", torch.float32)
    whole = raytrace.deflection(x, y, halos())
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: lambda *a: calls.append(1) or f(*a))
    for elements, number in ((raytrace.FUSED, 1), (2 * 256 * 4, 3)):
        monkeypatch.setattr(raytrace, "FUSED", elements)
        calls.clear()
        for a, b in zip(raytrace.deflection(x, y, fused(halos())), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert len(calls) == number
    calls.clear()
    raytrace.deflection(x, y.clone().requires_grad_(), fused(halos()))
    assert not calls  # gradients take the eager path
    raytrace._fused.cache_clear()


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a compiler")
def test_fused_sum_compiles() -> None:
    x, y = raytrace.grid(16, 0.2, "cpu", torch.float64)
    whole = raytrace.deflection(x, y, lens())
    for a, b in zip(raytrace.deflection(x, y, fused(lens())), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    raytrace._fused.cache_clear()


def test_grid_is_centred() -> None:
    x, y = raytrace.grid(5, 0.1, "cpu", torch.float64)
    torch.testing.assert_close(x[0, 0], torch.tensor([-0.2, -0.1, 0, 0.1, 0.2], dtype=torch.float64))
    assert y.shape == (1, 5, 1)


def test_magnification_is_the_inverse_jacobian_determinant() -> None:
    x = torch.tensor([[[0.3, 1.9, -2.5]]], dtype=torch.float64).expand(2, 1, 3).clone()
    y = torch.tensor([[[1.7, -0.2, 0.6]]], dtype=torch.float64).expand(2, 1, 3).clone()
    mu = raytrace.magnification(x, y, lens())
    h = 1e-6

    def beta(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        alpha = raytrace.deflection(x, y, lens())
        return torch.stack([x - alpha[0], y - alpha[1]])

    dx, dy = (beta(x + h, y) - beta(x - h, y)) / (2 * h), (beta(x, y + h) - beta(x, y - h)) / (2 * h)
    torch.testing.assert_close(mu, 1 / (dx[0] * dy[1] - dx[1] * dy[0]), rtol=1e-6, atol=0)


def test_isothermal_magnification_in_closed_form() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    sis = Component("sie", {"theta_E": one, "e1": 0 * one, "e2": 0 * one, "center_x": 0 * one, "center_y": 0 * one})
    x, y = torch.tensor([[[2.0, 0.5, 0.3]]]).double(), torch.tensor([[[0.5, 1.6, -0.4]]]).double()
    r = torch.hypot(x, y)
    torch.testing.assert_close(raytrace.magnification(x, y, [sis]), 1 / (1 - 1 / r), rtol=1e-9, atol=0)
