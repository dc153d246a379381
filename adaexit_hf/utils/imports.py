"""Import optional dependencies; if one is missing, the error names the pip command that installs it."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """A context for imports of packages that an extra installs.

    Args:
        extra: name of the extra in `pyproject.toml`, e.g. "train".

    Raises:
        ImportError: if one of the packages is not installed.
    """
    try:
        yield
    except ImportError as error:
        module = (error.name or str(error)).split(".")[0]
        raise ImportError(
            f"you need {module}, which could not be imported ({error}); call pip install adaexit_hf[{extra}]"
        ) from error


def needed(module: str, extra: str) -> Any:
    """Import a module that an extra installs.

    Args:
        module: name of the module.
        extra: name of the extra in `pyproject.toml`, e.g. "train".

    Raises:
        ImportError: if the module is not installed.
    """
    with needs(extra):
        return importlib.import_module(module)
