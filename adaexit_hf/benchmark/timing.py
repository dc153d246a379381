"""Measure the speed-up of early exit: pairs of runs, timed in turn A B A B ..., with every prediction checked.

eta is the measured speed-up divided by the speed-up in layers; it is 1 if skipping a layer saves all of its time.
The runs are in `runs`, the model with planned exits is in `planted`, and `benchmarks/inference.py` is the command.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from transformers import BertConfig, PreTrainedConfig

from ..inference.prediction import predict_stream
from ..models import EarlyExitForSequenceClassification
from ..models.padded_batches import read_rows
from .first_answer import peak_memory
from .planted import planned_layers, planted_model, planted_rows, text_lengths
from .records import Record
from .runs import (
    EXITS,
    RUNS,
    SINGLE,
    AnswersDifferError,
    Row,
    RunOutput,
    Workload,
    check_output,
    expected_outputs,
    make_run,
    stock_twin,
    text_by_text,
)


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile of values.

    >>> quartiles([1.0, 2.0, 4.0, 8.0, 16.0]), quartiles([3.0])
    ([2.0, 4.0, 8.0], [3.0, 3.0, 3.0])
    """
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3


def milliseconds(seconds: Sequence[float]) -> Record:
    """Median and 95th percentile, in milliseconds.

    >>> milliseconds([0.001, 0.002, 0.003])
    {'median': 2.0, 'p95': 2.9}
    """
    p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return {"median": round(1000 * statistics.median(seconds), 4), "p95": round(1000 * p95, 4)}


def ratios(times: Sequence[tuple[float, float]], layer_speed_up: float) -> Record:
    """Speed-up and eta, each as quartiles over the rounds.

    Args:
        times: Seconds of the baseline and of the candidate, one pair per round.
        layer_speed_up: Layers that the baseline runs, divided by layers that the candidate runs.

    >>> result = ratios([(4.0, 2.0), (4.2, 2.0), (4.0, 2.5)], layer_speed_up=2.0)
    >>> [round(value, 3) for value in result["speed_up"]], [round(value, 3) for value in result["eta"]]
    ([1.8, 2.0, 2.05], [0.9, 1.0, 1.025])
    """
    speed_up = quartiles([baseline / candidate for baseline, candidate in times])
    return {"speed_up": speed_up, "eta": [value / layer_speed_up for value in speed_up]}


