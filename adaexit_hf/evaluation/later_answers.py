"""Compare the prediction at the exit that a text took with the predictions of later exits."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..models.configuration_early_exit import Threshold
from .trace import ExitTrace, at_exits, predictions, same_answers


class GoneOn(NamedTuple):
    """The predictions of all exits beside the prediction that early exit gave.

    A prediction is a class, or a number if there is one label. With several labels at once it is a label set, 0 and 1,
    with one more dimension, `(..., labels)`.

    Attributes:
        layers: Number of layers run at each exit, 1..L.
        exit_layer: Number of layers run for each sample, 1..L, `(samples,)`.
        answer: Prediction at the exit that each sample took, `(samples,)`. A class predicted from logits that are not
            finite is -1: it is none of the classes, counts as wrong, and agrees with no other prediction.
        answers: Predictions of every exit, including those before it, `(samples, exits)`.
        changed: Whether the last exit disagrees with `answer`, `(samples,)`, bool.
        settled_layer: Number of layers from which on every exit agrees with the last one, 1..L, `(samples,)`.
        right: Whether the prediction of each exit is correct, `(samples, exits)`, bool; None without labels, and for
            regression.
    """

    layers: tuple[int, ...]
    exit_layer: Tensor
    answer: Tensor
    answers: Tensor
    changed: Tensor
    settled_layer: Tensor
    right: Tensor | None


def had_they_gone_on(trace: ExitTrace, threshold: Threshold, tolerance: float | None = None) -> GoneOn:
    """Return the predictions that samples would have got at later exits, had they not left early.

    Args:
        trace: Trace with or without labels.
        threshold: Exit threshold, as for `ExitTrace.at`; None is full depth.
        tolerance: Only for regression: two predictions agree if they differ by at most this much, in the unit of the
            labels, 0 or more. Default: None, which is 0 for regression, equal numbers only.

    Returns:
        The predictions of all exits, and where they agree.

    Raises:
        TypeError: As `ExitTrace.exits_at`.
        ValueError: If the tolerance is negative or NaN, or given for classification, and as `ExitTrace.exits_at`.

    Examples:
        >>> logits, scores = torch.eye(2)[torch.tensor([[0, 1, 1], [0, 0, 1]])], torch.tensor([[0.6, 0.9, 0.9]] * 2)
        >>> trace = ExitTrace(logits, scores, None, (1, 2, 3), "gt")
        >>> later = had_they_gone_on(trace, threshold=0.8)
        >>> later.exit_layer.tolist(), later.changed.tolist(), later.settled_layer.tolist()
        ([2, 2], [False, True], [2, 3])
    """
    regression = trace.logits.shape[-1] == 1
    if tolerance is not None and not regression:
        raise ValueError(
            f"tolerance: got {tolerance}, but the trace is of a classifier; only regression takes one, leave it out"
        )
    tolerance = 0.0 if tolerance is None else tolerance
    if not tolerance >= 0:
        raise ValueError(f"tolerance: got {tolerance}; pass a number >= 0 in the unit of the labels")
    chosen = trace.exits_at(threshold)
    layers = torch.tensor(trace.exit_layers, device=chosen.device)
    finite = trace.logits.isfinite().all(dim=-1)
    sets = trace.multi_label
    answers = predictions(trace.logits, sets)  # (samples, exits), or (samples, exits, labels)
    answers = answers if regression else torch.where(finite[..., None] if sets else finite, answers, -1)
    last = answers[:, -1]
    same = (answers - last[:, None]).abs() <= tolerance if regression else same_answers(answers, last, sets)
    agrees = same & finite
    agrees[:, -1] = True  # also if it is not finite
    agrees_from_here = agrees.flip(1).long().cumprod(dim=1).flip(1)
    settled = layers[len(layers) - agrees_from_here.sum(dim=1)]
    right = None
    if trace.labels is not None and not regression:
        right = same_answers(answers, trace.labels.to(answers.device), sets)
    return GoneOn(
        tuple(trace.exit_layers),
        layers[chosen],
        at_exits(answers, chosen),
        answers,
        ~agrees.gather(1, chosen[:, None])[:, 0],
        settled,
        right,
    )
