"""What a certificate can promise about all texts, and what each single text contributes to it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .metrics import METRICS
from .trace import ExitTrace, predictions, same_answers, scored_predictions

KINDS = {
    "changed_answers": "share of texts with another answer than at full depth",
    "harm": "share of texts that full depth answers right and early exit wrong",
    "accuracy_drop": "accuracy at full depth minus accuracy with exits",
    "mean_difference": "mean absolute difference from the number at full depth",
    "mean_layers": "mean number of layers run",
}


@dataclass(frozen=True)
class Guarantee:
    """What is promised: that a mean over all texts is at most a limit.

    Attributes:
        kind: One of

            - `"changed_answers"`: the share of texts whose answer with exits is not that of full depth. No labels are
              needed. With several labels at once, the answer is the label set.
            - `"harm"`: the share of texts that full depth answers right and early exit wrong. It bounds any drop of
              the accuracy.
            - `"accuracy_drop"`: the accuracy at full depth minus that with exits, where texts that only early exit
              answers right make up for others. In points of accuracy, not relative to it as `max_drop` is.
            - `"mean_difference"`: for regression, the mean absolute difference between the numbers with exits and at
              full depth, both cut to `value_range`.
            - `"mean_layers"`: the mean number of layers run.
        limit: Largest mean allowed: a share between 0 and 1; for `"mean_difference"` a number in the unit of the
            answers, for `"mean_layers"` a number of layers.
        tolerance: For `"changed_answers"` of a regression: numbers that differ by no more than this count as the same.
        value_range: For `"mean_difference"`: lowest and highest answer. Answers beyond are cut to it, and those that
            are served must be, too.

    Raises:
        ValueError: If a value is not allowed, or missing, or not used by this kind.
        TypeError: If the limit is no number.

    Examples:
        >>> print(Guarantee("changed_answers", 0.02))
        changed_answers <= 0.02
        >>> Guarantee("f1", 0.02)
        Traceback (most recent call last):
            ...
        ValueError: kind: got 'f1', which is no mean over texts, so that no number of texts certifies it; pass \
