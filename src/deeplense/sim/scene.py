"""What passes from physics to images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from deeplense.lensing.raytrace import Component


@dataclass(frozen=True)
class Scene:
    """B scenes of one class.

    Attributes:
        mass: deflectors. source: light behind them. lens_light: light in front. Components with B images each.
        deflection_scale: (B,), factor on every deflection; 1 but for the legacy `z_source_convention`.
        exposure: (B,), total exposure time [s].
        label: index of the class.
        index: (B,) int64, position in the stream of scenes.
        truth: name -> (B,) float64, the parameters drawn.
        halos: every halo's row (`HALO_COLUMNS`), for the record; None where there are none.
        psf: (B, K, K) kernels of unit sum, a pixel of the image each; None: the instrument's.
        subtracted: lens light that is exposed and then taken away, so that only its noise remains.
    """

    mass: list[Component]
    source: list[Component]
    lens_light: list[Component]
    deflection_scale: Tensor
    exposure: Tensor
    label: int
    index: Tensor
    truth: dict[str, Tensor]
    halos: Component | None = None
    psf: Tensor | None = None
    subtracted: list[Component] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def n_deflectors(self) -> Tensor:
        """(B,) how many there are, padding left out."""
        counts = [c.mask.sum(1) for c in self.mass if c.mask is not None]
        return (
            torch.stack(counts).sum(0)
            if counts
            else torch.zeros(len(self), dtype=torch.long, device=self.exposure.device)
        )

    def __getitem__(self, rows: slice | Tensor) -> Scene:
        return Scene(
            [c[rows] for c in self.mass],
            [c[rows] for c in self.source],
            [c[rows] for c in self.lens_light],
            self.deflection_scale[rows],
            self.exposure[rows],
            self.label,
            self.index[rows],
            {k: v[rows] for k, v in self.truth.items()},
            self.halos and self.halos[rows],
            None if self.psf is None else self.psf[rows],
            [c[rows] for c in self.subtracted],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Scene:
        """Move the physics to a device and precision; index and truth stay as they are."""
        return Scene(
            [c.to(device, dtype) for c in self.mass],
            [c.to(device, dtype) for c in self.source],
            [c.to(device, dtype) for c in self.lens_light],
            self.deflection_scale.to(device, dtype),
            self.exposure.to(device, dtype),
            self.label,
            self.index,
            self.truth,
            self.halos,
            None if self.psf is None else self.psf.to(device, dtype),
            [c.to(device, dtype) for c in self.subtracted],
        )
