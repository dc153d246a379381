"""Run an encoder layer for some tokens only; the others keep their state and stay visible to attention.

Keys and values are projected for all tokens, since states that were copied up meet a new layer's projections; queries,
attention, its output projection and the feed-forward part are computed for the active tokens alone, packed without
gaps. DeBERTa's attention, whose scores depend on both positions, ALBERT's groups of several layers and ModernBERT's
windows under flash attention are not taken apart: there whole layers run.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from .context import Context
from .encoder_layers import Recompute
from .encoder_layers import run_layer


class Parts(NamedTuple):
    """A layer taken apart; n active tokens lie at (rows, places) of the batch.

    Args:
        project: states (batch, tokens, hidden), rows (n,), places (n,) -> queries (n, heads, size) of the active
            tokens, keys and values (batch, tokens, heads, size) of all.
        finish: what attention gives (n, hidden), states (n, hidden) -> new states (n, hidden).
        mask: what is added to the scores, or where they count, (batch or 1, heads or 1, tokens or 1, tokens); or None.
    """

    project: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    finish: Callable[[Tensor, Tensor], Tensor]
    mask: Tensor | None


def _projections(query: Any, key: Any, value: Any, heads: int) -> Any:
    def project(hidden: Tensor, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = query(hidden[rows, places]), key(hidden), value(hidden)
        return queries.unflatten(-1, (heads, -1)), keys.unflatten(-1, (heads, -1)), values.unflatten(-1, (heads, -1))

    return project


def _bert(layer: Any, context: Context) -> Parts:
    attention = layer.attention

    def finish(attended: Tensor, before: Tensor) -> Tensor:
        middle = attention.output(attended, before)
        return layer.output(layer.intermediate(middle), middle)

    own = attention.self
    return Parts(_projections(own.query, own.key, own.value, own.num_attention_heads), finish, context.masks["mask"])


def _albert(group: Any, context: Context) -> Parts:
    (layer,) = group.albert_layers
    own = layer.attention

    def finish(attended: Tensor, before: Tensor) -> Tensor:
        middle = own.LayerNorm(before + own.output_dropout(own.dense(attended)))
        return layer.full_layer_layer_norm(layer.ff_chunk(middle) + middle)

    project = _projections(own.query, own.key, own.value, own.num_attention_heads)
    return Parts(project, finish, context.masks["mask"])


def _distilbert(layer: Any, context: Context) -> Parts:
    own = layer.attention

    def finish(attended: Tensor, before: Tensor) -> Tensor:
        middle = layer.sa_layer_norm(own.out_lin(attended) + before)
        return layer.output_layer_norm(layer.ffn(middle) + middle)

    return Parts(_projections(own.q_lin, own.k_lin, own.v_lin, own.n_heads), finish, context.masks["mask"])


def _mpnet(layer: Any, context: Context) -> Parts:
    attention = layer.attention
    own = attention.attn

    def finish(attended: Tensor, before: Tensor) -> Tensor:
        middle = attention.LayerNorm(attention.dropout(own.o(attended)) + before)
        return layer.output(layer.intermediate(middle), middle)

    bias, mask = cast(Tensor, (context.masks | context.shared)["bias"]), context.masks["mask"]
    scores = bias if mask is None else bias + mask
    return Parts(_projections(own.q, own.k, own.v, own.num_attention_heads), finish, scores)


def _modernbert(layer: Any, context: Context) -> Parts:
    own, size = layer.attn, layer.attn.head_dim
    kind = str(layer.attention_type)
    cosine, sine = (context.masks | context.shared)[f"rotary_{kind}"].unbind(dim=1)  # (batch or 1, tokens, size)

    def rotated(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        first, second = values.float().chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return (values.float() * cosine.unsqueeze(-2) + turned * sine.unsqueeze(-2)).to(values.dtype)

    def project(hidden: Tensor, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = layer.attn_norm(hidden)
        width = own.Wqkv.out_features // 3
        weight, bias = own.Wqkv.weight, own.Wqkv.bias
        if type(own.Wqkv) is nn.Linear and weight.device == states.device:
            queries = functional.linear(states[rows, places], weight[:width], None if bias is None else bias[:width])
            both = functional.linear(states, weight[width:], None if bias is None else bias[width:])
        else:  # an adapter's or quantized weights, or offloaded ones: only the module itself knows what it computes
            whole = own.Wqkv(states)
            queries, both = whole[rows, places, :width], whole[..., width:]
        keys, values = both.unflatten(-1, (2, -1, size)).unbind(dim=-3)
        row = rows if len(cosine) > 1 else torch.zeros_like(rows)
        queries = rotated(queries.unflatten(-1, (-1, size)), cosine[row, places], sine[row, places])
        return queries, rotated(keys, cosine, sine), values

    def finish(attended: Tensor, before: Tensor) -> Tensor:
        middle = before + own.out_drop(own.Wo(attended))
        return middle + layer.mlp(layer.mlp_norm(middle))

    return Parts(project, finish, context.masks[kind])


FAMILIES: dict[str, Callable[[Any, Context], Parts]] = {
    "albert": _albert,
    "bert": _bert,
    "distilbert": _distilbert,
    "electra": _bert,
    "modernbert": _modernbert,
    "mpnet": _mpnet,
    "roberta": _bert,
    "xlm-roberta": _bert,
}


def run_tokens(
    encoder: PreTrainedModel,
    index: int,
    layer: nn.Module,
    hidden: Tensor,
    context: Context,
    active: Tensor,
    recompute: Recompute | None = None,
    whole: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Run layer `index` (0-based) where `active`, (batch, tokens), says so; other tokens keep their state.

    Args:
        whole: run the layer for all tokens, and then keep what was not to change; gives the same states.

    Returns:
        as `run_layer`; attention weights with `whole` only.
    """
    parts = None if whole or torch.compiler.is_compiling() else _taken_apart(encoder, layer)
    if parts is None:
        after, attention = run_layer(encoder, index, layer, hidden, context, recompute)
        return torch.where(active.unsqueeze(-1), after, hidden), attention
    rows, places = active.nonzero(as_tuple=True)
    if len(rows):
        slots = (active.cumsum(dim=1) - 1)[rows, places]
        hidden = _run_part(parts(layer, context), hidden, rows, places, slots)
    return hidden, None


