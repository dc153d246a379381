"""Import the public names of a package only when they are used, since torch and Trainer take seconds to import.

A package lists its public names once, as imports under `if TYPE_CHECKING:`, which type checkers and editors read. This
module reads the same lines. `from .module import *` means the names in that module's `__all__`.
"""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any


class LazyNames:
    """The public names of a package, and the modules that define them; serves as the package's `__getattr__`.

    Args:
        package: the package's `__name__`.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.modules = dict(_imported_names(package, ""))

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
        if not name.startswith("_") and find_spec(f"{self.package}.{name}") is not None:
            return importlib.import_module(f".{name}", self.package)
        raise AttributeError(f"module '{self.package}' has no attribute '{name}'; it has {', '.join(self.names)}")


def _imported_names(package: str, module: str) -> Iterator[tuple[str, str]]:
    """Iterate over (name, module) of all imports under `if TYPE_CHECKING:` in a module; "" is the package itself."""
    for block in ast.parse(_source(package, module)).body:
        if not (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"):
            continue
        for line in block.body:
            if isinstance(line, ast.ImportFrom) and line.level == 1 and line.module:
                source = f"{module}.{line.module}".lstrip(".")
                for alias in line.names:
                    names = _all_of(package, source) if alias.name == "*" else [alias.name]
                    yield from ((name, line.module) for name in names)


def _all_of(package: str, module: str) -> list[str]:
    """Return the names that a lazy package lists, or another module's `__all__`, without importing it."""
    names = [name for name, _ in _imported_names(package, module)]
    for line in [] if names else ast.parse(_source(package, module)).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "__all__":
            names = list(ast.literal_eval(line.value))
    return names


def _source(package: str, module: str) -> str:
    """Read the source of a module of a package, also from a zip file."""
    path = module.replace(".", "/")
    for resource in (f"{path}/__init__.py".lstrip("/"), f"{path}.py"):
        try:
            return (pkgutil.get_data(package, resource) or b"").decode()
        except OSError:
            continue
    raise ModuleNotFoundError(
        f"{package}: '{module or '__init__'}' has no source; install the package with its .py files"
    )
