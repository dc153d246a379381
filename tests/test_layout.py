"""The layout of the package, which sub-package may import which, and of the tests, which do not import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import adaexit_hf

PACKAGE = Path(adaexit_hf.__file__).parent
TESTS = Path(__file__).parent
# A sub-package imports from those in rows above its own; those in one row do not import each other.
RANKS = [
    ("utils", "models", "onnx_runtime"),
    ("data", "inference"),
    ("evaluation",),
    ("interpretation", "pruning"),
    ("visualization", "benchmark", "export"),
    ("hub",),
    ("trainer", "serving", "demo_app"),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# Files at the top of the package, which any sub-package may import: lazy names, registration, the version.
TOP = {"__init__", "_lazy_names", "_registration", "version"}
RULE = "a sub-package imports only from those above it: " + " | ".join(", ".join(names) for names in RANKS)


def imported_modules(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports, relative to the package, in functions and type checks, too."""
    place = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = place[: len(place) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (".".join([*base, name]) for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "adaexit_hf":
            yield (node.module or "").partition(".")[2] or "__init__"
        elif isinstance(node, ast.Import):
            found = (alias.name.partition(".") for alias in node.names)
            yield from (rest or "__init__" for first, _, rest in found if first == "adaexit_hf")


def violations(path: Path) -> list[str]:
    """What a file of a sub-package imports against the rule."""
    own = path.relative_to(PACKAGE).parts[0]
    others = {module.split(".")[0] for module in imported_modules(path)} - {own} - TOP
    return [
        f"{own}/{path.name} imports {other}: {RULE}" for other in sorted(others) if not RANK.get(other, 99) < RANK[own]
    ]


def test_every_sub_package_has_a_rank() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(RANK), f"add {sorted(folders - set(RANK))} to RANKS"


def test_nothing_lies_beside_the_sub_packages() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/**/*.py")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_imports_follow_the_ranks(path: Path) -> None:
    assert violations(path) == []


def test_a_violation_names_both_sides_and_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_layout.PACKAGE", tmp_path)
    path = tmp_path / "evaluation" / "curves.py"
    path.parent.mkdir()
    path.write_text("def late():\n    from ..trainer.trainer import EarlyExitTrainer\n    from ..data import tasks\n")
    assert violations(path) == [f"evaluation/curves.py imports trainer: {RULE}"]


def test_no_module_imports_back() -> None:
    """Modules of one sub-package form no circle either."""
    edges: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.stem != "__init__":
            edges[name] = set(imported_modules(path))
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle of imports: {' -> '.join([*above, name])}"
        if name not in done:
            for other in edges.get(name, set()):
                visit(other, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def names_in_imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, and names that it imports from them, without the packages around them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[-1]
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name.split(".")[-1] for alias in node.names)


def test_no_test_module_is_imported() -> None:
    """What tests share lies in `tests/helpers` and conftest.py, so that every test module runs alone."""
    modules = {test.stem for test in TESTS.rglob("test_*.py")}
    imported = {path.name: modules & set(names_in_imports(path)) for path in TESTS.rglob("*.py")}
    assert not {name: tests for name, tests in imported.items() if tests}, "move what is shared to tests/helpers"
