"""The class and the split of an image in the wild: what its folders say, and what the user says of the folders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deeplense.errors import UserError

# folder name, in lower case with underscores -> class
CLASSES = {
    **dict.fromkeys(("no", "no_sub", "nosub", "none", "no_substructure", "nosubstructure"), "no_sub"),
    **dict.fromkeys(("axion", "vort", "vortex"), "axion"),
    **dict.fromkeys(("cdm", "sphere"), "cdm"),
    "sub": "sub",
    **dict.fromkeys(("lens", "lenses"), "lens"),
    **dict.fromkeys(("nonlens", "nonlenses", "non_lens", "non_lenses"), "nonlens"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SHARES = "train=0.8,val=0.1,test=0.1"


def plain(folder: str) -> str:
    """`No-Sub` is `no_sub`."""
    return folder.strip().lower().replace("-", "_").replace(" ", "_")


def class_of(folders: Sequence[str], classes: Mapping[str, str] = CLASSES) -> str | None:
    """The class that the innermost telling folder names; None when none does. Keys of `classes` are `plain`."""
    for folder in map(plain, reversed(folders)):
        split, _, rest = folder.partition("_")
        if folder in classes:
            return classes[folder]
        if split in SPLITS and rest in classes:  # train_lenses
            return classes[rest]
    return None


def split_of(folders: Sequence[str], classes: Mapping[str, str] = CLASSES) -> str | None:
    """The split that the outermost telling folder names; None when none does."""
    for folder in map(plain, folders):
        split, _, rest = folder.partition("_")
        if folder in SPLITS or (split in SPLITS and rest in classes):
            return SPLITS[split]
    return None


def read_classes(text: str | None) -> dict[str, str] | None:
    """`--classes`: folder name (plain) -> class; None: to be guessed; empty: no classes.

    Raises:
        UserError: not like "sub,no_sub" or "sphere=cdm,no=no_sub", or a folder twice.
    """
    if text is None:
        return None
    if text.strip().lower() == "none":
        return {}
    table = {}
    for part in text.split(","):
        folder, equals, name = (word.strip() for word in part.partition("="))
        if not folder or (equals and not name) or plain(folder) in table:
            raise UserError(f"--classes '{text}' is not like sub,no_sub or sphere=cdm,no=no_sub, or none")
        table[plain(folder)] = name or folder
    return table


def read_shares(text: str) -> dict[str, float]:
    """`--splits`: share of each split.

    Raises:
        UserError: not like "train=0.8,test=0.2", or the shares do not sum to 1.
    """
    try:
        shares = {k.strip(): float(v) for k, v in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise UserError(f"--splits '{text}' is not like {SHARES}") from error
    good = all(name.isidentifier() and 0 < share <= 1 for name, share in shares.items())
    if not good or len(shares) < text.count("=") or not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise UserError(f"--splits '{text}': names with shares above 0 that sum to 1, like {SHARES}")
    return shares
