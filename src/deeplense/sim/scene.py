"""What passes from physics to images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deeplense.lensing.multiplane import Planes
from deeplense.lensing.raytrace import Component


@dataclass(frozen=True)
class InBand:
    """What differs from band to band of B scenes; attributes as those of `Scene`."""

    source: list[Component]
    lens_light: list[Component]
    subtracted: list[Component]
    exposure: Tensor
    psf: Tensor | None
    quasar: Component | None = None

    def __getitem__(self, rows: slice | Tensor) -> InBand:
        return InBand(
            [c[rows] for c in self.source],
            [c[rows] for c in self.lens_light],
            [c[rows] for c in self.subtracted],
            self.exposure[rows],
            None if self.psf is None else self.psf[rows],
            self.quasar and self.quasar[rows],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> InBand:
        return InBand(
            [c.to(device, dtype) for c in self.source],
            [c.to(device, dtype) for c in self.lens_light],
            [c.to(device, dtype) for c in self.subtracted],
            self.exposure.to(device, dtype),
            None if self.psf is None else self.psf.to(device, dtype),
            self.quasar and self.quasar.to(device, dtype),
        )


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
        quasar: a point of light in the source plane, `amp` [counts/s], `center_x`, `center_y` (B, 1) each.
        subtracted: lens light that is exposed and then taken away, so that only its noise remains.
        planes: where the deflectors' planes are; None: all are in the lens's.
        more_bands: of an image with several, all after the first, whose light, exposure and PSF are the scene's own.
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
    quasar: Component | None = None
    subtracted: list[Component] = field(default_factory=list)
    planes: Planes | None = None
    more_bands: list[InBand] = field(default_factory=list)

    def exposed_only(self) -> Scene:
        """What an exposure of its noiseless images needs, and nothing else."""
        bands = [replace(band, source=[], lens_light=[], quasar=None) for band in self.more_bands]
        dark = replace(self, source=[], lens_light=[], quasar=None, more_bands=bands)
        return replace(dark, mass=[], truth={}, halos=None, planes=None)

    def band(self, k: int) -> Scene:
        """The scene as band k alone sees it."""
        if k == 0:
            return replace(self, more_bands=[])
        return replace(self, **vars(self.more_bands[k - 1]), more_bands=[])

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

    @property
    def _first_band(self) -> InBand:
        return InBand(self.source, self.lens_light, self.subtracted, self.exposure, self.psf, self.quasar)

    def __getitem__(self, rows: slice | Tensor) -> Scene:
        return replace(
            self,
            mass=[c[rows] for c in self.mass],
            deflection_scale=self.deflection_scale[rows],
            index=self.index[rows],
            truth={k: v[rows] for k, v in self.truth.items()},
            halos=self.halos and self.halos[rows],
            planes=self.planes and self.planes[rows],
            more_bands=[band[rows] for band in self.more_bands],
            **vars(self._first_band[rows]),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Scene:
        """Move the physics to a device and precision; index and truth stay as they are."""
        return replace(
            self,
            mass=[c.to(device, dtype) for c in self.mass],
            deflection_scale=self.deflection_scale.to(device, dtype),
            more_bands=[band.to(device, dtype) for band in self.more_bands],
            **vars(self._first_band.to(device, dtype)),
        )
