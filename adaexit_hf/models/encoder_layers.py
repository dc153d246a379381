"""Drive any supported encoder one layer at a time.

Transformers runs all layers of an encoder in one call; early exit needs them one by one. One small class per family
knows how that family embeds its input, builds its attention mask and calls a layer. States are exactly (difference
0.0) those of the stock model's `output_hidden_states`; `tests/test_encoder_layers.py` tells when upstream changes.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from .context import Context


Inputs = dict[str, Tensor | None]


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


class _DistilBert(EncoderLayers):
    takes_token_types = False
    activation = "relu"
    dropout_names = ("seq_classif_dropout",)
    pooler = None
    classifier = {"dense": "pre_classifier", "classifier": "classifier"}

    @staticmethod
    def layers(encoder: PreTrainedModel) -> list[nn.Module]:
        return list(encoder.transformer.layer)


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


def start(
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
