"""Optional dependencies: whoever lacks one learns which pip command brings it."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of what comes with this extra.

    Raises:
        ImportError: one of them is not installed.
    """
    try:
        yield
    except ImportError as error:
        module = (error.name or str(error)).split(".")[0]
        raise ImportError(
            f"you need {module}, which could not be imported ({error}); call pip install adaexit_hf[{extra}]"
        ) from error


def needed(module: str, extra: str) -> Any:
    """A module that comes with this extra; errors as for `needs`."""
    with needs(extra):
        return importlib.import_module(module)
