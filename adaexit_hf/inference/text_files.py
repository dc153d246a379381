"""Read rows of files and texts of streams line by line, whatever their size; without `datasets`."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from ..utils.empty_texts import is_empty
from ..utils.imports import needed
from ..utils.spelling import did_you_mean

ROW_KINDS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
KINDS = (".txt", *ROW_KINDS)
Text = str | tuple[str, str]
Row = dict[str, Any]
# What may separate the fields of a .csv file, and the number of lines from which it is found out.
DELIMITERS = (",", ";", "\t", "|")
SAMPLE = 100

# The limit of the csv module is 131,072 characters, for all readers of the process; this is the largest one.
csv.field_size_limit(2**31 - 1)


def decoded(stream: Iterable[bytes], name: str) -> Iterator[str]:
    r"""Lines as text, which end with \n, \r\n or \r; a byte order mark at the start is removed.

    Args:
        stream: lines as bytes.
        name: name of the stream in error messages.

    Raises:
        ValueError: if a line is not UTF-8, or contains the character NUL, which UTF-16 has between others.
    """
    lines = (line for part in stream for line in part.splitlines(keepends=True))
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}: line {number} is not UTF-8 ({error.reason}, byte {error.start} of the line); convert it, "
                "e.g. with iconv -f latin1 -t utf-8"
            ) from None
        if "\0" in text:
            raise ValueError(
                f"{name}: line {number} contains the character NUL; is it UTF-16? Convert it, e.g. with iconv -f "
                "utf-16 -t utf-8"
            )
        yield text


def plain_lines(stream: Iterable[bytes], name: str) -> Iterator[str]:
    """One text per line, empty lines included, so that prediction i belongs to line i."""
    return (line.rstrip("\r\n") for line in decoded(stream, name))


def encodable(text: str, where: str) -> str:
    r"""The text itself, if it can be written as UTF-8.

    Args:
        text: any text.
        where: where it was found, for error messages.

    Raises:
        ValueError: if it contains half of a surrogate pair, as `\ud83d` in JSON without its second half.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: character {error.start} is {text[error.start]!a}, half of a surrogate pair, which is no text; "
            "remove it"
        ) from None
    return text


