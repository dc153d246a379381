"""Count the floating-point operations of each exit while the model runs, exit heads included."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..models.configuration_early_exit import check_whole_number
from ..models.early_exit_loop import InFlight, LayerLoop, trimmed
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from ..models.padded_batches import eval_mode, model_inputs, padded_batch


def flops_per_exit(model: EarlyExitForSequenceClassification, tokens: int) -> Tensor:
    """Count the floating-point operations (FLOPs) that each exit needs for one text of a given length.

    PyTorch's FLOP counter counts matrix products and convolutions: those of the encoder, of attention, and of every
    exit up to the one that answers. Norms, activations and embedding lookups count as 0. A multiplication and an
    addition are two operations. As in a real run, if an exit reads the first token only, the layer below it computes
    that token only.

    Args:
        model: Model on any device. One text is run.
        tokens: Length of the text without padding, 1 or more.

    Returns:
        FLOPs up to and including each exit, `(exits,)`, int64. The last is the cost of full depth.

    Raises:
        ValueError: If the length is less than 1 or more than the encoder has positions for, if PyTorch does not
            count the model's attention implementation, or if the cost of a text depends on its words (use
            `collect_trace(..., count_flops=True)` for such methods).

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf.models.modeling_deebert import DeeBertConfig, DeeBertForSequenceClassification
        >>> encoder = BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8)
        >>> model = DeeBertForSequenceClassification(DeeBertConfig(encoder_config=encoder))
        >>> flops_per_exit(model, tokens=3).tolist()
        [960, 1440]
    """
    check_whole_number("tokens", tokens, low=1, advice="e.g. tokens=64")
    if model.spares_tokens:
        raise ValueError(
            f"model: in '{model.config.model_type}' tokens skip layers, so the cost of a text depends on its words, "
            "not only on its length; call collect_trace(model, dataset, count_flops=True)"
        )
    row = {"input_ids": [0] * tokens}
    if model.config.head == "pair":  # which tokens belong to which text does not change the cost
        row["token_type_ids"] = [0] * (tokens - 1) + [1]
    return _count(model, row)


class RowFlops:
    """Count the FLOPs of tokenized rows, only once per length if nothing but the length matters.

    Args:
        model: Model on any device.
    """

    def __init__(self, model: EarlyExitForSequenceClassification) -> None:
        self.model = model
        self._by_length: dict[int, Tensor] = {}

    def of(self, row: Mapping[str, Any], tokens: int) -> Tensor:
        """Count the FLOPs up to and including each exit for this row alone, (exits,), int64.

        Args:
            row: Tokenized row.
            tokens: Its length without padding on the right.
        """
        if self.model.spares_tokens:
            return _count(self.model, row)
        if tokens not in self._by_length:
            self._by_length[tokens] = flops_per_exit(self.model, tokens)
        return self._by_length[tokens]


@torch.enable_grad()  # the counter fails without gradients if a module is called with a parameter, as in DeBERTa
def _count(model: EarlyExitForSequenceClassification, row: Mapping[str, Any]) -> Tensor:
    attention = model.encoder.config._attn_implementation
    if attention not in ("eager", "sdpa"):
        raise ValueError(
            f"model: PyTorch cannot count the FLOPs of attention implementation '{attention}'; load the model with "
            "attn_implementation='sdpa'"
        )
    counts = []
    # Only some kernels of sdpa are counted; the math kernel consists of matrix products, which are.
    with eval_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        inputs, extents = trimmed(model_inputs(model, padded_batch([row], model.config.encoder_config)))
        for _, (step,) in LayerLoop(model, [InFlight.of(*model.embed(inputs), extents)]):
            if step.exit is not None:
                counts.append(counter.get_total_flops())
    return torch.tensor(counts)
