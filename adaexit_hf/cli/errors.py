"""Errors of commands that did not fail: wrong usage, with exit code 2 as argparse has it, and a no as the answer."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """The arguments of a command are wrong, which was found after they were parsed and before any work."""


class RefusedError(ValueError):
    """A command did its work, and the answer is no: a certificate that is refused, or does not hold."""


@contextmanager
def wrong_usage() -> Iterator[None]:
    """Turn a ValueError or TypeError of a check of arguments into a `UsageError` with the same message.

    Raises:
        UsageError: There was one.

    Examples:
        >>> with wrong_usage():
        ...     raise ValueError("stage: got 'exit'; pass 'exits'")
        Traceback (most recent call last):
            ...
        adaexit_hf.cli.errors.UsageError: stage: got 'exit'; pass 'exits'
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(str(error)) from error
