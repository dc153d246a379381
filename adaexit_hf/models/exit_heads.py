"""Exit heads, exit criteria (how the readiness score of an exit is computed), and temperature scaling.

All of it is shared by several methods.

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

# What a method, or an exit criterion, passes from one exit to the next: tensors whose first dimension is the batch.
State = tuple[Tensor, ...]


class Exit(NamedTuple):
    """The output of one exit.

    Attributes:
        logits: the prediction of a row that leaves here, shape `(batch, labels)`.
        score: readiness score of the method's own criterion, shape `(batch,)`; must not depend on the threshold. None
            if the score is computed from the logits, by the config's `exit_criterion`.
        extras: tensors that `exit_loss` needs besides the logits, whose first dimension is the batch.
    """

    logits: Tensor
    score: Tensor | None = None
    extras: tuple[Tensor, ...] = ()


class SingleUnit(nn.Linear):
    """A linear layer with one output, computed as a product and a sum in float32.

    The kernel of `nn.Linear(size, 1)` rounds differently if the weights are not aligned in memory, as weights that
    were loaded may be; a reloaded model would differ from the saved one in the last bit.

    Args:
        size: number of inputs.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, size) -> (batch, 1)."""
        return (pooled.float() * self.weight.float()).sum(dim=-1, keepdim=True) + self.bias.float()


def output_layer(size: int, num_labels: int) -> nn.Linear:
    """Return the output layer of an exit, `(batch, size)` -> logits `(batch, labels)`.

    Args:
        size: number of inputs.
        num_labels: number of logits; 1 for regression.
    """
    return SingleUnit(size) if num_labels == 1 else nn.Linear(size, num_labels)


def dropout_rate(encoder_config: PreTrainedConfig) -> float:
    """Return the dropout rate of the encoder family's own classification head, in [0, 1).

    Args:
        encoder_config: config of the encoder.
    """
    rates = (getattr(encoder_config, name, None) for name in family_of(encoder_config).dropout_names)
    return next((rate for rate in rates if rate is not None), 0.0)


class ExitFeatures(nn.Module):
    """The encoder family's own classification head without its output layer: dense, activation, (norm,) dropout.

    Args:
        encoder_config: config of the encoder.
    """

    def __init__(self, encoder_config: PreTrainedConfig) -> None:
        super().__init__()
        family = family_of(encoder_config)
        size = encoder_config.hidden_size
        self.dense = nn.Linear(size, size)
        self.activation = ACT2FN[getattr(encoder_config, family.activation, family.activation)]
        self.norm = nn.LayerNorm(size, eps=encoder_config.norm_eps) if "norm" in family.classifier else nn.Identity()
        self.dropout = nn.Dropout(dropout_rate(encoder_config))

    def features(self, pooled: Tensor) -> Tensor:
        """Return the input of the output layer, after dropout: (batch, hidden) -> (batch, hidden)."""
        return self.dropout(self.norm(self.activation(self.dense(pooled))))


class ExitHead(ExitFeatures):
    """The encoder family's own classification head.

    For BERT, the pooler and classifier of the original paper; for DistilBERT, its pre-classifier with ReLU. So the
    head of a fine-tuned classifier can be copied into the last exit, weight by weight.

    Args:
        encoder_config: config of the encoder.
        num_labels: number of logits; 1 for regression.
    """

    def __init__(self, encoder_config: PreTrainedConfig, num_labels: int) -> None:
        super().__init__(encoder_config)
        self.classifier = output_layer(encoder_config.hidden_size, num_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, hidden) -> logits (batch, labels)."""
        return self.classifier(self.features(pooled))


def mean_pool(hidden: Tensor, padding: Tensor | None) -> Tensor:
    """Return the mean over the tokens, without padding.

    Args:
        hidden: states, shape `(batch, tokens, hidden)`.
        padding: 1 for tokens, 0 for padding, shape `(batch, tokens)`; None without padding.

    Returns:
        Shape `(batch, hidden)`.

    Examples:
        >>> import torch
        >>> hidden, padding = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
        >>> mean_pool(hidden, padding).tolist(), mean_pool(hidden[:, :2], None).tolist()
        ([[2.0]], [[2.0]])
    """
    weights = hidden.new_ones(hidden.shape[:2]) if padding is None else padding
    return (hidden * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True)


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


def patience(logits: Tensor, memory: State, tolerance: float | None = None) -> tuple[Tensor, State]:
    """Count how many exits in a row agreed with the exit before them. PABEE, section 3.2.

    Two exits agree if they predict the same class; in regression, if they differ by less than `tolerance`. An exit
    with NaN or infinite logits agrees with none.

    Args:
        logits: logits of this exit, shape `(batch, labels)`.
        memory: the memory that the call for the previous exit returned; () at the first exit.
        tolerance: for regression, in the unit of the labels; None for classification.

    Returns:
        The count, shape `(batch,)`, 0 at the first exit; and the memory: predictions and count, each `(batch,)`.

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
    predictions = logits.squeeze(-1).float() if logits.shape[-1] == 1 else logits.argmax(dim=-1).float()
    predictions = predictions.masked_fill(~logits.isfinite().all(dim=-1), torch.nan)
    if not memory:
        return torch.zeros_like(predictions), (predictions, torch.zeros_like(predictions))
    previous, count = memory
    agree = predictions == previous if tolerance is None else (predictions - previous).abs() < tolerance
    count = torch.where(agree, count + 1, torch.zeros_like(count))
    return count, (predictions, count)


class Criterion(NamedTuple):
    """An exit criterion that needs only the logits, so that every method allows it.

    Attributes:
        score: computes the readiness score, logits `(batch, labels)` -> `(batch,)`; None for patience, which also
            needs the previous exits.
        ready: compares score and threshold, -> bool `(batch,)`: True where a row leaves.
        bounds: number of labels, number of exits -> lowest and highest threshold.
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
        logits: shape `(samples, labels)`; samples with NaN or infinite logits are ignored, since they never exit.
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
