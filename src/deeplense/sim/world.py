"""A recipe's `simulation` section made ready to draw from: scenes in blocks, seeded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from deeplense import config, recipe, rng
from deeplense.allow import find_class
from deeplense.errors import UserError
from deeplense.lensing import cosmology
from deeplense.lensing.cosmology import Distances
from deeplense.lensing.mesh import on_grid
from deeplense.lensing.raytrace import Component
from deeplense.sim import psf
from deeplense.sim.bands import bands_of, pixel_scale
from deeplense.sim.checks import check, one_of
from deeplense.sim.macro import macro_lens, match_mass
from deeplense.sim.priors import Prior
from deeplense.sim.scene import InBand, Scene
from deeplense.sim.source import Galaxies
from deeplense.sim.substructure import POPULATIONS, Host, Substructure, Truth
from deeplense.sim.substructure.base import POPULATION, is_population, tensors

if TYPE_CHECKING:
    from deeplense.sim.lenses import Lenses

PYHALO = (
    69.7,
    0.2814,
)  # H0, Om0: DeepLenseSim takes this one ratio from pyHalo's cosmology, not from its own
Drawn = dict[str, NDArray[np.float64]]

# of lens and light: kind and components of what turns with the image, and the periods of angles [rad]
PAIRS = {
    "center_x": ("x", ("center_x", "center_y")),
    "center_y": ("y", ("center_x", "center_y")),
    **dict.fromkeys(("e1", "e2"), ("spin2", ("e1", "e2"))),
    **dict.fromkeys(("gamma1", "gamma2"), ("spin2", ("gamma1", "gamma2"))),
}
PERIODS = {"phi3": 2 * np.pi / 3, "phi4": np.pi / 2}


class World:
    """Priors, classes and instruments of a simulation, checked: `World("realistic/hst").draw(16)`.

    Args:
        simulation: a shipped recipe's name, a YAML file, its content, a `Recipe`, or its `simulation` section.
        overrides: `key.sub=value` strings, as on the command line.

    Attributes:
        classes: names, in the order of the labels. truth: every parameter stored with an image.
        bands: names of the images' channels. instruments: of each; instrument: of the first.
        pixel_scale [arcsec], size [pixels].

    Raises:
        UserError: anything in the section that makes no sense, named by its key.
    """

    def __init__(self, simulation: config.Said, overrides: Sequence[str] = ()) -> None:
        s = self.simulation = config.load_simulation(simulation, overrides)
        self._bands = bands_of(s)
        self.bands = [band.name for band in self._bands]
        self.instruments = [band.instrument for band in self._bands]
        self.instrument = self.instruments[0]
        self.pixel_scale = pixel_scale(self._bands, s.pixel_scale)
        self.size = s.size
        for band in self._bands:
            wide = band.instrument.psf_fwhm / self.pixel_scale
            fine = band.kernels is not None or wide <= psf.WIDEST_PIXELS
            check(fine, psf.WHERE, f"the FWHM is {wide:.0f} pixels; at most {psf.WIDEST_PIXELS} are possible")
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
        sections = {"source": s.source, "lens_light": s.lens_light, "lens_envelope": s.lens_envelope}
        self._galaxies = [
            Galaxies(section, f"simulation.{name}", self.instruments, self.bands)
            for name, section in sections.items()
            if section is not None
        ]
        check(bool(s.lens_light or not s.lens_envelope), "simulation.lens_envelope", "there is no lens_light within it")
        self._residual = None
        if s.lens_light_residual is not None:
            self._residual = Prior.parse(s.lens_light_residual, "simulation.lens_light_residual")
            check(s.lens_light is not None, "simulation.lens_light_residual", "there is no lens_light to subtract")
        check(bool(s.classes), "simulation.classes", "no class given; e.g. {no_sub: {population: none}}")
        self.classes = list(s.classes)
        self._populations = [_population(name, spec) for name, spec in s.classes.items()]
        self._own_lens = [_own_lens(name, spec, self._lens) for name, spec in s.classes.items()]
        several = any(getattr(p, "multi_plane", False) for p in self._populations)
        where = "simulation.z_source_convention"
        check(not several or self.deflection_scale == 1, where, "a fault of one plane; leave it out with multi_plane")
        self.truth = self._truths()
        # a prior that leaves its domain is found now
        self._draw_macro(rng.generator(0, "check", 0), self.labels(0, "check", 0))

    def draw(self, n: int, seed: int = 0, stream: str = "train") -> Lenses:
        """The first n lenses of a stream, in its order: those that `simulate` makes with this seed for that split.

        Raises:
            UserError: n is less than 1.
        """
        from deeplense.sim.lenses import Lenses  # which draws worlds' scenes

        if n < 1:
            raise UserError(f"{n} lenses cannot be drawn; ask for 1 or more")
        blocks = -(-n // rng.BLOCK)
        scenes = [s for k in range(blocks) for s in self.scenes(seed, stream, k, min(rng.BLOCK, n - k * rng.BLOCK))]
        return Lenses(self, scenes, seed, stream)

    def labels(self, seed: int, stream: str, block: int) -> NDArray[np.int64]:
        """(BLOCK,) classes: each once in every round, so that any number of scenes holds them equally, but in random
        order, so that the order of files tells nothing."""
        k = len(self.classes)
        rounds = np.tile(np.arange(k), (rng.BLOCK, 1))  # of k blocks
        rounds = rng.generator(seed, f"{stream}/classes", block // k).permuted(rounds, axis=1)
        return np.asarray(rounds.reshape(k, rng.BLOCK)[block % k])

    def scenes(self, seed: int, stream: str, block: int, n: int = rng.BLOCK) -> list[Scene]:
        """The first n scenes of a block, grouped by class; (seed, stream, block) decide them.

        Args:
            stream: e.g. "train"; streams are independent.
        """
        index = block * rng.BLOCK + np.arange(rng.BLOCK)
        labels = self.labels(seed, stream, block)
        macro = self._draw_macro(rng.generator(seed, f"{stream}/macro", block), labels)
        bands = self._seen(macro, seed, stream, block)
        scenes = []
        for label, population in enumerate(self._populations):
            # drawn for the whole block, so that a shorter last block begins as a whole one would
            rows = np.flatnonzero(labels == label)
            drawn = {k: v[rows] for k, v in macro.items()}
            host = self._host(drawn)
            sub = population.sample(rng.generator(seed, f"{stream}/substructure", block, label), host)
            at = torch.from_numpy(rows)
            scene = self._scene(drawn, sub, label, index[rows], [band[at] for band in bands])
            scenes.append(scene[: int((rows < n).sum())])
        return [s for s in scenes if len(s)]

    def distances_of(self, scene: Scene) -> Distances:
        """(B,) distances of a scene's lenses."""
        return self._distances({k: scene.truth[k].numpy() for k in ("z_lens", "z_source")})

    @cached_property
    def halos_per_image(self) -> float | None:
        """How many on average, by one block; None where no class keeps a table of its halos."""
        labels = self.labels(0, "check", 0)
        drawn = self._draw_macro(rng.generator(0, "check", 0), labels)
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

    def _draw_macro(self, generator: np.random.Generator, labels: NDArray[np.int64]) -> Drawn:
        shape = (rng.BLOCK,)
        drawn: Drawn = {}
        for prefix, priors in self._sections():
            drawn |= {f"{prefix}.{k}": p.sample(generator, shape) for k, p in priors.items()}
        for band in self._bands:
            drawn[f"{band.prefix}exposure_time"] = band.exposure.sample(generator, shape)
        drawn["z_lens"], drawn["z_source"] = (p.sample(generator, shape) for p in self._redshifts)
        if self._residual is not None:
            drawn["lens_light_residual"] = self._residual.sample(generator, shape)
        for band in self._bands:
            if band.kernels is not None:
                drawn[f"{band.prefix}psf"] = generator.integers(len(band.kernels), size=shape).astype(float)
        for label, own in enumerate(self._own_lens):
            rows = np.flatnonzero(labels == label)
            for k, prior in own.items():
                drawn[f"lens.{k}"][rows] = prior.sample(generator, rows.shape)
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

    def _scene(
        self, drawn: Drawn, sub: Substructure, label: int, index: NDArray[np.int64], bands: list[InBand]
    ) -> Scene:
        truth = {**drawn, **sub.truth}
        if self.simulation.match_mass:
            drawn = drawn | {"lens.theta_E": match_mass(drawn, [c for c in sub.mass if c.plane == 0])}
        fixed = all(prior.constant for prior in [*(self._lens | self._own_lens[label]).values(), *self._redshifts])
        macro = macro_lens(drawn, alike=fixed and not self.simulation.match_mass)
        halos = [dataclasses.replace(c, fused=self.simulation.compile) for c in sub.mass]
        if self.simulation.mesh and sub.planes is None:  # rays on a grid meet one plane alone
            halos = [on_grid(c) for c in halos]
        return Scene(
            mass=[*macro, *halos],
            source=bands[0].source,
            lens_light=bands[0].lens_light,
            deflection_scale=torch.full((len(index),), self.deflection_scale, dtype=torch.float64),
            exposure=bands[0].exposure,
            label=label,
            index=torch.from_numpy(index),
            truth={k: torch.from_numpy(np.asarray(v, dtype=np.float64)) for k, v in truth.items()},
            halos=_halos(sub),
            psf=bands[0].psf,
            subtracted=bands[0].subtracted,
            planes=sub.planes,
            more_bands=bands[1:],
        )

    def _seen(self, drawn: Drawn, seed: int, stream: str, block: int) -> list[InBand]:
        """Light, exposure and PSF in each band, for a whole block; `drawn` gains what the light draws."""
        source: list[list[Component]] = []
        front: list[list[Component]] = [[] for _ in self._bands]
        for galaxies in self._galaxies:
            generator = rng.generator(seed, f"{stream}/{galaxies.name}", block)
            found, more = galaxies.components(drawn, generator, stream.partition("/")[0] == "train")
            drawn |= more
            if galaxies.name == "source":
                source = found
            else:
                front = [old + new for old, new in zip(front, found, strict=True)]
        subtracted: list[list[Component]] = [[] for _ in self._bands]
        if self._residual is not None:
            left = torch.from_numpy(drawn["lens_light_residual"])[:, None]
            front, subtracted = ([[_dimmed(c, f) for c in band] for band in front] for f in (left, 1 - left))
        seen = []
        for lights, band in zip(zip(source, front, subtracted, strict=True), self._bands, strict=True):
            exposure = torch.from_numpy(drawn[f"{band.prefix}exposure_time"])
            kernels = None
            if band.kernels is not None:
                kernels = band.kernels[torch.from_numpy(drawn[f"{band.prefix}psf"]).long()]
            seen.append(InBand(*lights, exposure, kernels))
        return seen

    def _sections(self) -> list[tuple[str, dict[str, Prior]]]:
        """Prefix and priors of lens, source and lens light."""
        return [("lens", self._lens), *((g.name, g.priors) for g in self._galaxies)]

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
        s = self.simulation
        own = {k for lens in self._own_lens for k in lens}  # of some classes, so no one prior holds for all
        specs = {"lens": {k: None if k in own else getattr(s.lens, k) for k in self._lens}}
        specs |= {g.name: g.specs for g in self._galaxies}
        found = []
        for prefix, priors in self._sections():
            for name in priors:
                both = PAIRS.get(name, ("", (name,)))[1]  # who knows one component must know the other
                if any(not priors[k].constant or (prefix == "lens" and k in own) for k in both):
                    unit = "mag" if name.startswith("colours.") else units.get(name, "")
                    found.append(_truth(prefix, name, unit, specs[prefix].get(name)))
        more = {f"{b.prefix}exposure_time": ("s", b.exposure_time, b.exposure) for b in self._bands}
        more |= {k: ("", getattr(s, k), p) for k, p in zip(("z_lens", "z_source"), self._redshifts, strict=True)}
        if self._residual is not None:
            more["lens_light_residual"] = ("", s.lens_light_residual, self._residual)
        found += [Truth(k, unit, spec) for k, (unit, spec, prior) in more.items() if not prior.constant]
        for galaxies in self._galaxies:
            found += galaxies.truths()
        found += [Truth(f"{b.prefix}psf", "") for b in self._bands if b.kernels is not None and len(b.kernels) > 1]
        for population in self._populations:
            found += [t for t in population.truth() if t.name not in {f.name for f in found}]
        return found


