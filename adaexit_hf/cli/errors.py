"""Wrong usage, as opposed to work that failed: the command then ends with exit code 2, as argparse ends it."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """The arguments of a command are wrong, which was found after they were parsed and before any work."""


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
