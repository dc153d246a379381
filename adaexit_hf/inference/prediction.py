"""Predict many texts: layer by layer, in full batches of those that are still undecided."""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from ..models.batching import COLUMNS, check_model, eval_mode, model_inputs, padded_batch
from ..models.configuration_early_exit import Threshold, check_whole_number
from ..models.early_exit_loop import InFlight, rows_per_batch, run_early_exit, trimmed
from ..models.encoder_layers import Context, family_of
from ..models.modeling_early_exit import EarlyExitForSequenceClassification, report_not_finite
from .row_reader import Row, RowReader, numbered

# A number of tokens to try; no other side of an encoder's tensors is as long.
TRIED = 61


class Prediction(NamedTuple):
    """What one text was told.

    Args:
        place: where it stands in the data set, from 0.
        logits: the answer, (labels,), on the CPU in float32.
        exit_layer: layers run, 1..L.
        exit_score: readiness at the exit that was taken, in the unit of the model's exit criterion.
    """

    place: int
    logits: Tensor
    exit_layer: int
    exit_score: float


class Predictions(NamedTuple):
    """What the texts were told, in the order of the data set, on the CPU.

    Args:
        logits: (texts, labels), float32.
        exit_layer: layers run, 1..L, (texts,).
        exit_score: readiness at the exit that was taken, (texts,).
    """

    logits: Tensor
    exit_layer: Tensor
    exit_score: Tensor


def predict(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Any],
    tokenizer: Any = None,
    *,
    exit_threshold: Threshold = None,
    early_exit: bool | None = None,
    batch_tokens: int | None = None,
    max_memory: int = 2**30,
    progress: bool = True,
) -> Predictions:
    """Classify a whole data set, faster than batch by batch.

    All texts of a window run layer 1, then those that are undecided layer 2, and so on, always packed into full
    batches of similar length. Under Accelerate or torchrun the processes share the texts, and each gets all answers.

    Args:
        model: on any device; the modes of its modules, train or eval, are restored afterwards.
        dataset: texts, pairs of texts, rows `{"text": ..., "text_pair": ...}`, or tokenized rows with `input_ids`: a
            list, a `datasets.Dataset`, or any iterable. Rows need not be padded.
        tokenizer: the model's; not needed for tokenized rows.
        exit_threshold, early_exit: as for the model's forward; `early_exit=False` runs full depth.
        batch_tokens: tokens of a batch, pads included; default 1024 on a CPU, 16384 elsewhere.
        max_memory: bytes that the hidden states of a window, and what the layers need besides, may take.
        progress: show a bar.

    Returns:
        logits, exit layers and scores in the order of the data set.

    Raises:
        ValueError: an empty data set, or one without texts; no tokenizer for texts; a bad threshold or size.
        DatasetError: the data set itself raised an error; the message names the item.
        RuntimeError: another process raised an error.
    """
    process, processes = _processes()
    job = _Job(model, tokenizer, exit_threshold, early_exit, batch_tokens, max_memory)
    share = numbered(dataset, process, processes)
    windows, failure = [], cast(Exception | None, None)
    try:
        windows = list(job.windows(share, _bar(dataset, progress, processes)))
    except Exception as error:
        if processes == 1:
            raise
        failure = error  # the others would wait for ever
    if processes > 1:
        # Words, since not every error can be sent.
        told = gather_object([failure and f"process {process} raised {type(failure).__name__}: {failure}"])
        if failure is not None:
            raise failure
        if any(told):
            raise RuntimeError(f"predict: {next(filter(None, told))}")
        windows = gather_object(windows)
    if not windows:
        raise ValueError("dataset: got no texts; pass at least one")
    places, *answers = (torch.cat(parts) for parts in zip(*windows, strict=True))
    order = places.argsort()
    return Predictions(*(answer[order] for answer in answers))


def predict_stream(
    model: EarlyExitForSequenceClassification,
    dataset: Iterable[Any],
    tokenizer: Any = None,
    *,
    exit_threshold: Threshold = None,
    early_exit: bool | None = None,
    batch_tokens: int | None = None,
    max_memory: int = 2**30,
    progress: bool = True,
) -> Iterator[Prediction]:
    """`predict` for data that do not fit into memory: gives the answers in order, window by window.

    Arguments and errors as for `predict`. When the data set raises an error, or an item is bad, the texts before it
    are answered first.
    Under Accelerate or torchrun each process gives the answers of its share, every n-th text; `place` tells which.
    """
    process, processes = _processes()
    job = _Job(model, tokenizer, exit_threshold, early_exit, batch_tokens, max_memory)
    share = numbered(dataset, process, processes)
    empty = True
    for places, logits, exit_layer, exit_score in job.windows(share, _bar(dataset, progress, processes)):
        empty = False
        # A copy, since users could not change a tensor of inference mode.
        yield from map(Prediction, places.tolist(), logits.clone(), exit_layer.tolist(), exit_score.tolist())
    if empty and processes == 1:
        raise ValueError("dataset: got no texts; pass at least one")


