"""A recipe's `simulation` section made ready to draw from: scenes in blocks, seeded."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deeplense import config, recipe, rng
from deeplense.errors import UserError
from deeplense.lensing import cosmology
from deeplense.lensing.cosmology import Distances
from deeplense.lensing.mesh import on_grid
from deeplense.lensing.raytrace import Component
from deeplense.sim import psf
from deeplense.sim.checks import check, one_of
from deeplense.sim.detector import Detector
from deeplense.sim.instrument import INSTRUMENTS, Instrument
from deeplense.sim.macro import macro_lens, match_mass
from deeplense.sim.priors import Prior
from deeplense.sim.scene import Scene
from deeplense.sim.source import Galaxies
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
        instrument: Instrument = config.lookup(INSTRUMENTS, s.instrument, "instrument")
        instrument = dataclasses.replace(instrument, detector=Detector.of(s))
        self.instrument, self._kernels = psf.choose(instrument, s.psf)
        self.pixel_scale = s.pixel_scale or self.instrument.pixel_scale
        self.size = s.size
        check(s.size >= 8, "simulation.size", f"{s.size} pixels are too few; give 8 or more")
        check(self.pixel_scale > 0, "simulation.pixel_scale", f"{self.pixel_scale} must be positive")
        check(
            s.supersampling in (1, 2, 3, 4),
            "simulation.supersampling",
            f"{s.supersampling} is not 1, 2, 3 or 4",
        )
        check(s.cosmology.H0 > 0, "simulation.cosmology.H0", f"{s.cosmology.H0} must be positive")
        check(0 < s.cosmology.Om0 <= 1, "simulation.cosmology.Om0", f"{s.cosmology.Om0} must lie in (0, 1]")
        self._redshifts = [
            Prior.parse(z, f"simulation.{k}") for k, z in (("z_lens", s.z_lens), ("z_source", s.z_source))
        ]
        (nearest, farthest), (source, _) = (z.bounds for z in self._redshifts)
        check(
            nearest > 0 and farthest < source,
            "simulation.z_source",
            f"need 0 < z_lens < z_source always, but z_lens reaches {farthest:g} and z_source {source:g}",
        )
        self.deflection_scale = self._deflection_scale()
        self._lens = _priors(s.lens, "simulation.lens")
        one_of(s.lens, "theta_E", "mass", "simulation.lens")
        self._source = Galaxies(s.source, "simulation.source", self.instrument)
        self._lens_light = Galaxies(s.lens_light, "simulation.lens_light", self.instrument) if s.lens_light else None
        self._residual = None
        if s.lens_light_residual is not None:
            self._residual = Prior.parse(s.lens_light_residual, "simulation.lens_light_residual")
            check(s.lens_light is not None, "simulation.lens_light_residual", "there is no lens_light to subtract")
        self._exposure = Prior.parse(
            self.instrument.total_exposure if s.exposure_time is None else s.exposure_time,
            "simulation.exposure_time",
        )
        check(bool(s.classes), "simulation.classes", "no class given; e.g. {no_sub: {population: none}}")
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
        lights = self._lights(macro, seed, stream, block)
        kernel = None if self._kernels is None else torch.from_numpy(macro["psf"]).long()
        scenes = []
        for label, population in enumerate(self._populations):
            # drawn for the whole block, so that a shorter last block begins as a whole one would
            rows = np.flatnonzero(labels == label)
            drawn = {k: v[rows] for k, v in macro.items()}
            host = self._host(drawn)
            sub = population.sample(rng.generator(seed, f"{stream}/substructure", block, label), host)
            at = torch.from_numpy(rows)
            scene = dataclasses.replace(
                self._scene(drawn, sub, label, index[rows]),
                source=[c[at] for c in lights["source"]],
                lens_light=[c[at] for c in lights["lens_light"]],
                subtracted=[c[at] for c in lights["subtracted"]],
                psf=None if self._kernels is None or kernel is None else self._kernels[kernel[at]],
            )
            scenes.append(scene[: int((rows < n).sum())])
        return [s for s in scenes if len(s)]

    def distances_of(self, scene: Scene) -> Distances:
        """(B,) distances of a scene's lenses."""
        return self._distances({k: scene.truth[k].numpy() for k in ("z_lens", "z_source")})

    @cached_property
    def halos_per_image(self) -> float | None:
        """How many on average, by one block; None where no class keeps a table of its halos."""
        drawn = self._draw_macro(rng.generator(0, "check", 0))
        labels = self.labels(np.arange(rng.BLOCK))
        found = []
        for label, population in enumerate(self._populations):
            host = self._host({k: v[labels == label] for k, v in drawn.items()})
            found.append(population.sample(rng.generator(0, "check", 0, label), host).halos)
        if all(halos is None for halos in found):
            return None
        return sum(int(halos.mask.sum()) for halos in found if halos is not None) / rng.BLOCK

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
        for prefix, priors in self._sections():
            drawn |= {f"{prefix}.{k}": p.sample(generator, shape) for k, p in priors.items()}
        drawn["exposure_time"] = self._exposure.sample(generator, shape)
        drawn["z_lens"], drawn["z_source"] = (p.sample(generator, shape) for p in self._redshifts)
        if self._residual is not None:
            drawn["lens_light_residual"] = self._residual.sample(generator, shape)
        if self._kernels is not None:
            drawn["psf"] = generator.integers(len(self._kernels), size=shape).astype(float)
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
        fixed = all(prior.constant for prior in [*self._lens.values(), *self._redshifts])
        macro = macro_lens(drawn, alike=fixed and not self.simulation.match_mass)
        return Scene(
            mass=[*macro, *(on_grid(c) if self.simulation.mesh else c for c in sub.mass)],
            source=[],
            lens_light=[],
            deflection_scale=torch.full((len(index),), self.deflection_scale, dtype=torch.float64),
            exposure=torch.from_numpy(drawn["exposure_time"]),
            label=label,
            index=torch.from_numpy(index),
            truth={k: torch.from_numpy(np.asarray(v, dtype=np.float64)) for k, v in truth.items()},
            halos=_halos(sub),
        )

    def _lights(self, drawn: Drawn, seed: int, stream: str, block: int) -> dict[str, list[Component]]:
        """Source, lens light and what is subtracted of it, for a whole block; `drawn` gains what they draw."""
        found: dict[str, list[Component]] = {"lens_light": [], "subtracted": []}
        for galaxies in (self._source, self._lens_light):
            if galaxies is not None:
                generator = rng.generator(seed, f"{stream}/{galaxies.name}", block)
                found[galaxies.name], more = galaxies.components(drawn, generator, stream.partition("/")[0] == "train")
                drawn |= more
        if self._residual is not None:
            left = torch.from_numpy(drawn["lens_light_residual"])[:, None]
            whole = found["lens_light"]
            found["lens_light"], found["subtracted"] = (
                [dataclasses.replace(c, params=c.params | {"amp": c.params["amp"] * f}) for c in whole]
                for f in (left, 1 - left)
            )
        return found

    def _sections(self) -> list[tuple[str, dict[str, Prior]]]:
        """Prefix and priors of lens, source and lens light."""
        lights = [(g.name, g.priors) for g in (self._source, self._lens_light) if g is not None]
        return [("lens", self._lens), *lights]

    def _deflection_scale(self) -> float:
        """Legacy fault: lenses defined for a source at z_source_convention, images made for one at z_source."""
        s = self.simulation
        if s.z_source_convention is None or s.z_source_convention == s.z_source:
            return 1.0
        where = "simulation.z_source_convention"
        check(
            all(z.constant for z in self._redshifts), where, "a fault of fixed redshifts; leave it out where they vary"
        )
        z_lens, z_source = (z.arguments[0] for z in self._redshifts)
        check(s.z_source_convention > z_lens, where, f"{s.z_source_convention} is not beyond z_lens ({z_lens})")
        here, there = (cosmology.distances(z_lens, z, *PYHALO) for z in (z_source, s.z_source_convention))
        return float((here.D_ls / here.D_s) / (there.D_ls / there.D_s))

    def _truths(self) -> list[Truth]:
        units = {"theta_E": "arcsec", "center_x": "arcsec", "center_y": "arcsec", "R_sersic": "arcsec",
                 "mass": "Msun", "magnitude": "AB mag", "image_width": "arcsec"}  # fmt: skip
        specs = {
            "lens": self.simulation.lens,
            "source": self.simulation.source,
            "lens_light": self.simulation.lens_light,
        }
        found = []
        for prefix, priors in self._sections():
            for name, prior in priors.items():
                if not prior.constant:
                    found.append(Truth(f"{prefix}.{name}", units.get(name, ""), getattr(specs[prefix], name)))
        s = self.simulation
        more = {"exposure_time": ("s", s.exposure_time, self._exposure)}
        more |= {k: ("", getattr(s, k), p) for k, p in zip(("z_lens", "z_source"), self._redshifts, strict=True)}
        if self._residual is not None:
            more["lens_light_residual"] = ("", s.lens_light_residual, self._residual)
        found += [Truth(k, unit, spec) for k, (unit, spec, prior) in more.items() if not prior.constant]
        for galaxies in (self._source, self._lens_light):
            found += galaxies.truths() if galaxies is not None else []
        if self._kernels is not None and len(self._kernels) > 1:
            found.append(Truth("psf", ""))
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
        check(bool(np.isfinite(values).all()), where, "draws numbers that are not finite")
        last = name.rpartition(".")[2]
        if last in ("R_sersic", "n_sersic", "exposure_time", "clump_size", "image_width"):
            check(low > 0, where, f"draws {low:g}; it must be positive")
        if last in ("mass", "theta_E"):
            check(low >= 0, where, f"draws {low:g}; it must not be negative")
        if last == "e1":
            e = float(np.hypot(values, drawn[name.replace("e1", "e2")]).max())
            check(e < 1, where, f"draws an ellipticity of {e:g} with e2; it must be below 1")
