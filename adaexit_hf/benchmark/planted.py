"""A random classifier and random texts whose exits are planned, to time early exit at any saving without training.

Exits and scores are computed as in DeeBERT, an ordinary head and the entropy of its answer after every layer; only the
comparison with the threshold is replaced: a text leaves at the layer that its first token names.
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
from ..models.exit_heads import Exit, ExitHead, State, entropy


class PlantedConfig(EarlyExitConfig):
    """Config of a classifier whose exits are planned; `exit_threshold` means nothing, 0.5 obeys the plan."""

    model_type = "planted"
    own_criterion = "planned"
    default_threshold = 0.5


class PlantedForSequenceClassification(EarlyExitForSequenceClassification):
    """A row leaves at the layer, 1..L, that is its first token."""

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
        entropy(logits)  # what the real method would compare, so its time counts
        # Layers that are still to run: below one half where the row is to leave.
        return Exit(logits, context.per_row["planned"] - self.config.exit_layers[index]), ()


def planted_model(
    encoder_config: PreTrainedConfig, dtype: torch.dtype, device: str, seed: int = 0
) -> PlantedForSequenceClassification:
    """A random model with two labels, in eval mode; the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PlantedForSequenceClassification(PlantedConfig(encoder_config=encoder_config, num_labels=2))
    return model.to(device=device, dtype=dtype).eval()


def planned_layers(texts: int, depth: int, saving: float, seed: int = 0) -> list[int]:
    """Layers at which texts leave, in random order; all together they run `texts * depth / saving` layers, rounded.

    The share of layer l is proportional to r ** l: most leave early where much is saved, late where little is.

    Args:
        saving: depth divided by the mean exit layer, in [1, depth]; at 1 nothing exits early.

    >>> layers = planned_layers(1000, 12, 2.0)
    >>> 12 * 1000 / sum(layers), [layers.count(layer) for layer in (1, 2, 6, 11, 12)]
    (2.0, [103, 101, 84, 69, 65])
    >>> planned_layers(3, 12, 1.0), planned_layers(3, 12, 12.0)
    ([12, 12, 12], [1, 1, 1])
    """
    if not 1 <= saving <= depth:
        raise ValueError(f"saving: got {saving}; pass depth / mean exit layer, a number from 1 to {depth}")
    number = range(1, depth + 1)

    def weights(slope: float) -> list[float]:
        return [math.exp(slope * (layer - (depth if slope > 0 else 1))) for layer in number]

    low, high = -100.0, 100.0
    for _ in range(200):
        slope = (low + high) / 2
        mean = sum(layer * weight for layer, weight in zip(number, weights(slope), strict=True)) / sum(weights(slope))
        low, high = (slope, high) if mean < depth / saving else (low, slope)
    reached = list(itertools.accumulate(weights((low + high) / 2)))
    last = depth - 1
    layers = [min(last, bisect.bisect(reached, (text + 0.5) / texts * reached[-1])) + 1 for text in range(texts)]
    # Rounding leaves a few layers too many or too few: single texts, evenly spread, go one layer further or less.
    while missing := round(texts * depth / saving) - sum(layers):
        step = 1 if missing > 0 else -1
        movable = [text for text, layer in enumerate(layers) if 1 <= layer + step <= depth]
        count = min(abs(missing), len(movable))
        for place in range(count):
            layers[movable[place * len(movable) // count]] += step
    random.Random(seed).shuffle(layers)
    return layers


def text_lengths(texts: int, kind: str, seed: int = 0) -> list[int]:
    """Numbers of tokens: "short", normal around 53 with deviation 16, in 5..128; "mixed", log-uniform in 1..512.

    >>> text_lengths(5, "short"), text_lengths(5, "mixed")
    ([68, 31, 42, 59, 37], [194, 113, 13, 5, 24])
    """
    check_choice("lengths", kind, ("short", "mixed"))
    draw = random.Random(seed)
    if kind == "short":
        return [min(128, max(5, round(draw.gauss(53, 16)))) for _ in range(texts)]
    return [min(512, int(math.exp(draw.uniform(0, math.log(513))))) for _ in range(texts)]


def planted_rows(plan: Sequence[int], lengths: Sequence[int], vocab_size: int, seed: int = 0) -> Iterator[Any]:
    """Tokenized texts: first the layer at which it leaves, then random words.

    >>> list(planted_rows([2, 1], [3, 2], vocab_size=20))
    [{'input_ids': [2, 18, 11]}, {'input_ids': [1, 17]}]
    """
    draw = random.Random(seed)
    for layer, length in zip(plan, lengths, strict=True):
        yield {"input_ids": [layer, *(draw.randrange(5, vocab_size) for _ in range(length - 1))]}
