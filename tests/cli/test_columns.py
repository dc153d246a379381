"""Which columns are taken for texts and labels, and which choice is left to the user."""

from typing import Any

import pytest

from adaexit_hf.cli.columns import guess_label_column, guess_text_columns

ROWS = 40


def rows_of(**columns: Any) -> list[dict[str, Any]]:
    """Rows whose values are what each function says of the row's number."""
    return [{name: value(row) for name, value in columns.items()} for row in range(ROWS)]


def text(row: int) -> str:
    return f"film number {row} is good"


def classes(row: int) -> str:
    return ("negative", "positive")[row % 2]


def number(row: int) -> str:
    return str(row)


@pytest.mark.parametrize(
    ("columns", "pairs", "texts", "label"),
    [
        ({"review": text, "sentiment": classes}, None, ["review"], "sentiment"),
        ({"id": number, "review": text, "stars": lambda row: row % 5}, None, ["review"], "stars"),
        ({"tweet": text, "score": lambda row: row / 7}, None, ["tweet"], "score"),
        ({"sentence1": text, "sentence2": text, "gold": classes}, None, ["sentence1", "sentence2"], "gold"),
        ({"a": text, "b": text, "gold": classes}, True, ["a", "b"], "gold"),
        ({"text": text, "title": text, "kind": classes, "label": classes}, None, ["text"], "label"),
        ({"text": text, "text_pair": text, "gold": classes}, None, ["text", "text_pair"], "gold"),
        ({"comment": text, "tags": lambda row: ["rude"] * (row % 2)}, None, ["comment"], "tags"),
        ({"書評": lambda row: f"電影很好看{row}", "y": classes}, None, ["書評"], "y"),
        ({"link": lambda row: f"https://a.org/{row}", "body": text, "y": classes}, None, ["body"], "y"),
    ],
)
def test_the_only_choice_is_taken(columns: dict[str, Any], pairs: bool | None, texts: list[str], label: str) -> None:
    rows = rows_of(**columns)
    assert guess_text_columns(rows, pairs) == texts
    assert guess_label_column(rows, texts) == label


@pytest.mark.parametrize(
    ("columns", "pairs", "message"),
    [
        (
            {"title": text, "body": text},
            None,
            "text_columns: missing; of the columns title, body: title, body may be it; pass one or two columns .*, "
            "e.g. --text_columns title",
        ),
        ({"title": text, "body": text}, False, "pass the column with texts, e.g. --text_columns title"),
        ({"body": text}, True, "pass two columns with texts"),
        ({"id": number, "y": classes}, None, "of the columns id, y: none looks like it"),
    ],
)
def test_another_choice_of_texts_is_the_users(columns: dict[str, Any], pairs: bool | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guess_text_columns(rows_of(**columns), pairs)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"genre": classes, "mood": classes}, "label_column: missing; .* genre, mood may be it; pass the column with"),
        ({"id": number, "same": lambda row: "a"}, "none looks like it; pass the column with labels, e.g."),
    ],
)
def test_another_choice_of_labels_is_the_users(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guess_label_column(rows_of(review=text, **columns), ["review"])


def test_what_is_taken_is_not_taken_again() -> None:
    rows = rows_of(review=text, title=text, y=classes)
    assert guess_text_columns(rows, None, taken=["title"]) == ["review"]


def test_a_first_line_that_is_data_is_noticed() -> None:
    rows = [{"a very good film": f"film {row} is good", "good": ("good", "bad")[row % 2]} for row in range(20)]
    with pytest.raises(
        ValueError, match="'good' has its own name as a label, as if the first line of the file were dat"
    ):
        guess_label_column(rows)
