"""Exit criteria: how the readiness score of an exit is computed and compared with the threshold; temperature scaling.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .exit_heads import Exit
from .exit_heads import State


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) in nats, from 0 to ln(labels). DeeBERT, Algorithm 1.

    Computed from log-softmax, since both formulas in the authors' code give NaN for very confident logits.

    Args:
        logits: shape `(..., labels)`.

    Returns:
        Shape `(...)`.

    Examples:
        >>> [round(value, 6) for value in entropy(torch.tensor([[2.0, -1.0, 0.3], [120.0, -120.0, 0.0]])).tolist()]
        [0.582192, 0.0]
        >>> round(entropy(torch.zeros(3)).item(), 6) == round(math.log(3), 6)
        True
    """
    log_probabilities = logits.float().log_softmax(dim=-1)
    # Not a unary minus, which would give -0.0 where one class has probability 1.
    return 0.0 - (log_probabilities.exp() * log_probabilities).sum(dim=-1)


def confidence(logits: Tensor) -> Tensor:
    """Return the largest probability of softmax(logits), from 1 / labels to 1. BERxiT, section 4.1.

    Args:
        logits: shape `(..., labels)`.

    Returns:
        Shape `(...)`.

    Examples:
        >>> round(confidence(torch.tensor([2.0, -1.0, 0.3])).item(), 6)
        0.811378
    """
    return logits.float().softmax(dim=-1).amax(dim=-1)


def normalized_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) divided by ln(labels), from 0 to 1. FastBERT, section 3.3.

    Args:
        logits: shape `(..., labels)`.

    Returns:
        Shape `(...)`.

    Examples:
        >>> round(normalized_entropy(torch.tensor([2.0, -1.0, 0.3])).item(), 6)
        0.529934
    """
    return entropy(logits) / math.log(logits.shape[-1])


def margin(logits: Tensor) -> Tensor:
    """Return the difference of the two largest probabilities of softmax(logits), from 0 to 1.

    Args:
        logits: shape `(..., labels)`.

    Returns:
        Shape `(...)`.

    Examples:
        >>> round(margin(torch.tensor([2.0, -1.0, 0.3])).item(), 6)
        0.663153
    """
    top = logits.float().softmax(dim=-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def two_classes(logits: Tensor) -> Tensor:
    """Return the logits of several labels at once as those of two classes per label: not given, given.

    The probability of "given" is softmax([0, z]) = sigmoid(z), so what is defined for classes holds for each label.

    Args:
        logits: shape `(..., labels)`.

    Returns:
        Shape `(..., labels, 2)`.

    Examples:
        >>> two_classes(torch.tensor([2.0, -1.0])).tolist()
        [[0.0, 2.0], [0.0, -1.0]]
    """
    return torch.stack([torch.zeros_like(logits), logits], dim=-1)


def label_sets(logits: Tensor) -> Tensor:
    """Return the predicted label sets of several labels at once: 1 where a label's probability is above 0.5.

    Args:
        logits: shape `(..., labels)`.

    Returns:
        0 and 1, int64, shape `(..., labels)`.

    Examples:
        >>> label_sets(torch.tensor([[2.0, -1.0, 0.0], [0.5, 0.1, 3.0]])).tolist()
        [[1, 0, 0], [1, 1, 1]]
    """
    return (logits > 0).long()


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return which predictions are right: the class, or for several labels at once the whole label set.

    Args:
        logits: shape `(batch, labels)`.
        labels: class indices, shape `(batch,)`, or 0 and 1, shape `(batch, labels)`.

    Returns:
        bool, shape `(batch,)`.

    Examples:
        >>> logits = torch.tensor([[2.0, 1.0], [2.0, -1.0]])
        >>> correct(logits, torch.tensor([0, 1])).tolist(), correct(logits, torch.tensor([[1, 1], [1, 1]])).tolist()
        ([True, False], [True, False])
    """
    if labels.dim() == 2:
        return (label_sets(logits) == labels).all(dim=-1)
    return logits.argmax(dim=-1) == labels


