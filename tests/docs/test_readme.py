"""What README.md and the method cards say: their Python runs, their links lead somewhere, all sections are there.

The code names encoders and data sets as a user does. A name that is a folder in the working directory is taken from
there, so the tests put a tiny encoder and a few rows under the very names.
"""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.tiny import CLASSES, encoder_config
from helpers.words import new_tokenizer
from transformers import BertForSequenceClassification, BertModel

from adaexit_hf import BerxitConfig, BerxitForSequenceClassification
from adaexit_hf.cli import main as cli

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
CARDS = sorted(set((ROOT / "model_cards").glob("*.md")) - {RESULTS})
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", RESULTS, *CARDS]
SECTIONS = [
    "Use", "Recommended settings", "How it works", "When it helps, and when not", "Measured results", "Reference",
]  # fmt: skip
WORDS = ["a", "film", "not", "good", "bad", ".", "[MASK]"]


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a tiny encoder, classifier and finished model, and with three data sets of GLUE."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = new_tokenizer(WORDS, model_max_length=None)
    config = encoder_config("bert")
    exits = BerxitConfig(encoder_config=config, num_labels=2, exit_threshold=0.6)
    for name, model in {
        "google-bert/bert-base-uncased": BertModel(config),
        "your/fine-tuned-classifier": BertForSequenceClassification(config),
        "out": BerxitForSequenceClassification(exits),
    }.items():
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    write_glue(tmp_path / "nyu-mll" / "glue")


def write_glue(folder: Path) -> None:
    pairs = {"sentence1": ["a good film .", "not bad"] * 4, "sentence2": ["He said so .", "He told them"] * 4}
    tables = {
        "sst2": {"sentence": ["a good film .", "not so bad , a film"] * 4, "label": [1, 0] * 4},
        "mrpc": pairs | {"label": [1, 0] * 4},
        "stsb": pairs | {"label": [4.5, 1.25] * 4},
    }
    header = ["---", "configs:"]
    for name, columns in tables.items():
        header += [f"- config_name: {name}", "  data_files:"]
        (folder / name).mkdir(parents=True)
        for split in ("train", "validation"):
            Dataset.from_dict(columns).to_parquet(folder / name / f"{split}-0.parquet")
            header += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*header, "---", ""]))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # the code is written for machines with a GPU, too
@pytest.mark.filterwarnings("ignore:temperature .* is at its bound")  # of a tiny model after a few steps
@pytest.mark.parametrize("page", [ROOT / "README.md", *CARDS], ids=lambda page: page.stem)
def test_the_python_code_runs(page: Path, workshop: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, names = blocks(page, "python"), {}
    for number, block in enumerate(code, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
        if "print(" in block:
            assert capsys.readouterr().out.strip()
    assert len(code) >= 1
    assert torch.is_tensor(names["output"].exit_layer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_the_command_line_works(workshop: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("texts.csv").write_text("text\na good film .\nnot bad\n")
    (lines,) = (block for block in blocks(ROOT / "README.md", "bash") if block.startswith("adaexit "))
    for line in lines.splitlines():
        command, *arguments = shlex.split(line, comments=True)[1:]
        if command in ("push", "convert"):  # need the Hub
            continue
        file = arguments.pop() if ">" in arguments else None
        arguments = [each for each in arguments if each != ">"]
        if command == "train":
            arguments += ["--max_steps", "2", "--use_cpu", "--save_strategy", "no", "--report_to", "none"]
        code = cli.main([command, *arguments])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        if file:
            Path(file).write_text(printed.out)
    assert "you/berxit-sst2" in Path("out", "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not heading or heading in anchors(file), target


def anchors(page: Path) -> list[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_every_method_has_a_card_and_a_row() -> None:
    assert [card.stem for card in CARDS] == sorted(CLASSES)
    rows = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(CLASSES)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_card_has_its_sections_and_the_papers_bibtex(card: Path) -> None:
    assert re.findall(r"^## (.+)$", card.read_text(), flags=re.MULTILINE) == SECTIONS
    assert [entry.strip() for entry in blocks(card, "bibtex")] == [CLASSES[card.stem].paper.bibtex]


def test_the_file_tree_is_complete() -> None:
    (tree,) = blocks(ROOT / "CONTRIBUTING.md", "text")
    listed, folders = set(), [ROOT]
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[: depth + 1], folders[depth] / name]
        assert folders[-1].exists(), name
        listed.add(folders[-1])
    folders = [ROOT / "adaexit_hf", ROOT / "adaexit_hf" / "models", ROOT / "examples"]
    modules = {path for folder in folders for path in folder.glob("*.py")}
    assert modules - listed <= {ROOT / "adaexit_hf" / "models" / "__init__.py"}


def test_contributing_names_the_peer_tests_that_cannot_apply() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Transformers' own tests")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert named == list(runpy.run_path(str(ROOT / "tests" / "peer_suite.py"))["CANNOT_APPLY"])
