"""Rows of a data set and their places: batches of similar length; loading rows together with where they stand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

MOST_ROWS = 256  # in a batch, however short


def length_of(row: Any) -> int:
    """Tokens of a row; 1 where only the collator will know."""
    return len(row["input_ids"]) if isinstance(row, Mapping) and "input_ids" in row else 1


def by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Places of rows in batches of at most so many tokens, the longest first.

    >>> by_length([2, 4, 3, 2], 6)
    [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        last = batches[-1] if batches else []
        if last and (len(last) + 1) * lengths[last[0]] <= batch_tokens and len(last) < MOST_ROWS:
            last.append(place)
        else:
            batches.append([place])
    return batches


def chunks(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[first : first + size] for first in range(0, len(items), size))


def fetched(dataset: Any, places: Sequence[int]) -> list[Any]:
    """Rows of a data set, all at once where it can, as PyTorch's own loader fetches them."""
    at_once = getattr(dataset, "__getitems__", None)
    return list(at_once(list(places))) if at_once else [dataset[place] for place in places]


class RowsWithPlaces(Dataset[Any]):
    """Each row of a data set with its place."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: list[int]) -> list[tuple[int, Any]]:
        return list(zip(places, fetched(self.rows, places), strict=True))


class CollatorWithPlaces:
    """A collator for them; the batch carries the rows' places as `exit_states`, for which the trainer puts the states.

    So workers and processes hand on numbers, and the states stay where they are.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, features: list[tuple[int, Any]]) -> Any:
        batch = self.collate([row for _, row in features])
        batch["exit_states"] = torch.tensor([place for place, _ in features])
        return batch
