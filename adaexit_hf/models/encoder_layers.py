"""Run any supported encoder one layer at a time, for all tokens or for some of them.

Transformers runs all layers of an encoder in one call; early exit needs them one by one. One adapter per family says
how that family embeds its input, builds its attention mask, calls a layer, and of which parts a layer consists. States
are exactly (difference 0.0) those of the stock model's `output_hidden_states`.

Some tokens only: keys and values are projected for all tokens, since states that were copied up meet a new layer's
projections; queries, attention, its output projection and the feed-forward part are computed for the active tokens
alone, packed without gaps. DeBERTa's attention, whose scores depend on both positions, ALBERT's groups of several
layers and ModernBERT's windows under flash attention are not split into parts: there whole layers run.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.modeling_layers import GradientCheckpointingLayer

Inputs = dict[str, Tensor | None]


class Context(NamedTuple):
    """What the layers and exits of one batch need besides the hidden states; never changed in place.

    Args:
        padding: 1 for tokens, 0 for pads, (batch, tokens), or what was given instead; None when nothing is padded.
        positions: as given, (batch or 1, tokens); None for 0, 1, 2, ...
        masks: made by the encoder's family from the padding, batch first.
        shared: made by the family, the same for all rows (rotary embeddings, relative positions).
        per_row: what a method needs of each row, batch first.
        per_token: what a method needs of each token, (batch, tokens, ...).
    """

    padding: Tensor | None
    positions: Tensor | None
    masks: dict[str, Tensor | None]
    shared: dict[str, Any] = {}
    per_row: dict[str, Tensor] = {}
    per_token: dict[str, Tensor] = {}

    def select(self, rows: Tensor | slice) -> "Context":
        """Keep only the given rows: their places, (kept,), or a slice."""
        several = self.positions is not None and len(self.positions) > 1
        return self._replace(
            padding=None if self.padding is None else self.padding[rows],
            positions=self.positions[rows] if several else self.positions,  # type: ignore[index]
            masks={name: None if value is None else value[rows] for name, value in self.masks.items()},
            per_row={name: value[rows] for name, value in self.per_row.items()},
            per_token={name: value[rows] for name, value in self.per_token.items()},
        )


class Parts(NamedTuple):
    """The parts of a layer; n active tokens lie at (rows, places) of the batch.

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
    """`Parts.project` of a layer with one linear layer each for queries, keys and values."""

    def project(hidden: Tensor, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = query(hidden[rows, places]), key(hidden), value(hidden)
        return queries.unflatten(-1, (heads, -1)), keys.unflatten(-1, (heads, -1)), values.unflatten(-1, (heads, -1))

    return project


class EncoderLayers:
    """BERT and every family built like it; the other families override what differs.

    All methods are static functions of the stock encoder, so nothing here holds weights or state.
    """

    takes_token_types: ClassVar[bool] = True
    returns_attention: ClassVar[bool] = False  # does a layer return (state, attention) instead of the state?
    activation: ClassVar[str] = "tanh"  # of the family's own classification head
    dropout_names: ClassVar[tuple[str, ...]] = ("classifier_dropout", "hidden_dropout_prob")
    # Where the family keeps its pretrained pooler, and the dense, norm and output layers of its fine-tuned classifier.
    pooler: ClassVar[str | None] = "pooler.dense"
    classifier: ClassVar[dict[str, str]] = {"dense": "{base}.pooler.dense", "classifier": "classifier"}

    @staticmethod
    def max_tokens(config: PreTrainedConfig) -> int | None:
        """Longest input that the position table admits; None when there is no table."""
        return int(config.max_position_embeddings)

    @staticmethod
    def layers(encoder: PreTrainedModel) -> list[nn.Module]:
        """The layers in the order in which they run; a shared layer appears more than once."""
        return list(encoder.encoder.layer)

    @staticmethod
    def embed(encoder: PreTrainedModel, inputs: Inputs, padding: Tensor | None) -> Tensor:
        return encoder.embeddings(**inputs)

    @staticmethod
    def context(
        encoder: PreTrainedModel, hidden: Tensor, padding: Tensor | None, positions: Tensor | None, pads: bool = False
    ) -> Context:
        """What the layers need of a batch besides its states (batch, tokens, hidden).

        Args:
            padding, positions: as in `Context`.
            pads: `padding` is known to have some; else the host reads it, to do without a mask where there are none.
        """
        arguments = {"config": encoder.config, "inputs_embeds": hidden, "attention_mask": padding}
        mask = create_bidirectional_mask(**arguments, allow_is_bidirectional_skip=not pads)
        return Context(padding, positions, {"mask": mask})

    @staticmethod
    def call(encoder: PreTrainedModel, index: int, layer: nn.Module, hidden: Tensor, context: Context) -> Any:
        return layer(hidden, context.masks["mask"])

    @staticmethod
    def parts(layer: Any, context: Context) -> Parts | None:
        """The parts of a layer, so that it can run for some tokens only; None where it cannot be split."""
        attention = layer.attention

        def finish(attended: Tensor, before: Tensor) -> Tensor:
            middle = attention.output(attended, before)
            return layer.output(layer.intermediate(middle), middle)

        own = attention.self
        return Parts(
            _projections(own.query, own.key, own.value, own.num_attention_heads), finish, context.masks["mask"]
        )

    @staticmethod
    def finish(encoder: PreTrainedModel, hidden: Tensor) -> Tensor:
        """What exit heads read: the state itself, or the final norm of it in pre-norm families."""
        return hidden

    @staticmethod
    def pooling(config: PreTrainedConfig) -> str:
        """What the family's classifier reads: "first", the first token's state, or "mean", that of all tokens."""
        return "first"


class _Roberta(EncoderLayers):
    classifier = {"dense": "classifier.dense", "classifier": "classifier.out_proj"}

    @staticmethod
    def max_tokens(config: PreTrainedConfig) -> int | None:
        # Positions start behind the padding index.
        return int(config.max_position_embeddings) - int(config.pad_token_id or 0) - 1


class _Electra(EncoderLayers):
    activation = "gelu"
    pooler = None
    classifier = _Roberta.classifier

    @staticmethod
    def embed(encoder: PreTrainedModel, inputs: Inputs, padding: Tensor | None) -> Tensor:
        hidden = encoder.embeddings(**inputs)
        if encoder.config.embedding_size != encoder.config.hidden_size:
            hidden = encoder.embeddings_project(hidden)
        return hidden


class _Albert(EncoderLayers):
    dropout_names = ("classifier_dropout_prob",)
    pooler = "pooler"
    classifier = {"dense": "{base}.pooler", "classifier": "classifier"}

    @staticmethod
    def layers(encoder: PreTrainedModel) -> list[nn.Module]:
        depth, groups = encoder.config.num_hidden_layers, encoder.config.num_hidden_groups
        # The stock model's own rounding, kept to the letter: it decides which group runs where they do not divide.
        return [encoder.encoder.albert_layer_groups[int(index / (depth / groups))] for index in range(depth)]

    @staticmethod
    def embed(encoder: PreTrainedModel, inputs: Inputs, padding: Tensor | None) -> Tensor:
        return encoder.encoder.embedding_hidden_mapping_in(encoder.embeddings(**inputs))

    @staticmethod
    def parts(layer: Any, context: Context) -> Parts | None:
        if len(layer.albert_layers) > 1:  # tokens that skip a group of layers see the group as one layer
            return None
        (inner,) = layer.albert_layers
        own = inner.attention

        def finish(attended: Tensor, before: Tensor) -> Tensor:
            middle = own.LayerNorm(before + own.output_dropout(own.dense(attended)))
            return inner.full_layer_layer_norm(inner.ff_chunk(middle) + middle)

        project = _projections(own.query, own.key, own.value, own.num_attention_heads)
        return Parts(project, finish, context.masks["mask"])


class _DistilBert(EncoderLayers):
    takes_token_types = False
    activation = "relu"
    dropout_names = ("seq_classif_dropout",)
    pooler = None
    classifier = {"dense": "pre_classifier", "classifier": "classifier"}

    @staticmethod
    def layers(encoder: PreTrainedModel) -> list[nn.Module]:
        return list(encoder.transformer.layer)

    @staticmethod
    def parts(layer: Any, context: Context) -> Parts | None:
        own = layer.attention

        def finish(attended: Tensor, before: Tensor) -> Tensor:
            middle = layer.sa_layer_norm(own.out_lin(attended) + before)
            return layer.output_layer_norm(layer.ffn(middle) + middle)

        return Parts(_projections(own.q_lin, own.k_lin, own.v_lin, own.n_heads), finish, context.masks["mask"])


class _MPNet(_Roberta):
    takes_token_types = False
    returns_attention = True
    dropout_names = ("hidden_dropout_prob",)

    @staticmethod
    def context(
        encoder: PreTrainedModel, hidden: Tensor, padding: Tensor | None, positions: Tensor | None, pads: bool = False
    ) -> Context:
        context = EncoderLayers.context(encoder, hidden, padding, positions, pads)
        if torch.is_grad_enabled():  # as in the stock model, to the last bit of the gradients
            bias = encoder.encoder.compute_position_bias(hidden)
            return context._replace(masks=context.masks | {"bias": bias})
        return context._replace(shared={"bias": encoder.encoder.compute_position_bias(hidden[:1])})

    @staticmethod
    def call(encoder: PreTrainedModel, index: int, layer: nn.Module, hidden: Tensor, context: Context) -> Any:
        bias = (context.masks | context.shared)["bias"]
        return layer(hidden, context.masks["mask"], bias, output_attentions=True)

    @staticmethod
    def parts(layer: Any, context: Context) -> Parts | None:
        attention = layer.attention
        own = attention.attn

        def finish(attended: Tensor, before: Tensor) -> Tensor:
            middle = attention.LayerNorm(attention.dropout(own.o(attended)) + before)
            return layer.output(layer.intermediate(middle), middle)

        bias, mask = cast(Tensor, (context.masks | context.shared)["bias"]), context.masks["mask"]
        scores = bias if mask is None else bias + mask
        return Parts(_projections(own.q, own.k, own.v, own.num_attention_heads), finish, scores)


class _DebertaV2(EncoderLayers):
    returns_attention = True
    activation = "pooler_hidden_act"
    dropout_names = ("cls_dropout", "hidden_dropout_prob")
    pooler = None
    classifier = {"dense": "pooler.dense", "classifier": "classifier"}

    @staticmethod
    def max_tokens(config: PreTrainedConfig) -> int | None:
        return int(config.max_position_embeddings) if config.position_biased_input else None

    @staticmethod
    def embed(encoder: PreTrainedModel, inputs: Inputs, padding: Tensor | None) -> Tensor:
        return encoder.embeddings(**inputs, mask=padding)

    @staticmethod
    def context(
        encoder: PreTrainedModel, hidden: Tensor, padding: Tensor | None, positions: Tensor | None, pads: bool = False
    ) -> Context:
        ones = hidden.new_ones(hidden.shape[:2]) if padding is None else padding
        relative = {
            "relative_pos": encoder.encoder.get_rel_pos(hidden),
            "rel_embeddings": encoder.encoder.get_rel_embedding(),
        }
        masks = {"mask": encoder.encoder.get_attention_mask(ones), "ones": ones}
        if encoder.encoder.conv is not None:
            masks["input"] = hidden  # what the convolution after layer 1 reads
        return Context(padding, positions, masks, relative)

    @staticmethod
    def call(encoder: PreTrainedModel, index: int, layer: nn.Module, hidden: Tensor, context: Context) -> Any:
        mask = context.masks["mask"]
        hidden, attention = layer(hidden, mask, query_states=None, output_attentions=True, **context.shared)
        if index == 0 and encoder.encoder.conv is not None:
            hidden = encoder.encoder.conv(context.masks["input"], hidden, context.masks["ones"])
        return hidden, attention

    @staticmethod
    def parts(layer: Any, context: Context) -> Parts | None:
        return None


class _ModernBert(EncoderLayers):
    takes_token_types = False
    activation = "classifier_activation"
    dropout_names = ("classifier_dropout",)
    pooler = None
    classifier = {"dense": "head.dense", "norm": "head.norm", "classifier": "classifier"}

    @staticmethod
    def max_tokens(config: PreTrainedConfig) -> int | None:
        return None  # rotary positions

    @staticmethod
    def layers(encoder: PreTrainedModel) -> list[nn.Module]:
        return list(encoder.layers)

    @staticmethod
    def embed(encoder: PreTrainedModel, inputs: Inputs, padding: Tensor | None) -> Tensor:
        return encoder.embeddings(input_ids=inputs["input_ids"], inputs_embeds=inputs["inputs_embeds"])

    @staticmethod
    def context(
        encoder: PreTrainedModel, hidden: Tensor, padding: Tensor | None, positions: Tensor | None, pads: bool = False
    ) -> Context:
        arguments = {"config": encoder.config, "inputs_embeds": hidden, "attention_mask": padding}
        arguments["allow_is_bidirectional_skip"] = not pads
        masks = {
            "full_attention": create_bidirectional_mask(**arguments),
            "sliding_attention": create_bidirectional_sliding_window_mask(**arguments),
        }
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = {  # (1 or batch, 2, tokens, size of a head); a row with positions of its own takes them along
            f"rotary_{kind}": torch.stack(encoder.rotary_emb(hidden, positions, kind), dim=1)
            for kind in set(encoder.config.layer_types)
        }
        if len(positions) > 1:
            return Context(padding, positions, masks | rotary)
        return Context(padding, positions, masks, rotary)

    @staticmethod
    def call(encoder: PreTrainedModel, index: int, layer: nn.Module, hidden: Tensor, context: Context) -> Any:
        kind = str(layer.attention_type)
        rotary = (context.masks | context.shared)[f"rotary_{kind}"]
        return layer(hidden, attention_mask=context.masks[kind], position_embeddings=rotary.unbind(dim=1))

    @staticmethod
    def finish(encoder: PreTrainedModel, hidden: Tensor) -> Tensor:
        return encoder.final_norm(hidden)

    @staticmethod
    def pooling(config: PreTrainedConfig) -> str:
        return "first" if config.classifier_pooling == "cls" else "mean"

    @staticmethod
    def parts(layer: Any, context: Context) -> Parts | None:
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
                queries = functional.linear(
                    states[rows, places], weight[:width], None if bias is None else bias[:width]
                )
                both = functional.linear(states, weight[width:], None if bias is None else bias[width:])
            else:  # an adapter's, quantized or offloaded weights: only the module itself knows what it computes
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


FAMILIES: dict[str, type[EncoderLayers]] = {
    "albert": _Albert,
    "bert": EncoderLayers,
    "deberta-v2": _DebertaV2,
    "distilbert": _DistilBert,
    "electra": _Electra,
    "modernbert": _ModernBert,
    "mpnet": _MPNet,
    "roberta": _Roberta,
    "xlm-roberta": _Roberta,
}


def family_named(model_type: str | None) -> type[EncoderLayers]:
    """The class that drives encoders of this `model_type`.

    Raises:
        ValueError: it is not supported.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"encoder_config: cannot run '{model_type}' layer by layer; supported: {', '.join(FAMILIES)}. "
            "Pass the config of one of these, e.g. encoder_config=BertConfig()"
        )
    return FAMILIES[model_type]


def family_of(config: PreTrainedConfig) -> type[EncoderLayers]:
    """The class that drives this encoder; a ValueError if there is none."""
    return family_named(config.model_type)


def embed_inputs(
    encoder: PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> tuple[Tensor, Context]:
    """Embed a batch.

    Returns:
        the input of layer 1, shape (batch, tokens, hidden), and the context that the layers need.

    Raises:
        ValueError: neither or both of `input_ids` and `inputs_embeds`; an empty batch; shapes that do not match; a
            text longer than the position table.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(
            "pass exactly one of input_ids and inputs_embeds, e.g. model(**tokenizer(text, return_tensors='pt'))"
        )
    family = family_of(encoder.config)
    shape = tuple(input_ids.shape if input_ids is not None else inputs_embeds.shape[:-1])  # type: ignore[union-attr]
    if len(shape) != 2:
        raise ValueError(f"input_ids: got shape {shape}; pass a batch, shape (batch, tokens), e.g. input_ids[None]")
    if attention_mask is not None and attention_mask.dim() == 2 and tuple(attention_mask.shape) != shape:
        raise ValueError(f"attention_mask: got shape {tuple(attention_mask.shape)}; pass that of input_ids, {shape}")
    batch, tokens = shape
    if batch == 0 or tokens == 0:
        raise ValueError(
            f"input_ids: got an empty batch of shape ({batch}, {tokens}); pass at least one text with one token"
        )
    if attention_mask is not None and attention_mask.dim() > 2:
        attention_mask = attention_mask.expand(batch, *attention_mask.shape[1:])  # rows are picked from it
    limit = family.max_tokens(encoder.config)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"input_ids: got {tokens} tokens, but '{encoder.config.model_type}' has positions for {limit}; "
            f"call tokenizer(text, truncation=True, max_length={limit})"
        )
    inputs = {"input_ids": input_ids, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
    if family.takes_token_types:
        inputs["token_type_ids"] = token_type_ids
    hidden = family.embed(encoder, inputs, attention_mask)
    return hidden, family.context(encoder, hidden, attention_mask, position_ids)


def run_layer(
    encoder: PreTrainedModel,
    index: int,
    layer: nn.Module,
    hidden: Tensor,
    context: Context,
    recompute: "Recompute | None" = None,
) -> tuple[Tensor, Tensor | None]:
    """Run layer `index` (0-based) on states of shape (batch, tokens, hidden).

    Args:
        recompute: for the families whose layers cannot recompute their activations themselves.

    Returns:
        the new states, and the attention weights (batch, heads, tokens, tokens) where the family's layers return them.
    """
    family = family_of(encoder.config)
    # Only in training, since the hooks of offloaded models would move the encoder, an argument of this module.
    call = recompute if recompute is not None and recompute.training else family.call
    output = call(encoder, index, layer, hidden, context)
    return output if family.returns_attention else (output, None)


class Recompute(GradientCheckpointingLayer):
    """Calls a layer, and under activation checkpointing recomputes it in the backward pass; holds no weights.

    ALBERT and MPNet need it: their own layers are no `GradientCheckpointingLayer`.
    """

    def forward(self, encoder: PreTrainedModel, index: int, layer: nn.Module, hidden: Tensor, context: Context) -> Any:
        return family_of(encoder.config).call(encoder, index, layer, hidden, context)

    @classmethod
    def if_needed(cls, encoder: PreTrainedModel) -> "Recompute | None":
        """One such module, or None where the encoder's layers can do it themselves."""
        native = any(isinstance(module, GradientCheckpointingLayer) for module in encoder.modules())
        return None if native else cls()


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
    parts = None if whole or torch.compiler.is_compiling() else _parts_of(encoder, layer, context)
    if parts is None:
        after, attention = run_layer(encoder, index, layer, hidden, context, recompute)
        return torch.where(active.unsqueeze(-1), after, hidden), attention
    rows, places = active.nonzero(as_tuple=True)
    if len(rows):
        slots = (active.cumsum(dim=1) - 1)[rows, places]
        hidden = _run_parts(parts, hidden, rows, places, slots)
    return hidden, None


def run_first(
    encoder: PreTrainedModel, index: int, layer: nn.Module, hidden: Tensor, context: Context
) -> tuple[Tensor, Tensor | None]:
    """Run layer `index` (0-based) for the first token of each row: (batch, tokens, hidden) -> (batch, 1, hidden)."""
    parts = _parts_of(encoder, layer, context)
    if parts is None:
        return run_layer(encoder, index, layer, hidden, context)[0][:, :1], None
    rows = torch.arange(len(hidden), device=hidden.device)
    queries, keys, values = parts.project(hidden, rows, torch.zeros_like(rows))
    attended = functional.scaled_dot_product_attention(
        queries.unsqueeze(2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=_of_queries(parts.mask, slice(1))
    )
    return parts.finish(attended.flatten(1), hidden[:, 0]).to(hidden.dtype).unsqueeze(1), None


def _parts_of(encoder: PreTrainedModel, layer: nn.Module, context: Context) -> Parts | None:
    # Masks of flex attention are no tensors, those of flash attention lack ModernBERT's windows.
    implementation = encoder.config._attn_implementation
    windowed = getattr(layer, "attention_type", None) == "sliding_attention"
    if implementation == "flex_attention" or (windowed and implementation not in ("eager", "sdpa")):
        return None
    return family_of(encoder.config).parts(layer, context)


def _of_queries(mask: Tensor | None, places: slice) -> Tensor | None:
    """Mask of the queries at `places`, as attention wants it; a mask (batch, tokens) is the same for all queries."""
    if mask is None:
        return None
    return mask[:, None, None].bool() if mask.dim() == 2 else mask[:, :, places]


def _run_parts(parts: Parts, hidden: Tensor, rows: Tensor, places: Tensor, slots: Tensor) -> Tensor:
    queries, keys, values = parts.project(hidden, rows, places)
    # Attention wants a rectangle: the active tokens of each row to the left, gaps on the right.
    shape = (len(hidden), int(slots.max()) + 1)
    rectangle = queries.new_zeros(*shape, *queries.shape[1:]).index_put((rows, slots), queries)
    mask = _of_queries(parts.mask, slice(None))
    if mask is not None and mask.shape[2] > 1:
        at = places.new_zeros(shape).index_put((rows, slots), places)
        batch = torch.arange(len(hidden), device=hidden.device)[:, None]
        mask = mask.expand(len(hidden), -1, -1, -1).transpose(1, 2)[batch, at].transpose(1, 2)
    attended = functional.scaled_dot_product_attention(
        rectangle.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
    )
    packed = attended.transpose(1, 2)[rows, slots].flatten(-2)
    return hidden.index_put((rows, places), parts.finish(packed, hidden[rows, places]).to(hidden.dtype))