def read_rows(path: Path, delimiter: str | None = None) -> Iterator[Row]:
    """Read the rows of a file with columns, one at a time.

    Args:
        path: a .csv or .tsv file with a header, a .jsonl file with one object per line, a .json file with a list of
            objects or one object per line, or a .parquet file (extra `train`). Capital letters make no difference.
        delimiter: the character that separates the fields of a .csv file. Default: found out, see `delimiter_of`.

    Yields:
        A row, column -> value. All values of .csv and .tsv are strings; a field without characters is "".

    Raises:
        ValueError: if the file is not UTF-8 or not valid, if it has no header, or the header names a column twice, if
            a row has more or fewer fields than the header, or if a text cannot be written as UTF-8; the message names
            the row, the first of which is row 0.
    """
    kind, name = path.suffix.lower(), str(path)
    if delimiter is not None:
        delimiter = {r"\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
        if len(delimiter) != 1:
            raise ValueError(f"delimiter: got {delimiter!r}; pass one character, e.g. ';', or tab")
    if kind == ".parquet":
        rows: Iterator[Any] = _parquet(path)
    elif kind in (".csv", ".tsv"):
        rows = _separated(path, kind, delimiter)
    else:
        rows = _json(path, kind)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(
                f"{name}: row {number} is {row!r:.80}, which has no columns; pass rows such as "
                '{"text": "a good film"}'
            )
        for column, value in row.items():
            if isinstance(value, str):
                encodable(value, f"{name}: row {number}, column '{column}'")
        yield row


def delimiter_of(lines: Sequence[str], name: str) -> str:
    r"""Find out by which character the fields of a .csv file are separated.

    It is the one of comma, semicolon, tab and bar that divides the header, and all rows into as many fields.

    Args:
        lines: the first lines of the file, with their ends.
        name: name of the file in error messages.

    Raises:
        ValueError: if several do.

    Examples:
        >>> delimiter_of(["text;label\n", "good, but long;1\n"], "a.csv")
        ';'
        >>> delimiter_of(["text\n", "a; b\n"], "a.csv")
        ','
    """
    divides, fits = [], []
    for delimiter in DELIMITERS:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        counts: list[int] = []
        with suppress(csv.Error):  # the last lines may end inside a field
            for row in reader:
                counts += [len(row)] if row else []
        if counts and counts[0] > 1:
            divides.append(delimiter)
            if len(set(counts)) == 1:
                fits.append(delimiter)
    if len(fits) > 1:
        raise ValueError(
            f"{name}: its fields may be separated by {' or '.join(map(repr, fits))}; pass the one that is meant as "
            "--delimiter"
        )
    return next(iter([*fits, *divides]), ",")


def _first_lines(path: Path) -> list[str]:
    """The first lines of a file; what is no text is left to the reader of the rows."""
    with path.open("rb") as stream:
        lines = [part for line in islice(stream, SAMPLE) for part in line.splitlines(keepends=True)]
    return [line.decode("utf-8-sig", "replace").replace("\0", "") for line in lines[:SAMPLE]]


def _separated(path: Path, kind: str, delimiter: str | None) -> Iterator[Row]:
    """Rows of a .csv or .tsv file."""
    with path.open("rb") as stream:
        lines = decoded(stream, str(path))
        if kind == ".csv":
            delimiter = delimiter_of(_first_lines(path), str(path)) if delimiter is None else delimiter
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
        else:  # as in GLUE's files: a quotation mark has no special meaning
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            header = next(reader, None)
            if not header or not any(header):
                raise ValueError(
                    f"{path}: has no {'rows' if header is None else 'names in its first line'}; pass a file whose "
                    "first line has the names of the columns"
                )
            twice = sorted({column for column in header if column and header.count(column) > 1})
            if twice:
                raise ValueError(f"{path}: the header names column '{twice[0]}' twice; rename one of them")
            for number, fields in enumerate(row for row in reader if row):
                if len(fields) != len(header):
                    sign = {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter or "", repr(delimiter))
                    mark = f"a {sign} must stand in quotation marks" if kind == ".csv" else "a tab separates fields"
                    raise ValueError(
                        f"{path}: row {number} (line {reader.line_num}) has {len(fields)} fields, the header has "
                        f"{len(header)}; {mark}: {fields!r:.120}"
                    )
                yield dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise ValueError(
                f"{path}: is not a valid {kind} file ({error}); is a quotation mark not closed?"
            ) from error


def _json(path: Path, kind: str) -> Iterator[Any]:
    """Rows of a .jsonl file, or of a .json file, which may also have one object per line."""
    with path.open("rb") as stream:
        lines = enumerate(decoded(stream, str(path)), start=1)
        for number, line in lines:
            if kind == ".json" and line.lstrip().startswith("["):
                rows = parse_json("".join([line, *(rest for _, rest in lines)]), str(path))
                if not isinstance(rows, list):
                    raise ValueError(f"{path}: is not a list of rows; pass [{{...}}, ...], or a .jsonl file")
                yield from rows
            elif line.strip():
                yield parse_json(line, f"{path}: line {number}")


def _parquet(path: Path) -> Iterator[Any]:
    """Rows of a .parquet file, which is read in batches."""
    parquet = needed("pyarrow.parquet", "train")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except (ValueError, OSError) as error:  # the errors of pyarrow for invalid content
        raise ValueError(f"{path}: is not a valid .parquet file ({error})") from error


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not valid JSON ({error}); pass one object per line, or in a .json file a list of objects"
        ) from None


def check_file(path: Path, columns: Sequence[str]) -> None:
    """Check a file with texts and the names of its columns, before a model is loaded.

    Args:
        path: a .txt file with one text per line, or a file with columns, as for `read_rows`.
        columns: one column with texts, or two for pairs of texts. Not used for .txt.

    Raises:
        ValueError: if the file does not exist or is of an unknown kind, or if there are not one or two columns.
    """
    if path.suffix.lower() not in KINDS or len(columns) not in (1, 2):
        raise ValueError(
            f"file: got '{path}' and text_columns {list(columns)}; pass one of {', '.join(KINDS)}, and one or two "
            "columns"
        )
    if not path.is_file():
        raise ValueError(f"file: there is no '{path}'; pass an existing file")


def texts_of(row: Mapping[str, Any], columns: Sequence[str], where: str) -> Text | None:
    """The text of a row, or its pair of texts; None if a text is empty.

    Args:
        row: column -> value.
        columns: one column with texts, or two for pairs of texts.
        where: what the row is called in error messages, e.g. "row 3 of 'texts.csv'".

    Raises:
        ValueError: if the row has no such column, or another value than a text in it.

    Examples:
        >>> texts_of({"a": "good", "b": "bad"}, ["b", "a"], "row 0"), texts_of({"a": " "}, ["a"], "row 0")
        (('bad', 'good'), None)
    """
    wrong = [name for name in columns if name not in row or not (is_empty(row[name]) or isinstance(row[name], str))]
    if wrong:
        raise ValueError(
            f"text_columns: {where} has no text in {' or '.join(wrong)}, it is {dict(row)!r:.80}; its columns are "
            f"{', '.join(map(str, row))}: pass --text_columns <one or two with texts>{did_you_mean(wrong, row)}"
        )
    texts = [row[name] for name in columns]
    if any(map(is_empty, texts)):
        return None
    return texts[0] if len(columns) == 1 else (texts[0], texts[1])
