"""The layer loop: batches run layer by layer, exits are computed, and rows that are ready leave.

`LayerLoop` runs the layers wherever they are run: at full depth, with early exit, to count FLOPs, to explain
predictions. `run_early_exit` iterates over it: after each layer it removes the rows that are ready, and repacks the
remaining rows. A server, whose batches are at different depths, calls what these two are made of: `one_layer`, `split`
and `joined`.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .encoder_layers import Context
from .encoder_layers import family_of
from .encoder_layers import recording
from .exit_criteria import readiness
from .exit_heads import Exit
from .exit_heads import State
from .exit_heads import mean_pool

# Of a row: the position after its last token, and the number of its tokens. They differ if the mask has gaps.
Extent = tuple[int, int]


class InFlight(NamedTuple):
    """A batch that has run some of the layers.

    Attributes:
        rows: indices of the rows in the input, shape `(batch,)`.
        hidden: states after the last layer that was run, shape `(batch, tokens, hidden)`.
        context: what layers and exits need besides.
        extents: one `Extent` per row; None if unknown.
        state: what the method's last `exit_step` or `skip_step` returned; tensors whose first dimension is the batch.
        memory: what the exit criterion needs of the exits before, likewise.
    """

    rows: Tensor
    hidden: Tensor
    context: Context
    extents: Sequence[Extent] | None = None
    state: State = ()
    memory: State = ()

    @classmethod
    def of(cls, hidden: Tensor, context: Context, extents: Sequence[Extent] | None = None) -> "InFlight":
        """Return a batch before layer 1.

        Args:
            hidden: input of layer 1, shape `(batch, tokens, hidden)`.
            context: as `model.embed` returns it.
            extents: as `trimmed` returns them.
        """
        # Not `len`, which would make the batch size a constant under `torch.export`.
        return cls(torch.arange(hidden.shape[0], device=hidden.device), hidden, context, extents)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and tokens, including padding."""
        return self.hidden.shape[0], self.hidden.shape[1]


class Step(NamedTuple):
    """A batch after one more layer.

    Attributes:
        flight: the batch.
        exit: output of the exit after this layer; None after a layer without exit.
        score: readiness of each row at this exit, shape `(batch,)`; NaN where the exit's logits are NaN or infinite.
        attention: attention weights of the layer, if the encoder family's layers return them.
    """

    flight: InFlight
    exit: Exit | None = None
    score: Tensor | None = None
    attention: Tensor | None = None


