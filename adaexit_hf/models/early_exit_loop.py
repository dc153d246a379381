"""The layer loop: batches run layer by layer, each exit is read, and rows that are ready leave.

All layers of every model run in `LayerLoop`: at full depth, in early exit, to count FLOPs, to explain answers.
`run_early_exit` takes out the rows that are ready after each layer, and repacks the remaining rows.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .encoder_layers import Context
from .encoder_layers import family_of
from .exit_heads import CRITERIA
from .exit_heads import Exit
from .exit_heads import State
from .exit_heads import mean_pool
from .exit_heads import patience

Extent = tuple[int, int]


class InFlight(NamedTuple):
    """A batch on its way through the layers.

    Args:
        rows: places of the rows in the input, (batch,).
        hidden: states, (batch, tokens, hidden).
        context: what layers and exits need besides.
        extents: for each row, the place behind its last token and the number of its tokens; None if unknown.
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


class Step(NamedTuple):
    """A batch after one more layer.

    Args:
        flight: the batch.
        exit: what the layer's exit says; None after a layer without exit.
        score: readiness of each row at this exit, (batch,); NaN where the exit's logits are NaN or infinite.
        attention: attention weights, where the family's layers return them.
    """

    flight: InFlight
    exit: Exit | None = None
    score: Tensor | None = None
    attention: Tensor | None = None


class LayerLoop:
    """Runs the layers of a model: each iteration runs one layer of all batches, and reads its exit.

    Whoever iterates may set `flights` to other batches before the next layer, as early exit does; the loop ends after
    the last layer, or when there are no batches left.

    Args:
        model: an early-exit model.
        flights: batches before layer 1. The list is emptied, so that no states are kept longer than needed.
        temperatures: one per exit, or None.
        whole: in training, or when states or attention weights were asked for: no token may skip a layer.
        last: the last layer to run; default: that of the last exit.
        read_exits: whether exits are read.
        after_layer: called with the batch after each layer, before its exit is read; returns what goes on.

    Yields:
        the layer's number, 1..L, and one `Step` for each batch.
    """

    def __init__(
        self,
        model: Any,
        flights: list[InFlight],
        temperatures: Sequence[float] | None = None,
        whole: bool = False,
        last: int | None = None,
        read_exits: bool = True,
        after_layer: Callable[[int, InFlight], InFlight] | None = None,
    ) -> None:
        self.model, self.flights, self.temperatures, self.whole = model, flights, temperatures, whole
        self.last = model.config.exit_layers[-1] if last is None else last
        self.read_exits, self.after_layer = read_exits, after_layer

    def __iter__(self) -> Iterator[tuple[int, list[Step]]]:
        layers = family_of(self.model.encoder.config).layers(self.model.encoder)
        for number, layer in enumerate(layers[: self.last], start=1):
            steps = []
            while self.flights:
                steps.append(self._run(number, layer, self.flights.pop(0)))  # the states before are freed
            if not steps:
                return
            self.flights = [step.flight for step in steps]
            yield number, steps
            steps.clear()  # whoever iterates holds this list, too

    def _run(self, number: int, layer: Any, flight: InFlight) -> Step:
        hidden, attention, context = self.model.layer_step(
            number - 1, layer, flight.hidden, flight.context, self.whole
        )
        flight = flight._replace(hidden=hidden, context=context)
        if self.after_layer is not None:
            flight = self.after_layer(number, flight)
        step = read_exit(self.model, number, flight, self.temperatures) if self.read_exits else Step(flight)
        return step._replace(attention=attention)


def read_exit(model: Any, number: int, flight: InFlight, temperatures: Sequence[float] | None) -> Step:
    """Read the exit after layer `number`, 1..L, if there is one.

    Args:
        flight: the batch after this layer.
        temperatures: one per exit, or None.
    """
    if number not in model.config.exit_layers:
        return Step(flight._replace(state=model.skip_step(flight.hidden, flight.context, flight.state)))
    hidden = family_of(model.encoder.config).finish(model.encoder, flight.hidden)
    index = model.config.exit_layers.index(number)
    return exit_from_states(model, index, sentence_vector(model, hidden, flight.context), hidden, flight, temperatures)


def exit_from_states(
    model: Any, index: int, vector: Tensor, hidden: Tensor, flight: InFlight, temperatures: Sequence[float] | None
) -> Step:
    """What exit `index` (0-based) says, given what it reads; of the batch only context, state and memory are used.

    Args:
        vector: sentence vector, (batch, hidden).
        hidden: states, (batch, tokens, hidden), for methods with `reads_all_tokens`.
    """
    exit, state = model.exit_step(index, vector, hidden, flight.context, flight.state)
    if temperatures is not None:
        exit = exit._replace(logits=model.tempered(exit.logits, temperatures[index]))
    score, memory = _readiness(model.config, exit, flight.memory)
    # NaN or infinite logits are no answer. There x - x is NaN, else 0; a NaN score is not ready: the row goes on.
    logits = exit.logits.detach()
    score = score + (logits - logits).sum(dim=-1)
    return Step(flight._replace(state=state, memory=memory), exit, score)


def sentence_vector(model: Any, hidden: Tensor, context: Context) -> Tensor:
    """The sentence vector that exits read, (batch, tokens, hidden) -> (batch, hidden)."""
    return hidden[:, 0] if model.config.pooling == "first" else mean_pool(hidden, context.padding)


