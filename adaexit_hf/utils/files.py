"""Write files atomically, and values as valid JSON."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def without_nan(value: Any) -> Any:
    """A value that can be written as JSON, with None instead of NaN and infinity, which JSON does not have.

    >>> without_nan({"score": float("nan"), "layers": [1, 2]})
    {'score': None, 'layers': [1, 2]}
    """
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def check_folder(argument: str, folder: Path) -> None:
    """Check that files can be written into a folder, which need not exist yet, before the work that makes them.

    Args:
        argument: name of the argument for error messages.
        folder: the folder.

    Raises:
        ValueError: if it, or the folder in which it would be created, is a file or cannot be written to.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{argument}: '{existing}' is a file, not a folder; pass another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{argument}: no files can be written into '{existing}'; pass another folder")


def replace_text(path: Path, text: str) -> None:
    """Write a file completely, or leave the existing one unchanged.

    Raises:
        OSError: if the file cannot be written.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(error.errno, f"'{path}' could not be written: {error.strerror}") from error


def check_writable(argument: str, folder: str | Path) -> None:
    """Create a folder and check that files can be written to it, before anything expensive.

    Args:
        argument: name of the argument in the error message.
        folder: the folder; it may exist.

    Raises:
        ValueError: if it cannot be created, or no file can be written to it.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{argument}: got '{folder}', to which no file can be written ({error.strerror}); pass another folder"
        ) from error
