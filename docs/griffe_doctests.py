"""Doctests of docstrings as blocks of code: outside of a section, Markdown would take `>>>` for a quotation."""

import re
from typing import Any

from griffe import Extension, Object

# From a line that starts with `>>>` up to an empty line.
DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", flags=re.MULTILINE)


class Doctests(Extension):
    """Puts a fence around every doctest."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of one object, before it is parsed."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(lambda found: f"```pycon\n{found.group()}\n```", obj.docstring.value)
