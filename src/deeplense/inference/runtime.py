"""An exported bundle in ONNX Runtime on the CPU: NumPy and ONNX Runtime alone, so that a small computer starts fast.

A file that comes from anywhere is handed to ONNX Runtime only if its bytes are those that `export` wrote, and used only
if the graph takes and gives what its metadata say.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense import trees
from deeplense.answers import ANSWERS, Prediction, output_name
from deeplense.data.budget import LARGEST
from deeplense.data.schema import ImageInfo, check_image
from deeplense.errors import UserError, brief
from deeplense.typed import build

FORMAT = 2
KEY = "deeplense"  # of the metadata
CHECKSUM = '"sha256": "{}"'  # in the metadata, as `json.dumps` writes it: of the file with zeros in its place
UNSIGNED = CHECKSUM.format("0" * 64)


@dataclass
class About:
    """What a prediction needs of the metadata; the rest is for people."""

    answers: dict[str, dict[str, Any]]
    classes: list[str]
    image: ImageInfo
    precision: str
    fingerprint: str


class OnnxBundle:
    """What `export` wrote, ready to predict: everything that a prediction needs is in the graph.

    Args:
        path: a file that `export` wrote.
        threads: of ONNX Runtime; when not given OMP_NUM_THREADS, as torch has it, else all cores.

    Attributes:
        image: the raw images that it takes. fingerprint: of the training data. precision: float32 or int8.

    Raises:
        UserError: no such file, a damaged one, or one that `export` did not write.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self._path = Path(path)
        self._session = _session(self._path, threads)
        about = _read(self._path, self._session)
        self.image, self.classes = about.image, about.classes
        self.fingerprint, self.precision = about.fingerprint, about.precision
        self._about = about.answers
        self._shapes = _shapes(self._path, about)
        _check_graph(self._path, self._session, about.image, self._shapes)

    def answers(self) -> dict[str, type]:
        """Name of each answer -> its type."""
        return {name: ANSWERS[said["answer"]] for name, said in self._about.items()}

    def about(self) -> dict[str, dict[str, Any]]:
        """Name of each answer -> what is said of it; see `deeplense.answers`."""
        return self._about

    def outputs(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Every output by its name.

        Args:
            images: (N, C, H, W) float32 raw pixels.

        Raises:
            UserError: images of another shape, or a graph that does not compute what it promises.
        """
        x, image = np.ascontiguousarray(images, np.float32), self.image
        if x.ndim != 4 or x.shape[1:] != (image.channels, image.height, image.width):
            raise UserError(f"images are {x.shape}, {self._path} takes (N, {_told(image)})")
        try:
            values = self._session.run(list(self._shapes), {"image": x})
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise _strange(self._path, f"it cannot be computed: {' '.join(str(error).split())[:200]}") from error
        found = dict(zip(self._shapes, values, strict=True))
        for name, value in found.items():
            if value.shape != (len(x), *self._shapes[name]):
                raise _strange(self._path, f"'{name}' of {len(x)} images is of shape {value.shape}")
        return found

    def predict(self, images: NDArray[np.float32]) -> Prediction:
        """What the network says of raw images (N, C, H, W); raises as `outputs`."""
        return Prediction.of(self._about, self.outputs(images))


def signed(content: bytes) -> bytes:
    """The file with its checksum, from one that has `UNSIGNED` in its metadata."""
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(UNSIGNED.encode(), CHECKSUM.format(digest).encode())


def _strange(path: Path, why: str) -> UserError:
    return UserError(f"{path}: {why}; export it again")


def _session(path: Path, threads: int | None) -> Any:
    """The session of a file whose bytes are what they were when it was exported."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one that `deeplense export` wrote")
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("ONNX needs the package 'onnxruntime'; pip install deeplense[export]") from error
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: larger than {LARGEST >> 30} GiB; give a file that `deeplense export` wrote")
    content = path.read_bytes()
    signature = re.compile(CHECKSUM.format("([0-9a-f]{64})").encode()).search(content)
    if signature is None:
        raise UserError(f"{path}: not an ONNX file of this deeplense; give one that `deeplense export` wrote")
    if signed(content.replace(signature[0], UNSIGNED.encode())) != content:
        raise _strange(path, "its bytes have changed since it was written")
    options = onnxruntime.SessionOptions()
    said = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = threads or (int(said) if said.isdecimal() else 0)
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise _strange(path, "not a readable ONNX file") from error


def _read(path: Path, session: Any) -> About:
    """The metadata, their types checked."""
    try:
        tree = trees.read_json(session.get_modelmeta().custom_metadata_map.get(KEY, "null"), "its metadata")
        if not isinstance(tree, dict):
            raise UserError("not an ONNX file of deeplense")
        if tree.get("format") != FORMAT:
            raise UserError(f"export format {brief(tree.get('format'))}, not {FORMAT}")
        needed = {f.name for f in dataclasses.fields(About)}
        about = build(About, {k: v for k, v in tree.items() if k in needed}, "its metadata")
        check_image(about.image)
    except UnicodeDecodeError as error:
        raise _strange(path, "its metadata are not UTF-8") from error
    except ValueError as error:
        raise _strange(path, str(error)) from error
    return about


def _shapes(path: Path, about: About) -> dict[str, tuple[int, ...]]:
    """Name of each output -> its shape after the first axis, as the answers say it."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for name, said in about.answers.items():
            if said.get("answer") not in ANSWERS:
                raise UserError(f"its metadata have an answer {brief(said.get('answer'))}, not {' or '.join(ANSWERS)}")
            for output, shape in ANSWERS[said["answer"]].shapes(said).items():
                shapes[output_name(about.answers, name, output)] = shape
    except (KeyError, TypeError) as error:
        raise _strange(path, f"its metadata do not describe the answer '{name}'") from error
    except UserError as error:
        raise _strange(path, str(error)) from error
    if not shapes:
        raise _strange(path, "its metadata have no answer")
    return {**shapes, "distance": ()}


def _check_graph(path: Path, session: Any, image: ImageInfo, outputs: Mapping[str, tuple[int, ...]]) -> None:
    """Does the graph declare what the metadata promise?"""
    wanted = {"image": (image.channels, image.height, image.width)}
    for what, declared, shapes in (("takes", session.get_inputs(), wanted), ("gives", session.get_outputs(), outputs)):
        if {d.name for d in declared} != set(shapes):
            raise _strange(path, f"its graph {what} {', '.join(d.name for d in declared)}, not {', '.join(shapes)}")
        for d in declared:
            if d.type != "tensor(float)" or len(d.shape) != 1 + len(shapes[d.name]) or isinstance(d.shape[0], int):
                raise _strange(path, f"its graph {what} '{d.name}' as {d.type} {d.shape}")
            if tuple(d.shape[1:]) != shapes[d.name]:
                raise _strange(path, f"its graph {what} '{d.name}' of shape {d.shape[1:]}, not {list(shapes[d.name])}")


def _told(image: ImageInfo) -> str:
    return f"{image.channels}, {image.height}, {image.width}"
