"""The same `Scene` through lenstronomy: `engine: lenstronomy`, and the oracle of our own renderer.

Needs `pip install deeplense[reference]`. One image at a time and far slower than `image.render`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from astropy.cosmology import FlatwCDM
from numpy.typing import NDArray
from torch import Tensor

from deeplense.errors import UserError
from deeplense.lensing import raytrace
from deeplense.lensing.mass import MASS as PROFILES
from deeplense.lensing.multiplane import Planes
from deeplense.lensing.raytrace import Component
from deeplense.sim.instrument import Instrument
from deeplense.sim.psf import moffat
from deeplense.sim.scene import Scene

try:
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel
except ImportError:
    ImageModel = None

Profile = tuple[str, dict[str, float]]
Params = dict[str, float]


def _as_is(p: Params) -> Params:
    return p


def _point(p: Params) -> Params:
    return _without(p, "theta_E2") | {"theta_E": p["theta_E2"] ** 0.5}


def _halo(p: Params) -> Params:
    return _without(p, "R_s") | {"Rs": p["R_s"]}


def _sheet(p: Params) -> Params:
    return {"kappa": p["kappa"], "ra_0": p["center_x"], "dec_0": p["center_y"]}


def _plummer(p: Params) -> Params:
    """Uldm's ρ ∝ (1 + a r²/θ_c²)^−slope with 2^(1/slope) = 1 + a is Plummer's at the slope 5/2."""
    a = 2**0.4 - 1
    shape = {"kappa_0": p["theta_E2"] / p["r_s"] ** 2, "theta_c": p["r_s"] * a**0.5, "slope": 2.5}
    return _without(p, "theta_E2", "r_s") | shape


def _without(p: Params, *names: str) -> Params:
    return {k: v for k, v in p.items() if k not in names}


# our profile -> lenstronomy's, and its parameters from ours
MASS: dict[str, tuple[str, Callable[[Params], Params]]] = {
    "sie": ("SIE", _as_is),
    "epl": ("EPL", _as_is),
    "multipole": ("MULTIPOLE", lambda p: p | {"m": round(p["m"])}),
    "shear": ("SHEAR", _as_is),
    "mass_sheet": ("CONVERGENCE", _sheet),
    "point_mass": ("POINT_MASS", _point),
    "plummer": ("ULDM", _plummer),
    "line_mass": ("POINT_MASS", _as_is),  # replaced by `LineMass`
    "nfw": ("NFW", _halo),
    "tnfw": ("TNFW", _halo),
    "cnfw": ("CNFW", _halo),
    "soliton": ("ULDM", _as_is),
    **dict.fromkeys(("square_sheet", "plane_wave", "ctnfw"), ("POINT_MASS", _as_is)),  # replaced by `Own`
}


def _picture(p: dict[str, Any]) -> dict[str, Any]:
    pixels = p["pixels"] if p["flip"] > 0 else p["pixels"][:, ::-1]
    return _without(p, "pixels", "flip", "angle") | {"image": pixels, "phi_G": p["angle"]}


LIGHT: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "sersic": ("SERSIC_ELLIPSE", _as_is),
    "image": ("INTERPOL", _picture),
}


class LineMass:
    """The uniform line for lenstronomy, which has none: α* = θ_E²/(2L) ln[(z+L)/(z−L)], z complex along the line."""

    def derivatives(
        self,
        x: Any,
        y: Any,
        theta_E2: float,
        half_length: float,
        angle: float,
        center_x: float,
        center_y: float,
    ) -> tuple[Any, Any]:
        turn = np.exp(1j * angle)
        z = ((x - center_x) + 1j * (y - center_y)) / turn
        alpha = np.conj(theta_E2 / (2 * half_length) * np.log((z + half_length) / (z - half_length))) * turn
        return alpha.real, alpha.imag


class Own:
    """Our own deflector for lenstronomy, which has none like it."""

    def __init__(self, profile: str) -> None:
        self.profile = profile

    def derivatives(self, x: Any, y: Any, **params: float) -> tuple[Any, Any]:
        at_x, at_y = (torch.from_numpy(np.atleast_1d(v).astype(np.float64))[None, None] for v in (x, y))
        one = {k: torch.full((1, 1), v, dtype=torch.float64) for k, v in params.items()}
        alpha = raytrace.deflection(at_x, at_y, [Component(self.profile, one)])
        alpha_x, alpha_y = (a.numpy().reshape(np.shape(x)) for a in alpha)
        return alpha_x, alpha_y


REPLACED: dict[str, Callable[[], Any]] = {
    "line_mass": LineMass,
    **{name: functools.partial(Own, name) for name in ("square_sheet", "plane_wave", "ctnfw")},
}


def render(
    scene: Scene,
    size: int,
    pixel_scale: float,
    instrument: Instrument | Sequence[Instrument],
    supersampling: int = 1,
    psf: bool = True,
) -> Tensor:
    """Noiseless images by lenstronomy, (B, C, size, size) float64, counts/s a pixel.

    Args:
        instrument: of each of the scene's bands; one alone stands for itself.

    Raises:
        UserError: lenstronomy is not installed, or there is a quasar.
    """
    if ImageModel is None:
        raise UserError("engine lenstronomy: not installed; run pip install 'deeplense[reference]'")
    if scene.quasar is not None:
        raise UserError("engine lenstronomy: draws no quasars here; leave out simulation.quasar")
    instruments = [instrument] if isinstance(instrument, Instrument) else instrument
    args = size, pixel_scale
    bands = [
        [_render_one(scene.band(k), row, *args, each, supersampling, psf) for row in range(len(scene))]
        for k, each in enumerate(instruments)
    ]
    return torch.from_numpy(np.stack(bands, 1))


def _render_one(
    scene: Scene,
    row: int,
    size: int,
    pixel_scale: float,
    instrument: Instrument,
    supersampling: int,
    psf: bool,
) -> NDArray[np.float64]:
    start = -(size - 1) / 2 * pixel_scale
    data = ImageData(
        image_data=np.zeros((size, size)),
        ra_at_xy_0=start,
        dec_at_xy_0=start,
        transform_pix2angle=np.eye(2) * pixel_scale,
        background_rms=1.0,
        exposure_time=1.0,
    )
    kernel = None if scene.psf is None else scene.psf[row].numpy()
    if kernel is None and instrument.psf_beta is not None:
        kernel = moffat(instrument.psf_fwhm / pixel_scale, instrument.psf_beta).numpy()
    blur = (
        {"psf_type": "PIXEL", "kernel_point_source": kernel}
        if kernel is not None
        else {
            "psf_type": "GAUSSIAN",
            "fwhm": instrument.psf_fwhm,
            "pixel_size": pixel_scale,
            "truncation": instrument.psf_truncation,
        }
    )
    lens, kwargs_lens = _lens_model(scene, row)
    source, kwargs_source = _light_model(scene.source, row)
    front, kwargs_front = _light_model(scene.lens_light, row)
    model = ImageModel(
        data,
        PSF(**blur) if psf else PSF(psf_type="NONE"),
        lens_model_class=lens,
        source_model_class=source,
        lens_light_model_class=front,
        kwargs_numerics={
            "supersampling_factor": supersampling,
            "supersampling_convolution": supersampling > 1 and kernel is None,
        },
    )
    return np.asarray(model.image(kwargs_lens, kwargs_source, kwargs_lens_light=kwargs_front))


def _lens_model(scene: Scene, row: int) -> tuple[Any, list[dict[str, float]]]:
    names: list[str] = []
    kwargs: list[dict[str, float]] = []
    planes: list[int] = []
    replaced: dict[int, Any] = {}
    scale = float(scene.deflection_scale[row])
    apart = scene.planes is not None and not scene.planes.coupled
    for component in scene.mass:
        for params in _profiles(component, row):
            if component.profile in REPLACED:
                replaced[len(names)] = REPLACED[component.profile]()
            for strength in PROFILES[component.profile].strength:
                # every strength is linear in α, but for θ_E of a power law
                power = 1 / (params["gamma"] - 1) if component.profile == "epl" else 1.0
                params[strength] *= 1.0 if apart else scale**power
            name, convert = MASS[component.profile]
            names.append(name)
            kwargs.append(convert(params))
            planes.append(component.plane)
    if scene.planes is None or apart:
        model = LensModel(names)
        functions = model.lens_model.func_list
        if scene.planes is not None:
            model.ray_shooting = functools.partial(_decoupled, functions, scene.planes[row : row + 1], planes, scale)
    else:
        at = scene.planes[row : row + 1]
        redshifts = [float(at.z[0, at.front + k]) for k in planes]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells us to mind our cosmology
            model = LensModel(
                names,
                z_source=float(at.z_source),
                lens_redshift_list=redshifts,
                multi_plane=True,
                cosmo=FlatwCDM(H0=70, Om0=at.Om0, w0=at.w0),
            )
        functions = model.lens_model.multi_plane_base.func_list
    for position, profile in replaced.items():
        functions[position] = profile
    return model, kwargs


def _decoupled(
    functions: list[Any], at: Planes, planes: list[int], scale: float, x: Any, y: Any, kwargs: Any, **_: Any
) -> tuple[Any, Any]:
    """Rays where planes in front of the lens, and those behind it, do not see each other's deflections.

    With comoving distances D: x_l = θ − Σ_f (1 − D_f/D_l) α̂_f(θ), then straight on behind the lens.
    """
    z = dict(zip(sorted({0, *planes}), [float(at.z[0, at.front + k]) for k in sorted({0, *planes})], strict=True))
    cosmo = FlatwCDM(H0=70, Om0=at.Om0, w0=at.w0)
    D, D_s = ({k: cosmo.comoving_distance(v).value for k, v in z.items()}), cosmo.comoving_distance(float(at.z_source))
    theta, source = np.stack([x, y]), D_s.value

    def bend(k: int, where: NDArray[np.float64]) -> NDArray[np.float64]:
        """α̂ of a plane."""
        those = [i for i, plane in enumerate(planes) if plane == k]
        alpha = sum((np.stack(functions[i].derivatives(*where, **kwargs[i])) for i in those), np.zeros_like(where))
        return np.asarray(alpha * source / (source - D[k]))

    first = {k: bend(k, theta) for k in z if k < 0}
    first[0] = bend(0, theta - sum(((1 - D[k] / D[0]) * a for k, a in first.items()), np.zeros_like(theta)))
    bent = dict(first)
    for k in (k for k in z if k > 0):
        bent[k] = bend(k, theta - sum((1 - D[i] / D[k]) * a for i, a in first.items()))
    beta = theta - scale * sum((1 - D[k] / source) * a for k, a in bent.items())
    return beta[0], beta[1]


def _light_model(components: list[Component], row: int) -> tuple[Any, list[dict[str, float]]]:
    found = [(*LIGHT[c.profile], params) for c in components for params in _profiles(c, row)]
    return LightModel([name for name, _, _ in found]), [convert(params) for _, convert, params in found]


def _profiles(component: Component, row: int) -> list[dict[str, Any]]:
    n = next(iter(component.params.values())).shape[1]
    present = [k for k in range(n) if component.mask is None or bool(component.mask[row, k])]
    return [{name: _plain(value[row, k]) for name, value in component.params.items()} for k in present]


def _plain(value: Tensor) -> Any:
    return value.double().numpy() if value.ndim else float(value)
