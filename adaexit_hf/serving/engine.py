"""`EarlyExitEngine`: answer texts that arrive one by one, in batches that texts at the same depth share.

`predict` knows all texts beforehand. Here they arrive while others are under way: a text enters at layer 1 whenever a
step begins, leaves after the layer at which it is ready, and at each layer shares a batch with the texts that wait
there. Layers, exits, splitting and joining of batches are those of `models/early_exit_loop.py`, so answers are those
of `predict`.
"""

import asyncio
import atexit
import functools
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..models.configuration_early_exit import Threshold, check_number, check_whole_number
from ..models.early_exit_loop import rows_per_batch
from ..models.padded_batches import check_model, eval_mode
from ..utils.processor import default_batch_tokens
from .backends import Backend, OnnxBackend, TokenizedText, TorchBackend, TruncationSide, is_long


class QueueFullError(RuntimeError):
    """The engine has as many texts as it may hold; try again later. Over HTTP: status 429."""


class EngineClosedError(RuntimeError):
    """The engine was closed, or has failed, and takes no more texts."""


class TextTooLongError(ValueError):
    """The text has more tokens than the model reads, and truncation was not allowed. Over HTTP: status 413."""


class InferenceError(RuntimeError):
    """The model raised an error for this text, which is the `__cause__`. Over HTTP: status 424."""


class Answer(NamedTuple):
    """The answer to one text.

    Attributes:
        logits: logits of the exit that the text took, float32, on the CPU, shape `(labels,)`; NaN or infinite where
            the model's are at its last exit.
        exit_layer: number of layers that were run, from 1.
        exit_score: readiness score at this exit, in the unit of the model's exit criterion.
        deadline_passed: whether the text left here only because its deadline had passed.
        tokens: number of tokens.
    """

    logits: Tensor
    exit_layer: int
    exit_score: float
    deadline_passed: bool
    tokens: int


class Statistics(NamedTuple):
    """What an engine has done since it was started.

    Attributes:
        waiting: number of texts that wait now, by the number of layers that they have run.
        inside: number of texts that wait or run now.
        exits: number of answers, by exit layer.
        batches: number of steps, by the number of rows in the batch.
        answered: number of answers.
        cancelled: number of texts that were cancelled.
        failed: number of texts for which the model raised an error.
        refused: number of texts that were refused because the engine was full.
        deadlines_passed: number of answers because of a deadline.
        not_finite: number of answers with NaN or infinite logits.
    """

    waiting: dict[int, int]
    inside: int
    exits: dict[int, int]
    batches: dict[int, int]
    answered: int
    cancelled: int
    failed: int
    refused: int
    deadlines_passed: int
    not_finite: int


class _Request:
    """A text in the engine: where it is, and what it has asked for."""

    __slots__ = ("batch", "deadline", "done", "entered", "exit", "future", "row", "text", "thresholds")

    def __init__(self, text: TokenizedText, thresholds: list[float] | None, deadline: float, entered: float) -> None:
        self.future: Future[Answer] = Future()
        self.text, self.thresholds, self.deadline, self.entered = text, thresholds, deadline, entered
        self.batch: Any = None  # after the first stage: the batch that holds its states, and its row there
        self.row = 0
        self.exit: tuple[Tensor, int, float] | None = None  # logits, layer and score of the last exit
        self.done = False


