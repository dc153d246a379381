"""Faster Depth-Adaptive Transformers. Liu, Meng, Zhou, Chen, Xu. AAAI 2021. https://arxiv.org/abs/2004.13542

Every token t has a depth d(t), known before the encoder runs. From layer to layer (Eq. 5)

    h_t^n = h_t^(n-1) if n > d(t), else layer n of h^(n-1) at t:

a token that has reached its depth is copied up and stays visible as key and value. A text stops after its deepest
token's layer n_max; v = ReLU([max h^n_max; mean h^n_max]) over its tokens feeds a softmax layer (Eq. 6), trained with
cross-entropy (Eq. 7) or, with one label, mean squared error. Depths come from (`depth_source`):

* "mutual_information": a table, word piece -> depth, from the words' mutual information with the labels (Eq. 2, 3; see
  `mutual_information_depths`); the table is part of the checkpoint;
* "reconstruction": the input `token_depths`, which `adaexit_hf.data.reconstruction` writes for a data set (Eq. 4);
* "halting": the paper's baseline, after Elbayad et al., "Depth-Adaptive Transformer", ICLR 2020: a linear layer on the
  states of layer 1 predicts each token's depth. In training all tokens run all layers, every exit is trained with the
  task loss, and the halting unit with cross-entropy towards the text's pseudo-label
  argmax_n (1[exit n is right] - penalty n).

Deliberate differences from the paper: its W is (labels, hidden), though v has 2 hidden; pads are left out of max and
mean, of which it says nothing; the score is the share of tokens at their depth, so that a threshold below 1 leaves
earlier, with a classifier that was not trained for it. In a batch each text stops after its own n_max.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils import logging

from .batching import checked_rows
from .batching import row_labels
from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .configuration_early_exit import check_choice
from .configuration_early_exit import check_number
from .encoder_layers import Context
from .encoder_layers import run_tokens
from .exit_heads import Exit
from .exit_heads import State
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
        exit_threshold: the share of its tokens, in [0, 1], that must have reached their depth for a text to stop. 1,
            the paper's rule, changes no answer; less is faster and approximate. "default" is 1, and None with another
            `exit_criterion` than "depth".
        exit_pooling: maximum and mean over the tokens, always (Eq. 6); "first" is refused.
        depth_source: "mutual_information", "reconstruction" or "halting".
        halting_penalty: with "halting", >= 0: what a layer costs in the pseudo-labels, in units of being right.
        halting_weight: with "halting", >= 0: weight of the halting unit's loss beside the task's.

    >>> DepthAdaptiveConfig().exit_threshold, DepthAdaptiveConfig(exit_criterion="entropy").exit_threshold
    (1.0, None)
    """

    model_type = "depth-adaptive"
    supports_regression: ClassVar[bool] = True
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
        if self.num_labels == 1 and self.depth_source != "reconstruction":
            raise ValueError(
                f"depth_source: '{self.depth_source}' needs classes, num_labels=1 has none; pass "
                "depth_source='reconstruction'"
            )


class DepthAdaptiveModel(EarlyExitModel):
    """The encoder of a depth-adaptive checkpoint, at full depth for every token."""

    config_class = DepthAdaptiveConfig


