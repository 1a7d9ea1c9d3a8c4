"""A recipe's `simulation` section made ready to draw from: scenes in blocks, seeded."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deeplense import config, recipe, rng
from deeplense.errors import UserError
from deeplense.lensing import cosmology
from deeplense.lensing.cosmology import Distances
from deeplense.lensing.light import sersic_flux
from deeplense.lensing.mesh import split
from deeplense.lensing.raytrace import Component
from deeplense.sim.instrument import INSTRUMENTS, Instrument
from deeplense.sim.macro import macro_lens, match_mass
from deeplense.sim.priors import Prior
from deeplense.sim.scene import Scene
from deeplense.sim.substructure import POPULATIONS, Host, Substructure, Truth
from deeplense.sim.substructure.base import tensors

PYHALO = (
    69.7,
    0.2814,
)  # H0, Om0: DeepLenseSim takes this one ratio from pyHalo's cosmology, not from its own
Drawn = dict[str, NDArray[np.float64]]


class World:
    """Priors, classes and instrument of a simulation, checked.

    Attributes:
        classes: names, in the order of the labels. truth: every parameter stored with an image.
        instrument, pixel_scale [arcsec], size [pixels].

    Raises:
        UserError: anything in the section that makes no sense, named by its key.
    """

    def __init__(self, simulation: recipe.Simulation) -> None:
        s = self.simulation = simulation
        self.instrument: Instrument = config.lookup(INSTRUMENTS, s.instrument, "instrument")
        self.pixel_scale = s.pixel_scale or self.instrument.pixel_scale
        self.size = s.size
        _check(s.size >= 8, "simulation.size", f"{s.size} pixels are too few; give 8 or more")
        _check(self.pixel_scale > 0, "simulation.pixel_scale", f"{self.pixel_scale} must be positive")
        _check(
            s.supersampling in (1, 2, 3, 4),
            "simulation.supersampling",
            f"{s.supersampling} is not 1, 2, 3 or 4",
        )
        _check(s.cosmology.H0 > 0, "simulation.cosmology.H0", f"{s.cosmology.H0} must be positive")
        _check(0 < s.cosmology.Om0 <= 1, "simulation.cosmology.Om0", f"{s.cosmology.Om0} must lie in (0, 1]")
        self._redshifts = [
            Prior.parse(z, f"simulation.{k}") for k, z in (("z_lens", s.z_lens), ("z_source", s.z_source))
        ]
        (nearest, farthest), (source, _) = (z.bounds for z in self._redshifts)
        _check(
            nearest > 0 and farthest < source,
            "simulation.z_source",
            f"need 0 < z_lens < z_source always, but z_lens reaches {farthest:g} and z_source {source:g}",
        )
        self.deflection_scale = self._deflection_scale()
        self._lens = _priors(s.lens, "simulation.lens")
        self._source = _priors(s.source, "simulation.source")
        self._lens_light = _priors(s.lens_light, "simulation.lens_light") if s.lens_light else None
        _one_of(s.lens, "theta_E", "mass", "simulation.lens")
        for light, where in ((s.source, "simulation.source"), (s.lens_light, "simulation.lens_light")):
            if light:
                _one_of(light, "amplitude", "magnitude", where)
                if light.magnitude is not None:
                    _check(self.instrument.zero_point is not None, f"{where}.magnitude",
                           f"instrument '{s.instrument}' has no zero point; give an amplitude")  # fmt: skip
        self._exposure = Prior.parse(
            self.instrument.total_exposure if s.exposure_time is None else s.exposure_time,
            "simulation.exposure_time",
        )
        _check(bool(s.classes), "simulation.classes", "no class given; e.g. {no_sub: {population: none}}")
        self.classes = list(s.classes)
        self._populations = [_population(name, spec) for name, spec in s.classes.items()]
        self.truth = self._truths()
        self._draw_macro(rng.generator(0, "check", 0))  # a prior that leaves its domain is found now

    def labels(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Classes take turns, so that any number of scenes holds them equally."""
        return index % len(self.classes)

    def scenes(self, seed: int, stream: str, block: int, n: int = rng.BLOCK) -> list[Scene]:
        """The first n scenes of a block, grouped by class; (seed, stream, block) decide them.

        Args:
            stream: e.g. "train"; streams are independent.
        """
        index = block * rng.BLOCK + np.arange(rng.BLOCK)
        macro = self._draw_macro(rng.generator(seed, f"{stream}/macro", block))
        labels = self.labels(index)
        scenes = []
        for label, population in enumerate(self._populations):
            # drawn for the whole block, so that a shorter last block begins as a whole one would
            rows = np.flatnonzero(labels == label)
            drawn = {k: v[rows] for k, v in macro.items()}
            host = self._host(drawn)
            sub = population.sample(rng.generator(seed, f"{stream}/substructure", block, label), host)
            scene = self._scene(drawn, sub, label, index[rows])
            scenes.append(scene[: int((rows < n).sum())])
        return [s for s in scenes if len(s)]

    def distances_of(self, scene: Scene) -> Distances:
        """(B,) distances of a scene's lenses."""
        return self._distances({k: scene.truth[k].numpy() for k in ("z_lens", "z_source")})

    def truth_row(self, scene: Scene) -> NDArray[np.float64]:
        """(B, P) values of `truth`, NaN where a parameter does not apply."""
        out = np.full((len(scene), len(self.truth)), np.nan)
        for column, truth in enumerate(self.truth):
            if truth.name in scene.truth:
                out[:, column] = scene.truth[truth.name].numpy()
        return out

    def _draw_macro(self, generator: np.random.Generator) -> Drawn:
        shape = (rng.BLOCK,)
        drawn: Drawn = {}
        for prefix, priors in (
            ("lens", self._lens),
            ("source", self._source),
            ("lens_light", self._lens_light or {}),
        ):
            drawn |= {f"{prefix}.{k}": p.sample(generator, shape) for k, p in priors.items()}
        drawn["exposure_time"] = self._exposure.sample(generator, shape)
        drawn["z_lens"], drawn["z_source"] = (p.sample(generator, shape) for p in self._redshifts)
        _check_drawn(drawn)
        if "lens.mass" in drawn:
            drawn["lens.theta_E"] = np.sqrt(drawn["lens.mass"] * self._distances(drawn).theta_E2_per_mass)
        return drawn

    def _distances(self, drawn: Drawn) -> Distances:
        """Arrays like the redshifts."""
        c = self.simulation.cosmology
        make = {"angular_diameter": cosmology.distances, "luminosity": cosmology.luminosity_distances}[c.distances]
        redshifts = drawn["z_lens"], drawn["z_source"]
        if all(prior.constant for prior in self._redshifts) and len(redshifts[0]):
            found = make(float(redshifts[0][0]), float(redshifts[1][0]), c.H0, c.Om0)
            return found.like(redshifts[0])
        return make(*redshifts, c.H0, c.Om0)

    def _host(self, drawn: Drawn) -> Host:
        columns = {k: v[:, None] for k, v in drawn.items()}
        c = self.simulation.cosmology
        return Host(
            columns["z_lens"],
            columns["z_source"],
            self._distances(drawn).like(columns["z_lens"]),
            columns["lens.theta_E"],
            columns["lens.center_x"],
            columns["lens.center_y"],
            self.size * self.pixel_scale / 2,
            c.H0,
            c.Om0,
        )

    def _scene(self, drawn: Drawn, sub: Substructure, label: int, index: NDArray[np.int64]) -> Scene:
        truth = {**drawn, **sub.truth}
        if self.simulation.match_mass:
            drawn = drawn | {"lens.theta_E": match_mass(drawn, sub.mass)}
        light = {"source": self._light(drawn, "source"), "lens_light": None}
        if self._lens_light:
            light["lens_light"] = self._light(drawn, "lens_light")
        return Scene(
            mass=[*macro_lens(drawn), *(part for c in sub.mass for part in split(c, self.simulation.mesh_below))],
            source=[light["source"]] if light["source"] else [],
            lens_light=[light["lens_light"]] if light["lens_light"] else [],
            deflection_scale=torch.full((len(index),), self.deflection_scale, dtype=torch.float64),
            exposure=torch.from_numpy(drawn["exposure_time"]),
            label=label,
            index=torch.from_numpy(index),
            truth={k: torch.from_numpy(np.asarray(v, dtype=np.float64)) for k, v in truth.items()},
            halos=_halos(sub),
        )

    def _light(self, drawn: Drawn, which: str) -> Component:
        names = ("R_sersic", "n_sersic", "e1", "e2", "center_x", "center_y")
        params = {k: torch.from_numpy(drawn[f"{which}.{k}"])[:, None] for k in names}
        if f"{which}.amplitude" in drawn:
            params["amp"] = torch.from_numpy(drawn[f"{which}.amplitude"])[:, None]
        else:
            flux = self.instrument.counts(torch.from_numpy(drawn[f"{which}.magnitude"])[:, None])
            one = torch.ones_like(flux)
            params["amp"] = flux / sersic_flux(one, params["R_sersic"], params["n_sersic"])
        return Component("sersic", params)

    def _deflection_scale(self) -> float:
        """Legacy fault: lenses defined for a source at z_source_convention, images made for one at z_source."""
        s = self.simulation
        if s.z_source_convention is None or s.z_source_convention == s.z_source:
            return 1.0
        where = "simulation.z_source_convention"
        _check(
            all(z.constant for z in self._redshifts), where, "a fault of fixed redshifts; leave it out where they vary"
        )
        z_lens, z_source = (z.arguments[0] for z in self._redshifts)
        _check(s.z_source_convention > z_lens, where, f"{s.z_source_convention} is not beyond z_lens ({z_lens})")
        here, there = (cosmology.distances(z_lens, z, *PYHALO) for z in (z_source, s.z_source_convention))
        return float((here.D_ls / here.D_s) / (there.D_ls / there.D_s))

    def _truths(self) -> list[Truth]:
        units = {"theta_E": "arcsec", "center_x": "arcsec", "center_y": "arcsec", "R_sersic": "arcsec",
                 "mass": "Msun", "magnitude": "AB mag"}  # fmt: skip
        specs = {
            "lens": self.simulation.lens,
            "source": self.simulation.source,
            "lens_light": self.simulation.lens_light,
        }
        found = []
        for prefix, priors in (
            ("lens", self._lens),
            ("source", self._source),
            ("lens_light", self._lens_light or {}),
        ):
            for name, prior in priors.items():
                if not prior.constant:
                    found.append(Truth(f"{prefix}.{name}", units.get(name, ""), getattr(specs[prefix], name)))
        s = self.simulation
        more = {"exposure_time": ("s", s.exposure_time, self._exposure)}
        more |= {k: ("", getattr(s, k), p) for k, p in zip(("z_lens", "z_source"), self._redshifts, strict=True)}
        found += [Truth(k, unit, spec) for k, (unit, spec, prior) in more.items() if not prior.constant]
        for population in self._populations:
            found += [t for t in population.truth() if t.name not in {f.name for f in found}]
        return found


