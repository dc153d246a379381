"""Encoders with fewer layers, the same ones for every text: the baselines that early exit has to beat.

The first layers alone need nothing from here: `from_pretrained(name, num_hidden_layers=3)`. LayerDrop trains one model
that still works when layers are taken out of it: Angela Fan, Edouard Grave, Armand Joulin, "Reducing Transformer Depth
on Demand with Structured Dropout", ICLR 2020, https://openreview.net/forum?id=SylO2yStDr. Both work on the stock
models of Transformers, which stay stock models: their checkpoints load without this package.

Differences from the paper: it pretrains with LayerDrop, here it is used in fine-tuning; and its rule for which layers
to take out is defined for few numbers of layers only, see `evenly_spaced`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.encoder_layers import family_of


class LayerDrop:
    """What `layer_drop` installed.

    Args:
        probability: may be changed at any time.
        generator: on the CPU, or None for torch's own.
        returns_attention: as in `EncoderLayers`.
    """

    def __init__(self, probability: float, generator: torch.Generator | None, returns_attention: bool) -> None:
        self.probability = probability
        self.generator = generator
        self.returns_attention = returns_attention
        self._classes: list[tuple[nn.Module, type[nn.Module]]] = []

    def install(self, layer: nn.Module) -> None:
        """Let `layer` be dropped. Its class changes, not its `forward`, so that copies of the model drop, too."""
        own = type(layer)
        self._classes.append((layer, own))
        layer.__class__ = type(own.__name__, (_Dropping, own), {"layer_drop": self})

    def draw(self) -> bool:
        """Is the next layer dropped? At probability 0 nothing is drawn."""
        return self.probability > 0 and torch.rand((), generator=self.generator).item() < self.probability

    def remove(self) -> None:
        """Make the layers what they were."""
        for layer, own in self._classes:
            layer.__class__ = own
        self._classes.clear()


class _Dropping(nn.Module):
    """Mixed into the class of a layer: in training mode its input may be its output."""

    layer_drop: LayerDrop

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.training and self.layer_drop.draw():
            return (hidden_states, None) if self.layer_drop.returns_attention else hidden_states
        return super().forward(hidden_states, *args, **kwargs)


def layer_drop(model: PreTrainedModel, probability: float, generator: torch.Generator | None = None) -> LayerDrop:
    """In training mode skip every layer with a probability, anew for each layer and each batch; never in eval mode.

    Args:
        model: a stock encoder, or a model with one inside, of a supported family.
        probability: in [0, 1]; the paper's is 0.2 for all depths, 0.5 where the model will be less than half as deep.
        generator: on the CPU. Default: torch's own, which gradient checkpointing rewinds; it rewinds no other.

    Returns:
        a handle; its `remove()` undoes everything.

    Raises:
        ValueError: the probability is out of range, the model has LayerDrop already, or its encoder is not supported.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability: got {probability}; pass a number from 0 (drop no layer) to 1 (drop all)")
    encoder = model.base_model
    family = family_of(encoder.config)
    layers = list(dict.fromkeys(family.layers(encoder)))  # a shared layer once: it draws whenever it is called
    if any(isinstance(layer, _Dropping) for layer in layers):
        raise ValueError("model: has LayerDrop already; call remove() on what layer_drop returned")
    handle = LayerDrop(probability, generator, family.returns_attention)
    for layer in layers:
        handle.install(layer)
    return handle


def evenly_spaced(depth: int, kept: int) -> list[int]:
    """Which layers, 1..depth, to keep so that `kept` are left, spread evenly. The first always is one of them.

    Every Other (section 3.2): to take out a share p, take out the layers d with d = 0 (mod floor(1 / p)). That leaves
    as many as wanted only for some numbers; for the others the gaps differ by at most one layer.

    >>> evenly_spaced(12, 6), evenly_spaced(12, 8)
    ([1, 3, 5, 7, 9, 11], [1, 2, 4, 5, 7, 8, 10, 11])
    >>> evenly_spaced(6, 1), evenly_spaced(6, 2), evenly_spaced(6, 6), evenly_spaced(12, 7)
    ([1], [1, 4], [1, 2, 3, 4, 5, 6], [1, 2, 4, 6, 7, 9, 11])

    Raises:
        ValueError: `kept` is not in 1..depth.
    """
    if not 1 <= kept <= depth:
        raise ValueError(f"kept: got {kept}; pass a number of layers from 1 to {depth}")
    dropped = depth - kept
    every = depth // dropped if dropped else depth + 1  # floor(1 / p)
    if depth // every == dropped:
        return [layer for layer in range(1, depth + 1) if layer % every]
    return [1 + index * depth // kept for index in range(kept)]


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Take all other layers out of a model, in place; it saves and loads as a plain model of that depth.

    Args:
        model: as for `layer_drop`.
        layers: which layers stay, 1..L, ascending. ALBERT's layers are one and the same: only their number matters.

    Raises:
        ValueError: layers that the model does not have, or a choice that no plain model of the family can hold.
    """
    encoder, config = model.base_model, model.config
    found = family_of(config).layers(encoder)
    depth, kept = len(found), list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 1 or kept[-1] > depth:
        raise ValueError(f"layers: got {kept}; pass ascending layer numbers from 1 to {depth}, e.g. [1, {depth}]")
    if config.model_type == "albert":
        if config.num_hidden_groups > 1:
            raise ValueError(
                f"model: its {depth} layers share the weights of {config.num_hidden_groups} groups, and the number of "
                "layers decides which group runs where; keep_layers needs num_hidden_groups=1"
            )
    else:
        if config.model_type == "modernbert":
            if kept[0] != 1:
                raise ValueError(f"layers: got {kept}; ModernBERT's first layer lacks a norm, so keep layer 1")
            config.layer_types = [config.layer_types[layer - 1] for layer in kept]
        _fill(_stack_of(encoder, found), [found[layer - 1] for layer in kept])
    config.num_hidden_layers = len(kept)


@contextmanager
def only_layers(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
    """`keep_layers` for as long as the `with` block lasts."""
    encoder, config = model.base_model, model.config
    found = family_of(config).layers(encoder)
    stack = None if config.model_type == "albert" else _stack_of(encoder, found)
    types = list(config.layer_types) if config.model_type == "modernbert" else None
    try:
        keep_layers(model, layers)
        yield
    finally:
        config.num_hidden_layers = len(found)
        if types is not None:
            config.layer_types = types
        if stack is not None:
            _fill(stack, found)


def _stack_of(encoder: PreTrainedModel, layers: Sequence[nn.Module]) -> nn.ModuleList:
    return next(part for part in encoder.modules() if isinstance(part, nn.ModuleList) and list(part) == layers)


def _fill(stack: nn.ModuleList, layers: Sequence[nn.Module]) -> None:
    del stack[:]
    stack.extend(layers)
