"""Read checkpoints in the formats of Transformers 2 to 4, from a folder or the Hub, without running their code."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Each of these files is enough to load a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")


def folder_of(path_or_repo: str | Path, revision: str | None, token: str | bool | None) -> Path:
    """The folder of a checkpoint, downloaded if it is a name on the Hub.

    Args:
        path_or_repo: a folder, or a name on the Hub.
        revision: branch, tag or commit on the Hub.
        token: access token for the Hub.

    Raises:
        ValueError: if it is neither a folder nor a valid name on the Hub. The errors of huggingface_hub are raised if
            the Hub does not have it or denies access.
    """
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    patterns = ["*.json", "*.txt", "*.model", *WEIGHTS]
    try:
        return Path(snapshot_download(str(path_or_repo), revision=revision, token=token, allow_patterns=patterns))
    except HFValidationError as error:
        raise ValueError(
            f"path_or_repo: '{path_or_repo}' is neither a folder nor a valid name on the Hub; pass e.g. "
            "'ji-xin/bert_base-MNLI-two_stage'"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
        ValueError: if it does not exist, is not a JSON object, or belongs to a model of this package.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(
            f"path_or_repo: '{folder}' has no config.json, so it is not a checkpoint; it has {_file_names(folder)}"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"path_or_repo: '{file}' is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"path_or_repo: '{file}' is a {type(values).__name__}, not a config")
    if "encoder_config" in values:
        raise ValueError(
            f"path_or_repo: '{folder}' is already an early-exit model of this package; call "
            "AutoModelForSequenceClassification.from_pretrained"
        )
    return values


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights by name, on the CPU.

    Raises:
        ValueError: if there are none, or they cannot be read without running code.
    """
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"path_or_repo: '{folder}' has no {' or '.join(WEIGHTS)}; it has {_file_names(folder)}")
    try:
        legacy = file.suffix == ".bin"
        tensors = torch.load(file, map_location="cpu", weights_only=True) if legacy else load_file(file)
    except Exception as error:  # the unpickler raises errors of any class for invalid content
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"path_or_repo: '{file}' cannot be read as weights; it is damaged or contains code: {reason}"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"path_or_repo: '{file}' is a {type(tensors).__name__} with other values than tensors")
    return tensors


def _file_names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
