"""Exit heads, exit criteria (logits to a readiness score) and temperature scaling.

Nothing here belongs to one method.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .encoder_layers import family_of

# What a method or a criterion passes from one exit to the next: tensors whose first dimension is the batch.
State = tuple[Tensor, ...]


class Exit(NamedTuple):
    """What one exit says.

    Args:
        logits: the answer if we stop here, (batch, labels).
        score: readiness in the method's own unit, (batch,); never depends on the threshold. None where the config's
            `exit_criterion` decides from the logits.
        extras: batch-first tensors that the loss needs besides the logits: halting values, certainties.
    """

    logits: Tensor
    score: Tensor | None = None
    extras: tuple[Tensor, ...] = ()


class SingleUnit(nn.Linear):
    """A linear layer with one output, (batch, size) -> (batch, 1), as a product and a sum in float32.

    The kernel behind `nn.Linear(size, 1)` rounds differently when the weights are not aligned in memory, as loaded
    ones are; a reloaded model would differ from the saved one in the last bit.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        return (pooled.float() * self.weight.float()).sum(dim=-1, keepdim=True) + self.bias.float()


def output_layer(size: int, num_labels: int) -> nn.Linear:
    """(batch, size) -> logits (batch, labels)."""
    return SingleUnit(size) if num_labels == 1 else nn.Linear(size, num_labels)


def dropout_rate(encoder_config: PreTrainedConfig) -> float:
    """Dropout of the encoder family's own classification head, in [0, 1)."""
    rates = (getattr(encoder_config, name, None) for name in family_of(encoder_config).dropout_names)
    return next((rate for rate in rates if rate is not None), 0.0)


class ExitFeatures(nn.Module):
    """The encoder family's own classification head up to its last layer: dense, activation, (norm,) dropout."""

    def __init__(self, encoder_config: PreTrainedConfig) -> None:
        super().__init__()
        family = family_of(encoder_config)
        size = encoder_config.hidden_size
        self.dense = nn.Linear(size, size)
        self.activation = ACT2FN[getattr(encoder_config, family.activation, family.activation)]
        self.norm = nn.LayerNorm(size, eps=encoder_config.norm_eps) if "norm" in family.classifier else nn.Identity()
        self.dropout = nn.Dropout(dropout_rate(encoder_config))

    def features(self, pooled: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, hidden): what the linear layer reads, after dropout."""
        return self.dropout(self.norm(self.activation(self.dense(pooled))))


class ExitHead(ExitFeatures):
    """The encoder family's own classification head.

    For BERT this is the pooler and classifier of the original paper, for DistilBERT its pre-classifier with ReLU; so a
    fine-tuned classifier's head fits the last exit weight by weight.
    """

    def __init__(self, encoder_config: PreTrainedConfig, num_labels: int) -> None:
        super().__init__(encoder_config)
        self.classifier = output_layer(encoder_config.hidden_size, num_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, hidden) -> logits (batch, labels)."""
        return self.classifier(self.features(pooled))


