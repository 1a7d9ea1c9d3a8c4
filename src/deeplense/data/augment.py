"""Random symmetries of the training images. Dark matter does not know which way is up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deeplense import recipe
from deeplense.data.schema import Batch, Parameter
from deeplense.data.symmetry import Motion, check_kinds, move
from deeplense.data.transforms import View
from deeplense.errors import UserError


class Augmenter:
    """Turn, mirror and shift each image of a batch at random, and its truths with it.

    The symmetries of the square (d4) move pixels without changing them. Shifts and rotations interpolate
    once, bicubically; what comes in at the border is mirrored.

    Args:
        parameters: of the batch's columns. targets: those that must stay true; other columns become NaN where nobody
            knows how they turn.
        view: where the pixels of the images lie, arcsec.

    Raises:
        UserError: a target that the augmentation would change in an unknown way.
    """

    def __init__(
        self,
        config: recipe.Augment,
        parameters: Sequence[Parameter] = (),
        targets: Sequence[str] = (),
        view: View | None = None,
    ) -> None:
        self.config = config
        unchanged = {
            name: dataclasses.replace(p, kind="scalar") for p in parameters if (name := p.name) in config.scalars
        }
        self.parameters = [unchanged.get(p.name, p) for p in parameters]
        self.view = view or View(math.nan, 0.0, 0.0)
        if config.d4 or config.shift or config.rotate:
            check_kinds(self.parameters, targets)
            places = [p.name for p in self.parameters if p.name in targets and p.kind in ("x", "y")]
            if places and math.isnan(self.view.x + self.view.y + (self.view.pixel_scale if config.shift else 0.0)):
                raise UserError(f"target '{places[0]}': the pixel scale is unknown; import the data with --pixel-scale")

    def __call__(
        self,
        batch: Batch,
        generator: torch.Generator,
        rank: int = 0,
        world_size: int = 1,
        whole: int | None = None,
        epoch: int | None = None,
    ) -> Batch:
        """The same shapes. Images that are not square get the four flips only.

        Args:
            rank, world_size: the batch is this process's share, rows rank, rank + world_size, …, of one whose images
                are turned alike on any number of processes.
            whole: images that such a batch has at most; as many for each process when not given.
            epoch: that of the training, for faces that are shown in turn.
        """
        n = len(batch.image) * world_size if whole is None else whole
        mine = torch.arange(rank, n, world_size)[: len(batch.image)]
        motion = Motion(torch.eye(2).expand(len(batch.image), 2, 2), torch.zeros(len(batch.image), 2))
        if self.config.d4:
            if self.config.cycle and epoch is not None:
                coins = _face(batch.id, epoch)
            else:
                coins = (torch.rand((3, n), generator=generator, device=generator.device) < 0.5)[:, mine]
            images, matrix = _symmetry(batch.image, coins.to(batch.image.device))
            batch, motion = batch._replace(image=images), Motion(matrix, motion.shift)
        if self.config.shift or self.config.rotate:
            draw = (2 * torch.rand((3, n), generator=generator, device=generator.device) - 1)[:, mine]
            images, then = self._affine(batch.image, draw)
            batch = batch._replace(image=images)
            motion = Motion(then.matrix @ motion.matrix.to(then.matrix), then.shift)
        centre = torch.tensor([self.view.x, self.view.y], dtype=torch.float64)
        matrix = motion.matrix.double().cpu()
        about = Motion(matrix, motion.shift.double().cpu() + centre - matrix @ centre)
        return batch._replace(params=move(batch.params.cpu(), self.parameters, about).to(batch.params))

    def _affine(self, images: Tensor, draw: Tensor) -> tuple[Tensor, Motion]:
        n, _, height, width = images.shape
        angle = draw[0] * math.radians(self.config.rotate)
        dx, dy = 2 * self.config.shift * draw[1] / width, 2 * self.config.shift * draw[2] / height
        cos, sin = angle.cos(), angle.sin()
        # grid_sample counts each axis from -1 to 1
        matrix = torch.stack([cos, -sin * height / width, dx, sin * width / height, cos, dy], dim=1)
        theta = matrix.view(n, 2, 3).to(images.device, images.dtype)
        grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        images = nn.functional.grid_sample(images, grid, "bicubic", "reflection", align_corners=False)
        # a pixel takes what is at R p + s, so what was at q goes to Rᵀ (q - s)
        back = torch.stack([cos, sin, -sin, cos], dim=1).view(n, 2, 2).double()
        step = self.view.pixel_scale if self.config.shift else 0.0
        shift = -step * self.config.shift * (back @ draw[1:].double().T[:, :, None])[:, :, 0]
        return images, Motion(back, shift)


def _face(ids: Tensor, epoch: int) -> Tensor:
    """(3, B) coins: eight epochs show all eight faces of an image, in an order of its own."""
    # the odd factor scatters ids that follow one another
    start = (ids.long() * 0x9E3779B1) >> 16
    stride = 2 * ((start >> 3) % 4) + 1
    face = (start + stride * epoch) % 8
    return torch.stack([face & 1 > 0, face & 2 > 0, face & 4 > 0])


def _symmetry(images: Tensor, coins: Tensor) -> tuple[Tensor, Tensor]:
    """Transpose, flip rows, flip columns, each where its coin (3, B) says so: all of D4; and the matrices (B, 2, 2)."""
    transpose, rows, columns = coins
    if images.shape[2] == images.shape[3]:
        images = torch.where(transpose[:, None, None, None], images.transpose(2, 3), images)
    else:
        transpose = torch.zeros_like(transpose)
    images = torch.where(rows[:, None, None, None], images.flip(2), images)
    images = torch.where(columns[:, None, None, None], images.flip(3), images)
    x, y = 1.0 - 2.0 * columns.double(), 1.0 - 2.0 * rows.double()
    swap = transpose.double()
    return images, torch.stack([(1 - swap) * x, swap * x, swap * y, (1 - swap) * y], 1).view(-1, 2, 2)
