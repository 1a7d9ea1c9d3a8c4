"""`realistic/hst` with hundreds of truncated NFW halos, against differentiable and batched codes on the same scenes.

`pip install caustics jaxtronomy paltax` as wanted, then `python benchmarks/realistic_peers.py [package ...]`. Everyone
has two processes of one thread, float32, the same power law, shear, Sérsic source, halos and PSF; multipoles and the
square sheet of negative mass are left out on both sides, because not every peer has them. Peers get their best case:
their own profiles in the fastest loop that we found, compiled and warm, without padding, and a PSF of a few shifted
sums in place of their own. How far their images are from our exact ones, in units of the peak, says that it is the same
picture.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch

from deeplense import config
from deeplense.lensing.mass.nfw import G_AT_R_S
from deeplense.sim import image
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

CDM, WORKERS = 1, 2
OVERRIDES = [
    f"simulation.classes.cdm.{k}"
    for k in ("sigma_sub=0.035", "log10_m_host=13.0", "line_of_sight=0", "compensate=false")
]  # about 300 halos
OVERRIDES += [f"simulation.lens.a{m}=0" for m in (3, 4)]
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
Array = np.ndarray[Any, np.dtype[Any]]
Render = Callable[[], Array]
EXACT = "simulation.mesh=false"
REPEATS = 3
CHUNK = 32  # halos that caustics sums at once when not compiled: temporaries of 512 kB


def world(*more: str) -> World:
    return World(config.load_recipe("realistic/hst", [*OVERRIDES, *more]).simulation)


def scenes(w: World, block: int) -> Scene:
    return w.scenes(3, "benchmark", block)[CDM]


def render_ours(block: int) -> tuple[int, float, float]:
    """Images, seconds, mean number of halos."""
    torch.set_num_threads(1)
    w = world()
    scene = scenes(w, block).to("cpu", torch.float32)
    args = w.size, w.pixel_scale, w.instrument, w.simulation.supersampling
    image.render(scene, *args)
    start = time.perf_counter()
    for _ in range(4):
        image.render(scene, *args)
    return 4 * len(scene), time.perf_counter() - start, float(scene.truth["n_sub"].mean())


def parts(scene: Scene) -> tuple[list[dict[str, Array]], Array]:
    """Parameters of power law, shear, halos and source, (B, N) each, and how many halos are not padding."""
    found = {c.profile: c for c in [*scene.mass, *scene.source]}
    assert set(found) == {"epl", "shear", "tnfw", "sersic"}, "peers must have all profiles"
    assert found["tnfw"].mask is not None
    return [{k: v.numpy() for k, v in found[name].params.items()} for name in found], found["tnfw"].mask.sum(1).numpy()


def psf_weights(w: World) -> list[float]:
    """Of the Gaussian along one axis, from the middle outwards, of unit sum over both sides."""
    sigma = w.instrument.psf_fwhm / (8 * np.log(2)) ** 0.5 / w.pixel_scale
    weights = np.exp(-0.5 * (np.arange(int(w.instrument.psf_truncation * sigma + 0.5) + 1) / sigma) ** 2)
    return list((weights / (2 * weights.sum() - weights[0])).tolist())


def axis_ratio(p: dict[str, Any]) -> dict[str, Any]:
    """q and position angle in place of e1, e2."""
    c = np.hypot(p["e1"], p["e2"])
    rest = {k: v for k, v in p.items() if k not in ("e1", "e2")}
    return rest | {"q": (1 - c) / (1 + c), "phi": np.arctan2(p["e2"], p["e1"]) / 2}


def caustics(scene: Scene, w: World, dtype: str, compiled: bool = False) -> Render:
    """Its pure functions; the mass of a halo is in the unit in which the reduced deflection needs no distance."""
    from caustics.constants import G_over_c2, arcsec_to_rad, rad_to_arcsec
    from caustics.lenses import func
    from caustics.light.func import brightness_sersic, k_lenstronomy

    (epl, shear, tnfw, sersic), number = parts(scene)
    unit = arcsec_to_rad / (4 * G_over_c2 * rad_to_arcsec * G_AT_R_S)
    halos = {"x0": tnfw["center_x"], "y0": tnfw["center_y"], "Rs": tnfw["R_s"]}
    halos |= {"tau": tnfw["r_trunc"] / tnfw["R_s"], "M0": tnfw["alpha_Rs"] * tnfw["R_s"] * unit}
    cast = {"dtype": getattr(torch, dtype)}
    tensors = [{k: torch.tensor(v, **cast) for k, v in p.items()} for p in map(axis_ratio, (epl, sersic))]
    gamma = {k: torch.tensor(v, **cast) for k, v in shear.items()}
    many = {k: torch.tensor(v, **cast)[..., None, None] for k, v in halos.items()}
    line = torch.tensor((np.arange(w.size) - (w.size - 1) / 2) * w.pixel_scale, **cast)
    x, y = line.expand(w.size, w.size), line[:, None].expand(w.size, w.size)
    weights = psf_weights(w)

    def deflect(p: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        ax, ay = func.physical_deflection_angle_tnfw(**p, x=line, y=line[:, None], d_l=1.0)
        return ax.sum(0), ay.sum(0)

    total = torch.compile(deflect, dynamic=True) if compiled else deflect

    def one(row: int) -> Array:
        n = int(number[row])
        lens, source = ({k: v[row, 0] for k, v in p.items()} for p in tensors)
        place = lens["center_x"], lens["center_y"], lens["q"], lens["phi"], lens["theta_E"], lens["gamma"] - 1
        ax, ay = func.reduced_deflection_angle_epl(*place, x, y, 18, 1)
        sx, sy = func.reduced_deflection_angle_external_shear(
            0.0, 0.0, gamma["gamma1"][row], gamma["gamma2"][row], x, y
        )
        ax, ay = ax + sx, ay + sy
        step = n if compiled else CHUNK
        for first in range(0, n, step):
            dx, dy = total({k: v[row, first : min(first + step, n)] for k, v in many.items()})
            ax, ay = ax + dx, ay + dy
        R = source["R_sersic"] / source["q"] ** 0.5  # along the major axis
        shape = source["center_x"], source["center_y"], source["q"], source["phi"], source["n_sersic"], R
        seen = brightness_sersic(*shape, source["amp"], x - ax, y - ay, k_lenstronomy(source["n_sersic"]))
        return np.asarray(blur(seen.numpy(), weights, np)) * w.pixel_scale**2

    return lambda: np.stack([one(row) for row in range(len(scene))])


def caustics_compiled(scene: Scene, w: World, dtype: str) -> Render:
    """The same with the sum over halos fused by `torch.compile`."""
    return caustics(scene, w, dtype, compiled=True)


def jaxtronomy(scene: Scene, w: World, dtype: str) -> Render:
    """Its profiles, which keep lenstronomy's conventions."""
    from jaxtronomy.LensModel.Profiles.epl import EPL
    from jaxtronomy.LensModel.Profiles.shear import Shear
    from jaxtronomy.LensModel.Profiles.tnfw import TNFW
    from jaxtronomy.LightModel.Profiles.sersic_ellipse import SersicElliptic

    (epl, shear, tnfw, sersic), number = parts(scene)
    halos = {k: v for k, v in tnfw.items() if k != "R_s"} | {"Rs": tnfw["R_s"]}
    functions = EPL().derivatives, Shear().derivatives, TNFW.derivatives, SersicElliptic().function
    return jax_images(w, dtype, functions, (epl, shear, halos, sersic), number)


