"""Tiny random models of every method on every encoder family, batches for them, and what a trace predicts."""

from collections.abc import Iterator
from typing import Any

import torch
from helpers.copies import copy_of
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from adaexit_hf.models import METHODS, EarlyExitForSequenceClassification
from adaexit_hf.models.encoder_layers import family_of
from adaexit_hf.models.exit_criteria import first_ready
from adaexit_hf.models.modeling_early_exit import EarlyExitOutput

# Weights ten times larger than usual: with the usual ones all exits of a tiny random model say nearly the same.
COMMON = {"vocab_size": 64, "initializer_range": 0.2, "max_position_embeddings": 32}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 37}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4, "type_vocab_size": 2}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
MODERN = {"local_attention": 4, "global_attn_every_n_layers": 2, "norm_bias": True, "classifier_bias": True}

Settings = dict[str, Any]
ENCODERS: dict[str, tuple[type[PreTrainedConfig], Settings]] = {
    "bert": (BertConfig, SIZES),
    "roberta": (RobertaConfig, SIZES | {"num_hidden_layers": 4}),
    "xlm-roberta": (XLMRobertaConfig, SIZES),
    "albert": (AlbertConfig, SIZES | {"embedding_size": 16}),
    # 3 groups for 4 layers, and 2 for 3: Transformers' own rounding decides which layer runs where.
    "albert-groups": (AlbertConfig, SIZES | {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 3}),
    "albert-inner": (AlbertConfig, SIZES | {"embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2}),
    "distilbert": (DistilBertConfig, {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 37}),
    "electra": (ElectraConfig, SIZES | {"embedding_size": 32}),
    "electra-projected": (ElectraConfig, SIZES | {"embedding_size": 16}),
    "mpnet": (MPNetConfig, SIZES),
    "deberta-v2": (DebertaV2Config, SIZES | RELATIVE | {"position_biased_input": False}),
    "deberta-v2-conv": (DebertaV2Config, SIZES | RELATIVE | {"position_biased_input": False, "conv_kernel_size": 3}),
    "deberta-v2-absolute": (DebertaV2Config, SIZES | {"position_biased_input": True}),
    "modernbert": (ModernBertConfig, SIZES | SPECIAL | MODERN),
    "modernbert-mean": (ModernBertConfig, SIZES | SPECIAL | {"local_attention": 4, "classifier_pooling": "mean"}),
}
# One encoder for each family; the others differ only inside the encoder.
FAMILIES = ("bert", "roberta", "xlm-roberta", "albert", "distilbert", "electra", "mpnet", "deberta-v2", "modernbert")
CORE = ("bert", "roberta", "albert")
EAGER_ONLY = ("mpnet", "deberta-v2")

# Words of pairs of texts, see `pairs_of`.
PAIRS = [([5, 6], [7]), ([8], [9, 10, 11]), ([12, 13, 14], [15, 16]), ([17], [18]), ([19, 20], [21, 22, 23])]

CLASSES = METHODS
# Options of a method that change what an exit says; a method without an entry is tested with its defaults.
OPTIONS: dict[str, dict[str, Settings]] = {
    "berxit": {
        "entropy": {"exit_criterion": "entropy"},
        "learned": {"exit_criterion": "learned"},
        "authors": {"exit_criterion": "learned", "lte_variant": "authors"},
        "regression": {"num_labels": 1},
        "two-stage": {"fine_tuning": "two_stage", "exit_criterion": "learned"},
        "distilled": {"fine_tuning": "self_distillation", "exit_criterion": "learned"},
    },
    "dact-bert": {
        "paper": {"halting_bound": "paper"},
        "confidence": {"exit_criterion": "confidence"},
        "entropy": {"halting_input": "entropy", "fine_tuning": "three_stage"},
        "tied": {"halting_input": "entropy", "tied_halting": True, "fine_tuning": "three_stage_distilled"},
    },
    "depth-adaptive": {"halting": {"depth_source": "halting"}},
    "deebert": {"patience": {"exit_criterion": "patience"}},
    "fastbert": {"mean": {"exit_pooling": "mean"}},
    "pabee": {"regression": {"num_labels": 1, "patience_tolerance": 0.5}},
}
VARIANTS: dict[str, tuple[type[EarlyExitForSequenceClassification], Settings]] = {
    name: (model, {}) for name, model in CLASSES.items()
} | {f"{name}-{option}": (CLASSES[name], kwargs) for name, more in OPTIONS.items() for option, kwargs in more.items()}
# Every variant on BERT, every method on the other encoders that matter most.
CORE_CASES = [(variant, "bert") for variant in VARIANTS] + [(name, other) for name in CLASSES for other in CORE[1:]]
# Exits that read all tokens meet pads in code of their own. All others are given the sentence vector by code that they
# share, so that DeeBERT stands for them where only the padding differs.
READS_TOKENS = tuple(name for name in VARIANTS if name.startswith(("fastbert", "depth-adaptive")))
PADDED_CASES = [(variant, encoder, "right") for variant, encoder in CORE_CASES] + [
    (variant, encoder, padding)
    for variant, encoder in CORE_CASES
    for padding in ("left", "none")
    if variant in ("deebert", *READS_TOKENS)
]
# Methods that between them run all code that depends on the family of the encoder: the family's own classification
# head, exits that read all tokens, tokens that skip layers, states after the encoder's last norm. All methods run on
# the encoders of CORE.
FAMILY_METHODS = ("deebert", "fastbert", "depth-adaptive", "right-tool")


def encoder_config(name: str = "bert", **kwargs: Any) -> PreTrainedConfig:
    config_class, settings = ENCODERS[name]
    return config_class(**COMMON | settings | kwargs)


def encoder(name: str = "bert", attn_implementation: str | None = None, **kwargs: Any) -> PreTrainedModel:
    """The stock model in eval mode, without a pooler; the same weights every time."""
    torch.manual_seed(0)
    config = encoder_config(name, **kwargs)
    options = {} if family_of(config).pooler is None else {"add_pooling_layer": False}
    return AutoModel.from_config(config, attn_implementation=attn_implementation, **options).eval()


def build(variant: str, encoder: str = "bert", **kwargs: Any) -> EarlyExitForSequenceClassification:
    """A model in eval mode with three labels, or as the variant or `kwargs` say; the same weights every time."""
    return copy_of(built, variant, encoder, **kwargs)


def built(variant: str, encoder: str, **kwargs: Any) -> EarlyExitForSequenceClassification:
    torch.manual_seed(0)
    return with_depths(VARIANTS[variant][0](config(variant, encoder, **kwargs)).eval())


def with_depths(model: EarlyExitForSequenceClassification) -> EarlyExitForSequenceClassification:
    """Random depths of words for a method that has them: in a new model every word needs all layers."""
    table = getattr(model, "depth_table", None)
    if table is not None:
        table.weight.copy_(torch.randint(1, table.depth + 1, table.weight.shape))
    return model


def config(variant: str, encoder: str = "bert", **kwargs: Any) -> PreTrainedConfig:
    model_class, settings = VARIANTS[variant]
    return model_class.config_class(
        **{"encoder_config": encoder_config(encoder), "num_labels": 3, "exit_threshold": None} | settings | kwargs
    )


def batch(config: PreTrainedConfig, padding: str = "right", rows: int = 6, tokens: int = 9) -> dict[str, Tensor]:
    """Random texts of an encoder: padding "right", "left" or "none"; token types where the family has them."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, config.vocab_size, (rows, tokens), generator=generator)
    inputs = {"input_ids": ids}
    if family_of(config).takes_token_types and config.type_vocab_size > 1:
        inputs["token_type_ids"] = (torch.arange(tokens) >= tokens // 2).long().repeat(rows, 1)
    if padding != "none":
        lengths = torch.arange(rows) * (tokens - 3) // max(1, rows - 1) + 3  # 3 .. tokens
        mask = (torch.arange(tokens) < lengths[:, None]).long()
        mask = mask.flip(1) if padding == "left" else mask
        inputs |= {"attention_mask": mask, "input_ids": ids.masked_fill(mask == 0, config.pad_token_id)}
    return inputs


def inputs_of(model: EarlyExitForSequenceClassification, padding: str = "right", **kwargs: Any) -> dict[str, Tensor]:
    return batch(model.config.encoder_config, padding, **kwargs)


def pairs_of(
    model: EarlyExitForSequenceClassification, side: str = "right", types: bool | None = None
) -> dict[str, Tensor]:
    """Pairs of texts as the family's tokenizer writes them; with `types`, whether token types are given."""
    config = model.config.encoder_config
    pad = config.pad_token_id
    separators = [2, 2] if config.model_type in ("roberta", "xlm-roberta", "mpnet") else [2]
    rows = [([3, *first, 2], [*separators[1:], *second, 2]) for first, second in PAIRS]
    width = max(len(first) + len(second) for first, second in rows)

    def padded(values: list[int], filler: int) -> list[int]:
        rest = [filler] * (width - len(values))
        return rest + values if side == "left" else values + rest

    inputs = {
        "input_ids": torch.tensor([padded(first + second, pad) for first, second in rows]),
        "attention_mask": torch.tensor([padded([1] * len(first + second), 0) for first, second in rows]),
    }
    if types if types is not None else family_of(config).takes_token_types and config.type_vocab_size > 1:
        inputs["token_type_ids"] = torch.tensor([padded([0] * len(a) + [1] * len(b), 0) for a, b in rows])
    return inputs


def labels_of(model: EarlyExitForSequenceClassification, rows: int = 6) -> Tensor:
    count = model.config.num_labels
    return torch.linspace(-1, 2, rows) if count == 1 else torch.arange(rows) % count


def one_by_one(inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for row in range(len(next(iter(inputs.values())))):
        yield {name: value[row : row + 1] for name, value in inputs.items()}


@torch.no_grad()
def trace_of(model: EarlyExitForSequenceClassification, inputs: dict[str, Tensor]) -> EarlyExitOutput:
    return model(**inputs, early_exit=False)


def predicted(
    model: EarlyExitForSequenceClassification, trace: EarlyExitOutput, threshold: float | list[float]
) -> tuple[Tensor, Tensor]:
    """Logits and exit layers that a full-depth trace predicts for a threshold."""
    thresholds = model.config.thresholds(threshold)
    scores = trace.exit_scores.unbind(dim=1)
    chosen = first_ready(
        torch.stack([model.ready(score, value) for score, value in zip(scores, thresholds, strict=True)], dim=1)
    )
    return trace.exit_logits[torch.arange(len(chosen)), chosen], torch.tensor(model.config.exit_layers)[chosen]


@torch.no_grad()
def check_early_exit(
    model: EarlyExitForSequenceClassification, inputs: dict[str, Any], thresholds: list[Any]
) -> set[int]:
    """Batched = one by one = selected from the trace, for every threshold; returns the layers at which rows left.

    A row goes alone once for every layer that it leaves at: of thresholds that lead there, the first.
    """
    trace, gone_alone = trace_of(model, inputs), set()
    for threshold in thresholds:
        logits, layers = predicted(model, trace, threshold)
        together = model(**inputs, exit_threshold=threshold)
        assert together.exit_layer.tolist() == layers.tolist()
        torch.testing.assert_close(together.logits, logits, atol=1e-5, rtol=1e-5)
        for index, row in enumerate(one_by_one(inputs)):
            layer = layers[index].item()
            if (index, layer) not in gone_alone:
                alone = model(**row, exit_threshold=threshold)
                assert alone.exit_layer.item() == layer
                torch.testing.assert_close(alone.logits[0], logits[index], atol=1e-5, rtol=1e-5)
                gone_alone.add((index, layer))
    return {layer for _, layer in gone_alone}


def thresholds_between(trace: EarlyExitOutput, count: int = 3) -> list[float]:
    """Midpoints of the widest gaps between early scores: no rounding error moves a score across them.

    Where the scores count something, whole numbers.
    """
    scores = trace.exit_scores[:, :-1].unique().sort().values
    if torch.equal(scores, scores.round()):
        return [1.0, 2.0]
    widest = scores.diff().topk(min(count, len(scores) - 1)).indices
    return ((scores[widest] + scores[widest + 1]) / 2).tolist()


def gradients(model: torch.nn.Module) -> dict[str, Tensor | None]:
    return {name: None if value.grad is None else value.grad.clone() for name, value in model.named_parameters()}


def check_loss_and_gradients(model: torch.nn.Module, expected: Tensor, loss: Tensor) -> None:
    """A loss equals a reference computed from the same parameters, and so do all gradients; None only where None."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    theirs = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True, retain_graph=True)
    ours = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for name, mine, other in zip(parameters, ours, theirs, strict=True):
        assert (mine is None) == (other is None), name
        if mine is not None:
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)