class LayerLoop:
    """Iterator over the layers of a model: each iteration runs one layer for all batches, and then its exit.

    Each item is the layer's number, from 1, and a list with one `Step` per batch. Between two iterations the caller
    may assign other batches to `flights`, as early exit does. The loop ends after the last layer, or when no batch is
    left. The list of steps is emptied before the next layer runs, so that states are freed.

    Args:
        model: an early-exit model.
        flights: batches before layer 1. The list is emptied, so that states are freed as early as possible.
        temperatures: one per exit, or None.
        whole: whether every layer must run for all tokens, as in training, and when states or attention weights are
            requested.
        last: number of the last layer to run. Default: that of the last exit.
        read_exits: whether exits are computed.
        after_layer: called with the layer's number and the batch after each layer, before its exit is computed; the
            loop continues with the batch that it returns.
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
                steps.append(self._run(number, layer, self.flights.pop(0)))  # frees the previous layer's states
            if not steps:
                return
            self.flights = [step.flight for step in steps]
            yield number, steps
            steps.clear()  # the caller holds the same list, which would keep the states in memory

    def _run(self, number: int, layer: Any, flight: InFlight) -> Step:
        step = one_layer(self.model, number, layer, flight, self.whole)
        flight = step.flight
        if self.after_layer is not None:
            flight = self.after_layer(number, flight)
        exit_step = read_exit(self.model, number, flight, self.temperatures) if self.read_exits else Step(flight)
        return exit_step._replace(attention=step.attention)


def one_layer(model: Any, number: int, layer: Any, flight: InFlight, whole: bool = False) -> Step:
    """Run a batch through one layer, without the exit after it; see `read_exit`.

    Args:
        model: an early-exit model.
        number: number of the layer, from 1.
        layer: the layer.
        flight: the batch before this layer; it is not changed.
        whole: as in `LayerLoop`.

    Returns:
        The batch after the layer, and the layer's attention weights.
    """
    hidden, attention, context = model.layer_step(number - 1, layer, flight.hidden, flight.context, whole)
    return Step(flight._replace(hidden=hidden, context=context), attention=attention)


def read_exit(model: Any, number: int, flight: InFlight, temperatures: Sequence[float] | None) -> Step:
    """Compute the exit after a layer, if there is one.

    Args:
        model: an early-exit model.
        number: number of the layer, from 1.
        flight: the batch after this layer.
        temperatures: one per exit, or None.

    Returns:
        The batch with its new state; after a layer with an exit also the exit's output and readiness scores.
    """
    if number not in model.config.exit_layers:
        return Step(flight._replace(state=model.skip_step(flight.hidden, flight.context, flight.state)))
    hidden = family_of(model.encoder.config).finish(model.encoder, flight.hidden)
    index = model.config.exit_layers.index(number)
    vector = sentence_vector(model, hidden, flight.context, index)
    return exit_from_states(model, index, vector, hidden, flight, temperatures)


def exit_from_states(
    model: Any, index: int, vector: Tensor, hidden: Tensor, flight: InFlight, temperatures: Sequence[float] | None
) -> Step:
    """Compute an exit from the states that it reads.

    Args:
        model: an early-exit model.
        index: number of the exit, from 0.
        vector: sentence vector, shape `(batch, hidden)`.
        hidden: states, shape `(batch, tokens, hidden)`; only for methods with `reads_all_tokens`.
        flight: the batch, of which only context, state and memory are used.
        temperatures: one per exit, or None.

    Returns:
        The batch with its new state, the exit's output and its readiness scores.
    """
    exit, state = model.exit_step(index, vector, hidden, flight.context, flight.state)
    if temperatures is not None:
        exit = exit._replace(logits=model.tempered(exit.logits, temperatures[index]))
    score, memory = readiness(model.config, exit, flight.memory, model.config.exit_layers[index])
    # Rows with NaN or infinite logits must not leave. There x - x is NaN, elsewhere 0, and a NaN score is never ready.
    logits = exit.logits.detach()
    score = score + (logits - logits).sum(dim=-1)
    return Step(flight._replace(state=state, memory=memory), exit, score)


def sentence_vector(model: Any, hidden: Tensor, context: Context, index: int | None = None) -> Tensor:
    """Return the sentence vectors that an exit reads.

    Args:
        model: an early-exit model.
        hidden: states, shape `(batch, tokens, hidden)`.
        context: the batch's context, for its padding.
        index: number of the exit, from 0. Default: None, after a layer without exit.

    Returns:
        The first token's state or the mean over the tokens, see `exit_pooling`, shape `(batch, hidden)`; with
        `exit_head="pair"` the means over the first and the second text, shape `(batch, 2 * hidden)`. At the last exit
        with `last_exit_head` what the family's own classifier reads.
    """
    config = model.config
    last = index == len(config.exit_layers) - 1
    if config.head == "pair" and not (last and config.last_exit_head):
        second = context.per_token["second"]
        first = 1 - second if context.padding is None else (context.padding != 0).long() * (1 - second)
        return torch.cat([mean_pool(hidden, first), mean_pool(hidden, second)], dim=-1)
    pooling = config.last_pooling if last else config.pooling
    return hidden[:, 0] if pooling == "first" else mean_pool(hidden, context.padding)


class Answers(NamedTuple):
    """The predictions for all rows, in the order of the input.

    Attributes:
        logits: shape `(rows, labels)`.
        exit_layer: number of layers run for each row, from 1, shape `(rows,)`.
        score: readiness score at the exit where the row left, shape `(rows,)`.
        all_scores: readiness scores at all exits that were computed, in no particular order, shape `(scores,)`.
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
    """Run batches until every row has left; a row leaves at the first exit whose score passes its threshold.

    All batches run a layer before any of them runs the next one, and the CPU waits for the device once per layer, to
    read which rows remain.

    Args:
        model: an early-exit model.
        flights: batches whose rows are together 0, 1, 2, ...; with `batch_tokens`, the longest rows come first. The
            list is emptied, so that states are freed as early as possible.
        thresholds: one per exit; None is full depth.
        temperatures: one per exit, or None.
        batch_tokens: as in `repacked`.
        on_exit: called with the number of rows that have just left, for a progress bar.

    Returns:
        The predictions for all rows.

    Raises:
        ValueError: the run is being recorded as a graph.
    """
    if recording():
        raise ValueError(
            "early exit cannot be recorded as a graph (torch.compile, torch.export, torch.jit.trace, ...), since it "
            "depends on the texts which rows leave; record model(...), where all layers run and answers are selected"
        )
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
        threshold = None if last or thresholds is None else thresholds[exit_layers.index(number)]
        parts = []
        for step, leaving, remaining in split(model, steps, threshold):
            if leaving:
                left.append(_leaving(step, number, index_of(leaving, step.flight.rows)))
                if on_exit is not None:
                    on_exit(len(leaving))
            if remaining:
                parts.append((step.flight, remaining))
        loop.flights = repacked(model.encoder, parts, batch_tokens)
    rows, logits, layers, score = (torch.cat(pieces) for pieces in zip(*left, strict=True))
    order = rows.argsort()
    return Answers(logits[order], layers[order], score[order], torch.cat(scores))


