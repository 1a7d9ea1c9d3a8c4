"""What an image contains: Fisher matrix, Cramér–Rao bounds, and how they run over a recipe's scenes.

The likelihood is Gaussian with a variance that follows the mean. For mean μ(θ) and σ²(μ) per pixel
F_ij = Σ_p [∂_i μ ∂_j μ/σ² + ½ ∂_i ln σ² ∂_j ln σ²] (Tegmark, Taylor & Heavens 1997, eq. 15, diagonal covariance). It is
the limit of many counts: for N electrons of pure Poisson noise the second term exceeds the exact N⁻¹ by ½ N⁻².
No unbiased estimate scatters less than (F⁻¹)^½; one that knows a prior adds 1/σ² of it to the diagonal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deeplense import rng
from deeplense.errors import UserError
from deeplense.evaluation.forward import SUBHALO, Forward, Subhalo
from deeplense.sim.macro import MACRO
from deeplense.sim.priors import Prior
from deeplense.sim.scene import Scene
from deeplense.sim.source import NO_PRIORS
from deeplense.sim.world import World

Floats = NDArray[np.float64]
SINGULAR = 1e-12  # smallest eigenvalue of the matrix scaled to a unit diagonal


@dataclass(frozen=True)
class Information:
    """Fisher matrix of one image.

    Attributes:
        names: P parameters. matrix: (P, P), in their units. precision: (P,), 1/σ² of Gaussian priors, 0 for none.
    """

    names: tuple[str, ...]
    matrix: Floats
    precision: Floats

    def cramer_rao(self, name: str, known: bool = False) -> float:
        """Smallest standard deviation of a parameter: marginalised over the others, or with all of them known."""
        k = self._index(name)
        return self[[name]].cramer_rao(name) if known and len(self.names) > 1 else float(self.covariance()[k, k] ** 0.5)

    def covariance(self) -> Floats:
        """(P, P) inverse of Fisher matrix plus priors, computed on a unit diagonal.

        Raises:
            UserError: singular; the message names the combination of parameters that the image cannot tell.
        """
        total = self.matrix + np.diag(self.precision)
        diagonal = np.sqrt(np.diag(total))
        for name, d in zip(self.names, diagonal, strict=True):
            if not d > 0:
                raise UserError(f"the image does not depend on {name}; leave it out, or give it a prior")
        eigen, vectors = np.linalg.eigh(total / np.outer(diagonal, diagonal))
        if eigen[0] < SINGULAR:
            weak = vectors[:, 0] / np.abs(vectors[:, 0]).max()
            terms = [f"{w:+.2f} {n}·σ" for w, n in zip(weak, self.names, strict=True) if abs(w) > 0.1]
            raise UserError(f"degenerate: the image cannot tell {' '.join(terms)}; leave one out, or give it a prior")
        root = vectors / np.sqrt(eigen) / diagonal[:, None]
        return np.asarray(root @ root.T)

    def with_priors(self, widths: dict[str, float]) -> Information:
        """With Gaussian priors of these standard deviations; names that are not here are passed over."""
        precision = [widths[n] ** -2 if n in widths else 0.0 for n in self.names]
        return dataclasses.replace(self, precision=self.precision + precision)

    def __getitem__(self, names: Sequence[str]) -> Information:
        """Of some parameters, the others known."""
        at = [self._index(n) for n in names]
        return Information(tuple(names), self.matrix[np.ix_(at, at)], self.precision[at])

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise UserError(f"parameter '{name}' is not in this matrix; it has {', '.join(self.names)}")
        return self.names.index(name)


def fisher(
    world: World, scene: Scene, parameters: Sequence[str] | None = None, subhalo: Subhalo | None = None
) -> Information:
    """Fisher matrix of one image.

    Args:
        scene: of length 1. parameters: names as in `Forward`; all of the image's when not given.
        subhalo: added to the scene.

    Raises:
        UserError: unknown parameter, several scenes, or a recipe whose noise has no likelihood.
    """
    return _fisher(Forward(world, scene, subhalo), parameters)


def _fisher(forward: Forward, parameters: Sequence[str] | None = None) -> Information:
    names = tuple(forward.names if parameters is None else parameters)
    mean, slopes = forward.derivatives(names)
    variance = forward.variance(mean)
    # both terms share ∂μ, since ∂σ² = ∂μ/t
    weight = 1 / variance + 0.5 / (forward.exposure * variance) ** 2
    flat = (slopes * weight.sqrt()).flatten(1)
    return Information(names, (flat @ flat.T).numpy(), np.zeros(len(names)))


def recipe_widths(world: World) -> dict[str, float]:
    """Standard deviation of every parameter that the recipe varies, and that `Forward` knows."""
    s = world.simulation
    found = {}
    for prefix, section in (("lens", s.lens), ("source", s.source), ("lens_light", s.lens_light)):
        for field in dataclasses.fields(section) if section else ():
            spec = getattr(section, field.name)
            name = f"{prefix}.{field.name}"
            if field.name not in NO_PRIORS and spec is not None and (width := _width(spec, name)):
                found[name] = width
    found |= {k: width for k, width in world.tied_widths().items() if "." in k}
    for spec in s.classes.values():
        if spec["population"] == "vortex":
            found["vortex_angle"] = np.pi / 12**0.5  # a line is its own turn by π
            for name in ("log10_m_axion", "impact", "mass"):
                if name in spec and (width := _width(spec[name], name, log10=name == "mass")):
                    own = {"log10_m_axion": [name], "impact": ["vortex_x", "vortex_y"], "mass": ["vortex_log10_mass"]}
                    found |= dict.fromkeys(own[name], width)
    return found


def _width(spec: object, name: str, log10: bool = False) -> float:
    prior = Prior.parse(spec, name)
    if prior.constant:
        return 0.0
    draws = prior.sample(rng.generator(0, "information/width"), (100_000,))
    if prior.kind == "uniform" and not log10:
        return float(np.ptp(prior.arguments)) / 12**0.5
    return float(np.std(np.log10(draws) if log10 else draws))


@dataclass(frozen=True)
class Bounds:
    """Cramér–Rao bounds of one parameter over scenes.

    Attributes:
        grid: (G,) values of the parameter. sigma: (G, S) bounds for S scenes in three states of knowledge:
            "known" (everything else), "recipe" (what the recipe varies is free, with its widths as priors), "all"
            (every parameter of macro lens, source and dark matter is free, without priors).
    """

    grid: Floats
    sigma: dict[str, Floats]

    def percentiles(self, state: str) -> Floats:
        """(3, G): 16, 50 and 84 % over the scenes."""
        return np.percentile(self.sigma[state], [16, 50, 84], axis=1)


def bound_log10_m_axion(world: World, log10_m: Floats, scenes: int = 16, seed: int = 0) -> Bounds:
    """Bound on log10(m/eV) of a vortex against its value; all else as the recipe draws it.

    Raises:
        UserError: no class of the recipe is a vortex.
    """
    models = _vortices(world, scenes, seed)
    return _bounds(world, models, "log10_m_axion", log10_m)


def ideal_errors(world: World, points: int = 201, scenes: int = 12, seed: int = 0) -> tuple[Floats, Floats]:
    """|error| of log10(m/eV) by the posterior's median when all else is known: none has a smaller mean over the prior.

    A Fisher matrix knows the likelihood's peak alone; this is the whole posterior on a grid over the recipe's uniform
    prior, for one noisy image at each grid point of each scene, and so holds where the image only says "short".

    Returns:
        (G,) true values, (G, S) errors, good to the grid's spacing.
    """
    models = _vortices(world, scenes, seed)
    (low, high), errors = _prior_range(world), np.empty((points, scenes))
    grid = low + (np.arange(points) + 0.5) * (high - low) / points
    for column, forward in enumerate(models):
        images = forward.render({"log10_m_axion": torch.from_numpy(grid)})
        mean, variance = images.flatten(1), forward.variance(images).flatten(1)
        draw = rng.generator(seed, "information/ideal", column).standard_normal(mean.shape)
        data = mean + variance.sqrt() * torch.from_numpy(draw)
        chi2 = data**2 @ (1 / variance).T - 2 * data @ (mean / variance).T + (mean**2 / variance).sum(1)
        posterior = torch.softmax(-0.5 * (chi2 + torch.log(variance).sum(1)), 1)
        median = (posterior.cumsum(1) < 0.5).sum(1).clamp_max(points - 1)
        errors[:, column] = np.abs(grid[median.numpy()] - grid)
    return grid, errors


def bound_subhalo_mass(
    world: World, log10_mass: Floats, scenes: int = 16, seed: int = 0, profile: str = "point_mass"
) -> Bounds:
    """Bound on log10(M/M☉) of one subhalo on the arc of an otherwise smooth lens, against its mass.

    It lies on the corner of a pixel drawn from those at least half as bright as the brightest.
    """
    models = []
    drawn = smooth(_scenes(world, seed, scenes)[0])
    for k in range(scenes):
        scene = drawn[k : k + 1]
        mean = Forward(world, scene).render({})[0, : world.size].numpy()  # of the first band
        arc = np.argwhere(mean >= mean.max() / 2)
        row, column = arc[rng.generator(seed, "information/arc", k).integers(len(arc))]
        x, y = ((i + 0.5 - (world.size - 1) / 2) * world.pixel_scale for i in (column, row))
        models.append(Forward(world, scene, Subhalo(float(log10_mass[0]), float(x), float(y), profile)))
    return _bounds(world, models, SUBHALO[0], log10_mass)


KEPT = ("lens", "source", "lens_light", "z_lens", "z_source")  # truths that are not of the dark matter


def smooth(scene: Scene) -> Scene:
    """Without its dark matter."""
    kept = [c for c in scene.mass if c.profile in MACRO]
    truth = {k: v for k, v in scene.truth.items() if k.partition(".")[0] in KEPT}
    return dataclasses.replace(scene, mass=kept, truth=truth)


def _vortices(world: World, n: int, seed: int) -> list[Forward]:
    drawn = [s for s in _scenes(world, seed, n) if "log10_m_axion" in s.truth]
    if not drawn:
        raise UserError("no class of this recipe has an axion vortex; take model_1, model_2 or quickstart")
    return [Forward(world, drawn[0][k : k + 1]) for k in range(n)]


def _prior_range(world: World) -> tuple[float, float]:
    (spec,) = (t.prior for t in world.truth if t.name == "log10_m_axion")
    prior = Prior.parse(spec, "log10_m_axion")
    if prior.kind != "uniform":
        raise UserError(f"log10_m_axion: the ideal error is for a uniform prior, not {prior.kind}")
    return prior.arguments[0], prior.arguments[1]


def _scenes(world: World, seed: int, n: int) -> list[Scene]:
    found = world.scenes(seed, "information", 0, min(rng.BLOCK, n * len(world.classes)))
    if min(map(len, found)) < n:
        raise UserError(f"{n} scenes of each class were asked; a block holds {min(map(len, found))}")
    return found


def _bounds(world: World, models: Sequence[Forward], target: str, grid: Floats) -> Bounds:
    widths = {k: v for k, v in recipe_widths(world).items() if k != target}
    sigma = {state: np.empty((len(grid), len(models))) for state in ("known", "recipe", "all")}
    for column, forward in enumerate(models):
        free = [n for n in forward.names if n in widths or n in SUBHALO or n == target]
        for row, value in enumerate(grid):
            forward.values[target] = float(value)
            found = _fisher(forward)
            sigma["known"][row, column] = found.cramer_rao(target, known=True)
            sigma["recipe"][row, column] = found[free].with_priors(widths).cramer_rao(target)
            sigma["all"][row, column] = found.cramer_rao(target)
    return Bounds(np.asarray(grid, dtype=np.float64), sigma)
