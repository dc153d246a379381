"""Texts out of files and streams."""

import csv
import json
from itertools import islice
from pathlib import Path

import pytest

from adaexit_hf.inference.text_files import (
    DELIMITERS,
    check_file,
    delimiter_of,
    plain_lines,
    read_rows,
    texts_of,
)


def read_texts(path: Path, columns: list[str]):
    check_file(path, columns)
    if path.suffix == ".txt":
        with path.open("rb") as stream:
            yield from plain_lines(stream, str(path))
    else:
        for number, row in enumerate(read_rows(path)):
            yield texts_of(row, columns, f"row {number} of '{path}'")


ROWS = [{"a": 'a "good" film', "b": "one, two"}, {"a": "zwölf Äpfel", "b": "x"}]


def write(folder: Path, kind: str) -> Path:
    lines = {
        ".csv": 'a,b\r\n"a ""good"" film","one, two"\r\nzwölf Äpfel,x\r\n',
        ".tsv": 'a\tb\na "good" film\tone, two\nzwölf Äpfel\tx\n',
        ".jsonl": "\n\n".join(json.dumps(row) for row in ROWS),
        ".json": json.dumps(ROWS, indent=1),
    }
    path = folder / f"texts{kind}"
    path.write_bytes(lines[kind].encode())
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json"])
def test_one_column_is_texts_and_two_are_pairs(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    assert list(read_texts(path, ["a"])) == [row["a"] for row in ROWS]
    assert list(read_texts(path, ["b", "a"])) == [(row["b"], row["a"]) for row in ROWS]


def test_lines_are_texts_empty_ones_too(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("\ufeffone\r\n\n  two \n".encode())
    assert list(read_texts(tmp_path / "texts.txt", ["text"])) == ["one", "", "  two "]


def test_a_csv_field_may_hold_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text('text\n"one\ntwo"\n')
    assert list(read_texts(tmp_path / "texts.csv", ["text"])) == ["one\ntwo"]


def test_a_line_that_is_not_utf8_is_named() -> None:
    lines = plain_lines([b"good\n", "Äpfel\n".encode("latin1")], "stdin")
    assert next(lines) == "good"
    with pytest.raises(ValueError, match=r"stdin: line 2 is not UTF-8 .*iconv"):
        next(lines)


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("texts.xml", "", ["text"], r"file: got '.*texts.xml'.*pass one of .txt"),
        ("texts.txt", "", ["a", "b", "c"], r"text_columns \['a', 'b', 'c'\]; .*one or two columns"),
        ("texts.csv", "a\n1\n", ["b"], r"row 0 of .* has no text in b, it is .*; its columns are a:"),
        ("texts.jsonl", '{"a": 1}', ["a"], r"row 0 of .* has no text in a"),
        ("texts.jsonl", "[1]", ["a"], r"row 0 is \[1\], which has no columns; pass rows such as"),
        ("texts.json", "[1", ["a"], r"texts.json is not valid JSON"),
        ("texts.json", '{\n"a": "b"}', ["a"], r"line 1 is not valid JSON .* in a .json file a list of objects"),
        ("texts.csv", "text,label\ngood, but long,1\n", ["text"], r"row 0 \(line 2\) has 3 fields, .* a comma must"),
        ("texts.csv", "text,label\na,1\nb\n", ["text"], r"row 1 \(line 3\) has 1 fields, the header has 2"),
        ("texts.tsv", "text\tlabel\na\tb\t1\n", ["text"], r"row 0 .* has 3 fields, .*a tab separates fields"),
        ("texts.csv", "", ["text"], r"has no rows; pass a file whose first line has the names of the columns"),
        ("texts.csv", "\na,1\n", ["text"], r"has no names in its first line"),
        ("texts.csv", "text,text\na,b\n", ["text"], r"the header names column 'text' twice; rename one"),
        ("texts.csv", "text\na\0b\n", ["text"], r"line 2 contains the character NUL; is it UTF-16\?"),
        ("texts.csv", "Text\na\n", ["text"], r"its columns are Text: .*. Did you mean 'Text'\?"),
        ("texts.parquet", "no", ["text"], r"texts.parquet: is not a valid .parquet file"),
        ("texts.jsonl", '{"a": "b"}\n{"a', ["a"], r"texts.jsonl: line 2 is not valid JSON"),
        ("texts.csv", 'a\n"good\nbad', ["a"], r"is not a valid .csv file .*quotation mark not closed"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, text: str, columns: list[str], message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_texts(tmp_path / name, columns))


@pytest.mark.parametrize("kind", [".CSV", ".TSV", ".JSONL", ".Json"])
def test_capital_letters_in_a_suffix_make_no_difference(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind.lower()).rename(tmp_path / f"TEXTS{kind}")
    assert list(read_texts(path, ["a"])) == [row["a"] for row in ROWS]


def test_a_json_file_may_have_one_object_per_line(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text("\n".join(json.dumps(row) for row in ROWS))
    assert list(read_texts(tmp_path / "texts.json", ["a"])) == [row["a"] for row in ROWS]


def test_parquet_is_read(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "texts.parquet")
    assert list(read_texts(tmp_path / "texts.parquet", ["b", "a"])) == [(row["b"], row["a"]) for row in ROWS]


def test_a_field_may_be_longer_than_the_csv_module_allows_by_default(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text(f"text,label\n{'word ' * 40_000},1\n")
    (text,) = read_texts(tmp_path / "texts.csv", ["text"])
    assert len(text) == 200_000
    assert csv.field_size_limit() > 200_000


@pytest.mark.parametrize("kind", [".csv", ".txt", ".jsonl"])
def test_lines_may_end_with_cr_alone(tmp_path: Path, kind: str) -> None:
    lines = {".csv": "text,label\ra,1\rb,0\r", ".txt": "a\rb\r", ".jsonl": '{"text": "a"}\r{"text": "b"}'}
    (tmp_path / f"texts{kind}").write_bytes(lines[kind].encode())
    assert list(read_texts(tmp_path / f"texts{kind}", ["text"])) == ["a", "b"]


def test_half_a_surrogate_pair_is_named_after_the_rows_before_it(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n{"text": "b \\ud83d"}\n')
    texts = read_texts(tmp_path / "texts.jsonl", ["text"])
    assert list(islice(texts, 1)) == ["a"]
    with pytest.raises(ValueError, match=r"row 1, column 'text': character 2 is '.ud83d', half of a surrogate pair"):
        next(texts)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["a,b;c", "1,2;3"], None),  # two fields by either
        (["a,b;c", "1,2", "1,2,3;"], ","),  # neither fits: the first that divides the header, whose error is told
        (["a;b", '"one; two";3', 'four, five;"six'], ";"),  # the last line may end inside a field
        (["text", "one; two", "three; four"], ","),
        (["a\tb", "one, two\t1"], "\t"),
    ],
)
def test_the_delimiter_divides_header_and_rows_alike(lines: list[str], found: str | None) -> None:
    lines = [f"{line}\n" for line in lines]
    if found is None:
        with pytest.raises(ValueError, match="a.csv: its fields may be separated by ',' or ';'; pass the one"):
            delimiter_of(lines, "a.csv")
    else:
        assert delimiter_of(lines, "a.csv") == found


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_what_the_csv_module_wrote_is_read(tmp_path: Path, delimiter: str) -> None:
    rows = [{"a": f"x {mark} y", "b": f'"{number}"\n'} for number, mark in enumerate((*DELIMITERS, "") * 30)]
    with (tmp_path / "texts.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["a", "b"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    assert list(read_rows(tmp_path / "texts.csv")) == rows
