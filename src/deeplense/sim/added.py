"""Dark halos added by hand to drawn lenses: one of given mass and place, or those of another code."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from deeplense.errors import UserError
from deeplense.lensing import halo
from deeplense.lensing.multiplane import Planes
from deeplense.lensing.raytrace import Component
from deeplense.sim.lenses import Lenses
from deeplense.sim.scene import Scene
from deeplense.sim.substructure import galaxy

DEPTH = 50.0  # kpc from the host's centre, which sets where tides truncate a halo


def add_halo(lenses: Lenses, mass: float, x: float, y: float, concentration: float | None = None) -> Lenses:
    """The same lenses with one more subhalo each, a truncated NFW in the lens's plane; its mass comes on top of theirs.

    Args:
        mass: M200 [Msun]. x, y: of its centre [arcsec]. concentration: c200; the median of field halos at the lens's
            redshift when not given (Dutton & Macciò 2014). It is truncated as 50 kpc from its host's centre.

    Raises:
        UserError: a mass or concentration that is not positive.
    """
    for name, value in (("mass", mass), ("concentration", 1.0 if concentration is None else concentration)):
        if not (np.isfinite(value) and value > 0):
            raise UserError(f"halo: {name} is {value:g}; it must be positive")
    if not np.isfinite([x, y]).all():
        raise UserError(f"halo: its place ({x:g}, {y:g}) is not finite")
    cosmology = lenses.world.simulation.cosmology
    scenes = []
    for scene in lenses.scenes:
        z = scene.truth["z_lens"].numpy()
        d = lenses.world.distances_of(scene)
        m = np.full(len(scene), mass)
        c = galaxy.concentration(m, z, cosmology.H0) if concentration is None else np.full(len(scene), concentration)
        R_s, alpha_Rs = halo.nfw_parameters(m, c, z, d, cosmology.H0, cosmology.Om0, cosmology.w0)
        r_trunc = galaxy.truncation(m, np.full(len(scene), DEPTH)) / d.kpc_per_arcsec
        place = {"center_x": np.full(len(scene), x), "center_y": np.full(len(scene), y)}
        params = {"R_s": R_s, "alpha_Rs": alpha_Rs, "r_trunc": r_trunc, **place}
        like = scene.deflection_scale
        extra = Component("tnfw", {k: torch.from_numpy(v)[:, None].to(like) for k, v in params.items()})
        scenes.append(dataclasses.replace(scene, mass=[*scene.mass, extra]))
    return Lenses(lenses.world, scenes, lenses.seed, lenses.stream)


def add_profiles(lens: Lenses, profiles: Sequence[Component], redshifts: Sequence[float]) -> Lenses:
    """One lens with deflectors at redshifts of their own, their deflections reduced for the source.

    Where all are at the lens's redshift they lie in its plane; else rays are bent in every plane, one after the other.

    Args:
        profiles: (1, 1) each.

    Raises:
        UserError: several lenses, redshifts not between observer and source, or a lens that has planes already.
    """
    if len(lens) != 1:
        raise UserError(f"{len(lens)} lenses; give one of them, lenses[k]")
    scene = lens.scenes[0]
    z_lens, z_source = (float(scene.truth[k][0]) for k in ("z_lens", "z_source"))
    outside = [z for z in redshifts if not 0 < z < z_source]
    if outside:
        raise UserError(f"a halo at redshift {outside[0]:g} is not between us and the source at {z_source:g}")
    z = sorted({z_lens, *redshifts})
    if len(z) > 1 and scene.planes is not None:
        raise UserError("this lens has halos in several planes already; draw it without line_of_sight")
    front = z.index(z_lens)
    order = sorted(zip(redshifts, profiles, strict=True), key=lambda both: (both[0], both[1].profile))
    added = []
    for (at, _), group in itertools.groupby(order, key=lambda both: (both[0], both[1].profile)):
        parts = [part for _, part in group]
        params = {k: torch.cat([p.params[k] for p in parts], 1) for k in parts[0].params}
        added.append(dataclasses.replace(parts[0], params=params, plane=z.index(at) - front))
    planes, cosmology = scene.planes, lens.world.simulation.cosmology
    if len(z) > 1:
        column = torch.tensor([z], dtype=torch.float64)
        planes = Planes(column, scene.truth["z_source"], front, cosmology.Om0, w0=cosmology.w0)
    made: Scene = dataclasses.replace(scene, mass=[*scene.mass, *added], planes=planes)
    return Lenses(lens.world, [made], lens.seed, lens.stream)
