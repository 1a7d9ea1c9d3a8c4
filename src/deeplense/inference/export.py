"""A bundle as one ONNX file, and back: what a small computer needs to predict.

The graph is `image` (N, C, H, W), raw pixels in float32 -> pre-processing -> network -> `raw` (N, n_out), for
the head. The temperature is not in the graph: it is in the metadata, and the head applies it.
The two halves are exported apart and joined, so that int8 touches the network alone.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeplense import config, trees
from deeplense.bundle import Bundle, Target, load
from deeplense.data import schema
from deeplense.data.familiarity import Familiarity
from deeplense.data.schema import ImageInfo
from deeplense.data.transforms import Preprocessor
from deeplense.errors import UserError
from deeplense.inference import parity
from deeplense.models.heads import head_for
from deeplense.recipe import Recipe

FORMAT = 1
KEY = "deeplense"  # of the metadata
OPSET = 18
CALIBRATION = 256  # images, at most


class OnnxBundle(Bundle):
    """A `Bundle` whose network, pre-processing included, runs in ONNX Runtime on the CPU.

    Args:
        path: a file that `export` wrote.
        threads: of ONNX Runtime; all cores when not given.

    Raises:
        UserError: no such file, not an ONNX file, or one that `export` did not write.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        session = _session(Path(path), threads)
        try:
            about = trees.read_json(session.get_modelmeta().custom_metadata_map.get(KEY, "null"), str(path))
        except ValueError:
            about = None
        if not isinstance(about, dict):
            raise UserError(f"{path}: not an ONNX file of deeplense; give one that `deeplense export` wrote")
        if about.get("format") != FORMAT:
            raise UserError(f"{path}: export format {about.get('format')}, not {FORMAT}; export it again")
        recipe = config.build(Recipe, about["recipe"], "recipe")
        target = Target(**about["target"]) if about["target"] else None
        head = head_for(recipe.task, about["classes"], target)
        head.temperature.fill_(about["temperature"])
        image = ImageInfo(**about["image"])
        preprocess = Preprocessor(recipe.preprocess, image)
        familiarity = Familiarity(preprocess.output_shape)
        state = safetensors.torch.load(base64.b64decode(about["fitted"]))
        for name, part in (("preprocess", preprocess), ("familiarity", familiarity)):
            part.load_state_dict({k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{name}.")})
        self.precision: str = about["precision"]
        super().__init__(
            network=_Runtime(session),
            preprocess=preprocess,
            head=head,
            familiarity=familiarity,
            recipe=recipe,
            classes=about["classes"],
            image=image,
            target=target,
            fingerprint=about["fingerprint"],
            summary=about["summary"],
            code_version=about["code_version"],
        )

    def inputs(self, images: Tensor) -> Tensor:
        """Themselves: the pre-processing is in the graph."""
        return images

    def to(self, device: str | torch.device) -> Bundle:
        """Itself: ONNX Runtime computes on the CPU."""
        return self

    def save(self, path: str | Path) -> None:
        """Not possible: the weights of an exported network are no longer a bundle's."""
        raise UserError(f"{path}: ONNX cannot become a bundle again; keep the one that it was made from")


class _Runtime(nn.Module):
    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(["raw"], {"image": np.ascontiguousarray(images.numpy())})[0])


def export(bundle: str | Path, out: str | Path, int8: bool = False, data: str | Path | None = None) -> Path:
    """Write a bundle as ONNX, and compare the two before the file appears.

    Args:
        bundle: a bundle's file.
        out: the ONNX file, `*.onnx`.
        int8: quantise the network, calibrated on training images of `data`.
        data: a dataset whose test (else validation) images to compare on; random ones when not given.

    Raises:
        UserError: the extra is not installed, int8 without data, data of another shape, a network that ONNX
            cannot express, or a file that does not agree with the bundle.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise UserError(f"{out}: name the file MODEL.onnx, so that `deeplense predict` knows it")
    if int8 and data is None:
        raise UserError("int8 needs images to calibrate on; name a dataset with --data")
    _require()
    source = load(bundle, "cpu")
    sample = parity.held_out_sample(source, data) if data is not None else parity.random_sample(source)
    calibration = parity.draw_images(source, data, "train", CALIBRATION)[0] if int8 and data else None
    with _quiet():
        graph = _graph(source, calibration)
    graph.metadata_props.add(key=KEY, value=json.dumps(_about(source, "int8" if int8 else "float32")))
    try:
        with schema.atomic(out) as temporary:
            temporary.write_bytes(graph.SerializeToString())
            report = parity.check(source, OnnxBundle(temporary), sample, exact=not int8)
            size = temporary.stat().st_size / 1e6
    except OSError as error:
        raise UserError(f"{out}: cannot write ({error.strerror}); choose another folder") from error
    print(f"{report}\nwrote {out} ({size:.1f} MB)", flush=True)
    return out


def _about(bundle: Bundle, precision: str) -> dict[str, Any]:
    """All that a reader needs; a program without deeplense too."""
    return {
        "format": FORMAT,
        "name": bundle.recipe.name,
        "task": bundle.recipe.task.kind,
        "head": type(bundle.head).__name__,
        "temperature": float(bundle.head.temperature),
        "input": "image: (N, C, H, W) float32, raw pixels; pre-processing is in the graph",
        "output": "raw: (N, n_out) float32, what the head reads; the temperature is not applied",
        "classes": bundle.classes,
        "image": dataclasses.asdict(bundle.image),
        "target": bundle.target and dataclasses.asdict(bundle.target),
        "precision": precision,
        "fitted": base64.b64encode(safetensors.torch.save(_fitted(bundle))).decode(),
        "recipe": config.to_tree(bundle.recipe),
        "fingerprint": bundle.fingerprint,
        "summary": bundle.summary,
        "code_version": bundle.code_version,
    }


def _fitted(bundle: Bundle) -> dict[str, Tensor]:
    """What tells whether an image is like the training images; the graph does not."""
    parts = {"preprocess": bundle.preprocess, "familiarity": bundle.familiarity}
    return {f"{name}.{k}": v.contiguous() for name, part in parts.items() for k, v in part.state_dict().items()}


def _graph(bundle: Bundle, calibration: Tensor | None) -> Any:
    """The ONNX model; the network in int8 when there are images to calibrate it on."""
    import onnx
    from onnx import compose

    pixels = torch.zeros(2, bundle.image.channels, bundle.image.height, bundle.image.width)
    with torch.no_grad():
        x = bundle.preprocess(pixels)
    front = _trace(bundle.preprocess, pixels, "image", "x", bundle)
    back = _trace(bundle.network, x, "x", "raw", bundle)
    if calibration is not None:
        with torch.no_grad():
            back = _quantise(back, torch.cat([bundle.preprocess(part) for part in torch.split(calibration, 16)]))
    front.ir_version = back.ir_version
    front, back = (
        compose.add_prefix(half, prefix, rename_inputs=False, rename_outputs=False)
        for half, prefix in ((front, "preprocess/"), (back, "network/"))
    )
    joined = compose.merge_models(front, back, io_map=[("x", "x")], producer_name="deeplense")
    onnx.checker.check_model(joined)
    return joined


def _trace(module: nn.Module, example: Tensor, name_in: str, name_out: str, bundle: Bundle) -> Any:
    module = copy.deepcopy(module).eval().to(memory_format=torch.contiguous_format)
    try:
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[name_in],
            output_names=[name_out],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # the exporter wraps whatever a network's operations raise
        why = " ".join(str(error).split())[:160]
        raise UserError(f"model.name '{bundle.recipe.model.name}' has no form in ONNX ({why})") from error
    assert program is not None
    return program.model_proto


def _quantise(model: Any, inputs: Tensor) -> Any:
    """Static int8: weights per channel, activations from the ranges that `inputs` (N, C, H, W) reach."""
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts = iter(torch.split(inputs, 16))

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            part = next(self.parts, None)
            return None if part is None else {"x": part.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        plain, fused, quantised = (f"{folder}/{name}.onnx" for name in ("plain", "fused", "int8"))
        onnx.save(model, plain)
        quant_pre_process(plain, fused, skip_symbolic_shape=True)
        q.quantize_static(
            fused,
            quantised,
            Reader(),
            quant_format=q.QuantFormat.QDQ,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 8-bit products overflow 16-bit sums on processors without VNNI
        )
        return onnx.load(quantised)


def _require() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs the package '{error.name}'; pip install deeplense[export]") from error


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantiser report to stdout, to warnings and to the root logger."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(level)
