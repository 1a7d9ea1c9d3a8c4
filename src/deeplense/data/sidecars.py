"""What lies beside an image of the same name, as WebDataset stores it: `.cls` the class, `.json` all that is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deeplense import trees
from deeplense.data.archives import Member
from deeplense.data.budget import Unreadable, printable
from deeplense.data.columns import LABEL, SCALE, class_name
from deeplense.data.found import Found

LONGEST = 2**20  # bytes
NO_IMAGE = np.empty((0, 0, 0), dtype=np.float32)


def read(member: Member) -> Found:
    """Class and numbers, without an image.

    Raises:
        Unreadable: too long, or not what its extension says.
    """
    content = member.read()
    if len(content) > LONGEST:
        raise Unreadable(f"more than {LONGEST >> 20} MiB of text")
    try:
        text = content.decode("utf-8")
        tree = trees.read_json(text, member.file) if member.name.lower().endswith(".json") else text.strip()
    except (ValueError, RecursionError) as error:
        raise Unreadable("damaged: not readable as text or JSON") from error
    if not isinstance(tree, dict):
        return Found(NO_IMAGE, label=class_name(tree) if isinstance(tree, str | int) else None)
    label, scale, params = None, None, {}
    for key, value in tree.items():
        name = printable(str(key))
        if LABEL.fullmatch(name) and isinstance(value, str | int):
            label = label or class_name(value)
        elif _number(value) and SCALE.fullmatch(name):
            scale = float(value) if 0 < value < math.inf else None
        elif _number(value):
            params[name] = float(value)
    return Found(NO_IMAGE, label=label, params=params, pixel_scale=scale)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300
