"""What runs the stages of a model for the engine: PyTorch, layer by layer, or ONNX Runtime, exit by exit."""

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..models.configuration_early_exit import Threshold
from ..models.early_exit_loop import InFlight, joined, one_layer, read_exit, split, trimmed
from ..models.encoder_layers import family_of
from ..models.padded_batches import COLUMNS, RowReader, model_inputs, padded_batch

TruncationSide: TypeAlias = Literal["left", "right"]
# Texts with more characters are tokenized by a tokenizer of their own, so that short ones do not wait for them.
LONG_TEXT = 2000


class TokenizedText(NamedTuple):
    """A text that can be run.

    Attributes:
        row: what the first stage reads of it.
        tokens: number of tokens.
        kind: texts of different kinds do not share a batch.
        truncated: whether it was longer than the model reads.
    """

    row: Any
    tokens: int
    kind: tuple[str, ...]
    truncated: bool


class Outcome(NamedTuple):
    """A batch after a stage.

    Attributes:
        batch: the batch, with all of its rows.
        leaving: whether each row leaves.
        logits: logits of the exit, float32, on the CPU, shape `(rows, labels)`; None after a stage without exit.
        scores: readiness score of each row at the exit; empty after a stage without exit.
    """

    batch: Any
    leaving: Sequence[bool]
    logits: Tensor | None = None
    scores: Sequence[float] = ()


@runtime_checkable
class Backend(Protocol):
    """A model that is run stage by stage.

    Attributes:
        layers: number of layers that have run after each stage.
        exit_layers: those of them with an exit; the last stage has one.
        batch_tokens: largest number of tokens in a batch, padding included. With 1, each text runs alone.
        workers: number of stages that may run at a time, each in a thread of its own.
        max_tokens: largest number of tokens of a text; longer ones are truncated. None for no limit.
    """

    layers: Sequence[int]
    exit_layers: Sequence[int]
    batch_tokens: int
    workers: int
    max_tokens: int | None

    def read(self, item: Any, truncation_side: TruncationSide | None = None) -> TokenizedText:
        """Tokenize a text; any number of threads may do so.

        Args:
            item: as an item of the data set of `predict`.
            truncation_side: the end at which a text that is too long is cut. Default: the tokenizer's.

        Raises:
            ValueError: it is not such an item, or not of the kind that the model was trained on; or it is tokenized,
                with a truncation side.
        """

    def thresholds_in_use(self, exit_threshold: Threshold, early_exit: bool | None) -> list[float] | None:
        """Return one threshold per exit, or None for full depth; as the model's `thresholds_in_use`.

        Args:
            exit_threshold: as in `predict`.
            early_exit: as in `predict`.

        Raises:
            ValueError: as in `predict`.
        """

    def embed(self, rows: Sequence[Any]) -> Any:
        """Return tokenized texts of one kind as a batch before the first stage.

        Args:
            rows: what `read` returned of each text.
        """

    def joined(self, pieces: Sequence[tuple[Any, list[int]]]) -> Any:
        """Return rows of one or more batches as one batch.

        Args:
            pieces: batches after the same stage, and for each the indices of the rows to take, ascending.
        """

    def run(self, stage: int, batch: Any, thresholds: Sequence[float] | None) -> Outcome:
        """Run one stage, and decide which rows leave.

        Args:
            stage: number of the stage, from 0.
            batch: what `embed` or `joined` returned; it is not changed.
            thresholds: one per row, where no row leaves at NaN; None after the last stage, where all leave. Not used
                after a stage without exit.
        """


class TorchBackend:
    """A model in PyTorch, on any device; a stage is a layer and the exit after it.

    Args:
        model: an early-exit model in eval mode.
        tokenizer: its tokenizer; may be None if all texts are tokenized.
        batch_tokens: see `Backend`.
    """

    workers = 1  # a layer uses all threads of PyTorch, or the whole device

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int) -> None:
        self.model, self.batch_tokens = model, batch_tokens
        self.exit_layers: Sequence[int] = list(model.config.exit_layers)
        self.layers: Sequence[int] = range(1, self.exit_layers[-1] + 1)
        self._modules = family_of(model.encoder.config).layers(model.encoder)
        self._temperatures = model.config.exit_temperatures
        # A tokenizer cannot be called by two threads at once, as truncation is part of its state. It is not the
        # caller's, which other threads may call.
        self._readers = [RowReader(copy.deepcopy(tokenizer), model.config, warn=False) for _ in range(2)]
        self._locks = [threading.Lock() for _ in self._readers]
        self._side = getattr(tokenizer, "truncation_side", None)
        self.max_tokens = self._readers[0].longest

    def read(self, item: Any, truncation_side: TruncationSide | None = None) -> TokenizedText:
        """See `Backend`."""
        check_not_tokenized(item, truncation_side)
        if truncation_side is not None and self._side is None:
            raise ValueError(
                f"truncation_side: got {truncation_side!r}, but this tokenizer has none; leave it out, or pass a "
                "tokenizer of Transformers"
            )
        number = int(is_long(item))
        reader = self._readers[number]
        with self._locks[number]:
            if self._side is not None:
                reader.tokenizer.truncation_side = truncation_side or self._side
            before = reader.truncated
            try:
                _, row = next(reader.rows(iter([(0, item)])))
            except ValueError as error:
                raise ValueError(str(error).replace("dataset: item 0", "text")) from error
            truncated = reader.truncated > before
        row = {name: row[name] for name in COLUMNS if name in row}
        return TokenizedText(row, len(row["input_ids"]), tuple(sorted({*row} - {"attention_mask"})), truncated)

    def thresholds_in_use(self, exit_threshold: Threshold, early_exit: bool | None) -> list[float] | None:
        """See `Backend`."""
        return self.model.thresholds_in_use(exit_threshold, early_exit)

    def embed(self, rows: Sequence[Any]) -> InFlight:
        """See `Backend`."""
        inputs, extents = trimmed(dict(padded_batch(rows, self.model.config.encoder_config)))
        hidden, context = self.model.embed(model_inputs(self.model, inputs))
        return InFlight.of(hidden, context, extents)

    def joined(self, pieces: Sequence[tuple[InFlight, list[int]]]) -> InFlight:
        """See `Backend`."""
        return joined(self.model.encoder, pieces)

    def run(self, stage: int, batch: InFlight, thresholds: Sequence[float] | None) -> Outcome:
        """See `Backend`."""
        number = self.layers[stage]
        flight = one_layer(self.model, number, self._modules[stage], batch).flight
        step = read_exit(self.model, number, flight, self._temperatures)
        if step.exit is None or step.score is None:
            return Outcome(step.flight, [False] * step.flight.shape[0])
        logits, scores = step.exit.logits.float().cpu(), step.score.tolist()
        threshold = None if thresholds is None else step.score.new_tensor(thresholds)
        ((_, leaving, _),) = split(self.model, [step], threshold)
        gone = set(leaving)
        return Outcome(step.flight, [row in gone for row in range(len(scores))], logits, scores)


