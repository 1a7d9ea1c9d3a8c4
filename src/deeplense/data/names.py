"""The class and the split of an image in the wild: what its folders say, and what the user says of the folders."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from deeplense.data import parts
from deeplense.errors import UserError

# folder name, in lower case with underscores -> class
CLASSES = {
    **dict.fromkeys(("no", "no_sub", "nosub", "none", "no_substructure", "nosubstructure"), "no_sub"),
    **dict.fromkeys(("axion", "vort", "vortex", "vortices", "vortex_substructure"), "axion"),
    **dict.fromkeys(("cdm", "sphere", "subhalo", "subhalos", "sub_halo", "subhalo_substructure"), "cdm"),
    **dict.fromkeys(("sub", "substructure"), "sub"),
    **dict.fromkeys(("lens", "lenses"), "lens"),
    **dict.fromkeys(("nonlens", "nonlenses", "non_lens", "non_lenses"), "nonlens"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
GENERIC = ("dataset", "datasets", "files", "fits", "npy", "png", "jpg", "lr", "hr")
MOST_OWN = 1000  # folders that are classes
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


def own_classes(ids: Sequence[str]) -> dict[str, str]:
    """Image -> the folder, else the file of many images, that is a class of its own.

    The innermost folder counts that is no split and says more than `images`. What all images share is no class, nor is
    a folder of each object.

    Args:
        ids: as `formats.read_images` gives them.
    """
    by_folder = {id: _own(id.partition("#")[0].split("/")[:-1]) for id in ids}
    stems = {id: id.partition("#")[0].rsplit("/", 1)[-1] for id in ids}
    of_objects = len(set(by_folder.values())) == len(ids) > 2 and len(set(stems.values())) == 1
    if len(set(by_folder.values()) - {""}) > 1 and not of_objects:
        found = by_folder
    else:
        found = {id: _own([stem]) if "#" in id else "" for id, stem in stems.items()}
    several = 1 < len(set(found.values()) - {""}) <= MOST_OWN
    return {id: name for id, name in found.items() if name} if several else {}


def _own(folders: Sequence[str]) -> str:
    for folder in reversed(folders):
        name = parts.tidy(parts.SCIENCE.sub("", folder))
        if name and plain(name) not in (*SPLITS, *GENERIC):
            return name
    return ""


NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def _piece(piece: str) -> str:
    if not piece.startswith("{"):
        return ".*" if piece == "*" else re.escape(piece)
    name = piece[1:-1]
    return f"(?P<{name}>{'[^/]+' if name in ('class', 'id') else NUMBER})"


class Pattern:
    """`--pattern`: what a file's name says, like "{class}_{theta_E}_*" or a regular expression with named groups.

    It must match the name without folders and extension, or with folders where the pattern has them.

    Raises:
        UserError: no group, or no regular expression.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        written = text
        if "(?P<" not in text:
            pieces = re.split(r"(\{[^{}]*\}|\*)", parts.stem(text) if "." in text else text)
            written = "".join(_piece(p) for p in pieces)
        try:
            self._compiled = re.compile(written)
        except re.error as error:
            raise UserError(f"--pattern '{text}' is not like {{class}}_*, or a regular expression ({error})") from error
        if not self._compiled.groupindex:
            raise UserError(f"--pattern '{text}' names nothing; write {{class}}, or {{name}} of a number, in it")
        self._folders = "/" in text

    def read(self, id: str) -> tuple[str | None, dict[str, float]] | None:
        """Class and numbers; None where the name does not match, or a number is none."""
        name = id if self._folders else id.rsplit("/", 1)[-1]
        found = self._compiled.fullmatch(name) or self._compiled.fullmatch(name.partition("#")[0])
        if found is None:
            return None
        said = {k: v for k, v in found.groupdict().items() if v is not None}
        label = said.pop("class", None)
        said.pop("id", None)
        try:
            return label, {name: float(value) for name, value in said.items()}
        except ValueError:
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
