"""A population of lenses and its images: draw, look, count.

`python examples/a_population.py [folder for the picture]`
"""

# %% The lenses that `deeplense simulate quickstart` makes of the seed 1
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import deeplense

world = deeplense.World("quickstart")
lenses = world.draw(60, seed=1)
print(f"{len(lenses)} lenses of {', '.join(world.classes)}")

# %% What was drawn
for name, values in lenses.truth.items():
    known = values[np.isfinite(values)]
    if len(known):
        print(f"{name:24}{known.min():10.3g} to {known.max():10.3g}")

# %% Their images, and how much each class differs from a smooth lens
images = lenses.noisy()
figure = Figure(figsize=(9, 1.6 * len(world.classes)), layout="constrained")
for row, name in zip(figure.subplots(len(world.classes), 6, squeeze=False), world.classes, strict=True):
    chosen = [k for k, label in enumerate(lenses.classes) if label == name][:6]
    for axes, k in zip(row, chosen, strict=True):
        axes.imshow(images[k, 0], origin="lower", cmap="magma")
        axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
figure.savefig(Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "a_population.png", dpi=100)

# %% A region of the sky that magnifies by more than 10, in arcsec²
mu = lenses.magnification().abs()
area = (mu > 10).sum((1, 2)) * world.pixel_scale**2
for name in world.classes:
    here = np.array([label == name for label in lenses.classes])
    print(f"{name:12} {float(area[here].mean()):.2f} arcsec² magnified ten times and more")
