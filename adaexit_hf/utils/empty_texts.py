"""The one rule of what an empty text is."""

from typing import Any


def is_empty(text: Any) -> bool:
    """Return whether a text is missing (None or NaN), or has nothing but white space.

    >>> is_empty(None), is_empty(" "), is_empty("a")
    (True, True, False)
    """
    return text is None or text != text or (isinstance(text, str) and not text.strip())