class OnnxBackend:
    """An exported model in ONNX Runtime; a stage is the layers up to an exit. Each text runs alone, on one core.

    Args:
        classifier: an `OnnxEarlyExitClassifier`.
    """

    batch_tokens = 1

    def __init__(self, classifier: Any) -> None:
        from ..onnx_runtime.classifier import READY

        self.classifier = classifier
        self.exit_layers: Sequence[int] = classifier.exit_layers
        self.layers: Sequence[int] = classifier.exit_layers
        self.workers: int = classifier.threads
        self.max_tokens: int | None = classifier.facts["max_tokens"]
        self._ready = READY[classifier.facts["ready"]]

    def read(self, item: Any, truncation_side: TruncationSide | None = None) -> TokenizedText:
        """See `Backend`."""
        check_not_tokenized(item, truncation_side)
        try:
            row, truncated = next(self.classifier.rows(iter([(0, item)]), truncation_side))
        except ValueError as error:
            raise ValueError(str(error).replace("texts: item 0", "text")) from error
        return TokenizedText(row, row["input_ids"].shape[1], (), truncated)

    def thresholds_in_use(self, exit_threshold: Threshold, early_exit: bool | None) -> list[float] | None:
        """See `Backend`."""
        return self.classifier.thresholds_in_use(exit_threshold, early_exit)

    def embed(self, rows: Sequence[Any]) -> list[Any]:
        """See `Backend`."""
        return list(rows)

    def joined(self, pieces: Sequence[tuple[list[Any], list[int]]]) -> list[Any]:
        """See `Backend`."""
        return [texts[row] for texts, rows in pieces for row in rows]

    def run(self, stage: int, batch: list[Any], thresholds: Sequence[float] | None) -> Outcome:
        """See `Backend`."""
        graph = self.classifier.stages[stage]
        texts = [tensors | graph.run(tensors) for tensors in batch]
        logits = torch.from_numpy(np.concatenate([text["logits"] for text in texts]).astype(np.float32))
        scores = np.concatenate([text["score"] for text in texts])
        leaving = [True] * len(texts)
        if thresholds is not None:
            leaving = self._ready(scores, np.asarray(thresholds, dtype=scores.dtype)).tolist()
        return Outcome(texts, leaving, logits, scores.tolist())


def check_not_tokenized(item: Any, truncation_side: TruncationSide | None) -> None:
    """Check that an item is not tokenized if it is to be truncated at a certain end.

    Args:
        item: a text, a pair of texts, or a row.
        truncation_side: the end at which a text that is too long is cut; None if the caller does not care.

    Raises:
        ValueError: it is tokenized, and there is a truncation side; or the side is neither left nor right.
    """
    if truncation_side not in (None, "left", "right"):
        raise ValueError(f"truncation_side: got {truncation_side!r:.40}; pass 'left' or 'right'")
    if truncation_side is not None and isinstance(item, Mapping) and "input_ids" in item:
        raise ValueError(
            f"truncation_side: got {truncation_side!r} for a tokenized text; pass the text, or truncate it beforehand"
        )


def is_long(item: Any) -> bool:
    """Return whether the tokenization of an item may take longer than to hand it to another thread.

    Args:
        item: a text, a pair of texts, or a row.

    Examples:
        >>> is_long("a"), is_long(("a", "b" * 3000)), is_long({"input_ids": [1, 2]})
        (False, True, False)
    """
    texts = item.values() if isinstance(item, dict) else [item] if isinstance(item, str) else item
    if not isinstance(texts, Sequence) and not isinstance(item, dict):
        return False
    return sum(len(text) for text in texts if isinstance(text, str)) > LONG_TEXT