def split(
    model: Any, steps: list[Step], threshold: float | Tensor | None
) -> Iterator[tuple[Step, list[int], list[int]]]:
    """Decide which rows leave at an exit.

    Args:
        model: an early-exit model.
        steps: batches after a layer with an exit. The list is emptied, so that states are freed as early as possible.
        threshold: one threshold, or one per row of all batches, shape `(rows,)`, where no row leaves at NaN. None lets
            all rows leave, as after the last layer.

    Yields:
        Each batch, and the indices of its rows that leave and of those that remain, ascending.
    """
    remains: Iterator[bool] = repeat(False)
    if threshold is not None:
        # One `tolist` for all batches: here the CPU waits for the device.
        scores = torch.cat([cast(Tensor, step.score) for step in steps])
        remains = iter((~model.ready(scores, threshold)).tolist())
    while steps:
        step = steps.pop(0)
        flags = list(islice(remains, step.flight.shape[0]))
        leaving = [row for row, remain in enumerate(flags) if not remain]
        yield step, leaving, [row for row, remain in enumerate(flags) if remain]


def _leaving(step: Step, number: int, index: Tensor | slice) -> tuple[Tensor, ...]:
    """Return row indices, logits, layers and scores of the rows at `index` in the batch."""
    rows, exit = step.flight.rows, cast(Exit, step.exit)
    columns = (rows, exit.logits, torch.full_like(rows, number), cast(Tensor, step.score))
    return tuple(column[index] for column in columns)


def exit_layer_numbers(config: Any, device: torch.device) -> Tensor:
    """Return after which layers there are exits, shape `(exits,)`.

    Args:
        config: the model's config.
        device: device of the result.
    """
    # Not `torch.tensor`: the CPU would wait for its copy to a GPU, which the capture of a CUDA graph forbids.
    return torch.cat([torch.full((1,), layer, device=device) for layer in config.exit_layers])


def right_padded(inputs: dict[str, Tensor | None]) -> tuple[dict[str, Tensor | None], Tensor | None]:
    """Move padding at the start of rows to their end.

    The layers and exits then read the same with padding on either side: the first position is the first token, and
    positions count from it.

    Args:
        inputs: tensors of shape `(batch, tokens, ...)` by name; None where one was not passed.

    Returns:
        The rotated inputs, and by how many positions each row was rotated, shape `(batch,)`, for `rotated_back`.
        Unchanged and None if no row starts with padding, without a mask of shape `(batch, tokens)`, and where shapes
        do not match.

    Examples:
        >>> ids, mask = torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
        >>> inputs, shift = right_padded({"input_ids": ids, "attention_mask": mask})
        >>> inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), shift.tolist()
        ([[5, 6, 0], [7, 8, 9]], [[1, 1, 0], [1, 1, 1]], [1, 0])
    """
    mask, positions = inputs["attention_mask"], inputs.get("position_ids")
    if positions is not None and positions.dim() == 1:  # embedding layers accept this shape, too
        inputs = inputs | {"position_ids": positions[None]}
    if mask is None or not _shapes_match(inputs, mask):
        return inputs, None
    shift = (mask != 0).long().argmax(dim=1)  # 0 for a row of nothing but padding
    if not recording() and not bool(shift.any()):
        return inputs, None
    rotated = {
        # `position_ids` may be the same for all rows, which now need them at different places.
        name: None if value is None else rotated_back(value.expand(mask.shape[0], *value.shape[1:]), -shift)
        for name, value in inputs.items()
    }
    return rotated, shift