def timed(run: Callable[[], RunOutput], device: torch.device) -> tuple[float, RunOutput]:
    """Seconds until the results are on the host, and the results."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    output = run()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, output


@torch.inference_mode()
def measure(
    work: Workload, candidate: str, baseline: str, batch_size: int, batch_tokens: int, rounds: int = 5
) -> Record:
    """Time two runs in turn, after one pass of each to warm up, and check every prediction of every pass.

    The result can be written as JSON. It contains:

    - `speed_up` and `eta`, each as [lower quartile, median, upper quartile] over the rounds;
    - `layer_speed_up`, and `token_layer_speed_up`, in which texts are weighted by their numbers of tokens (both are 1
      if both runs exit early, or neither does);
    - `seconds`, one pair [baseline, candidate] per round;
    - `milliseconds` per text, of each run: median and 95th percentile over the rounds;
    - `same_head`, whether the stock classifier has the head of the last exit;
    - `texts_near_threshold`, the number of texts that are not checked, since rounding may change their exit layer.

    Args:
        work: The model and the texts, e.g. from `trained_workload`.
        candidate: Run to measure, e.g. "predict"; the keys of `adaexit_hf.benchmark.runs.RUNS` are allowed.
        baseline: Run to compare with, e.g. "static-sorted".
        batch_size: Texts per batch, for runs with a fixed batch size.
        batch_tokens: Tokens per batch, padding included, for "predict" and "static-tokens".
        rounds: Timed passes of each run.

    Returns:
        The measurements named above.

    Raises:
        ValueError: A run is unknown, or the workload lacks what the run needs.
        AnswersDifferError: A run returned wrong logits or exit layers.

    Examples:
        >>> from transformers import BertConfig
        >>> from adaexit_hf.benchmark.planted import planted_model
        >>> from adaexit_hf.benchmark.timing import planted_workload
        >>> shape = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
        >>> model = planted_model(BertConfig(num_hidden_layers=2, **shape), torch.float32, "cpu")
        >>> work = planted_workload(model, texts=4, saving=1.6, lengths="short")
        >>> record = measure(work, "in-model", "static", batch_size=4, batch_tokens=0, rounds=1)
        >>> record["layer_speed_up"], len(record["seconds"])
        (1.6, 1)
    """
    # `predict` and the pipeline pad within their measured time, so what is compared with them must do so too.
    ready = not any(name.startswith(("predict", "pipeline")) for name in (candidate, baseline))
    runs = {name: make_run(work, name, batch_size, batch_tokens, ready) for name in (baseline, candidate)}
    seconds: dict[str, list[float]] = {baseline: [], candidate: []}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            elapsed, output = timed(run, work.model.device)
            check_output(name, output, work.expected)
            seconds[name].append(elapsed)
    times = list(zip(seconds[baseline][1:], seconds[candidate][1:], strict=True))
    per_text = {name: [value / len(work.rows) for value in values[1:]] for name, values in seconds.items()}
    return _record(work, times, per_text, saves=candidate in EXITS and baseline not in EXITS)


@torch.inference_mode()
def measure_single(work: Workload, rounds: int = 5) -> Record:
    """Time single texts, from the text to the logits on the host, with exits and without, text by text in turn.

    Args:
        work: The model and the texts, from `trained_workload`.
        rounds: Timed passes over the texts, after one pass to warm up.

    Returns:
        As `measure`, of the runs "single" and "single-static". `milliseconds` are over all texts of all rounds.

    Raises:
        AnswersDifferError: A run returned wrong logits or exit layers.
    """
    runs = {"single-static": text_by_text(work, stock=True), "single": text_by_text(work, stock=False)}
    per_text: dict[str, list[float]] = {name: [] for name in runs}
    times = []
    for number in range(rounds + 1):
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        outputs: dict[str, list[RunOutput]] = {name: [] for name in runs}
        for place in range(len(work.rows)):
            for name, classify in runs.items():
                elapsed, output = timed(partial(classify, place), work.model.device)
                seconds[name].append(elapsed)
                outputs[name].append(output)
        for name, found in outputs.items():
            layers = [each for _, each in found if each is not None]
            logits = torch.cat([each for each, _ in found])
            check_output(name, (logits, torch.cat(layers) if layers else None), work.expected)
        if number:
            times.append((sum(seconds["single-static"]), sum(seconds["single"])))
            for name, values in seconds.items():
                per_text[name] += values
    return _record(work, times, per_text, saves=True)


def _record(
    work: Workload, times: list[tuple[float, float]], per_text: Mapping[str, Sequence[float]], saves: bool
) -> Record:
    """The measurements of two runs: seconds of each round, and seconds per text, by run."""
    return {
        "layer_speed_up": work.layer_speed_up if saves else 1.0,
        "token_layer_speed_up": work.token_layer_speed_up if saves else 1.0,
        **ratios(times, work.layer_speed_up if saves else 1.0),
        "seconds": [[round(value, 6) for value in pair] for pair in times],
        "milliseconds": {name: milliseconds(values) for name, values in per_text.items()},
        "same_head": work.expected.stock is work.expected.full_depth,
        "texts_near_threshold": int((~work.expected.unambiguous).sum()),
    }


def workload(
    model: EarlyExitForSequenceClassification,
    rows: list[Row],
    plan: list[int] | None = None,
    compile_static: bool = False,
    **fields: Any,
) -> Workload:
    """Build a workload: the model, its stock twin, the texts, and the expected results.

    Args:
        model: The early-exit model, with a threshold in its config.
        rows: Tokenized texts.
        plan: Planned exit layers, for a planted model.
        compile_static: Whether to compile the classifier without exits.
        **fields: Other fields of the workload.

    Raises:
        ValueError: The config has no threshold.
        AnswersDifferError: A planted model does not follow its plan, or its stock twin returns other logits.
    """
    stock, expected = stock_twin(model), expected_outputs(model, rows, plan=plan)
    work = Workload(model, stock, stock, rows, expected, plan, **fields)
    with torch.inference_mode():
        output = make_run(work, "static", 32, 0, ready=False)()
    try:
        check_output("static", output, expected)
    except AnswersDifferError:
        if plan is not None:
            raise
        # The exits have another pooling or head: the stock classifier takes the same time but returns other logits.
        work.expected = expected._replace(stock=output[0])
    if compile_static:
        work.static = torch.compile(stock)
    return work


def planted_workload(
    model: EarlyExitForSequenceClassification, texts: int, saving: float, lengths: str, seed: int = 0, **fields: Any
) -> Workload:
    """A workload of random texts that exit a planted model at planned layers.

    Args:
        model: A model from `planted_model`.
        texts: Number of texts.
        saving: Depth divided by the mean exit layer.
        lengths: "short", "long" or "mixed", see `text_lengths`.
        seed: Seed of plan, lengths and tokens.
        **fields: As for `workload`.
    """
    config = model.config.encoder_config
    plan = planned_layers(texts, config.num_hidden_layers, saving, seed)
    rows = list(planted_rows(plan, text_lengths(texts, lengths, seed), config.vocab_size, seed))
    return workload(model, rows, plan, **fields)


def trained_workload(
    model: EarlyExitForSequenceClassification, tokenizer: Any, texts: list[Any], **fields: Any
) -> Workload:
    """A workload of texts for a trained model, which exit by its threshold.

    Texts that are too long are truncated, with a warning that counts them.

    Args:
        model: The early-exit model, in eval mode, with a threshold in its config.
        tokenizer: Its tokenizer.
        texts: Texts, or pairs of texts.
        **fields: `compile_static`, whether to compile the classifier without exits (default False), and `max_memory`,
            the bytes that a window of `predict` may use (default 2**30).

    Returns:
        The workload, with the expected results of every run.

    Raises:
        ValueError: The config has no threshold.

    Examples:
        >>> from transformers import BertConfig, BertTokenizer
        >>> from adaexit_hf import BerxitConfig, BerxitForSequenceClassification
        >>> tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "film": 5})
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> model = BerxitForSequenceClassification(BerxitConfig(encoder, exit_threshold=0.0, num_labels=2)).eval()
        >>> work = trained_workload(model, tokenizer, ["good", "good film"])
        >>> work.expected.exit_layer.tolist(), work.layer_speed_up
        ([1, 1], 3.0)
    """
    rows = read_rows(texts, tokenizer, model.config)
    return workload(model, rows, texts=texts, tokenizer=tokenizer, **fields)


def cells(
    pairs: Sequence[str], batch_sizes: Sequence[int], batch_tokens: Sequence[int]
) -> list[tuple[str, str, int, int]]:
    """Everything to measure: (candidate, baseline, batch size, tokens per batch), with 0 for what a pair does not use.

    Runs of single texts are compared with batches of one.

    Args:
        pairs: Runs to compare, as "candidate/baseline".
        batch_sizes: Texts per batch, for runs with a fixed batch size.
        batch_tokens: Tokens per batch, for runs with such a limit.

    Raises:
        ValueError: A pair is not two different names of `RUNS`.

    >>> cells(["in-model/static", "predict/static-tokens", "authors/static"], [8, 32], [1024])
    [('in-model', 'static', 8, 0), ('in-model', 'static', 32, 0), ('predict', 'static-tokens', 0, 1024), \
('authors', 'static', 1, 0)]
    """
    result = []
    for pair in pairs:
        candidate, _, baseline = pair.partition("/")
        if candidate not in RUNS or baseline not in RUNS or candidate == baseline:
            raise ValueError(f"pairs: got {pair!r}; pass candidate/baseline, two of {', '.join(RUNS)}")
        both = {candidate, baseline}
        packed = {name for name in both if name.startswith("predict") or name == "static-tokens"}
        sizes = [0] if both <= {*packed, *SINGLE} else [1] if both & set(SINGLE) else batch_sizes
        sizes = [1] if both <= set(SINGLE) else sizes
        tokens = batch_tokens if packed else [0]
        result += [(candidate, baseline, size, token_limit) for size in sizes for token_limit in tokens]
    return result


def grow(
    texts: int, encoder: Record, saving: float, lengths: str, dtype: str, device: str, threads: int, max_memory: int
) -> Record:
    """Time per text and peak memory of `predict_stream`, measured in a separate process.

    The texts are generated while they are read, like a file that does not fit into memory. Generating them is part of
    the measured time.

    Args:
        texts: Number of planted texts.
        encoder: Arguments of the `BertConfig`.
        saving: Depth divided by the mean exit layer.
        lengths: "short", "long" or "mixed", see `text_lengths`.
        dtype: Name of the dtype, e.g. "float32".
        device: Device of the model.
        threads: CPU threads.
        max_memory: Bytes that a window of `predict_stream` may use.
    """
    arguments = (texts, encoder, saving, lengths, dtype, device, threads, max_memory)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure_growth, *arguments).result()


def _measure_growth(
    texts: int, encoder: Record, saving: float, lengths: str, dtype: str, device: str, threads: int, max_memory: int
) -> Record:
    torch.set_num_threads(threads)
    config: PreTrainedConfig = BertConfig(**encoder)
    model = planted_model(config, getattr(torch, dtype), device)

    def run(count: int) -> float:
        plan = planned_layers(count, config.num_hidden_layers, saving)
        rows = planted_rows(plan, text_lengths(count, lengths), config.vocab_size)
        started = time.perf_counter()
        for prediction in predict_stream(model, rows, max_memory=max_memory, progress=False):
            if prediction.exit_layer != plan[prediction.place]:
                raise AnswersDifferError(
                    f"predict_stream: text {prediction.place} exits at layer {prediction.exit_layer}"
                )
        return time.perf_counter() - started

    run(32)
    before = peak_memory()
    seconds = run(texts)
    on_device = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
    record = {"seconds_per_text": seconds / texts, "memory_before": before, "peak_memory": peak_memory()}
    return record | {"peak_device_memory": on_device}