def run_first(
    encoder: PreTrainedModel, index: int, layer: nn.Module, hidden: Tensor, context: Context
) -> tuple[Tensor, Tensor | None]:
    """Run layer `index` (0-based) for the first token of each row: (batch, tokens, hidden) -> (batch, 1, hidden)."""
    parts = _taken_apart(encoder, layer)
    if parts is None:
        return run_layer(encoder, index, layer, hidden, context)[0][:, :1], None
    part, rows = parts(layer, context), torch.arange(len(hidden), device=hidden.device)
    queries, keys, values = part.project(hidden, rows, torch.zeros_like(rows))
    attended = functional.scaled_dot_product_attention(
        queries.unsqueeze(2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=_of_queries(part.mask, slice(1))
    )
    return part.finish(attended.flatten(1), hidden[:, 0]).to(hidden.dtype).unsqueeze(1), None


def _taken_apart(encoder: PreTrainedModel, layer: nn.Module) -> Callable[[Any, Context], Parts] | None:
    # Tokens that a group of layers spares see the group as one layer. Masks of flex attention are no tensors, those of
    # flash attention lack ModernBERT's windows.
    several = len(getattr(layer, "albert_layers", ())) > 1
    implementation = encoder.config._attn_implementation
    windowed = getattr(layer, "attention_type", None) == "sliding_attention"
    if several or implementation == "flex_attention" or (windowed and implementation not in ("eager", "sdpa")):
        return None
    return FAMILIES.get(encoder.config.model_type)


def _of_queries(mask: Tensor | None, places: slice) -> Tensor | None:
    """Mask of the queries at `places`, as attention wants it; a mask (batch, tokens) is the same for all queries."""
    if mask is None:
        return None
    return mask[:, None, None].bool() if mask.dim() == 2 else mask[:, :, places]


def _run_part(part: Parts, hidden: Tensor, rows: Tensor, places: Tensor, slots: Tensor) -> Tensor:
    queries, keys, values = part.project(hidden, rows, places)
    # Attention wants a rectangle: the active tokens of each row to the left, gaps on the right.
    shape = (len(hidden), int(slots.max()) + 1)
    rectangle = queries.new_zeros(*shape, *queries.shape[1:]).index_put((rows, slots), queries)
    mask = _of_queries(part.mask, slice(None))
    if mask is not None and mask.shape[2] > 1:
        at = places.new_zeros(shape).index_put((rows, slots), places)
        batch = torch.arange(len(hidden), device=hidden.device)[:, None]
        mask = mask.expand(len(hidden), -1, -1, -1).transpose(1, 2)[batch, at].transpose(1, 2)
    attended = functional.scaled_dot_product_attention(
        rectangle.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
    )
    packed = attended.transpose(1, 2)[rows, slots].flatten(-2)
    return hidden.index_put((rows, places), part.finish(packed, hidden[rows, places]).to(hidden.dtype))