def rotated_back(values: Tensor, shift: Tensor | None, dim: int = 1) -> Tensor:
    """Undo the rotation of `right_padded` along one dimension.

    Args:
        values: tensor whose first dimension is the batch, and with a dimension for tokens.
        shift: as `right_padded` returns it; None changes nothing.
        dim: the dimension of the tokens.

    Examples:
        >>> rotated_back(torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([1, 0])).tolist()
        [[0, 5, 6], [7, 8, 9]]
    """
    if shift is None:
        return values
    tokens = values.shape[dim]
    shape = [values.shape[0] if side == 0 else tokens if side == dim else 1 for side in range(values.dim())]
    source = (torch.arange(tokens, device=values.device)[None] - shift[:, None]) % tokens  # (batch, tokens)
    return values.gather(dim, source.view(shape).expand_as(values))


def _shapes_match(inputs: dict[str, Tensor | None], mask: Tensor) -> bool:
    """Return whether the mask is of shape (batch, tokens), and the inputs, too; `position_ids` may have one row.

    Where they do not match, `embed_inputs` raises an error, which should show the shapes that were passed.
    """
    if mask.dim() != 2:
        return False
    shapes = {name: tuple(value.shape[:2]) for name, value in inputs.items() if value is not None}
    if shapes.get("position_ids") == (1, mask.shape[1]):
        del shapes["position_ids"]
    return all(shape == tuple(mask.shape) for shape in shapes.values())


def trimmed(inputs: dict[str, Tensor | None]) -> tuple[dict[str, Tensor | None], list[Extent] | None]:
    """Cut off the columns on the right that are padding in every row.

    The CPU has to read the mask for it. A mask without any padding becomes None, since attention is faster without.

    Args:
        inputs: tensors of shape `(batch, tokens, ...)` by name; None where one was not passed.

    Returns:
        The shorter inputs, and one `Extent` per row. Unchanged and None without a mask of shape `(batch, tokens)`, and
        where shapes do not match.

    Examples:
        >>> mask = torch.tensor([[1, 1, 0, 0]] * 2)
        >>> inputs, extents = trimmed({"input_ids": torch.ones(2, 4), "attention_mask": mask})
        >>> inputs["input_ids"].shape, inputs["attention_mask"], extents
        (torch.Size([2, 2]), None, [(2, 2), (2, 2)])
    """
    mask = inputs["attention_mask"]
    if mask is None or not _shapes_match(inputs, mask):
        return inputs, None
    real = mask != 0
    ends = torch.arange(1, real.shape[1] + 1, device=real.device)
    extents = [tuple(extent) for extent in torch.stack([(real * ends).amax(1), real.sum(1)], dim=1).tolist()]
    width = max(end for end, _ in extents) or len(ends)  # a batch of nothing but padding is not cut
    inputs = {name: None if value is None else value[:, :width] for name, value in inputs.items()}
    if all(count == width for _, count in extents):
        inputs["attention_mask"] = None
    return inputs, extents


