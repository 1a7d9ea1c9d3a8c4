"""An exported bundle in ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense import trees
from deeplense.answers import ANSWERS, Prediction
from deeplense.data.schema import ImageInfo, image_info
from deeplense.errors import UserError

FORMAT = 2
KEY = "deeplense"  # of the metadata


class OnnxBundle:
    """What `export` wrote, ready to predict: everything that a prediction needs is in the graph.

    Args:
        path: a file that `export` wrote.
        threads: of ONNX Runtime; all cores when not given.

    Attributes:
        image: the raw images that it takes. fingerprint: of the training data. precision: float32 or int8.

    Raises:
        UserError: no such file, not an ONNX file, or one that `export` did not write.
    """

    image: ImageInfo

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self._session = _session(Path(path), threads)
        try:
            about = trees.read_json(self._session.get_modelmeta().custom_metadata_map.get(KEY, "null"), str(path))
        except ValueError:
            about = None
        if not isinstance(about, dict):
            raise UserError(f"{path}: not an ONNX file of deeplense; give one that `deeplense export` wrote")
        if about.get("format") != FORMAT:
            raise UserError(f"{path}: export format {about.get('format')}, not {FORMAT}; export it again")
        try:
            self._about: dict[str, dict[str, Any]] = about["answers"]
            self.image = image_info(about["image"])
            self.fingerprint, self.precision = str(about["fingerprint"]), str(about["precision"])
            self.classes = [str(c) for c in about["classes"]]
            self.answers()
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: its metadata are damaged ({error}); export it again") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

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
        """
        values = self._session.run(self._outputs, {"image": np.ascontiguousarray(images, np.float32)})
        return dict(zip(self._outputs, values, strict=True))

    def predict(self, images: NDArray[np.float32]) -> Prediction:
        """What the network says of raw images (N, C, H, W)."""
        return Prediction.of(self._about, self.outputs(images))


def _session(path: Path, threads: int | None) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one that `deeplense export` wrote")
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("ONNX needs the package 'onnxruntime'; pip install deeplense[export]") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise UserError(f"{path}: not a readable ONNX file; export it again") from error
