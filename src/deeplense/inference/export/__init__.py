"""A bundle as one ONNX file, and back: what a small computer needs to predict."""

from deeplense.inference.export.write import export

__all__ = ["export"]