def _population(name: str, spec: dict[str, Any]) -> Any:
    where = f"simulation.classes.{name}"
    if not isinstance(spec, dict) or "population" not in spec:
        raise UserError(f"{where} needs a 'population'; {config.nearest('population', POPULATIONS)}")
    cls = config.lookup(POPULATIONS, str(spec["population"]), "population")
    return config.build(cls, {k: v for k, v in spec.items() if k != "population"}, where)


def _halos(sub: Substructure) -> Component | None:
    """The halos' rows, which no ray shooter sees."""
    if sub.halos is None:
        return None
    return Component("halo", tensors(sub.halos.columns), torch.from_numpy(sub.halos.mask))


def _priors(section: Any, where: str) -> dict[str, Prior]:
    values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    return {k: Prior.parse(v, f"{where}.{k}") for k, v in values.items() if v is not None}


def _check_drawn(drawn: Drawn) -> None:
    """Values that no image can be made of."""
    for name, values in drawn.items():
        where, low = f"simulation.{name}", float(values.min())
        _check(bool(np.isfinite(values).all()), where, "draws numbers that are not finite")
        last = name.rpartition(".")[2]
        if last in ("R_sersic", "n_sersic", "exposure_time"):
            _check(low > 0, where, f"draws {low:g}; it must be positive")
        if last in ("mass", "theta_E"):
            _check(low >= 0, where, f"draws {low:g}; it must not be negative")
        if last == "e1":
            e = float(np.hypot(values, drawn[name.replace("e1", "e2")]).max())
            _check(e < 1, where, f"draws an ellipticity of {e:g} with e2; it must be below 1")


def _one_of(section: Any, a: str, b: str, where: str) -> None:
    given = [k for k in (a, b) if getattr(section, k) is not None]
    _check(len(given) == 1, where, f"give either {a} or {b}" + (", not both" if given else ""))


def _check(fine: bool, where: str, wrong: str) -> None:
    if not fine:
        raise UserError(f"{where}: {wrong}")
