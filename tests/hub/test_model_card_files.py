"""A model's card in its folder: all of it is written, or nothing; it has pictures where it can; its code runs."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.cards import FILES, NAME, Settings, blocks, facts, two_labels
from helpers.fresh import run
from helpers.tiny import build
from helpers.words import new_tokenizer
from huggingface_hub import ModelCard

from adaexit_hf.hub import model_card
from adaexit_hf.hub.card_facts import CardDataset
from adaexit_hf.hub.model_card import MARKER, write_model_card
from adaexit_hf.models import EarlyExitForSequenceClassification

# Runs code where this package cannot be imported.
BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "adaexit_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(model_card.logger, "warning", lines.append)
    return lines


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_card_is_written_anew(tmp_path: Path) -> None:
    write_model_card(two_labels(), tmp_path, **facts())
    write_model_card(two_labels(threshold=None), tmp_path, **facts(None))
    assert "No threshold is saved" in (tmp_path / "README.md").read_text()


def test_a_card_written_by_hand_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"# Mine \xff")
    with pytest.raises(FileExistsError, match=r"README.md' was not written by adaexit_hf.*overwrite=True"):
        write_model_card(two_labels(), tmp_path, **facts())
    assert contents(tmp_path) == {"README.md": b"# Mine \xff"}
    write_model_card(two_labels(), tmp_path, overwrite=True, **facts())
    assert MARKER in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("adaexit_hf.hub.model_card.TemporaryDirectory", errno.EACCES),
        ("matplotlib.figure.Figure.savefig", errno.ENOSPC),
        ("huggingface_hub.ModelCard.save", errno.ENOSPC),
        ("os.replace", errno.ENOSPC),
    ],
)
def test_a_failed_write_leaves_the_old_card(
    place: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_card(two_labels(threshold=None), tmp_path, **facts(None))
    before = contents(tmp_path)

    def failing(*args: Any, **kwargs: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(place, failing)
    with pytest.raises(
        OSError, match=f"model card could not be written into '{tmp_path}': {os.strerror(error)}"
    ) as why:
        write_model_card(two_labels(), tmp_path, **facts())
    assert why.value.errno == error
    monkeypatch.undo()
    assert contents(tmp_path) == before


def test_without_matplotlib_a_warning_says_so_and_there_are_no_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = write_model_card(two_labels(), tmp_path, **facts()).read_text()
    assert logged == ["the model card has no pictures, which need matplotlib: pip install adaexit_hf[plot]"]
    assert os.listdir(tmp_path) == ["README.md"]
    assert ".png" not in text and "| none: full depth |" in text


def test_importing_needs_no_matplotlib() -> None:
    assert run("import sys, adaexit_hf.hub.model_card; print('matplotlib' in sys.modules)") == "False"


def test_pictures_are_wide_and_opaque(tmp_path: Path) -> None:
    from matplotlib.image import imread

    write_model_card(two_labels(), tmp_path, **facts())
    for name in FILES[1:]:
        pixels = imread(tmp_path / name)  # (height, width, 4), in [0, 1]
        assert pixels.shape[:2] == (720, 1500)
        assert pixels[..., 3].min() == 1


# The code on the card


def published(model: EarlyExitForSequenceClassification, pairs: bool) -> list[str]:
    """The Python of a card, in whose working directory the model lies under its name."""
    model.save_pretrained(NAME)
    new_tokenizer(["a", "film", "he", "said", "so", "not"]).save_pretrained(NAME)
    path = write_model_card(model, NAME, name=NAME, dataset=CardDataset("texts", pairs=pairs))
    return blocks(ModelCard.load(path))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["berxit", "berxit-regression", "dact-bert"])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_code_runs(
    variant: str, pairs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with_package, _, in_pipeline = published(build(variant, exit_threshold=0.4), pairs)
    names: Settings = {}
    exec(with_package, names)
    assert type(names["model"]) is type(build(variant))
    assert len(names["predictions"]) == 2
    assert str(names["predictions"]) in capsys.readouterr().out
    exec(in_pipeline, names)
    assert "'score'" in capsys.readouterr().out


@pytest.mark.slow
def test_the_code_without_the_package_runs_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, without, in_pipeline = published(two_labels(), pairs=False)
    pipeline = in_pipeline.replace("import adaexit_hf", "").replace(f'="{NAME}"', f'="{NAME}", trust_remote_code=True')
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_MODULES_CACHE": str(tmp_path / "cache")}
    place = f"import os; os.environ |= {environment}; os.chdir({str(tmp_path)!r})"
    printed = run(f"{place}\n{BLOCKED}\n{without}\nprint(type(model).__module__)\n{pipeline}")
    assert printed.startswith("transformers_modules.")
    assert "'score'" in printed