def rows_per_batch(batch_tokens: int, width: int) -> int:
    """Return how many rows fit into a batch: at least 1, and a multiple of 8 from 8 rows on.

    With other numbers of rows, matrix products can take a fifth longer.

    Args:
        batch_tokens: largest number of tokens per batch, including padding.
        width: tokens per row, including padding.

    Examples:
        >>> rows_per_batch(1024, 53), rows_per_batch(1024, 200), rows_per_batch(1024, 2000)
        (16, 5, 1)
    """
    rows = max(1, batch_tokens // width)
    return rows - rows % 8 if rows >= 8 else rows


def repacked(encoder: Any, parts: list[tuple[InFlight, list[int]]], batch_tokens: int) -> list[InFlight]:
    """Repack the remaining rows, without the columns that are padding in all of them.

    Args:
        encoder: the model's encoder, which makes the attention masks.
        parts: batches, and for each the indices of its remaining rows, ascending. The list is emptied, so that states
            are freed as early as possible.
        batch_tokens: merge rows of neighbouring batches into batches of up to this many tokens; the longest rows must
            come first. 0 keeps the batches apart.

    Returns:
        The new batches.
    """
    if not batch_tokens:
        return [joined(encoder, [parts.pop(0)]) for _ in range(len(parts))]
    batches = []
    while parts:
        pieces: list[tuple[InFlight, list[int]]] = []
        room = 1
        while parts and room:
            flight, rows = parts[0]
            if not pieces:
                # The end of a text of nothing but padding is 0.
                width = (flight.extents[rows[0]][0] if flight.extents else 0) or flight.shape[1]
                room = rows_per_batch(batch_tokens, width)
            pieces.append((flight, rows[:room]))
            parts[0] = (flight, rows[room:])
            room -= len(pieces[-1][1])
            if not parts[0][1]:
                parts.pop(0)
        batches.append(joined(encoder, pieces))
    return batches


def joined(encoder: Any, pieces: Sequence[tuple[InFlight, list[int]]]) -> InFlight:
    """Return rows of one or more batches as one batch, without the columns that are padding in all of them.

    Args:
        encoder: the model's encoder, which makes the attention masks.
        pieces: batches after the same layer, and for each the indices of the rows to take, ascending.

    Returns:
        The batch: the rows of the first piece, then those of the second, ...
    """
    flights = [flight for flight, _ in pieces]
    first, extents = flights[0], None
    width = max(flight.shape[1] for flight in flights)
    if all(flight.extents for flight in flights):
        extents = [flight.extents[row] for flight, rows in pieces for row in rows]  # type: ignore[index]
        width = min(width, max(end for end, _ in extents) or width)
    if len(pieces) == 1 and len(pieces[0][1]) == first.shape[0] and width == first.shape[1]:
        return first
    indices = [index_of(rows, flight.rows) for flight, rows in pieces]

    def join_rows(values: Sequence[Tensor]) -> Tensor:
        """Join one tensor (batch, ...) per batch."""
        selected = [value[index] for value, index in zip(values, indices, strict=True)]
        return selected[0] if len(selected) == 1 else torch.cat(selected)

    def join_tokens(values: Sequence[Tensor]) -> Tensor:
        """Join one tensor (batch, tokens, ...) per batch; shorter ones are padded with zeros on the right."""
        if len(values) == 1 or {value.shape[1] for value in values} == {width}:
            return join_rows([value[:, :width] for value in values])
        padded, start = values[0].new_zeros(sum(len(rows) for _, rows in pieces), width, *values[0].shape[2:]), 0
        for value, index, (_, rows) in zip(values, indices, pieces, strict=True):
            value = value[index, :width]
            padded[start : start + len(rows), : value.shape[1]] = value
            start += len(rows)
        return padded

    contexts = [flight.context for flight in flights]
    hidden = join_tokens([flight.hidden for flight in flights])
    no_padding = extents is not None and all(count == width for _, count in extents)
    if len(pieces) == 1 and width == first.shape[1] and not no_padding:
        context = contexts[0].select(indices[0])
    else:
        masks = [flight.context.padding for flight in flights]
        if no_padding or all(mask is None for mask in masks) and len({flight.shape[1] for flight in flights}) == 1:
            padding = None
        else:
            padding = join_tokens(
                [
                    flight.rows.new_ones(flight.shape) if mask is None else mask
                    for flight, mask in zip(flights, masks, strict=True)
                ]
            )
        positions = contexts[0].positions  # with several batches never one row per text
        if positions is not None:
            positions = (positions[indices[0]] if len(positions) > 1 else positions)[:, :width]
        # A mask that is passed on has padding, which spares the family a look at it.
        context = family_of(encoder.config).context(encoder, hidden, padding, positions, pads=padding is not None)
        per_row, per_token = contexts[0].per_row, contexts[0].per_token
        context = context._replace(
            per_row={name: join_rows([source.per_row[name] for source in contexts]) for name in per_row},
            per_token={name: join_tokens([source.per_token[name] for source in contexts]) for name in per_token},
        )
    state, memory = (
        tuple(join_rows(values) for values in zip(*states, strict=True))
        for states in ([flight.state for flight in flights], [flight.memory for flight in flights])
    )
    return InFlight(join_rows([flight.rows for flight in flights]), hidden, context, extents, state, memory)


def index_of(rows: list[int], like: Tensor) -> slice | Tensor:
    """Return an index that selects rows of a tensor: a slice, which copies nothing, if they are adjacent.

    Args:
        rows: numbers of the rows, ascending, at least one.
        like: a tensor on the device where the index is used.
    """
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows).to(like.device, non_blocking=True)  # with `device=` the CPU would wait for the device