def mean_pool(hidden: Tensor, padding: Tensor | None) -> Tensor:
    """Mean state of the tokens, pads left out: (batch, tokens, hidden), (batch, tokens) -> (batch, hidden).

    >>> import torch
    >>> hidden, padding = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
    >>> mean_pool(hidden, padding).tolist(), mean_pool(hidden[:, :2], None).tolist()
    ([[2.0]], [[2.0]])
    """
    weights = hidden.new_ones(hidden.shape[:2]) if padding is None else padding
    return (hidden * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, in [0, ln labels]: (..., labels) -> (...).

    From log-softmax: both formulas of the authors' code turn into NaN for confident logits. DeeBERT, Algorithm 1.

    >>> [round(value, 6) for value in entropy(torch.tensor([[2.0, -1.0, 0.3], [120.0, -120.0, 0.0]])).tolist()]
    [0.582192, 0.0]
    >>> round(entropy(torch.zeros(3)).item(), 6) == round(math.log(3), 6)
    True
    """
    log_probabilities = logits.float().log_softmax(dim=-1)
    # 0.0 - x: a plain minus would turn a certain answer into -0.0.
    return 0.0 - (log_probabilities.exp() * log_probabilities).sum(dim=-1)


def confidence(logits: Tensor) -> Tensor:
    """Largest probability of softmax(logits), in [1 / labels, 1]: (..., labels) -> (...). BERxiT, section 4.1.

    >>> round(confidence(torch.tensor([2.0, -1.0, 0.3])).item(), 6)
    0.811378
    """
    return logits.float().softmax(dim=-1).amax(dim=-1)


def normalized_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) as a share of its largest value, in [0, 1]: (..., labels) -> (...). FastBERT.

    >>> round(normalized_entropy(torch.tensor([2.0, -1.0, 0.3])).item(), 6)
    0.529934
    """
    return entropy(logits) / math.log(logits.shape[-1])


def margin(logits: Tensor) -> Tensor:
    """Difference of the two largest probabilities of softmax(logits), in [0, 1]: (..., labels) -> (...).

    >>> round(margin(torch.tensor([2.0, -1.0, 0.3])).item(), 6)
    0.663153
    """
    top = logits.float().softmax(dim=-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def patience(logits: Tensor, memory: State, tolerance: float | None = None) -> tuple[Tensor, State]:
    """How many exits in a row agreed with the exit before them, 0 at the first exit. PABEE, section 3.2.

    Exits agree when they name the same class; with one label, when they differ by less than `tolerance`. An exit with
    NaN or infinite logits agrees with nobody.

    Args:
        logits: of this exit, (batch, labels).
        memory: what the previous exit returned; () at the first.
        tolerance: for regression, > 0, in the unit of the labels.

    Returns:
        the count, (batch,), and the memory: the answers and the count, each (batch,).

    >>> memory = ()
    >>> for answer in ([[1.0, 0.0]], [[2.0, 1.0]], [[0.5, 0.1]], [[0.0, 1.0]]):
    ...     count, memory = patience(torch.tensor(answer), memory)
    ...     print(count.item())
    0.0
    1.0
    2.0
    0.0
    """
    answers = logits.squeeze(-1).float() if logits.shape[-1] == 1 else logits.argmax(dim=-1).float()
    answers = answers.masked_fill(~logits.isfinite().all(dim=-1), torch.nan)
    if not memory:
        return torch.zeros_like(answers), (answers, torch.zeros_like(answers))
    previous, count = memory
    agree = answers == previous if tolerance is None else (answers - previous).abs() < tolerance
    count = torch.where(agree, count + 1, torch.zeros_like(count))
    return count, (answers, count)


class Criterion(NamedTuple):
    """A way to decide from answers alone, open to every method.

    Args:
        score: logits (batch, labels) -> (batch,); None for patience, which needs a memory.
        ready: (score, threshold) -> bool (batch,).
        bounds: (labels, exits) -> the range of the threshold, ends included.
    """

    score: Callable[[Tensor], Tensor] | None
    ready: Callable[[Tensor, float], Tensor]
    bounds: Callable[[int, int], tuple[float, float]]


CRITERIA: dict[str, Criterion] = {
    "entropy": Criterion(entropy, torch.lt, lambda labels, exits: (0.0, math.log(labels))),
    "normalized_entropy": Criterion(normalized_entropy, torch.lt, lambda labels, exits: (0.0, 1.0)),
    "confidence": Criterion(confidence, torch.gt, lambda labels, exits: (0.0, 1.0)),
    "margin": Criterion(margin, torch.gt, lambda labels, exits: (0.0, 1.0)),
    "patience": Criterion(None, torch.ge, lambda labels, exits: (1.0, float(max(1, exits)))),
}


def first_ready(ready: Tensor) -> Tensor:
    """Index of the first exit that is ready, and of the last one where none is: bool (..., exits) -> long (...).

    >>> first_ready(torch.tensor([[False, True, True], [False, False, False]])).tolist()
    [1, 2]
    """
    ready = ready.clone()
    ready[..., -1] = True
    return ready.long().argmax(dim=-1)


TEMPERATURE_BOUNDS = (0.01, 100.0)


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T in [0.01, 100] for which softmax(logits / T) gives the labels the largest likelihood.

    The negative log-likelihood is convex in 1 / T, so T is found by halving the interval where its slope changes sign,
    mean over samples of sum_c p_c z_c - z_y. At a bound, a warning: answers that are all right want T = 0, answers
    worse than chance want no confidence at all.

    Args:
        logits: (samples, labels); samples with NaN or infinite ones do not count, since they never exit.
        labels: classes, (samples,).

    Raises:
        ValueError: no finite logits at all.

    >>> logits, labels = torch.tensor([[2.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])  # softmax(2 / T) = 3 / 4
    >>> round(best_temperature(logits, labels), 6), round(2 / torch.tensor(3.0).log().item(), 6)
    (1.820478, 1.820478)
    """
    finite = logits.isfinite().all(dim=-1)
    if not finite.any():
        raise ValueError(f"logits: NaN or infinite for all {len(logits)} samples; check the model and its input")
    logits, labels = logits[finite].double(), labels[finite]
    truth = torch.take_along_dim(logits, labels.long()[:, None], dim=1).mean()

    def slope(inverse: float) -> float:
        return float(((logits * inverse).softmax(dim=-1) * logits).sum(dim=-1).mean() - truth)

    low, high = 1 / TEMPERATURE_BOUNDS[1], 1 / TEMPERATURE_BOUNDS[0]
    if slope(low) >= 0 or slope(high) <= 0:
        bound = TEMPERATURE_BOUNDS[1] if slope(low) >= 0 else TEMPERATURE_BOUNDS[0]
        why = "answers no better than chance" if slope(low) >= 0 else "answers that are all right"
        warnings.warn(f"temperature {bound} is at its bound: {why}, on {len(labels)} samples", stacklevel=3)
        return bound
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (1 / low + 1 / high) / 2
