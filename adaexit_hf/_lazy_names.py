"""Import the public names of a package only when they are used, since torch and Trainer take seconds to import.

A package lists its public names once, as imports under `if TYPE_CHECKING:`, which type checkers and editors read. This
module reads the same lines. `from .module import *` means the names in that module's `__all__`.
"""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class LazyNames:
    """The public names of a package, and the modules that define them; serves as the package's `__getattr__`.

    Args:
        package: the package's `__name__`.
        file: the package's `__file__`.
    """

    def __init__(self, package: str, file: str) -> None:
        self.package = package
        self.modules = dict(_imported_names(Path(file)))
        self.submodules = {path.stem for path in Path(file).parent.iterdir() if path.suffix in ("", ".py")}

    @property
    def names(self) -> list[str]:
        """All public names, for the package's `__all__` and `__dir__`."""
        return sorted(self.modules)

    def __call__(self, name: str) -> Any:
        """Import a public name or a module of the package.

        Args:
            name: the attribute that was looked up.

        Raises:
            AttributeError: the package has no public name and no module of this name.
        """
        if name in self.modules:
            return getattr(importlib.import_module(f".{self.modules[name]}", self.package), name)
        if name in self.submodules and not name.startswith("_"):
            return importlib.import_module(f".{name}", self.package)
        raise AttributeError(f"module '{self.package}' has no attribute '{name}'; it has {', '.join(self.names)}")


def _imported_names(file: Path) -> Iterator[tuple[str, str]]:
    """Iterate over (name, module) of all imports under `if TYPE_CHECKING:` in a file."""
    for block in ast.parse(file.read_text(encoding="utf-8")).body:
        if not (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"):
            continue
        for line in block.body:
            if isinstance(line, ast.ImportFrom) and line.level == 1 and line.module:
                for alias in line.names:
                    names = _all_of(file.parent, line.module) if alias.name == "*" else [alias.name]
                    yield from ((name, line.module) for name in names)


def _all_of(folder: Path, module: str) -> list[str]:
    """Return the names that a lazy package lists, or another module's `__all__`, without importing it."""
    path = folder.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = [name for name, _ in _imported_names(file)]
    for line in [] if names else ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__all__":
            names = list(ast.literal_eval(line.value))
    return names
