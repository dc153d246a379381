"""Batches of the texts to explain, each text with a baseline to compare it with."""

from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..models.configuration_early_exit import Threshold
from ..models.padded_batches import by_length, eval_mode, model_inputs, read_rows
from .unrolled import Columns, Unrolled


class Texts(NamedTuple):
    """A batch of texts that are explained together.

    Attributes:
        places: Indices of the texts in the data set.
        columns: Inputs of the model other than embeddings, each (batch, tokens).
        embeddings: Word embeddings, (batch, tokens, hidden).
        baseline: The same, with the embedding of the baseline token in place of every word.
        words: Tokens that are neither padding nor special, (batch, tokens), bool.
        real: Tokens that are not padding, (batch, tokens), bool.
        classes: Classes to explain, (batch,); 0 for regression.
        ranking: Classes of every exit, the most probable first, (batch, exits, labels).
        exit_layer: Number of layers run for each text, 1..L, (batch,).
        names: Names of all tokens, padding included.
    """

    places: list[int]
    columns: Columns
    embeddings: Tensor
    baseline: Tensor
    words: Tensor
    real: Tensor
    classes: Tensor
    ranking: Tensor
    exit_layer: Tensor
    names: list[list[str]]


def texts(
    run: Unrolled,
    dataset: Iterable[Any],
    tokenizer: Any,
    label: int | None,
    exit_threshold: Threshold,
    baseline_id: int | None,
    batch_size: int,
    desc: str | None,
) -> Iterator[Texts]:
    """Yield the batches of a data set while the model is in eval mode. Arguments are those of `explain`.

    Raises:
        ValueError: If there are no rows, or if `label` or `baseline_id` is out of range or has no default.
    """
    model = run.model
    labels, encoder = model.config.num_labels, model.config.encoder_config
    rows = read_rows(dataset, tokenizer, model.config)
    if label is not None and (isinstance(label, bool) or not isinstance(label, Integral) or not 0 <= label < labels):
        raise ValueError(
            f"label: got {label}; allowed are 0 to {labels - 1}, or None for the predicted class of each text"
        )
    if baseline_id is None and tokenizer is not None:
        baseline_id = tokenizer.mask_token_id
    if baseline_id is None:
        baseline_id = encoder.pad_token_id
    if baseline_id is None or not 0 <= baseline_id < encoder.vocab_size:
        raise ValueError(
            f"baseline_id: got {baseline_id}; pass the id of a token without meaning, such as the mask token, in 0 to "
            f"{encoder.vocab_size - 1}, e.g. baseline_id=tokenizer.mask_token_id"
        )
    special = torch.tensor(sorted(special_ids(encoder, tokenizer)), dtype=torch.long)
    embed = model.get_input_embeddings()
    with eval_mode(model):
        for places, batch in by_length(rows, batch_size, encoder, desc):
            columns = run.columns(batch)
            ids, mask = cast(Tensor, columns[0]), columns[1]
            with torch.no_grad():
                inputs = model_inputs(model, batch)
                output, trace = model(**inputs, exit_threshold=exit_threshold), model(**inputs, early_exit=False)
                embeddings, base = embed(ids), embed(torch.full_like(ids, baseline_id))
                columns = run.at_own_depths(embeddings, columns)
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
            words = real & ~torch.isin(ids, special.to(ids.device))
            predicted = output.logits.argmax(dim=-1)
            yield Texts(
                places,
                columns,
                embeddings,
                torch.where(words.unsqueeze(-1), base, embeddings),
                words,
                real,
                predicted if label is None else torch.full_like(predicted, label),
                trace.exit_logits.argsort(dim=-1, descending=True),
                output.exit_layer,
                [token_names(row, tokenizer) for row in ids.tolist()],
            )


def special_ids(encoder_config: Any, tokenizer: Any = None) -> set[int]:
    """Return the ids of special tokens such as [CLS]; unknown and mask tokens stand for words and are not included."""
    if tokenizer is not None:
        return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id, tokenizer.mask_token_id}
    names = ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
    return {token for token in (getattr(encoder_config, name, None) for name in names) if token is not None}


def token_names(ids: list[int], tokenizer: Any = None) -> list[str]:
    """Return the tokenizer's names of tokens, or their ids as text if there is no tokenizer."""
    return [str(token) for token in ids] if tokenizer is None else tokenizer.convert_ids_to_tokens(ids)
