"""Every deflector against an independent oracle: lenstronomy, a closed form, or a quadrature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel
from scipy import integrate
from torch import Tensor

from deeplense.lensing import raytrace
from deeplense.lensing.mass import MASS
from deeplense.lensing.raytrace import Component

Oracle = Callable[[np.ndarray, np.ndarray, dict[str, float]], tuple[np.ndarray, np.ndarray]]


Params = dict[str, float]


class Lenstronomy:
    """The oracle of a profile that lenstronomy has, with what its parameters are in terms of ours."""

    def __init__(self, name: str, translate: Callable[[Params], Params] = dict) -> None:
        self.model, self.translate = LensModel([name]), translate

    def __call__(self, x: np.ndarray, y: np.ndarray, p: Params) -> tuple[np.ndarray, np.ndarray]:
        return self.model.alpha(x, y, [self.translate(p)])

    def kappa(self, x: np.ndarray, y: np.ndarray, p: Params) -> np.ndarray:
        return self.model.kappa(x, y, [self.translate(p)])


def point(p: Params) -> Params:
    return {k: v for k, v in p.items() if k != "theta_E2"} | {"theta_E": p["theta_E2"] ** 0.5}


def sheet(p: Params) -> Params:
    return {"kappa": p["kappa"], "ra_0": p["center_x"], "dec_0": p["center_y"]}


def halo(p: Params) -> Params:
    return {"Rs" if k == "R_s" else k: v for k, v in p.items()}


def plummer(p: Params) -> Params:
    """lenstronomy's Uldm is Plummer's sphere at the slope 5/2, where a = 2^0.4 − 1; κ(0) = θ_E²/r_s²."""
    core = {"kappa_0": p["theta_E2"] / p["r_s"] ** 2, "theta_c": p["r_s"] * (2**0.4 - 1) ** 0.5, "slope": 2.5}
    return core | {k: p[k] for k in ("center_x", "center_y")}


def line(x: np.ndarray, y: np.ndarray, p: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre quadrature of point masses along the line, in many panels."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = np.linspace(-1, 1, 201)
    along = ((edges[1:] + edges[:-1])[:, None] + nodes * np.diff(edges)[:, None]).ravel() / 2 * p["half_length"]
    weight = np.repeat(weights[None], 200, 0).ravel() / 400 * p["theta_E2"]
    dx = x[:, None] - p["center_x"] - along * np.cos(p["angle"])
    dy = y[:, None] - p["center_y"] - along * np.sin(p["angle"])
    r2 = dx**2 + dy**2
    return (weight * dx / r2).sum(1), (weight * dy / r2).sum(1)


def square(x: np.ndarray, y: np.ndarray, p: Params) -> tuple[np.ndarray, np.ndarray]:
    """Adaptive quadrature over strips, of the point mass integrated along a strip."""

    def along(u: float, w: float, a: float) -> float:
        """∫ (u − u')/((u − u')² + w'²) du' integrated over w' in w ± a, by quadrature."""
        strip = lambda v: 0.5 * np.log(((u + a) ** 2 + v**2) / ((u - a) ** 2 + v**2))  # noqa: E731
        breaks = [b for b in (0.0,) if w - a < b < w + a] or None
        return integrate.quad(strip, w - a, w + a, points=breaks, epsabs=1e-12, epsrel=1e-11, limit=200)[0]

    u, w, a = x - p["center_x"], y - p["center_y"], p["half_width"]
    alpha = [[p["kappa"] / np.pi * along(*pair, a) for pair in zip(*order, strict=True)] for order in ((u, w), (w, u))]
    return np.array(alpha[0]), np.array(alpha[1])


