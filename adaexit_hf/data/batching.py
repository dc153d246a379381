"""Rows of a data set and their places: batches of similar length; loading rows together with where they stand."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_ROWS = 256  # in a batch, however short
USUAL_LENGTH = 128  # taken where nobody knows it: batches are neither single rows, nor too large if rows are longer


def length_of(row: Any) -> int:
    """Tokens of a row; `USUAL_LENGTH` where only the collator will know."""
    return len(row["input_ids"]) if isinstance(row, Mapping) and "input_ids" in row else USUAL_LENGTH


def groups(
    lengths: Sequence[int], batch_size: int = 0, batch_tokens: int = 0, by_length: bool = True
) -> list[list[int]]:
    """Places of the rows of each batch: at most so many rows, and at most so many tokens, pads included.

    Args:
        batch_size, batch_tokens: 0 for no limit; one row alone may have more tokens.
        by_length: the longest come first, as a limit of tokens wants it.

    >>> groups([3, 9, 4, 8], batch_size=2, by_length=False), groups([3, 9, 4, 8], batch_size=2)
    ([[0, 1], [2, 3]], [[1, 3], [2, 0]])
    >>> groups([3, 9, 4, 8], batch_tokens=12), groups([2, 4, 3, 2], batch_size=2, batch_tokens=9)
    ([[1], [3], [2, 0]], [[1, 2], [0, 3]])
    """
    order = list(range(len(lengths)))
    if by_length:
        order.sort(key=lengths.__getitem__, reverse=True)
    found: list[list[int]] = []
    first = 0
    while first < len(order):
        size = batch_size or len(order)
        if batch_tokens:
            size = min(size, max(1, batch_tokens // max(1, lengths[order[first]])))
        found.append(order[first : first + size])
        first += size
    return found


def chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[first : first + size] for first in range(0, len(items), size))


def fetched(dataset: Any, places: Sequence[int]) -> list[Any]:
    """Rows of a data set, all at once where it can, as PyTorch's own loader fetches them."""
    at_once = getattr(dataset, "__getitems__", None)
    return list(at_once(list(places))) if at_once else [dataset[place] for place in places]
