"""Write to stdout and stderr of any encoding."""

import codecs
import io
import json
import sys
from typing import Any, TextIO

from ..utils.files import without_nan


def print_json(value: Any, stream: TextIO | None = None) -> None:
    """Print a value as one line of JSON.

    NaN and infinity, which JSON does not have, become null. Where the stream is not UTF-8, other characters than ASCII
    are escaped.

    Args:
        value: The value.
        stream: Where to print. Default: stdout.
    """
    stream = stream or sys.stdout
    utf8 = codecs.lookup(stream.encoding or "utf-8").name == "utf-8"
    print(json.dumps(without_nan(value), ensure_ascii=not utf8, allow_nan=False), file=stream, flush=True)


def escape_what_cannot_be_printed() -> None:
    """Let stdout and stderr escape characters that their encoding does not have, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
