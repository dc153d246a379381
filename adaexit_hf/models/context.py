"""What the layers of one batch need besides the hidden states.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Context(NamedTuple):
    """What the layers and exits of one batch need besides the hidden states. Replaced, never changed in place.

    Args:
        padding: 1 for tokens, 0 for pads, (batch, tokens), or what was given instead; None when nothing is padded.
        positions: as given, (batch or 1, tokens); None for 0, 1, 2, ...
        masks: made by the encoder's family from the padding, batch first.
        shared: made by the family, the same for all rows (rotary embeddings, relative positions).
        per_row: what a method needs of each row, batch first.
        per_token: what a method needs of each token, (batch, tokens, ...).
    """

    padding: Tensor | None
    positions: Tensor | None
    masks: dict[str, Tensor | None]
    shared: dict[str, Any] = {}
    per_row: dict[str, Tensor] = {}
    per_token: dict[str, Tensor] = {}

    def select(self, rows: Tensor | slice) -> "Context":
        """Keep only the given rows: their places, (kept,), or a slice."""
        several = self.positions is not None and len(self.positions) > 1
        return self._replace(
            padding=None if self.padding is None else self.padding[rows],
            positions=self.positions[rows] if several else self.positions,  # type: ignore[index]
            masks={name: None if value is None else value[rows] for name, value in self.masks.items()},
            per_row={name: value[rows] for name, value in self.per_row.items()},
            per_token={name: value[rows] for name, value in self.per_token.items()},
        )


def mean_pool(hidden: Tensor, padding: Tensor | None) -> Tensor:
    """Mean state of the tokens, pads left out: (batch, tokens, hidden), (batch, tokens) -> (batch, hidden).

    >>> import torch
    >>> hidden, padding = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
    >>> mean_pool(hidden, padding).tolist(), mean_pool(hidden[:, :2], None).tolist()
    ([[2.0]], [[2.0]])
    """
    weights = hidden.new_ones(hidden.shape[:2]) if padding is None else padding
    return (hidden * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True)
