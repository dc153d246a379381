"""Files of labelled texts that cannot be used."""

from pathlib import Path

import pytest

from adaexit_hf.labelled_data import DataArguments, load_splits


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,label\n"), ("b.csv", ""), ("c.jsonl", "")])
def test_a_file_without_rows(name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"got validation_file '.*{name}', of which no rows could be read \(.*\)"):
        load_splits(DataArguments(validation_file=str(tmp_path / name)))
