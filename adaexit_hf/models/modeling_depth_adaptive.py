"""Faster Depth-Adaptive Transformers. Liu, Meng, Zhou, Chen, Xu. AAAI 2021. https://arxiv.org/abs/2004.13542

Every token t has a depth d(t), the number of layers that it runs, known before the encoder runs (Eq. 5):

    h_t^n = h_t^(n-1) if n > d(t), else the output of layer n for token t.

So the state of a token that has reached its depth no longer changes, but other tokens still attend to it. A text
leaves after the layer of its deepest token, n_max. Maximum and mean over its tokens, v = ReLU([max h^n_max; mean
h^n_max]), are the input of a softmax layer (Eq. 6), trained with cross-entropy (Eq. 7) or, for regression, mean
squared error. `depth_source` says where the depths come from:

* "mutual_information": a table with the depth of every word piece, computed from its mutual information with the
  labels (Eq. 2, 3; see `mutual_information_depths`); the table is part of the checkpoint;
* "reconstruction": the input `token_depths`, which `adaexit_hf.data.reconstruction` computes for a data set (Eq. 4);
* "halting": the paper's baseline, after Elbayad et al., "Depth-Adaptive Transformer", ICLR 2020: a linear layer, the
  halting unit, predicts each token's depth from its state after layer 1. In training all tokens run all layers; every
  exit is trained with the task loss, and the halting unit with cross-entropy. Its target is the same for all tokens of
  a text: argmax_n (1[the prediction at exit n is right] - penalty n).

Deliberate differences from the paper: its W has shape (labels, hidden), although v has size 2 hidden. Padding is left
out of maximum and mean, which the paper does not specify. The readiness score is the share of tokens that have reached
their depth; with a threshold below 1 a text leaves earlier, with a classifier that was not trained for it. Each text
of a batch leaves after its own n_max.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils import logging

from .padded_batches import read_rows
from .padded_batches import row_labels
from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .configuration_early_exit import check_choice
from .configuration_early_exit import check_number
from .early_exit_loop import exit_layer_numbers
from .encoder_layers import Context
from .encoder_layers import recording
from .encoder_layers import run_tokens
from .exit_criteria import correct
from .exit_heads import Exit
from .exit_heads import Head
from .exit_heads import State
from .exit_heads import exit_head
from .exit_heads import mean_pool
from .exit_heads import output_layer
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import EarlyExitOutput
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage

__all__ = ["DepthAdaptiveConfig", "DepthAdaptiveForSequenceClassification", "DepthAdaptiveModel"]

logger = logging.get_logger(__name__)
SOURCES = ("mutual_information", "reconstruction", "halting")


class DepthAdaptiveConfig(EarlyExitConfig):
    """Config of the depth-adaptive transformer.

    Args:
        encoder_config: as in `EarlyExitConfig`.
        exit_threshold: the share of a text's tokens, from 0 to 1, that must have reached their depth for the text to
            leave. With 1, the paper's rule, predictions are those of full depth; a smaller share is faster and
            approximate. Default: "default", which is 1, and None with another `exit_criterion` than "depth".
        exit_layers: as in `EarlyExitConfig`.
        depth_source: "mutual_information", "reconstruction" or "halting".
        halting_penalty: with "halting", the penalty per layer in the target of the halting unit, >= 0; 1 is the reward
            of a right prediction.
        halting_weight: with "halting", the weight of the halting unit's loss, >= 0; that of the task loss is 1.
        **kwargs: further arguments of `EarlyExitConfig`, except `exit_pooling="first"`, since the classifier reads all
            tokens (Eq. 6).

    Raises:
        ValueError: an argument is out of range, or not used with the others; see also `EarlyExitConfig`.
        TypeError: an argument is of the wrong type.

    Examples:
        >>> DepthAdaptiveConfig().exit_threshold, DepthAdaptiveConfig(exit_criterion="entropy").exit_threshold
        (1.0, None)
    """

    model_type = "depth-adaptive"
    paper_head: ClassVar[str] = "maximum-mean"
    supports_regression: ClassVar[bool] = True
    supports_multi_label: ClassVar[bool] = True
    own_criterion: ClassVar[str | None] = "depth"
    default_threshold: ClassVar[float | None] = 1.0

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        exit_threshold: Threshold | Literal["default"] = "default",
        exit_layers: list[int] | None = None,
        depth_source: str = "mutual_information",
        halting_penalty: float = 0.05,
        halting_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.depth_source = depth_source
        self.halting_penalty = halting_penalty
        self.halting_weight = halting_weight
        super().__init__(encoder_config, exit_threshold, exit_layers, **kwargs)

    def _check_task(self) -> None:
        super()._check_task()
        check_choice("depth_source", self.depth_source, SOURCES)
        check_number("halting_penalty", self.halting_penalty, low=0.0)
        check_number("halting_weight", self.halting_weight, low=0.0)
        if self.depth_source != "halting" and (self.halting_penalty, self.halting_weight) != (0.05, 1.0):
            raise ValueError(
                f"halting_penalty, halting_weight: got {self.halting_penalty}, {self.halting_weight}, which "
                f"depth_source='{self.depth_source}' does not use; leave them out, or pass depth_source='halting'"
            )
        if self.exit_pooling == "first":
            raise ValueError(
                "exit_pooling: got 'first', but this method reads the maximum and the mean over all tokens (Eq. 6); "
                "leave it out"
            )
        if self.multi_label and self.depth_source == "mutual_information":
            raise ValueError(
                "depth_source: got 'mutual_information', which is that of words with one label per text (Eq. 2), not "
                "with problem_type='multi_label_classification'; pass depth_source='reconstruction' or 'halting'"
            )
        if self.num_labels == 1 and self.depth_source != "reconstruction":
            raise ValueError(
                f"depth_source: got '{self.depth_source}', which needs classes, and num_labels=1 has none; pass "
                "depth_source='reconstruction'"
            )


class DepthAdaptiveModel(EarlyExitModel):
    """The encoder of a depth-adaptive checkpoint; every token runs all layers."""

    config_class = DepthAdaptiveConfig


def mutual_information(counts: Tensor, smoothing: float = 0.1) -> Tensor:
    """Return the mutual information of each word's presence with each label, summed over the labels. Eq. 2.

    The marginals are those of the smoothed counts, so that the result is a mutual information, which is never
    negative.

    Args:
        counts: number of texts per word and label, shape `(words + 1, labels)`; the last row counts all texts.
        smoothing: number added to each of the four joint counts (word present or not, label given or not).

    Returns:
        In nats, at least 0, shape `(words,)`.

    Examples:
        >>> counts = torch.tensor([[4, 0], [2, 2], [4, 4]])  # two words, eight texts
        >>> [round(value, 4) for value in mutual_information(counts).tolist()]
        [1.1613, 0.0]
    """
    with_word, totals = counts[:-1].double(), counts[-1].double()
    texts, present = totals.sum(), with_word.sum(dim=1, keepdim=True)
    joint = torch.stack(
        [with_word, present - with_word, totals - with_word, texts - present - totals + with_word]
    ).reshape(2, 2, *with_word.shape)  # (present or not, label given or not, words, labels)
    joint = joint + smoothing
    joint = joint / joint.sum(dim=(0, 1))
    product = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    return torch.special.xlogy(joint, joint / product).sum(dim=(0, 1, 3)).clamp_min(0)


def binned_depths(information: Tensor, depth: int) -> Tensor:
    """Return depths from bins of equal width on -log(information): the more information, the fewer layers.

    Section 2.1. For a word without information, -log 0 is infinite, and a word with hardly any would make the bins so
    wide that all other words share one. So the bins end at the 0.99 quantile, and the words beyond it are in the last
    bin.

    Args:
        information: mutual information of the words that occur, in nats, shape `(words,)`.
        depth: number of layers.

    Returns:
        Depths from 1 to `depth`, int64, shape `(words,)`.

    Examples:
        >>> binned_depths(torch.tensor([0.5, 0.05, 0.005, 0.0]), depth=3).tolist()
        [1, 2, 3, 3]
    """
    scaled = -information.double().clamp_min(torch.finfo(torch.float64).tiny).log()
    informed = scaled[information > 1e-12]
    if not len(informed):
        return torch.full_like(information, depth, dtype=torch.long)
    low, high = informed.min(), informed.quantile(0.99)
    width = (high - low).clamp_min(torch.finfo(torch.float64).tiny) / depth
    return ((scaled - low) / width).clamp(0, depth - 1).long() + 1


def mutual_information_depths(
    texts: Sequence[Sequence[int]],
    labels: Sequence[int],
    vocab_size: int,
    depth: int,
    special_ids: Iterable[int] = (),
    smoothing: float = 0.1,
) -> Tensor:
    """Return the depth of every word piece of the vocabulary. Eq. 2, 3.

    Word pieces that do not occur get `depth`. Special tokens, and tokens that occur in every text, get 1: the deepest
    token decides how many layers run, and these are independent of the label.

    Args:
        texts: token ids of the training texts.
        labels: class of each text.
        vocab_size: size of the encoder's vocabulary.
        depth: number of layers.
        special_ids: ids of special tokens.
        smoothing: as in `mutual_information`.

    Returns:
        Depths from 1 to `depth`, shape `(vocab_size,)`.

    Raises:
        ValueError: there are no texts, or all are of one class; or a token id is not in the vocabulary.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(
            f"dataset: got {len(texts)} texts with {len(classes)} classes; mutual information needs at least two "
            "classes, pass the whole training set"
        )
    highest = max((max(text) for text in texts if len(text)), default=0)
    if highest >= vocab_size:
        raise ValueError(
            f"dataset: has the token id {highest}, but the encoder's vocabulary has {vocab_size} tokens; tokenize "
            "with its tokenizer"
        )
    counts = torch.zeros(vocab_size + 1, len(classes), dtype=torch.float64)
    for text, label in zip(texts, labels, strict=True):
        column = classes.index(label)
        counts[list(set(text)), column] += 1
        counts[-1, column] += 1
    texts_with = counts[:-1].sum(dim=1)
    occurs = texts_with > 0
    depths = torch.full((vocab_size,), depth)
    rows = torch.cat([occurs, occurs.new_ones(1)])
    depths[occurs] = binned_depths(mutual_information(counts[rows], smoothing), depth)
    depths[texts_with == len(texts)] = 1
    depths[[token for token in special_ids if token < vocab_size]] = 1
    return depths


