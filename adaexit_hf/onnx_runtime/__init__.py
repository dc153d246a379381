"""Classify texts with early exit through ONNX Runtime, in a process without PyTorch and Transformers.

It reads the folder that `adaexit export` writes. This sub-package imports nothing else of `adaexit_hf`: it is also a
distribution of its own, `adaexit-onnx`, where it is called `adaexit_onnx` and needs only ONNX Runtime, Tokenizers and
NumPy. Both are built from these files.
"""

from .classifier import OnnxEarlyExitClassifier, OnnxPredictions, OnnxTrace
from .folder import ExportFolderError

__all__ = ["ExportFolderError", "OnnxEarlyExitClassifier", "OnnxPredictions", "OnnxTrace"]
