"""Options that commands share, and the checkpoint that they name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ..models import MODEL_TYPES

Positionals = dict[str, dict[str, Any]]


CHECKPOINT: Positionals = {"checkpoint": {"help": "Folder or Hub name of a model with exits."}}


@dataclass(kw_only=True)
class ModelOptions:
    """How to run the checkpoint."""

    positionals: ClassVar[Positionals] = CHECKPOINT
    exit_threshold: float | None = field(default=None, metadata={"help": "Default: the checkpoint's own."})
    dtype: str = field(default="auto", metadata={"help": "float32, bfloat16, float16; auto: as it was saved."})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto takes a GPU if there is one."})
    revision: str = field(default="main", metadata={"help": "Of a checkpoint on the Hub: branch, tag or commit."})


def load(checkpoint: str, options: ModelOptions) -> tuple[Any, Any]:
    """Model, on its device, and tokenizer.

    Raises:
        ValueError: no such folder, a checkpoint without exits or with weights missing or broken, a dtype, device or
            threshold that is none.
    """
    if not Path(checkpoint).is_dir() and checkpoint.count("/") != 1:
        raise ValueError(f"checkpoint: no folder '{checkpoint}'; pass one that is there, or a name on the Hub")
    config = AutoConfig.from_pretrained(checkpoint, revision=options.revision)
    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"checkpoint: '{checkpoint}' is a '{config.model_type}', which has no exits; train them with "
            f"adaexit train --model_name_or_path {checkpoint} --method ..."
        )
    dtypes = ("auto", "float32", "bfloat16", "float16")
    if options.dtype not in dtypes:
        raise ValueError(f"dtype: got '{options.dtype}'; choose one of {', '.join(dtypes)}")
    cuda = torch.cuda.is_available()
    device = options.device if options.device != "auto" else "cuda" if cuda else "cpu"
    if device.startswith("cuda") and not cuda:
        raise ValueError(f"device: got '{device}', but torch finds no GPU; pass cpu")
    if options.exit_threshold is not None:
        config.thresholds(options.exit_threshold)  # raises where it is none
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=options.dtype, revision=options.revision, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint: the weights of '{checkpoint}' cannot be read; copy them again ({error})"
        ) from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(
            f"checkpoint: '{checkpoint}' lacks {len(missing)} weights, {', '.join(missing[:3])}, ..., and would "
            "answer by chance; copy it again, or train it"
        )
    if options.exit_threshold is not None:
        model.config.exit_threshold = options.exit_threshold
    return model.eval().to(device), AutoTokenizer.from_pretrained(checkpoint, revision=options.revision)