def wave(x: np.ndarray, y: np.ndarray, p: Params) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of ψ = −2κ/k² cos(k·θ + φ) by complex steps, which lose no digits."""

    def psi(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        k2 = p["k_x"] ** 2 + p["k_y"] ** 2
        return -2 * p["kappa"] / k2 * np.cos(p["k_x"] * x + p["k_y"] * y + p["phase"])

    h = 1e-30
    return psi(x + 1j * h, y + 0j).imag / h, psi(x + 0j, y + 1j * h).imag / h


def softened(x: np.ndarray, y: np.ndarray, p: Params) -> tuple[np.ndarray, np.ndarray]:
    """lenstronomy's TNFW, its mean convergence taken at √(r² + r_core²)."""
    plain = halo({k: v for k, v in p.items() if k not in ("r_core", *CENTER)})
    dx, dy = x - p["center_x"], y - p["center_y"]
    r = np.sqrt(dx**2 + dy**2 + p["r_core"] ** 2)
    ratio = LensModel(["TNFW"]).alpha(r, 0 * r, [plain | {"center_x": 0, "center_y": 0}])[0] / r
    return ratio * dx, ratio * dy


CENTER = {"center_x": 0.03, "center_y": -0.07}
CASES: dict[str, tuple[Oracle, list[dict[str, float]]]] = {
    "sie": (
        Lenstronomy("SIE"),
        [{"theta_E": t, "e1": e1, "e2": e2, **CENTER}
         for t, e1, e2 in [(1.0, 0.1, 0.0), (1.6, -0.2, 0.3), (0.4, 0.0, 0.0), (1.2, 1e-5, -1e-5), (1.2, 3e-4, 0.0),
                           (2.0, -0.4, -0.3)]],
    ),
    "shear": (Lenstronomy("SHEAR"), [{"gamma1": 0.05, "gamma2": -0.02}]),
    "point_mass": (Lenstronomy("POINT_MASS", point), [{"theta_E2": 0.08, **CENTER}, {"theta_E2": 3e-6, **CENTER}]),
    "line_mass": (
        line,
        [{"theta_E2": 0.083, "half_length": L, "angle": a, **CENTER}
         for L, a in [(3.0, 0.4), (0.3, 2.0), (0.03, -1.0)]],
    ),
    "epl": (
        Lenstronomy("EPL"),
        [{"theta_E": t, "gamma": g, "e1": e1, "e2": e2, **CENTER}
         for t, g, e1, e2 in [(1.0, 2.0, 0.1, 0.0), (1.6, 2.3, -0.2, 0.3), (0.4, 1.7, 0.0, 0.0), (1.2, 1.1, 0.3, 0.2),
                              (1.2, 2.9, 0.3, -0.44), (2.0, 1.1, -0.538, 0.0), (0.7, 2.05, 1e-5, 1e-5)]],
    ),
    "multipole": (
        Lenstronomy("MULTIPOLE", lambda p: p | {"m": int(p["m"])}),
        [{"m": m, "a_m": a, "phi_m": phi, **CENTER}
         for m, a, phi in [(3.0, 0.02, 0.3), (4.0, -0.05, -1.0), (2.0, 0.1, 2.0)]],
    ),
    "mass_sheet": (Lenstronomy("CONVERGENCE", sheet), [{"kappa": k, **CENTER} for k in (0.05, -0.01)]),
    "square_sheet": (square, [{"kappa": -0.01, "half_width": a, **CENTER} for a in (2.5, 0.3)]),
    "plane_wave": (
        wave,
        [{"kappa": 0.01, "k_x": a, "k_y": b, "phase": f} for a, b, f in [(3.0, -2.0, 1.0), (0.0, 40.0, -2.0)]],
    ),
    "plummer": (
        Lenstronomy("ULDM", plummer),
        [{"theta_E2": t, "r_s": r, **CENTER} for t, r in [(1e-3, 0.1), (1.0, 0.02), (0.2, 5.0)]],
    ),
    "nfw": (
        Lenstronomy("NFW", halo),
        [{"R_s": R, "alpha_Rs": a, **CENTER} for R, a in [(0.1, 1e-3), (0.7, 0.2), (10.0, 2.0)]],
    ),
    "tnfw": (
        Lenstronomy("TNFW", halo),
        [{"R_s": R, "alpha_Rs": a, "r_trunc": R * tau, **CENTER}
         for R, a, tau in [(0.1, 1e-3, 5.0), (0.03, 1e-4, 100.0), (0.7, 0.2, 0.3), (0.5, 0.2, 1.0), (0.5, 0.1, 0.999)]],
    ),
    "ctnfw": (
        softened,
        [{"R_s": R, "alpha_Rs": a, "r_trunc": R * tau, "r_core": R * b, **CENTER}
         for R, a, tau, b in [(0.1, 1e-3, 5.0, 0.3), (0.7, 0.2, 0.3, 0.01), (0.05, 1e-2, 50.0, 3.0)]],
    ),
    "cnfw": (
        Lenstronomy("CNFW", halo),
        [{"R_s": R, "alpha_Rs": a, "r_core": R * b, **CENTER}
         for R, a, b in [(0.1, 1e-3, 0.1), (0.1, 0.1, 0.01), (0.7, 0.2, 0.5), (0.3, 0.2, 0.75), (0.3, 0.2, 3.0)]],
    ),
    "soliton": (
        Lenstronomy("ULDM"),
        [{"kappa_0": k, "theta_c": t, **CENTER} for k, t in [(0.05, 0.1), (0.5, 0.01), (0.01, 2.0)]],
    ),
}  # fmt: skip


