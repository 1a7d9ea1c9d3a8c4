"""One image as a function of its named parameters: mean, derivatives by forward-mode autograd, variance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from deeplense import config
from deeplense.errors import UserError
from deeplense.lensing.cosmology import Distances, expansion2
from deeplense.lensing.light import sersic_flux
from deeplense.lensing.mass import MASS
from deeplense.lensing.raytrace import CENTER, Component
from deeplense.sim import image
from deeplense.sim.detector import NOTHING_MORE
from deeplense.sim.instrument import Instrument
from deeplense.sim.macro import MACRO
from deeplense.sim.scene import InBand, Scene
from deeplense.sim.world import World

Values = dict[str, Tensor]
VORTEX = ("log10_m_axion", "vortex_angle", "vortex_log10_mass", "vortex_x", "vortex_y")
LIGHTS = ("source", "lens_light")
SUBHALO = ("subhalo_log10_mass", "subhalo_x", "subhalo_y")


class Place(NamedTuple):
    """Where a subhalo lives."""

    distances: Distances
    z_lens: float
    H0: float
    Om0: float
    w0: float = -1.0


@dataclass(frozen=True)
class Subhalo:
    """One dark clump added to a scene: log10(M/M☉), position [arcsec], key of `SUBHALO_PROFILES`."""

    log10_mass: float
    x: float
    y: float
    profile: str = "point_mass"


class Forward:
    """The noiseless image of one scene, as a function of parameters known by name.

    Names are the recipe's: `lens.theta_E`, `lens.a4`, `lens.phi4`, …, `source.R_sersic`, …; brightness is
    `source.magnitude` where the instrument has a zero point, else `source.amplitude`; a vortex has `log10_m_axion`,
    `vortex_angle` [rad], `vortex_log10_mass`, its centre `vortex_x`, `vortex_y`, several are refused; an added subhalo
    `subhalo_log10_mass`, `subhalo_x`, `subhalo_y`. Clumps of a galaxy move with it; its magnitude is that of the rest.
    Other dark matter of the scene (a population of halos) stays as drawn.

    Of several bands the images lie one below the other, in the recipe's order: H counts the rows of all. A galaxy's
    magnitude is that in the first band, and `source.colours.F106-F129` what it differs by in the next.

    Attributes:
        values: name -> value in this scene; may be set. size, pixel_scale: of the image.
    """

    def __init__(self, world: World, scene: Scene, subhalo: Subhalo | None = None) -> None:
        """Args: scene: of length 1, e.g. `scenes[2][5:6]`."""
        if len(scene) != 1:
            raise UserError(f"one image was asked for, but the scene holds {len(scene)}; take scene[k:k+1]")
        if world.simulation.noise != "once":
            raise UserError(f"simulation.noise: {world.simulation.noise} has no likelihood here; set it to once")
        s = world.simulation
        bands = [scene.band(k) for k in range(1 + len(scene.more_bands))]
        if s.lens_envelope or s.scale_to_max or not all(map(_plain, bands, world.instruments)):
            raise UserError(
                "simulation: images, quasar, psf kernels, lens_envelope, lens_light_residual, cosmic_rays, bad_pixels, "
                "scale_to_max have no likelihood here; leave them out"
            )
        self.world, self.subhalo = world, subhalo
        c, z_lens = world.simulation.cosmology, float(scene.truth["z_lens"][0])
        self._place = Place(world.distances_of(scene)[0], z_lens, c.H0, c.Om0, c.w0)
        self.size, self.pixel_scale = world.size, world.pixel_scale
        self._scene = scene.to("cpu", torch.float64)
        self._bands = [self._scene.band(k) for k in range(len(bands))]
        self._vortex = self._lone_line(scene)
        self.values = self._read()
        self._drawn = dict(self.values)

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter of the image."""
        return tuple(self.values)

    def check(self, names: Sequence[str]) -> None:
        """Raises: UserError: a name that the scene does not have, with the nearest one that it has."""
        for name in names:
            if name not in self.values:
                raise UserError(f"parameter '{name}' is not in this image; {config.nearest(name, self.values)}")

    def render(self, changed: Values) -> Tensor:
        """Noiseless images [counts/s a pixel].

        Args:
            changed: name -> (B,); the other parameters keep the scene's values.

        Returns:
            (B, H, W) float64.
        """
        self.check(list(changed))
        n = len(next(iter(changed.values()))) if changed else 1
        values = {k: torch.full((n,), v, dtype=torch.float64) for k, v in self.values.items()} | changed
        supersampling = self.world.simulation.supersampling
        scene = self._build(values, n)
        return image.render(scene, self.size, self.pixel_scale, self.world.instruments, supersampling).flatten(1, 2)

    def derivatives(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The image and its derivatives by forward-mode autograd, one copy of the scene for each parameter.

        Returns:
            (H, W) and (P, H, W), float64.
        """
        self.check(names)
        base = {**self.values, **self._off_singular(names)}
        primal = {k: torch.full((len(names),), v, dtype=torch.float64) for k, v in base.items()}
        seed = torch.eye(len(names), dtype=torch.float64)
        with forward_ad.dual_level():
            dual = {n: forward_ad.make_dual(primal[n], seed[k]) for k, n in enumerate(names)}  # type: ignore[no-untyped-call]
            mean, tangent = forward_ad.unpack_dual(self.render({**primal, **dual}))  # type: ignore[no-untyped-call]
        return mean[0].clone(), torch.zeros_like(mean) if tangent is None else tangent

    def variance(self, mean: Tensor) -> Tensor:
        """σ² of the exposed image [(counts/s)²]: (model·t + (sky + dark)·t + n·RN²)/t²; a toy's rms² + model/t.

        Correlated noise is taken for white noise that is alike over large areas: the bounds are a little too wide.
        """
        each = zip(self.world.instruments, self._bands, strict=True)
        sigma = [i.background_sigma(self.pixel_scale, float(band.exposure)) for i, band in each]
        return self._rows(sigma) ** 2 + mean / self.exposure

    @property
    def exposure(self) -> Tensor:
        """Total exposure time [s], of one band a scalar, of several (H, 1)."""
        return self._rows([float(band.exposure) for band in self._bands])

    def _rows(self, of_bands: list[float]) -> Tensor:
        found = torch.tensor(of_bands, dtype=torch.float64)
        return found[0] if len(found) == 1 else found.repeat_interleave(self.size)[:, None]

    def _lone_line(self, scene: Scene) -> Component | None:
        """The vortex, if there is one. Raises: UserError: there are several, which have no names."""
        if "log10_m_axion" not in scene.truth:
            return None
        number = int(scene.truth["n_lines"][0])
        if number > 1:
            raise UserError(f"this image has {number} vortices; parameters are of one: take another, or number: 1")
        vortex = self._scene.mass[-1]
        if number and vortex.mask is not None:  # the others are padding
            vortex = vortex.only(vortex.mask)
            self._scene.mass[-1] = vortex
        return vortex if number else None

    def _read(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for component in self._scene.mass:
            p = component.params
            if component.profile == "multipole":
                theta_E = values["lens.theta_E"]
                for m, a, phi in zip(*(p[k][0].tolist() for k in ("m", "a_m", "phi_m")), strict=True):
                    values |= {f"lens.a{round(m)}": a / theta_E, f"lens.phi{round(m)}": phi}
            elif component.profile in MACRO:
                values |= {f"lens.{k}": float(v) for k, v in p.items()}
        for prefix in LIGHTS:
            every = [_galaxy(getattr(band, prefix)) for band in self._bands]
            if every[0] is not None:
                values |= {f"{prefix}.{k}": float(v) for k, v in every[0].params.items() if k != "amp"}
                bright = [self._from_amplitude(c, k) for k, c in enumerate(every) if c is not None]
                values[f"{prefix}.{self._brightness}"] = bright[0]
                values |= {
                    f"{prefix}.{name}": a - b for name, (a, b) in zip(self._colours, pairwise(bright), strict=True)
                }
        if self._vortex is not None:
            truth = {k: float(v) for k, v in self._scene.truth.items()}
            center = [float(self._vortex.params[f"center_{axis}"].mean()) for axis in "xy"]
            vortex = (truth["log10_m_axion"], truth["vortex_angle"], truth["log10_m_sub"], *center)
            values |= dict(zip(VORTEX, vortex, strict=True))
        if self.subhalo is not None:
            config.lookup(SUBHALO_PROFILES, self.subhalo.profile, "subhalo profile")
            if self.subhalo.profile not in MASS:
                raise UserError(f"subhalo profile '{self.subhalo.profile}' is not in this version's MASS")
            values |= dict(zip(SUBHALO, (self.subhalo.log10_mass, self.subhalo.x, self.subhalo.y), strict=True))
        return values

    @property
    def _brightness(self) -> str:
        return "amplitude" if self.world.instrument.zero_point is None else "magnitude"

    @property
    def _colours(self) -> list[str]:
        return [f"colours.{a}-{b}" for a, b in pairwise(self.world.bands)] if len(self._bands) > 1 else []

    def _from_amplitude(self, light: Component, band: int) -> float:
        p = light.params
        zero_point = self.world.instruments[band].zero_point
        if zero_point is None:
            return float(p["amp"])
        return zero_point - 2.5 * float(torch.log10(sersic_flux(p["amp"], p["R_sersic"], p["n_sersic"])))

    def _off_singular(self, names: Sequence[str]) -> dict[str, float]:
        """Values where autograd has a derivative: polar coordinates have none at e = 0, nor has the shortcut n = 1."""
        moved = {}
        for prefix in ("lens", "source", "lens_light"):
            e1, e2, n = (f"{prefix}.{k}" for k in ("e1", "e2", "n_sersic"))
            if (e1 in names or e2 in names) and self.values[e1] == self.values[e2] == 0:
                moved[e1] = 1e-5
            if n in names and self.values[n] == 1:
                moved[n] = 1 + 1e-9
        return moved

    def _build(self, v: Values, n: int) -> Scene:
        base = self._scene
        mass = [self._mass(c, v, n) for c in base.mass]
        if self.subhalo is not None:
            log10_mass, x, y = (v[name] for name in SUBHALO)
            strength = SUBHALO_PROFILES[self.subhalo.profile](log10_mass, self._place)
            params = {**strength, "center_x": x, "center_y": y}
            mass.append(Component(self.subhalo.profile, {k: p[:, None] for k, p in params.items()}))
        scale, index = (t.expand(n) for t in (base.deflection_scale, base.index))
        planes = base.planes and base.planes[torch.zeros(n, dtype=torch.long)]
        first, *more = (self._seen(k, v, n) for k in range(len(self._bands)))
        light = first.source, first.lens_light, scale, first.exposure
        return Scene(mass, *light, base.label, index, {}, planes=planes, more_bands=more)

    def _seen(self, band: int, v: Values, n: int) -> InBand:
        """The light in one band."""
        drawn = self._bands[band]
        source, lens_light = (
            [
                self._light(c, v, prefix, band) if c.mask is None else self._moved(c, v, prefix, n)
                for c in getattr(drawn, prefix)
            ]
            for prefix in LIGHTS
        )
        return InBand(source, lens_light, [], drawn.exposure.expand(n), None)

    def _mass(self, component: Component, v: Values, n: int) -> Component:
        if component is self._vortex:
            return Component(component.profile, self._vortex_params(component, v))
        if component.profile == "multipole":  # of a lens of any size, as `macro_lens` makes them
            orders = component.params["m"][0]
            names = [f"lens.{{}}{round(m)}" for m in orders.tolist()]
            a, phi = (torch.stack([v[name.format(k)] for name in names], 1) for k in ("a", "phi"))
            shape = {"m": orders.expand_as(a), "a_m": a * v["lens.theta_E"][:, None], "phi_m": phi}
            return Component("multipole", shape | {k: v[f"lens.{k}"][:, None].expand_as(a) for k in CENTER})
        if component.profile in MACRO:
            return Component(component.profile, {k: v[f"lens.{k}"][:, None] for k in component.params})
        mask = None if component.mask is None else component.mask.expand(n, -1)
        params = {k: p.expand(n, -1) for k, p in component.params.items()}
        return Component(component.profile, params, mask, plane=component.plane)

    def _moved(self, clumps: Component, v: Values, prefix: str, n: int) -> Component:
        """Clumps as drawn, which go where their galaxy goes."""
        params = {k: p.expand(n, -1) for k, p in clumps.params.items()}
        for k in ("center_x", "center_y"):
            params[k] = params[k] + (v[f"{prefix}.{k}"] - self._drawn[f"{prefix}.{k}"])[:, None]
        return Component(clumps.profile, params, None if clumps.mask is None else clumps.mask.expand(n, -1))

    def _vortex_params(self, component: Component, v: Values) -> Values:
        """As `sim.substructure.Vortex` makes them: a line, or the legacy code's points on it."""
        log10_m, angle, log10_mass, x, y = (v[name][:, None] for name in VORTEX)
        half_length = 0.03 * 10 ** (-22 - log10_m)
        strength = 10**log10_mass * float(self._place.distances.theta_E2_per_mass)
        if component.profile == "line_mass":
            where = {"angle": angle, "center_x": x, "center_y": y}
            return {"theta_E2": strength, "half_length": half_length, **where}
        points = component.params["theta_E2"].shape[1]
        along = half_length * torch.linspace(-1, 1, points, dtype=torch.float64)
        where = {"center_x": x + along * torch.cos(angle), "center_y": y + along * torch.sin(angle)}
        return {"theta_E2": (strength / points).expand_as(along), **where}

    def _light(self, component: Component, v: Values, prefix: str, band: int) -> Component:
        params = {k: v[f"{prefix}.{k}"][:, None] for k in component.params if k != "amp"}
        brightness = v[f"{prefix}.{self._brightness}"][:, None]
        for name in self._colours[:band]:
            brightness = brightness - v[f"{prefix}.{name}"][:, None]
        if self._brightness == "magnitude":
            flux = self.world.instruments[band].counts(brightness)
            brightness = flux / sersic_flux(torch.ones_like(flux), params["R_sersic"], params["n_sersic"])
        return Component(component.profile, {"amp": brightness, **params})


def _galaxy(light: Sequence[Component]) -> Component | None:
    """The galaxy among its clumps; a world has at most one of each kind."""
    return next((c for c in light if c.mask is None), None)


def _plain(scene: Scene, instrument: Instrument) -> bool:
    """Whether all that is seen in a band has names."""
    light = all(c.profile == "sersic" for c in [*scene.source, *scene.lens_light])
    hidden = scene.subtracted or scene.quasar or scene.psf is not None
    return light and not hidden and replace(instrument.detector, correlation=0.0) == NOTHING_MORE


def _point_mass(log10_mass: Tensor, place: Place) -> Values:
    return {"theta_E2": 10**log10_mass * float(place.distances.theta_E2_per_mass)}


def _tnfw(log10_mass: Tensor, place: Place) -> Values:
    """M200 with the median concentration of Dutton & Macciò 2014 (c200) at the lens's redshift.

    Truncated at 1.4 kpc (M/10⁷ M☉)^⅓, the tidal radius of Gilman et al. 2020 at 50 kpc from the host's centre.
    """
    d, z, H0, Om0, w0 = place
    h2 = (H0 / 100) ** 2 * expansion2(z, Om0, w0)
    critical = 277.54 * h2  # Msun/kpc³
    slope = -0.101 + 0.026 * z
    at_1e12 = 0.520 + 0.385 * float(np.exp(-0.617 * z**1.21))
    c = 10 ** (at_1e12 + slope * (log10_mass + np.log10(H0 / 100) - 12))
    R_s = (10**log10_mass / (200 * critical * 4 / 3 * np.pi)) ** (1 / 3) / c  # kpc
    rho = 200 / 3 * critical * c**3 / (torch.log1p(c) - c / (1 + c))
    # α(R_s) = 4 ρ_s R_s² (1 + ln ½)/Σ_cr (Wright & Brainerd 2000), in arcsec
    alpha = 4 * rho * R_s**2 * (1 - np.log(2)) / d.sigma_cr / d.kpc_per_arcsec
    trunc = 1.4 * (10 ** (log10_mass - 7)) ** (1 / 3)
    return {"R_s": R_s / d.kpc_per_arcsec, "alpha_Rs": alpha, "r_trunc": trunc / d.kpc_per_arcsec}


SUBHALO_PROFILES: dict[str, Callable[[Tensor, Place], Values]] = {"point_mass": _point_mass, "tnfw": _tnfw}
