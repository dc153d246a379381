"""Read texts, or pairs of texts, from files and streams line by line, whatever their size; without `datasets`."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".json")
Text = str | tuple[str, str]


def decoded(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines as text; a byte order mark at the start is removed.

    Args:
        stream: lines as bytes.
        name: name of the stream in error messages.

    Raises:
        ValueError: if a line is not UTF-8.
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
    """One text per line, empty lines included, so that prediction i belongs to line i."""
    return (line.rstrip("\r\n") for line in decoded(stream, name))


def records(stream: IO[bytes], kind: str, name: str) -> Iterator[Any]:
    """Rows of a file with columns.

    Args:
        stream: lines as bytes.
        kind: ".csv", ".tsv", ".jsonl" or ".json".
        name: name of the file in error messages.

    Raises:
        ValueError: if the content is not of this kind.
    """
    lines = decoded(stream, name)
    try:
        if kind == ".csv":
            yield from csv.DictReader(lines, strict=True)
        elif kind == ".tsv":  # as in GLUE's files: a quotation mark has no special meaning
            yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        elif kind == ".jsonl":
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield parse_json(line, f"{name}: line {number}")
        else:
            rows = parse_json("".join(lines), name)
            if not isinstance(rows, list):
                raise ValueError(f"{name}: is not a list of rows; pass [{{...}}, ...], or a .jsonl file")
            yield from rows
    except csv.Error as error:
        raise ValueError(f"{name}: is not a valid {kind} file ({error}); is a quotation mark not closed?") from error


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from None


def check_file(path: Path, columns: Sequence[str]) -> None:
    """Check the arguments of `read_texts`, before a model is loaded.

    Args:
        path: as for `read_texts`.
        columns: as for `read_texts`.

    Raises:
        ValueError: if the file does not exist or is of an unknown kind, or if there are not one or two columns.
    """
    if path.suffix not in KINDS or len(columns) not in (1, 2):
        raise ValueError(
            f"file: got '{path}' and text_columns {list(columns)}; pass one of {', '.join(KINDS)}, and one or two "
            "columns"
        )
    if not path.is_file():
        raise ValueError(f"file: there is no '{path}'; pass an existing file")


def read_texts(path: Path, columns: Sequence[str]) -> Iterator[Text]:
    """Read texts, or pairs of texts, from a file, one row at a time.

    Args:
        path: a .txt file with one text per line; a .csv or .tsv file with a header; a .jsonl file, or a .json file
            with a list of rows.
        columns: one column with texts, or two for pairs of texts. Not used for .txt.

    Yields:
        A text, or a pair of texts.

    Raises:
        ValueError: if the file does not exist or is of an unknown kind, if a row has no text in one of the columns, or
            if the file is not UTF-8 or not valid.
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
                row_columns = ", ".join(map(str, row)) if isinstance(row, dict) else "none"
                raise ValueError(
                    f"text_columns: row {number} of '{path}' has no text in {' or '.join(columns)}, it is {row!r:.80};"
                    f" its columns are {row_columns}: pass --text_columns <one or two with texts>"
                )
            yield texts[0] if len(columns) == 1 else (texts[0], texts[1])
