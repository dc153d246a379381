"""What texts that left early would have answered at later exits."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..models.configuration_early_exit import Threshold
from .trace import ExitTrace, predictions


class GoneOn(NamedTuple):
    """What samples that left would have answered had they gone on; answers are classes, or numbers with one label.

    Args:
        layers: after which the exits are, 1..L.
        exit_layer: layers that were run, 1..L, (samples,).
        answer: that was given, (samples,).
        answers: at every exit, those before included, (samples, exits).
        changed: whether the last exit disagrees with the answer, (samples,), bool.
        settled_layer: the layers after which no exit disagrees with the last any more, 1..L, (samples,).
        right: whether each exit is right, (samples, exits), bool; None without labels, and with one label.
    """

    layers: tuple[int, ...]
    exit_layer: Tensor
    answer: Tensor
    answers: Tensor
    changed: Tensor
    settled_layer: Tensor
    right: Tensor | None


def had_they_gone_on(trace: ExitTrace, threshold: Threshold, tolerance: float = 0.0) -> GoneOn:
    """What each sample would have answered at every later exit, read off the trace.

    Args:
        trace: with or without labels.
        threshold: when samples leave, as for `ExitTrace.at`.
        tolerance: with one label, >= 0, in its unit: answers that differ by no more agree.

    Raises:
        ValueError: a negative tolerance.

    >>> logits, scores = torch.eye(2)[torch.tensor([[0, 1, 1], [0, 0, 1]])], torch.tensor([[0.6, 0.9, 0.9]] * 2)
    >>> trace = ExitTrace(logits, scores, None, (1, 2, 3), "gt")
    >>> found = had_they_gone_on(trace, threshold=0.8)
    >>> found.exit_layer.tolist(), found.changed.tolist(), found.settled_layer.tolist()
    ([2, 2], [False, True], [2, 3])
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance: got {tolerance}; pass a number >= 0 in the unit of the labels")
    layers, chosen = torch.tensor(trace.exit_layers), trace.exits_at(threshold)
    answers = predictions(trace.logits)  # (samples, exits)
    answer = answers.gather(1, chosen[:, None])[:, 0]
    regression = trace.logits.shape[-1] == 1
    agrees = (answers - answers[:, -1:]).abs() <= tolerance if regression else answers == answers[:, -1:]
    agrees[:, -1] = True  # NaN, too, is what it is
    from_here = agrees.flip(1).long().cumprod(dim=1).flip(1)
    settled = layers[len(layers) - from_here.sum(dim=1)]
    right = None if trace.labels is None or regression else answers == trace.labels[:, None]
    return GoneOn(
        tuple(trace.exit_layers),
        layers[chosen],
        answer,
        answers,
        ~agrees.gather(1, chosen[:, None])[:, 0],
        settled,
        right,
    )
