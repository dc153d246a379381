"""Texts out of files and streams."""

import json
from pathlib import Path

import pytest

from adaexit_hf.inference.text_files import plain_lines, read_texts

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
        ("texts.jsonl", "[1]", ["a"], r"its columns are none"),
        ("texts.json", '{"a": "b"}', ["a"], r"is not a list of rows"),
        ("texts.jsonl", '{"a": "b"}\n{"a', ["a"], r"texts.jsonl: line 2 is not valid JSON"),
        ("texts.csv", 'a\n"good\nbad', ["a"], r"is not a valid .csv file .*quotation mark not closed"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, text: str, columns: list[str], message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_texts(tmp_path / name, columns))
