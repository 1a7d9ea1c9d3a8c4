"""A network that undoes the lens: it proposes a smooth one, traces the image back, and looks at what does not fit.

The lens equation inside a network is the idea of Lensformer (Velôso de Souza, Toomey & Gleyzer 2023, Machine Learning
and the Physical Sciences workshop, NeurIPS); there the lens is a free potential at each pixel. Here a small encoder
proposes the few numbers of an isothermal ellipsoid with shear, which no subhalo can imitate. Each pixel is traced to
the source plane, pixels that meet there are averaged into a source, and the source is lensed again. Images of one
source agree where the lens is smooth: what is left over is what dark matter did, or an error of the proposal. Image,
residual and source go to the convolutional trunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deeplense.lensing.mass.external import shear
from deeplense.lensing.mass.isothermal import sie
from deeplense.models.compact import Compact, convolution
from deeplense.models.context import Context

GENERIC = 0.45  # Einstein radius of the first proposal, over the image's half width


class PhysicsInformed(nn.Module):
    """Encoder, lens equation, and two `Compact` trunks: of image and residual, and of the source.

    Args:
        in_chans: channels of the image.
        image_size: (height, width); at least 16 pixels.
        context: says where the pixels lie, and so the optical axis of a cropped image.
        source_size: pixels of the source's side.
        source_width: half width of the source plane, over the image's.
        widths: of the trunk of image and residual.
        drop_rate: dropout of the features. drop_path_rate: stochastic depth. stem_stride: of both trunks.
    """

    x: Tensor
    y: Tensor
    first: Tensor

    def __init__(
        self,
        in_chans: int,
        image_size: tuple[int, int],
        context: Context | None = None,
        source_size: int = 32,
        source_width: float = 0.4,
        widths: Sequence[int] = (24, 48, 96, 160),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        self.source_size, self.source_width = source_size, source_width
        height, width = image_size
        half = max(height, width) / 2
        # angles in units of the half width, from the optical axis
        view = context.preprocess.view if context is not None else None
        known = view is not None and math.isfinite(view.pixel_scale)
        x0, y0 = (view.x / view.pixel_scale, view.y / view.pixel_scale) if known and view is not None else (0.0, 0.0)
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5 - height / 2 + y0) / half,
            (torch.arange(width) + 0.5 - width / 2 + x0) / half,
            indexing="ij",
        )
        self.register_buffer("x", x.reshape(1, -1), persistent=False)
        self.register_buffer("y", y.reshape(1, -1), persistent=False)
        self.register_buffer("first", torch.tensor([math.log(GENERIC), 0.03, 0.02, 0.0, 0.0, 0.0, 0.0]))
        small = Compact(in_chans, image_size, widths=(16, 32, 48, 64))
        self.encoder = nn.Sequential(small, nn.Linear(small.num_features, 7))
        nn.init.normal_(self.encoder[-1].weight, std=1e-2)  # type: ignore[arg-type]
        nn.init.zeros_(self.encoder[-1].bias)  # type: ignore[arg-type]
        common = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "stem_stride": stem_stride}
        self.image = Compact(2 * in_chans, image_size, widths=widths, **common)  # type: ignore[arg-type]
        self.source = nn.Sequential(
            *convolution(in_chans, 16, 3, 2), nn.ReLU(inplace=True), *convolution(16, 32, 3, 2), nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.num_features = self.image.num_features + 32 + 7

    def propose(self, images: Tensor) -> Tensor:
        """(B, 7): log θ_E, e1, e2, γ1, γ2, center_x, center_y; angles in units of the image's half width."""
        free = torch.tanh(self.encoder(images))
        return self.first + free * free.new_tensor([1.2, 0.5, 0.5, 0.25, 0.25, 0.3, 0.3])

    def trace(self, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Where the pixels lie in the source plane: (B, H W) twice, in units of the image's half width."""
        log_theta_E, e1, e2, gamma1, gamma2, center_x, center_y = lens[:, :, None].unbind(1)
        ax, ay = sie(self.x, self.y, log_theta_E.exp(), e1, e2, center_x, center_y)
        sx, sy = shear(self.x - center_x, self.y - center_y, gamma1, gamma2)
        # about the lens's centre, so that the source is found wherever the two are
        return self.x - center_x - ax - sx, self.y - center_y - ay - sy

    def reconstruct(self, images: Tensor, beta_x: Tensor, beta_y: Tensor) -> tuple[Tensor, Tensor]:
        """The source (B, C, S, S), and its image (B, C, H, W): both linear in the pixels.

        A pixel shares its light among the four source pixels around it; these average what they got.
        """
        rows, columns = (self._hats(beta) for beta in (beta_y, beta_x))
        pixels = images.flatten(2)
        weight = rows.transpose(1, 2) @ columns
        light = (rows.transpose(1, 2)[:, None] * pixels[:, :, None]) @ columns[:, None]
        source = light / (weight[:, None] + 0.05)
        again = ((rows[:, None] @ source) * columns[:, None]).sum(-1)
        return source, again.view_as(images)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        lens = self.propose(x)
        source, again = self.reconstruct(x, *self.trace(lens))
        features = self.image.forward_features(torch.cat([x, x - again], 1))
        return torch.cat([features, self.source(source), lens], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)

    def _hats(self, beta: Tensor) -> Tensor:
        """(B, P) -> (B, P, S) weights of the source pixels along one axis; they sum to 1 inside."""
        n = self.source_size
        where = (beta / self.source_width + 1) * (n - 1) / 2
        return torch.relu(1 - (where[:, :, None] - torch.arange(n, device=beta.device)).abs())
