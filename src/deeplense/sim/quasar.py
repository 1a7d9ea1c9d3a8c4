"""A quasar in the source galaxy: its images, and their light drawn through the PSF."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense.lensing import images, raytrace
from deeplense.lensing.images import PointImages
from deeplense.lensing.raytrace import Component
from deeplense.sim.bending import deflection_of, jacobian_of
from deeplense.sim.instrument import Instrument
from deeplense.sim.scene import Scene

CELLS = 9  # sub-pixels a side, among four of which the light of a point is shared
FINEST = 0.05  # arcsec: spacing of the grid on which images are sought, where pixels are larger


def quasar_of(drawn: Mapping[str, NDArray[np.float64]], instrument: Instrument) -> Component | None:
    """At the source's centre, as an instrument sees it; None where the recipe has none."""
    columns = {k: torch.from_numpy(v)[:, None] for k, v in drawn.items() if k.startswith(("quasar.", "source.center_"))}
    if "quasar.magnitude" in columns:
        amp = instrument.counts(columns["quasar.magnitude"])
    elif "quasar.amplitude" in columns:
        amp = columns["quasar.amplitude"]
    else:
        return None
    return Component("point", {"amp": amp, **{k: columns[f"source.{k}"] for k in raytrace.CENTER}})


def images_of(scene: Scene, size: int, pixel_scale: float, spacing: float | None = None) -> PointImages:
    """Of the quasars of B scenes, or of their sources' centres where there are none, within the image's field.

    Args:
        spacing: of the grid on which they are sought [arcsec]; the pixel's, at most `FINEST`, when not given. Pairs
            closer than about a tenth of it may be missed.
    """
    device = scene.deflection_scale.device
    scene = scene.to(device, torch.float64)
    cell = spacing or min(pixel_scale, FINEST)
    nodes = 2 * (
        int(size * pixel_scale / cell) // 2 + 1
    )  # even, so that none is at the centre, where lenses have poles
    x, y = raytrace.grid(nodes, cell, device, torch.float64)
    point = scene.quasar or scene.source[0]
    center_x, center_y = (point.params[k][:, 0] for k in raytrace.CENTER)
    return images.images_of(center_x, center_y, deflection_of(scene, None), jacobian_of(scene, None), x, y)


def draw(found: PointImages, amp: Tensor, size: int, pixel_scale: float) -> Tensor:
    """(B, CELLS·size, CELLS·size) counts/s a pixel before the PSF.

    Args:
        amp: (B,) counts/s of the quasars themselves.
    """
    n, cell = CELLS * size, pixel_scale / CELLS
    flux = (amp[:, None] * found.magnification.abs() * found.mask).to(amp) * CELLS**2
    canvas = torch.zeros(len(amp), n * n, device=amp.device, dtype=amp.dtype)
    column, row = (v / cell + (n - 1) / 2 for v in (found.x, found.y))
    left, low = column.floor(), row.floor()
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share_x, share_y = 1 - (column - left - i).abs(), 1 - (row - low - j).abs()
        at_x, at_y = (left + i).long(), (low + j).long()
        inside = (at_x >= 0) & (at_x < n) & (at_y >= 0) & (at_y < n)
        where = (at_y.clamp(0, n - 1) * n + at_x.clamp(0, n - 1)).detach()
        canvas = canvas.scatter_add(1, where, flux * (share_x * share_y * inside).to(flux))
    return canvas.view(-1, n, n)
