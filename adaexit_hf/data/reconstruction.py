"""Depths of tokens from how well each layer reconstructs them. Liu et al., AAAI 2021, section 2.2 and Eq. 4.

A masked language model that predicts after every layer ("anytime") is trained on texts of the task, without labels.
Then each token is masked in turn; its depth is the layer n with the lowest cost,

    d(t) = argmin_n (loss_n + penalty n).

Deliberate difference: Eq. 4 has a minus sign, which would favor deep layers. In the paper's Table 4 a larger penalty
gives smaller depths, which requires a plus sign.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from ..models.early_exit_loop import InFlight, LayerLoop, right_padded
from ..models.encoder_layers import Context, embed_inputs, family_of, run_layer
from ..models.padded_batches import Row, by_length, eval_mode, items_of, progress_bar

# The prediction head of each family in Transformers: states (n, hidden) -> logits (n, vocabulary).
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
CHUNK = 32  # number of texts between two writes to the file


class _EncoderWithoutExits(NamedTuple):
    """An encoder of Transformers as `LayerLoop` takes it."""

    encoder: PreTrainedModel

    def layer_step(
        self, index: int, layer: nn.Module, hidden: Tensor, context: Context, whole: bool
    ) -> tuple[Tensor, Tensor | None, Context]:
        return *run_layer(self.encoder, index, layer, hidden, context), context


def anytime_losses(model: PreTrainedModel, inputs: Mapping[str, Tensor | None], targets: Tensor) -> Tensor:
    """Cross-entropy of every layer's prediction of the target tokens, in nats.

    Args:
        model: a `...ForMaskedLM` of Transformers of any supported family; all layers share its prediction head.
        inputs: inputs of the encoder, `(batch, tokens)`.
        targets: ids of the tokens to predict, `(batch, tokens)`; -100 for tokens that are not targets.

    Returns:
        The losses, `(layers, targets)`.
    """
    encoder = model.base_model
    family = family_of(encoder.config)
    batch = InFlight.of(*embed_inputs(encoder, **inputs))
    is_target = targets != -100
    losses = []
    depth = encoder.config.num_hidden_layers
    for _, (step,) in LayerLoop(_EncoderWithoutExits(encoder), [batch], last=depth, read_exits=False):
        # Only for the target tokens, because the head is the most expensive part.
        hidden = family.finish(encoder, step.flight.hidden)
        logits = _HEADS[encoder.config.model_type](model, hidden[is_target])
        losses.append(functional.cross_entropy(logits.float(), targets[is_target], reduction="none"))
    return torch.stack(losses)


def anytime_masked_lm(model: PreTrainedModel) -> PreTrainedModel:
    """Make a masked language model predict after every layer; its loss is the sum of the layers' losses.

    Only the model's forward is replaced, so that it can be trained with Transformers' `Trainer` and
    `DataCollatorForLanguageModeling`, and saved as before. Source: Liu et al., AAAI 2021, section 2.2.

    Args:
        model: a `...ForMaskedLM` of Transformers; it is changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: if the model is not a masked language model of a supported family.

    Examples:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(
        ...     vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        ... )
        >>> model = anytime_masked_lm(BertForMaskedLM(config).eval())
        >>> labels = torch.tensor([[-100, 5, -100]])  # the second token is masked
        >>> loss = model(input_ids=torch.tensor([[1, 3, 2]]), labels=labels).loss
        >>> 2 * 2.0 < loss.item() < 2 * 2.4  # two layers, each about ln 9 = 2.2 before training
        True
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
        raise ValueError(
            "labels: got None; use DataCollatorForLanguageModeling, which masks tokens and makes the labels"
        )
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    losses = anytime_losses(model, inputs, labels)
    return MaskedLMOutput(loss=losses.mean(dim=1).sum() if losses.shape[1] else losses.sum())