class _Job:
    """The settings of one call, checked."""

    def __init__(
        self,
        model: EarlyExitForSequenceClassification,
        tokenizer: Any,
        exit_threshold: Threshold,
        early_exit: bool | None,
        batch_tokens: int | None,
        max_memory: int,
    ) -> None:
        check_model(model)
        self.model = model
        self.thresholds = model.thresholds_in_use(exit_threshold, early_exit)
        default = 1024 if model.device.type == "cpu" else 16384
        self.batch_tokens = default if batch_tokens is None else batch_tokens
        self.max_memory = max_memory
        check_whole_number("batch_tokens", self.batch_tokens, low=1, advice=f"e.g. batch_tokens={default}")
        check_whole_number("max_memory", max_memory, low=1, advice="e.g. max_memory=2**30")
        self.sizes: dict[int, int] = {}  # of rows with so many tokens
        self.context = _tried(model)
        config = model.config.encoder_config
        limits = (family_of(config).max_tokens(config), getattr(tokenizer, "model_max_length", None))
        self.reader = RowReader(tokenizer, min((limit for limit in limits if limit), default=None))

    def windows(self, items: Iterator[tuple[int, Any]], bar: Any) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Places, logits, exit layers and scores of one window after the other."""
        rows, failure = self.reader.rows(items), None
        window: list[tuple[int, Row]] = []
        memory = 0
        with bar:
            while True:
                try:
                    item = next(rows, None)
                except Exception as error:  # of the data set or of an item
                    item, failure = None, error
                size = 0 if item is None else self._bytes(item[1])
                if window and (item is None or memory + size > self.max_memory):
                    yield self._answers(window, bar.update)
                    window, memory = [], 0
                if item is None:
                    break
                window.append(item)
                memory += size
        if self.reader.truncated:
            warnings.warn(
                f"{self.reader.truncated} texts have more than {self.reader.longest} tokens, the most that this model "
                "reads; what is beyond was cut off",
                stacklevel=3,
            )
        if failure is not None:
            raise failure

    def _bytes(self, row: Row) -> int:
        """Memory that a row takes on its way: its states and ids, and its share of what the layers need besides."""
        tokens, config = len(row["input_ids"]), self.model.config.encoder_config
        if tokens not in self.sizes:
            own = tokens * (config.hidden_size * self.model.dtype.itemsize + 8 * len(COLUMNS))
            of_row, of_batch = (_bytes_at(tokens, values) for values in (self.context.masks, self.context.shared))
            self.sizes[tokens] = own + of_row + -(-of_batch // rows_per_batch(self.batch_tokens, tokens))
        return self.sizes[tokens]

    @torch.inference_mode()
    def _answers(
        self, window: list[tuple[int, Row]], tell: Callable[[int], Any]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        model = self.model
        ordered = sorted(window, key=lambda item: len(item[1]["input_ids"]), reverse=True)
        with eval_mode(model):
            flights, first, rows = [], 0, [row for _, row in ordered]
            while rows:
                count = rows_per_batch(self.batch_tokens, len(rows[0]["input_ids"]))
                # On the host still, so that reading the mask costs nothing.
                batch = padded_batch(rows[:count], model.config.encoder_config)
                inputs, extents = trimmed(dict(batch))
                flight = InFlight.of(*model.embed(model_inputs(model, inputs)), extents)
                flights.append(flight._replace(rows=flight.rows + first))
                rows, first = rows[count:], first + count
            temperatures = model.config.exit_temperatures
            answers = run_early_exit(model, flights, self.thresholds, temperatures, self.batch_tokens, tell)
        report_not_finite([answers.all_scores])
        places = torch.tensor([place for place, _ in ordered])
        order = places.argsort()
        logits, score = answers.logits.float().cpu(), answers.score.float().cpu()
        return places[order], logits[order], answers.exit_layer.cpu()[order], score[order]


@torch.inference_mode()
def _tried(model: EarlyExitForSequenceClassification) -> Context:
    """What a text of `TRIED` tokens, one of them a pad, needs besides its states; tells what other texts need."""
    padding = (torch.arange(TRIED) < TRIED - 1).long()[None]
    padding = cast(Tensor, model_inputs(model, {"attention_mask": padding})["attention_mask"])
    config = model.config.encoder_config
    hidden = torch.zeros(1, TRIED, config.hidden_size, dtype=model.dtype, device=padding.device)
    return family_of(config).context(model.encoder, hidden, padding, None)


def _bytes_at(tokens: int, values: Mapping[str, Any]) -> int:
    """What the tensors of a context that was tried would take with so many tokens.

    >>> _bytes_at(10, {"mask": torch.ones(1, 1, TRIED, TRIED, dtype=torch.bool), "other": None})
    100
    """
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    sides = [[tokens if side == TRIED else side for side in tensor.shape] for tensor in tensors]
    return sum(tensor.dtype.itemsize * math.prod(side) for tensor, side in zip(tensors, sides, strict=True))


def _processes() -> tuple[int, int]:
    """Which process this is, and of how many."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1  # a state of Accelerate would decide the device of what is trained later
    state = PartialState()
    return state.process_index, state.num_processes


def _bar(dataset: Any, progress: bool, shares: int) -> Any:
    total = -(-len(dataset) // shares) if isinstance(dataset, Sized) else None
    return tqdm(total=total, desc="Predicting", unit=" texts", disable=not progress)
