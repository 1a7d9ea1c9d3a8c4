"""A lens of named profiles: its maps, its curves, and a fit of its Einstein radius by gradient.

`python examples/a_lens_from_scratch.py [folder for the picture]`
"""

# %% Five lines make a lens
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import deeplense

mass = [("epl", {"theta_E": 1.2, "gamma": 2.05, "e1": 0.1, "e2": -0.05}), ("shear", {"gamma1": 0.03, "gamma2": 0.02})]
halo = ("tnfw", {"R_s": 0.1, "alpha_Rs": 0.02, "r_trunc": 0.4, "center_x": 0.95, "center_y": 0.7})
source = [("sersic", {"magnitude": 22.0, "R_sersic": 0.2, "n_sersic": 1.5, "center_x": 0.12, "center_y": 0.05})]
camera = {"z_lens": 0.5, "z_source": 2.0, "pixel_scale": 0.05, "size": 80, "instrument": "hst_acs_f814w"}
lens = deeplense.Lens([*mass, halo], source, **camera)

# %% What can be seen of it
maps = {
    "image": lens.noisy()[0, 0],
    "convergence": lens.kappa()[0].log10(),
    "arrival time": lens.time_delay()[0],
    "potential": lens.potential()[0],
}
figure = Figure(figsize=(12, 3), layout="constrained")
half = lens.world.size * lens.world.pixel_scale / 2
for axes, (name, values) in zip(figure.subplots(1, 4), maps.items(), strict=True):
    axes.imshow(values, origin="lower", extent=(-half, half, -half, half), cmap="magma")
    axes.set_title(name)
    for curve in lens.critical_curves()[0]:
        axes.plot(*curve.T, color="white", linewidth=0.8)
    for curve in lens.caustics()[0]:
        axes.plot(*curve.T, color="deepskyblue", linewidth=0.8)
figure.savefig(Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "a_lens_from_scratch.png", dpi=100)

# %% Everything can be differentiated: the Einstein radius, found from the noiseless image by Newton's method
theta_E = torch.tensor(1.15, dtype=torch.float64)
for _ in range(6):
    trial = theta_E.clone().requires_grad_()
    model = deeplense.Lens([("epl", {**mass[0][1], "theta_E": trial}), mass[1], halo], source, **camera)
    misfit = (model.image() - lens.image()).square().sum()
    ahead = deeplense.Lens([("epl", {**mass[0][1], "theta_E": theta_E + 1e-4}), mass[1], halo], source, **camera)
    slope = (ahead.image() - model.image().detach()) / 1e-4
    (gradient,) = torch.autograd.grad(misfit, trial)
    theta_E = theta_E - gradient / (2 * slope.square().sum())  # Gauss and Newton
print(f"theta_E = {float(theta_E):.6f} (true: 1.2)")
assert np.isclose(float(theta_E), 1.2, atol=1e-4)