def evaluate(name: str, x: Tensor, y: Tensor, p: dict[str, float]) -> tuple[Tensor, Tensor]:
    component = Component(name, {k: x.new_full((1, 1), v) for k, v in p.items()})
    ax, ay = raytrace.deflection(x[None, None], y[None, None], [component])
    return ax[0, 0], ay[0, 0]


def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    radius, angle = 10 ** rng.uniform(-3, 1.5, 500), rng.uniform(0, 2 * np.pi, 500)
    return radius * np.cos(angle) + 0.03, radius * np.sin(angle) - 0.07


def test_every_profile_has_an_oracle() -> None:
    assert set(CASES) == set(MASS)


@pytest.mark.parametrize("name", MASS)
def test_deflection(name: str) -> None:
    oracle, cases = CASES[name]
    x, y = points()
    for p in cases:
        ax, ay = evaluate(name, torch.from_numpy(x), torch.from_numpy(y), p)
        bx, by = oracle(x, y, p)
        size = np.hypot(bx, by)
        error = np.hypot(ax.numpy() - bx, ay.numpy() - by) / size
        if name == "line_mass":  # next to the line the quadrature fails, not the closed form
            u = (x - 0.03) * np.cos(p["angle"]) + (y + 0.07) * np.sin(p["angle"])
            v = (y + 0.07) * np.cos(p["angle"]) - (x - 0.03) * np.sin(p["angle"])
            error = error[np.hypot(np.maximum(np.abs(u) - p["half_length"], 0), v) > 2e-3 * p["half_length"]]
            assert len(error) > 400
        if name == "cnfw":  # nearer to the centre lenstronomy's arctanh loses digits; test_limits.py goes there
            error = error[np.hypot(x - p["center_x"], y - p["center_y"]) > 0.03 * p["R_s"]]
            assert len(error) > 300
        assert error.max() < 1e-6, (p, error.max())


@pytest.mark.parametrize("name", MASS)
def test_float32_and_gradients_are_finite(name: str) -> None:
    x, y = (torch.from_numpy(v).float() for v in points())
    if name in ("square_sheet", "plane_wave"):  # images only: far away float32 has no digits of the phase, of the rest
        x, y = (v[torch.hypot(x, y) < 3] for v in (x, y))
    for p in CASES[name][1]:
        params = {k: torch.full((1, 1), v, requires_grad=True) for k, v in p.items()}
        ax, ay = raytrace.deflection(x[None, None], y[None, None], [Component(name, params)])
        (ax.sum() + ay.sum()).backward()
        ax, ay = ax.detach(), ay.detach()
        exact = evaluate(name, x.double(), y.double(), p)
        floor = 0.1 if name == "square_sheet" else 1e-3  # near its middle the four corners cancel
        size = torch.hypot(*exact) + floor * torch.hypot(*exact).median()
        assert float((torch.hypot(ax[0, 0] - exact[0], ay[0, 0] - exact[1]) / size).max()) < 2e-4
        circular = p.get("e1") == 0 and p.get("e2") == 0  # φ has no derivative where there is no ellipse
        assert circular or all(bool(torch.isfinite(v.grad).all()) for v in params.values() if v.grad is not None)


