"""The ONNX graph of a bundle.

Pre-processing, trunk, and what follows the trunk are exported apart and joined, so that int8 touches the trunk alone.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeplense.bundle import Back, Bundle
from deeplense.errors import UserError

OPSET = 18


def make(bundle: Bundle, calibration: Tensor | None = None) -> Any:
    """The ONNX model; the trunk in int8 when there are raw images (N, C, H, W) to calibrate it on.

    Raises:
        UserError: the network has no form in ONNX.
    """
    with _quiet():
        return _joined(bundle, calibration)


def _joined(bundle: Bundle, calibration: Tensor | None) -> Any:
    import onnx
    from onnx import compose

    pixels = torch.zeros(2, bundle.image.channels, bundle.image.height, bundle.image.width)
    back = Back(bundle).eval()
    with torch.no_grad():
        x = bundle.preprocess(pixels)
        features = bundle.network.features(x)
        outputs = list(back(x, features))
    front = _trace(bundle.preprocess, (pixels,), ["image"], ["x"], bundle)
    trunk = _trace(bundle.network.trunk, (x,), ["x"], ["features"], bundle)
    if calibration is not None:
        with torch.no_grad():
            trunk = _quantise(trunk, torch.cat([bundle.preprocess(part) for part in torch.split(calibration, 16)]))
    end = _trace(_Listed(back), (x, features), ["x_again", "features"], [f"answer/{k}" for k in outputs], bundle)
    for model in (front, end):
        model.ir_version = trunk.ir_version
    front, trunk, end = (
        compose.add_prefix(part, prefix, rename_inputs=False, rename_outputs=False)
        for part, prefix in ((front, "preprocess/"), (trunk, "trunk/"), (end, "heads/"))
    )
    front.graph.output.append(_copied(front, "x", "x_again"))
    # the exporter names what it computes after its operations, "mean" too
    end.graph.output.extend([_copied(end, f"answer/{k}", k) for k in outputs])
    joined = compose.merge_models(front, trunk, io_map=[("x", "x")], outputs=["features", "x_again"])
    joined = compose.merge_models(
        joined, end, io_map=[("features", "features"), ("x_again", "x_again")], outputs=outputs
    )
    joined.producer_name = "deeplense"
    onnx.checker.check_model(joined)
    return joined


class _Listed(nn.Module):
    """The outputs in their order, which the exporter wants."""

    def __init__(self, back: Back) -> None:
        super().__init__()
        self.back = back

    def forward(self, x: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.back(x, features).values())


def _copied(model: Any, name: str, twin: str) -> Any:
    """A second name for an output, because joining uses up the first; returns its description."""
    from onnx import helper

    model.graph.node.append(helper.make_node("Identity", [name], [twin]))
    described = copy.deepcopy(next(o for o in model.graph.output if o.name == name))
    described.name = twin
    return described


def _trace(
    module: nn.Module, examples: tuple[Tensor, ...], names_in: Sequence[str], names_out: Sequence[str], bundle: Bundle
) -> Any:
    module = copy.deepcopy(module).eval().to(memory_format=torch.contiguous_format)
    try:
        program = torch.onnx.export(
            module,
            examples,
            input_names=list(names_in),
            output_names=list(names_out),
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in examples),
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantiser report to stdout, to stderr, to warnings and to the root logger."""
    level, nowhere = logging.root.manager.disable, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(level)
