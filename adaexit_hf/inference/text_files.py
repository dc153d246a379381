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
    """One text a line, empty ones included, so that answers and lines have the same numbers."""
    return (line.rstrip("\r\n") for line in decoded(stream, name))


def records(stream: IO[bytes], kind: str, name: str) -> Iterator[Any]:
    """Rows of a file with columns.

    Raises:
        ValueError: a file that is not of its kind.
    """
    lines = decoded(stream, name)
    try:
        if kind == ".csv":
            yield from csv.DictReader(lines, strict=True)
        elif kind == ".tsv":  # as GLUE's: a quote is a quote
            yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        elif kind == ".jsonl":
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield parsed(line, f"{name}: line {number}")
        else:
            rows = parsed("".join(lines), name)
            if not isinstance(rows, list):
                raise ValueError(f"{name}: holds no list of rows; pass [{{...}}, ...], or a .jsonl file")
            yield from rows
    except csv.Error as error:
        raise ValueError(f"{name}: is no {kind} file ({error}); is a quote left open?") from error


def parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON ({error})") from None


def check_file(path: Path, columns: Sequence[str]) -> None:
    """Refuse what `read_texts` cannot read, before anything else is done.

    Raises:
        ValueError: a file that is not there or of another kind, or too many columns.
    """
    if path.suffix not in KINDS or len(columns) not in (1, 2):
        raise ValueError(
            f"file: got '{path}' and text_columns {list(columns)}; pass one of {', '.join(KINDS)}, and one or two "
            "columns"
        )
    if not path.is_file():
        raise ValueError(f"file: there is no '{path}'; pass one that is there")


def read_texts(path: Path, columns: Sequence[str]) -> Iterator[Text]:
    """Texts, or pairs of texts: lines of .txt, columns of .csv and .tsv with a header, of .jsonl and .json.

    Args:
        columns: one, or two for pairs; .txt has none.

    Raises:
        ValueError: a file of another kind, a row without these columns, or what is not UTF-8.
    """
    check_file(path, columns)
    kind = path.suffix
    with path.open("rb") as stream:
        if kind == ".txt":
            yield from plain_lines(stream, str(path))
            return
        for number, row in enumerate(records(stream, kind, str(path))):
            texts = [row[name] for name in columns if isinstance(row, dict) and isinstance(row.get(name), str)]
            if len(texts) < len(columns):
                known = ", ".join(map(str, row)) if isinstance(row, dict) else "none"
                raise ValueError(
                    f"text_columns: row {number} of '{path}' has no text in {' or '.join(columns)}, it is {row!r:.80};"
                    f" its columns are {known}: pass --text_columns <one or two with texts>"
                )
            yield texts[0] if len(columns) == 1 else (texts[0], texts[1])
