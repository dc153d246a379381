"""Pages of the documentation: their code runs, their commands parse, their links lead somewhere."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from helpers.pages import (
    CARDS,
    DOCS,
    PAGES,
    README,
    ROOT,
    blocks,
    check_command,
    commands,
    make_workshop,
    page_id,
    run_python,
)

import adaexit_hf
from adaexit_hf.models import METHODS

WITH_PYTHON = [page for page in [*CARDS, *DOCS] if blocks(page, "python")]
COMMANDS = [(page, words) for page in PAGES for words in commands(page)]
API = ROOT / "docs" / "api"


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    make_workshop(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # the code is written for machines with a GPU, too
@pytest.mark.filterwarnings("ignore:temperature .* is at its bound")  # of a tiny model after a few steps
@pytest.mark.filterwarnings("ignore:curve. .*:UserWarning")  # a tiny model learns nothing that saves layers
@pytest.mark.filterwarnings("ignore:.*completeness:UserWarning")  # few steps of an integral
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's word for it
@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
def test_the_python_code_runs(page: Path, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_python(page, blocks(page, "python"), capsys)
    if page in CARDS:
        assert torch.is_tensor(names["output"].exit_layer)


@pytest.mark.parametrize(
    "words",
    [words for _, words in COMMANDS],
    ids=[f"{page_id(page)}: {' '.join(words)[:60]}" for page, words in COMMANDS],
)
def test_the_commands_parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_command(words, monkeypatch)


@pytest.mark.parametrize(
    "words",
    [
        ["adaexit", "predict", "out", "--no_such_flag"],
        ["adaexit", "no-such-command"],
        ["adaexit", "train", "--method", "berxit"],
        ["python", "examples/rerank.py", "--query", "a"],
        ["python", "examples/no_such_file.py"],
        ["make", "no-such-target"],
        ["pip", "install", "adaexit_hf[no-such-extra]"],
        ["rm", "file"],
    ],
    ids=" ".join,
)
def test_a_command_that_does_not_parse_is_found(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, SystemExit, ValueError, KeyError, OSError)):
        check_command(words, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not heading or heading in anchors(file), target


def anchors(page: Path) -> list[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_every_page_of_docs_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    listed = re.findall(r"([\w/-]+\.md)\b", navigation)
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in DOCS}
    assert pages <= set(listed)
    assert len(listed) == len(set(listed))


def documented() -> dict[str, list[str]]:
    """Address of a package or class -> its members that a page of the API reference lists."""
    found: dict[str, list[str]] = {}
    for page in sorted(API.glob("*.md")):
        for address, options in re.findall(r"^::: (\S+)\n((?: +.*\n)*)", page.read_text(), flags=re.MULTILINE):
            assert address not in found, f"{address} is on two pages"
            found[address] = re.findall(r"^ +- (\w+)$", options, flags=re.MULTILINE)
    return found


def names_of(package: str) -> set[str]:
    """What the API pages say of a package: members that are listed, and classes with a block of their own.

    Those of the methods are listed by a hook (test_hooks.py).
    """
    pages = documented()
    own = {address.removeprefix(f"{package}.") for address in pages if address.rpartition(".")[0] == package}
    stems = {model.__name__.removesuffix("ForSequenceClassification") for model in METHODS.values()}
    ends = ("ForSequenceClassification", "Config", "Model")
    made = {stem + end for stem in stems for end in ends} if package == "adaexit_hf.models" else set()
    return {*pages[package], *own, *made}


PACKAGES = [address for address in documented() if not address.rpartition(".")[2][0].isupper()]


def test_every_public_name_is_on_an_api_page() -> None:
    assert set(adaexit_hf.__all__) - set().union(*map(names_of, PACKAGES)) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_an_api_page_has_what_its_package_has(package: str) -> None:
    assert names_of(package) == set(importlib.import_module(package).__all__)


@pytest.mark.parametrize("address", documented())
def test_listed_members_exist_and_are_described(address: str) -> None:
    owner = pkgutil.resolve_name(address)
    for member in documented()[address]:
        value = getattr(owner, member)
        assert value.__doc__ or not callable(value), f"{address}.{member} has no docstring"


def test_pages_use_public_addresses_only() -> None:
    public = "|".join(["", *(package.removeprefix("adaexit_hf.") for package in PACKAGES)])
    for page in [README, *CARDS, *DOCS]:
        for block in blocks(page, "python"):
            for module in re.findall(r"^(?:from|import) adaexit_hf\.?([\w.]*)", block, flags=re.MULTILINE):
                assert re.fullmatch(public, module), f"{page.name} imports from adaexit_hf.{module}"
