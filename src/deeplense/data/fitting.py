"""Images of several sizes and pixel scales become images of one, as `predict` does it, and what was done is said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deeplense.data.adapt import SAME_SCALE, adapt, centred, crop_or_pad
from deeplense.data.arrays import FEWEST
from deeplense.data.budget import MOST_VALUES
from deeplense.data.reading import PICTURES, Record
from deeplense.data.schema import ImageInfo
from deeplense.errors import UserError

REFUSE = (0, 0)


@dataclass
class Plan:
    """What all images become.

    Attributes:
        image: their shape and meaning.
        resample: whether those of another pixel scale are resampled.
        maps: names of the planes of their noise.
        notes: what is done.
    """

    image: ImageInfo
    resample: bool = False
    notes: list[str] = field(default_factory=list)
    maps: list[str] = field(default_factory=list)

    def fit(self, record: Record, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C, H, W) as wanted; missing pixels stay missing unless the image is resampled."""
        if len(image) < self.image.channels:
            image = np.repeat(image, self.image.channels, axis=0)
        if record.bands and set(record.bands) == set(self.image.bands):
            image = image[[record.bands.index(band) for band in self.image.bands]]
        if self._other_scale(record):
            return adapt(image, record.pixel_scale, self.image)[0]
        return crop_or_pad(image, self.image)

    def fit_noise(self, record: Record, noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """(len(maps), H, W) of the wanted size; NaN where the image is padded, or has none.

        Raises:
            UserError: the image is resampled, which a noise map cannot be.
        """
        if not len(noise):
            return np.full((len(self.maps), self.image.height, self.image.width), np.nan, np.float32)
        if self._other_scale(record):
            raise UserError(f"{record.id}: is resampled, and its noise cannot be; leave out --noise or --pixel-scale")
        if len(noise) == len(self.image.bands) and record.bands:
            noise = noise[[record.bands.index(band) for band in self.image.bands]]
        noise = np.broadcast_to(noise, (len(self.maps), *noise.shape[1:]))
        return centred(noise, self.image, np.full(len(noise), np.nan, np.float32))

    def _other_scale(self, record: Record) -> bool:
        scale, wanted = record.pixel_scale, self.image.pixel_scale
        return bool(self.resample and scale and wanted and not math.isclose(scale, wanted, rel_tol=SAME_SCALE))


def read_size(text: str | None) -> tuple[int, int] | None:
    """`--size`: (H, W); `REFUSE`; None when not given.

    Raises:
        UserError: neither "64" nor "64x80" nor "refuse", or sides that no image has.
    """
    if text is None:
        return None
    if text.strip().lower() == "refuse":
        return REFUSE
    sides = str(text).lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
        raise UserError(f"--size '{text}' is not like 64, 64x80 or refuse")
    height, width = int(sides[0]), int(sides[-1])
    if min(height, width) < FEWEST or height * width > MOST_VALUES:
        raise UserError(f"--size '{text}': give sides of {FEWEST} pixels or more, {MOST_VALUES} in all")
    return height, width


def plan(
    source: Path,
    records: Sequence[Record],
    size: tuple[int, int] | None,
    pixel_scale: float | None,
    bands: tuple[str, ...] | None,
) -> Plan:
    """What the images of an import become.

    Args:
        size: (H, W) that the user asks for. pixel_scale: arcsec, that the user gives. bands: that the user names.

    Raises:
        UserError: different channels or pixel scales, or several sizes where they are to be refused.
    """
    notes: list[str] = []
    channels = _channels(source, records, notes)
    scale, resample = _scale(source, records, pixel_scale, notes)
    height, width = _size(source, records, size, notes)
    named = _bands(source, records, channels, bands, notes)
    planes = max(record.planes for record in records)
    ends = named or [str(k) for k in range(planes)]
    maps = [f"noise_{ends[k]}" for k in range(planes)] if planes > 1 else ["noise"] * planes
    return Plan(ImageInfo(channels, height, width, scale, _unit(records), named), resample, notes, maps)


def _channels(source: Path, records: Sequence[Record], notes: list[str]) -> int:
    counts = Counter(r.shape[0] for r in records)
    most, _ = counts.most_common(1)[0]
    other = [r for r in records if r.shape[0] != most]
    if other and all(r.shape[0] in (1, 3) and r.file.lower().endswith(PICTURES) for r in records):
        notes.append(f"{counts[1]} grey pictures among colour ones given three equal channels")
        return 3
    if other:
        told = ", ".join(f"{n} (of {m} images)" for n, m in counts.most_common(5))
        raise UserError(f"{source}: images of different numbers of channels, {told}; import a sub-folder of one kind")
    return most


def _scale(source: Path, records: Sequence[Record], given: float | None, notes: list[str]) -> tuple[float | None, bool]:
    known = [r.pixel_scale for r in records if r.pixel_scale is not None]
    if given is not None:
        other = [s for s in known if not math.isclose(s, given, rel_tol=SAME_SCALE)]
        if other:
            notes.append(
                f"{len(other)} images resampled to {given:g} arcsec/pixel, from {min(other):g} to {max(other):g}"
            )
        return given, True
    if not known:
        return None, False
    if max(known) > min(known) * (1 + SAME_SCALE):
        raise UserError(f"{source}: pixel scales from {min(known):g} to {max(known):g} arcsec; give --pixel-scale")
    if len(known) < len(records):
        notes.append(f"pixel scale unknown: only {len(known)} of {len(records)} images say theirs")
        return None, False
    return float(np.median(known)), False


def _size(source: Path, records: Sequence[Record], asked: tuple[int, int] | None, notes: list[str]) -> tuple[int, int]:
    sizes = Counter(r.shape[1:] for r in records)
    told = ", ".join(f"{h}x{w} ({n} images)" for (h, w), n in sizes.most_common(5))
    if len(sizes) > 1 and asked == REFUSE:
        raise UserError(f"{source}: images of several sizes, {told}; give --size, or import a sub-folder with one size")
    ((height, width), _) = sizes.most_common(1)[0]
    if asked not in (None, REFUSE):
        wanted = asked
    elif len(sizes) > 1 or height != width:
        sides = Counter(min(r.shape[1:]) for r in records)
        most = max(sides.values())
        wanted = (min(side for side, n in sides.items() if n == most),) * 2
    else:
        return height, width
    changed = sum(n for size, n in sizes.items() if size != wanted)
    if changed and asked == REFUSE:
        return height, width
    if changed:
        how = "" if asked else " (--size names another, or refuse)"
        notes.append(f"{changed} images cropped or padded to {wanted[0]}x{wanted[1]} pixels, from {told}{how}")
    return wanted


def _unit(records: Sequence[Record]) -> str:
    units = {r.unit for r in records}
    return next(iter(units)) or "unknown" if len(units) == 1 else "unknown"


def _bands(
    source: Path, records: Sequence[Record], channels: int, asked: tuple[str, ...] | None, notes: list[str]
) -> list[str]:
    named = Counter(r.bands for r in records)
    if asked and set(named) == {()}:
        if len(asked) != channels:
            raise UserError(f"{source}: --bands names {len(asked)} bands, the images have {channels} channels")
        return list(asked)
    first, _ = named.most_common(1)[0]
    if len({tuple(sorted(bands)) for bands in named}) == 1:
        return list(first) if len(first) == channels else []
    told = "; ".join(f"{', '.join(bands) or 'unnamed'} ({n} images)" for bands, n in named.most_common(3))
    notes.append(f"the bands of the images differ, and are not named: {told}")
    return []
