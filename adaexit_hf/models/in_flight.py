"""Rows on their way through the layers: batches from which rows leave, and that are packed together again.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .context import Context
from .encoder_layers import family_of
from .exit_types import State

Extent = tuple[int, int]


class InFlight(NamedTuple):
    """Rows that go through the layers together.

    Args:
        rows: their places in the input, (batch,).
        hidden: states, (batch, tokens, hidden).
        context: what layers and exits need besides.
        extents: for each row, the place behind its last token and the number of its tokens; None if nobody knows.
        state: what the method's last exit handed on, batch first.
        memory: the same for the exit criterion.
    """

    rows: Tensor
    hidden: Tensor
    context: Context
    extents: Sequence[Extent] | None = None
    state: State = ()
    memory: State = ()

    @classmethod
    def of(cls, hidden: Tensor, context: Context, extents: Sequence[Extent] | None = None) -> "InFlight":
        """A batch before layer 1."""
        # `len` would make the batch a constant under `torch.export`.
        return cls(torch.arange(hidden.shape[0], device=hidden.device), hidden, context, extents)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens, pads included."""
        return self.hidden.shape[0], self.hidden.shape[1]


def trimmed(inputs: dict[str, Tensor | None]) -> tuple[dict[str, Tensor | None], list[Extent] | None]:
    """Inputs (batch, tokens, ...) without columns on the right that are pads in every row, and the rows' extents.

    The host reads the mask for it; a mask without a pad is left out, since attention is faster without.

    >>> inputs, extents = trimmed({"input_ids": torch.ones(2, 4), "attention_mask": torch.tensor([[1, 1, 0, 0]] * 2)})
    >>> inputs["input_ids"].shape, inputs["attention_mask"], extents
    (torch.Size([2, 2]), None, [(2, 2), (2, 2)])
    """
    positions = inputs.get("position_ids")
    if positions is not None and positions.dim() == 1:  # embeddings take them, too
        inputs = inputs | {"position_ids": positions[None]}
    mask, given = inputs["attention_mask"], [value for value in inputs.values() if value is not None]
    # Where shapes do not match, the error is to name what was passed.
    if mask is None or mask.dim() != 2 or {value.shape[1] for value in given if value.dim() > 1} != {mask.shape[1]}:
        return inputs, None
    real = mask != 0
    places = torch.arange(1, real.shape[1] + 1, device=real.device)
    extents = [tuple(extent) for extent in torch.stack([(real * places).amax(1), real.sum(1)], dim=1).tolist()]
    width = max(end for end, _ in extents) or len(places)  # texts of pads alone stay as they are
    inputs = {name: None if value is None else value[:, :width] for name, value in inputs.items()}
    if all(count == width for _, count in extents):
        inputs["attention_mask"] = None
    return inputs, extents


def rows_per_batch(batch_tokens: int, width: int) -> int:
    """How many rows of so many tokens make a batch, at least 1; eights of them, if it is as many.

    With other numbers of tokens the products of matrices can take a fifth longer.

    >>> rows_per_batch(1024, 53), rows_per_batch(1024, 200), rows_per_batch(1024, 2000)
    (16, 5, 1)
    """
    rows = max(1, batch_tokens // width)
    return rows - rows % 8 if rows >= 8 else rows


def packed(encoder: Any, parts: list[tuple[InFlight, list[int]]], batch_tokens: int) -> list[InFlight]:
    """The rows that stay, without the columns that only others needed.

    Args:
        parts: batches, and the rows of each that stay, ascending. The list is emptied, so that no states are kept for
            longer than they are needed.
        batch_tokens: rows of neighbouring batches are put together, up to so many tokens; the longest come first. 0
            leaves every batch to itself.
    """
    if not batch_tokens:
        return [_batch(encoder, [parts.pop(0)]) for _ in range(len(parts))]
    batches = []
    while parts:
        pieces: list[tuple[InFlight, list[int]]] = []
        room = 1
        while parts and room:
            flight, rows = parts[0]
            if not pieces:
                # A text of pads alone has no end.
                width = (flight.extents[rows[0]][0] if flight.extents else 0) or flight.shape[1]
                room = rows_per_batch(batch_tokens, width)
            pieces.append((flight, rows[:room]))
            parts[0] = (flight, rows[room:])
            room -= len(pieces[-1][1])
            if not parts[0][1]:
                parts.pop(0)
        batches.append(_batch(encoder, pieces))
    return batches


def _batch(encoder: Any, pieces: Sequence[tuple[InFlight, list[int]]]) -> InFlight:
    """Rows of one or more batches as one."""
    flights = [flight for flight, _ in pieces]
    first, extents = flights[0], None
    width = max(flight.shape[1] for flight in flights)
    if all(flight.extents for flight in flights):
        extents = [flight.extents[row] for flight, rows in pieces for row in rows]  # type: ignore[index]
        width = min(width, max(end for end, _ in extents) or width)
    if len(pieces) == 1 and len(pieces[0][1]) == first.shape[0] and width == first.shape[1]:
        return first
    places = [index_of(rows, flight.rows) for flight, rows in pieces]

    def chosen(values: Sequence[Tensor]) -> Tensor:
        """Of tensors (batch, ...)."""
        parts = [value[place] for value, place in zip(values, places, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def chosen_tokens(values: Sequence[Tensor]) -> Tensor:
        """Of tensors (batch, tokens, ...), zeros behind those that are shorter."""
        if len(values) == 1 or {value.shape[1] for value in values} == {width}:
            return chosen([value[:, :width] for value in values])
        whole, row = values[0].new_zeros(sum(len(rows) for _, rows in pieces), width, *values[0].shape[2:]), 0
        for value, place, (_, rows) in zip(values, places, pieces, strict=True):
            value = value[place, :width]
            whole[row : row + len(rows), : value.shape[1]] = value
            row += len(rows)
        return whole

    contexts = [flight.context for flight in flights]
    hidden = chosen_tokens([flight.hidden for flight in flights])
    full = extents is not None and all(count == width for _, count in extents)
    if len(pieces) == 1 and width == first.shape[1] and not full:
        context = contexts[0].select(places[0])
    else:
        known = [flight.context.padding for flight in flights]
        if full or all(padding is None for padding in known) and len({flight.shape[1] for flight in flights}) == 1:
            padding = None
        else:
            filled = [
                flight.rows.new_ones(flight.shape) if padding is None else padding
                for flight, padding in zip(flights, known, strict=True)
            ]
            padding = chosen_tokens(filled)
        positions = contexts[0].positions  # of several batches there are none
        if positions is not None:
            positions = (positions[places[0]] if len(positions) > 1 else positions)[:, :width]
        # Where no row had a pad, `padding` is None.
        made = family_of(encoder.config).context(encoder, hidden, padding, positions, pads=padding is not None)
        names = contexts[0].per_token
        context = made._replace(
            per_row={name: chosen([each.per_row[name] for each in contexts]) for name in contexts[0].per_row},
            per_token={name: chosen_tokens([each.per_token[name] for each in contexts]) for name in names},
        )
    state, memory = (
        tuple(chosen(values) for values in zip(*each, strict=True))
        for each in ([flight.state for flight in flights], [flight.memory for flight in flights])
    )
    return InFlight(chosen([flight.rows for flight in flights]), hidden, context, extents, state, memory)


def index_of(rows: list[int], like: Tensor) -> slice | Tensor:
    """An index of these rows, ascending, on the device of `like`; neighbours need no copy."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows).to(like.device, non_blocking=True)  # with `device=` the host would wait
