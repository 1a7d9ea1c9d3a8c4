"""Lenses in one's hands: everything that can be seen or said of drawn scenes, as maps on any grid.

Nothing is stored: each method computes its map from the scenes, in their precision and on their device, and what it
returns can be differentiated with respect to the scenes' parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from torch import Tensor

from deeplense.errors import UserError
from deeplense.lensing import curves, maps, raytrace
from deeplense.lensing.cosmology import time_delay_days
from deeplense.lensing.curves import Curve
from deeplense.lensing.mass import Deflection
from deeplense.sim import image, quasar
from deeplense.sim.bending import deflection_of, in_plane, jacobian_of
from deeplense.sim.observe import observe
from deeplense.sim.scene import Scene
from deeplense.sim.substructure import HALO_COLUMNS, HALO_UNITS

if TYPE_CHECKING:
    from deeplense.sim.world import World


class Lenses:
    """B lenses, in the order of their stream; `lenses[3]` is one of them, `lenses[:8]` are some.

    Maps take `x`, `y` [arcsec]: (H, W), or (B, H, W) for a grid of each lens's own, or a row (1, W) and a column
    (H, 1); the centres of the image's pixels when not given. They return (B, H, W). Of lenses with several
    planes, `plane` is 0 for the lens's, −1 for the next in front of it, …: the map of that plane alone, where `x`, `y`
    are positions in it; None is the whole way.

    Attributes:
        world: whence they come. scenes: their physics, those of each class together.
        seed, stream: of their noise.
    """

    def __init__(self, world: World, scenes: Sequence[Scene], seed: int = 0, stream: str = "train") -> None:
        self.world, self.scenes, self.seed, self.stream = world, list(scenes), seed, stream
        index = torch.cat([scene.index for scene in self.scenes])
        self.index, order = torch.sort(index)
        place = torch.argsort(order)  # of each scene's images among all
        self._rows = list(torch.split(place, [len(scene) for scene in self.scenes]))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which: int | slice) -> Lenses:
        rows = torch.arange(len(self))[which].reshape(-1)
        if isinstance(which, slice) and not len(rows):
            raise IndexError("no lens is in this slice")
        some = [scene[torch.isin(place, rows)] for scene, place in zip(self.scenes, self._rows, strict=True)]
        return Lenses(self.world, [scene for scene in some if len(scene)], self.seed, self.stream)

    def __iter__(self) -> Iterator[Lenses]:
        return (self[k] for k in range(len(self)))

    def to(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Lenses:
        """The same on another device, in another precision."""
        return Lenses(self.world, [scene.to(device, dtype) for scene in self.scenes], self.seed, self.stream)

    def grid(self, size: int | None = None, pixel_scale: float | None = None) -> tuple[Tensor, Tensor]:
        """A row and a column of a centred grid: the image's pixels, or `size` of `pixel_scale` [arcsec]."""
        scale = self.scenes[0].deflection_scale
        precise = scale.dtype if scale.device.type == "mps" else torch.float64
        x, y = raytrace.grid(size or self.world.size, pixel_scale or self.world.pixel_scale, scale.device, precise)
        return x[0], y[0]

    @property
    def classes(self) -> list[str]:
        """Of each lens."""
        labels = self._gathered([torch.full((len(s),), s.label) for s in self.scenes])
        return [self.world.classes[k] for k in labels.tolist()]

    @property
    def truth(self) -> dict[str, NDArray[np.float64]]:
        """Name -> (B,) what was drawn; NaN where it does not apply."""
        table = self._gathered([torch.from_numpy(self.world.truth_row(scene)) for scene in self.scenes]).numpy()
        return {truth.name: table[:, k] for k, truth in enumerate(self.world.truth)}

    def image(self) -> Tensor:
        """Noiseless images (B, C, H, W) [electrons/s a pixel] on the world's pixels, through the PSF."""
        w = self.world
        args = w.size, w.pixel_scale, w.instruments, w.simulation.supersampling
        return self._gathered([image.render(scene, *args) for scene in self.scenes])

    @torch.no_grad()
    def noisy(self) -> Tensor:
        """Images (B, C, H, W) float32 as `simulate` stores them."""
        device = self.scenes[0].deflection_scale.device
        return self._gathered([observe(self.world, s, self.seed, self.stream, device) for s in self.scenes])

    def potential(self, x: Tensor | None = None, y: Tensor | None = None, plane: int | None = None) -> Tensor:
        """ψ [arcsec²] with ∇ψ = α, up to a constant.

        Raises:
            UserError: a profile without a potential, or several planes and none named.
        """

        def found(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
            if plane is None and scene.planes is not None:
                raise UserError("no potential of several planes together; name one, e.g. plane=0")
            mass = in_plane(scene, plane)
            return maps.potential(x, y, mass) * scene.deflection_scale[:, None, None]

        return self._map(found, x, y)

    def deflection(self, x: Tensor | None = None, y: Tensor | None = None, plane: int | None = None) -> Deflection:
        """α_x, α_y = θ − β [arcsec]."""
        return self._maps(lambda scene, x, y: deflection_of(scene, plane)(x, y), x, y)  # type: ignore[return-value]

    def kappa(self, x: Tensor | None = None, y: Tensor | None = None, plane: int | None = None) -> Tensor:
        """Convergence κ = ½∇·α; of the whole way through several planes, the effective one."""
        return self._map(lambda scene, x, y: jacobian_of(scene, plane)(x, y).kappa, x, y)

    def shear(self, x: Tensor | None = None, y: Tensor | None = None, plane: int | None = None) -> Deflection:
        """γ1, γ2."""
        return self._maps(lambda s, x, y: jacobian_of(s, plane)(x, y).shear, x, y)  # type: ignore[return-value]

    def magnification(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """μ = 1/det(1 − ∂α/∂θ) of the whole way, negative where an image is mirrored."""
        return self._map(lambda s, x, y: jacobian_of(s, None)(x, y).magnification, x, y)

    def time_delay(
        self, x: Tensor | None = None, y: Tensor | None = None, source: tuple[float, float] | None = None
    ) -> Tensor:
        """Arrival time [days] of light from `source` [arcsec], its galaxy's centre when not given, up to a constant.

        (1 + z_l) D_l D_s/(c D_ls) · [½ (θ − β)² − ψ(θ)]: its stationary points are the images of the source.

        Raises:
            UserError: several planes, luminosity distances, or a profile without a potential.
        """

        def found(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
            if source is None:
                at = [scene.source[0].params[k][:, :1, None] for k in raytrace.CENTER]
            else:
                at = [torch.full_like(scene.deflection_scale, v)[:, None, None] for v in source]
            return self._arrival(scene, x, y, at[0], at[1])

        return self._map(found, x, y)

    def _arrival(self, scene: Scene, x: Tensor, y: Tensor, source_x: Tensor, source_y: Tensor) -> Tensor:
        if self.world.simulation.cosmology.distances != "angular_diameter" or self.world.deflection_scale != 1:
            raise UserError("no time delays of a recipe with faulty distances; take another than legacy/…")
        if scene.planes is not None:
            raise UserError("no time delays through several planes; draw the lenses without multi_plane")
        days = time_delay_days(self.world.distances_of(scene), scene.truth["z_lens"].numpy())
        psi = maps.potential(x, y, in_plane(scene, None))
        path = 0.5 * ((x - source_x) ** 2 + (y - source_y) ** 2)
        return torch.from_numpy(days).to(psi)[:, None, None] * (path - psi)

    @torch.no_grad()
    def point_images(self, spacing: float | None = None, delays: bool = True) -> Table:
        """Images of each lens's quasar, or of its source's centre, in the image's field, the brightest of a lens first.

        Args:
            spacing: of the grid on which they are sought [arcsec]; of two images closer than a tenth of it one may be
                missed. A pixel, at most 0.05″, when not given.
            delays: whether to give time delays, which not all lenses have.

        Returns:
            Columns `lens` (0 … B − 1), `x`, `y` [arcsec], `magnification` (negative where mirrored), `flux_ratio` to
            the brightest, `time_delay` after the first to arrive [day].

        Raises:
            UserError: delays of lenses that have none, as of `time_delay`.
        """
        columns: dict[str, list[NDArray[np.float64]]] = {}
        for scene, rows in zip(self.scenes, self._rows, strict=True):
            scene = scene.to(scene.deflection_scale.device, torch.float64)
            found = quasar.images_of(scene, self.world.size, self.world.pixel_scale, spacing)
            bright = found.magnification.abs()
            made = {"lens": rows[:, None].to(bright) + 0 * bright, "x": found.x, "y": found.y}
            made |= {"magnification": found.magnification, "flux_ratio": bright / bright[:, :1]}
            if delays:
                point = scene.quasar or scene.source[0]
                at = [point.params[k][:, :1, None] for k in raytrace.CENTER]
                days = self._arrival(scene, found.x[:, None], found.y[:, None], at[0], at[1])[:, 0]
                first = torch.where(found.mask, days, torch.inf).amin(1, keepdim=True)
                made["time_delay"] = days - first
            for name, values in made.items():
                columns.setdefault(name, []).append(values[found.mask].cpu().numpy())
        table = Table({k: np.concatenate(v) for k, v in columns.items()})
        table["lens"] = table["lens"].astype(int)
        for name, unit in {"x": "arcsec", "y": "arcsec", "time_delay": "day"}.items():
            if name in table.colnames:
                table[name].unit = unit
        return table[np.argsort(table["lens"], kind="stable")]

    def source(self, x: Tensor | None = None, y: Tensor | None = None, lensed: bool = False) -> Tensor:
        """The source's brightness (B, C, H, W) [electrons/s/arcsec²] in its own plane; `lensed`: in the sky."""

        def found(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
            if lensed:
                alpha_x, alpha_y = deflection_of(scene, None)(x, y)
                x, y = x - alpha_x, y - alpha_y
            bands = (scene.band(k).source for k in range(1 + len(scene.more_bands)))
            return torch.stack([_brightness(scene, x, y, band) for band in bands], 1)

        return self._map(found, x, y)

    def lens_light(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The lens galaxy's brightness (B, C, H, W) [electrons/s/arcsec²], zero where it has none."""

        def found(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
            bands = (scene.band(k).lens_light for k in range(1 + len(scene.more_bands)))
            return torch.stack([_brightness(scene, x, y, band) for band in bands], 1)

        return self._map(found, x, y)

    def critical_curves(self, spacing: float | None = None) -> list[list[Curve]]:
        """Of each lens, curves (N, 2) [arcsec] within the image.

        Args:
            spacing: of the grid on which they are sought [arcsec], a pixel when not given; smaller ones are missed.
        """
        return [found for found, _ in self._curves(spacing)]

    def caustics(self, spacing: float | None = None) -> list[list[Curve]]:
        """Of each lens, where its critical curves lie in the source plane, point by point."""
        return [
            curves.caustics(found, scene.deflection_scale, deflection_of(scene, None))
            for found, scene in self._curves(spacing)
        ]

    @property
    def halos(self) -> Table:
        """Every dark halo's row: `lens` (0 … B − 1), mass [Msun], x, y [arcsec], z, concentration (of r200)."""
        columns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ("lens", *HALO_COLUMNS)}
        for scene, rows in zip(self.scenes, self._rows, strict=True):
            if scene.halos is None:
                continue
            mask = scene.halos.mask
            there = torch.ones_like(scene.halos.params["mass"], dtype=torch.bool) if mask is None else mask
            columns["lens"].append(rows[:, None].expand(there.shape)[there].numpy())
            for name in HALO_COLUMNS:
                columns[name].append(scene.halos.params[name][there].numpy())
        joined = {k: np.concatenate(v) if v else np.empty(0) for k, v in columns.items()}
        table = Table({k: v.astype(int) if k == "lens" else v for k, v in joined.items()})
        for name, unit in HALO_UNITS.items():
            table[name].unit = unit
        table.sort("lens")
        return table

    def _curves(self, spacing: float | None) -> Iterator[tuple[list[Curve], Scene]]:
        cell = spacing or self.world.pixel_scale
        x, y = self.grid(int(np.ceil(self.world.size * self.world.pixel_scale / cell)) + 1, cell)
        for one in self:
            scene = one.scenes[0]
            around = jacobian_of(scene, None)
            found = curves.critical_curves(x[None], y[None], lambda x, y, f=around: f(x, y).determinant)  # type: ignore[misc]
            yield found, scene

    def _map(self, function: Callable[[Scene, Tensor, Tensor], Tensor], x: Tensor | None, y: Tensor | None) -> Tensor:
        return self._maps(lambda scene, x, y: (function(scene, x, y),), x, y)[0]

    def _maps(
        self,
        function: Callable[[Scene, Tensor, Tensor], tuple[Tensor, ...]],
        x: Tensor | None,
        y: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Of each class's scenes, put in order."""
        if x is None or y is None:
            x, y = self.grid()
        parts = []
        for scene, rows in zip(self.scenes, self._rows, strict=True):
            at = (v[rows.to(v.device)] if v.dim() == 3 and len(v) > 1 else v.reshape(-1, *v.shape[-2:]) for v in (x, y))
            kind = scene.deflection_scale.dtype  # positions are more precise than a scene in float32
            parts.append([v.to(kind) for v in function(scene, *at)])
        return tuple(self._gathered(part) for part in zip(*parts, strict=True))

    def _gathered(self, parts: Sequence[Tensor]) -> Tensor:
        """Values of each scene in the order of all."""
        return torch.cat(list(parts))[torch.argsort(torch.cat(self._rows)).to(parts[0].device)]


def _brightness(scene: Scene, x: Tensor, y: Tensor, light: list[raytrace.Component]) -> Tensor:
    full = (x + 0 * y).expand(len(scene), -1, -1)
    return raytrace.brightness(full, y + 0 * full, light)
