"""Depths of tokens from how well each layer can restore them. Liu et al., AAAI 2021, section 2.2 and Eq. 4.

A masked language model with a prediction after every layer ("anytime") is trained on texts of the task, without their
labels; then each token is masked in turn, and its depth is the layer that restores it at the least cost,

    d(t) = argmin_n (loss_n + penalty n).

Deliberate difference: Eq. 4 has minus, which would favour deep layers; the paper's Table 4, where a larger penalty
gives lesser depths, needs plus.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from ..models.batching import Row, by_length, checked_rows
from ..models.encoder_layers import embed_inputs, family_of, run_layer

# The stock prediction head of each family: states (n, hidden) -> logits (n, vocabulary).
_HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "albert": lambda model, hidden: model.predictions(hidden),
    "bert": lambda model, hidden: model.cls(hidden),
    "deberta-v2": lambda model, hidden: model.cls(hidden),
    "distilbert": lambda model, hidden: model.vocab_projector(
        model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    ),
    "electra": lambda model, hidden: model.generator_lm_head(model.generator_predictions(hidden)),
    "modernbert": lambda model, hidden: model.decoder(model.head(hidden)),
    "mpnet": lambda model, hidden: model.lm_head(hidden),
    "roberta": lambda model, hidden: model.lm_head(hidden),
    "xlm-roberta": lambda model, hidden: model.lm_head(hidden),
}
CHUNK = 32  # texts between two writes to the file


def anytime_losses(model: PreTrainedModel, inputs: Mapping[str, Tensor | None], targets: Tensor) -> Tensor:
    """Cross-entropy of every layer's prediction at the tokens that are asked for, in nats: (layers, tokens asked for).

    Args:
        model: a stock `...ForMaskedLM` of any supported family; its one prediction head serves all layers.
        inputs: of the encoder, (batch, tokens).
        targets: the tokens to restore, (batch, tokens), -100 elsewhere.
    """
    encoder = model.base_model
    family = family_of(encoder.config)
    hidden, context = embed_inputs(encoder, **inputs)
    asked = targets != -100
    losses = []
    for index, layer in enumerate(family.layers(encoder)):
        hidden, _ = run_layer(encoder, index, layer, hidden, context)
        # The head is the most expensive part: it sees the masked tokens only.
        logits = _HEADS[encoder.config.model_type](model, family.finish(encoder, hidden)[asked])
        losses.append(functional.cross_entropy(logits.float(), targets[asked], reduction="none"))
    return torch.stack(losses)


def anytime_masked_lm(model: PreTrainedModel) -> PreTrainedModel:
    """Make a stock `...ForMaskedLM` train a prediction after every layer; the layers' losses are summed.

    Only its forward changes, so that it trains with Transformers' `Trainer` and `DataCollatorForLanguageModeling`, and
    saves as ever.

    Raises:
        ValueError: the model is no masked language model of a supported family.
    """
    _check_masked_lm(model)
    model.forward = functools.partial(_anytime_forward, model)
    return model


def _check_masked_lm(model: PreTrainedModel) -> None:
    if not type(model).__name__.endswith("ForMaskedLM"):
        raise ValueError(
            f"model: got {type(model).__name__}; pass a masked language model, e.g. "
            "AutoModelForMaskedLM.from_pretrained(...)"
        )
    family_of(model.base_model.config)


def _anytime_forward(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    labels: Tensor | None = None,
) -> MaskedLMOutput:
    if labels is None:
        raise ValueError("labels: missing; use DataCollatorForLanguageModeling, which masks tokens and names them")
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    losses = anytime_losses(model, inputs, labels)
    return MaskedLMOutput(loss=losses.mean(dim=1).sum() if losses.shape[1] else losses.sum())


def depths_by_penalty(losses: Tensor, penalty: float) -> Tensor:
    """argmin_n (loss_n + penalty n), Eq. 4 with its sign put right: (layers, tokens) -> (tokens,), 1..layers.

    >>> losses = torch.tensor([[2.0, 0.5], [1.0, 0.45], [0.8, 0.44]])
    >>> depths_by_penalty(losses, 0.1).tolist(), depths_by_penalty(losses, 0.5).tolist()
    ([3, 1], [2, 1])
    """
    layers = torch.arange(1, len(losses) + 1, device=losses.device)
    return (losses + penalty * layers[:, None]).argmin(dim=0) + 1


def estimate_depths_by_reconstruction(
    dataset: Any,
    model: PreTrainedModel,
    tokenizer: Any,
    penalty: float = 0.1,
    batch_size: int = 64,
    masked_at_once: int = 1,
    losses_file: str | Path | None = None,
) -> Any:
    """Add the column `token_depths`, layers per token in 1..L, to a tokenized data set; labels are not looked at.

    Args:
        dataset: a `datasets.Dataset` with `input_ids`, not padded.
        model: an anytime masked language model, see `anytime_masked_lm`, as deep as the classifier's encoder.
        tokenizer: for its mask token, and its special tokens, which get depth 1; the unknown token gets L.
        penalty: lambda of Eq. 4, >= 0; the paper's is 0.1.
        batch_size: masked copies of texts per forward pass.
        masked_at_once: tokens masked in one copy, evenly spaced. 1 is the paper's, one copy for each token; about 7 is
            what masked language models are trained on, and as many times faster.
        losses_file: JSON lines, one per text; what it has is not computed again, so that interrupted work goes on, and
            another `penalty` costs nothing.

    Raises:
        ValueError, TypeError: no `datasets.Dataset`, no rows or `input_ids`, no masked language model; a tokenizer
            without a mask token; a negative penalty; a `losses_file` of other texts or another model.
    """
    if not penalty >= 0:
        raise ValueError(f"penalty: got {penalty}; pass a number >= 0, the paper's is 0.1")
    if masked_at_once < 1:
        raise ValueError(f"masked_at_once: got {masked_at_once}; pass 1, as in the paper, or more")
    if tokenizer.mask_token_id is None:
        raise ValueError("tokenizer: has no mask token; pass that of a masked language model")
    _check_masked_lm(model)
    rows = checked_rows(dataset)
    if not hasattr(dataset, "add_column"):
        raise TypeError(
            f"dataset: got {type(dataset).__name__}; pass a datasets.Dataset, e.g. datasets.Dataset.from_list(rows)"
        )
    special = set(tokenizer.all_special_ids)
    places = [[place for place, token in enumerate(row["input_ids"]) if token not in special] for row in rows]
    kept = None if losses_file is None else _LossesFile(Path(losses_file), _fingerprint(rows, model, masked_at_once))
    losses: list[Tensor] = [] if kept is None else kept.read()
    bar = tqdm(total=len(rows), initial=len(losses), desc="Restoring tokens")
    for first in range(len(losses), len(rows), CHUNK):
        chunk = slice(first, first + CHUNK)
        found = _restore(rows[chunk], places[chunk], model, tokenizer.mask_token_id, batch_size, masked_at_once)
        if kept is not None:
            kept.append(found)
        losses += found
        bar.update(len(found))
    bar.close()
    deepest = int(model.config.num_hidden_layers)
    depths = []
    for row, own, per_layer in zip(rows, places, losses, strict=True):
        depths.append([deepest if token == tokenizer.unk_token_id else 1 for token in row["input_ids"]])
        for place, depth in zip(own, depths_by_penalty(per_layer, penalty).tolist(), strict=True):
            depths[-1][place] = depth
    if "token_depths" in dataset.column_names:
        dataset = dataset.remove_columns("token_depths")
    return dataset.add_column("token_depths", depths)


def _restore(
    rows: Sequence[Row], places: Sequence[list[int]], model: Any, mask_id: int, batch_size: int, together: int
) -> list[Tensor]:
    """Losses (layers, places) of each row, to 4 digits, as the file keeps them; each place masked in one copy."""
    copies, owners = [], []
    for number, (row, own) in enumerate(zip(rows, places, strict=True)):
        count = -(-len(own) // together)
        for shift in range(count):
            masked = own[shift::count]
            tokens = list(row["input_ids"])
            for place in masked:
                tokens[place] = mask_id
            copies.append({**row, "input_ids": tokens})
            owners.append((number, masked))
    found: list[dict[int, list[float]]] = [{} for _ in rows]
    training = model.training
    model.eval()
    try:
        for numbers, batch in by_length(copies, batch_size, model.config):
            targets = torch.full_like(batch["input_ids"], -100)
            for line, copy in enumerate(numbers):
                number, masked = owners[copy]
                targets[line, masked] = torch.tensor(rows[number]["input_ids"])[masked]
            inputs = {name: value.to(model.device) for name, value in batch.items() if name != "token_depths"}
            with torch.inference_mode():
                losses = iter(anytime_losses(model, inputs, targets.to(model.device)).T.tolist())
            for copy in numbers:
                number, masked = owners[copy]
                found[number] |= {place: next(losses) for place in masked}
    finally:
        model.train(training)
    layers = int(model.config.num_hidden_layers)
    return [
        torch.tensor([each[place] for place in own]).reshape(len(own), layers).T.round(decimals=4)
        for each, own in zip(found, places, strict=True)
    ]


def _fingerprint(rows: Sequence[Row], model: Any, together: int) -> str:
    """What the losses depend on: texts, weights, and how many tokens are masked at once."""
    sums = [round(float(parameter.detach().double().sum()), 6) for parameter in model.parameters()]
    known = json.dumps([[list(row["input_ids"]) for row in rows], sums, together])
    return hashlib.sha256(known.encode()).hexdigest()


class _LossesFile:
    """JSON lines: the fingerprint, then the losses of one text a line, rounded to 4 digits."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        if not path.exists():
            path.write_text(json.dumps(fingerprint) + "\n")

    def read(self) -> list[Tensor]:
        """All whole lines; a half-written one, of an interrupted run, is cut off."""
        written = self.path.read_bytes()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            os.truncate(self.path, whole)
        lines = written[:whole].decode().splitlines()
        if not lines or json.loads(lines[0]) != self.fingerprint:
            raise ValueError(
                f"losses_file: '{self.path}' was made from other texts, weights or masked_at_once; pass another file, "
                "or delete it"
            )
        return [torch.tensor(json.loads(line)) for line in lines[1:]]

    def append(self, losses: list[Tensor]) -> None:
        with self.path.open("a") as file:
            for each in losses:
                file.write(json.dumps([[round(value, 4) for value in layer] for layer in each.tolist()]) + "\n")
