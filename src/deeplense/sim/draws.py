"""What is drawn of macro lenses, redshifts and light: priors, the sky that ties some of them, and the selection."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from deeplense import config, recipe, rng
from deeplense.allow import find_class
from deeplense.errors import UserError
from deeplense.lensing import cosmology
from deeplense.lensing.cosmology import Distances
from deeplense.sim import selection
from deeplense.sim.bands import Band
from deeplense.sim.checks import check, one_of
from deeplense.sim.priors import Prior
from deeplense.sim.sky import SKIES, SKY, Setting, is_sky
from deeplense.sim.source import Galaxies
from deeplense.sim.substructure import Truth

Drawn = dict[str, NDArray[np.float64]]
ROUND = 256  # lenses drawn at a time where some are selected
LIGHTS = ("source", "lens_light", "lens_envelope")

# of lens and light: kind and components of what turns with the image, and the periods of angles [rad]
PAIRS = {
    "center_x": ("x", ("center_x", "center_y")),
    "center_y": ("y", ("center_x", "center_y")),
    **dict.fromkeys(("e1", "e2"), ("spin2", ("e1", "e2"))),
    **dict.fromkeys(("gamma1", "gamma2"), ("spin2", ("gamma1", "gamma2"))),
}
PERIODS = {"phi3": 2 * np.pi / 3, "phi4": np.pi / 2}
UNITS = {"theta_E": "arcsec", "center_x": "arcsec", "center_y": "arcsec", "R_sersic": "arcsec",
         "mass": "Msun", "magnitude": "AB mag", "image_width": "arcsec"}  # fmt: skip


class Draws:
    """Priors of a simulation, checked.

    Attributes:
        galaxies: source, lens light and envelope. redshifts: priors of z_lens and z_source.
        sky: population of lenses and sources. tied: names that it draws.
        patch: of the sky, after which streams are named; "" without one.

    Raises:
        UserError: priors, sky or selection that make no sense, named by their key.
    """

    def __init__(self, s: recipe.Simulation, bands: Sequence[Band], pixel_scale: float) -> None:
        self._s, self._bands, self._pixel_scale = s, bands, pixel_scale
        self.sky, self.patch = _sky(s.sky)
        sections = {"lens", *(name for name in LIGHTS if getattr(s, name) is not None)}
        self._sky_truth = [
            t for t in (self.sky.truth() if self.sky else []) if "." not in t.name or t.name.split(".")[0] in sections
        ]
        self.tied = [t.name for t in self._sky_truth]
        redshifts = ((k, getattr(s, k)) for k in ("z_lens", "z_source"))
        self.redshifts = {k: Prior.parse(z, f"simulation.{k}") for k, z in redshifts if k not in self.tied}
        if len(self.redshifts) == 2:
            (nearest, farthest), (source, _) = (z.bounds for z in self.redshifts.values())
            wrong = f"need 0 < z_lens < z_source always, but z_lens reaches {farthest:g} and z_source {source:g}"
            check(nearest > 0 and farthest < source, "simulation.z_source", wrong)
        own = self._tied_in("lens")
        given = [k for k in ("theta_E", "mass") if getattr(s.lens, k) is not None]
        if "theta_E" in own:
            check(not given, f"simulation.lens.{''.join(given[:1])}", "simulation.sky draws theta_E; leave it out")
        else:
            one_of(s.lens, "theta_E", "mass", "simulation.lens")
        self._lens = {k: p for k, p in _priors(s.lens, "simulation.lens").items() if k not in own}
        instruments, names = [b.instrument for b in bands], [b.name for b in bands]
        self.galaxies = [
            Galaxies(getattr(s, name), f"simulation.{name}", instruments, names, self._tied_in(name))
            for name in LIGHTS
            if name in sections
        ]
        self._quasar: dict[str, Prior] = {}
        if s.quasar is not None:
            one_of(s.quasar, "amplitude", "magnitude", "simulation.quasar")
            known = s.quasar.magnitude is None or all(i.zero_point is not None for i in instruments)
            check(known, "simulation.quasar.magnitude", "the instrument has no zero point; give an amplitude")
            self._quasar = _priors(s.quasar, "simulation.quasar")
        self._residual = None
        if s.lens_light_residual is not None:
            self._residual = Prior.parse(s.lens_light_residual, "simulation.lens_light_residual")
            check(s.lens_light is not None, "simulation.lens_light_residual", "there is no lens_light to subtract")
        if s.selection is not None and s.selection.lens_magnitude is not None:
            known = any(g.name == "lens_light" and "magnitude" in [*g.priors, *g.tied] for g in self.galaxies)
            check(known, "simulation.selection.lens_magnitude", "there is no lens_light with a magnitude; leave it out")
        self._own_lens = [_own_lens(name, spec, self._lens) for name, spec in s.classes.items()]
        for name, of_class in zip(s.classes, self._own_lens, strict=True):
            where = f"simulation.classes.{name}.lens"
            check(not (of_class and s.selection), where, "a selection is alike for all classes; leave one of them out")

    def fixed(self, label: int) -> bool:
        """Whether all lenses of a class are the same."""
        priors = [*(self._lens | self._own_lens[label]).values(), *self.redshifts.values()]
        return self.sky is None and self._s.selection is None and all(prior.constant for prior in priors)

    def block(self, generator: Generator, labels: NDArray[np.int64]) -> Drawn:
        """A block of lenses of these classes."""
        if self._s.selection is not None:
            return selection.first(len(labels), lambda: self._round(generator))
        drawn = self._candidates(generator, len(labels))
        for label, own in enumerate(self._own_lens):
            rows = np.flatnonzero(labels == label)
            for k, prior in own.items():
                drawn[f"lens.{k}"][rows] = prior.sample(generator, rows.shape)
        return self._derived(drawn)

    def stored(self, label: int, truth: Drawn, n: int) -> Drawn:
        """Macro lenses and redshifts of n images of a class, of which what varies is known."""
        priors = {f"lens.{k}": p for k, p in (self._lens | self._own_lens[label]).items()} | self.redshifts
        nothing = rng.generator(0, "check", 0)  # constants alone are not stored
        drawn = {k: truth[k] if k in truth else p.sample(nothing, (n,)) for k, p in priors.items()}
        return self._derived(drawn | {k: truth[k] for k in self.tied})

    @cached_property
    def selected(self) -> float | None:
        """Share of the lenses drawn that the selection keeps, by 2,048 of them; None where there is none."""
        if self._s.selection is None:
            return None
        generator, rounds = rng.generator(0, "check/selected"), 8
        return sum(int(self._round(generator)[1].sum()) for _ in range(rounds)) / (rounds * ROUND)

    def distances(self, drawn: Drawn) -> Distances:
        """Arrays like the redshifts."""
        c = self._s.cosmology
        make = {"angular_diameter": cosmology.distances, "luminosity": cosmology.luminosity_distances}[c.distances]
        redshifts = drawn["z_lens"], drawn["z_source"]
        constant = len(self.redshifts) == 2 and all(prior.constant for prior in self.redshifts.values())
        if constant and len(redshifts[0]):
            found = make(float(redshifts[0][0]), float(redshifts[1][0]), c.H0, c.Om0, w0=c.w0)
            return found.like(redshifts[0])
        return make(*redshifts, c.H0, c.Om0, w0=c.w0)

    def truths(self) -> list[Truth]:
        """Of everything drawn that varies, and of what the light draws beside it."""
        s, own = self._s, {k for lens in self._own_lens for k in lens}  # of some classes, so no one prior holds for all
        specs = {"lens": {k: None if k in own else getattr(s.lens, k) for k in self._lens}}
        specs |= {g.name: g.specs for g in self.galaxies}
        specs["quasar"] = {k: getattr(s.quasar, k) for k in self._quasar}
        found = []
        for prefix, priors in self._sections():
            for name in priors:
                both = PAIRS.get(name, ("", (name,)))[1]  # who knows one component must know the other
                if any(not priors[k].constant or (prefix == "lens" and k in own) for k in both):
                    unit = "mag" if name.startswith("colours.") else UNITS.get(name, "")
                    found.append(_truth(prefix, name, unit, specs[prefix].get(name)))
        more = {f"{b.prefix}exposure_time": ("s", b.exposure_time, b.exposure) for b in self._bands}
        more |= {k: ("", getattr(s, k), p) for k, p in self.redshifts.items()}
        if self._residual is not None:
            more["lens_light_residual"] = ("", s.lens_light_residual, self._residual)
        found += [Truth(k, unit, spec) for k, (unit, spec, prior) in more.items() if not prior.constant]
        found += self._sky_truth
        found += [Truth(k, "") for k in selection.FOUND if s.selection is not None]
        for galaxies in self.galaxies:
            found += galaxies.truths()
        return found + [
            Truth(f"{b.prefix}psf", "") for b in self._bands if b.kernels is not None and len(b.kernels) > 1
        ]

    def _tied_in(self, section: str) -> list[str]:
        return [name.partition(".")[2] for name in self.tied if name.startswith(f"{section}.")]

    def _sections(self) -> Iterator[tuple[str, dict[str, Prior]]]:
        """Prefix and priors of lens, source, lens light and quasar."""
        yield "lens", self._lens
        yield from ((g.name, g.priors) for g in self.galaxies)
        yield "quasar", self._quasar

    def _round(self, generator: Generator) -> tuple[Drawn, NDArray[np.bool_]]:
        """Lenses with what their coarse images show, and which of them the selection keeps."""
        assert self._s.selection is not None
        drawn = self._derived(self._candidates(generator, ROUND))
        half_width = self._s.size * self._pixel_scale / 2
        possible = selection.possible(drawn, half_width, self._s.selection)
        drawn = {k: v[possible] for k, v in drawn.items()}
        smooth = {g.name: g.smooth(drawn) for g in self.galaxies}
        light = selection.Light(smooth.pop("source"), list(smooth.values()))
        band, size = self._bands[0], self._s.size
        time = drawn[f"{band.prefix}exposure_time"]
        view = selection.look(drawn, light, band.instrument, self._pixel_scale, size, time)
        seen = zip(selection.FOUND, (view.magnification, view.arc_signal_to_noise, view.n_images), strict=True)
        return drawn | dict(seen), selection.chosen(view, self._s.selection)

    def _candidates(self, generator: Generator, n: int) -> Drawn:
        drawn: Drawn = {}
        for prefix, priors in self._sections():
            drawn |= {f"{prefix}.{k}": p.sample(generator, (n,)) for k, p in priors.items()}
        for band in self._bands:
            drawn[f"{band.prefix}exposure_time"] = band.exposure.sample(generator, (n,))
        drawn |= {k: p.sample(generator, (n,)) for k, p in self.redshifts.items()}
        if self._residual is not None:
            drawn["lens_light_residual"] = self._residual.sample(generator, (n,))
        for band in self._bands:
            if band.kernels is not None:
                drawn[f"{band.prefix}psf"] = generator.integers(len(band.kernels), size=n).astype(float)
        if self.sky is not None:
            c = self._s.cosmology
            found = self.sky.draw(generator, drawn, Setting(c.H0, c.Om0, self._bands[0].name, c.w0))
            missing = [k for k in self.tied if np.shape(found.get(k)) != (n,)]
            check(not missing, "simulation.sky", f"draw gives no ({n},) array of {', '.join(missing)}")
            drawn |= {k: np.asarray(found[k], dtype=np.float64) for k in self.tied}
        return drawn

    def _derived(self, drawn: Drawn) -> Drawn:
        _check_drawn(drawn)
        if "lens.mass" in drawn:
            drawn["lens.theta_E"] = np.sqrt(drawn["lens.mass"] * self.distances(drawn).theta_E2_per_mass)
        return drawn


def _sky(spec: dict[str, Any] | None) -> tuple[Any, str]:
    """The recipe's population of lenses, and its patch of sky."""
    if spec is None:
        return None, ""
    if "population" not in spec:
        raise UserError(f"simulation.sky needs a 'population'; {config.nearest('population', SKIES)}")
    kind, patch = str(spec["population"]), spec.get("field", "")
    check(isinstance(patch, str), "simulation.sky.field", f"{patch!r} is no name; write it in quotes")
    cls = find_class(kind, "sky", is_sky, SKY) if ":" in kind else config.lookup(SKIES, kind, "sky")
    return config.build(
        cls, {k: v for k, v in spec.items() if k not in ("population", "field")}, "simulation.sky"
    ), patch


def _truth(prefix: str, name: str, unit: str, spec: Any) -> Truth:
    """With how it turns with the image."""
    if name in PAIRS:
        kind, pair = PAIRS[name]
        return Truth(f"{prefix}.{name}", unit, spec, kind, tuple(f"{prefix}.{k}" for k in pair))
    if name in PERIODS:
        return Truth(f"{prefix}.{name}", "rad", spec, "angle", period=PERIODS[name])
    return Truth(f"{prefix}.{name}", unit, spec)


def _own_lens(name: str, spec: dict[str, Any], lens: dict[str, Prior]) -> dict[str, Prior]:
    """Priors of the macro lens that hold in one class alone."""
    where = f"simulation.classes.{name}.lens"
    section = (spec.get("lens") if isinstance(spec, dict) else None) or {}
    own = config.build(recipe.Lens, section, where)
    for key in section:
        check(key in lens, f"{where}.{key}", f"simulation.lens has {', '.join(lens)}; give one of these")
    return {k: Prior.parse(getattr(own, k), f"{where}.{k}") for k in section}


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
