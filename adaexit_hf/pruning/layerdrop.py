"""Encoders with a fixed, smaller number of layers for every text: the baselines for early exit.

To use only the first layers, nothing from here is needed: `from_pretrained(name, num_hidden_layers=3)`. LayerDrop
trains one model from which layers can be removed afterwards: Angela Fan, Edouard Grave, Armand Joulin, "Reducing
Transformer Depth on Demand with Structured Dropout", ICLR 2020, https://openreview.net/forum?id=SylO2yStDr. Everything
here works on the stock models of Transformers. They remain stock models, so their checkpoints load without this
package.

Differences from the paper: the paper uses LayerDrop in pretraining, here it is used in fine-tuning; and the paper's
rule for the layers to remove works for some numbers of layers only, see `evenly_spaced`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.encoder_layers import family_of


class LayerDrop:
    """A handle on the LayerDrop of a model, returned by `layer_drop`.

    Args:
        probability: Probability with which each layer is skipped, in [0, 1]. The attribute may be changed at any time.
        generator: Random generator on the CPU, or None for torch's default generator.
        returns_attention: Whether the layers return `(hidden_states, attention)`, as in `EncoderLayers`.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> from adaexit_hf.pruning import layer_drop
        >>> model = BertModel(BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=2, num_attention_heads=1))
        >>> handle = layer_drop(model, probability=0.2)
        >>> handle.probability = 0.0  # from now on training runs every layer
        >>> handle.draw()  # whether the next layer is skipped
        False
        >>> handle.remove()
    """

    def __init__(self, probability: float, generator: torch.Generator | None, returns_attention: bool) -> None:
        self.probability = probability
        self.generator = generator
        self.returns_attention = returns_attention
        self._classes: list[tuple[nn.Module, type[nn.Module]]] = []

    def install(self, layer: nn.Module) -> None:
        """Make a layer skippable.

        The class of the layer is replaced instead of its `forward` method, so that it also works in copies of the
        model.

        Args:
            layer: Layer of the encoder.
        """
        layer_class = type(layer)
        self._classes.append((layer, layer_class))
        layer.__class__ = type(layer_class.__name__, (_Dropping, layer_class), {"layer_drop": self})

    def draw(self) -> bool:
        """Draw whether the next layer is skipped. With probability 0 the generator is not used.

        Returns:
            Whether the layer is skipped.
        """
        return self.probability > 0 and torch.rand((), generator=self.generator).item() < self.probability

    def remove(self) -> None:
        """Remove LayerDrop from the model: give each layer its original class again."""
        for layer, layer_class in self._classes:
            layer.__class__ = layer_class
        self._classes.clear()


class _Dropping(nn.Module):
    """Mixin for the class of a layer: in training mode the layer may return its input unchanged."""

    layer_drop: LayerDrop

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.training and self.layer_drop.draw():
            return (hidden_states, None) if self.layer_drop.returns_attention else hidden_states
        return super().forward(hidden_states, *args, **kwargs)


def layer_drop(model: PreTrainedModel, probability: float, generator: torch.Generator | None = None) -> LayerDrop:
    """Install LayerDrop: in training mode, each layer is skipped with a probability; in eval mode none is.

    Each layer is drawn independently for each batch (Fan et al., ICLR 2020).

    Args:
        model: Stock encoder of a supported family, or a model that contains one.
        probability: Probability with which each layer is skipped, from 0 (none) to 1 (all). The paper uses 0.2 in
            general, and 0.5 for a model that will be pruned to less than half of its layers.
        generator: Random generator on the CPU. Default: torch's default generator. With gradient checkpointing, use
            the default: only its state is restored when the forward pass is repeated.

    Returns:
        A handle; its `remove()` undoes everything.

    Raises:
        ValueError: If the probability is out of range, the model already has LayerDrop, or its encoder is not
            supported.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=2, num_attention_heads=1))
        >>> handle = layer_drop(model, probability=1.0)
        >>> ids = torch.tensor([[2, 5, 3]])
        >>> states = model.train()(ids, output_hidden_states=True).hidden_states
        >>> torch.equal(states[0], states[2])  # both layers were skipped
        True
        >>> handle.remove()
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability: got {probability}; pass a number from 0 (drop no layer) to 1 (drop all)")
    encoder = model.base_model
    family = family_of(encoder.config)
    layers = list(dict.fromkeys(family.layers(encoder)))  # install a shared layer once; it draws at every call
    if any(isinstance(layer, _Dropping) for layer in layers):
        raise ValueError("model: has LayerDrop already; call remove() on the handle that layer_drop returned")
    handle = LayerDrop(probability, generator, family.returns_attention)
    for layer in layers:
        handle.install(layer)
    return handle


