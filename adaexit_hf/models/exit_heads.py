"""Exit heads: the layers that turn the states of an exit into logits. Shared by several methods.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import math
from typing import Any
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .encoder_layers import family_of
from .encoder_layers import recording

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


class Head(nn.Module):
    """Base class of exit heads: features of an exit, and the output layer.

    Attributes:
        size: number of features.
        classifier: the output layer; missing or None where the features alone are used.
    """

    size: int
    classifier: Any

    def features(self, pooled: Tensor, hidden: Tensor, padding: Tensor | None) -> Tensor:
        """Return the input of the output layer, after dropout, shape `(batch, size)`.

        Args:
            pooled: sentence vectors, as `sentence_vector` returns them.
            hidden: states, shape `(batch, tokens, hidden)`; only read by heads that read all tokens.
            padding: 1 for tokens, 0 for padding, shape `(batch, tokens)`; None without padding.
        """
        raise NotImplementedError

    def forward(self, pooled: Tensor, hidden: Tensor, padding: Tensor | None) -> Tensor:
        """Return logits, shape `(batch, labels)`; arguments as of `features`."""
        return self.classifier(self.features(pooled, hidden, padding))


class ExitFeatures(Head):
    """The encoder family's own classification head without its output layer: dense, activation, (norm,) dropout.

    Args:
        encoder_config: config of the encoder.
    """

    def __init__(self, encoder_config: PreTrainedConfig) -> None:
        super().__init__()
        family = family_of(encoder_config)
        self.size = encoder_config.hidden_size
        self.dense = nn.Linear(self.size, self.size)
        self.activation = ACT2FN[getattr(encoder_config, family.activation, family.activation)]
        self.norm = (
            nn.LayerNorm(self.size, eps=encoder_config.norm_eps) if "norm" in family.classifier else nn.Identity()
        )
        self.dropout = nn.Dropout(dropout_rate(encoder_config))

    def features(self, pooled: Tensor, hidden: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Return the features of sentence vectors, shape `(batch, hidden)`; the other arguments are not used."""
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
        self.classifier = output_layer(self.size, num_labels)

    def forward(self, pooled: Tensor, hidden: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Return logits of sentence vectors, shape `(batch, labels)`; the other arguments are not used."""
        return self.classifier(self.features(pooled))


class TanhHead(Head):
    """Base class of heads with f = dropout(tanh(W x)), where x is what a subclass reads, and logits V f."""

    def add_layers(self, encoder_config: PreTrainedConfig, inputs: int, num_labels: int | None) -> None:
        """Add W, V and the dropout.

        Args:
            encoder_config: config of the encoder.
            inputs: size of x.
            num_labels: number of logits; None without V.
        """
        self.size = encoder_config.hidden_size
        self.dense = nn.Linear(inputs, self.size)
        self.dropout = nn.Dropout(dropout_rate(encoder_config))
        self.classifier = None if num_labels is None else output_layer(self.size, num_labels)

    def features_of(self, read: Tensor) -> Tensor:
        """Return f, shape `(batch, hidden)`, for x of shape `(batch, inputs)`."""
        return self.dropout(self.dense(read).tanh())


class AttentionPool(TanhHead):
    """A head that chooses the tokens it reads: f = dropout(tanh(W [s; q])), logits = V f.

    s is the sentence vector. q has eight parts, or fewer if 8 does not divide the hidden size: part i is a weighted
    mean of the i-th eighth of the tokens' states, with weights softmax(w_i h + b_i) over the tokens. Every exit learns
    queries of its own. Not from a paper on early exit; attention pooling with learned queries is that of Yang et al.,
    NAACL 2016.

    Args:
        encoder_config: config of the encoder.
        num_labels: number of logits; None without output layer, for `features` alone.
    """

    def __init__(self, encoder_config: PreTrainedConfig, num_labels: int | None = None) -> None:
        super().__init__()
        size = encoder_config.hidden_size
        self.query = nn.Linear(size, math.gcd(8, size))
        self.add_layers(encoder_config, 2 * size, num_labels)

    def features(self, pooled: Tensor, hidden: Tensor, padding: Tensor | None) -> Tensor:
        """Return f, shape `(batch, hidden)`; arguments as in the base class."""
        scores = self.query(hidden).float()  # (batch, tokens, queries)
        if padding is not None:
            scores = scores.masked_fill(padding.unsqueeze(-1) == 0, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=1).to(hidden.dtype)
        parts = hidden.unflatten(-1, (weights.shape[-1], -1))  # (batch, tokens, queries, hidden / queries)
        queried = torch.einsum("btq,btqs->bqs", weights, parts).flatten(1)
        return self.features_of(torch.cat([pooled, queried.to(pooled.dtype)], dim=-1))


class SegmentPair(TanhHead):
    """A head for pairs of texts: f = dropout(tanh(W [u; v; |u - v|; u * v])), logits = V f.

    u and v are the means of the two texts' states. Not from a paper on early exit; the comparison of two sentence
    vectors is that of InferSent (Conneau et al., EMNLP 2017) and Sentence-BERT.

    Args:
        encoder_config: config of the encoder.
        num_labels: number of logits; None without output layer, for `features` alone.
    """

    def __init__(self, encoder_config: PreTrainedConfig, num_labels: int | None = None) -> None:
        super().__init__()
        self.add_layers(encoder_config, 4 * encoder_config.hidden_size, num_labels)

    def features(self, pooled: Tensor, hidden: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """Return f, shape `(batch, hidden)`, of u and v side by side; the other arguments are not used."""
        first, second = pooled.chunk(2, dim=-1)
        return self.features_of(torch.cat([pooled, (first - second).abs(), first * second], dim=-1))


class BranchLinear(nn.Linear):
    """A linear layer initialized as in the code of FastBERT's authors: uniformly within 1 / sqrt(inputs)."""


class AttentionBlock(Head):
    """FastBERT's branch classifier (section 3.1): narrow features, self-attention, the sentence vector, two layers.

    Args:
        encoder_config: config of the encoder.
        num_labels: number of logits; None without output layer, for `features` alone.
        pooling: the sentence vector, "first" (token) or "mean" (over the tokens).
        size: number of features, a multiple of `heads`.
        heads: number of attention heads.
    """

    def __init__(
        self,
        encoder_config: PreTrainedConfig,
        num_labels: int | None = None,
        pooling: str = "first",
        size: int = 128,
        heads: int = 2,
    ) -> None:
        super().__init__()
        self.size, self.heads, self.pooling = size, heads, pooling
        self.dropout = dropout_rate(encoder_config)  # of attention weights
        self.narrow = BranchLinear(encoder_config.hidden_size, size)
        self.query = BranchLinear(size, size)
        self.key = BranchLinear(size, size)
        self.value = BranchLinear(size, size)
        self.output = BranchLinear(size, size)
        self.dense = BranchLinear(size, size)
        self.classifier = None
        if num_labels is not None:
            self.classifier = SingleUnit(size) if num_labels == 1 else BranchLinear(size, num_labels)

    def features(self, pooled: Tensor, hidden: Tensor, padding: Tensor | None) -> Tensor:
        """Return the input of the output layer, shape `(batch, size)`; arguments as in the base class."""
        tokens = self.narrow(hidden).tanh()  # (batch, tokens, size)
        if self.pooling == "first":
            pooled = self._attend(tokens[:, :1], tokens, padding)[:, 0]  # only this token's output is used
        else:
            pooled = mean_pool(self._attend(tokens, tokens, padding), padding)
        # Linear, so it gives the same after pooling as before, at a lower cost.
        return self.dense(self.output(pooled)).tanh()

    def _attend(self, queried: Tensor, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Attention with queries (batch, queries, size) over (batch, tokens, size) -> (batch, queries, size)."""
        query, key, value = (  # (batch, heads, queries or tokens, size / heads)
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(queried), self.key(tokens), self.value(tokens))
        )
        mask = None if padding is None else padding.bool()[:, None, None]
        rate = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, mask, rate)
        return attended.transpose(1, 2).flatten(-2)


def exit_head(config: Any, **options: Any) -> Head:
    """Build one exit's head, of the kind that the config says; `forward` takes sentence vectors, states and padding.

    Args:
        config: the method's config.
        **options: further arguments of `AttentionBlock`.
    """
    return _head(config, config.num_labels, options)


def exit_heads(config: Any, **options: Any) -> nn.ModuleList:
    """Build the heads of all exits, each of its own, the last one as `last_exit_head` says.

    Args:
        config: the method's config.
        **options: as in `exit_head`.
    """
    heads = [exit_head(config, **options) for _ in config.exit_layers]
    if config.last_exit_head is not None:
        heads[-1] = ExitHead(config.encoder_config, config.num_labels)
    return nn.ModuleList(heads)


def exit_features(config: Any) -> Head:
    """Build an exit's head without its output layer, of the kind that the config says; see its `features`.

    Args:
        config: the method's config.
    """
    return _head(config, None, {})


def _head(config: Any, num_labels: int | None, options: dict[str, Any]) -> Head:
    encoder = config.encoder_config
    if config.head == "attention-pool":
        return AttentionPool(encoder, num_labels)
    if config.head == "pair":
        return SegmentPair(encoder, num_labels)
    if config.head == "attention-block":
        return AttentionBlock(encoder, num_labels, config.pooling, **options)
    return ExitFeatures(encoder) if num_labels is None else ExitHead(encoder, num_labels)


def second_segment(input_ids: Tensor | None, token_type_ids: Tensor | None, padding: Tensor | None) -> Tensor:
    """Return which tokens belong to the second text of a pair.

    A row with token types has those; otherwise, as for RoBERTa, MPNet and DistilBERT, the second text begins after the
    first separator. The separator is the id of the row's last token: [SEP] and </s> end both texts. Rows must have
    their special tokens: without them, a last word that occurs twice would be taken for the separator.

    Args:
        input_ids: token ids with special tokens, padding on the right, shape `(batch, tokens)`; None if unknown.
        token_type_ids: 0 for the first text, 1 for the second, shape `(batch, tokens)`; None if unknown.
        padding: 1 for tokens, 0 for padding, shape `(batch, tokens)`; None without padding.

    Returns:
        1 for tokens of the second text, 0 for others and padding, int64, shape `(batch, tokens)`.

    Raises:
        ValueError: neither ids nor token types are known.

    Examples:
        >>> ids = torch.tensor([[0, 5, 6, 2, 2, 7, 2, 1]])  # RoBERTa's <s> a </s></s> b </s> <pad>
        >>> second_segment(ids, None, torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])).tolist()
        [[0, 0, 0, 0, 1, 1, 1, 0]]
    """
    known = input_ids if token_type_ids is None else token_type_ids
    if known is None:
        raise ValueError(
            "token_type_ids: missing; exit_head='pair' needs to know which tokens belong to the second text: pass "
            "input_ids, or token_type_ids with inputs_embeds"
        )
    real = torch.ones_like(known) if padding is None else (padding != 0).long()
    types = None if token_type_ids is None else (token_type_ids != 0).long() * real
    if input_ids is None:
        return types  # type: ignore[return-value]  # one of the two is known
    places = torch.arange(real.shape[1], device=real.device)[None]
    last = (real * places).argmax(dim=1, keepdim=True)  # (batch, 1)
    first_separator = ((input_ids == input_ids.gather(1, last)) * real).argmax(dim=1, keepdim=True)
    separated = (places > first_separator).long() * real
    return separated if types is None else torch.where(types.any(dim=1, keepdim=True), types, separated)


def check_pairs(second: Tensor, first_row: int = 0) -> None:
    """Check that every row is a pair of texts; nothing is checked while a graph is recorded.

    Args:
        second: as `second_segment` returns it, shape `(batch, tokens)`.
        first_row: number of the first row, for the error message.

    Raises:
        ValueError: a row is a single text.
    """
    if not recording() and not bool(second.any(dim=1).all()):
        row = first_row + int((~second.any(dim=1)).nonzero()[0, 0])
        raise ValueError(
            f"input_ids: row {row} is a single text, but exit_head='pair' compares two; pass pairs, "
            "tokenizer(first_texts, second_texts), or train with another exit_head, e.g. 'attention-pool'"
        )


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