class EarlyExitEngine:
    """Answers texts that arrive one by one; texts at the same depth share a batch, and each leaves when it is ready.

    A thread owns the model. Each step runs one layer for the texts that wait there: the layer with the oldest text,
    unless another one fills a batch better; texts whose deadline is near come first. Texts are tokenized in the thread
    of the caller, so that a text that cannot be read harms nobody else. Close the engine, or use it in a `with` or
    `async with` statement.

    Args:
        model_or_folder: an early-exit model, on any device; an `OnnxEarlyExitClassifier`; folder or Hub name of a
            checkpoint; or any other `Backend`.
        tokenizer: the model's tokenizer. Not needed for tokenized texts, for a folder, and for an
            `OnnxEarlyExitClassifier`, which has its own.
        exit_threshold: as in `predict`, for texts that come without one. Default: the one in the config when the
            engine is started.
        early_exit: as in `predict`.
        batch_tokens: largest number of tokens in a batch, padding included. Default: as in `predict`.
        max_texts: number of texts that may be in the engine; beyond it `QueueFullError` is raised.

    Raises:
        ValueError: a threshold or size is out of range; or a tokenizer or `batch_tokens` where they are not used.
        TypeError: the model has no exits.

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf.models import BerxitConfig, BerxitForSequenceClassification
        >>> encoder = BertConfig(
        ...     vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        ... )
        >>> model = BerxitForSequenceClassification(BerxitConfig(encoder_config=encoder, num_labels=2))
        >>> with EarlyExitEngine(model, exit_threshold=0.5) as engine:
        ...     future = engine.submit({"input_ids": [1, 5, 2]})
        ...     answer = future.result()
        >>> answer.exit_layer, answer.logits.shape
        (1, torch.Size([2]))
    """

    def __init__(
        self,
        model_or_folder: Any,
        tokenizer: Any = None,
        *,
        exit_threshold: Threshold = None,
        early_exit: bool | None = None,
        batch_tokens: int | None = None,
        max_texts: int = 1024,
    ) -> None:
        check_whole_number("max_texts", max_texts, low=1, advice="e.g. max_texts=1024")
        self._resources = ExitStack()
        self.backend: Backend = self._backend(model_or_folder, tokenizer, batch_tokens)
        self.max_texts = max_texts
        try:
            self.thresholds = self.backend.thresholds_in_use(exit_threshold, early_exit)
        except (TypeError, ValueError):
            self._resources.close()  # the model returns to its mode
            raise
        # The cost of a step besides that of its tokens, in tokens; see `default_batch_tokens`.
        self._fixed_cost = self.backend.batch_tokens // 12
        layers, exits = list(self.backend.layers), list(self.backend.exit_layers)
        self._exit_of = [exits.index(layer) if layer in exits else None for layer in layers]
        self._queues: list[list[_Request]] = [[] for _ in layers]
        # Guards the queues and all below. Reentrant, since a future may be cancelled by the thread that holds it.
        self._changed = threading.Condition()
        self._inside = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._step_seconds = 0.0
        self._exits: Counter[int] = Counter()
        self._batches: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._tokenizing = ThreadPoolExecutor(1, "adaexit-tokenizer")  # its thread starts with the first long text
        self._threads = [
            threading.Thread(target=self._work, name=f"adaexit-engine-{number}", daemon=True)
            for number in range(self.backend.workers)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)  # while Python still runs: a thread inside of PyTorch must not outlive it

    def _backend(self, model: Any, tokenizer: Any, batch_tokens: int | None) -> Backend:
        if isinstance(model, Backend):
            return model
        if isinstance(model, str | Path):
            tokenizer = AutoTokenizer.from_pretrained(model) if tokenizer is None else tokenizer
            model = AutoModelForSequenceClassification.from_pretrained(model)
        if type(model).__name__ == "OnnxEarlyExitClassifier":  # whose module needs the extra `onnx`
            for name, value in {"tokenizer": tokenizer, "batch_tokens": batch_tokens}.items():
                if value is not None:
                    raise ValueError(
                        f"{name}: got {value!r:.60} with an OnnxEarlyExitClassifier, which has its own tokenizer and "
                        "runs text by text; leave it out"
                    )
            return OnnxBackend(model)
        check_model(model)
        default = default_batch_tokens(model.device, model.dtype)
        tokens = default if batch_tokens is None else batch_tokens
        check_whole_number("batch_tokens", tokens, low=1, advice=f"e.g. batch_tokens={default}")
        self._resources.enter_context(eval_mode(model))
        return TorchBackend(model, tokenizer, tokens)

    # For callers

    def submit(
        self,
        text: Any,
        *,
        exit_threshold: Threshold = None,
        early_exit: bool | None = None,
        deadline: float | None = None,
        truncate: bool = True,
        truncation_side: TruncationSide | None = None,
    ) -> "Future[Answer]":
        """Hand a text to the engine, from any thread.

        Args:
            text: as an item of the data set of `predict`: a text, a pair of texts, a row with `text` and `text_pair`,
                or a tokenized row with `input_ids`.
            exit_threshold: as in `predict`, for this text. Default: that of the engine.
            early_exit: as in `predict`, for this text. Default: that of the engine.
            deadline: seconds from now; when they have passed, the text leaves at the last exit that it has reached, or
                will leave at the first one. Default: none.
            truncate: whether a text that is too long is truncated, as by `predict`, or refused.
            truncation_side: the end at which it is cut, "left" or "right". Default: the tokenizer's, as by `predict`.

        Returns:
            A future with the `Answer`. Its `cancel` takes the text out of the engine before the next layer; its
            `result` raises `InferenceError` if the model raised an error for this text.

        Raises:
            QueueFullError: the engine has `max_texts` texts.
            EngineClosedError: the engine is closed.
            TextTooLongError: the text is too long, with `truncate=False`.
            ValueError: the text is not of the kind that the model was trained on or no text at all; or threshold,
                deadline or truncation side is out of range.
        """
        thresholds, until = self._settings(exit_threshold, early_exit, deadline)
        return self._enter(self._read(text, truncate, truncation_side), thresholds, until)

    async def classify(
        self,
        text: Any,
        *,
        exit_threshold: Threshold = None,
        early_exit: bool | None = None,
        deadline: float | None = None,
        truncate: bool = True,
        truncation_side: TruncationSide | None = None,
    ) -> Answer:
        """Answer a text, without blocking the event loop; cancelling the task takes the text out of the engine.

        Args:
            text: as in `submit`.
            exit_threshold: as in `submit`.
            early_exit: as in `submit`.
            deadline: as in `submit`.
            truncate: as in `submit`.
            truncation_side: as in `submit`.

        Returns:
            The answer.

        Raises:
            QueueFullError: as in `submit`.
            EngineClosedError: as in `submit`.
            TextTooLongError: as in `submit`.
            ValueError: as in `submit`.
            InferenceError: the model raised an error for this text.
        """
        thresholds, until = self._settings(exit_threshold, early_exit, deadline)
        read = functools.partial(self._read, text, truncate, truncation_side)
        # To hand a short text to another thread would take longer than to tokenize it.
        tokenized = (
            await asyncio.get_running_loop().run_in_executor(self._tokenizing, read) if is_long(text) else read()
        )
        return await asyncio.wrap_future(self._enter(tokenized, thresholds, until))

    @property
    def alive(self) -> bool:
        """Whether the engine takes texts: it is neither closed nor has it failed."""
        return not self._closing and self._failure is None

    def statistics(self) -> Statistics:
        """Return what the engine has done so far."""
        with self._changed:
            layers = [0, *self.backend.layers]
            waiting = {layer: len(queue) for layer, queue in zip(layers, self._queues, strict=False)}
            names = ("cancelled", "failed", "refused", "deadlines_passed", "not_finite")
            counts = (self._counts[name] for name in names)
            exits, batches = dict(sorted(self._exits.items())), dict(sorted(self._batches.items()))
            return Statistics(waiting, self._inside, exits, batches, self._exits.total(), *counts)

    def close(self) -> None:
        """Answer the texts that are in the engine, take no others, and end its threads. Twice is once."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._tokenizing.shutdown()
        self._resources.close()
        atexit.unregister(self.close)

    def __enter__(self) -> "EarlyExitEngine":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    async def __aenter__(self) -> "EarlyExitEngine":
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    # Entering and leaving

    def _settings(
        self, exit_threshold: Threshold, early_exit: bool | None, deadline: float | None
    ) -> tuple[list[float] | None, float]:
        """Return one threshold per exit, or None for full depth; and the time of the deadline, or infinity."""
        if deadline is not None and check_number("deadline", deadline) < 0:
            raise ValueError(f"deadline: got {deadline}; pass seconds from now, at least 0, e.g. deadline=0.1")
        until = math.inf if deadline is None else time.monotonic() + deadline
        if exit_threshold is None and early_exit is None:
            return self.thresholds, until
        return self.backend.thresholds_in_use(exit_threshold, early_exit), until

    def _read(self, text: Any, truncate: bool, truncation_side: TruncationSide | None) -> TokenizedText:
        with self._changed:
            self._check_open()  # before the work of tokenizing
        tokenized = self.backend.read(text, truncation_side)
        if tokenized.truncated and not truncate:
            raise TextTooLongError(
                f"text: has more than {self.backend.max_tokens} tokens, the most that this model reads; shorten it, "
                "or pass truncate=True"
            )
        return tokenized

    def _check_open(self) -> None:
        if not self.alive:
            raise EngineClosedError("the engine is closed") from self._failure
        if self._inside >= self.max_texts:
            self._counts["refused"] += 1
            raise QueueFullError(f"the engine has {self._inside} texts, as many as it may hold; try again later")

    def _enter(self, text: TokenizedText, thresholds: list[float] | None, deadline: float) -> "Future[Answer]":
        request = _Request(text, thresholds, deadline, time.monotonic())
        request.future.add_done_callback(functools.partial(self._left, request))
        with self._changed:
            self._check_open()
            self._inside += 1
            self._queues[0].append(request)
            self._changed.notify()
        return request.future

    def _left(self, request: _Request, future: "Future[Answer]") -> None:
        """Make room for another text, once a text has its answer or was cancelled."""
        with self._changed:
            request.done = True
            self._inside -= 1
            if future.cancelled():
                self._counts["cancelled"] += 1
                future.set_running_or_notify_cancel()  # tells those who wait for it

    def _answer(self, request: _Request, deadline_passed: bool = False) -> None:
        """Answer a text with the last exit that it has reached."""
        if request.exit is None:
            raise RuntimeError("a text was to be answered before it reached an exit")
        logits, layer, score = request.exit
        with torch.inference_mode(False):
            logits = logits.clone()  # the tensor of the batch could not be changed outside of inference mode
        finite = bool(logits.isfinite().all())
        with self._changed:
            if request.done:
                return
            self._exits[layer] += 1
            self._counts["deadlines_passed"] += deadline_passed
            self._counts["not_finite"] += not finite
        self._set(request, Answer(logits, layer, score, deadline_passed, request.text.tokens))

    def _set(self, request: _Request, result: Answer | Exception) -> None:
        try:
            if isinstance(result, Exception):
                request.future.set_exception(result)
            else:
                request.future.set_result(result)
        except InvalidStateError:
            pass  # it was cancelled in the meantime

    # What the threads do

    @torch.inference_mode()
    def _work(self) -> None:
        work = None
        try:
            while (work := self._next()) is not None:
                overdue, stage, requests = work
                for request in overdue:
                    self._answer(request, deadline_passed=True)
                if requests:
                    self._run(stage, requests)
        except BaseException as error:  # a bug: nobody may wait for ever
            with self._changed:
                self._failure = error
                left = [request for queue in self._queues for request in queue]
                self._queues = [[] for _ in self._queues]
            for request in [*left, *([] if work is None else work[0] + work[2])]:
                self._set(request, EngineClosedError("the engine has failed"))
            raise

    def _next(self) -> tuple[list[_Request], int, list[_Request]] | None:
        """Wait for something to do.

        Returns:
            Texts to be answered as they are, since their deadline has passed; and a stage and the texts to run it for.
            None if there is nothing left to do.
        """
        with self._changed:
            while True:
                now, overdue = time.monotonic(), []
                for queue in self._queues:
                    if any(each.done or each.deadline <= now for each in queue):
                        queue[:] = [each for each in queue if not each.done]  # others were cancelled
                        overdue += [each for each in queue if each.deadline <= now and each.exit]
                        queue[:] = [each for each in queue if each.deadline > now or not each.exit]
                first = most_worth(self._queues, now, self.backend.batch_tokens, self._fixed_cost, self._step_seconds)
                if first is not None:
                    stage, request = first
                    queue = self._queues[stage]
                    chosen = companions(queue, request, self.backend.batch_tokens, self._fixed_cost)
                    taken = set(map(id, chosen))
                    queue[:] = [each for each in queue if id(each) not in taken]
                    if any(self._queues):
                        self._changed.notify()  # another thread, if there is one
                    return overdue, stage, chosen
                if overdue:
                    return overdue, 0, []
                if self._closing:
                    return None
                self._changed.wait()

    def _run(self, stage: int, requests: list[_Request]) -> None:
        """Run a stage for some texts; if that raises an error, for each of them alone."""
        began = time.monotonic()
        try:
            requests, outcome = self._stage(stage, requests)
        except Exception as error:
            if len(requests) > 1:
                for request in requests:
                    self._run(stage, [request])
                return
            failure = InferenceError(f"the model raised {type(error).__name__}: {error}")
            failure.__cause__ = error
            with self._changed:
                self._counts["failed"] += 1
            self._set(requests[0], failure)
            return
        layer, now = self.backend.layers[stage], time.monotonic()
        remaining = []
        for row, request in enumerate(requests):
            request.batch, request.row = outcome.batch, row
            if outcome.logits is not None:
                request.exit = (outcome.logits[row], layer, outcome.scores[row])
            if outcome.leaving[row]:
                self._answer(request)
            elif outcome.logits is not None and request.deadline <= now:
                self._answer(request, deadline_passed=True)
            else:
                remaining.append(request)
        if 0 < 2 * len(remaining) <= len(requests):
            # Else a few rows would keep the states of all others in memory for as long as they wait.
            batch = self.backend.joined([(outcome.batch, [request.row for request in remaining])])
            for row, request in enumerate(remaining):
                request.batch, request.row = batch, row
        with self._changed:
            seconds = now - began
            self._step_seconds = 0.9 * self._step_seconds + 0.1 * seconds if self._step_seconds else seconds
            self._batches[len(requests)] += 1
            if remaining:
                self._queues[stage + 1] += remaining
                self._changed.notify()

    def _stage(self, stage: int, requests: list[_Request]) -> tuple[list[_Request], Any]:
        """Run a stage; return the texts in the order of the rows, and what came of it."""
        if stage == 0:
            batch = self.backend.embed([request.text.row for request in requests])
        else:
            sources: dict[int, list[_Request]] = {}
            for request in requests:
                sources.setdefault(id(request.batch), []).append(request)
            groups = [sorted(group, key=lambda request: request.row) for group in sources.values()]
            batch = self.backend.joined([(group[0].batch, [request.row for request in group]) for group in groups])
            requests = [request for group in groups for request in group]
        exit_index = self._exit_of[stage]
        thresholds = None
        if stage < len(self._queues) - 1:
            thresholds = [
                math.nan if exit_index is None or request.thresholds is None else request.thresholds[exit_index]
                for request in requests
            ]
        return requests, self.backend.run(stage, batch, thresholds)


def most_worth(
    queues: Sequence[Sequence[Any]], now: float, batch_tokens: int, fixed_cost: int, step_seconds: float
) -> tuple[int, Any] | None:
    """Choose the stage to run next, and the text that must be in the batch.

    A stage is worth the age of its oldest text times the share of a step that is spent on tokens: n / (n + fixed cost)
    for n tokens. So a text is not overtaken by younger ones, unless its batch would be much emptier. A text whose
    deadline comes before two more steps could end goes before all others.

    Args:
        queues: the texts that wait for each stage, with `entered`, `deadline` and `text.tokens`.
        now: the time.
        batch_tokens: largest number of tokens in a batch.
        fixed_cost: cost of a step besides that of its tokens, in tokens.
        step_seconds: mean time of a step.

    Returns:
        The stage, from 0, and the text; None if no text waits.
    """
    urgent, best = None, None
    busy = [(stage, queue) for stage, queue in enumerate(queues) if queue]
    if len(busy) == 1 and len(busy[0][1]) == 1:
        return busy[0][0], busy[0][1][0]
    for stage, queue in busy:
        oldest = min(queue, key=lambda request: request.entered)
        tokens = min(sum(request.text.tokens for request in queue), batch_tokens)
        worth = (now - oldest.entered) * tokens / (tokens + fixed_cost)
        if best is None or worth >= best[0]:  # the deeper of equal ones
            best = (worth, stage, oldest)
        first = min(queue, key=lambda request: request.deadline)
        if first.deadline <= now + 2 * step_seconds and (urgent is None or first.deadline < urgent[1].deadline):
            urgent = (stage, first)
    return urgent or (None if best is None else best[1:])


def companions(queue: Sequence[Any], first: Any, batch_tokens: int, fixed_cost: int) -> list[Any]:
    """Choose the texts that share a batch: those most similar in length to one of them.

    A text joins as long as the padding that it makes costs less than a step of its own would.

    Args:
        queue: the texts that wait for a stage, with `text.tokens` and `text.kind`.
        first: the one that must be in the batch.
        batch_tokens: largest number of tokens in a batch, padding included.
        fixed_cost: cost of a step besides that of its tokens, in tokens.

    Returns:
        The texts of the batch, shortest first.
    """
    if len(queue) == 1:
        return [first]
    same = sorted((each for each in queue if each.text.kind == first.text.kind), key=lambda each: each.text.tokens)
    low = high = next(place for place, each in enumerate(same) if each is first)
    while True:
        width, count = same[high].text.tokens, high - low + 2
        shorter = low > 0 and width - same[low - 1].text.tokens <= fixed_cost
        if shorter and count <= rows_per_batch(batch_tokens, width):
            low -= 1
            continue
        if high + 1 < len(same):
            wider = same[high + 1].text.tokens
            fits = (wider - width) * (count - 1) <= fixed_cost and wider - same[low].text.tokens <= fixed_cost
            if fits and count <= rows_per_batch(batch_tokens, wider):
                high += 1
                continue
        return same[low : high + 1]