def paltax(scene: Scene, w: World, dtype: str) -> Render:
    """Its profiles; its ray tracing through planes would only cost time in one plane."""
    from paltax.lens_models import EPL, TNFW, ShearCart
    from paltax.source_models import SersicElliptic

    (epl, shear, tnfw, sersic), number = parts(scene)
    lens, source = axis_ratio(epl), axis_ratio(sersic)
    renamed = (
        rename(lens, theta_e="theta_E", slope="gamma", axis_ratio="q", angle="phi"),
        rename(shear, gamma_one="gamma1", gamma_two="gamma2") | dict.fromkeys(("zero_x", "zero_y"), 0 * lens["q"]),
        rename(tnfw, scale_radius="R_s", alpha_rs="alpha_Rs", trunc_radius="r_trunc"),
        rename(source, sersic_radius="R_sersic", axis_ratio="q", angle="phi"),
    )
    functions = EPL.derivatives, ShearCart.derivatives, TNFW.derivatives, SersicElliptic.function
    return jax_images(w, dtype, functions, renamed, number)


def rename(p: dict[str, Array], **names: str) -> dict[str, Array]:
    """new=old; others stay."""
    return {k: v for k, v in p.items() if k not in names.values()} | {new: p[old] for new, old in names.items()}


def jax_images(w: World, dtype: str, functions: Any, params: Any, number: Array) -> Render:
    """One compiled loop over images, in it one over halos: temporaries stay in cache, nothing is padding."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    jax.config.update("jax_enable_x64", dtype == "float64")
    epl, shear, tnfw, sersic = functions
    line = jnp.asarray((np.arange(w.size) - (w.size - 1) / 2) * w.pixel_scale, dtype)
    x, y = jnp.meshgrid(line, line)
    weights = psf_weights(w)

    def one(scene: Any) -> Any:
        (lens, outside, halos, source), n = scene
        single = [{k: v[0] for k, v in p.items()} for p in (lens, outside, source)]
        ax, ay = epl(x, y, **single[0])
        sx, sy = shear(x, y, **single[1])

        def add(k: Any, total: Any) -> Any:
            dx, dy = tnfw(x, y, **{name: v[k] for name, v in halos.items()})
            return total[0] + dx, total[1] + dy

        ax, ay = lax.fori_loop(0, n, add, (ax + sx, ay + sy))
        return blur(sersic(x - ax, y - ay, **single[2]), weights, jnp) * w.pixel_scale**2

    render = jax.jit(lambda scenes: lax.map(one, scenes))
    arrays = [{k: jnp.asarray(v, dtype) for k, v in p.items()} for p in params], jnp.asarray(number)
    return lambda: np.asarray(render(arrays))


def blur(seen: Any, weights: list[float], xp: Any) -> Any:
    """A separable PSF; beyond the border the edge repeats."""
    radius = len(weights) - 1
    for axis in (0, 1):
        n = seen.shape[axis]
        wide = xp.pad(seen, [(radius, radius) if k == axis else (0, 0) for k in (0, 1)], mode="edge")
        at = [wide[(slice(None),) * axis + (slice(k, k + n),)] for k in range(2 * radius + 1)]
        seen = sum(weights[abs(k - radius)] * part for k, part in enumerate(at))
    return seen


PEERS: dict[str, tuple[str, Callable[[Scene, World, str], Render]]] = {
    "caustics": ("caustics", caustics),
    "caustics, torch.compile": ("caustics", caustics_compiled),
    "jaxtronomy": ("jaxtronomy", jaxtronomy),
    "paltax": ("paltax", paltax),
}


def pin(cores: Any) -> None:
    """One core for each process, because XLA takes all that it may."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def theirs(name: str, block: int) -> tuple[int, float, float, float]:
    """Images, seconds, largest difference over the peak in float32 and, of a few images, in float64."""
    torch.set_num_threads(1)
    w = world(EXACT)
    scene = scenes(w, block)
    exact = image.render(scene, w.size, w.pixel_scale, w.instrument)[:, 0].numpy()
    make = PEERS[name][1]

    def off(images: Array) -> float:
        right = exact[: len(images)]
        return float((abs(images - right).max((1, 2)) / right.max((1, 2))).max())

    exactly = off(make(scene[:8], w, "float64")())
    render = make(scene, w, "float32")
    rounded = off(render())
    start = time.perf_counter()
    for _ in range(REPEATS):
        render()
    return REPEATS * len(scene), time.perf_counter() - start, rounded, exactly


