"""The site's hooks: links of the repository become links of the site, equations become MathML."""

import runpy
from types import SimpleNamespace

import pytest
from helpers.pages import CARDS, ROOT

from adaexit_hf.models import METHODS

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("latex2mathml", reason="the extra docs is not installed")
HOOKS = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
SOURCE = "https://example.org/source"


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("methods.md", "[a](../model_cards/deebert.md#use)", "[a](model_cards/deebert.md#use)"),
        ("methods.md", "[a](training.md)", "[a](training.md)"),
        ("methods.md", "![a](../benchmarks/tradeoff.svg)", "![a](benchmarks/tradeoff.svg)"),
        ("api/hub.md", "[a](../hub.md#load)", "[a](../hub.md#load)"),
        ("README.md", "[a](docs/training.md)", "[a](training.md)"),
        ("README.md", "[`a`](model_cards/deebert.md)", "[`a`](model_cards/deebert.md)"),
        ("model_cards/deebert.md", "[a](../README.md)", "[a](../README.md)"),
        ("model_cards/deebert.md", "[a](berxit.md)", "[a](berxit.md)"),
        ("training.md", "[a](../examples/rerank.py)", f"[a]({SOURCE}/blob/main/examples/rerank.py)"),
        ("training.md", "[a](#regression)", "[a](#regression)"),
        ("training.md", "[a](https://example.org)", "[a](https://example.org)"),
    ],
)
def test_links(page: str, link: str, expected: str) -> None:
    assert HOOKS["linked"](f"see {link}.", page, SOURCE) == f"see {expected}."


def test_without_an_address_of_the_source_its_files_are_not_links() -> None:
    assert HOOKS["linked"]("[a](../examples/rerank.py)", "training.md", None) == "a"


def test_code_keeps_its_brackets() -> None:
    page, text = SimpleNamespace(file=SimpleNamespace(src_uri="training.md")), "```python\nlist[int](../x)\n```\n"
    assert HOOKS["on_page_markdown"](text, page, None, None) == text


def test_equations_become_mathml() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="methods.md"))
    content = r'<p><span class="arithmatex">\(p_i &lt; \arg\max_c q_c\)</span></p>'
    found = HOOKS["on_page_content"](content, page)
    assert found.startswith("<p><math") and "arithmatex" not in found and "\\" not in found
    with pytest.raises(Exception, match="does not know"):
        HOOKS["on_page_content"](r'<div class="arithmatex">\[\nosuchcommand x\]</div>', page)


def test_every_command_has_a_table() -> None:
    tables = HOOKS["command_tables"]()
    commands = (
        "train",
        "evaluate",
        "calibrate",
        "report",
        "compare",
        "predict",
        "benchmark",
        "card",
        "convert",
        "push",
    )
    for command in commands:
        assert f"## adaexit {command}\n" in tables
    assert "| `--max_drop` | `0.01` |" in tables and "| `checkpoint` | |" in tables


def test_the_classes_of_every_method_are_on_a_page() -> None:
    assert "<!-- methods -->" in (ROOT / "docs" / "api" / "models.md").read_text()
    listed = HOOKS["method_classes"]().splitlines()
    for model in METHODS.values():
        names = (model.__name__, model.config_class.__name__)
        assert all(f"        - {name}" in listed for name in names)


def test_every_card_is_in_the_navigation() -> None:
    config = HOOKS["on_config"](SimpleNamespace(nav=[{"Start": "a.md"}, {"Methods": ["methods.md"]}]))
    assert config.nav[1]["Methods"] == ["methods.md", *(f"model_cards/{card.name}" for card in CARDS)]