def _truth(prefix: str, name: str, unit: str, spec: Any) -> Truth:
    """With how it turns with the image."""
    if name in PAIRS:
        kind, pair = PAIRS[name]
        return Truth(f"{prefix}.{name}", unit, spec, kind, tuple(f"{prefix}.{k}" for k in pair))
    if name in PERIODS:
        return Truth(f"{prefix}.{name}", "rad", spec, "angle", period=PERIODS[name])
    return Truth(f"{prefix}.{name}", unit, spec)


def _population(name: str, spec: dict[str, Any]) -> Any:
    where = f"simulation.classes.{name}"
    if not isinstance(spec, dict) or "population" not in spec:
        raise UserError(f"{where} needs a 'population'; {config.nearest('population', POPULATIONS)}")
    kind = str(spec["population"])
    cls = find_class(kind, "population", is_population, POPULATION) if ":" in kind else None
    cls = cls or config.lookup(POPULATIONS, kind, "population")
    return config.build(cls, {k: v for k, v in spec.items() if k not in ("population", "lens")}, where)


def _own_lens(name: str, spec: dict[str, Any], lens: dict[str, Prior]) -> dict[str, Prior]:
    """Priors of the macro lens that hold in one class alone."""
    where = f"simulation.classes.{name}.lens"
    section = spec.get("lens") or {}
    own = config.build(recipe.Lens, section, where)
    for key in section:
        check(key in lens, f"{where}.{key}", f"simulation.lens has {', '.join(lens)}; give one of these")
    return {k: Prior.parse(getattr(own, k), f"{where}.{k}") for k in section}


def _dimmed(light: Component, factor: torch.Tensor) -> Component:
    return dataclasses.replace(light, params=light.params | {"amp": light.params["amp"] * factor})


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
