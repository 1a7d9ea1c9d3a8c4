"""Agreement of our images with lenstronomy: |difference| / peak, worst pixel of all scenes.

`python benchmarks/accuracy.py [scenes of each class and instrument]`
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from deeplense import config
from deeplense.sim import image, reference
from deeplense.sim.instrument import INSTRUMENTS
from deeplense.sim.world import World

PARTS = 10
RECIPES = {"gaussian_toy": "model_1", "euclid_vis": "model_2", "hst_f160w": "model_3"}
RECIPES["euclid_vis_1_9_2"] = "legacy/model_2"


def worst(instrument: str, label: int, part: int, n: int) -> np.ndarray:
    """Errors (float64 before and after the PSF, float32 before and after) of n scenes."""
    torch.set_num_threads(1)
    recipe = config.load_recipe(RECIPES.get(instrument, "model_2"), [f"simulation.instrument={instrument}"])
    world = World(recipe.simulation)
    scene = world.scenes(1, "accuracy", part)[label][:n]
    out = []
    args = (world.size, world.pixel_scale)
    expected = {psf: reference.render(scene, *args, world.instrument, 1, psf) for psf in (False, True)}
    for dtype in (torch.float64, torch.float32):
        moved = scene.to("cpu", dtype)
        got = {False: image.unblurred(moved, *args), True: image.render(moved, *args, world.instrument)}
        for psf in (False, True):
            peak = expected[psf].amax((1, 2, 3))
            out.append(float(((got[psf] - expected[psf]).abs().amax((1, 2, 3)) / peak).max()))
    return np.array(out)


def main(n: int) -> None:
    print(f"max |difference| / peak over {n} scenes of each class and instrument, against lenstronomy")
    print(f"{'':18}{'':8}{'float64':>10}{'with PSF':>10}{'float32':>10}{'with PSF':>10}")
    with ProcessPoolExecutor(2) as pool:
        for instrument in INSTRUMENTS:
            for label, kind in enumerate(("no_sub", "cdm", "axion")):
                jobs = [pool.submit(worst, instrument, label, part, -(-n // PARTS)) for part in range(PARTS)]
                errors = np.max([j.result() for j in jobs], axis=0)
                print(f"{instrument:18}{kind:8}" + "".join(f"{e:10.1e}" for e in errors), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
