"""Files of labelled texts that cannot be used."""

from pathlib import Path

import pytest

from adaexit_hf.cli.data_arguments import DataArguments, load_splits
from adaexit_hf.data.tasks import Labels


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text,label\n"), ("b.csv", ""), ("c.jsonl", ""), ("d.json", "[]")]
)
def test_a_file_without_rows_is_refused(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"got validation_file '.*{name}', which has no rows \(.*\); pass"):
        load_splits(DataArguments(validation_file=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("fields.csv", "text,label\na,1\nb,0,3\n", "Expected 2 fields in line 3, saw 3"),
        ("broken.jsonl", '{"text": "a", "label": 0}\n{"te', "JSON parse error"),
        ("text.parquet", "text", "Parquet"),
    ],
)
def test_a_broken_file_is_refused(
    name: str, content: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"got validation_file '.*{name}', which could not be read: .*{why}"):
        load_splits(DataArguments(validation_file=str(tmp_path / name)))


def test_files_of_different_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "train.csv").write_text("text,label\na,1\n")
    (tmp_path / "dev.csv").write_text("sentence,gold\na,1\n")
    with pytest.raises(ValueError, match="which could not be read: (.|\n)*column names don't match"):
        load_splits(DataArguments(validation_file=str(tmp_path / "dev.csv")), str(tmp_path / "train.csv"))


def test_f1_is_of_two_classes() -> None:
    arguments = DataArguments(metrics=["accuracy", "f1"])
    assert arguments.metric_names(Labels(["no", "yes"])) == ("accuracy", "f1")
    with pytest.raises(
        ValueError, match="metric: f1 is defined for two classes, 0 and 1, but there are 3 classes; pass accuracy or"
    ):
        arguments.metric_names(Labels(["a", "b", "c"]))
