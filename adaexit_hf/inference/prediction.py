"""Predict many texts layer by layer: after each layer the remaining texts are repacked into full batches."""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from ..models.configuration_early_exit import Threshold, check_whole_number
from ..models.early_exit_loop import InFlight, rows_per_batch, run_early_exit, trimmed
from ..models.encoder_layers import Context, family_of
from ..models.modeling_early_exit import EarlyExitForSequenceClassification, report_not_finite
from ..models.padded_batches import (
    COLUMNS,
    Row,
    RowReader,
    check_model,
    eval_mode,
    items_of,
    iterable_of,
    model_inputs,
    padded_batch,
    progress_bar,
)
from ..utils.processor import bf16_is_slow, default_batch_tokens

# Length of the text with which the memory per row is estimated: a prime number, so that a side of a tensor with this
# length can only be the number of tokens.
TRIAL_LENGTH = 61


class Prediction(NamedTuple):
    """The prediction for one text.

    Attributes:
        place: index of the text in the data set, counted from 0.
        logits: logits of the exit that the text took, of shape `(labels,)`, float32, on the CPU.
        exit_layer: number of layers that were run, from 1 to the number of layers.
        exit_score: readiness score at the exit that the text took, in the unit of the model's exit criterion.
    """

    place: int
    logits: Tensor
    exit_layer: int
    exit_score: float


