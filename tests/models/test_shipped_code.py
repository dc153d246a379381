"""The files that travel inside checkpoints stand alone, and the rest of the package depends on them one way."""

import ast
import re
import sys
from pathlib import Path

import pytest

import adaexit_hf
from adaexit_hf.models import METHODS

PACKAGE = Path(adaexit_hf.__file__).parent
SHIPPED = sorted(path for path in (PACKAGE / "models").glob("*.py") if path.name != "__init__.py")
OTHERS = sorted(path for path in PACKAGE.rglob("*.py") if path not in SHIPPED)
OWN_CONFIGS = {model.config_class.__name__ for model in METHODS.values()} | {"EarlyExitConfig"}
STEMS = {model.__module__.split(".")[-1] for model in METHODS.values()}
ALLOWED = {"torch", "transformers", "huggingface_hub", "safetensors", "tqdm"}
every_shipped_file = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


def siblings(path: Path) -> set[str]:
    return {node.module or "" for node in imports(path) if isinstance(node, ast.ImportFrom) and node.level}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@every_shipped_file
def test_siblings_are_imported_one_name_a_line(path: Path) -> None:
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}: no parent packages"
            assert (PACKAGE / "models" / f"{node.module}.py").is_file(), f"line {node.lineno}: not a sibling file"
            line = path.read_text().splitlines()[node.lineno - 1].strip()  # one inside of a function is found, too
            assert re.fullmatch(rf"from \.{node.module} import \w+", line), f"line {node.lineno}: {line}"


@every_shipped_file
def test_other_imports_are_standard_or_core_dependencies(path: Path) -> None:
    names = [alias.name for node in imports(path) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in imports(path) if isinstance(node, ast.ImportFrom) and not node.level]
    assert {name.split(".")[0] for name in names} <= ALLOWED | sys.stdlib_module_names


@every_shipped_file
def test_no_text_line_looks_like_an_import(path: Path) -> None:
    real = {line for node in imports(path) for line in range(node.lineno, node.end_lineno + 1)}
    # Transformers looks for imports in the text, docstrings included, and copies the files that it finds.
    pattern = re.compile(r"^\s*(from|import)\s+\S")
    found = {number for number, line in enumerate(path.read_text().splitlines(), start=1) if pattern.match(line)}
    assert found <= real


@every_shipped_file
def test_nothing_is_registered(path: Path) -> None:
    attributes = {call.func.attr for call in calls(path) if isinstance(call.func, ast.Attribute)}
    assert not attributes & {"register", "register_for_auto_class"}


@every_shipped_file
def test_config_classes_are_never_compared(path: Path) -> None:
    # Loaded with trust_remote_code from a folder, a config class exists twice.
    for call in calls(path):
        if isinstance(call.func, ast.Name) and call.func.id in ("isinstance", "issubclass"):
            names = {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)}
            assert not names & OWN_CONFIGS, f"line {call.lineno}"


def test_the_folder_is_flat() -> None:
    assert not [path for path in (PACKAGE / "models").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_every_method_is_listed() -> None:
    files = {path.stem for path in SHIPPED if path.stem.startswith("modeling_")} - {"modeling_early_exit"}
    assert files == STEMS


def test_methods_do_not_import_each_other() -> None:
    for path in SHIPPED:
        assert not siblings(path) & STEMS, path.name


def test_shared_files_import_one_way() -> None:
    order = [
        "encoder_layers",
        "exit_heads",
        "exit_criteria",
        "configuration_early_exit",
        "padded_batches",
        "early_exit_loop",
    ]
    order += ["pipeline_early_exit", "modeling_early_exit"]
    assert set(order) | STEMS == {path.stem for path in SHIPPED}
    for path in SHIPPED:
        rank = order.index(path.stem) if path.stem in order else len(order)
        assert siblings(path) <= set(order[:rank]), path.name


def test_only_the_models_folder_names_methods() -> None:
    for path in OTHERS:
        if path.name != "__init__.py":
            modules = {node.module or "" for node in imports(path) if isinstance(node, ast.ImportFrom)}
            assert not [name for name in modules if name.split(".")[-1] in STEMS], path.name
