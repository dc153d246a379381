"""Suggest the name that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str | Iterable[str], known: Iterable[str]) -> str:
    """The end of an error message that suggests known names close to those given; "" if none is close.

    >>> did_you_mean("acuracy", ["accuracy", "f1"]), did_you_mean("bleu", ["accuracy", "f1"])
    (". Did you mean 'accuracy'?", '')
    """
    known = {str(name) for name in known}
    wrong = [name for name in ([given] if isinstance(given, str) else given) if name not in known]
    by_lower = {name.lower(): name for name in sorted(known)}
    close = [by_lower[match] for name in wrong for match in get_close_matches(name.lower(), by_lower, n=1)]
    return f". Did you mean {' and '.join(map(repr, dict.fromkeys(close)))}?" if close else ""
