"""The contents of the sections of the method cards.

test_readme.py checks the order of the sections, the bibtex entry and that the code runs; test_results_page.py checks
that the numbers are those of the recorded runs.
"""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from helpers.tiny import CLASSES

from adaexit_hf import EarlyExitTrainingArguments
from adaexit_hf.data import reconstruction
from adaexit_hf.models import modeling_depth_adaptive

FOLDER = Path(__file__).parents[2] / "model_cards"
every_method = pytest.mark.parametrize("method", sorted(CLASSES))


def sections(method: str) -> dict[str, str]:
    """Title -> text; "" is what stands above the first title."""
    first, *rest = re.split(r"^## ", (FOLDER / f"{method}.md").read_text(), flags=re.MULTILINE)
    return {"": first} | dict(section.split("\n", 1) for section in rest)


def first_table(text: str) -> list[list[str]]:
    lines = re.search(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert lines, "no table"
    header, _, *rows = lines.group().splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (header, *rows)]


def parameters_of(*functions: object) -> set[str]:
    return {name for function in functions for name in inspect.signature(function).parameters}


@every_method
def test_it_starts_with_its_model_type_and_whether_it_does_regression(method: str) -> None:
    head = " ".join(sections(method)[""].split())
    assert f"`model_type`: `{method}`." in head
    regression = CLASSES[method].config_class.supports_regression
    assert ("regression" in head) == regression
    assert head.endswith("Classification only.") == (not regression)


@every_method
def test_recommended_settings_exist(method: str) -> None:
    header, *rows = first_table(sections(method)["Recommended settings"])
    assert header == ["Setting", "Value", "Why"]
    model = CLASSES[method]
    known = {*model.config_class.own_arguments(), *dir(model), *parameters_of(model.prepare)}
    known |= {argument.name for argument in dataclasses.fields(EarlyExitTrainingArguments)}
    for module in (reconstruction, modeling_depth_adaptive):
        known |= parameters_of(*(function for _, function in inspect.getmembers(module, inspect.isfunction)))
    named = [re.match(r"\w+", name).group() for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    assert set(named) <= known
    assert "exit_threshold" in named


@every_method
def test_how_it_works_has_equations(method: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", sections(method)["How it works"], flags=re.DOTALL)
    assert text.count("$$") >= 2
    assert text.count("$$") % 2 == 0
    assert text.replace("$$", "").count("$") % 2 == 0


@every_method
def test_it_says_when_it_helps_and_when_not(method: str) -> None:
    text = sections(method)["When it helps, and when not"]
    points = re.findall(r"^- (.*)", text, flags=re.MULTILINE)
    assert len(points) >= 3
    assert not re.sub(r"^(- .*|  .*|)\n", "", text, flags=re.MULTILINE)  # nothing but the list
    if not CLASSES[method].config_class.supports_regression:
        assert any(point.startswith("Not for regression") for point in points)


@every_method
def test_the_reference_is_the_paper(method: str) -> None:
    text, paper = " ".join(sections(method)["Reference"].split()), CLASSES[method].paper
    assert text.startswith(f"{paper.authors}. {paper.title}. {paper.venue}. <{paper.url}>")