def evenly_spaced(depth: int, kept: int) -> list[int]:
    """Choose `kept` of the layers 1..depth, spread evenly. The first layer is always among them.

    The rule "Every Other" of the LayerDrop paper (section 3.2) removes a share p of the layers: all layers d with
    d = 0 (mod floor(1 / p)). It gives the right number of layers only in some cases; in the others, layers are
    chosen such that the gaps between them differ by at most one.

    Args:
        depth: Number of layers of the model, L.
        kept: Number of layers to keep, 1..L.

    Returns:
        The layers to keep, ascending.

    Raises:
        ValueError: If `kept` is not in 1..depth.

    Examples:
        >>> evenly_spaced(12, 6), evenly_spaced(12, 8)
        ([1, 3, 5, 7, 9, 11], [1, 2, 4, 5, 7, 8, 10, 11])
        >>> evenly_spaced(6, 1), evenly_spaced(6, 2), evenly_spaced(6, 6), evenly_spaced(12, 7)
        ([1], [1, 4], [1, 2, 3, 4, 5, 6], [1, 2, 4, 6, 7, 9, 11])
    """
    if not 1 <= kept <= depth:
        raise ValueError(f"kept: got {kept}; pass a number of layers from 1 to {depth}")
    removed = depth - kept
    interval = depth // removed if removed else depth + 1  # floor(1 / p)
    if depth // interval == removed:
        return [layer for layer in range(1, depth + 1) if layer % interval]
    return [1 + index * depth // kept for index in range(kept)]


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Remove all but the given layers from a model, in place. It saves and loads as a stock model of that depth.

    Args:
        model: Stock encoder of a supported family, or a model that contains one.
        layers: Layers to keep, 1..L, ascending. ALBERT's layers share one set of weights, so only their number
            matters.

    Raises:
        ValueError: If the model does not have these layers, or if no stock model of the family can represent the
            result.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(vocab_size=10, hidden_size=4, num_hidden_layers=3, num_attention_heads=1))
        >>> keep_layers(model, [1, 3])
        >>> len(model.encoder.layer), model.config.num_hidden_layers
        (2, 2)
    """
    encoder, config = model.base_model, model.config
    all_layers = family_of(config).layers(encoder)
    depth, kept = len(all_layers), list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 1 or kept[-1] > depth:
        raise ValueError(f"layers: got {kept}; pass ascending layer numbers from 1 to {depth}, e.g. [1, {depth}]")
    if config.model_type == "albert":
        if config.num_hidden_groups > 1:
            raise ValueError(
                f"model: its {depth} layers share the weights of {config.num_hidden_groups} groups, and the number of "
                "layers determines which layer uses which group; keep_layers needs num_hidden_groups=1"
            )
    else:
        if config.model_type == "modernbert":
            if kept[0] != 1:
                raise ValueError(
                    f"layers: got {kept}; only ModernBERT's first layer has no attention norm, so keep layer 1"
                )
            config.layer_types = [config.layer_types[layer - 1] for layer in kept]
        _replace_layers(_module_list_of(encoder, all_layers), [all_layers[layer - 1] for layer in kept])
    config.num_hidden_layers = len(kept)


@contextmanager
def only_layers(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[None]:
    """Apply `keep_layers` inside a `with` block and restore all layers afterwards.

    Args:
        model: As for `keep_layers`.
        layers: As for `keep_layers`.
    """
    encoder, config = model.base_model, model.config
    all_layers = family_of(config).layers(encoder)
    module_list = None if config.model_type == "albert" else _module_list_of(encoder, all_layers)
    types = list(config.layer_types) if config.model_type == "modernbert" else None
    try:
        keep_layers(model, layers)
        yield
    finally:
        config.num_hidden_layers = len(all_layers)
        if types is not None:
            config.layer_types = types
        if module_list is not None:
            _replace_layers(module_list, all_layers)


def _module_list_of(encoder: PreTrainedModel, layers: Sequence[nn.Module]) -> nn.ModuleList:
    return next(part for part in encoder.modules() if isinstance(part, nn.ModuleList) and list(part) == layers)


def _replace_layers(module_list: nn.ModuleList, layers: Sequence[nn.Module]) -> None:
    del module_list[:]
    module_list.extend(layers)