class DepthTable(nn.Module):
    """The depth of every word piece, shape `(vocabulary,)`; not trained. 0 is not estimated: all layers are run.

    Args:
        vocab_size: size of the encoder's vocabulary.
        depth: number of layers.
    """

    def __init__(self, vocab_size: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.weight = nn.Parameter(torch.zeros(vocab_size), requires_grad=False)

    @property
    def estimated(self) -> bool:
        """Whether any word piece has an estimated depth."""
        return bool(self.weight.any())

    @torch.no_grad()
    def resize(self, vocab_size: int) -> None:
        """Change the vocabulary; new word pieces run all layers.

        Args:
            vocab_size: new size of the vocabulary.
        """
        resized = self.weight.new_zeros(vocab_size)
        common = min(vocab_size, len(self.weight))
        resized[:common] = self.weight[:common]
        self.weight = nn.Parameter(resized, requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the depths of token ids, (batch, tokens) -> int64 (batch, tokens); unknown ids run all layers."""
        depths = self.weight[input_ids.clamp(max=len(self.weight) - 1)].round().long()
        return torch.where((input_ids < len(self.weight)) & (depths > 0), depths, self.depth)


class DepthAdaptiveForSequenceClassification(EarlyExitForSequenceClassification):
    """Faster Depth-Adaptive Transformers: every token has a depth; a text leaves after that of its deepest token.

    The readiness score is the share of a text's tokens that have reached their depth, from 0 to 1; a text leaves at or
    above the threshold.

    Args:
        config: the config.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig
        >>> from adaexit_hf import DepthAdaptiveConfig, DepthAdaptiveForSequenceClassification
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> model = DepthAdaptiveForSequenceClassification(DepthAdaptiveConfig(encoder, num_labels=2)).eval()
        >>> texts = [([1, 5, 6, 2], 0), ([1, 5, 7, 2], 0), ([1, 6, 8, 2], 1), ([1, 7, 8, 2], 1)]
        >>> model.prepare([{"input_ids": input_ids, "label": label} for input_ids, label in texts])
        >>> model.depth_table(torch.arange(5, 9)).tolist()  # words 5 and 8 tell the classes apart, 6 and 7 do not
        [1, 3, 3, 1]
        >>> model(torch.tensor([[1, 5, 8, 2], [1, 5, 6, 2]])).exit_layer.tolist()
        [1, 3]
    """

    config_class = DepthAdaptiveConfig
    own_ready = torch.ge
    spares_tokens = True
    paper: ClassVar[Paper] = Paper(
        title="Faster Depth-Adaptive Transformers",
        authors="Yijin Liu, Fandong Meng, Jie Zhou, Yufeng Chen, Jinan Xu",
        venue="AAAI 2021",
        url="https://arxiv.org/abs/2004.13542",
        bibtex="""@inproceedings{liu-etal-2021-faster,
  title = {Faster Depth-Adaptive Transformers},
  author = {Liu, Yijin and Meng, Fandong and Zhou, Jie and Chen, Yufeng and Xu, Jinan},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume = {35},
  pages = {13424--13432},
  year = {2021}
}""",
    )

    def __init__(self, config: DepthAdaptiveConfig) -> None:
        super().__init__(config)
        encoder = config.encoder_config
        # One classifier for all exits.
        own = self._has_papers_head
        self.classifier = output_layer(2 * encoder.hidden_size, config.num_labels) if own else exit_head(config)
        source = config.depth_source
        has_table = source == "mutual_information"
        self.depth_table = DepthTable(encoder.vocab_size, encoder.num_hidden_layers) if has_table else None
        self.halting = nn.Linear(encoder.hidden_size, len(config.exit_layers)) if source == "halting" else None
        # Whether training has checked that the table is estimated; once only, since the CPU waits for the device.
        self._checked_table = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DepthTable):
            init.zeros_(module.weight)

    @property
    def reads_all_tokens(self) -> bool:
        return True

    @property
    def _has_papers_head(self) -> bool:
        return self.config.head == self.config.paper_head

    @property
    def classifiers(self) -> list[nn.Module]:
        own = self._has_papers_head
        return [self.classifier if own else cast(Head, self.classifier).classifier]

    @property
    def objectives(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("task",) if self.halting is None else ("anytime", "task")

    @property
    def stages(self) -> tuple[Stage, ...]:
        name = self.objectives[0]
        return (Stage(name, (name,), frozen=() if self.depth_table is None else ("depth_table",)),)

    @property
    def prepared(self) -> bool:
        return super().prepared and (self.depth_table is None or self.depth_table.estimated)

    def prepare(self, dataset: Any, tokenizer: Any = None) -> None:
        """Prepare as in the base class; also fill the depth table, if the model has one.

        Args:
            dataset: as in the base class.
            tokenizer: as in the base class.

        Raises:
            ValueError: as in the base class and in `estimate_depths_by_mutual_information`.
        """
        super().prepare(dataset, tokenizer)
        if self.depth_table is not None:
            rows = read_rows(dataset, tokenizer, self.config)
            self.estimate_depths_by_mutual_information(rows)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the vocabulary as in Transformers; new tokens run all layers until depths are estimated again.

        Args:
            *args: as in Transformers.
            **kwargs: as in Transformers.
        """
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.depth_table is not None:
            self.depth_table.resize(self.config.encoder_config.vocab_size)
        return embeddings

    @torch.no_grad()
    def estimate_depths_by_mutual_information(
        self, dataset: Iterable[Mapping[str, Any]], special_ids: Iterable[int] = (), smoothing: float = 0.1
    ) -> Tensor:
        """Fill the depth table from labelled texts, before training. Eq. 2, 3.

        Args:
            dataset: the training set only: tokenized rows with `input_ids` and `label` or `labels`; positions where
                `attention_mask` is 0 are ignored.
            special_ids: ids of tokens that get depth 1, in addition to the special tokens of the encoder's config and
                the tokens that occur in every text. Leave out the unknown token: unknown words should run all layers.
            smoothing: number added to each of the four joint counts, > 0; see `mutual_information`.

        Returns:
            The table: depths from 1 to the number of layers, shape `(vocabulary,)`; word pieces that do not occur run
            all layers.

        Raises:
            ValueError: another `depth_source`; `dataset` has no rows, no labels, or a single class; or a token id is
                not in the vocabulary.
        """
        if self.depth_table is None:
            raise ValueError(
                f"depth_source: '{self.config.depth_source}' has no table; build the model with "
                "depth_source='mutual_information'"
            )
        if check_number("smoothing", smoothing) <= 0:
            raise ValueError(f"smoothing: got {smoothing}; pass a number > 0, the paper's is 0.1")
        rows = read_rows(dataset, None, self.config)
        labels = row_labels(rows, self.config.num_labels)
        if labels is None:
            raise ValueError("dataset: has no labels; pass the training set, with a 'label' column")
        texts = [
            [token for token, mask in zip(row["input_ids"], row["attention_mask"], strict=True) if mask]
            if "attention_mask" in row
            else row["input_ids"]
            for row in rows
        ]
        encoder = self.config.encoder_config
        names = ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
        special = [token for token in (getattr(encoder, name, None) for name in names) if token is not None]
        special += special_ids
        table = mutual_information_depths(
            texts, labels.tolist(), encoder.vocab_size, encoder.num_hidden_layers, special, smoothing
        )
        self.depth_table.weight.copy_(table)
        return table

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        objective: str | None = None,
        exit_threshold: Threshold = None,
        early_exit: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        token_depths: Tensor | None = None,
    ) -> EarlyExitOutput | tuple[Any, ...]:
        """Classify a batch of texts as in the base class, with a depth for every token.

        Args:
            input_ids: as in the base class.
            attention_mask: as in the base class.
            token_type_ids: as in the base class.
            position_ids: as in the base class.
            inputs_embeds: as in the base class.
            labels: as in the base class.
            objective: as in the base class.
            exit_threshold: as in the base class.
            early_exit: as in the base class.
            output_hidden_states: as in the base class.
            output_attentions: as in the base class.
            return_dict: as in the base class.
            token_depths: number of layers that each token runs, integers from 1 to the number of layers, any value at
                padding, shape `(batch, tokens)`. Required with `depth_source="reconstruction"`; otherwise used in
                place of the model's own depths.

        Returns:
            The predictions, exit layers and loss.

        Raises:
            ValueError: as in the base class; or `token_depths` is missing where it is required, of another shape, or
                out of range.
        """
        tokens = inputs_embeds if input_ids is None else input_ids
        anytime = self.halting is not None and (self.training or objective == "anytime")
        if anytime and token_depths is None and tokens is not None:
            deepest = self.config.encoder_config.num_hidden_layers
            token_depths = torch.full(tokens.shape[:2], deepest, device=tokens.device)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "token_depths": token_depths,
        }
        return self._classify(
            inputs, labels, objective, exit_threshold, early_exit, output_hidden_states, output_attentions, return_dict
        )

    def embed(self, inputs: dict[str, Tensor | None]) -> tuple[Tensor, Context]:
        token_depths, input_ids = inputs.get("token_depths"), inputs.get("input_ids")
        hidden, context = super().embed({name: inputs[name] for name in inputs if name != "token_depths"})
        padding = context.padding
        if token_depths is not None:
            depths = self._checked_depths(token_depths, hidden.shape[:2], padding)
        elif self.config.depth_source == "reconstruction":
            raise ValueError(
                "token_depths: missing; depth_source='reconstruction' needs them, call "
                "estimate_depths_by_reconstruction(dataset, ...) first, or pass token_depths=..."
            )
        else:
            depths = self._predicted_depths(input_ids, hidden)
        tokens = depths.new_ones(depths.shape) if padding is None else padding.to(depths.dtype)
        per_token = context.per_token | {"depths": depths * tokens}
        if token_depths is not None:
            per_token |= {"given": token_depths}
        return hidden, context._replace(per_token=per_token)

    def _predicted_depths(self, input_ids: Tensor | None, hidden: Tensor) -> Tensor:
        """Return the depths that are known before layer 1, (batch, tokens); the halting unit changes them after it."""
        deepest = torch.full(hidden.shape[:2], self.config.encoder_config.num_hidden_layers, device=hidden.device)
        if self.depth_table is None or recording() and input_ids is None:
            return deepest
        if input_ids is None:
            if self.depth_table.estimated:
                raise ValueError(
                    "inputs_embeds: the depth table needs token ids; pass the depths, too, "
                    "token_depths=model.depth_table(input_ids)"
                )
            return deepest
        if self.training and not self._checked_table and not self.depth_table.estimated:
            logger.warning(
                "the depths of words are not estimated, so every token runs all layers; before training call "
                "model.prepare(train_dataset) or model.estimate_depths_by_mutual_information(train_dataset)"
            )
        self._checked_table = self._checked_table or self.training
        return self.depth_table(input_ids)

    def _checked_depths(self, depths: Tensor, shape: torch.Size, padding: Tensor | None) -> Tensor:
        if depths.shape != shape:
            raise ValueError(
                f"token_depths: got shape {tuple(depths.shape)} for tokens of shape {tuple(shape)}; were the depths "
                "made with another tokenizer? Estimate them again on these input_ids"
            )
        if not recording():
            highest = self.config.encoder_config.num_hidden_layers
            real = depths if padding is None else depths[padding.bool()]
            low, high = torch.stack(real.aminmax()).tolist() if real.numel() else (1, 1)
            if low < 1 or high > highest:
                raise ValueError(
                    f"token_depths: got {low if low < 1 else high}; this encoder has layers 1 to {highest}. Estimate "
                    "the depths with an encoder of the same depth"
                )
        return depths.long()

    def layer_step(
        self, index: int, layer: nn.Module, hidden: Tensor, context: Context, whole: bool
    ) -> tuple[Tensor, Tensor | None, Context]:
        depths = context.per_token["depths"]
        active = depths > index
        # In training it runs for all tokens, so that dropout and activation checkpointing are the encoder's own.
        whole = whole or self.training
        hidden, attention = run_tokens(self.encoder, index, layer, hidden, context, active, self.recompute, whole)
        if index == 0 and self.halting is not None:
            halting = self.halting(hidden)
            if "given" not in context.per_token:
                layers = exit_layer_numbers(self.config, hidden.device)
                depths = torch.where(depths > 0, layers[halting.argmax(dim=-1)], 0)
            context = context._replace(per_token=context.per_token | {"depths": depths, "halting": halting})
        return hidden, attention, context

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        depths = context.per_token["depths"]
        tokens = depths > 0
        tokens = tokens | ~tokens.any(dim=1, keepdim=True)  # a text of nothing but padding
        if self._has_papers_head:
            highest = hidden.masked_fill(~tokens.unsqueeze(-1), torch.finfo(hidden.dtype).min).amax(dim=1)
            logits = self.classifier(torch.cat([highest, mean_pool(hidden, tokens)], dim=-1).relu())
        else:
            logits = self.classifier(pooled, hidden, context.padding)
        score = None
        if self.config.exit_criterion == "depth":
            at_depth = tokens & (depths <= self.config.exit_layers[index])
            score = at_depth.sum(dim=1) / tokens.sum(dim=1)
        halting = context.per_token.get("halting")
        return Exit(logits, score, () if halting is None else (halting, tokens)), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Compute the loss of an objective.

        Args:
            exits: as in the base class.
            labels: as in the base class.
            objective: "task", the task loss at full depth (Eq. 7); or, with `depth_source="halting"`, "anytime", the
                mean task loss of all exits plus the weighted loss of the halting unit.
        """
        if objective == "task":
            return self.task_loss(exits[-1].logits, labels)
        task_loss = torch.stack([self.task_loss(exit.logits, labels) for exit in exits]).mean()
        halting, tokens = exits[-1].extras
        right = torch.stack([correct(exit.logits.detach(), labels) for exit in exits], dim=1)
        target = best_layer(right, self.config.halting_penalty)  # (batch,)
        token_target = target[:, None].expand(tokens.shape)[tokens]
        halting_loss = functional.cross_entropy(halting[tokens].float(), token_target)
        return task_loss + self.config.halting_weight * halting_loss


def best_layer(right: Tensor, penalty: float) -> Tensor:
    """Return the exit that is right at the least cost, argmax_n (1[exit n is right] - penalty n).

    The correctness oracle of Elbayad et al., for one label per text.

    Args:
        right: whether the prediction at each exit is right, shape `(batch, exits)`.
        penalty: cost of a layer; 1 is the reward of a right prediction.

    Returns:
        Indices of exits, from 0, shape `(batch,)`.

    Examples:
        >>> best_layer(torch.tensor([[False, True, True], [False, False, False]]), penalty=0.1).tolist()
        [1, 0]
    """
    cost = penalty * torch.arange(1, right.shape[1] + 1, device=right.device)
    return (right.float() - cost).argmax(dim=1)
