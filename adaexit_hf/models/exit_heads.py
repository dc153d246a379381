"""Exit heads: the layers that turn the states of an exit into logits. Shared by several methods.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import NamedTuple

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


class SingleUnit(nn.Module):
    """A linear layer with one output, computed as a product and a sum in float32.

    The kernel of `nn.Linear(size, 1)` rounds differently if the weights are not aligned in memory, as weights that
    were loaded may be; a reloaded model would differ from the saved one in the last bit. It is no `nn.Linear`, so that
    what quantizes linear layers leaves it as it is.

    Args:
        size: number of inputs.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        linear = nn.Linear(size, 1)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, size) -> (batch, 1)."""
        return (pooled.float() * self.weight.float()).sum(dim=-1, keepdim=True) + self.bias.float()


def output_layer(size: int, num_labels: int) -> nn.Module:
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
