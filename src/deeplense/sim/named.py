"""Lenses from named profiles, without a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deeplense import config, recipe
from deeplense.errors import UserError
from deeplense.lensing.light import LIGHT, sersic_flux
from deeplense.lensing.mass import MASS
from deeplense.lensing.raytrace import CENTER, Component
from deeplense.sim.lenses import Lenses
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

Values = Mapping[str, float | Tensor]
Profiles = Sequence[tuple[str, Values]]
DRAWN = ("lens", "source", "lens_light", "lens_envelope", "lens_light_residual", "classes", "bands", "match_mass")
NOBODY = {"lens": {"theta_E": 1.0}, "source": {"amplitude": 1.0}}  # of the world that observes, which draws nothing
ROUND = ("e1", "e2", *CENTER)  # 0 when not given


class Lens(Lenses):
    """One lens, or B at once where parameters are tensors (B,), which may require gradients.

    Args:
        mass: `(profile, parameters)`, profiles of `deeplense.lensing.mass.MASS`, their deflections reduced.
        source, lens_light: the same of `deeplense.lensing.light.LIGHT`. A Sérsic takes `magnitude` (AB) in place of
            `amp` where the instrument has a zero point. Ellipticities and centres are 0 when not given.
        z_lens, z_source: redshifts. seed: of the noise.
        simulation: anything else of a recipe's `simulation` section: size, pixel_scale, instrument, psf, noise, …

    A quasar is drawn at `quasar=dict(magnitude=…, center_x=…, center_y=…)`, or with `amp` [counts/s].

    Raises:
        UserError: an unknown profile or parameter (the nearest is named), or one that is missing.
    """

    def __init__(
        self,
        mass: Profiles,
        source: Profiles = (),
        lens_light: Profiles = (),
        quasar: Values | None = None,
        z_lens: float = 0.5,
        z_source: float = 1.0,
        seed: int = 0,
        **simulation: Any,
    ) -> None:
        for key in simulation:
            if key in DRAWN:
                raise UserError(f"{key}: what a recipe draws; give a Lens its profiles, or draw from a World")
        redshifts = {"z_lens": z_lens, "z_source": z_source}
        world = World(config.build(recipe.Simulation, {**NOBODY, **simulation, **redshifts}, "simulation"))
        deflectors = [_component("mass", name, values, _parameters(MASS[_known(MASS, name)])) for name, values in mass]
        lights = [
            [_light(kind, name, values, world) for name, values in profiles]
            for kind, profiles in (("source", source), ("lens_light", lens_light))
        ]
        points = [] if quasar is None else [_point(quasar, world)]
        every = [*deflectors, *lights[0], *lights[1], *points]
        sizes = {len(v) for c in every for v in c.params.values()}
        n = max(sizes, default=1)
        if len(sizes - {1}) > 1:
            raise UserError(f"parameters of {' and '.join(map(str, sorted(sizes - {1})))} lenses cannot be together")
        full = [Component(c.profile, {k: v.expand(n, *v.shape[1:]) for k, v in c.params.items()}) for c in every]
        after, end = len(deflectors), len(deflectors) + len(lights[0])
        one = world.draw(1).scenes[0]  # for the exposure time and PSF that the instrument says
        scene = Scene(
            mass=full[:after],
            source=full[after:end],
            lens_light=full[end : end + len(lights[1])],
            quasar=full[-1] if points else None,
            deflection_scale=torch.ones(n, dtype=torch.float64),
            exposure=one.exposure.expand(n),
            label=0,
            index=torch.arange(n),
            truth={k: torch.full((n,), v, dtype=torch.float64) for k, v in redshifts.items()},
            psf=None if one.psf is None else one.psf.expand(n, -1, -1),
        )
        super().__init__(world, [scene], seed, "lens")


def _known(registry: Mapping[str, Any], name: str) -> str:
    config.lookup(registry, name, "profile")
    return name


def _parameters(profile: Any) -> list[str]:
    """What a profile's function takes, beside the place."""
    function: Callable[..., Any] = getattr(profile, "function", profile)
    names = [k for k in inspect.signature(function).parameters if k not in ("x", "y", "r2")]
    return [*names, *CENTER] if getattr(profile, "circular", False) else names


def _light(kind: str, name: str, values: Values, world: World) -> Component:
    names = _parameters(LIGHT[_known(LIGHT, name)])
    magnitude = values.get("magnitude")
    if magnitude is None or name != "sersic":
        return _component(kind, name, values, names)
    if world.instrument.zero_point is None:
        raise UserError(f"{kind}.{name}.magnitude: the instrument has no zero point; give amp")
    rest = {k: v for k, v in values.items() if k != "magnitude"}
    shape = _component(kind, name, {"amp": 1.0, **rest}, names)
    flux = world.instrument.counts(_tensor(magnitude))
    one = sersic_flux(*(shape.params[k] for k in ("amp", "R_sersic", "n_sersic")))
    return Component(name, shape.params | {"amp": flux / one})


def _point(values: Values, world: World) -> Component:
    """A quasar's amplitude and place."""
    names = ["amp", *CENTER]
    magnitude = values.get("magnitude")
    if magnitude is None:
        return _component("quasar", "point", values, names)
    if world.instrument.zero_point is None:
        raise UserError("quasar.magnitude: the instrument has no zero point; give amp")
    rest = {k: v for k, v in values.items() if k != "magnitude"}
    return _component("quasar", "point", {"amp": world.instrument.counts(_tensor(magnitude)), **rest}, names)


def _component(kind: str, profile: str, values: Values, names: Sequence[str]) -> Component:
    where = f"{kind}.{profile}"
    for key in values:
        if key not in names:
            raise UserError(f"{where} has no parameter '{key}'; {config.nearest(key, names)}")
    given = {**dict.fromkeys((k for k in names if k in ROUND), 0.0), **values}
    missing = [k for k in names if k not in given]
    if missing:
        raise UserError(f"{where}: give {', '.join(missing)} as well")
    return Component(profile, {k: _tensor(v) for k, v in given.items()})


def _tensor(value: float | Tensor) -> Tensor:
    """(B, 1), or a picture's pixels as they are."""
    made = value.to(torch.float64) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return made.reshape(-1, 1) if made.dim() < 2 else made
