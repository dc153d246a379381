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


class InFlight(NamedTuple):
    """Rows that go through the layers together.

    Args:
        rows: their places in the input, (batch,).
        hidden: states, (batch, tokens, hidden).
        context: what layers and exits need besides.
        extent: place behind the last token, and number of tokens, (batch, 2); None where nothing is padded.
        state: what the method's last exit handed on, batch first.
        memory: the same for the exit criterion.
    """

    rows: Tensor
    hidden: Tensor
    context: Context
    extent: Tensor | None
    state: State = ()
    memory: State = ()

    @classmethod
    def of(cls, hidden: Tensor, context: Context) -> "InFlight":
        """A batch before layer 1."""
        rows = torch.arange(len(hidden), device=hidden.device)
        # A mask of another shape says nothing of single tokens, so nothing is cropped.
        padded = context.padding is not None and context.padding.dim() == 2
        return cls(rows, hidden, context, extent_of(context.padding) if padded else None)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens, pads included."""
        return self.hidden.shape[0], self.hidden.shape[1]


def without_empty_columns(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Inputs (batch, tokens, ...) without the columns on the right that are pads in every row."""
    mask, given = inputs["attention_mask"], [value for value in inputs.values() if value is not None]
    # Where shapes do not match, the error is to name what was passed.
    if mask is None or mask.dim() != 2 or {value.shape[1] for value in given if value.dim() > 1} != {mask.shape[1]}:
        return inputs
    used = (mask != 0).any(dim=0)
    width = len(used) - int(used.flip(0).long().argmax())
    if width == len(used):
        return inputs
    return {name: None if value is None else value[:, :width] for name, value in inputs.items()}


def extent_of(padding: Tensor) -> Tensor:
    """Place behind the last token and number of tokens of every row: (batch, tokens) -> (batch, 2).

    >>> extent_of(torch.tensor([[1, 1, 0], [0, 1, 1]])).tolist()
    [[2, 2], [3, 2]]
    """
    real = padding != 0
    places = torch.arange(1, real.shape[1] + 1, device=real.device)
    return torch.stack([(real * places).amax(dim=1), real.sum(dim=1)], dim=1)


def survey(flight: InFlight, stay: Tensor) -> Tensor:
    """How many rows stay, how far they reach, and the number of tokens of the shortest, (3,): stay (batch,), bool.

    Of a batch that is not padded, or of a single row, only the first, (1,).
    """
    count = stay.sum()
    if flight.extent is None or len(stay) == 1:
        return count[None]
    end, tokens = flight.extent.unbind(dim=1)
    shortest = torch.where(stay, tokens, flight.shape[1]).amin()
    return torch.stack([count, torch.where(stay, end, 0).amax(), shortest])


def kept(encoder: Any, flight: InFlight, stay: Tensor, reach: Sequence[int]) -> InFlight:
    """The rows at `stay`, (kept,), without the columns that only others needed.

    Args:
        reach: the second and third number of the survey, if it has them.
    """
    width = flight.shape[1]
    end, shortest = reach or (width, 0)
    hidden, context, extent = flight.hidden[:, :end][stay], flight.context, flight.extent
    extent = None if extent is None else extent[stay]
    if end == width:
        context = context.select(stay)
    else:
        context = context._replace(masks={}).select(stay).cropped(end)
        if shortest == end:
            context, extent = context._replace(padding=None), None
        context = _with_masks(encoder, hidden, context)
    state, memory = (tuple(value[stay] for value in values) for values in (flight.state, flight.memory))
    return InFlight(flight.rows[stay], hidden, context, extent, state, memory)


def merged(encoder: Any, flights: list[InFlight], batch_tokens: int) -> list[InFlight]:
    """Neighbours together while they have at most so many tokens, unless more than a tenth of that were new pads.

    Empties the list that it is given, so that no state is kept twice.
    """
    groups: list[list[InFlight]] = []
    for flight in flights:
        group = [*groups[-1], flight] if groups else [flight]
        rows, width = sum(each.shape[0] for each in group), max(each.shape[1] for each in group)
        tokens = sum(each.shape[0] * each.shape[1] for each in group)
        if len(group) > 1 and rows * width <= min(batch_tokens, 1.1 * tokens):
            groups[-1] = group
        else:
            groups.append([flight])
    flights.clear()
    groups.reverse()
    packed = []
    while groups:
        group = groups.pop()
        packed.append(group[0] if len(group) == 1 else _joined(encoder, group))
    return packed


def _joined(encoder: Any, flights: Sequence[InFlight]) -> InFlight:
    """One batch of several, padded on the right."""
    width = max(flight.shape[1] for flight in flights)

    def side_by_side(values: Sequence[Tensor]) -> Tensor:
        """Tensors (batch, tokens, ...), with zeros behind those that are shorter."""
        whole, first = values[0].new_zeros(sum(map(len, values)), width, *values[0].shape[2:]), 0
        for value in values:
            whole[first : first + len(value), : value.shape[1]] = value
            first += len(value)
        return whole

    hidden = side_by_side([flight.hidden for flight in flights])
    contexts = [flight.context for flight in flights]
    padding = side_by_side(
        [
            flight.rows.new_ones(flight.shape) if context.padding is None else context.padding
            for flight, context in zip(flights, contexts, strict=True)
        ]
    )
    context = Context(
        padding,
        None,
        {},
        per_row={name: torch.cat([each.per_row[name] for each in contexts]) for name in contexts[0].per_row},
        per_token={name: side_by_side([each.per_token[name] for each in contexts]) for name in contexts[0].per_token},
    )
    return InFlight(
        torch.cat([flight.rows for flight in flights]),
        hidden,
        _with_masks(encoder, hidden, context),
        extent_of(padding),
        tuple(torch.cat(parts) for parts in zip(*(flight.state for flight in flights), strict=True)),
        tuple(torch.cat(parts) for parts in zip(*(flight.memory for flight in flights), strict=True)),
    )


def _with_masks(encoder: Any, hidden: Tensor, context: Context) -> Context:
    """Let the family make anew what depends on the number of tokens."""
    made = family_of(encoder.config).context(encoder, hidden, context.padding, context.positions)
    return made._replace(per_row=context.per_row, per_token=context.per_token)
