"""Export a model to ONNX, one graph per exit (extra `onnx`)."""

from .onnx import export_onnx

__all__ = ["export_onnx"]
