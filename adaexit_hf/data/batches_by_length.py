"""Batches of rows of similar length, as indices, and loading the rows with given indices."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_ROWS = 256  # largest number of rows in a batch
# Assumed number of tokens of a row whose length is unknown: batches then have several rows, and fit into memory even
# if the rows are longer.
USUAL_LENGTH = 128


def length_of(row: Any) -> int:
    """Number of tokens of a row; `USUAL_LENGTH` if the row is tokenized only by the collator.

    >>> length_of({"input_ids": [1, 5, 2]}), length_of("a text")
    (3, 128)
    """
    return len(row["input_ids"]) if isinstance(row, Mapping) and "input_ids" in row else USUAL_LENGTH


def groups(
    lengths: Sequence[int], batch_size: int = 0, batch_tokens: int = 0, by_length: bool = True
) -> list[list[int]]:
    """Divide rows into batches with a limited number of rows and of tokens.

    Args:
        lengths: number of tokens of each row.
        batch_size: largest number of rows in a batch; 0 for no limit.
        batch_tokens: largest number of tokens in a batch, padding included; 0 for no limit. A single row may have
            more.
        by_length: put rows of similar length together, the longest first. A limit of tokens needs this, because the
            first row of a batch determines its width.

    Returns:
        The indices of the rows of each batch.

    >>> groups([3, 9, 4, 8], batch_size=2, by_length=False), groups([3, 9, 4, 8], batch_size=2)
    ([[0, 1], [2, 3]], [[1, 3], [2, 0]])
    >>> groups([3, 9, 4, 8], batch_tokens=12), groups([2, 4, 3, 2], batch_size=2, batch_tokens=9)
    ([[1], [3], [2, 0]], [[1, 2], [0, 3]])
    """
    order = list(range(len(lengths)))
    if by_length:
        order.sort(key=lengths.__getitem__, reverse=True)
    batches: list[list[int]] = []
    first = 0
    while first < len(order):
        size = batch_size or len(order)
        if batch_tokens:
            size = min(size, max(1, batch_tokens // max(1, lengths[order[first]])))
        batches.append(order[first : first + size])
        first += size
    return batches


def chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    """Parts of `size` items, in order; the last one may have fewer.

    >>> list(chunks("abcde", 2))
    ['ab', 'cd', 'e']
    """
    return (items[first : first + size] for first in range(0, len(items), size))


def fetch_rows(dataset: Any, places: Sequence[int]) -> list[Any]:
    """The rows with these indices; all at once if the data set has `__getitems__`, as in PyTorch's DataLoader.

    >>> fetch_rows(["a", "b", "c"], [2, 0])
    ['c', 'a']
    """
    get_rows = getattr(dataset, "__getitems__", None)
    return list(get_rows(list(places))) if get_rows else [dataset[place] for place in places]
