"""Reads checkpoints as Transformers 2 to 4 wrote them, from a folder or the Hub. No code of theirs is run."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Any of these makes a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")


def folder_of(path_or_repo: str | Path, revision: str | None, token: str | bool | None) -> Path:
    """The folder itself, or the download of a Hub name.

    Raises:
        ValueError: neither; and the Hub's own errors for what it has not, or does not show.
    """
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    patterns = ["*.json", "*.txt", "*.model", *WEIGHTS]
    try:
        return Path(snapshot_download(str(path_or_repo), revision=revision, token=token, allow_patterns=patterns))
    except HFValidationError as error:
        raise ValueError(
            f"path_or_repo: '{path_or_repo}' is no folder, and no name on the Hub either, such as "
            "'ji-xin/bert_base-MNLI-two_stage'"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of an encoder.

    Raises:
        ValueError: there is none, it is no JSON object, or it is that of a model of this package.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(
            f"path_or_repo: no config.json in '{folder}', so it is no checkpoint; it has {_names(folder)}"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"path_or_repo: '{file}' is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"path_or_repo: '{file}' holds a {type(values).__name__}, not the values of a config")
    if "encoder_config" in values:
        raise ValueError(
            f"path_or_repo: '{folder}' is an early-exit model of this package already; call "
            "AutoModelForSequenceClassification.from_pretrained"
        )
    return values


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights by name, on the CPU.

    Raises:
        ValueError: there are none, or they cannot be read without running code.
    """
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"path_or_repo: no {' or '.join(WEIGHTS)} in '{folder}'; it has {_names(folder)}")
    try:
        legacy = file.suffix == ".bin"
        found = torch.load(file, map_location="cpu", weights_only=True) if legacy else load_file(file)
    except Exception as error:  # rubbish makes the unpickler stumble over anything
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"path_or_repo: '{file}' cannot be read as weights, it is damaged or holds code: {reason}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"path_or_repo: '{file}' holds a {type(found).__name__} of other things than tensors")
    return found


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
