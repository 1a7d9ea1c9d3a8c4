"""Decoupled planes on a mesh against the recursive lens equation: how right, and how much quicker.

`python benchmarks/line_of_sight.py [scenes]`, a minute or two on one core: `realistic/hst` with the halos along the
line of sight that its classes have. The error of the noiseless image in units of its noise's σ a pixel, and CPU seconds
an image, of rendering alone and with the drawing of the scenes.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import torch

from deeplense import config
from deeplense.sim import image
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

BAR = 0.05  # of σ


def exact(scene: Scene) -> Scene:
    """The same halos, each bending the rays that all before it have bent, summed one by one."""
    assert scene.planes is not None
    mass = [dataclasses.replace(c, mesh=False) for c in scene.mass]
    return dataclasses.replace(scene, mass=mass, planes=dataclasses.replace(scene.planes, coupled=True))


def near(scene: Scene) -> Scene:
    """The same without the field."""
    return dataclasses.replace(scene, mass=[c for c in scene.mass if c.plane == 0], planes=None)


def main() -> None:
    torch.set_num_threads(1)
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    world = World(config.load_recipe("realistic/hst").simulation)
    world.scenes(0, "warm", 0)
    for name in ("cdm", "wdm", "sidm", "uldm"):
        start = time.process_time()
        drawn = world.scenes(0, "benchmark", 0)
        draw = (time.process_time() - start) / sum(len(s) for s in drawn)
        scene = next(s for s in drawn if world.classes[s.label] == name)[:n].to("cpu", torch.float32)
        made, seconds = {}, {}
        for kind, some in {"planes": exact(scene), "decoupled": scene, "near": near(scene)}.items():
            image.render(some[:1], world.size, world.pixel_scale, world.instrument, world.simulation.supersampling)
            start = time.process_time()
            made[kind] = image.render(
                some, world.size, world.pixel_scale, world.instrument, world.simulation.supersampling
            )[:, 0]
            seconds[kind] = (time.process_time() - start) / len(scene)
        background = torch.tensor(
            [world.instrument.background_sigma(world.pixel_scale, float(t)) for t in scene.exposure]
        )
        sigma = (background[:, None, None] ** 2 + made["near"] / scene.exposure[:, None, None]).sqrt()
        error, effect = (
            ((made[k] - made["planes"]) / sigma).square().mean((1, 2)).sqrt() for k in ("decoupled", "near")
        )
        print(
            f"{name:5} {len(scene)} scenes, {float(scene.truth['n_los'].mean()):.0f} field halos in the image: "
            f"error a pixel median {float(error.median()):.3f}, largest {float(error.max()):.3f} sigma, below {BAR} in "
            f"{float((error < BAR).float().mean()):.0%}; the field itself {float(effect.median()):.2f} sigma"
        )
        ratio, whole = (
            seconds["planes"] / seconds["decoupled"],
            (seconds["planes"] + draw) / (seconds["decoupled"] + draw),
        )
        every = ", ".join(f"{k} {1e3 * v:.1f}" for k, v in seconds.items())
        print(
            f"      ms an image: {every}; {ratio:.0f} times as quick, with the drawing ({1e3 * draw:.1f}) {whole:.0f}"
        )


if __name__ == "__main__":
    main()
