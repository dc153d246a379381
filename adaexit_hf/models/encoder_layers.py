"""Run any supported encoder one layer at a time, for all tokens or for some of them.

Transformers runs all layers of an encoder in one call, but early exit needs them one by one. For every encoder family
an adapter (`EncoderLayers` and its subclasses) embeds the input, builds the attention mask, calls a layer, and names
the parts of a layer. The states are equal, to the last bit, to the `output_hidden_states` of Transformers' own model.

To run a layer for some tokens only, keys and values are computed for all tokens, since the projections of this layer
are new also for tokens that skipped layers. Queries, attention, output projection and feed-forward layers are computed
for the active tokens only, packed without gaps. Three kinds of layers are not split into parts, so that they always
run for all tokens: those of DeBERTa, whose attention scores depend on both positions; ALBERT's groups of several
layers; and ModernBERT's sliding windows under flash attention.

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
from transformers.utils.import_utils import is_tracing

Inputs = dict[str, Tensor | None]


def recording() -> bool:
    """Return whether the run is being recorded as a graph, which is then used for other texts.

    By `torch.compile`, `torch.export`, `torch.jit.trace`, both ONNX exporters, or the capture of a CUDA graph. A
    branch on data would be recorded as it went for these texts: so all layers run, the answers are selected, and
    values are not checked. (PyTorch's other recorder, `make_fx`, raises an error at such a branch by itself.)
    """
    return bool(is_tracing())


class Context(NamedTuple):
    """What the layers and exits need of a batch besides the hidden states; never changed in place.

    Attributes:
        padding: the attention mask that was passed: 1 for tokens, 0 for padding, shape `(batch, tokens)`, or a mask of
            more dimensions; None without padding.
        positions: the `position_ids`, shape `(batch, tokens)` or `(1, tokens)`; None for 0, 1, 2, ...
        masks: tensors that the encoder family made, by name; their first dimension is the batch.
        shared: objects that the encoder family made and that are the same for all rows, by name: rotary embeddings,
            relative positions.
        per_row: tensors that a method needs of each row, by name, shape `(batch, ...)`.
        per_token: tensors that a method needs of each token, by name, shape `(batch, tokens, ...)`.
    """

    padding: Tensor | None
    positions: Tensor | None
    masks: dict[str, Tensor | None]
    shared: dict[str, Any] = {}
    per_row: dict[str, Tensor] = {}
    per_token: dict[str, Tensor] = {}

    def select(self, rows: Tensor | slice) -> "Context":
        """Return the context of some of the rows.

        Args:
            rows: indices of these rows in the batch, or a slice.
        """
        several = self.positions is not None and len(self.positions) > 1
        return self._replace(
            padding=None if self.padding is None else self.padding[rows],
            positions=self.positions[rows] if several else self.positions,  # type: ignore[index]
            masks={name: None if value is None else value[rows] for name, value in self.masks.items()},
            per_row={name: value[rows] for name, value in self.per_row.items()},
            per_token={name: value[rows] for name, value in self.per_token.items()},
        )


class Parts(NamedTuple):
    """The parts of a layer, to run it for n active tokens; token i of them is at (rows[i], places[i]) in the batch.

    Attributes:
        project: states `(batch, tokens, hidden)`, rows `(n,)`, places `(n,)` -> queries of the active tokens
            `(n, heads, size)`, keys and values of all tokens `(batch, tokens, heads, size)`.
        finish: output of the attention `(n, hidden)`, states before the layer `(n, hidden)` -> states after it.
        mask: added to the attention scores, or bool, True where they count, shape
            `(batch or 1, heads or 1, tokens or 1, tokens)`; None without a mask.
    """

    project: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    finish: Callable[[Tensor, Tensor], Tensor]
    mask: Tensor | None


def _projections(query: Any, key: Any, value: Any, heads: int) -> Any:
    """Return `Parts.project` for a layer that has a linear layer each for queries, keys and values."""

    def project(hidden: Tensor, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = query(hidden[rows, places]), key(hidden), value(hidden)
        return queries.unflatten(-1, (heads, -1)), keys.unflatten(-1, (heads, -1)), values.unflatten(-1, (heads, -1))

    return project


class EncoderLayers:
    """Adapter for BERT and families built like it; other families override what differs.

    All methods are static functions of Transformers' own encoder, so an adapter has no weights and no state.
    """

    # Whether the embeddings accept `token_type_ids`.
    takes_token_types: ClassVar[bool] = True
    # Whether a layer returns (states, attention weights), and not only the states.
    returns_attention: ClassVar[bool] = False
    # Activation of the family's own classification head, or the name of the config's attribute with it.
    activation: ClassVar[str] = "tanh"
    # Attributes of the config that may have the dropout rate of this head; the first that is not None is used.
    dropout_names: ClassVar[tuple[str, ...]] = ("classifier_dropout", "hidden_dropout_prob")
    # Name of the pretrained pooler's dense layer, None for families without a pooler.
    pooler: ClassVar[str | None] = "pooler.dense"
    # Names of the dense, norm and output layers of a fine-tuned classifier; {base} is the encoder.
    classifier: ClassVar[dict[str, str]] = {"dense": "{base}.pooler.dense", "classifier": "classifier"}

    @staticmethod
    def max_tokens(config: PreTrainedConfig) -> int | None:
        """Return the largest number of tokens for which there are position embeddings; None if there is no limit."""
        return int(config.max_position_embeddings)

    @staticmethod
    def layers(encoder: PreTrainedModel) -> list[nn.Module]:
        """Return the layers in the order in which they run; a layer that runs several times appears several times."""
        return list(encoder.encoder.layer)

    @staticmethod
    def embed(encoder: PreTrainedModel, inputs: Inputs, padding: Tensor | None) -> Tensor:
        """Return the input of layer 1, (batch, tokens, hidden)."""
        return encoder.embeddings(**inputs)

    @staticmethod
    def context(
        encoder: PreTrainedModel, hidden: Tensor, padding: Tensor | None, positions: Tensor | None, pads: bool = False
    ) -> Context:
        """Return what the layers need of a batch besides its states.

        Args:
            encoder: the encoder.
            hidden: input of layer 1, shape `(batch, tokens, hidden)`.
            padding: as in `Context`.
            positions: as in `Context`.
            pads: whether `padding` is known to contain padding. Otherwise the CPU reads it, to leave out the mask if
                it does not.
        """
        arguments = {"config": encoder.config, "inputs_embeds": hidden, "attention_mask": padding}
        arguments["allow_is_bidirectional_skip"] = not pads
        mask = None if _needs_no_mask(encoder, padding) else create_bidirectional_mask(**arguments)
        return Context(padding, positions, {"mask": mask})

    @staticmethod
    def call(encoder: PreTrainedModel, index: int, layer: nn.Module, hidden: Tensor, context: Context) -> Any:
        """Run layer `index` (0-based); returns what Transformers' layer returns."""
        return layer(hidden, context.masks["mask"])

    @staticmethod
    def parts(layer: Any, context: Context) -> Parts | None:
        """Return the parts of a layer, so that it can run for some tokens only; None if it cannot be split."""
        attention = layer.attention

        def finish(attended: Tensor, before: Tensor) -> Tensor:
            middle = attention.output(attended, before)
            return layer.output(layer.intermediate(middle), middle)

        inner = attention.self
        project = _projections(inner.query, inner.key, inner.value, inner.num_attention_heads)
        return Parts(project, finish, context.masks["mask"])

    @staticmethod
    def finish(encoder: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Return what exits read: the states themselves, or in pre-norm families the states after the final norm."""
        return hidden

    @staticmethod
    def pooling(config: PreTrainedConfig) -> str:
        """Return what the family's own classifier reads: "first" (token), or "mean" (over the tokens)."""
        return "first"


def _needs_no_mask(encoder: PreTrainedModel, padding: Tensor | None) -> bool:
    """Return whether attention to all tokens needs no mask; Transformers adds one of ones while a graph is recorded.

    ONNX Runtime is faster without, and its attention kernels take no mask of this kind.
    """
    return padding is None and recording() and encoder.config._attn_implementation in ("eager", "sdpa")


class _Roberta(EncoderLayers):
    classifier = {"dense": "classifier.dense", "classifier": "classifier.out_proj"}

    @staticmethod
    def max_tokens(config: PreTrainedConfig) -> int | None:
        # Positions start after the padding index.
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
        # Rounded exactly as in Transformers: this decides which group a layer uses if the number of groups does not
        # divide that of the layers.
        return [encoder.encoder.albert_layer_groups[int(index / (depth / groups))] for index in range(depth)]

    @staticmethod
    def embed(encoder: PreTrainedModel, inputs: Inputs, padding: Tensor | None) -> Tensor:
        return encoder.encoder.embedding_hidden_mapping_in(encoder.embeddings(**inputs))

    @staticmethod
    def parts(layer: Any, context: Context) -> Parts | None:
        if len(layer.albert_layers) > 1:  # such a group counts as one layer, which tokens run or skip as a whole
            return None
        (inner,) = layer.albert_layers
        attention = inner.attention

        def finish(attended: Tensor, before: Tensor) -> Tensor:
            middle = attention.LayerNorm(before + attention.output_dropout(attention.dense(attended)))
            return inner.full_layer_layer_norm(inner.ff_chunk(middle) + middle)

        project = _projections(attention.query, attention.key, attention.value, attention.num_attention_heads)
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
        attention = layer.attention

        def finish(attended: Tensor, before: Tensor) -> Tensor:
            middle = layer.sa_layer_norm(attention.out_lin(attended) + before)
            return layer.output_layer_norm(layer.ffn(middle) + middle)

        project = _projections(attention.q_lin, attention.k_lin, attention.v_lin, attention.n_heads)
        return Parts(project, finish, context.masks["mask"])


class _MPNet(_Roberta):
    takes_token_types = False
    returns_attention = True
    dropout_names = ("hidden_dropout_prob",)

    @staticmethod
    def context(
        encoder: PreTrainedModel, hidden: Tensor, padding: Tensor | None, positions: Tensor | None, pads: bool = False
    ) -> Context:
        context = EncoderLayers.context(encoder, hidden, padding, positions, pads)
        if torch.is_grad_enabled():  # one bias per row, as in Transformers, so that the gradients are exactly equal
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
        inner = attention.attn

        def finish(attended: Tensor, before: Tensor) -> Tensor:
            middle = attention.LayerNorm(attention.dropout(inner.o(attended)) + before)
            return layer.output(layer.intermediate(middle), middle)

        bias, mask = cast(Tensor, (context.masks | context.shared)["bias"]), context.masks["mask"]
        biased_mask = bias if mask is None else bias + mask
        project = _projections(inner.q, inner.k, inner.v, inner.num_attention_heads)
        return Parts(project, finish, biased_mask)


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
            masks["input"] = hidden  # the convolution after layer 1 reads the embeddings, too
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
            "full_attention": None if _needs_no_mask(encoder, padding) else create_bidirectional_mask(**arguments),
            "sliding_attention": create_bidirectional_sliding_window_mask(**arguments),
        }
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = {  # (1 or batch, 2, tokens, size of a head)
            f"rotary_{kind}": torch.stack(encoder.rotary_emb(hidden, positions, kind), dim=1)
            for kind in set(encoder.config.layer_types)
        }
        if len(positions) > 1:  # in `masks`, since they must be selected with the rows
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
        attention, size = layer.attn, layer.attn.head_dim
        kind = str(layer.attention_type)
        cosine, sine = (context.masks | context.shared)[f"rotary_{kind}"].unbind(dim=1)  # (batch or 1, tokens, size)

        def rotated(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
            first, second = values.float().chunk(2, dim=-1)
            swapped = torch.cat((-second, first), dim=-1)
            return (values.float() * cosine.unsqueeze(-2) + swapped * sine.unsqueeze(-2)).to(values.dtype)

        def project(hidden: Tensor, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            states = layer.attn_norm(hidden)
            width = attention.Wqkv.out_features // 3
            weight, bias = attention.Wqkv.weight, attention.Wqkv.bias
            # The weights of torchao are tensors of a class of their own, in a layer of the usual one.
            plain = type(attention.Wqkv) is nn.Linear and type(weight) is nn.Parameter
            if plain and weight.device == states.device:
                queries = functional.linear(
                    states[rows, places], weight[:width], None if bias is None else bias[:width]
                )
                keys_values = functional.linear(states, weight[width:], None if bias is None else bias[width:])
            else:  # a PEFT adapter, or quantized or offloaded weights: these cannot be split
                projected = attention.Wqkv(states)
                queries, keys_values = projected[rows, places, :width], projected[..., width:]
            keys, values = keys_values.unflatten(-1, (2, -1, size)).unbind(dim=-3)
            row = rows if len(cosine) > 1 else torch.zeros_like(rows)
            queries = rotated(queries.unflatten(-1, (-1, size)), cosine[row, places], sine[row, places])
            return queries, rotated(keys, cosine, sine), values

        def finish(attended: Tensor, before: Tensor) -> Tensor:
            middle = before + attention.out_drop(attention.Wo(attended))
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
    """Return the adapter for encoders of this type.

    Args:
        model_type: `model_type` of an encoder's config.

    Raises:
        ValueError: encoders of this type are not supported.
    """
    if model_type not in FAMILIES:
        raise ValueError(
            f"encoder_config: cannot run '{model_type}' layer by layer; supported: {', '.join(FAMILIES)}. "
            "Pass the config of one of these, e.g. encoder_config=BertConfig()"
        )
    return FAMILIES[model_type]


def family_of(config: PreTrainedConfig) -> type[EncoderLayers]:
    """Return the adapter for an encoder.

    Args:
        config: config of the encoder.

    Raises:
        ValueError: encoders of this type are not supported.
    """
    return family_named(config.model_type)


def check_token_ids(where: str, lowest: int, highest: int, vocab_size: int) -> None:
    """Check that token ids are in the vocabulary.

    Args:
        where: start of the error message, which the id follows.
        lowest: the lowest id.
        highest: the highest id.
        vocab_size: number of tokens in the encoder's vocabulary.

    Raises:
        ValueError: one of them is not.
    """
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"{where} {lowest if lowest < 0 else highest}, but the encoder's vocabulary has the ids 0 to "
            f"{vocab_size - 1}; use the tokenizer of the checkpoint, or call "
            "model.resize_token_embeddings(len(tokenizer)) before training"
        )


def embed_inputs(
    encoder: PreTrainedModel,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> tuple[Tensor, Context]:
    """Check the inputs of a batch, and compute the input of layer 1.

    Args:
        encoder: the encoder.
        input_ids: token ids, shape `(batch, tokens)`.
        attention_mask: 1 for tokens, 0 for padding, shape `(batch, tokens)`, or a mask of more dimensions.
        token_type_ids: shape `(batch, tokens)`; ignored by families without token types.
        position_ids: shape `(batch, tokens)` or `(1, tokens)`.
        inputs_embeds: embeddings in place of `input_ids`, shape `(batch, tokens, hidden)`.

    Returns:
        The input of layer 1, shape `(batch, tokens, hidden)`, and the context that the layers need.

    Raises:
        ValueError: neither or both of `input_ids` and `inputs_embeds`; an empty batch; shapes that do not match; a
            text with more tokens than there are position embeddings; an id that is not in the vocabulary.
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
        attention_mask = attention_mask.expand(batch, *attention_mask.shape[1:])  # one per row, to select rows from it
    limit = family.max_tokens(encoder.config)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"input_ids: got {tokens} tokens, but '{encoder.config.model_type}' has positions for {limit}; "
            f"call tokenizer(text, truncation=True, max_length={limit})"
        )
    # On a GPU the CPU would have to wait, and the GPU stops with an error of its own.
    if input_ids is not None and input_ids.device.type == "cpu" and not recording():
        lowest, highest = torch.stack(input_ids.aminmax()).tolist()
        check_token_ids("input_ids: got", lowest, highest, encoder.config.vocab_size)
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
    """Run a layer for all tokens.

    Args:
        encoder: the encoder.
        index: number of the layer, from 0.
        layer: the layer.
        hidden: its input, shape `(batch, tokens, hidden)`.
        context: the batch's context.
        recompute: as `Recompute.if_needed` returns it.

    Returns:
        The layer's output, and the attention weights, shape `(batch, heads, tokens, tokens)`, if the family's layers
        return them, else None.
    """
    family = family_of(encoder.config)
    # Only in training, since the hooks of offloaded models would move all arguments of a module, here the encoder.
    call = recompute if recompute is not None and recompute.training else family.call
    output = call(encoder, index, layer, hidden, context)
    return output if family.returns_attention else (output, None)


class Recompute(GradientCheckpointingLayer):
    """Calls a layer, and recomputes it in the backward pass if activation checkpointing is on; has no weights.

    Needed for ALBERT and MPNet, whose own layers are not of the class `GradientCheckpointingLayer`.
    """

    def forward(self, encoder: PreTrainedModel, index: int, layer: nn.Module, hidden: Tensor, context: Context) -> Any:
        """Run the layer; arguments as in `EncoderLayers.call`."""
        return family_of(encoder.config).call(encoder, index, layer, hidden, context)

    @classmethod
    def if_needed(cls, encoder: PreTrainedModel) -> "Recompute | None":
        """Return such a module, or None if the encoder's own layers support activation checkpointing.

        Args:
            encoder: the encoder.
        """
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
    """Run a layer for the active tokens; the other tokens keep their states.

    Args:
        encoder: the encoder.
        index: number of the layer, from 0.
        layer: the layer.
        hidden: its input, shape `(batch, tokens, hidden)`.
        context: the batch's context.
        active: bool, shape `(batch, tokens)`: True where the layer is run.
        recompute: as in `run_layer`.
        whole: compute the layer for all tokens, and then restore the states of those that are not active. The result
            is the same.

    Returns:
        As in `run_layer`; attention weights only with `whole`.
    """
    parts = None if whole or recording() else _parts_of(encoder, layer, context)
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
    """Run a layer for the first token of each row.

    Args:
        encoder: the encoder.
        index: number of the layer, from 0.
        layer: the layer.
        hidden: its input, shape `(batch, tokens, hidden)`.
        context: the batch's context.

    Returns:
        The first token's state after the layer, shape `(batch, 1, hidden)`, and None in place of attention weights.
    """
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
    """Return the parts of a layer, or None if it cannot be split with this implementation of attention."""
    # The masks of flex attention are not tensors, and those of flash attention lack ModernBERT's sliding windows.
    implementation = encoder.config._attn_implementation
    windowed = getattr(layer, "attention_type", None) == "sliding_attention"
    if implementation == "flex_attention" or (windowed and implementation not in ("eager", "sdpa")):
        return None
    return family_of(encoder.config).parts(layer, context)


def _of_queries(mask: Tensor | None, places: slice) -> Tensor | None:
    """Return a mask, as attention takes it, for the queries at `places`; (batch, tokens) is one for all queries."""
    if mask is None:
        return None
    return mask[:, None, None].bool() if mask.dim() == 2 else mask[:, :, places]


def _run_parts(parts: Parts, hidden: Tensor, rows: Tensor, places: Tensor, slots: Tensor) -> Tensor:
    """Run a layer for the tokens at (rows, places); `slots` numbers the active tokens of each row, from 0."""
    queries, keys, values = parts.project(hidden, rows, places)
    # Attention needs a rectangular batch of queries: the active tokens of each row on the left, padding on the right.
    shape = (len(hidden), int(slots.max()) + 1)
    rectangle = queries.new_zeros(*shape, *queries.shape[1:]).index_put((rows, slots), queries)
    mask = _of_queries(parts.mask, slice(None))
    if mask is not None and mask.shape[2] > 1:
        slot_places = places.new_zeros(shape).index_put((rows, slots), places)
        batch = torch.arange(len(hidden), device=hidden.device)[:, None]
        mask = mask.expand(len(hidden), -1, -1, -1).transpose(1, 2)[batch, slot_places].transpose(1, 2)
    attended = functional.scaled_dot_product_attention(
        rectangle.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
    )
    packed = attended.transpose(1, 2)[rows, slots].flatten(-2)
    return hidden.index_put((rows, places), parts.finish(packed, hidden[rows, places]).to(hidden.dtype))
