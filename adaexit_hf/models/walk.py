"""Early exit of batches: layer by layer, each row leaves when it is ready, and the others close ranks.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .exit_types import Exit
from .in_flight import InFlight
from .in_flight import index_of
from .in_flight import packed


class Step(NamedTuple):
    """One layer further: the rows, attention weights if asked for, and after an exit what it says.

    Args:
        score: how ready each row is, (batch,); NaN where the exit's logits are NaN or infinite.
    """

    flight: InFlight
    attention: Tensor | None
    exit: Exit | None = None
    score: Tensor | None = None


class Answers(NamedTuple):
    """What the rows were told when they left, in the order of the input.

    Args:
        logits: (rows, labels).
        exit_layer: layers run, 1..L, (rows,).
        score: readiness at the exit that was taken, (rows,).
        all_scores: readiness at every exit that was passed, in no order, (passed,).
    """

    logits: Tensor
    exit_layer: Tensor
    score: Tensor
    all_scores: Tensor


def walk(
    model: Any,
    moving: list[InFlight],
    thresholds: Sequence[float] | None,
    temperatures: Sequence[float] | None,
    batch_tokens: int = 0,
    tell: Callable[[int], Any] | None = None,
) -> Answers:
    """Take batches through the model until every row has left; a row leaves at the first exit that is ready.

    All batches run a layer before any runs the next, and the host reads once per layer which rows stay.

    Args:
        moving: batches whose rows are together 0, 1, 2, ...; with `batch_tokens` the longest come first. The
            list is emptied, so that no states are kept for longer than they are needed.
        thresholds: one per exit; None is full depth.
        temperatures: one per exit, or None.
        batch_tokens: as for `packed`.
        tell: called with the number of rows that left, for a progress bar.
    """
    exit_layers, depth = model.config.exit_layers, model.config.exit_layers[-1]
    left: list[tuple[Tensor, ...]] = []
    scores: list[Tensor] = []
    for number in range(1, depth + 1):
        steps: list[Step] = []
        while moving:
            steps.append(model.advance(moving.pop(0), number, temperatures))  # the states before are let go
        if number < depth and (thresholds is None or number not in exit_layers):
            moving = [step.flight for step in steps]
            continue
        scores += [step.score for step in steps if step.score is not None]
        if number == depth or thresholds is None:
            left += [_leaving(step, number) for step in steps]
            if tell is not None:
                tell(sum(step.flight.shape[0] for step in steps))
            break
        threshold = thresholds[exit_layers.index(number)]
        stays = iter(torch.cat([~model.ready(step.score, threshold) for step in steps]).tolist())  # the one host read
        parts = []
        while steps:
            step = steps.pop(0)
            flags = list(islice(stays, step.flight.shape[0]))
            stay = [row for row, flag in enumerate(flags) if flag]
            if len(stay) < len(flags):
                leave = [row for row, flag in enumerate(flags) if not flag]
                left.append(_leaving(step, number, index_of(leave, step.flight.rows)))
                if tell is not None:
                    tell(len(leave))
            if stay:
                parts.append((step.flight, stay))
        if not parts:
            break
        moving = packed(model.encoder, parts, batch_tokens)
    rows, logits, layers, score = (torch.cat(parts) for parts in zip(*left, strict=True))
    order = rows.argsort()
    return Answers(logits[order], layers[order], score[order], torch.cat(scores))


def _leaving(step: Step, number: int, places: Tensor | slice | None = None) -> tuple[Tensor, ...]:
    """Rows, answers, layers and scores of those that leave."""
    rows, exit = step.flight.rows, cast(Exit, step.exit)
    parts = (rows, exit.logits, torch.full_like(rows, number), cast(Tensor, step.score))
    return parts if places is None else tuple(part[places] for part in parts)
