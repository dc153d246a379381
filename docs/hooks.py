"""What the site needs besides mkdocs.yml: pages from outside of docs/, links of the repository, equations, references.

README, CHANGELOG, the method cards and the results are pages of the site and stay where they are in the repository.
Pages link to each other by relative paths in the repository, so that the links work there, too; here they become links
of the site. Equations become MathML, which browsers draw without a script. The options of the command line and the
classes of the methods are read from the package, so that a new method needs no change here.
"""

import dataclasses
import html
import importlib
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# README.md is the first page.
OUTSIDE = (
    "README.md", "CHANGELOG.md", "model_cards/*.md", "benchmarks/RESULTS*.md", "benchmarks/*.svg", "benchmarks/*.png",
)  # fmt: skip
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\(([^)\s]+)\)")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)

# Packages list their names when they are imported; the pages of the reference list them, and a test compares both.
logging.getLogger("mkdocs.plugins.griffe").addFilter(lambda record: "Unsupported item in" not in record.getMessage())


def outside() -> set[str]:
    """Paths in the repository, with slashes, of what the site takes from outside of docs/."""
    return {path.relative_to(ROOT).as_posix() for pattern in OUTSIDE for path in ROOT.glob(pattern)}


def on_config(config: Any) -> Any:
    """Add the method cards to the navigation, below the page on methods."""
    (section,) = (entry["Methods"] for entry in config.nav if "Methods" in entry)
    section += [path for path in sorted(outside()) if path.startswith("model_cards/")]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the files from outside."""
    for path in sorted(outside()):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def source() -> str | None:
    """Address of the source, as pyproject.toml has it; None where it has none."""
    found = re.search(r'^Source = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    return found.group(1).rstrip("/") if found else None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links of the repository into links of the site, except in code; fill in what comes from the package."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [linked(markdown[end : fence.start()], page.file.src_uri, source()), fence.group()]
        end = fence.end()
    text = "".join([*parts, linked(markdown[end:], page.file.src_uri, source())])
    for place, make in {"<!-- commands -->": command_tables, "<!-- methods -->": method_classes}.items():
        text = text.replace(place, make()) if place in text else text
    return text


def linked(text: str, page: str, repository: str | None) -> str:
    """Text of a page with links of the site.

    Args:
        text: Markdown without code.
        page: path in the site.
        repository: address of the source, for links to what is not on the site; None leaves these without a link.
    """
    known = outside()
    home = page if page in known else f"docs/{page}"

    def replace(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if "://" in target or target.startswith(("mailto:", "#")):
            return match.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        if path.startswith("docs/") and not path.endswith(".py"):
            place = path.removeprefix("docs/")
        elif path in known:
            place = path
        elif repository:
            return f"[{label}]({repository}/blob/main/{path}{hash_sign}{anchor})"
        else:
            return label
        return f"{image}[{label}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{hash_sign}{anchor})"

    return LINK.sub(replace, text)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Equations as MathML.

    Raises:
        PluginError: an equation cannot be converted.
    """

    def mathml(match: re.Match[str]) -> str:
        kind, source = match.groups()
        source = html.unescape(source).strip().replace(r"\arg", r"\operatorname{arg}")
        found = convert(source, display="block" if kind == "div" else "inline")
        if "\\" in found:
            raise PluginError(
                f"{page.file.src_uri}: the equation {source} has a command that latex2mathml does not know; write it "
                "otherwise"
            )
        return found

    return EQUATION.sub(mathml, content)


def method_classes() -> str:
    """For mkdocstrings: the classifier, config and encoder of every method."""
    from adaexit_hf.models import METHODS

    lines = ["::: adaexit_hf.models", "    options:", "      members:"]
    for model in METHODS.values():
        stem = model.__name__.removesuffix("ForSequenceClassification")
        lines += [f"        - {name}" for name in (model.__name__, f"{stem}Config", f"{stem}Model")]
    return "\n".join(lines)


def command_tables() -> str:
    """A section for every command of `adaexit`: what it does, and its arguments and flags."""
    from adaexit_hf.cli.main import COMMANDS

    lines: list[str] = []
    for command, (module, what) in COMMANDS.items():
        code = importlib.import_module(f"adaexit_hf.cli.{module}")
        options = code.Arguments if command == "train" else get_type_hints(getattr(code, command))["options"]
        positionals = getattr(options, "positionals", {})
        lines += [f"## adaexit {command}", "", f"{what[:1].upper()}{what[1:]}."]
        if command == "train":
            more = "[EarlyExitTrainingArguments](trainer.md) and Transformers' `TrainingArguments`"
            lines += ["", f"Also takes every flag of {more}."]
        lines += ["", "| Argument | Default | Meaning |", "| --- | --- | --- |"]
        lines += [f"| `{name}` | | {cell(more['help'])} |" for name, more in positionals.items()]
        lines += [f"| `--{name}` | {default} | {cell(text)} |" for name, default, text in flags(options)]
        lines += [""]
    return "\n".join(lines)


def flags(options: Any) -> Iterator[tuple[str, str, str]]:
    """Name, default and help of every flag, those that are needed first."""
    fields = sorted(dataclasses.fields(options), key=lambda field: not needed(field))
    for field in fields:
        value = field.default_factory() if callable(field.default_factory) else field.default
        default = "needed" if needed(field) else "" if value in (None, {}, []) else f"`{value}`"
        yield field.name, default, field.metadata.get("help", "")


def needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")
