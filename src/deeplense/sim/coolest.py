"""Lenses as COOLEST templates (Galan et al. 2023, JOSS 8, 5567) of version 0.1.11, in and out, as plain JSON.

Angles there are degrees from the y axis towards −x (east of north), radii are those of lenstronomy and ours. To add a
profile: a line in `MASS` or `LIGHT`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from deeplense import config
from deeplense.errors import UserError
from deeplense.sim.lenses import Lenses
from deeplense.sim.named import Lens
from deeplense.trees import read_json

Params = dict[str, float]
Named = list[tuple[str, Params]]


class Profile(NamedTuple):
    """How a profile is called there, and its parameters from theirs and from ours."""

    ours: str
    parameters: tuple[str, ...]
    read: Callable[[Params], Params]
    write: Callable[[Params], Params]


def _shape(p: Params) -> Params:
    """e1, e2 of axis ratio and angle."""
    strength, phi = (1 - p["q"]) / (1 + p["q"]), 2 * math.radians(p["phi"] - 90)
    rest = {k: v for k, v in p.items() if k not in ("q", "phi")}
    return rest | {"e1": strength * math.cos(phi), "e2": strength * math.sin(phi)}


def _of_shape(p: Params) -> Params:
    c = math.hypot(p["e1"], p["e2"])
    rest = {k: v for k, v in p.items() if k not in ("e1", "e2")}
    return rest | {"q": (1 - c) / (1 + c), "phi": _angle(p["e1"], p["e2"])}


def _angle(first: float, second: float) -> float:
    """Degrees from the y axis, in [−90, 90)."""
    return (math.degrees(0.5 * math.atan2(second, first)) + 180) % 180 - 90


def _shear(p: Params) -> Params:
    phi = 2 * math.radians(p["phi_ext"] - 90)
    return {"gamma1": p["gamma_ext"] * math.cos(phi), "gamma2": p["gamma_ext"] * math.sin(phi)}


def _of_shear(p: Params) -> Params:
    strength = math.hypot(p["gamma1"], p["gamma2"])
    return {"gamma_ext": strength, "phi_ext": _angle(p["gamma1"], p["gamma2"])}


def _sheet(p: Params) -> Params:
    return {"kappa": p["kappa_s"]}


def _of_sheet(p: Params) -> Params:
    return {"kappa_s": p["kappa"]}


SERSIC = {"I_eff": "amp", "theta_eff": "R_sersic", "n": "n_sersic"}


def _sersic(p: Params) -> Params:
    return _shape({SERSIC.get(k, k): v for k, v in p.items()})


def _of_sersic(p: Params) -> Params:
    return _of_shape({{v: k for k, v in SERSIC.items()}.get(k, k): v for k, v in p.items()})


ROUND = ("q", "phi", "center_x", "center_y")
MASS = {
    "SIE": Profile("sie", ("theta_E", *ROUND), _shape, _of_shape),
    "PEMD": Profile("epl", ("gamma", "theta_E", *ROUND), _shape, _of_shape),
    "ExternalShear": Profile("shear", ("gamma_ext", "phi_ext"), _shear, _of_shear),
    "ConvergenceSheet": Profile("mass_sheet", ("kappa_s",), _sheet, _of_sheet),
}
LIGHT = {"Sersic": Profile("sersic", (*SERSIC, *ROUND), _sersic, _of_sersic)}


def read_coolest(path: str | Path, **simulation: Any) -> Lens:
    """A `Lens` of a template's point estimates, one lens and one source plane.

    Args:
        path: the JSON file. simulation: as of `Lens`: instrument, exposure_time, …; size and pixel_scale are the
            template's, where it says them and `simulation` does not.

    Raises:
        UserError: no such file, no template, a profile that is not known here, a parameter without a value, or
            planes that are not two.
    """
    try:
        tree = read_json(Path(path).read_text(), str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'cannot be read'}") from error
    if not isinstance(tree, dict) or tree.get("standard") != "COOLEST":
        raise UserError(f"{path}: no COOLEST template; its 'standard' should be COOLEST")
    try:
        return Lens(**_read(tree, str(path)) | simulation)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not built as a COOLEST template is ({type(error).__name__}: {error})") from error


def _read(tree: dict[str, Any], path: str) -> dict[str, Any]:
    """Arguments of `Lens`."""
    entities = tree["lensing_entities"]
    z_source = max((float(e["redshift"]) for e in entities), default=0.0)
    lenses = sorted({float(e["redshift"]) for e in entities if e.get("mass_model")})
    lit = {float(e["redshift"]) for e in entities if e.get("light_model")}
    if len(lenses) != 1 or lenses[0] >= z_source or not lit <= {lenses[0], z_source}:
        raise UserError(f"{path}: needs mass at one redshift and a source behind it; its mass is at {lenses}")
    found: dict[str, Any] = {"mass": [p for e in entities for p in _profiles(MASS, e, "mass_model", path)]}
    for name, z in (("source", z_source), ("lens_light", lenses[0])):
        found[name] = [p for e in entities if e["redshift"] == z for p in _profiles(LIGHT, e, "light_model", path)]
    found |= {"z_lens": lenses[0], "z_source": z_source}
    pixels = tree.get("observation", {}).get("pixels") or {}
    if pixels.get("num_pix_x") and pixels["num_pix_x"] == pixels.get("num_pix_y"):
        found["size"] = pixels["num_pix_x"]
    if tree.get("instrument", {}).get("pixel_size"):
        found["pixel_scale"] = float(tree["instrument"]["pixel_size"])
    if tree.get("cosmology"):
        found["cosmology"] = {k: float(tree["cosmology"][k]) for k in ("H0", "Om0")}
    return found


def write_coolest(lens: Lenses, path: str | Path) -> Path:
    """Write one lens as a template of a mock; its image is not in it.

    Raises:
        UserError: several lenses, several planes, a quasar, or a profile that the standard lacks.
    """
    path = Path(path)
    if len(lens) != 1:
        raise UserError(f"{len(lens)} lenses; give one of them, lenses[k]")
    scene = lens.scenes[0]
    if lens.world.simulation.cosmology.w0 != -1:
        raise UserError("a COOLEST template knows flat ΛCDM alone; leave cosmology.w0 at -1")
    if scene.planes is not None or scene.quasar is not None:
        raise UserError("a COOLEST template has no halos in several planes and no quasars; draw the lens without")
    front = [p for c in scene.mass for p in _of_component(MASS, c)]
    z_lens, z_source = (float(scene.truth[k][0]) for k in ("z_lens", "z_source"))
    galaxy, field = [p for p in front if p["type"] in ("SIE", "PEMD")], [p for p in front if "q" not in p["parameters"]]
    lights = [[p for c in light for p in _of_component(LIGHT, c)] for light in (scene.lens_light, scene.source)]
    entities = [
        {"type": "Galaxy", "name": "lens", "redshift": z_lens, "mass_model": galaxy, "light_model": lights[0]},
        {"type": "Galaxy", "name": "source", "redshift": z_source, "mass_model": [], "light_model": lights[1]},
    ]
    if field:
        entities.append({"type": "MassField", "name": "field", "redshift": z_lens, "mass_model": field})
    world, cosmology = lens.world, lens.world.simulation.cosmology
    half = world.size * world.pixel_scale / 2
    grid = {"fits_file": {"path": None}, "field_of_view_x": [-half, half], "field_of_view_y": [-half, half],
            "num_pix_x": world.size, "num_pix_y": world.size}  # fmt: skip
    tree = {
        "standard": "COOLEST",
        "mode": "MOCK",
        "meta": {"coolest.__version__": "0.1.11"},
        "coordinates_origin": {"ra": "00h00m00s", "dec": "+00d00m00s"},
        "lensing_entities": entities,
        "observation": {
            "pixels": grid,
            "exposure_time": float(scene.exposure[0]),
            "noise": {"type": None},
            "mag_zero_point": world.instrument.zero_point,
            "mag_sky_brightness": None,
        },
        "instrument": {
            "name": "",
            "band": "",
            "pixel_size": world.pixel_scale,
            "readout_noise": 0.0,
            "psf": {"type": None, "description": None},
        },
        "cosmology": {"H0": cosmology.H0, "Om0": cosmology.Om0, "astropy_name": "FlatLambdaCDM"},
    }
    path.write_text(json.dumps(tree, indent=2) + "\n")
    return path


def _profiles(known: dict[str, Profile], entity: dict[str, Any], model: str, path: str | Path) -> Named:
    found = []
    for said in entity.get(model) or []:
        profile: Profile = config.lookup(known, said["type"], "COOLEST profile that is known here,")
        values: Params = {}
        for name in profile.parameters:
            value = said["parameters"].get(name, {}).get("point_estimate", {}).get("value")
            if not isinstance(value, int | float):
                raise UserError(f"{path}: {entity.get('name')}: {said['type']}.{name} has no point estimate; give it")
            values[name] = float(value)
        found.append((profile.ours, profile.read(values)))
    return found


def _of_component(known: dict[str, Profile], component: Any) -> list[dict[str, Any]]:
    from deeplense.sim import reference  # its import takes seconds

    theirs = {profile.ours: name for name, profile in known.items()}
    if component.profile not in theirs:
        raise UserError(f"the COOLEST standard has no {component.profile}; draw a lens without it")
    name = theirs[component.profile]
    made = []
    for params in reference._profiles(component, 0):
        values = known[name].write(params)
        kept = {k: {"point_estimate": {"value": values[k]}} for k in known[name].parameters}
        made.append({"type": name, "parameters": kept})
    return made
