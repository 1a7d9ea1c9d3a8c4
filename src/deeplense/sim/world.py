"""A recipe's `simulation` section made ready to draw from: scenes in blocks, seeded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deeplense import config, rng
from deeplense.allow import find_class
from deeplense.errors import UserError
from deeplense.lensing import cosmology
from deeplense.lensing.cosmology import Distances
from deeplense.lensing.mesh import on_grid
from deeplense.lensing.multiplane import Planes
from deeplense.lensing.raytrace import Component
from deeplense.sim import psf
from deeplense.sim.bands import bands_of, pixel_scale
from deeplense.sim.checks import check
from deeplense.sim.draws import Drawn, Draws
from deeplense.sim.macro import MOST, macro_lens, match_mass, share_of_mass
from deeplense.sim.quasar import quasar_of
from deeplense.sim.scene import InBand, Scene
from deeplense.sim.substructure import POPULATIONS, Host, Substructure, Truth
from deeplense.sim.substructure.base import POPULATION, is_population, mixed, padded, tensors

if TYPE_CHECKING:
    from deeplense.sim.lenses import Lenses

PYHALO = (
    69.7,
    0.2814,
)  # H0, Om0: DeepLenseSim takes this one ratio from pyHalo's cosmology, not from its own


REDRAWS = 20  # of substructure that is heavier than its lens


class Rebuilt(NamedTuple):
    """Deflectors, and the planes in which they are, as `Scene` has them."""

    mass: list[Component]
    planes: Planes | None


class World:
    """Priors, classes and instruments of a simulation, checked: `World("realistic/hst").draw(16)`.

    Args:
        simulation: a shipped recipe's name, a YAML file, its content, a `Recipe`, or its `simulation` section.
        overrides: `key.sub=value` strings, as on the command line.

    Attributes:
        classes: names, in the order of the labels. truth: every parameter stored with an image.
        bands: names of the images' channels. instruments: of each; instrument: of the first.
        pixel_scale: [arcsec]. size: [pixels] a side.

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
        self._check_unit()
        self._draws = Draws(s, self._bands, self.pixel_scale)
        self.deflection_scale = self._deflection_scale()
        check(bool(s.lens_light or not s.lens_envelope), "simulation.lens_envelope", "there is no lens_light within it")
        check(bool(s.classes), "simulation.classes", "no class given; e.g. {no_sub: {population: none}}")
        self.classes = list(s.classes)
        self._populations = [_population(name, spec) for name, spec in s.classes.items()]
        several = any(getattr(p, "multi_plane", False) for p in self._populations)
        where = "simulation.z_source_convention"
        check(not several or self.deflection_scale == 1, where, "a fault of one plane; leave it out with multi_plane")
        self.truth = self._truths()
        # a prior that leaves its domain is found now
        self._draws.block(rng.generator(0, "check", 0), self.labels(0, "check", 0))

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
        stream += f"/{self._draws.patch}" if self._draws.patch else ""
        macro = self._draws.block(rng.generator(seed, f"{stream}/macro", block), labels)
        bands = self._seen(macro, seed, stream, block)
        scenes = []
        for label, population in enumerate(self._populations):
            # drawn for the whole block, so that a shorter last block begins as a whole one would
            rows = np.flatnonzero(labels == label)
            drawn = {k: v[rows] for k, v in macro.items()}
            sub, share = self._substructure(population, drawn, (seed, f"{stream}/substructure", block, label))
            at = torch.from_numpy(rows)
            scene = self._scene(drawn, sub, share, label, index[rows], [band[at] for band in bands])
            scenes.append(scene[: int((rows < n).sum())])
        return [s for s in scenes if len(s)]

    def distances_of(self, scene: Scene) -> Distances:
        """(B,) distances of a scene's lenses."""
        return self._draws.distances({k: scene.truth[k].numpy() for k in ("z_lens", "z_source")})

    @property
    def selected(self) -> float | None:
        """Share of the lenses drawn that the recipe's selection keeps, on average; None where it has none."""
        return self._draws.selected

    def tied_widths(self) -> dict[str, float]:
        """Standard deviations, over a block, of what the recipe's sky draws; of the lenses that are kept."""
        drawn = self._draws.block(rng.generator(0, "check", 0), self.labels(0, "check", 0))
        return {k: float(drawn[k].std()) for k in self._draws.tied}

    @cached_property
    def halos_per_image(self) -> float | None:
        """How many on average, by one block; None where no class keeps a table of its halos."""
        labels = self.labels(0, "check", 0)
        drawn = self._draws.block(rng.generator(0, "check", 0), labels)
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

    def rebuild(self, label: int, params: NDArray[Any], rows: Sequence[NDArray[Any]]) -> Rebuilt:
        """Deflectors of n stored images of one class, from what a dataset keeps of them: nothing is drawn again.

        Args:
            params: (n, P), as `truth_row`. rows: of each image, a structured array of its halos (`Split.halos`); empty
                arrays for a class that has none.
        """
        stored = {t.name: params[:, k] for k, t in enumerate(self.truth)}
        drawn = self._draws.stored(label, stored, len(params))
        population = self._populations[label]
        check(
            hasattr(population, "build"), f"simulation.classes.{self.classes[label]}", "its population has no 'build'"
        )
        truth = {t.name: stored[t.name] for t in population.truth()}
        sub = population.build(truth, padded(rows), self._host(drawn))
        return Rebuilt(self._mass(drawn, sub, self._share(drawn, sub), label), sub.planes)

    def _substructure(
        self, population: Any, drawn: Drawn, key: tuple[int, str, int, int]
    ) -> tuple[Substructure, NDArray[np.float64]]:
        """Of these lenses, with its share of their mass; drawn again where hardly any is left for the lens."""
        host, (seed, stream, block, label) = self._host(drawn), key
        sub = population.sample(rng.generator(*key), host)
        share = self._share(drawn, sub)
        for again in range(1, REDRAWS + 1):
            heavy = share > MOST
            if sub.halos is None or not hasattr(population, "build") or not heavy.any():
                break
            other = population.sample(rng.generator(seed, f"{stream}/again {again}", block, label), host)
            truth = {k: np.where(heavy, other.truth[k], v) for k, v in sub.truth.items()}
            sub = population.build(truth, mixed(heavy, other.halos, sub.halos), host)
            share = self._share(drawn, sub)
        return sub, share

    def _share(self, drawn: Drawn, sub: Substructure) -> NDArray[np.float64]:
        """Of the lenses' mass that the substructure takes away from them, where it does."""
        if not self.simulation.match_mass:
            return np.zeros(len(drawn["lens.theta_E"]))
        return share_of_mass(drawn, sub.mass, sub.planes)

    def _host(self, drawn: Drawn) -> Host:
        columns = {k: v[:, None] for k, v in drawn.items()}
        c = self.simulation.cosmology
        return Host(
            columns["z_lens"],
            columns["z_source"],
            self._draws.distances(drawn).like(columns["z_lens"]),
            columns["lens.theta_E"],
            columns["lens.center_x"],
            columns["lens.center_y"],
            self.size * self.pixel_scale / 2,
            c.H0,
            c.Om0,
            columns.get("log10_m_host"),
            c.w0,
        )

    def _scene(
        self,
        drawn: Drawn,
        sub: Substructure,
        share: NDArray[np.float64],
        label: int,
        index: NDArray[np.int64],
        bands: list[InBand],
    ) -> Scene:
        truth = {**drawn, **sub.truth}
        return Scene(
            mass=self._mass(drawn, sub, share, label),
            source=bands[0].source,
            lens_light=bands[0].lens_light,
            deflection_scale=torch.full((len(index),), self.deflection_scale, dtype=torch.float64),
            exposure=bands[0].exposure,
            label=label,
            index=torch.from_numpy(index),
            truth={k: torch.from_numpy(np.asarray(v, dtype=np.float64)) for k, v in truth.items()},
            halos=_halos(sub),
            psf=bands[0].psf,
            quasar=bands[0].quasar,
            subtracted=bands[0].subtracted,
            planes=sub.planes,
            more_bands=bands[1:],
        )

    def _mass(self, drawn: Drawn, sub: Substructure, share: NDArray[np.float64], label: int) -> list[Component]:
        if self.simulation.match_mass:
            drawn = drawn | {"lens.theta_E": match_mass(drawn, share)}
        macro = macro_lens(drawn, alike=self._draws.fixed(label) and not self.simulation.match_mass)
        halos = [dataclasses.replace(c, fused=self.simulation.compile) for c in sub.mass]
        if self.simulation.mesh and not (sub.planes and sub.planes.coupled):  # rays bent in turn lie on no grid
            halos = [on_grid(c) for c in halos]
        return [*macro, *halos]

    def _seen(self, drawn: Drawn, seed: int, stream: str, block: int) -> list[InBand]:
        """Light, exposure and PSF in each band, for a whole block; `drawn` gains what the light draws."""
        source: list[list[Component]] = []
        front: list[list[Component]] = [[] for _ in self._bands]
        for galaxies in self._draws.galaxies:
            generator = rng.generator(seed, f"{stream}/{galaxies.name}", block)
            found, more = galaxies.components(drawn, generator, stream.partition("/")[0] == "train")
            drawn |= more
            if galaxies.name == "source":
                source = found
            else:
                front = [old + new for old, new in zip(front, found, strict=True)]
        subtracted: list[list[Component]] = [[] for _ in self._bands]
        if "lens_light_residual" in drawn:
            left = torch.from_numpy(drawn["lens_light_residual"])[:, None]
            front, subtracted = ([[_dimmed(c, f) for c in band] for band in front] for f in (left, 1 - left))
        seen = []
        for lights, band in zip(zip(source, front, subtracted, strict=True), self._bands, strict=True):
            exposure = torch.from_numpy(drawn[f"{band.prefix}exposure_time"])
            kernels = None
            if band.kernels is not None:
                kernels = band.kernels[torch.from_numpy(drawn[f"{band.prefix}psf"]).long()]
            seen.append(InBand(*lights, exposure, kernels, quasar_of(drawn, band.instrument)))
        return seen

    def _deflection_scale(self) -> float:
        """Legacy fault: lenses defined for a source at z_source_convention, images made for one at z_source."""
        s = self.simulation
        if s.z_source_convention is None or s.z_source_convention == s.z_source:
            return 1.0
        where = "simulation.z_source_convention"
        redshifts = list(self._draws.redshifts.values())
        fixed = len(redshifts) == 2 and all(z.constant for z in redshifts) and s.selection is None
        check(fixed, where, "a fault of fixed redshifts; leave it out where they vary, or are selected")
        z_lens, z_source = (z.arguments[0] for z in redshifts)
        check(s.z_source_convention > z_lens, where, f"{s.z_source_convention} is not beyond z_lens ({z_lens})")
        here, there = (cosmology.distances(z_lens, z, *PYHALO) for z in (z_source, s.z_source_convention))
        return float((here.D_ls / here.D_s) / (there.D_ls / there.D_s))

    def _check_unit(self) -> None:
        s, where = self.simulation, "simulation.unit"
        if s.unit != "electron/s":
            check(s.noise != "triple", where, "noise: triple counts electrons; leave one of them out")
            check(not s.scale_to_max, where, "scale_to_max has no unit; leave one of them out")
            known = all(i.zero_point is not None for i in self.instruments)
            check(known, where, f"an instrument has no zero point, and so no {s.unit}; leave it out")

    def _truths(self) -> list[Truth]:
        found = self._draws.truths()
        for population in self._populations:
            found += [t for t in population.truth() if t.name not in {f.name for f in found}]
        return found


def _population(name: str, spec: dict[str, Any]) -> Any:
    where = f"simulation.classes.{name}"
    if not isinstance(spec, dict) or "population" not in spec:
        raise UserError(f"{where} needs a 'population'; {config.nearest('population', POPULATIONS)}")
    kind = str(spec["population"])
    cls = find_class(kind, "population", is_population, POPULATION) if ":" in kind else None
    cls = cls or config.lookup(POPULATIONS, kind, "population")
    return config.build(cls, {k: v for k, v in spec.items() if k not in ("population", "lens")}, where)


def _dimmed(light: Component, factor: torch.Tensor) -> Component:
    return dataclasses.replace(light, params=light.params | {"amp": light.params["amp"] * factor})


def _halos(sub: Substructure) -> Component | None:
    """The halos' rows, which no ray shooter sees."""
    if sub.halos is None:
        return None
    return Component("halo", tensors(sub.halos.columns), torch.from_numpy(sub.halos.mask))