def depths_by_penalty(losses: Tensor, penalty: float) -> Tensor:
    """The layer n with the lowest loss_n + penalty n for each token: Eq. 4 with the corrected sign.

    Args:
        losses: `(layers, tokens)`.
        penalty: cost of one layer, >= 0.

    Returns:
        Depths from 1 to the number of layers, `(tokens,)`.

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
    """Add the column `token_depths`, the number of layers for each token, to a tokenized data set.

    The depth of a token is the layer that reconstructs it best when it is masked, with a penalty for deep layers.
    Labels are not used. Source: Liu et al., AAAI 2021, section 2.2 and Eq. 4 with a corrected sign (see the module).

    Args:
        dataset: a `datasets.Dataset` with `input_ids`, not padded.
        model: a masked language model that was trained with `anytime_masked_lm`, with as many layers as the
            classifier's encoder.
        tokenizer: its tokenizer. Special tokens get depth 1; the unknown token gets the largest depth.
        penalty: cost of one layer, lambda in Eq. 4, >= 0; larger values give smaller depths. Default: 0.1, as in the
            paper.
        batch_size: number of masked copies of texts in one forward pass, > 0. Default: 64.
        masked_at_once: number of tokens, >= 1, that are masked in one copy of a text, evenly spaced. 1 needs one copy
            per token, as in the paper. Masked language models are trained with about 7; that is about 7 times faster.
            Default: 1.
        losses_file: JSON lines, one per text, in which the losses are saved. Losses that it already has are not
            computed again, so that an interrupted call can be continued, and another `penalty` needs no new
            computation.
            Default: none.

    Returns:
        The data set with the column `token_depths`: for each text a list of depths, from 1 to the number of layers.

    Raises:
        ValueError: if the data set has no rows or no `input_ids`; if the model is not a masked language model; if the
            tokenizer has no mask token; if `penalty`, `batch_size` or `masked_at_once` is out of range; or if
            `losses_file` was made from other texts or another model.
        TypeError: if the data set is not a `datasets.Dataset`.

    Examples:
        >>> from datasets import Dataset
        >>> from transformers import BertConfig, BertForMaskedLM, BertTokenizer
        >>> from adaexit_hf import anytime_masked_lm
        >>> vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film")
        >>> tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
        >>> config = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> model = anytime_masked_lm(BertForMaskedLM(config))  # not trained
        >>> dataset = Dataset.from_list([{"input_ids": tokenizer("a good film")["input_ids"]}])
        >>> dataset = estimate_depths_by_reconstruction(dataset, model, tokenizer, penalty=9.0)
        >>> dataset["token_depths"][0]  # the unknown word "a" runs all layers
        [1, 3, 1, 1, 1]
    """
    if not penalty >= 0:
        raise ValueError(f"penalty: got {penalty}; pass a number >= 0, the paper's is 0.1")
    if masked_at_once < 1:
        raise ValueError(f"masked_at_once: got {masked_at_once}; pass 1, as in the paper, or more")
    if tokenizer.mask_token_id is None:
        raise ValueError("tokenizer: has no mask token; pass the tokenizer of a masked language model")
    _check_masked_lm(model)
    rows = list(items_of(dataset))  # with their padding, since every token of the data set gets a depth
    if not rows:
        raise ValueError("dataset: got no rows; pass at least one")
    if "input_ids" not in rows[0]:
        raise ValueError(
            f"dataset: rows have {', '.join(rows[0])}, but no input_ids; call "
            "dataset.map(lambda row: tokenizer(row['text'], truncation=True)) first"
        )
    if not hasattr(dataset, "add_column"):
        raise TypeError(
            f"dataset: got {type(dataset).__name__}; pass a datasets.Dataset, e.g. datasets.Dataset.from_list(rows)"
        )
    special = set(tokenizer.all_special_ids)
    places = [[place for place, token in enumerate(row["input_ids"]) if token not in special] for row in rows]
    file = None if losses_file is None else _LossesFile(Path(losses_file), _fingerprint(rows, model, masked_at_once))
    losses: list[Tensor] = [] if file is None else file.read()
    bar = progress_bar(total=len(rows), initial=len(losses), desc="Reconstructing tokens")
    for first in range(len(losses), len(rows), CHUNK):
        chunk = slice(first, first + CHUNK)
        new_losses = _losses_of_rows(
            rows[chunk], places[chunk], model, tokenizer.mask_token_id, batch_size, masked_at_once
        )
        if file is not None:
            file.append(new_losses)
        losses += new_losses
        bar.update(len(new_losses))
    bar.close()
    layers = int(model.config.num_hidden_layers)
    depths = []
    for row, row_places, row_losses in zip(rows, places, losses, strict=True):
        row_depths = [layers if token == tokenizer.unk_token_id else 1 for token in row["input_ids"]]
        for place, depth in zip(row_places, depths_by_penalty(row_losses, penalty).tolist(), strict=True):
            row_depths[place] = depth
        depths.append(row_depths)
    if "token_depths" in dataset.column_names:
        dataset = dataset.remove_columns("token_depths")
    return dataset.add_column("token_depths", depths)


def _losses_of_rows(
    rows: Sequence[Row], places: Sequence[list[int]], model: Any, mask_id: int, batch_size: int, masked_at_once: int
) -> list[Tensor]:
    """The losses of every layer at the given places of each row; each place is masked in one copy of its row.

    Args:
        rows: tokenized texts.
        places: indices of the tokens to mask in each row.
        model: a masked language model.
        mask_id: id of the mask token.
        batch_size: number of copies in one forward pass.
        masked_at_once: largest number of tokens that are masked in one copy.

    Returns:
        For each row the losses, `(layers, places)`, rounded to 4 digits as in the file.
    """
    copies, masked_tokens = [], []
    for number, (row, row_places) in enumerate(zip(rows, places, strict=True)):
        copies_of_row = -(-len(row_places) // masked_at_once)
        for shift in range(copies_of_row):
            masked = row_places[shift::copies_of_row]
            tokens = list(row["input_ids"])
            for place in masked:
                tokens[place] = mask_id
            copies.append({**row, "input_ids": tokens})
            masked_tokens.append((number, masked))
    losses_at_places: list[dict[int, list[float]]] = [{} for _ in rows]
    with eval_mode(model):
        for copy_numbers, batch in by_length(copies, batch_size, model.config):
            targets = torch.full_like(batch["input_ids"], -100)
            for line, copy_number in enumerate(copy_numbers):
                number, masked = masked_tokens[copy_number]
                targets[line, masked] = torch.tensor(rows[number]["input_ids"])[masked]
            columns: dict[str, Tensor | None] = {"targets": targets}
            columns |= {name: value for name, value in batch.items() if name != "token_depths"}
            moved, _ = right_padded(columns)
            inputs = {name: cast(Tensor, value).to(model.device) for name, value in moved.items()}
            with torch.inference_mode():
                losses = iter(anytime_losses(model, inputs, inputs.pop("targets")).T.tolist())
            for copy_number in copy_numbers:
                number, masked = masked_tokens[copy_number]
                losses_at_places[number] |= {place: next(losses) for place in masked}
    layers = int(model.config.num_hidden_layers)
    return [
        torch.tensor([row_losses[place] for place in row_places]).reshape(len(row_places), layers).T.round(decimals=4)
        for row_losses, row_places in zip(losses_at_places, places, strict=True)
    ]


def _fingerprint(rows: Sequence[Row], model: Any, masked_at_once: int) -> str:
    """A hash of everything that the losses depend on: texts, weights, and how many tokens are masked at once."""
    sums = [round(float(parameter.detach().double().sum()), 6) for parameter in model.parameters()]
    content = json.dumps([[list(row["input_ids"]) for row in rows], sums, masked_at_once])
    return hashlib.sha256(content.encode()).hexdigest()


class _LossesFile:
    """JSON lines: first the fingerprint, then one line per text with its losses, rounded to 4 digits."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        if not path.exists():
            path.write_text(json.dumps(fingerprint) + "\n")

    def read(self) -> list[Tensor]:
        """The losses in all complete lines; an incomplete last line of an interrupted run is removed."""
        content = self.path.read_bytes()
        complete = content.rfind(b"\n") + 1  # number of bytes
        if complete < len(content):
            os.truncate(self.path, complete)
        lines = content[:complete].decode().splitlines()
        if not lines or json.loads(lines[0]) != self.fingerprint:
            raise ValueError(
                f"losses_file: '{self.path}' was made from other texts, weights or masked_at_once; pass another file, "
                "or delete it"
            )
        return [torch.tensor(json.loads(line)) for line in lines[1:]]

    def append(self, losses: list[Tensor]) -> None:
        with self.path.open("a") as file:
            for row_losses in losses:
                file.write(json.dumps([[round(loss, 4) for loss in layer] for layer in row_losses.tolist()]) + "\n")
