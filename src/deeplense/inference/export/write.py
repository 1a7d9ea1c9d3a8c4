"""`export`: write, compare with the bundle, and only then let the file appear."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from deeplense import config
from deeplense.bundle import Bundle, load
from deeplense.data import schema
from deeplense.errors import UserError
from deeplense.inference.export import graph, parity
from deeplense.inference.runtime import FORMAT, KEY, OnnxBundle, signed

CALIBRATION = 256  # images, at most


def export(bundle: str | Path, out: str | Path, int8: bool = False, data: str | Path | None = None) -> Path:
    """Write a bundle as ONNX, and compare the two before the file appears.

    The graph takes raw pixels, `image` (N, C, H, W) in float32, and gives every answer by its name: `probabilities`, or
    `mean`, `scale`, `q05` and `q95`, calibrated; and `distance` from the training images (docs/data_format.md).

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
    model = graph.make(source, calibration)
    model.metadata_props.add(key=KEY, value=json.dumps(_about(source, "int8" if int8 else "float32")))
    try:
        with schema.atomic(out) as temporary:
            temporary.write_bytes(signed(model.SerializeToString()))
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
        "sha256": "0" * 64,  # until the file is whole
        "name": bundle.recipe.name,
        "input": "image: (N, C, H, W) float32, raw pixels; pre-processing is in the graph",
        "output": "probabilities (N, K); mean, scale, q05, q95 (N,), in the target's unit; all calibrated; several "
        "answers of a kind end in _NAME; distance (N,) from the training images, above 1: they mean nothing",
        "answers": bundle.about(),
        "classes": bundle.classes,
        "image": dataclasses.asdict(bundle.image),
        "precision": precision,
        "recipe": config.to_tree(bundle.recipe),
        "fingerprint": bundle.fingerprint,
        "summary": bundle.summary,
        "code_version": bundle.code_version,
    }


def _require() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs the package '{error.name}'; pip install deeplense[export]") from error
