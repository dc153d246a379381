"""TODO."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset

from ..data.batching import fetched


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
