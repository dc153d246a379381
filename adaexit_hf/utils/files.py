"""Files that are written whole or not at all, as JSON knows values."""

import json
import os
from pathlib import Path
from typing import Any


def without_nan(value: Any) -> Any:
    """A value of JSON, with null for NaN and infinity, which JSON has not."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def replace_text(path: Path, text: str) -> None:
    """Write a file whole, or leave what was there."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise OSError(error.errno, f"'{path}' could not be written: {error.strerror}") from error
