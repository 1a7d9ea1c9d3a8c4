"""Images in every form in the wild, streamed from a file, folder, zip, tar or dataset, few in memory at a time.

Nothing that is read is ever executed, and a bad file costs a `Skipped`, not the others. The formats of files are in
`readers`, what belongs together in `parts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from deeplense.data import names, parts, readers, schema, sidecars
from deeplense.data.archives import Member, listing, members
from deeplense.data.budget import Unreadable, printable
from deeplense.data.found import Asked, Foreign, Found, Skipped
from deeplense.data.joining import Joiner
from deeplense.errors import UserError

__all__ = ["Foreign", "Skipped", "folders", "read_images"]

TOGETHER = 2**22  # pixels of a dataset that are read at once
GUESS = Asked()


def read_images(source: str | Path, split: str | None = None, asked: Asked = GUESS) -> Iterator[Foreign | Skipped]:
    """Every object under `source`, and every file that gives none.

    Args:
        source: a file of any format in `readers.READERS`, a folder, zip or tar of them, or a dataset.
        split: the one of a dataset; all of them when not given.
        asked: what the user says of the files.

    Raises:
        UserError: no such file, a damaged archive or dataset, or something that is asked for and not there.
    """
    source = Path(source)
    if (source / schema.MANIFEST).is_file():
        yield from _read_dataset(source, split)
        return
    plan = parts.plan(listing(source), asked.bands)
    joiner = Joiner(plan)
    seen: set[str] = set()
    for member in members(source, plan.object_of):
        if member.name in plan.object_of:
            for one in joiner.add(member.name, member.file, list(_read(member, asked, plan))):
                yield one if isinstance(one, Skipped) else _foreign(source, _unique_id(one[0], seen), *one[1:])
            continue
        stem = ""
        for found in _read(member, asked, plan):
            if isinstance(found, Found):
                stem = stem or _unique(printable(member.name), seen)
                yield _foreign(source, stem, member.file, found)
            else:
                yield Skipped(member.file, str(found))
    yield from joiner.incomplete()


def folders(source: Path, id: str) -> list[str]:
    """The names that may tell an image's class and split, outermost first: source, folders, file of many images."""
    return [printable(source.name).split(".")[0], *id.replace("#", "/").split("/")[:-1]]


def _read(member: Member, asked: Asked, plan: parts.Plan) -> Iterator[Found | Unreadable]:
    """What a file holds, and why it does not."""
    try:
        if member.name in plan.aside:
            raise Unreadable("not a science image")
        if member.name in plan.left:
            raise Unreadable("a band that --bands does not name")
        if member.name in plan.object_of and member.name.lower().endswith(parts.SIDECARS):
            yield sidecars.read(member)
        else:
            yield from readers.reader(member.name)(member, asked)
    except Unreadable as error:
        yield error
    except UserError:
        raise
    except MemoryError:
        yield Unreadable("takes more memory than there is")
    except Exception:  # decoders fail in any way on damaged files
        yield Unreadable(f"damaged: not readable as {PurePosixPath(member.name).suffix.lower()}")


def _foreign(source: Path, stem: str, file: str, found: Found) -> Foreign:
    id = stem + found.row
    known = names.class_of(folders(source, id))
    # a flat image's last value is a weaker hint than its folder
    label = known or found.label if found.row == "" and found.weak else found.label or known
    return Foreign(
        id,
        file,
        found.image,
        label,
        dict(found.params),
        found.pixel_scale,
        float(np.isnan(found.image).mean()),
        found.bands,
        found.unit,
        found.notes,
        own=found.label is not None and label == found.label,
        noise=found.noise,
    )


def _read_dataset(folder: Path, only: str | None) -> Iterator[Foreign]:
    from deeplense.data import shards

    info = schema.read_manifest(folder)
    image = info.image
    step = max(1, TOGETHER // (image.channels * image.height * image.width))
    parameters, classes = [p.name for p in info.parameters], [*info.classes, None]  # unlabelled is -1, the last
    for name in info.splits if only is None else [only]:
        file = f"{folder}/{name}"
        for shard in shards.split_shards(folder, info, name):
            columns = shards.read_shard(folder / shard.file, shard, info)
            for start in range(0, shard.n, step):
                part = slice(start, min(start + step, shard.n))
                pixels = shards.read_pixels(folder / shard.file, columns, image, part.start, part.stop)
                rows = zip(
                    columns.ids[part],
                    pixels,
                    columns.labels[part].tolist(),
                    columns.params[part].tolist(),
                    np.isnan(pixels).mean((1, 2, 3)).tolist(),
                    strict=True,
                )
                for id, one, label, values, nan_share in rows:
                    params = {p: v for p, v in zip(parameters, values, strict=True) if math.isfinite(v)}
                    yield Foreign(id, file, one, classes[label], params, image.pixel_scale, nan_share)


def _unique_id(id: str, seen: set[str]) -> str:
    """The id, unless another object has it already."""
    name, k = id, 1
    while name in seen:
        k += 1
        name = f"{id}-{k}"
    seen.add(name)
    return name


def _unique(name: str, seen: set[str]) -> str:
    """The name without extension, unless another file has it already."""
    id = parts.stem(name)
    return _unique_id(id if id not in seen else name, seen)
