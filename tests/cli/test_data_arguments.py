"""Files of labelled texts that cannot be used."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from adaexit_hf.cli.data_arguments import DataArguments, evaluation_splits, load_splits, reserve_validation
from adaexit_hf.data.tasks import Labels, check_columns, labels_of


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text,label\n"), ("b.csv", ""), ("c.jsonl", ""), ("d.json", "[]")]
)
def test_a_file_without_rows_is_refused(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).write_text(content)
    with pytest.raises(
        ValueError,
        match=rf"got validation_file '.*{name}', which (has no rows; pass|could not be read: .* has no rows; pass)",
    ):
        load_splits(DataArguments(validation_file=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (
            "fields.csv",
            "text,label\na,1\nb,0,3\n",
            r"row 1 \(line 3\) has 3 fields, the header has 2; a comma must stand in quotation",
        ),
        ("broken.jsonl", '{"text": "a", "label": 0}\n{"te', "line 2 is not valid JSON"),
        ("text.parquet", "text", "Parquet"),
    ],
)
def test_a_broken_file_is_refused(
    name: str, content: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"got validation_file '.*{name}', which could not be read: (.|\n)*{why}"):
        load_splits(DataArguments(validation_file=str(tmp_path / name)))


def test_files_of_different_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    (tmp_path / "dev.csv").write_text("sentence,gold\na,1\n")
    splits = load_splits(
        DataArguments(
            validation_file=str(tmp_path / "dev.csv"), train_file=str(tmp_path / "train.csv"), text_columns=["text"]
        ),
        training=True,
    )
    with pytest.raises(ValueError, match="split 'validation' has no column 'text'; it has sentence, gold"):
        check_columns(splits["validation"], ["text"], "label", "validation")


def test_f1_is_of_two_classes() -> None:
    arguments = DataArguments(metrics=["accuracy", "f1"])
    assert arguments.metric_names(Labels(["no", "yes"])) == ("accuracy", "f1")
    with pytest.raises(
        ValueError, match="metric: f1 is defined for two classes, 0 and 1, but there are 3 classes; pass accuracy or"
    ):
        arguments.metric_names(Labels(["a", "b", "c"]))


def rows_of(folder: Path, name: str, content: str) -> dict[str, list]:
    (folder / name).write_text(content)
    return load_splits(DataArguments(validation_file=str(folder / name)))["validation"].to_dict()


def test_only_an_empty_field_is_missing(tmp_path: Path) -> None:
    texts, classes = ["null", "nan", "N/A", "", "a"], ["None", "NA", "null", "some", ""]
    content = "text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(texts, classes, strict=True))
    found = rows_of(tmp_path, "a.csv", content)
    assert found == {"text": [*texts[:3], None, "a"], "label": [*classes[:4], None]}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["1", "-1", ""], [1, -1, None]),
        (["1", "0.5", "-2e-1"], [1.0, 0.5, -0.2]),
        (["01", "02", "1"], ["01", "02", "1"]),
        (["nan", "inf", "1"], ["nan", "inf", "1"]),
    ],
)
def test_labels_are_numbers_if_all_of_them_are(tmp_path: Path, labels: list[str], expected: list) -> None:
    content = "text\tlabel\n" + "".join(f"007\t{label}\n" for label in labels)
    assert rows_of(tmp_path, "A.TSV", content) == {"text": ["007"] * 3, "label": expected}


def test_scores_and_words_in_one_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'label' contains the number 0.5 and the word 'nan'; pass a column with eit"):
        rows_of(tmp_path, "a.csv", "text,label\na,0.5\nb,nan\n")


def test_json_rows_may_leave_columns_out(tmp_path: Path) -> None:
    found = rows_of(tmp_path, "a.json", '{"text": "a", "label": 1}\n{"label": 0, "text": "b", "more": 2}')
    assert found == {"text": ["a", "b"], "label": [1, 0], "more": [None, 2]}


def test_train_and_validation_may_have_different_formats(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    (tmp_path / "dev.jsonl").write_text('{"text": "b", "label": 1}')
    splits = load_splits(
        DataArguments(validation_file=str(tmp_path / "dev.jsonl"), train_file=str(tmp_path / "train.csv")),
        training=True,
    )
    assert splits["train"].features == splits["validation"].features


def split_of(labels: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [str(place) for place in range(len(labels))], "label": labels})


@pytest.mark.parametrize(
    ("labels", "has_minus_one", "kept", "said"),
    [
        ([-1, 0, 1], True, True, ""),
        ([-1, 0, 1], False, True, ""),  # and check_labels refuses the -1
        ([-1, -1], True, True, ""),
        ([-1.0, 0.5], False, True, ""),
        ([-1, -1], False, False, "split 'test' is left out: all its labels are missing (-1 or empty)"),
        ([None, None], True, False, "split 'test' is left out: all its labels are missing (-1 or empty)"),
        ([None, -1], False, False, "split 'test' is left out: all its labels are missing (-1 or empty)"),
        ([0, None], False, True, ""),
        ([], False, False, "split 'test' is left out: it has no rows"),
    ],
)
def test_a_test_split_is_left_out_only_if_no_label_is_known(
    capsys: pytest.CaptureFixture, labels: list, has_minus_one: bool, kept: bool, said: str
) -> None:
    splits = datasets.DatasetDict({"validation": split_of([0]), "test": split_of(labels)})
    names = evaluation_splits(DataArguments(), splits, has_minus_one=has_minus_one)
    assert ("test" in names) is kept
    assert said in capsys.readouterr().err


def test_a_test_split_without_the_label_column_is_left_out(capsys: pytest.CaptureFixture) -> None:
    splits = datasets.DatasetDict({"validation": split_of([0]), "test": split_of([0]).remove_columns("label")})
    assert evaluation_splits(DataArguments(), splits) == ["validation"]
    assert "split 'test' is left out: it has no column 'label'" in capsys.readouterr().err


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_every_class_gives_its_share_and_keeps_a_row(fraction: float) -> None:
    labels = ["a"] * 40 + ["b"] * 20 + ["c"] * 2 + ["d"]
    whole = split_of(labels)
    parts = reserve_validation(datasets.DatasetDict({"train": whole}), ("validation",), fraction, "label")
    train, validation = parts["train"].to_dict(), parts["validation"].to_dict()
    assert sorted(train["text"] + validation["text"], key=int) == whole["text"][:]
    assert set(train["label"]) == set("abcd")
    for name, count in (("a", 40), ("b", 20)):
        assert validation["label"].count(name) == pytest.approx(count * fraction, abs=1)


def test_a_class_of_one_row_takes_no_place_in_validation() -> None:
    splits = datasets.DatasetDict({"train": split_of([0] * 9 + [1])})
    parts = reserve_validation(splits, ("validation",), 0.1, "label")
    assert parts["validation"]["label"][:] == [0]
    assert parts["train"]["label"][:] == [0] * 8 + [1]


def test_a_fraction_that_takes_no_row_is_refused() -> None:
    splits = datasets.DatasetDict({"train": split_of(["a", "b", "c"])})
    with pytest.raises(ValueError, match="validation_fraction: 0.5 of 3 rows takes no row, if every class keeps a"):
        reserve_validation(splits, ("validation",), 0.5, "label")


def test_scores_are_split_at_random() -> None:
    parts = reserve_validation(
        datasets.DatasetDict({"train": split_of([place / 7 for place in range(20)])}), ("dev",), 0.2, "label"
    )
    assert (len(parts["train"]), len(parts["dev"])) == (16, 4)


# Several labels at once ---------------------------------------------------------------------------------------------


def columns_of(tmp_path: Path, rows: str, **kwargs: Any) -> datasets.Dataset:
    (tmp_path / "a.csv").write_text(f"text,rude,short\n{rows}")
    file = str(tmp_path / "a.csv")
    return load_splits(DataArguments(validation_file=file, **{"label_columns": ["rude", "short"]} | kwargs))[
        "validation"
    ]


def test_columns_of_zeros_and_ones_become_lists_of_labels(tmp_path: Path) -> None:
    rows = columns_of(tmp_path, "a,1,0\nb,0,0\nc,1,1\nd,-1,-1\n")
    assert rows.to_dict() == {"text": ["a", "b", "c", "d"], "label": [[0], [], [0, 1], None]}
    assert labels_of(rows.select(range(3)), "label") == Labels(["rude", "short"], multi_label=True)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("a,1,2\n", {}, "label_columns: 'short' contains '2' in row 0; pass columns of 0 and 1, or a single column"),
        ("a,1,yes\n", {}, "label_columns: 'short' contains 'yes' in row 0"),
        ("a,1,\n", {}, "label_columns: 'short' has no 0 or 1 in row 0 of split 'validation'; add it"),
        ("a,1,0\n", {"label_columns": ["rude", "shrt"]}, "split 'validation' has text, rude, short. .*mean 'short'?"),
        ("a,1,0\n", {"label_columns": ["rude"]}, r"label_columns: got \['rude'\]; .* Pass two or more"),
        ("a,1,0\n", {"label_column": "text"}, "label_column: got 'text', .* --label_column labels"),
    ],
)
def test_other_label_columns_are_refused(tmp_path: Path, rows: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        columns_of(tmp_path, rows, **options)


def test_lists_of_labels_may_be_in_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": []}\n{"text": "b", "label": ["rude", "short"]}\n')
    rows = load_splits(DataArguments(validation_file=str(tmp_path / "a.jsonl")))["validation"]
    assert labels_of(rows, "label") == Labels(["rude", "short"], multi_label=True)


def test_every_label_keeps_a_row_in_train() -> None:
    sets = [["a"], ["a", "b"], []] * 10 + [["c"]]
    parts = reserve_validation(datasets.DatasetDict({"train": split_of(sets)}), ("dev",), 0.2, "label")
    assert len(parts["dev"]) == 6
    assert {label for labels in parts["train"]["label"] for label in labels} == set("abc")


def test_the_metrics_of_several_labels_are_those_of_label_sets() -> None:
    several = Labels(["a", "b"], multi_label=True)
    assert DataArguments().metric_names(several) == ("f1_micro", "f1_macro", "accuracy")
    with pytest.raises(ValueError, match="metric: f1 compares classes"):
        DataArguments(metrics=["f1"]).metric_names(several)


# One file is enough --------------------------------------------------------------------------------------------------

REVIEWS = "".join(f"{row},film {row} is {word},{word}\n" for row in range(10) for word in ("good", "bad"))


def test_a_tenth_is_held_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(f"id,review,sentiment\n{REVIEWS}")
    arguments = DataArguments(train_file=str(tmp_path / "a.csv"))
    training = load_splits(arguments, training=True)
    assert (arguments.text_columns, arguments.label_column) == (["review"], "sentiment")
    assert {name: len(rows) for name, rows in training.items()} == {"train": 18, "validation": 2}
    assert sorted(training["validation"]["sentiment"]) == ["bad", "good"]
    told = capsys.readouterr().err
    assert (
        "text_columns review, label_column sentiment (guessed; pass --text_columns, --label_column for others)" in told
    )
    assert "there is no validation split; 2 of the 20 rows of train become one" in told
    later = load_splits(DataArguments(train_file=str(tmp_path / "a.csv")), pairs=False)
    assert later["validation"].to_dict() == training["validation"].to_dict()


def test_evaluation_takes_one_file(tmp_path: Path) -> None:
    file = str(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"train_file: got '.*a.csv' and validation_file '.*a.csv'; pass the one to"):
        load_splits(DataArguments(train_file=file, validation_file=file))


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_delimiter_is_found_out_or_given(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "a.csv").write_text(f"text{delimiter}label\ngood, or so{delimiter}1\nbad{delimiter}0\n")
    for given in (None, delimiter):
        rows = load_splits(DataArguments(validation_file=str(tmp_path / "a.csv"), delimiter=given))["validation"]
        assert rows.to_dict() == {"text": ["good, or so", "bad"], "label": [1, 0]}
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}')
    with pytest.raises(ValueError, match="delimiter: got ';' without a .csv file; leave it out"):
        load_splits(DataArguments(validation_file=str(tmp_path / "a.jsonl"), delimiter=";"))


def test_rows_without_a_text_are_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "good,1\n,0\nbad,0\n  ,1\n" * 6)
    file = str(tmp_path / "a.csv")
    message = (
        r"split 'train': column 'text' lacks 12 of 24 texts, in row 1, 3, 5, .*, 19, \.\.\. \(the first is row 0\)"
    )
    with pytest.raises(ValueError, match=f"{message}; remove these rows, or pass --drop_empty"):
        load_splits(DataArguments(train_file=file), training=True)
    splits = load_splits(DataArguments(train_file=file, drop_empty=True), training=True)
    assert sum(map(len, splits.values())) == 12
    assert "split 'train': 12 of 24 rows without a text are left out" in capsys.readouterr().err


def test_columns_that_are_passed_are_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(f"id,review,sentiment\n{REVIEWS}")
    arguments = DataArguments(train_file=str(tmp_path / "a.csv"), text_columns=["id"], label_column="sentiment")
    load_splits(arguments, training=True)
    assert (arguments.columns(), arguments.label()) == (("id",), "sentiment")
    assert "guessed" not in capsys.readouterr().err
