"""Write to stdout and stderr of any encoding."""

import codecs
import io
import json
import sys
from typing import Any

from ..utils.files import without_nan


def print_json(value: Any) -> None:
    """Print a value as one line of JSON.

    NaN and infinity, which JSON does not have, become null. Where stdout is not UTF-8, other characters than ASCII are
    escaped.
    """
    utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    print(json.dumps(without_nan(value), ensure_ascii=not utf8, allow_nan=False), flush=True)


def escape_what_cannot_be_printed() -> None:
    """Let stdout and stderr escape characters that their encoding does not have, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