def speed_of(results: list[Any]) -> float:
    """Images a second of all processes together."""
    return float(sum(found[0] / found[1] for found in results))


def main(wanted: list[str]) -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    for name, (package, _) in PEERS.items():
        if wanted and package not in wanted:
            continue
        if importlib.util.find_spec(package) is None:
            print(f"{name}: not installed; pip install {package}")
            continue
        with ProcessPoolExecutor(WORKERS) as pool:
            ours = list(pool.map(render_ours, range(WORKERS)))
        queue = multiprocessing.Queue()
        for k in range(WORKERS):
            queue.put(cores[k % len(cores)])
        with ProcessPoolExecutor(WORKERS, initializer=pin, initargs=(queue,)) as pool:
            found = list(pool.map(theirs, [name] * WORKERS, range(WORKERS)))
        rate, peer = speed_of(ours), speed_of(found)
        rounded, exactly = (max(f[k] for f in found) for k in (2, 3))
        print(f"{np.mean([o[2] for o in ours]):.0f} halos an image: deeplense {rate:.1f}, {name} "
              f"{importlib.metadata.version(package)} {peer:.1f} images/s -> ratio {rate / peer:.2f}; largest "
              f"difference over the peak {rounded:.1e} in float32, {exactly:.1e} in float64", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