def _readiness(config: Any, exit: Exit, memory: State) -> tuple[Tensor, State]:
    """Readiness by the config's criterion, (batch,), and what the next exit needs."""
    name = config.exit_criterion
    if exit.score is not None and name == config.own_criterion:
        return exit.score, ()
    if name not in CRITERIA:
        raise ValueError(
            f"exit_criterion: got '{name}', which this model was not built for; pass it to the config of a new one"
        )
    logits, score = exit.logits.detach(), CRITERIA[name].score
    return (score(logits), ()) if score else patience(logits, memory, config.tolerance)


class Answers(NamedTuple):
    """The answers of all rows, in the order of the input.

    Args:
        logits: (rows, labels).
        exit_layer: layers run, 1..L, (rows,).
        score: readiness at the exit that answered, (rows,).
        all_scores: readiness at every exit that was read, in no order, (exits read,).
    """

    logits: Tensor
    exit_layer: Tensor
    score: Tensor
    all_scores: Tensor


def run_early_exit(
    model: Any,
    flights: list[InFlight],
    thresholds: Sequence[float] | None,
    temperatures: Sequence[float] | None,
    batch_tokens: int = 0,
    on_exit: Callable[[int], Any] | None = None,
) -> Answers:
    """Run batches until every row has left; a row leaves at the first exit that is ready.

    All batches run a layer before any runs the next, and the host reads once per layer which rows stay.

    Args:
        model: an early-exit model.
        flights: batches whose rows are together 0, 1, 2, ...; with `batch_tokens` the longest come first. The list is
            emptied, so that no states are kept longer than needed.
        thresholds: one per exit; None is full depth.
        temperatures: one per exit, or None.
        batch_tokens: as for `repacked`.
        on_exit: called with the number of rows that left, for a progress bar.
    """
    exit_layers = model.config.exit_layers
    left: list[tuple[Tensor, ...]] = []
    scores: list[Tensor] = []
    loop = LayerLoop(model, flights, temperatures)
    for number, steps in loop:
        last = number == loop.last
        if not last and (thresholds is None or number not in exit_layers):
            continue
        loop.flights = []
        scores += [cast(Tensor, step.score) for step in steps]
        if last or thresholds is None:
            left += [_leaving(step, number) for step in steps]
            if on_exit is not None:
                on_exit(sum(step.flight.shape[0] for step in steps))
            continue
        threshold = thresholds[exit_layers.index(number)]
        stays = iter(torch.cat([~model.ready(step.score, threshold) for step in steps]).tolist())  # the one host read
        parts = []
        while steps:
            step = steps.pop(0)
            flags = list(islice(stays, step.flight.shape[0]))
            staying = [row for row, stay in enumerate(flags) if stay]
            if len(staying) < len(flags):
                leaving = [row for row, stay in enumerate(flags) if not stay]
                left.append(_leaving(step, number, index_of(leaving, step.flight.rows)))
                if on_exit is not None:
                    on_exit(len(leaving))
            if staying:
                parts.append((step.flight, staying))
        loop.flights = repacked(model.encoder, parts, batch_tokens)
    rows, logits, layers, score = (torch.cat(pieces) for pieces in zip(*left, strict=True))
    order = rows.argsort()
    return Answers(logits[order], layers[order], score[order], torch.cat(scores))


def _leaving(step: Step, number: int, places: Tensor | slice | None = None) -> tuple[Tensor, ...]:
    """Rows, logits, layers and scores of those that leave."""
    rows, exit = step.flight.rows, cast(Exit, step.exit)
    parts = (rows, exit.logits, torch.full_like(rows, number), cast(Tensor, step.score))
    return parts if places is None else tuple(part[places] for part in parts)


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


def repacked(encoder: Any, parts: list[tuple[InFlight, list[int]]], batch_tokens: int) -> list[InFlight]:
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
        paddings = [flight.context.padding for flight in flights]
        if full or all(padding is None for padding in paddings) and len({flight.shape[1] for flight in flights}) == 1:
            padding = None
        else:
            filled = [
                flight.rows.new_ones(flight.shape) if padding is None else padding
                for flight, padding in zip(flights, paddings, strict=True)
            ]
            padding = chosen_tokens(filled)
        positions = contexts[0].positions  # of several batches there are none
        if positions is not None:
            positions = (positions[places[0]] if len(positions) > 1 else positions)[:, :width]
        # Where no row had a pad, `padding` is None.
        made = family_of(encoder.config).context(encoder, hidden, padding, positions, pads=padding is not None)
        names = contexts[0].per_token
        context = made._replace(
            per_row={name: chosen([known.per_row[name] for known in contexts]) for name in contexts[0].per_row},
            per_token={name: chosen_tokens([known.per_token[name] for known in contexts]) for name in names},
        )
    state, memory = (
        tuple(chosen(values) for values in zip(*states, strict=True))
        for states in ([flight.state for flight in flights], [flight.memory for flight in flights])
    )
    return InFlight(chosen([flight.rows for flight in flights]), hidden, context, extents, state, memory)


def index_of(rows: list[int], like: Tensor) -> slice | Tensor:
    """An index of these rows, ascending, on the device of `like`; neighbours need no copy."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows).to(like.device, non_blocking=True)  # with `device=` the host would wait
