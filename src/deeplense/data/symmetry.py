"""How truths move when an image is turned, mirrored or shifted.

To add a kind: a function of (angle, mirrored, values of the parameter's components) in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deeplense.data.schema import Parameter
from deeplense.errors import UserError

KINDS = ("scalar", "x", "y", "angle", "spin2")


class Motion(NamedTuple):
    """What happened to each of B images: v → M v + shift, about the images' centre.

    Attributes:
        matrix: (B, 2, 2) orthogonal, acting on (x, y). shift: (B, 2) arcsec.
    """

    matrix: Tensor
    shift: Tensor


def check_kinds(parameters: Sequence[Parameter], targets: Sequence[str]) -> None:
    """Every target must be known to turn with the image in some way.

    Raises:
        UserError: one is not, or the other component of its pair is missing.
    """
    known = {p.name for p in parameters}
    for p in parameters:
        if p.name not in targets:
            continue
        if p.kind is None:
            raise UserError(
                f"target '{p.name}': nobody knows how it turns with the image; name it in augment.scalars if it does "
                "not, or set augment.d4=false, augment.shift=0, augment.rotate=0"
            )
        if absent := [name for name in p.pair if name not in known]:
            raise UserError(
                f"target '{p.name}' turns with the image together with '{absent[0]}', which the data do not have; set "
                "augment.d4=false, augment.shift=0, augment.rotate=0"
            )


def move(params: Tensor, parameters: Sequence[Parameter], motion: Motion) -> Tensor:
    """Truths of the moved images; NaN stays NaN, and becomes what cannot be known.

    Args:
        params: (B, P), a column for each of `parameters`.
    """
    m = motion.matrix.double()
    turn = torch.atan2(m[:, 1, 0], m[:, 0, 0])  # of the x axis: M is a turn, after a mirroring of y where det M < 0
    mirrored = (m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0]).sign()
    column = {p.name: k for k, p in enumerate(parameters)}
    out = params.clone()
    for k, p in enumerate(parameters):
        if p.kind == "scalar":
            continue
        if p.kind == "angle" and p.period is not None:
            out[:, k] = (turn + mirrored * params[:, k]).remainder(p.period)
        elif p.kind in ("x", "y", "spin2") and len(p.pair) == 2 and all(name in column for name in p.pair):
            a, b = (params[:, column[name]].double() for name in p.pair)
            if p.kind == "spin2":
                cos, sin, b = torch.cos(2 * turn), torch.sin(2 * turn), mirrored * b
                moved = torch.stack([cos * a - sin * b, sin * a + cos * b])
            else:
                moved = (m @ torch.stack([a, b], 1)[:, :, None])[:, :, 0].T + motion.shift.T
            out[:, k] = moved[p.pair.index(p.name)]
        else:
            out[:, k] = torch.nan
    return out
