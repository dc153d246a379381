"""Public names of a package, imported when they are first used: torch and Trainer take seconds to import.

A package lists its public names once, as imports under `if TYPE_CHECKING:`, which type checkers and editors read. This
module reads the same lines. `from .module import *` stands for the names in that module's own `__all__`.
"""

import ast
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: the package's `__name__`.
        file: the package's `__file__`.
    """
    modules = dict(_imported_names(Path(file)))
    public = sorted(modules)
    submodules = {path.stem for path in Path(file).parent.iterdir() if path.suffix == ".py" or path.is_dir()}

    def getattribute(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f".{modules[name]}", package), name)
        if name in submodules and not name.startswith("_"):
            return importlib.import_module(f".{name}", package)
        raise AttributeError(f"module '{package}' has no attribute '{name}'; it has {', '.join(public)}")

    def directory() -> list[str]:
        return public

    return getattribute, directory, public


def _imported_names(file: Path) -> Iterator[tuple[str, str]]:
    """(name, module) of every import under `if TYPE_CHECKING:` in a file."""
    for block in ast.parse(file.read_text(encoding="utf-8")).body:
        if not (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"):
            continue
        for line in block.body:
            if isinstance(line, ast.ImportFrom) and line.level == 1 and line.module:
                for alias in line.names:
                    names = _all_of(file.parent, line.module) if alias.name == "*" else [alias.name]
                    yield from ((name, line.module) for name in names)


def _all_of(folder: Path, module: str) -> list[str]:
    """`__all__` of a module, without importing it."""
    path = folder.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = [name for name, _ in _imported_names(file)]
    for line in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__all__":
            names += ast.literal_eval(line.value)
    return names