@pytest.mark.parametrize("name", MASS)
def test_masked_entries_do_nothing(name: str) -> None:
    p = CASES[name][1][0]
    x, y = (
        torch.linspace(-2, 2, 9, dtype=torch.float64)[None, None],
        torch.linspace(-1, 2, 9).double()[None, None],
    )
    params = {k: torch.full((1, 3), v, dtype=torch.float64) for k, v in p.items()}
    masked = Component(name, params, torch.tensor([[True, False, False]]))
    single = Component(name, {k: v[:, :1] for k, v in params.items()})
    for a, b in zip(raytrace.deflection(x, y, [masked]), raytrace.deflection(x, y, [single]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", [n for n in MASS if isinstance(CASES[n][0], Lenstronomy)])
def test_convergence_is_half_the_divergence(name: str) -> None:
    oracle, cases = CASES[name]
    radius, angle = np.logspace(-2, 1.2, 60), np.linspace(0, 40, 60)
    x, y = radius * np.cos(angle) + CENTER["center_x"], radius * np.sin(angle) + CENTER["center_y"]
    for p in cases:
        if p.get("r_core") == p.get("R_s", 0) * 0.75:
            continue  # next to r = r_core lenstronomy's κ is a constant
        at = [torch.from_numpy(v).requires_grad_() for v in (x, y)]
        ax, ay = evaluate(name, *at, p)
        kappa = 0.5 * (torch.autograd.grad(ax.sum(), at, retain_graph=True)[0] + torch.autograd.grad(ay.sum(), at)[1])
        expected = oracle.kappa(x, y, p)
        mean = torch.hypot(ax, ay).detach().numpy() / radius
        error = np.abs(kappa.detach().numpy() - expected)
        # lenstronomy softens its SIE; the truncated series of ours differentiated
        floor = {"sie": 1e-4, "epl": 1e-6}.get(name, 1e-9)
        np.testing.assert_array_less(error, 1e-6 * np.abs(expected) + floor * mean, err_msg=str(p))


@pytest.mark.parametrize("name", MASS)
def test_gradients_are_the_finite_differences(name: str) -> None:
    """Positions and every parameter; one point inside, one outside what scales the profile has."""
    x, y = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.05, 0.4, -1.5], [-0.06, 0.3, 0.7]))
    for p in CASES[name][1]:
        if p.get("e1") == 0 and p.get("e2") == 0:
            continue  # φ has no derivative where there is no ellipse
        params = [torch.full((1, 1), v, dtype=torch.float64, requires_grad=True) for v in p.values()]

        def alpha(x: Tensor, y: Tensor, *values: Tensor, names: tuple[str, ...] = tuple(p)) -> tuple[Tensor, Tensor]:
            component = Component(name, dict(zip(names, values, strict=True)))
            return raytrace.deflection(x[None, None], y[None, None], [component])

        small = abs(p.get("e1", 1.0)) < 1e-3 and abs(p.get("e2", 1.0)) < 1e-3  # φ turns within |e|
        assert torch.autograd.gradcheck(
            alpha, (x, y, *params), eps=1e-9 if small else 1e-7, atol=1e-5, rtol=1e-3 if small else 1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MASS)
def test_the_centre_is_finite(name: str, dtype: torch.dtype) -> None:
    for p in CASES[name][1]:
        if p.get("e1") == 0 and p.get("e2") == 0:
            continue
        params = {k: torch.full((1, 1), v, dtype=dtype, requires_grad=True) for k, v in p.items()}
        at = [torch.full((1, 1, 1), p.get(k, 0.0), dtype=dtype, requires_grad=True) for k in ("center_x", "center_y")]
        ax, ay = raytrace.deflection(*at, [Component(name, params)])
        grads = torch.autograd.grad(ax.sum() + ay.sum(), [*at, *params.values()])
        if name in ("point_mass", "line_mass"):  # truly singular
            grads = ()
        assert all(bool(torch.isfinite(v).all()) for v in (ax, ay, *grads)), (p, ax, ay, grads)