def patience(
    logits: Tensor, memory: State, tolerance: float | None = None, multi_label: bool = False
) -> tuple[Tensor, State]:
    """Count how many exits in a row agreed with the exit before them. PABEE, section 3.2.

    Two exits agree if they predict the same class; in regression, if they differ by less than `tolerance`; with
    several labels at once, which PABEE does not define, if they predict the same label set. An exit with NaN or
    infinite logits agrees with none.

    Args:
        logits: logits of this exit, shape `(batch, labels)`.
        memory: the memory that the call for the previous exit returned; () at the first exit.
        tolerance: for regression, in the unit of the labels; None for classification.
        multi_label: whether a text may have several labels at once.

    Returns:
        The count, shape `(batch,)`, 0 at the first exit; and the memory: the count, `(batch,)`, and predictions,
        `(batch, 1)`, or `(batch, labels)` with several labels at once.

    Examples:
        >>> memory = ()
        >>> for logits in ([[1.0, 0.0]], [[2.0, 1.0]], [[0.5, 0.1]], [[0.0, 1.0]]):
        ...     count, memory = patience(torch.tensor(logits), memory)
        ...     print(count.item())
        0.0
        1.0
        2.0
        0.0
    """
    if multi_label:
        predictions = label_sets(logits).float()
    else:
        predictions = (logits if logits.shape[-1] == 1 else logits.argmax(dim=-1, keepdim=True)).float()
    predictions = predictions.masked_fill(~logits.isfinite().all(dim=-1, keepdim=True), torch.nan)
    if not memory:
        count = torch.zeros_like(predictions[:, 0])
        return count, (predictions, count)
    previous, count = memory
    agree = predictions == previous if tolerance is None else (predictions - previous).abs() < tolerance
    count = torch.where(agree.all(dim=-1), count + 1, torch.zeros_like(count))
    return count, (predictions, count)


class Criterion(NamedTuple):
    """An exit criterion that needs nothing of the method but the logits, so that every method allows it.

    Attributes:
        score: computes the readiness score from the probabilities of classes, logits `(batch, labels)` -> `(batch,)`;
            None where the score counts something, which regression allows, too.
        ready: compares score and threshold, -> bool `(batch,)`: True where a row leaves.
        bounds: number of classes, exit layers -> lowest and highest threshold. With several labels at once, each of
            them has 2 classes.
        counts: what the score counts, so that thresholds are whole numbers; "" if it is no count.
    """

    score: Callable[[Tensor], Tensor] | None
    ready: Callable[[Tensor, float], Tensor]
    bounds: Callable[[int, Sequence[int]], tuple[float, float]]
    counts: str = ""


CRITERIA: dict[str, Criterion] = {
    "entropy": Criterion(entropy, torch.lt, lambda labels, layers: (0.0, math.log(labels))),
    "normalized_entropy": Criterion(normalized_entropy, torch.lt, lambda labels, layers: (0.0, 1.0)),
    "confidence": Criterion(confidence, torch.gt, lambda labels, layers: (0.0, 1.0)),
    "margin": Criterion(margin, torch.gt, lambda labels, layers: (0.0, 1.0)),
    "patience": Criterion(None, torch.ge, lambda labels, layers: (1.0, float(len(layers))), "exits"),
    "layer": Criterion(None, torch.ge, lambda labels, layers: (1.0, float(layers[-1])), "layers"),
}


def of_least_sure_label(criterion: Criterion, logits: Tensor) -> Tensor:
    """Return the readiness of a text that may have several labels at once: that of its least sure label.

    This is not of the papers, which define exits for one label per text. A label's own readiness is that of a text
    with two classes: the label is not given, or given with the probability p = sigmoid(logit). So the confidence is
    the smallest max(p, 1 - p), the margin the smallest |2 p - 1|, and the entropy the largest binary entropy.

    Args:
        criterion: one of `CRITERIA` with a score.
        logits: shape `(batch, labels)`.

    Returns:
        Shape `(batch,)`.

    Examples:
        >>> logits = torch.tensor([[3.0, -0.5]])  # probabilities 0.953 and 0.378
        >>> [round(of_least_sure_label(CRITERIA[name], logits).item(), 4) for name in ("confidence", "margin")]
        [0.6225, 0.2449]
        >>> round(of_least_sure_label(CRITERIA["normalized_entropy"], logits).item(), 4)
        0.9563
    """
    assert criterion.score is not None
    scores = criterion.score(two_classes(logits))  # (batch, labels)
    return scores.amax(dim=-1) if criterion.ready is torch.lt else scores.amin(dim=-1)


