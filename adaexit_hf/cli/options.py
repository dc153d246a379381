"""Flags that several commands share, and the function that loads their checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ..models import MODEL_TYPES

# Positional arguments of a command: name -> keyword arguments of `ArgumentParser.add_argument`.
Positionals = dict[str, dict[str, Any]]

CHECKPOINT: Positionals = {"checkpoint": {"help": "Local folder or Hub name of an early-exit model."}}


@dataclass(kw_only=True)
class LoadOptions:
    """Flags for loading a checkpoint."""

    positionals: ClassVar[Positionals] = CHECKPOINT
    dtype: str = field(
        default="auto", metadata={"help": "float32, bfloat16 or float16; auto keeps the dtype of the saved weights."}
    )
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto uses a GPU if there is one."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a checkpoint on the Hub."})


@dataclass(kw_only=True)
class ModelOptions(LoadOptions):
    """Flags for running a checkpoint at a threshold."""

    exit_threshold: float | None = field(
        default=None, metadata={"help": "Exit threshold to use. Default: the one saved with the checkpoint."}
    )


def load(
    checkpoint: str, options: LoadOptions, exit_threshold: float | None = None, exit_criterion: str | None = None
) -> tuple[Any, Any]:
    """Load a checkpoint for inference.

    Args:
        checkpoint: Local folder or Hub name.
        options: Flags for loading it.
        exit_threshold: Exit threshold to use. Default: None, the one saved with the checkpoint.
        exit_criterion: Exit criterion to use; there is no threshold then. Default: None, the one of the checkpoint.

    Returns:
        The model, in eval mode on its device, and its tokenizer.

    Raises:
        ValueError: The folder does not exist, the checkpoint has no exits, weights are missing or unreadable, or the
            dtype, the device or the threshold is invalid.
    """
    if not Path(checkpoint).is_dir() and checkpoint.count("/") != 1:
        raise ValueError(f"checkpoint: there is no folder '{checkpoint}'; pass an existing folder or a Hub name")
    config = AutoConfig.from_pretrained(checkpoint, revision=options.revision)
    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"checkpoint: '{checkpoint}' is a '{config.model_type}' model without exits; train exits with "
            f"adaexit train --model_name_or_path {checkpoint} --method ..."
        )
    dtypes = ("auto", "float32", "bfloat16", "float16")
    if options.dtype not in dtypes:
        raise ValueError(f"dtype: got '{options.dtype}'; choose one of {', '.join(dtypes)}")
    cuda = torch.cuda.is_available()
    device = options.device if options.device != "auto" else "cuda" if cuda else "cpu"
    if device.startswith("cuda") and not cuda:
        raise ValueError(f"device: got '{device}', but torch finds no GPU; pass cpu")
    if exit_threshold is not None:
        config.thresholds(exit_threshold)  # raises if it is invalid, before the weights are loaded
    other = {} if exit_criterion is None else {"exit_criterion": exit_criterion, "exit_threshold": None}
    try:
        model, loading_info = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=options.dtype, revision=options.revision, output_loading_info=True, **other
        )
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint: the weights of '{checkpoint}' cannot be read; download or copy them again ({error})"
        ) from error
    if loading_info["missing_keys"]:
        missing = sorted(loading_info["missing_keys"])
        raise ValueError(
            f"checkpoint: '{checkpoint}' lacks {len(missing)} weights, {', '.join(missing[:3])}, ..., which would be "
            "random; download or copy it again, or train it"
        )
    if exit_threshold is not None:
        model.config.exit_threshold = exit_threshold
    return model.eval().to(device), AutoTokenizer.from_pretrained(checkpoint, revision=options.revision)
