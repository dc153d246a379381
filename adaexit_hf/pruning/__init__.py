"""Remove layers: those that no text reaches, or a fixed choice, for the baselines that early exit is compared with."""

from .layerdrop import LayerDrop, keep_layers, layer_drop
from .unused_layers import prune_unused_layers

__all__ = [
    "LayerDrop",
    "keep_layers",
    "layer_drop",
    "prune_unused_layers",
]
