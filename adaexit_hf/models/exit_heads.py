"""Exit heads, and the pure functions that turn logits into a readiness score.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .encoder_layers import family_of
from .exit_types import State


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


def dact_combine(answer: Tensor, remaining: Tensor, output: Tensor, halting: Tensor) -> tuple[Tensor, Tensor]:
    """One step of DACT's accumulation: a_n = y_n p_(n-1) + a_(n-1) (1 - p_(n-1)), then p_n = p_(n-1) h_n.

    DACT-BERT, Algorithm 1, lines 8 and 10. Start with a_0 = 0 and p_0 = 1.

    Args:
        answer: a_(n-1), probabilities, shape (batch, labels).
        remaining: p_(n-1) in [0, 1], shape (batch,): how much later layers may still change.
        output: y_n, probabilities of this layer, shape (batch, labels).
        halting: h_n in [0, 1], shape (batch,); 0 stops, 1 goes on.

    Returns:
        a_n (batch, labels) and p_n (batch,).

    >>> answer, remaining = torch.tensor([[0.9, 0.1]]), torch.tensor([0.5])
    >>> answer, remaining = dact_combine(answer, remaining, torch.tensor([[0.2, 0.8]]), torch.tensor([0.1]))
    >>> [round(value, 4) for value in answer[0].tolist()], round(remaining.item(), 4)
    ([0.55, 0.45], 0.05)
    """
    weight = remaining[:, None]
    return output * weight + answer * (1 - weight), remaining * halting


def dact_margin(answer: Tensor, remaining: Tensor, steps_left: int, bound: str = "tight") -> Tensor:
    """How far the answer is from being overturned by any future; at 0 and above the class cannot change.

    `tight`: (1 - p)^d (1 + a* - a_ru) - 1, in [-1, 1]; necessary and sufficient. `paper`: a* (1 - p)^d - a_ru - p d
    (DACT-BERT, Eq. 2); sound, but exits later.

    Args:
        answer: a_n, probabilities, shape (batch, labels) with at least two labels.
        remaining: p_n in [0, 1], shape (batch,).
        steps_left: d = N - n, exits still to come.

    >>> answer, remaining = torch.tensor([[0.95, 0.05]]), torch.tensor([0.125])
    >>> round(dact_margin(answer, remaining, 4).item(), 4), round(dact_margin(answer, remaining, 4, "paper").item(), 4)
    (0.1137, 0.0069)
    """
    wide = torch.float32 if answer.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    answer, remaining = answer.to(wide), remaining.to(wide)
    top = answer.topk(2, dim=-1).values
    log_kept = torch.special.xlog1py(steps_left, -remaining)  # ln (1 - p)^d, and 0 for d = 0 even at p = 1
    if bound == "paper":
        return (top[:, 0] * log_kept.exp() - top[:, 1] - remaining * steps_left).float()
    # expm1 of a sum of logs keeps the sign right where the margin is tiny.
    return torch.expm1(log_kept + torch.log1p(top[:, 0] - top[:, 1])).float()


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