def test_line_is_the_limit_of_points() -> None:
    p = CASES["line_mass"][1][0]
    along = p["half_length"] * (np.arange(4000) + 0.5) / 2000 - p["half_length"]
    x, y = torch.tensor([0.5, 2.0, -4.0]).double(), torch.tensor([1.0, -0.7, 0.2]).double()
    params = {
        "theta_E2": torch.full((1, 4000), p["theta_E2"] / 4000).double(),
        "center_x": torch.from_numpy(0.03 + along * np.cos(p["angle"]))[None],
        "center_y": torch.from_numpy(-0.07 + along * np.sin(p["angle"]))[None],
    }
    summed = raytrace.deflection(x[None, None], y[None, None], [Component("point_mass", params)])
    closed = evaluate("line_mass", x, y, p)
    for a, b in zip(summed, closed, strict=True):
        torch.testing.assert_close(a[0, 0], b, rtol=1e-6, atol=1e-9)


def test_line_on_itself_and_at_its_ends_is_finite() -> None:
    p = {"theta_E2": 0.1, "half_length": 1.0, "angle": 0.0, "center_x": 0.0, "center_y": 0.0}
    x = torch.tensor([0.0, 0.5, 1.0, -1.0, 2.0])
    ax, ay = evaluate("line_mass", x, torch.zeros(5), p)
    assert bool(torch.isfinite(ax).all() and torch.isfinite(ay).all())
    assert float(ax[0]) == 0
    assert float(ax[4]) == pytest.approx(0.1 / 4 * np.log(9), rel=1e-5)


def test_sie_mass_inside_its_einstein_radius() -> None:
    """κ = ½∇·α integrates to the mean of one inside θ_E of a circular lens (Gauss's theorem around the circle)."""
    phi = torch.linspace(0, 2 * np.pi, 721)[:-1].double()
    x, y = 1.3 * torch.cos(phi), 1.3 * torch.sin(phi)
    ax, ay = evaluate("sie", x, y, {"theta_E": 1.3, "e1": 0.0, "e2": 0.0, "center_x": 0.0, "center_y": 0.0})
    assert float((ax * torch.cos(phi) + ay * torch.sin(phi)).mean() / 1.3) == pytest.approx(1, abs=1e-12)


def test_a_square_sheet_is_uniform_inside_and_nothing_outside() -> None:
    p = {"kappa": -0.02, "half_width": 1.0, "center_x": 0.1, "center_y": 0.0}
    inside = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.1, -0.5, 1.05], [0.0, 0.9, -0.95])]
    outside = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([1.2, 5.0, 0.0], [0.0, 5.0, 1.01])]
    for at, kappa in ((inside, -0.02), (outside, 0.0)):
        ax, ay = evaluate("square_sheet", *at, p)
        div = torch.autograd.grad(ax.sum(), at, retain_graph=True)[0] + torch.autograd.grad(ay.sum(), at)[1]
        np.testing.assert_allclose(0.5 * div.numpy(), kappa, atol=1e-12)


def test_a_cored_truncated_halo_keeps_its_mass() -> None:
    p = {"R_s": 0.1, "alpha_Rs": 1e-3, "r_trunc": 0.5, "center_x": 0.0, "center_y": 0.0}
    far = torch.tensor([300.0], dtype=torch.float64)
    plain = evaluate("tnfw", far, 0 * far, p)[0]
    torch.testing.assert_close(evaluate("ctnfw", far, 0 * far, p | {"r_core": 0.08})[0], plain, rtol=1e-4, atol=0)
    near = torch.tensor([0.01], dtype=torch.float64)
    assert (
        float(evaluate("ctnfw", near, 0 * near, p | {"r_core": 0.08})[0] / evaluate("tnfw", near, 0 * near, p)[0]) < 0.5
    )
