"""The parts of objects, held until each is whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from deeplense.data.budget import Unreadable
from deeplense.data.found import Found, Skipped
from deeplense.data.parts import SIDECARS, Plan
from deeplense.errors import UserError

MOST_HELD = 2**30  # bytes of images that wait for their other bands

Whole = tuple[str, str, Found]  # id, file, image


class Joiner:
    """Joins what files hold, in any order, as a plan says."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._held: dict[str, dict[str, list[Found]]] = {}
        self._files: dict[str, str] = {}
        self._bad: set[str] = set()
        self._bytes = 0

    def add(self, name: str, file: str, found: list[Found | Unreadable]) -> Iterator[Whole | Skipped]:
        """What a file holds; gives the objects that are now whole, and what cannot be read.

        Raises:
            UserError: too much waits for its other bands.
        """
        id = self._plan.object_of[name]
        self._files.setdefault(id, file)
        good = [one for one in found if isinstance(one, Found)]
        yield from (Skipped(file, str(one)) for one in found if not isinstance(one, Found))
        if not good:
            self._bad.add(name)
        held = self._held.setdefault(id, {})
        held[name] = good
        self._bytes += sum(one.image.nbytes for one in good)
        if self._bytes > MOST_HELD:
            raise UserError(
                f"{file}: the bands of an object lie too far apart in the archive; unpack it, give the folder"
            )
        wanted = self._plan.objects[id]
        if len(held) < sum(part is not None for part in wanted):
            return
        del self._held[id]
        self._bytes -= sum(one.image.nbytes for part in held.values() for one in part)
        images = [part for part in wanted if part is None or not part.lower().endswith(SIDECARS)]
        missing = [k for k, part in enumerate(images) if part is None]
        if any(part in self._bad for part in images):
            return  # its reason is told
        if missing:
            lacks = ", ".join(self._plan.bands[k] for k in missing)
            yield Skipped(self._files[id], f"band {lacks} of the object is missing")
            return
        beside = [one for part in wanted if part is not None and part not in images for one in held[part]]
        try:
            for one in _stack([held[part] for part in images if part is not None], self._plan.bands):
                yield id, self._files[id], _with(one, beside)
        except Unreadable as error:
            yield Skipped(self._files[id], str(error))

    def incomplete(self) -> Iterator[Skipped]:
        """Objects of which a file never came."""
        for id in self._held:
            yield Skipped(self._files[id], "parts of the object are missing")


def _stack(parts: list[list[Found]], bands: tuple[str, ...]) -> Iterator[Found]:
    """The bands of each row as one image."""
    if len(parts) == 1:
        yield from parts[0]
        return
    if len({len(rows) for rows in parts}) > 1:
        raise Unreadable(f"bands of different numbers of images, {', '.join(str(len(rows)) for rows in parts)}")
    for rows in zip(*parts, strict=True):
        if len({one.image.shape[1:] for one in rows}) > 1:
            shapes = ", ".join(
                f"{b} {'x'.join(map(str, one.image.shape[1:]))}" for b, one in zip(bands, rows, strict=True)
            )
            raise Unreadable(f"bands of different sizes, {shapes}; --bands names those of one size")
        first = rows[0]
        single = all(len(one.image) == 1 for one in rows)
        scales = {one.pixel_scale for one in rows}
        params: dict[str, float] = {}
        for one in reversed(rows):
            params |= one.params
        yield first._replace(
            image=np.concatenate([one.image for one in rows]),
            label=next((one.label for one in rows if one.label is not None), None),
            params=params,
            pixel_scale=first.pixel_scale if len(scales) == 1 else None,
            bands=bands if single else (),
            noise=_planes(rows),
            notes=(f"files of bands {', '.join(bands)} joined (--bands none keeps them apart)", *first.notes),
        )


def _planes(rows: Sequence[Found]) -> NDArray[np.float32] | None:
    """A noise map for each band, where all have one."""
    planes = [one.noise for one in rows if one.noise is not None]
    return np.concatenate(planes) if len(planes) == len(rows) else None


def _with(one: Found, beside: list[Found]) -> Found:
    """With what lies beside it, which says more than the image itself."""
    for more in beside:
        one = one._replace(
            label=more.label if more.label is not None else one.label,
            params={**one.params, **more.params},
            pixel_scale=more.pixel_scale or one.pixel_scale,
            weak=one.weak and more.label is None,
        )
    return one
