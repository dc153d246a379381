"""Write files atomically, and values as valid JSON."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

# Which stages of a training run are done. Named here, for commands that do not train: importing the trainer takes a
# second.
LEDGER = "stages.json"


def without_nan(value: Any) -> Any:
    """A value that can be written as JSON, with None instead of NaN and infinity, which JSON does not have.

    >>> without_nan({"score": float("nan"), "layers": [1, 2]})
    {'score': None, 'layers': [1, 2]}
    """
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def check_writable(argument: str, folder: str | Path) -> None:
    """Check that files can be written into a folder, which need not exist yet, before the work that makes them.

    Args:
        argument: name of the argument in the error message.
        folder: the folder.

    Raises:
        ValueError: if no file can be written to it, or to the folder in which it would be created.
    """
    existing = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"{argument}: got '{folder}', but no file can be written into '{existing}' ({error.strerror}); pass "
            "another folder"
        ) from error


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
