"""The folder with an exported model: `early_exit.json`, the tokenizer, and one graph per exit for each precision."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "early_exit.json"
TOKENIZER = "tokenizer.json"
# The folder's place in a checkpoint.
SUBFOLDER = "onnx"
# Raised by changes that older versions cannot read.
FORMAT_VERSION = 1
PRECISIONS = ("fp32", "int8")
# What the fields of the manifest hold that are read here, then those of its parts.
FIELDS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "exit_layers": (list,),
    "criterion": (str,),
    "ready": (str,),
    "bounds": (list,),
    "whole_thresholds": (bool,),
    "settings": (dict,),
    "labels": (list, type(None)),
    "multi_label": (bool,),
    "pairs": (bool, type(None)),
    "max_tokens": (int, type(None)),
    "vocab_size": (int,),
    "source": (dict,),
    "tokenizer": (dict,),
    "precisions": (dict,),
}
PRECISION_FIELDS = {"exit_threshold": (int, float, list, type(None)), "calibrated": (bool,), "stages": (list,)}
STAGE_FIELDS = {"file": (str,), "inputs": (list,), "outputs": (list,), "sha256": (str,)}


class ExportFolderError(ValueError):
    """An exported model is incomplete, was changed, or is older than the checkpoint beside it."""


def sha256(data: bytes) -> str:
    """Return the hash by which a file is recognized.

    >>> sha256(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def source_files(checkpoint: Path) -> dict[str, str]:
    """Return the hashes of the files of a checkpoint that an exported model is made of: config, tokenizer, weights.

    Args:
        checkpoint: folder with `config.json` and weights.

    Returns:
        Hash by file name; empty if the folder holds no checkpoint.
    """
    if not (checkpoint / "config.json").is_file():
        return {}
    names = ("config.json", "tokenizer.json", "model*.safetensors", "pytorch_model*.bin")
    return {path.name: hash_of_file(path) for name in names for path in sorted(checkpoint.glob(name))}


def find_folder(path: str | Path) -> Path | None:
    """Return the folder with the exported model at a path: the path itself or its subfolder `onnx`; None without.

    Args:
        path: local folder.
    """
    for folder in (Path(path), Path(path, SUBFOLDER)):
        if (folder / MANIFEST).is_file():
            return folder
    return None


def check_hub_name(name: str) -> None:
    """Check that what is no local folder can be a repository on the Hub, before it is looked for there.

    Args:
        name: what was passed.

    Raises:
        ValueError: it is no "owner/name", or `owner` is a local folder, so that a folder is meant.

    Examples:
        >>> check_hub_name("you/model")
        >>> check_hub_name("./oout")
        Traceback (most recent call last):
            ...
        ValueError: name_or_path: there is no folder './oout'; pass the folder of an exported model, or a name on the \
Hub, owner/name
    """
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is None or Path(name).parent.is_dir():
        raise ValueError(
            f"name_or_path: there is no folder '{name}'; pass the folder of an exported model, or a name on the Hub, "
            "owner/name"
        )


def download(name: str, precision: str | None, options: dict[str, Any]) -> Path:
    """Download an exported model from the Hub, without the weights for PyTorch.

    Args:
        name: name of the repository.
        precision: as in `OnnxEarlyExitClassifier.from_pretrained`.
        options: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The folder in the cache.
    """
    from huggingface_hub import hf_hub_download, snapshot_download  # slow to import, and often not needed

    manifest = read_manifest(Path(hf_hub_download(name, f"{SUBFOLDER}/{MANIFEST}", **options)).parent)
    wanted = chosen_precision(manifest, precision)
    patterns = [f"{SUBFOLDER}/{file}" for file in (MANIFEST, TOKENIZER, f"{wanted}/*")]
    return Path(snapshot_download(name, allow_patterns=patterns, **options), SUBFOLDER)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read `early_exit.json`.

    Args:
        folder: folder with an exported model.

    Raises:
        ExportFolderError: the file is not JSON, was written by a version with another format, or lacks a field or has
            one with a value that cannot be.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if not isinstance(version, int):
            raise TypeError(f"format_version is {version!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ExportFolderError(f"'{path}' is not what adaexit export writes ({error}); export again") from error
    if version != FORMAT_VERSION:
        raise ExportFolderError(
            f"'{path}' has format version {version}, and this version of the package reads {FORMAT_VERSION}; "
            f"{'update the package' if version > FORMAT_VERSION else 'export again'}"
        )
    _check_fields(path, manifest)
    return manifest


def _check_fields(path: Path, manifest: dict[str, Any]) -> None:
    """Check that a manifest, which somebody may have edited, has the fields that are read here.

    Raises:
        ExportFolderError: it does not.
    """

    def check(holds: bool, field: str, value: Any) -> None:
        if not holds:
            raise ExportFolderError(f"'{path}': {field} is {value!r:.80}, which cannot be; export again")

    def check_all(values: Any, fields: Mapping[str, tuple[type, ...]], within: str = "") -> None:
        check(isinstance(values, dict), within.rstrip("."), values)
        for name, kinds in fields.items():
            if name not in values:
                raise ExportFolderError(f"'{path}' has no field {within}{name}; export again")
            check(isinstance(values[name], kinds), f"{within}{name}", values[name])

    check_all(manifest, FIELDS)
    check_all(manifest["tokenizer"], {"sha256": (str,)}, "tokenizer.")
    layers, bounds, precisions = (manifest[name] for name in ("exit_layers", "bounds", "precisions"))
    check(bool(layers) and all(isinstance(layer, int) for layer in layers), "exit_layers", layers)
    check(len(bounds) == 2 and all(isinstance(bound, int | float) for bound in bounds), "bounds", bounds)
    check(manifest["ready"] in ("lt", "le", "gt", "ge"), "ready", manifest["ready"])
    check(not set(PRECISIONS).isdisjoint(precisions), "precisions", list(precisions))
    for precision in set(PRECISIONS) & set(precisions):
        entry, within = precisions[precision], f"precisions.{precision}."
        check_all(entry, PRECISION_FIELDS, within)
        check(len(entry["stages"]) == len(layers), f"number of {within}stages", len(entry["stages"]))
        for index, stage in enumerate(entry["stages"]):
            check_all(stage, STAGE_FIELDS, f"{within}stages.{index}.")


def chosen_precision(manifest: dict[str, Any], precision: str | None) -> str:
    """Return the precision to run: the one that was asked for, else int8 if there is one.

    Args:
        manifest: from `read_manifest`.
        precision: "fp32", "int8", or None.

    Raises:
        ValueError: the model was not exported with this precision.

    Examples:
        >>> chosen_precision({"precisions": {"fp32": {}, "int8": {}}}, None)
        'int8'
    """
    available = [name for name in PRECISIONS if name in manifest["precisions"]]
    if precision is None:
        return available[-1]
    if precision not in available:
        more = "; export with --int8" if precision == "int8" else ""
        raise ValueError(f"precision: got {precision!r}; this folder has {' and '.join(available)}{more}")
    return precision


def check_source(folder: Path, manifest: dict[str, Any]) -> None:
    """Check that the checkpoint beside an exported model, if there is one, is still the one that was exported.

    Args:
        folder: folder with the exported model.
        manifest: from `read_manifest`.

    Raises:
        ExportFolderError: a file of the checkpoint has changed.
    """
    folder = folder.absolute()  # "." has no name
    if folder.name != SUBFOLDER or not manifest["source"]:
        return
    int8 = " --int8" if "int8" in manifest["precisions"] else ""
    for name, found in source_files(folder.parent).items():
        if found != manifest["source"].get(name, found):
            raise ExportFolderError(
                f"'{folder.parent / name}' has changed since '{folder}' was exported from it; call adaexit export "
                f"{folder.parent}{int8} ..., or delete '{folder}'"
            )


def read_checked(folder: Path, name: str, recorded: str) -> bytes:
    """Read a file of an exported model.

    Args:
        folder: folder with the exported model.
        name: path of the file in it.
        recorded: its hash, from the manifest.

    Raises:
        ExportFolderError: the file is missing, or is not the one that was exported.
    """
    path = folder / name
    if not path.is_file():
        raise ExportFolderError(f"'{path}' is missing; copy or download the folder again, or export again")
    data = path.read_bytes()
    if sha256(data) != recorded:
        raise ExportFolderError(
            f"'{path}' is not the file that was exported, whose hash is in {MANIFEST}; copy or download the folder "
            "again, or export again"
        )
    return data


def hash_of_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: the file, which may be larger than the memory.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
