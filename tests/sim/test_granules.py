"""Interference granules of fuzzy dark matter, against constants of nature and against waves that interfere in 3-D."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from astropy import constants, units
from hosts import make_host
from numpy.typing import NDArray
from scipy import stats
from scipy.special import exp1

from deeplense.lensing import cosmology, raytrace
from deeplense.lensing.raytrace import Component
from deeplense.sim.substructure import galaxy
from deeplense.sim.substructure.fuzzy import WAVES, FuzzyDarkMatter

Array = NDArray[Any]
D = cosmology.distances(0.5, 1.5)
SPEED = np.sqrt(np.radians(1.2 / 3600) * D.D_s / D.D_ls / (4 * np.pi)) * constants.c  # of an isothermal lens of 1.2″


def granules(n: int, log10_m: float, half_width: float = 3.2) -> tuple[Component, float, float]:
    """The field, and σ and ħ/(m v) [arcsec] that it shall have."""
    lenses = make_host(n, 0.5, 1.5)
    object.__setattr__(lenses, "half_width", half_width)
    truth = {"log10_m_uldm": np.full((n, 1), log10_m), "granule_seed": np.arange(n, dtype=float)[:, None]}
    main = galaxy.MainHalo.of(np.full((n, 1), 13.0), lenses)
    field = FuzzyDarkMatter().granule_field(truth, lenses, main)
    length = (constants.hbar / (10**log10_m * units.eV / constants.c**2 * SPEED)).to(units.kpc).value
    rho_s, r_s, r200 = (float(x[0, 0]) for x in (main.rho_s, main.r_s, main.r200))
    z = np.linspace(-r200, r200, 400001)
    x = np.hypot(z, 1.2 * D.kpc_per_arcsec) / r_s
    column = np.trapezoid((rho_s / (x * (1 + x) ** 2)) ** 2, z)
    return field, float(np.sqrt(np.sqrt(np.pi) * length * column) / D.sigma_cr), length / D.kpc_per_arcsec


def kappa(field: Component, x: torch.Tensor) -> torch.Tensor:
    """κ of n fields at points (P,) of the x axis, (n, P)."""
    p = {k: v[..., None] for k, v in field.params.items()}
    rows = zip(p["kappa"], p["k_x"], p["phase"], strict=True)
    return torch.stack([(one * torch.cos(k * x + f)).sum(0) for one, k, f in rows])


@pytest.mark.parametrize("log10_m", [-22.0, -21.5, -21.0])
def test_granules_have_the_variance_and_size_of_a_maxwellian_field(log10_m: float) -> None:
    field, sigma, length = granules(3000, log10_m)
    steps = torch.linspace(0.7, 1.3, 7, dtype=torch.float64)
    places = 6 * torch.arange(10, dtype=torch.float64)
    at = (places[:, None] + torch.cat([torch.zeros(1), steps])) * length
    seen = kappa(field, at.flatten()).unflatten(1, at.shape)
    assert float(seen.square().mean()) == pytest.approx(sigma**2, rel=0.02)
    correlation = (seen[..., :1] * seen[..., 1:]).mean((0, 1)).numpy() / sigma**2
    radius = np.interp(-np.exp(-1), -correlation, steps.numpy())
    assert radius == pytest.approx(1, rel=0.02)
    one = seen[:, 0, 0].numpy()
    assert stats.kstest(one / one.std(), stats.norm.cdf).pvalue > 0.01


def interfering(boxes: int, cells: int = 64, length: float = 2.0) -> Array:
    """Mean power spectrum of Σ/⟨Σ⟩ − 1 through periodic boxes of waves of a Maxwellian distribution, |k| along [0]."""
    generator = np.random.default_rng(0)
    k = 2 * np.pi * np.fft.fftfreq(cells)
    square = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    amplitude = np.exp(-square * length**2 / 4)  # |amplitude|² ∝ exp(−u²/2v²) of waves of the speed u = ħk/m
    power = np.zeros((cells, cells))
    for _ in range(boxes):
        noise = generator.standard_normal((2, cells, cells, cells))
        psi = np.fft.ifftn(amplitude * (noise[0] + 1j * noise[1]))
        density = np.abs(psi) ** 2
        power += np.abs(np.fft.fft2(density.sum(0) / density.mean())) ** 2
    power[0, 0] = 0
    return np.asarray(power / boxes / cells**2)


def test_spectrum_and_deflections_are_those_of_waves_that_interfere() -> None:
    """σ² of a column of depth L is √π λ L ρ²; both fields in units of it and of λ, power in rings of kλ."""
    cells, length = 64, 2.0
    power = interfering(60, cells, length) / (np.sqrt(np.pi) * length * cells)
    k = 2 * np.pi * np.hypot(*np.meshgrid(*[np.fft.fftfreq(cells)] * 2)) * length
    edges = np.array([0.9, 1.5, 2.0, 2.5, 3.0])
    field, sigma, unit = granules(400, -20.0, half_width=np.pi / 0.4 * granules(1, -20.0)[2])
    p = {name: v.numpy() for name, v in field.params.items()}
    waves = np.hypot(p["k_x"], p["k_y"]) * unit
    assert waves.min() == pytest.approx(0.4, rel=0.05)
    variance = p["kappa"] ** 2 / 2 / sigma**2 / len(waves)
    theirs, ours, alpha = [], [], np.zeros(2)
    for low, high in itertools.pairwise(edges):
        ring, some = (k >= low) & (k < high), (waves >= low) & (waves < high)
        area = np.pi * (high**2 - low**2)
        theirs.append(power[ring].mean() / (2 * np.pi * length) ** 2 * area)  # variance in the ring
        ours.append(variance[some].sum())
        alpha[0] += area * (power[ring] / k[ring] ** 2).mean() / (2 * np.pi * length) ** 2
        alpha[1] += (variance / waves**2)[some].sum()
    np.testing.assert_allclose(ours, theirs, rtol=0.03)
    assert np.sqrt(alpha[1] / alpha[0]) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("log10_m", [-22.0, -20.0])
def test_deflections_add_up_to_the_spectrum_and_no_wave_holds_many(log10_m: float) -> None:
    """⟨α²⟩ = σ² λ² E₁(k²λ²/4) from the longest wave k on."""
    field, sigma, length = granules(300, log10_m)
    p = field.params
    each = (2 * p["kappa"] ** 2 / (p["k_x"] ** 2 + p["k_y"] ** 2)).numpy()
    expected = sigma**2 * length**2 * exp1((np.pi / 3.2 * length) ** 2 / 4)
    assert np.sqrt(each.sum(1).mean()) == pytest.approx(np.sqrt(expected), rel=0.03)
    assert each.max() < 4 / WAVES * each.sum(1).mean()


def test_the_deflection_is_that_of_the_convergence_on_a_grid_and_off_it() -> None:
    """2κ = ∇·α by finite differences."""
    field, sigma, length = granules(5, -22.0)
    h = 1e-4 * length
    row = torch.tensor([0.4 - h, 0.4 + h, 0.4], dtype=torch.float64)
    column = torch.tensor([-h, h, 0.0], dtype=torch.float64)
    on = raytrace.deflection(row[None, None], column[None, :, None], [field])
    off = raytrace.deflection(row.expand(1, 3, 3), column[:, None].expand(1, 3, 3), [field])
    for a, b in zip(on, off, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-16)
    divergence = (on[0][:, 2, 1] - on[0][:, 2, 0] + on[1][:, 1, 2] - on[1][:, 0, 2]) / (2 * h)
    here = kappa(field, torch.tensor([0.4], dtype=torch.float64))[:, 0]
    np.testing.assert_allclose(divergence / 2, here, rtol=1e-3, atol=1e-3 * sigma)