class Predictions(NamedTuple):
    """The predictions for all texts, in the order of the data set, on the CPU.

    Attributes:
        logits: logits of the exit that each text took, of shape `(texts, labels)`, float32.
        exit_layer: number of layers that were run, from 1 to the number of layers, of shape `(texts,)`.
        exit_score: readiness score at the exit that each text took, in the unit of the model's exit criterion, of
            shape `(texts,)`.
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
    """Classify a whole data set with early exit, faster than batch by batch.

    The texts are processed in windows; a window holds as many texts as fit into `max_memory`. All texts of a window
    run layer 1; those that have not exited run layer 2, and so on. After every layer the remaining texts are repacked
    into full batches of similar length. Under Accelerate or torchrun the processes share the texts, and each process
    returns the predictions for all of them.

    Args:
        model: an early-exit model, on any device. It runs in eval mode; afterwards every module is in its previous
            mode again.
        dataset: texts, pairs of texts, rows `{"text": ..., "text_pair": ...}`, or tokenized rows with `input_ids`: a
            list, a `datasets.Dataset`, a data frame or dict with these columns, or any other iterable. Rows need not
            be padded, and padding on either side is removed.
        tokenizer: the model's tokenizer. Not needed for tokenized rows.
        exit_threshold: as for the model's forward: one threshold, or one per exit. Default: the one in the config.
        early_exit: False runs all layers; True raises an error if there is no threshold. Default: exit early if there
            is a threshold.
        batch_tokens: largest number of tokens in a batch, padding included. Default: 1024 on a CPU, 2048 in bfloat16
            or float16 on a CPU with AMX, 16384 elsewhere.
        max_memory: largest size of a window in bytes: its hidden states and what the layers need besides them, such as
            attention masks. Default: 1 GiB.
        progress: whether to show a progress bar.

    Returns:
        Logits, exit layers and readiness scores, in the order of the data set.

    Raises:
        ValueError: if the data set is empty or an item is neither a text nor a tokenized row, if there are texts but
            no tokenizer, or if a threshold or size is out of range.
        TypeError: if the model has no exits.
        DatasetError: if reading an item of the data set raised an error; the message gives the index of the item.
        RuntimeError: if another process raised an error.

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf.models import BerxitConfig, BerxitForSequenceClassification
        >>> encoder = BertConfig(
        ...     vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        ... )
        >>> model = BerxitForSequenceClassification(BerxitConfig(encoder_config=encoder, num_labels=2))
        >>> rows = [{"input_ids": [1, 5, 2]}, {"input_ids": [1, 6, 7, 2]}]
        >>> predict(model, rows, exit_threshold=0.5, progress=False).exit_layer.tolist()
        [1, 1]
        >>> predict(model, rows, early_exit=False, progress=False).exit_layer.tolist()
        [2, 2]
    """
    predictor = _Predictor(model, tokenizer, exit_threshold, early_exit, batch_tokens, max_memory)
    process, processes = predictor.process, predictor.processes
    windows, failure = [], cast(Exception | None, None)
    try:
        windows = list(predictor.windows(dataset, progress))
    except Exception as error:
        if processes == 1:
            raise
        failure = error  # raised after the gathering below, in which all processes must take part
    if processes > 1:
        # Messages instead of the exceptions themselves, because not every exception can be pickled.
        messages = gather_object([failure and f"process {process} raised {type(failure).__name__}: {failure}"])
        if failure is not None:
            raise failure
        if any(messages):
            raise RuntimeError(f"predict: {next(filter(None, messages))}")
        windows = gather_object(windows)
    if not windows:
        raise ValueError("dataset: got no texts; pass at least one")
    places, *columns = (torch.cat(parts) for parts in zip(*windows, strict=True))
    order = places.argsort()
    return Predictions(*(column[order] for column in columns))


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
    """Classify a data set that does not fit into memory: `predict` as an iterator over single predictions.

    Predictions come in the order of the data set, window by window. If the data set raises an error or an item is
    invalid, the predictions for the texts before it come first, then the error. Under Accelerate or torchrun each
    process yields the predictions for its own share, every n-th text; `Prediction.place` is the index of the text.

    Args:
        model: as for `predict`.
        dataset: as for `predict`; it may be endless.
        tokenizer: as for `predict`.
        exit_threshold: as for `predict`.
        early_exit: as for `predict`.
        batch_tokens: as for `predict`.
        max_memory: as for `predict`. A smaller window yields the first predictions earlier, but has fewer texts to
            fill its batches with.
        progress: whether to show a progress bar.

    Yields:
        The prediction for each text, in the order of the data set.

    Raises:
        ValueError: as for `predict`.
        TypeError: as for `predict`.
        DatasetError: as for `predict`.

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf.models import BerxitConfig, BerxitForSequenceClassification
        >>> encoder = BertConfig(
        ...     vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        ... )
        >>> model = BerxitForSequenceClassification(BerxitConfig(encoder_config=encoder, num_labels=2))
        >>> rows = ({"input_ids": [1, token, 2]} for token in (5, 6, 7))
        >>> for prediction in predict_stream(model, rows, exit_threshold=0.5, progress=False):
        ...     print(prediction.place, prediction.exit_layer)
        0 1
        1 1
        2 1
    """
    predictor = _Predictor(model, tokenizer, exit_threshold, early_exit, batch_tokens, max_memory)
    empty = True
    for places, logits, exit_layer, exit_score in predictor.windows(dataset, progress):
        empty = False
        # A copy, because a tensor made in inference mode cannot be changed in place outside of it.
        yield from map(Prediction, places.tolist(), logits.clone(), exit_layer.tolist(), exit_score.tolist())
    if empty and predictor.processes == 1:
        raise ValueError("dataset: got no texts; pass at least one")


class _Predictor:
    """The model, the tokenizer and the checked settings of one call of `predict` or `predict_stream`."""

    def __init__(
        self,
        model: EarlyExitForSequenceClassification,
        tokenizer: Any,
        exit_threshold: Threshold,
        early_exit: bool | None,
        batch_tokens: int | None,
        max_memory: int,
    ) -> None:
        self.process, self.processes = _processes()
        check_model(model)
        self.model = model
        self.thresholds = model.thresholds_in_use(exit_threshold, early_exit)
        if model.dtype == torch.bfloat16 and bf16_is_slow(model.device):
            warnings.warn(
                "model: is in bfloat16, for which this CPU has no units, so that it is several times slower than in "
                "float32; call model.float()",
                stacklevel=3,
            )
        default = default_batch_tokens(model.device, model.dtype)
        self.batch_tokens = default if batch_tokens is None else batch_tokens
        self.max_memory = max_memory
        check_whole_number("batch_tokens", self.batch_tokens, low=1, advice=f"e.g. batch_tokens={default}")
        check_whole_number("max_memory", max_memory, low=1, advice="e.g. max_memory=2**30")
        self.row_bytes: dict[int, int] = {}  # number of tokens -> bytes
        self.trial_context = _trial_context(model)
        self.reader = RowReader(tokenizer, model.config)

    def windows(self, dataset: Any, progress: bool) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Places, logits, exit layers and readiness scores of this process's share, one window after the other."""
        dataset = iterable_of(dataset)
        # Share k of n has the items k, k + n, k + 2n, ...
        numbered = enumerate(items_of(dataset))
        share = (item for item in numbered if item[0] % self.processes == self.process)
        rows = self.reader.rows(share)
        failure = None
        window: list[tuple[int, Row]] = []
        memory = 0
        with self._progress_bar(dataset, progress) as bar:
            while True:
                try:
                    item = next(rows, None)
                except Exception as error:  # of the data set or of an item; the rows before it are predicted first
                    item, failure = None, error
                size = 0 if item is None else self._bytes_of(item[1])
                if window and (item is None or memory + size > self.max_memory):
                    yield self._predict_window(window, bar.update)
                    window, memory = [], 0
                if item is None:
                    break
                window.append(item)
                memory += size
        if failure is not None:
            raise failure

    def _progress_bar(self, dataset: Any, progress: bool) -> Any:
        total = -(-len(dataset) // self.processes) if isinstance(dataset, Sized) else None
        return progress_bar(total=total, desc="Predicting", unit=" texts", disable=not progress)

    def _bytes_of(self, row: Row) -> int:
        """Memory of a row: its hidden states and ids, and its share of what the layers need besides."""
        tokens, config = len(row["input_ids"]), self.model.config.encoder_config
        if tokens not in self.row_bytes:
            states = tokens * (config.hidden_size * self.model.dtype.itemsize + 8 * len(COLUMNS))
            masks = _context_bytes(tokens, self.trial_context.masks)
            shared = _context_bytes(tokens, self.trial_context.shared)
            self.row_bytes[tokens] = states + masks + -(-shared // rows_per_batch(self.batch_tokens, tokens))
        return self.row_bytes[tokens]

    @torch.inference_mode()
    def _predict_window(
        self, window: list[tuple[int, Row]], on_exit: Callable[[int], Any]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run a window through the model.

        Args:
            window: place and row of every text.
            on_exit: called with the number of texts that have exited, for the progress bar.
        """
        model = self.model
        longest_first = sorted(window, key=lambda item: len(item[1]["input_ids"]), reverse=True)
        with eval_mode(model):
            flights, first, rows = [], 0, [row for _, row in longest_first]
            while rows:
                count = rows_per_batch(self.batch_tokens, len(rows[0]["input_ids"]))
                # `trimmed` reads the mask: that must happen before the batch is moved to the device.
                batch = padded_batch(rows[:count], model.config.encoder_config)
                inputs, extents = trimmed(dict(batch))
                flight = InFlight.of(*model.embed(model_inputs(model, inputs)), extents)
                flights.append(flight._replace(rows=flight.rows + first))
                rows, first = rows[count:], first + count
            temperatures = model.config.exit_temperatures
            answers = run_early_exit(model, flights, self.thresholds, temperatures, self.batch_tokens, on_exit)
        report_not_finite([answers.all_scores])
        places = torch.tensor([place for place, _ in longest_first])
        order = places.argsort()
        logits, score = answers.logits.float().cpu(), answers.score.float().cpu()
        return places[order], logits[order], answers.exit_layer.cpu()[order], score[order]


@torch.inference_mode()
def _trial_context(model: EarlyExitForSequenceClassification) -> Context:
    """What the layers need besides the hidden states for a text of `TRIAL_LENGTH` tokens, the last one padding.

    `_context_bytes` derives from it how much memory texts of other lengths need.
    """
    padding = (torch.arange(TRIAL_LENGTH) < TRIAL_LENGTH - 1).long()[None]
    padding = cast(Tensor, model_inputs(model, {"attention_mask": padding})["attention_mask"])
    config = model.config.encoder_config
    hidden = torch.zeros(1, TRIAL_LENGTH, config.hidden_size, dtype=model.dtype, device=padding.device)
    return family_of(config).context(model.encoder, hidden, padding, None)


def _context_bytes(tokens: int, trial_values: Mapping[str, Any]) -> int:
    """Memory in bytes that the tensors of a trial context would take with another number of tokens.

    >>> mask = torch.ones(1, 1, TRIAL_LENGTH, TRIAL_LENGTH, dtype=torch.bool)
    >>> _context_bytes(10, {"mask": mask, "other": None})
    100
    """
    tensors = [value for value in trial_values.values() if isinstance(value, Tensor)]
    shapes = [[tokens if side == TRIAL_LENGTH else side for side in tensor.shape] for tensor in tensors]
    return sum(tensor.dtype.itemsize * math.prod(shape) for tensor, shape in zip(tensors, shapes, strict=True))


def _processes() -> tuple[int, int]:
    """Index of this process, and the number of processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1  # creating a PartialState here would fix the device of a later training
    state = PartialState()
    return state.process_index, state.num_processes