'changed_answers' or 'harm', and for f1 call bootstrap_samples, whose interval guarantees nothing
    """

    kind: str
    limit: float
    tolerance: float | None = None
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind in METRICS and self.kind != "accuracy":
            instead = "'changed_answers' or " + ("'mean_difference'" if METRICS[self.kind].regression else "'harm'")
            raise ValueError(
                f"kind: got {self.kind!r}, which is no mean over texts, so that no number of texts certifies it; pass "
                f"{instead}, and for {self.kind} call bootstrap_samples, whose interval guarantees nothing"
            )
        if self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}; choose one of {', '.join(map(repr, KINDS))}")
        if isinstance(self.limit, bool) or not isinstance(self.limit, Real):
            raise TypeError(f"limit: got {self.limit!r}; pass a number, e.g. 0.02")
        if self.tolerance is not None and (self.kind != "changed_answers" or not 0 <= self.tolerance < math.inf):
            raise ValueError(
                f"tolerance: got {self.tolerance!r}; it is how far two numbers may differ to count as the same, 0 or "
                "more, and only for 'changed_answers' of a regression"
            )
        if (self.value_range is None) == (self.kind == "mean_difference"):
            raise ValueError(
                f"value_range: got {self.value_range!r}; it is the lowest and highest answer, needed for "
                "'mean_difference' and only there, e.g. Guarantee('mean_difference', 0.1, value_range=(0, 5))"
            )
        if self.value_range is not None:
            low, high = map(float, self.value_range)
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"value_range: got {self.value_range!r}; pass two ascending numbers, e.g. (0, 5)")
            object.__setattr__(self, "value_range", (low, high))
        if self.kind != "mean_layers" and not 0 < self.limit < self.span[1]:
            meant = f". Did you mean {self.limit / 100:g} ({self.limit:g}%)?" if self.span[1] == 1 else ""
            raise ValueError(
                f"limit: got {self.limit:g}; pass a number above 0 and below {self.span[1]:g}, e.g. "
                f"{0.02 * self.span[1]:g}{meant if self.limit >= 1 else ''}"
            )

    def __str__(self) -> str:
        details = [] if self.tolerance is None else [f"tolerance {self.tolerance:g}"]
        details += (
            [] if self.value_range is None else [f"numbers from {self.value_range[0]:g} to {self.value_range[1]:g}"]
        )
        return f"{self.kind} <= {self.limit:g}" + (f" ({', '.join(details)})" if details else "")

    def as_dict(self) -> dict[str, Any]:
        """Return what is set, as values that JSON can represent."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Guarantee":
        """Return the guarantee of which `as_dict` gave these values."""
        return cls(**values)

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest value that a single text can have; not known here for `"mean_layers"`."""
        if self.kind == "mean_layers":
            return (1.0, math.inf)
        if self.value_range is not None:
            return (0.0, self.value_range[1] - self.value_range[0])
        return (-1.0 if self.kind == "accuracy_drop" else 0.0, 1.0)


def row_losses(trace: ExitTrace, guarantee: Guarantee) -> Tensor:
    """Compute the value of each sample whose mean a guarantee limits, at every exit.

    Logits that are not finite count as another answer, which is as far away as possible, and as a wrong one.

    Args:
        trace: The trace.
        guarantee: The guarantee.

    Returns:
        Losses, or for `"mean_layers"` layers, `(samples, exits)`, float64.

    Raises:
        ValueError: If the guarantee does not fit the task, or if it needs labels and there are none.

    Examples:
        >>> logits = torch.tensor([[[0.0, 1.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> trace = ExitTrace(logits, torch.zeros(2, 2), torch.tensor([1, 1]), (3, 12), "gt")
        >>> row_losses(trace, Guarantee("accuracy_drop", 0.02)).tolist()  # the first exit helps the first sample
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    kind, regression = guarantee.kind, trace.logits.shape[-1] == 1
    if kind in ("harm", "accuracy_drop") and regression:
        raise ValueError(f"guarantees: {kind} is for classes, but the answers are numbers; pass mean_difference")
    if kind == "mean_difference" and not regression:
        raise ValueError(f"guarantees: {kind} is for numbers, but the answers are classes; pass changed_answers")
    if kind == "changed_answers" and regression == (guarantee.tolerance is None):
        needed = "answers are numbers, which need one" if regression else "answers are classes, which have none"
        raise ValueError(
            f"guarantees: {guarantee} has a tolerance of {guarantee.tolerance}, but the {needed}; "
            + (
                "pass tolerance=0.5, or --tolerance 0.5 of adaexit certify"
                if regression
                else "leave the tolerance out"
            )
        )
    layers = torch.tensor(trace.exit_layers, dtype=torch.float64)
    if kind == "mean_layers":
        if not layers[0] < guarantee.limit < layers[-1]:
            raise ValueError(
                f"guarantees: got {guarantee}; texts run from {layers[0]:g} to {layers[-1]:g} layers, pass a number "
                "between"
            )
        return layers.expand(len(trace.logits), -1)
    if kind in ("harm", "accuracy_drop"):
        labels = trace.known_labels()
        right = same_answers(scored_predictions(trace.logits, labels), labels, trace.multi_label).double()
        lost = right[:, -1:] - right
        return lost.clamp_min(0) if kind == "harm" else lost
    answers, finite = predictions(trace.logits, trace.multi_label), trace.logits.isfinite().all(dim=-1)
    comparable = finite & finite[:, -1:]  # (samples, exits)
    if not regression:
        losses = (~(same_answers(answers, answers[:, -1], trace.multi_label) & comparable)).double()
    else:
        answers = answers.double()
        answers = answers if guarantee.value_range is None else answers.clamp(*guarantee.value_range)
        losses = torch.where(comparable, (answers - answers[:, -1:]).abs(), math.inf)
        losses = losses.clamp_max(guarantee.span[1]) if guarantee.tolerance is None else losses > guarantee.tolerance
    losses = losses.double()
    losses[:, -1] = 0
    return losses
