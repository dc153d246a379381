"""What an early exit costs in floating-point operations, counted while the model runs, heads included."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..models.batching import eval_mode, model_inputs, padded_batch
from ..models.configuration_early_exit import check_whole_number
from ..models.early_exit_loop import InFlight, LayerLoop, trimmed
from ..models.modeling_early_exit import EarlyExitForSequenceClassification


def flops_per_exit(model: EarlyExitForSequenceClassification, tokens: int) -> Tensor:
    """FLOPs until each exit has answered one text of so many tokens, (exits,), int64; the last is full depth.

    Counted by PyTorch's own counter, which knows products of matrices and convolutions: encoder, attention, every exit
    on the way, and nothing for norms, activations or lookups. A multiplication and an addition are two operations. As
    in a real run, an exit that reads the first token only spares the last layer the work for the others.

    Args:
        model: on any device; one text is run.
        tokens: length of the text, without pads.

    Raises:
        ValueError: a length below 1, or beyond the position table; attention that PyTorch does not count; a method in
            which a text's cost depends on its words, see `collect_trace(..., count_flops=True)`.
    """
    check_whole_number("tokens", tokens, low=1, advice="e.g. tokens=64")
    if model.spares_tokens:
        raise ValueError(
            f"model: in '{model.config.model_type}' tokens skip layers, so what a text costs depends on its words, "
            "not on its length; call collect_trace(model, dataset, count_flops=True)"
        )
    return _count(model, {"input_ids": [0] * tokens})


class RowFlops:
    """Counts for tokenized rows, each length once where only the length matters."""

    def __init__(self, model: EarlyExitForSequenceClassification) -> None:
        self.model = model
        self._known: dict[int, Tensor] = {}

    def of(self, row: Mapping[str, Any], tokens: int) -> Tensor:
        """FLOPs until each exit has answered this row alone, (exits,), int64.

        Args:
            row: tokenized.
            tokens: its length without pads on the right.
        """
        if self.model.spares_tokens:
            return _count(self.model, row)
        if tokens not in self._known:
            self._known[tokens] = flops_per_exit(self.model, tokens)
        return self._known[tokens]


@torch.enable_grad()  # without it the counter fails where a module takes a parameter, as in DeBERTa
def _count(model: EarlyExitForSequenceClassification, row: Mapping[str, Any]) -> Tensor:
    attention = model.encoder.config._attn_implementation
    if attention not in ("eager", "sdpa"):
        raise ValueError(
            f"model: PyTorch does not count what attention implementation '{attention}' does; load the model with "
            "attn_implementation='sdpa'"
        )
    counts = []
    # Of the kernels behind sdpa only some are counted; this one is products of matrices.
    with eval_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        inputs, extents = trimmed(model_inputs(model, padded_batch([row], model.config.encoder_config)))
        for _, (step,) in LayerLoop(model, [InFlight.of(*model.embed(inputs), extents)]):
            if step.exit is not None:
                counts.append(counter.get_total_flops())
    return torch.tensor(counts)
