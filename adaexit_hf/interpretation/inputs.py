"""The texts that explanations are for, with a baseline to compare each with."""

from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..models.batching import by_length, checked_rows, model_inputs
from ..models.configuration_early_exit import Threshold
from .unrolled import Columns, Unrolled


class Texts(NamedTuple):
    """Texts that are explained together.

    Args:
        places: of the texts in the data set.
        columns: what the model reads besides embeddings, each (batch, tokens).
        embeddings: of words, (batch, tokens, hidden).
        baseline: the same, with the embedding of the baseline token in place of every word.
        words: tokens that are neither pads nor special, (batch, tokens), bool.
        real: tokens that are no pads, (batch, tokens), bool.
        classes: that are explained, (batch,); 0 with one label.
        ranking: classes of every exit, the likeliest first, (batch, exits, labels).
        exit_layer: layers that were run, 1..L, (batch,).
        names: of all tokens, pads included.
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
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    label: int | None,
    exit_threshold: Threshold,
    baseline_id: int | None,
    batch_size: int,
    desc: str | None,
) -> Iterator[Texts]:
    """Batches of a data set, in eval mode; arguments as for `interpretation.explain`.

    Raises:
        ValueError: no rows; `label` or `baseline_id` out of range, or no baseline to be had.
    """
    model, rows = run.model, checked_rows(dataset)
    labels, encoder = model.config.num_labels, model.config.encoder_config
    if label is not None and (isinstance(label, bool) or not isinstance(label, Integral) or not 0 <= label < labels):
        raise ValueError(f"label: got {label}; allowed are 0 to {labels - 1}, or None for each text's own answer")
    if baseline_id is None and tokenizer is not None:
        baseline_id = tokenizer.mask_token_id
    if baseline_id is None:
        baseline_id = encoder.pad_token_id
    if baseline_id is None or not 0 <= baseline_id < encoder.vocab_size:
        raise ValueError(
            f"baseline_id: got {baseline_id}; pass the number of a token that stands for no word, in 0 to "
            f"{encoder.vocab_size - 1}, e.g. baseline_id=tokenizer.mask_token_id"
        )
    special = torch.tensor(sorted(special_ids(encoder, tokenizer)), dtype=torch.long)
    embed, training = model.get_input_embeddings(), model.training
    model.eval()
    try:
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
            answered = output.logits.argmax(dim=-1)
            yield Texts(
                places,
                columns,
                embeddings,
                torch.where(words.unsqueeze(-1), base, embeddings),
                words,
                real,
                answered if label is None else torch.full_like(answered, label),
                trace.exit_logits.argsort(dim=-1, descending=True),
                output.exit_layer,
                [token_names(row, tokenizer) for row in ids.tolist()],
            )
    finally:
        model.train(training)


def special_ids(encoder_config: Any, tokenizer: Any = None) -> set[int]:
    """Tokens that are no words, such as [CLS]: all special ones of a tokenizer but unknown and masked words."""
    if tokenizer is not None:
        return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id, tokenizer.mask_token_id}
    names = ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
    return {found for found in (getattr(encoder_config, name, None) for name in names) if found is not None}


def token_names(ids: list[int], tokenizer: Any = None) -> list[str]:
    """As the tokenizer writes them; without one their numbers."""
    return [str(token) for token in ids] if tokenizer is None else tokenizer.convert_ids_to_tokens(ids)
