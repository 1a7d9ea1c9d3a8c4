"""Lenses as lenstronomy's keyword arguments, and halos as pyHalo gives them, out and in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deeplense import config
from deeplense.errors import UserError
from deeplense.lensing.mass import MASS as PROFILES
from deeplense.lensing.raytrace import Component
from deeplense.sim.added import add_profiles
from deeplense.sim.lenses import Lenses
from deeplense.sim.macro import MACRO
from deeplense.sim.named import Lens, _component, _parameters

Params = dict[str, Any]
Named = list[tuple[str, Params]]


def _renamed(**names: str) -> Callable[[Params], Params]:
    """Their names to ours."""
    return lambda p: {names.get(k, k): v for k, v in p.items()}


def _point(p: Params) -> Params:
    return {k: v for k, v in p.items() if k != "theta_E"} | {"theta_E2": p["theta_E"] ** 2}


def _shear(p: Params) -> Params:
    """About their origin (0, 0), the only one that ours has."""
    if p.get("ra_0", 0) or p.get("dec_0", 0):
        raise UserError(
            "SHEAR: ra_0 and dec_0 are not 0; a shear about another point only shifts the source, leave them"
        )
    return {k: v for k, v in p.items() if k not in ("ra_0", "dec_0")}


# lenstronomy's profile -> ours, and its parameters from theirs
MASS: dict[str, tuple[str, Callable[[Params], Params]]] = {
    "SIE": ("sie", dict),
    "EPL": ("epl", dict),
    "SHEAR": ("shear", _shear),
    "MULTIPOLE": ("multipole", _renamed()),
    "CONVERGENCE": ("mass_sheet", _renamed(ra_0="center_x", dec_0="center_y")),
    "POINT_MASS": ("point_mass", _point),
    "NFW": ("nfw", _renamed(Rs="R_s")),
    "TNFW": ("tnfw", _renamed(Rs="R_s")),
    "CNFW": ("cnfw", _renamed(Rs="R_s")),
}
LIGHT: dict[str, tuple[str, Callable[[Params], Params]]] = {
    "SERSIC": ("sersic", dict),
    "SERSIC_ELLIPSE": ("sersic", dict),
}


def to_lenstronomy(lens: Lenses) -> dict[str, Any]:
    """One lens: lens_model_list, kwargs_lens, and the same of source_light and lens_light, of its first band.

    Raises:
        UserError: several lenses, several planes, or a profile that lenstronomy lacks.
    """
    from deeplense.sim import reference  # its import takes seconds

    scene = _only(lens).scenes[0]
    if scene.planes is not None:
        raise UserError("several planes; lenstronomy's keyword arguments of one plane cannot say them")
    _check_theirs(scene.mass)
    model, kwargs = reference._lens_model(scene, 0)
    found: dict[str, Any] = {"lens_model_list": list(model.lens_model_list), "kwargs_lens": kwargs}
    for name, light in (("source", scene.source), ("lens_light", scene.lens_light)):
        profiles, kwargs = reference._light_model(light, 0)
        names = "source_light_model_list" if name == "source" else "lens_light_model_list"
        found |= {names: list(profiles.profile_type_list), f"kwargs_{name}": kwargs}
    return found | {k: float(scene.truth[k][0]) for k in ("z_lens", "z_source")}


def from_lenstronomy(
    lens_model_list: Sequence[str],
    kwargs_lens: Sequence[Params],
    source_light_model_list: Sequence[str] = (),
    kwargs_source: Sequence[Params] = (),
    lens_light_model_list: Sequence[str] = (),
    kwargs_lens_light: Sequence[Params] = (),
    **more: Any,
) -> Lens:
    """A `Lens` of lenstronomy's names and keyword arguments; `more` as of `Lens`: z_lens, instrument, size, …

    Raises:
        UserError: a profile that is not among ours, or lists of different lengths.
    """
    return Lens(
        _named(MASS, lens_model_list, kwargs_lens, "lens_model_list"),
        _named(LIGHT, source_light_model_list, kwargs_source, "source_light_model_list"),
        _named(LIGHT, lens_light_model_list, kwargs_lens_light, "lens_light_model_list"),
        **more,
    )


def from_pyhalo(
    lens: Lenses, lens_model_list: Sequence[str], redshift_array: Sequence[float], kwargs_lens: Sequence[Params]
) -> Lenses:
    """One lens with the halos of a pyHalo realisation: the first three that its `lensing_quantities()` gives.

    Each redshift is a plane of its own. A realisation's negative sheets (CONVERGENCE) come with it.

    Raises:
        UserError: a profile that is not among ours, lists of different lengths, or as of `added.add_profiles`.
    """
    if len(redshift_array) != len(lens_model_list):
        raise UserError(f"lens_model_list names {len(lens_model_list)} halos, redshift_array {len(redshift_array)}")
    found = _named(MASS, lens_model_list, kwargs_lens, "lens_model_list")
    halos = [_component("halo", name, params, _parameters(PROFILES[name])) for name, params in found]
    return add_profiles(lens, halos, [float(z) for z in redshift_array])


def to_pyhalo(lens: Lenses) -> tuple[list[str], list[float], list[Params]]:
    """Dark deflectors of one lens as pyHalo's `lensing_quantities()` gives them: lens_model_list, redshift_array,
    kwargs_lens.

    Raises:
        UserError: several lenses, or a profile that lenstronomy lacks (a realistic recipe's square sheet is one).
    """
    from deeplense.sim import reference  # its import takes seconds

    scene = _only(lens).scenes[0]
    dark = [c for c in scene.mass if c.profile not in MACRO]
    _check_theirs(dark)
    names: list[str] = []
    redshifts: list[float] = []
    every: list[Params] = []
    for component in dark:
        name, convert = reference.MASS[component.profile]
        planes = scene.planes
        z = scene.truth["z_lens"][0] if planes is None else planes.z[0, planes.front + component.plane]
        for params in reference._profiles(component, 0):
            names.append(name)
            redshifts.append(float(z))
            every.append(convert(params))
    return names, redshifts, every


def _only(lens: Lenses) -> Lenses:
    if len(lens) != 1:
        raise UserError(f"{len(lens)} lenses; give one of them, lenses[k]")
    return lens


def _check_theirs(mass: Sequence[Component]) -> None:
    from deeplense.sim import reference

    own = sorted({c.profile for c in mass} & set(reference.REPLACED))
    if own:
        raise UserError(f"lenstronomy has no {', '.join(own)}; draw a class without them")


def _named(
    known: dict[str, tuple[str, Callable[[Params], Params]]], names: Sequence[str], every: Sequence[Params], where: str
) -> Named:
    if len(names) != len(every):
        raise UserError(f"{where} names {len(names)} profiles, but there are keyword arguments of {len(every)}")
    found = []
    for name, params in zip(names, every, strict=True):
        ours, convert = config.lookup(known, name, "lenstronomy profile that is known here,")
        found.append((ours, convert(params)))
    return found
