"""Maps of scenes against lenstronomy: |difference| / peak, worst of all points and scenes, in float64.

Potentials and time delays are compared up to a constant, and relative to their span. Line masses, plane waves, square
sheets and softened halos, which lenstronomy lacks, are left out on both sides; its SIE, whose hessian is a finite
difference, is its EPL of the slope 2.

`python benchmarks/maps.py [scenes of each recipe]`
"""

from __future__ import annotations

import dataclasses
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.LensModel.lens_model import LensModel

from deeplense.sim import reference
from deeplense.sim.lenses import Lenses
from deeplense.sim.world import World

RECIPES = ("model_1", "model_2", "model_3", "sub_no_sub", "realistic/hst", "realistic/euclid", "realistic/lsst")
MAPS = ("potential", "time delay", "alpha x", "alpha y", "kappa", "gamma1", "gamma2", "1/mu")
POINTS = 12  # a side of the grid, over the image


def errors(one: Lenses) -> np.ndarray:
    """Of each map of one lens."""
    scene = one.scenes[0]
    kept = dataclasses.replace(scene, mass=[c for c in scene.mass if c.profile not in reference.REPLACED])
    ours = Lenses(one.world, [kept])
    model, kwargs = reference._lens_model(kept, 0)
    names = ["EPL" if name == "SIE" else name for name in model.lens_model_list]
    kwargs = [p | {"gamma": 2.0} if n == "SIE" else p for n, p in zip(model.lens_model_list, kwargs, strict=True)]
    c = one.world.simulation.cosmology
    z = {k: float(scene.truth[k][0]) for k in ("z_lens", "z_source")}
    theirs = LensModel(names, **z, cosmo=FlatLambdaCDM(H0=c.H0, Om0=c.Om0, Ob0=0.05))
    x, y = one.grid(POINTS, one.world.size * one.world.pixel_scale / POINTS)
    x, y = (v.expand(POINTS, POINTS) for v in (x, y))
    at = x.reshape(-1).numpy(), y.reshape(-1).numpy()
    pairs = [
        (ours.potential(x, y), theirs.potential(*at, kwargs)),
        (ours.time_delay(x, y, source=(0.1, 0.0)), theirs.arrival_time(*at, kwargs, x_source=0.1, y_source=0.0)),
        *zip(ours.deflection(x, y), theirs.alpha(*at, kwargs), strict=True),
        (ours.kappa(x, y), theirs.kappa(*at, kwargs)),
        *zip(ours.shear(x, y), theirs.gamma(*at, kwargs), strict=True),
        (1 / ours.magnification(x, y), 1 / theirs.magnification(*at, kwargs)),
    ]
    found = []
    for k, (mine, expected) in enumerate(pairs):
        error, peak = mine.reshape(-1).numpy() - expected, np.abs(expected).max()
        if k < 2:
            error, peak = error - error.mean(), np.ptp(expected)
        found.append(np.abs(error).max() / peak)
    return np.array(found)


def worst(recipe: str, part: int, parts: int, n: int) -> np.ndarray:
    """Of every parts-th of n lenses."""
    torch.set_num_threads(1)
    lenses = World(recipe).draw(n, seed=1, stream="maps")
    return np.max([errors(lenses[k]) for k in range(part, n, parts)], axis=0)


def main(n: int) -> None:
    print(f"max |difference| / peak over {n} scenes of each recipe, against lenstronomy, float64")
    print(f"{'':18}" + "".join(f"{name:>11}" for name in MAPS) + f"{'seconds':>9}")
    with ProcessPoolExecutor(2) as pool:
        for recipe in RECIPES:
            start = time.perf_counter()
            jobs = [pool.submit(worst, recipe, part, 2, n) for part in range(2)]
            found = np.max([job.result() for job in jobs], axis=0)
            row = "".join(f"{e:11.1e}" for e in found)
            print(f"{recipe:18}{row}{time.perf_counter() - start:9.0f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
