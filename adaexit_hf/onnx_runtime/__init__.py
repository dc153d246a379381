"""Classify texts with early exit through ONNX Runtime, in a process without PyTorch and Transformers.

It reads the folder that `adaexit export` writes. This sub-package imports nothing else of `adaexit_hf`: it is also a
distribution of its own, `adaexit-onnx`, where it is called `adaexit_onnx` and needs only ONNX Runtime, Tokenizers and
NumPy. Both are built from these files.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import OnnxEarlyExitClassifier, OnnxPredictions, OnnxTrace
    from .folder import ExportFolderError

__all__ = ["ExportFolderError", "OnnxEarlyExitClassifier", "OnnxPredictions", "OnnxTrace"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(__all__)}")
    # Only now: `folder` is also read where ONNX Runtime, which `classifier` needs, is not installed.
    module = "folder" if name == "ExportFolderError" else "classifier"
    return getattr(importlib.import_module(f".{module}", __name__), name)