def counted(criterion: str | None) -> str:
    """Return what the scores of a criterion count, so that its thresholds are whole numbers; "" if they do not count.

    Args:
        criterion: name of any criterion, also a method's own; None if unknown.

    Examples:
        >>> counted("patience"), counted("layer"), counted("entropy"), counted("dact")
        ('exits', 'layers', '', '')
    """
    return CRITERIA[criterion].counts if criterion in CRITERIA else ""


def readiness(config: Any, exit: Exit, memory: State, layer: int) -> tuple[Tensor, State]:
    """Compute the readiness scores of an exit with the config's exit criterion.

    Args:
        config: the method's config.
        exit: the output of the exit.
        memory: what the call for the previous exit returned; () at the first exit.
        layer: number of the exit's layer, from 1, which is the score of the criterion "layer".

    Returns:
        The scores, shape `(batch,)`, and the memory for the next exit.

    Raises:
        ValueError: the config's exit criterion was changed to one for which the model has no layers.
    """
    name = config.exit_criterion
    if exit.score is not None and name == config.own_criterion:
        return exit.score, ()
    if name not in CRITERIA:
        raise ValueError(
            f"exit_criterion: got '{name}', which this model was not built for; pass it to the config of a new model"
        )
    logits, score = exit.logits.detach(), CRITERIA[name].score
    if name == "layer":
        return torch.full_like(logits[:, 0], layer, dtype=torch.float32), ()
    if score is None:
        return patience(logits, memory, config.tolerance, config.multi_label)
    return of_least_sure_label(CRITERIA[name], logits) if config.multi_label else score(logits), ()


def first_ready(ready: Tensor) -> Tensor:
    """Return the index of the first exit that is ready, or of the last exit if none is.

    Args:
        ready: bool, shape `(..., exits)`.

    Returns:
        Indices from 0, int64, shape `(...)`.

    Examples:
        >>> first_ready(torch.tensor([[False, True, True], [False, False, False]])).tolist()
        [1, 2]
    """
    ready = ready.clone()
    ready[..., -1] = True
    return ready.long().argmax(dim=-1)


TEMPERATURE_BOUNDS = (0.01, 100.0)


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T for which softmax(logits / T) gives the labels the largest likelihood.

    The negative log-likelihood is convex in 1 / T, so T is found by bisection: its slope, the mean over the samples of
    sum_c p_c z_c - z_y, changes sign once. If the best T is not inside [0.01, 100], the bound is returned with a
    warning: T tends to 0 if all predictions are right, and to infinity if they are no better than chance.

    Args:
        logits: shape `(samples, labels)`; samples with NaN or infinite logits are ignored, since they never exit. With
            several labels at once, `two_classes(logits).flatten(0, 1)`: every label of every text is a sample.
        labels: class indices, shape `(samples,)`.

    Returns:
        The temperature, from 0.01 to 100.

    Raises:
        ValueError: no sample has finite logits.

    Examples:
        >>> logits, labels = torch.tensor([[2.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])  # softmax(2 / T) = 3 / 4
        >>> round(best_temperature(logits, labels), 6), round(2 / torch.tensor(3.0).log().item(), 6)
        (1.820478, 1.820478)
    """
    finite = logits.isfinite().all(dim=-1)
    if not finite.any():
        raise ValueError(f"logits: NaN or infinite for all {len(logits)} samples; check the model and its input")
    logits, labels = logits[finite].double(), labels[finite]
    label_logit = torch.take_along_dim(logits, labels.long()[:, None], dim=1).mean()

    def slope(inverse: float) -> float:
        return float(((logits * inverse).softmax(dim=-1) * logits).sum(dim=-1).mean() - label_logit)

    low, high = 1 / TEMPERATURE_BOUNDS[1], 1 / TEMPERATURE_BOUNDS[0]
    if slope(low) >= 0 or slope(high) <= 0:
        bound = TEMPERATURE_BOUNDS[1] if slope(low) >= 0 else TEMPERATURE_BOUNDS[0]
        why = "predictions are no better than chance" if slope(low) >= 0 else "all predictions are right"
        warnings.warn(f"temperature {bound} is at its bound, since {why} on {len(labels)} samples", stacklevel=3)
        return bound
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (1 / low + 1 / high) / 2
