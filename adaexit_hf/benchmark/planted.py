"""A random classifier and random texts with planned exit layers, to time early exit at any saving without training.

As in DeeBERT, every layer has a classification head and computes the entropy of its prediction. Only the comparison
with the threshold is replaced: a text exits at the layer given by its first token.
"""

import bisect
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..models import EarlyExitForSequenceClassification
from ..models.configuration_early_exit import EarlyExitConfig, check_choice
from ..models.encoder_layers import Context
from ..models.exit_criteria import entropy
from ..models.exit_heads import Exit, ExitHead, State


class PlantedConfig(EarlyExitConfig):
    """Config of a classifier with planned exits; with `exit_threshold` 0.5 every text exits at its planned layer."""

    model_type = "planted"
    own_criterion = "planned"
    default_threshold = 0.5


class PlantedForSequenceClassification(EarlyExitForSequenceClassification):
    """A classifier in which the first token of a row, 1 to L, is the layer at which the row exits."""

    config_class = PlantedConfig
    own_ready: ClassVar[Any] = torch.lt

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__(config)
        self.exits = nn.ModuleList(ExitHead(config.encoder_config, config.num_labels) for _ in config.exit_layers)
        self.post_init()

    def embed(self, inputs: dict[str, Tensor | None]) -> tuple[Tensor, Context]:
        hidden, context = super().embed(inputs)
        planned = inputs["input_ids"][:, 0].float()  # type: ignore[index]
        return hidden, context._replace(per_row={"planned": planned})

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        logits = self.exits[index](pooled)
        to_run = context.per_row["planned"] - self.config.exit_layers[index]
        # The score is the number of layers still to run: below 0.5 where the row exits. DeeBERT would compute the
        # entropy, so its time must count; a graph would not compute it if nothing depended on it.
        return Exit(logits, to_run + entropy(logits) / 10), ()


def planted_model(
    encoder_config: PreTrainedConfig, dtype: torch.dtype, device: str, seed: int = 0
) -> PlantedForSequenceClassification:
    """A random model with two labels, in eval mode.

    Args:
        encoder_config: Config of the encoder.
        dtype: Dtype of the weights.
        device: Device of the weights.
        seed: Seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PlantedForSequenceClassification(PlantedConfig(encoder_config=encoder_config, num_labels=2))
    return model.to(device=device, dtype=dtype).eval()


def planned_layers(texts: int, depth: int, saving: float, seed: int = 0) -> list[int]:
    """The exit layer of every text, in random order.

    The sum of the exit layers is `texts * depth / saving`, rounded. The fraction of texts that exit at layer l is
    proportional to r ** l: with a large saving most texts exit early, with a small one late.

    Args:
        texts: Number of texts.
        depth: Number of layers.
        saving: Depth divided by the mean exit layer, in [1, depth]; at 1 no text exits early.
        seed: Seed of the order.

    Raises:
        ValueError: The saving is not in [1, depth].

    >>> layers = planned_layers(1000, 12, 2.0)
    >>> 12 * 1000 / sum(layers), [layers.count(layer) for layer in (1, 2, 6, 11, 12)]
    (2.0, [103, 101, 84, 69, 65])
    >>> planned_layers(3, 12, 1.0), planned_layers(3, 12, 12.0)
    ([12, 12, 12], [1, 1, 1])
    """
    if not 1 <= saving <= depth:
        raise ValueError(f"saving: got {saving}; pass depth / mean exit layer, a number from 1 to {depth}")
    layer_numbers = range(1, depth + 1)

    def weights(slope: float) -> list[float]:
        return [math.exp(slope * (layer - (depth if slope > 0 else 1))) for layer in layer_numbers]

    low, high = -100.0, 100.0
    for _ in range(200):
        slope = (low + high) / 2
        mean = sum(layer * weight for layer, weight in zip(layer_numbers, weights(slope), strict=True)) / sum(
            weights(slope)
        )
        low, high = (slope, high) if mean < depth / saving else (low, slope)
    cumulative = list(itertools.accumulate(weights((low + high) / 2)))
    quantiles = [(text + 0.5) / texts * cumulative[-1] for text in range(texts)]
    layers = [min(depth - 1, bisect.bisect(cumulative, quantile)) + 1 for quantile in quantiles]
    # Rounding can leave the sum a few layers too high or too low: move single texts, evenly spread, by one layer.
    while missing := round(texts * depth / saving) - sum(layers):
        step = 1 if missing > 0 else -1
        movable = [text for text, layer in enumerate(layers) if 1 <= layer + step <= depth]
        count = min(abs(missing), len(movable))
        for index in range(count):
            layers[movable[index * len(movable) // count]] += step
    random.Random(seed).shuffle(layers)
    return layers


def text_lengths(texts: int, kind: str, seed: int = 0) -> list[int]:
    """Random numbers of tokens.

    Args:
        texts: Number of texts.
        kind: "short", normal with mean 53 and standard deviation 16, clipped to 5..128; "long", normal with mean 400
            and standard deviation 50, clipped to 256..512; or "mixed", log-uniform in 1..512.
        seed: Seed of the lengths.

    Raises:
        ValueError: The kind is none of the three.

    >>> text_lengths(5, "short"), text_lengths(5, "mixed")
    ([68, 31, 42, 59, 37], [194, 113, 13, 5, 24])
    """
    check_choice("lengths", kind, ("short", "long", "mixed"))
    rng = random.Random(seed)
    if kind == "short":
        return [min(128, max(5, round(rng.gauss(53, 16)))) for _ in range(texts)]
    if kind == "long":
        return [min(512, max(256, round(rng.gauss(400, 50)))) for _ in range(texts)]
    return [min(512, int(math.exp(rng.uniform(0, math.log(513))))) for _ in range(texts)]


def planted_rows(plan: Sequence[int], lengths: Sequence[int], vocab_size: int, seed: int = 0) -> Iterator[Any]:
    """Tokenized texts: first the exit layer, then random tokens.

    Args:
        plan: Exit layer of every text.
        lengths: Number of tokens of every text.
        vocab_size: Size of the vocabulary; random tokens are at least 5.
        seed: Seed of the tokens.

    >>> list(planted_rows([2, 1], [3, 2], vocab_size=20))
    [{'input_ids': [2, 18, 11]}, {'input_ids': [1, 17]}]
    """
    rng = random.Random(seed)
    for layer, length in zip(plan, lengths, strict=True):
        yield {"input_ids": [layer, *(rng.randrange(5, vocab_size) for _ in range(length - 1))]}
