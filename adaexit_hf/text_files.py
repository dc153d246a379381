"""Texts, or pairs of texts, line by line out of files and streams of any size; needs no `datasets`."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".json")
Text = str | tuple[str, str]


def decoded(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines as text.

    Raises:
        ValueError: a line that is not UTF-8.
    """
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}: line {number} is not UTF-8 ({error.reason}, byte {error.start} of the line); convert it, "
                "e.g. with iconv -f latin1 -t utf-8"
            ) from None


def plain_lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """One text a line; empty lines are left out."""
    return (line.rstrip("\r\n") for line in decoded(stream, name) if line.strip())


def records(stream: IO[bytes], kind: str, name: str) -> Iterator[Any]:
    """Rows of a file with columns."""
    lines = decoded(stream, name)
    if kind == ".csv":
        yield from csv.DictReader(lines)
    elif kind == ".tsv":  # as GLUE's: a quote is a quote
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    elif kind == ".jsonl":
        yield from (json.loads(line) for line in lines if line.strip())
    else:
        rows = json.loads("".join(lines))
        if not isinstance(rows, list):
            raise ValueError(f"{name}: holds no list of rows; pass [{{...}}, ...], or a .jsonl file")
        yield from rows


def read_texts(path: Path, columns: Sequence[str]) -> Iterator[Text]:
    """Texts, or pairs of texts: lines of .txt, columns of .csv and .tsv with a header, of .jsonl and .json.

    Args:
        columns: one, or two for pairs; .txt has none.

    Raises:
        ValueError: a file of another kind, a row without these columns, or what is not UTF-8.
    """
    kind = path.suffix
    if kind not in KINDS or len(columns) not in (1, 2):
        raise ValueError(
            f"file: got '{path}' and text_columns {list(columns)}; pass one of {', '.join(KINDS)}, and one or two "
            "columns"
        )
    with path.open("rb") as stream:
        if kind == ".txt":
            yield from plain_lines(stream, str(path))
            return
        for number, row in enumerate(records(stream, kind, str(path))):
            texts = [row[name] for name in columns if isinstance(row, dict) and isinstance(row.get(name), str)]
            if len(texts) < len(columns):
                known = ", ".join(map(str, row)) if isinstance(row, dict) else "none"
                raise ValueError(
                    f"text_columns: row {number} of '{path}' has no text in {' or '.join(columns)}, its columns are "
                    f"{known}; pass --text_columns <one or two of them>"
                )
            yield texts[0] if len(columns) == 1 else (texts[0], texts[1])