def mutual_information(counts: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mutual information of a word's presence with each label, summed over the labels, in nats, >= 0. Eq. 2.

    `smoothing` is added to each of the four joint counts (word present or not, label given or not), and the marginals
    are those of the smoothed counts, so that the result is a mutual information, never negative.

    Args:
        counts: how many texts of each label have the word, (words + 1, labels); the last row is for all texts.

    >>> counts = torch.tensor([[4, 0], [2, 2], [4, 4]])  # two words, eight texts
    >>> [round(value, 4) for value in mutual_information(counts).tolist()]
    [1.1613, 0.0]
    """
    with_word, totals = counts[:-1].double(), counts[-1].double()
    texts, present = totals.sum(), with_word.sum(dim=1, keepdim=True)
    joint = torch.stack(
        [with_word, present - with_word, totals - with_word, texts - present - totals + with_word]
    ).reshape(2, 2, *with_word.shape)  # (present or not, label or not, words, labels)
    joint = joint + smoothing
    joint = joint / joint.sum(dim=(0, 1))
    product = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    return torch.special.xlogy(joint, joint / product).sum(dim=(0, 1, 3)).clamp_min(0)


def binned_depths(information: Tensor, depth: int) -> Tensor:
    """Depths 1..depth: much information, few layers. -log(information) in bins of equal width; section 2.1.

    A word with no information at all has -log 0 = infinity, and one with hardly any would stretch the bins until all
    others share one. So the bins end at the 0.99 quantile; what lies beyond is in the last one.

    Args:
        information: in nats, (words,), of words that occur.

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
    """Depth of every word of the vocabulary, (vocabulary,), in 1..depth.

    Words that do not occur get the deepest layer. Special tokens, and those that every text has, get the first: the
    deepest word decides how many layers run, and these say nothing about the label.

    Raises:
        ValueError: no texts, or all of one class; a word beyond the vocabulary.
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
            f"dataset: has the token {highest}, but the encoder's vocabulary has {vocab_size}; tokenize with "
            "its tokenizer"
        )
    counts = torch.zeros(vocab_size + 1, len(classes), dtype=torch.float64)
    for text, label in zip(texts, labels, strict=True):
        column = classes.index(label)
        counts[list(set(text)), column] += 1
        counts[-1, column] += 1
    present = counts[:-1].sum(dim=1)
    found = present > 0
    depths = torch.full((vocab_size,), depth)
    rows = torch.cat([found, found.new_ones(1)])
    depths[found] = binned_depths(mutual_information(counts[rows], smoothing), depth)
    depths[present == len(texts)] = 1
    depths[[token for token in special_ids if token < vocab_size]] = 1
    return depths


class DepthTable(nn.Module):
    """Depth of every word piece, (vocabulary,), floats, never trained; 0, not estimated, stands for the last layer."""

    def __init__(self, vocab_size: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.weight = nn.Parameter(torch.zeros(vocab_size), requires_grad=False)

    @property
    def estimated(self) -> bool:
        """Has any word a depth?"""
        return bool(self.weight.any())

    @torch.no_grad()
    def resize(self, vocab_size: int) -> None:
        """Cut the table, or add words of the deepest layer."""
        grown = self.weight.new_zeros(vocab_size)
        kept = min(vocab_size, len(self.weight))
        grown[:kept] = self.weight[:kept]
        self.weight = nn.Parameter(grown, requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, tokens) -> depths (batch, tokens), long; a word that the table lacks gets the deepest layer."""
        depths = self.weight[input_ids.clamp(max=len(self.weight) - 1)].round().long()
        return torch.where((input_ids < len(self.weight)) & (depths > 0), depths, self.depth)


class DepthAdaptiveForSequenceClassification(EarlyExitForSequenceClassification):
    """Every token runs as many layers as it needs. Scores are shares of tokens at their depth, (batch, exits)."""

    config_class = DepthAdaptiveConfig
    own_ready = torch.ge
    reads_all_tokens = True
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
        self.classifier = output_layer(2 * encoder.hidden_size, config.num_labels)
        source = config.depth_source
        table = source == "mutual_information"
        self.depth_table = DepthTable(encoder.vocab_size, encoder.num_hidden_layers) if table else None
        self.halting = nn.Linear(encoder.hidden_size, len(config.exit_layers)) if source == "halting" else None
        self._told = False  # that the table is not estimated; asked once, since it takes a read from the device
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DepthTable):
            init.zeros_(module.weight)

    @property
    def classifiers(self) -> list[nn.Module]:
        return [self.classifier]

    @property
    def objectives(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("task",) if self.halting is None else ("anytime", "task")

    @property
    def stages(self) -> tuple[Stage, ...]:
        name = self.objectives[0]
        return (Stage(name, (name,), frozen=() if self.depth_table is None else ("depth_table",)),)

    def prepare(self, dataset: Iterable[Mapping[str, Any]]) -> None:
        """Also fills the depth table, if the model has one."""
        rows = checked_rows(dataset)
        super().prepare(rows)
        if self.depth_table is not None:
            self.estimate_depths_by_mutual_information(rows)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in Transformers; new words have the deepest layer until the depths are estimated again."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.depth_table is not None:
            self.depth_table.resize(self.config.encoder_config.vocab_size)
        return embeddings

    @torch.no_grad()
    def estimate_depths_by_mutual_information(
        self, dataset: Iterable[Mapping[str, Any]], special_ids: Iterable[int] = (), smoothing: float = 0.1
    ) -> Tensor:
        """Fill the depth table from labelled texts; call it before training, with the training set only. Eq. 2, 3.

        Args:
            dataset: tokenized rows with `input_ids` and `label` or `labels`; positions whose `attention_mask` is 0 do
                not count.
            special_ids: more tokens that get depth 1, beside the encoder config's special ones and those that every
                text has. Not the unknown token: what nobody has seen needs all layers.
            smoothing: added to each of the four joint counts, > 0.

        Returns:
            the table, (vocabulary,), depths in 1..L; words that do not occur have L.

        Raises:
            ValueError: another `depth_source`; no rows, no labels, a single class; a word beyond the vocabulary.
        """
        if self.depth_table is None:
            raise ValueError(
                f"depth_source: '{self.config.depth_source}' has no table; build the model with "
                "depth_source='mutual_information'"
            )
        if check_number("smoothing", smoothing) <= 0:
            raise ValueError(f"smoothing: got {smoothing}; pass a number > 0, the paper's is 0.1")
        rows = checked_rows(dataset)
        labels = row_labels(rows, self.config.num_labels)
        if labels is None:
            raise ValueError("dataset: has no labels; pass the training set, with a 'label' column")
        texts = [
            [token for token, kept in zip(row["input_ids"], row["attention_mask"], strict=True) if kept]
            if "attention_mask" in row
            else row["input_ids"]
            for row in rows
        ]
        encoder = self.config.encoder_config
        names = ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
        own = [found for found in (getattr(encoder, name, None) for name in names) if found is not None]
        table = mutual_information_depths(
            texts, labels.tolist(), encoder.vocab_size, encoder.num_hidden_layers, [*own, *special_ids], smoothing
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
        """As `EarlyExitForSequenceClassification.forward`, and:

        Args:
            token_depths: layers that each token runs, (batch, tokens), integers in 1..L, any at pads. Needed with
                `depth_source="reconstruction"`; otherwise they replace the model's own.

        Raises:
            ValueError: no `token_depths` where they are needed, or of another shape or range.
        """
        seen = inputs_embeds if input_ids is None else input_ids
        anytime = self.halting is not None and (self.training or objective == "anytime")
        if anytime and token_depths is None and seen is not None:
            deepest = self.config.encoder_config.num_hidden_layers
            token_depths = torch.full(seen.shape[:2], deepest, device=seen.device)
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
        given, input_ids = inputs.get("token_depths"), inputs.get("input_ids")
        hidden, context = super().embed({name: inputs[name] for name in inputs if name != "token_depths"})
        padding = context.padding
        if given is not None:
            depths = self._checked_depths(given, hidden.shape[:2], padding)
        elif self.config.depth_source == "reconstruction":
            raise ValueError(
                "token_depths: missing; depth_source='reconstruction' needs them, call "
                "estimate_depths_by_reconstruction(dataset, ...) first, or pass token_depths=..."
            )
        else:
            depths = self._own_depths(input_ids, hidden)
        tokens = depths.new_ones(depths.shape) if padding is None else padding.to(depths.dtype)
        per_token = context.per_token | {"depths": depths * tokens}
        return hidden, context._replace(per_token=per_token if given is None else per_token | {"given": given})

    def _own_depths(self, input_ids: Tensor | None, hidden: Tensor) -> Tensor:
        deepest = torch.full(hidden.shape[:2], self.config.encoder_config.num_hidden_layers, device=hidden.device)
        if self.depth_table is None or torch.compiler.is_compiling() and input_ids is None:
            return deepest  # the halting unit speaks after layer 1
        if input_ids is None:
            if self.depth_table.estimated:
                raise ValueError(
                    "inputs_embeds: embeddings have no words to look up; pass their depths too, "
                    "token_depths=model.depth_table(input_ids)"
                )
            return deepest
        if self.training and not self._told and not self.depth_table.estimated:
            logger.warning(
                "the depths of words are not estimated, so every token runs all layers; before training call "
                "model.prepare(train_dataset) or model.estimate_depths_by_mutual_information(train_dataset)"
            )
        self._told = self._told or self.training
        return self.depth_table(input_ids)

    def _checked_depths(self, depths: Tensor, shape: torch.Size, padding: Tensor | None) -> Tensor:
        if depths.shape != shape:
            raise ValueError(
                f"token_depths: got shape {tuple(depths.shape)} for tokens of shape {tuple(shape)}; were the depths "
                "made with another tokenizer? Estimate them again on these input_ids"
            )
        if not torch.compiler.is_compiling():
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
        # In training every token runs, so that dropout and activation checkpointing are those of the encoder.
        whole = whole or self.training
        hidden, attention = run_tokens(self.encoder, index, layer, hidden, context, active, self.recompute, whole)
        if index == 0 and self.halting is not None:
            halting = self.halting(hidden)
            if "given" not in context.per_token:
                layers = torch.tensor(self.config.exit_layers, device=hidden.device)
                depths = torch.where(depths > 0, layers[halting.argmax(dim=-1)], 0)
            context = context._replace(per_token=context.per_token | {"depths": depths, "halting": halting})
        return hidden, attention, context

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        depths = context.per_token["depths"]
        tokens = depths > 0
        tokens = tokens | ~tokens.any(dim=1, keepdim=True)  # a text of pads alone
        highest = hidden.masked_fill(~tokens.unsqueeze(-1), torch.finfo(hidden.dtype).min).amax(dim=1)
        features = torch.cat([highest, mean_pool(hidden, tokens)], dim=-1).relu()
        logits = self.classifier(features)
        score = None
        if self.config.exit_criterion == "depth":
            done = tokens & (depths <= self.config.exit_layers[index])
            score = done.sum(dim=1) / tokens.sum(dim=1)
        halting = context.per_token.get("halting")
        return Exit(logits, score, () if halting is None else (halting, tokens)), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """`task`: Eq. 7; `anytime`: mean task loss of all exits, and the halting unit's towards its pseudo-labels."""
        if objective == "task":
            return self.task_loss(exits[-1].logits, labels)
        task = torch.stack([self.task_loss(exit.logits, labels) for exit in exits]).mean()
        halting, tokens = exits[-1].extras
        right = torch.stack([exit.logits.detach().argmax(dim=-1) == labels for exit in exits], dim=1)
        target = best_layer(right, self.config.halting_penalty)  # (batch,)
        spread = target[:, None].expand(tokens.shape)[tokens]
        return task + self.config.halting_weight * functional.cross_entropy(halting[tokens].float(), spread)


def best_layer(right: Tensor, penalty: float) -> Tensor:
    """Index of the exit that is right at the least cost, argmax_n (1[right] - penalty n): bool (batch, exits) -> long.

    The correctness oracle of Elbayad et al. for one answer per text.

    >>> best_layer(torch.tensor([[False, True, True], [False, False, False]]), penalty=0.1).tolist()
    [1, 0]
    """
    cost = penalty * torch.arange(1, right.shape[1] + 1, device=right.device)
    return (right.float() - cost).argmax(dim=1)
