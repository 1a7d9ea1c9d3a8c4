"""Field halos in planes of their own against the same halos projected onto the lens: what it does to images.

`python benchmarks/line_of_sight.py [scenes]`, minutes on one core: `realistic/hst` without multipoles and subhalos, as
many field halos of 1e7 to 1e10 M☉ as expected. Changes of the noiseless image in units of its noise's σ, √Σ over
pixels, medians of scenes. "Unexplained" is what is left when source and macro lens have been fitted again.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import numpy as np
import torch

from deeplense import config
from deeplense.evaluation.forward import Forward
from deeplense.evaluation.information import smooth
from deeplense.lensing.raytrace import Component
from deeplense.sim import image
from deeplense.sim.scene import Scene
from deeplense.sim.substructure import Host
from deeplense.sim.substructure import line_of_sight as los
from deeplense.sim.substructure.base import tensors
from deeplense.sim.world import World

HALOS = "{population: cdm, sigma_sub: 0, line_of_sight: 1.0, multi_plane: true}"
STEPS = 8  # of the fit
OVERRIDES = ["simulation.lens.a3=0", "simulation.lens.a4=0", f"simulation.classes={{cdm: {HALOS}}}"]


def host_of(w: World, scene: Scene) -> Host:
    lens = {k: scene.truth[k].numpy()[:, None] for k in scene.truth}
    c = w.simulation.cosmology
    return Host(
        lens["z_lens"], lens["z_source"], w.distances_of(scene).like(lens["z_lens"]), lens["lens.theta_E"],
        lens["lens.center_x"], lens["lens.center_y"], w.size * w.pixel_scale / 2, c.H0, c.Om0,
    )  # fmt: skip


def projected(w: World, scene: Scene) -> Scene:
    """The same halos as effective ones: behind the lens where an isothermal lens shows them, if it does."""
    host = host_of(w, scene)
    slices, own = los.Slices.of(host), los.Slices.of(host, multi_plane=True)
    ones = np.ones(slices.z.shape)
    share = los.mean_convergence(slices, host, ones) / los.mean_convergence(own, host, ones)
    mass = []
    for component in scene.mass:
        if component.plane == 0:
            mass.append(component)
            continue
        k = component.plane + los.SLICES - (component.plane > 0)
        p = {name: v.numpy() for name, v in component.params.items()}
        if component.profile == "square_sheet":
            mass.append(Component("square_sheet", tensors(p | {"kappa": p["kappa"] * share[:, k : k + 1]})))
            continue
        beta, behind = slices.beta[:, k : k + 1], np.full((len(scene), 1), component.plane > 0)
        dx, dy = p["center_x"] - host.center_x, p["center_y"] - host.center_y
        stretch = 1 + np.where(behind, beta * host.theta_E / np.hypot(dx, dy), 0.0)
        x, y = host.center_x + stretch * dx, host.center_y + stretch * dy
        weight, narrowing = los.coupling(np.hypot(dx, dy) * stretch, host.theta_E, beta, behind)
        seen = (narrowing > 0) & (np.maximum(np.abs(x), np.abs(y)) < host.half_width)
        assert component.mask is not None
        mask = component.mask & torch.from_numpy(seen)
        mass.append(los.project(Component("tnfw", tensors(p | {"center_x": x, "center_y": y}), mask), weight, behind))
    return dataclasses.replace(scene, mass=mass, planes=None)


def ring_radius(scene: Scene) -> torch.Tensor:
    """(n,) mean radial deflection on the circle of the macro lens's theta_E [arcsec]."""
    angle = torch.arange(256, dtype=torch.float64) * (2 * torch.pi / 256)
    x, y, r = (scene.truth[f"lens.{k}"][:, None, None] for k in ("center_x", "center_y", "theta_E"))
    assert scene.planes is not None
    alpha = scene.planes.deflection(x + r * angle.cos(), y + r * angle.sin(), scene.mass)
    return (alpha[0] * angle.cos() + alpha[1] * angle.sin()).mean((1, 2))


def refitted(model: Forward, seen: torch.Tensor) -> torch.Tensor:
    """What the smooth model cannot fit [σ]: Gauss-Newton steps over all of source and macro lens, halved if need be."""
    drawn, sigma = dict(model.values), model.variance(model.render({})[0]).sqrt()
    left = (seen - model.render({})[0]) / sigma
    for _ in range(STEPS):
        mean, slopes = model.derivatives(model.names)
        left = (seen - mean) / sigma
        step = torch.linalg.lstsq((slopes / sigma).flatten(1).T, left.flatten()[:, None]).solution[:, 0]
        here = dict(model.values)
        for half in range(6):
            model.values = {k: here[k] + float(v) / 2**half for k, v in zip(model.names, step, strict=True)}
            tried = (seen - model.render({})[0]) / sigma
            if bool(tried.isfinite().all()) and float(tried.norm()) < float(left.norm()):
                left = tried
                break
        else:
            model.values = here
            break
    model.values = drawn
    return left


def main() -> None:
    torch.set_num_threads(1)
    w = World(config.load_recipe("realistic/hst", OVERRIDES).simulation)
    scene = w.scenes(0, "benchmark", 0, int(sys.argv[1]) if len(sys.argv) > 1 else 48)[0].to("cpu", torch.float64)
    made, seconds = {}, {}
    for name, what in {"planes": scene, "effective": projected(w, scene), "smooth": smooth(scene)}.items():
        start = time.process_time()
        made[name] = image.render(what, w.size, w.pixel_scale, w.instrument, w.simulation.supersampling)[:, 0]
        seconds[name] = (time.process_time() - start) / len(scene)
    rows = []
    for k in range(len(scene)):
        model = Forward(w, smooth(scene[k : k + 1]))
        sigma = model.variance(made["smooth"][k]).sqrt()
        change = {n: (made[n][k] - made["smooth"][k]) / sigma for n in ("planes", "effective")}
        left = {n: refitted(model, made[n][k]) for n in change}
        rows.append([float(v.norm()) for d in (change, left) for v in (*d.values(), d["effective"] - d["planes"])])
        rows[-1].append(float((left["planes"] * left["effective"]).sum()) / rows[-1][3] / rows[-1][4])
    table = np.array(rows)
    print(f"{len(scene)} scenes, {float(scene.truth['n_los'].mean()):.0f} halos of the field each")
    for name, part in (("change", table[:, :3]), ("unexplained", table[:, 3:6])):
        planes, effective, between = np.median(part, axis=0)
        ratio = part[:, 1] / part[:, 0]
        print(f"{name:12} planes {planes:.1f}, effective {effective:.1f}, difference {between:.1f} sigma")
        print(f"{'':12} effective / planes {np.median(ratio):.2f}, scatter of the log {np.log(ratio).std():.2f}")
    print(f"correlation of what is unexplained: median {np.median(table[:, 6]):.2f}")
    shift = (ring_radius(scene) - ring_radius(smooth(scene))) / scene.truth["lens.theta_E"]
    print(f"mean deflection on the ring: {float(shift.mean()):+.4f} by the field, scatter {float(shift.std()):.4f}")
    print("seconds an image: " + ", ".join(f"{k} {v:.2f}" for k, v in seconds.items()))


if __name__ == "__main__":
    main()
