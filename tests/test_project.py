"""What the project says of itself agrees: version, papers, addresses, and the paths and commands in AGENTS.md."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import adaexit_hf
from adaexit_hf.cli.main import main
from adaexit_hf.cli.serve import ServeOptions
from adaexit_hf.models import METHODS

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
AGENTS = (ROOT / "AGENTS.md").read_text()


def test_the_version_is_the_same_everywhere() -> None:
    assert CITATION["version"] == adaexit_hf.__version__
    assert PROJECT["dynamic"] == ["version"]
    written = [
        path for path in (ROOT / "adaexit_hf").rglob("*.py") if re.search(r"^__version__ = ", path.read_text(), re.M)
    ]
    assert written == [ROOT / "adaexit_hf" / "version.py"]


def test_the_authors_and_the_repository_are_the_same_everywhere() -> None:
    assert CITATION["authors"] == PROJECT["authors"]
    home = PROJECT["urls"]["Homepage"]
    assert CITATION["repository-code"] == home
    links = (ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml").read_text()
    for text in (links, (ROOT / "SECURITY.md").read_text()):
        assert set(re.findall(r"https://github\.com/\w+/\w+", text)) == {home}
    assert PROJECT["urls"]["Documentation"] in links


@pytest.mark.parametrize("model_type", METHODS)
def test_every_method_has_its_paper_among_the_references(model_type: str) -> None:
    paper = METHODS[model_type].paper
    (found,) = (reference for reference in CITATION["references"] if reference["title"] == paper.title)
    authors = [f"{author['given-names']} {author['family-names']}" for author in found["authors"]]
    assert ", ".join(authors) == paper.authors
    assert (found["collection-title"], found["url"]) == (paper.venue, paper.url)
    assert f"year = {{{found['year']}}}" in paper.bibtex
    assert len(CITATION["references"]) == len(METHODS)


def test_agents_md_is_short_and_names_commands_and_paths_that_exist() -> None:
    assert len(AGENTS.splitlines()) <= 120
    targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {target for command in re.findall(r"`make ([\w -]+)`", AGENTS) for target in command.split()}
    assert named <= targets, named - targets
    paths = re.findall(r"`((?:\w+/)+[\w.]*)`", AGENTS) + re.findall(r"\]\(([^):#]+)", AGENTS)
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_the_image_is_built_from_files_that_exist_and_are_sent_to_docker() -> None:
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines() if line and line[0] != "#"]
    copied = {name for words in lines if words[0] == "COPY" for name in words[1:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "adaexit_hf"} <= copied


def test_the_image_starts_the_server_with_flags_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "Dockerfile").read_text()
    start, model = (json.loads(re.findall(rf"^{name} (.*)$", text, re.M)[0]) for name in ("ENTRYPOINT", "CMD"))
    served: list[ServeOptions] = []

    def serve(options: ServeOptions, positionals: Any) -> None:
        """Stands for the command."""
        served.append(options)

    monkeypatch.setattr("adaexit_hf.cli.serve.serve", serve)
    assert start[0] == "adaexit"
    assert main([*start[1:], *model]) == 0
    assert (served[0].host, served[0].port) == ("0.0.0.0", int(re.findall(r"^EXPOSE (\d+)$", text, re.M)[0]))
