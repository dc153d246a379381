"""What early exit gains on the clock: pairs of runs, timed in turn A B A B ..., and their answers checked.

eta is the speed-up on the clock divided by the speed-up in layers: 1 where a layer that is saved saves all its time.
`benchmark_runs` has the runs, `planted_exits` a model to time, `benchmarks/inference.py` is the command.
"""

import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, PreTrainedConfig

from ..inference.prediction import predict_stream
from ..inference.row_reader import RowReader, numbered
from ..models import EarlyExitForSequenceClassification
from ..models.encoder_layers import family_of
from .planted import planned_layers, planted_model, planted_rows, text_lengths
from .records import Record
from .runs import (
    EXITS,
    RUNS,
    SINGLE,
    Answer,
    AnswersDifferError,
    Row,
    Workload,
    check_answer,
    expected_answers,
    make_run,
    stock_twin,
)


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile.

    >>> quartiles([1.0, 2.0, 4.0, 8.0, 16.0]), quartiles([3.0])
    ([2.0, 4.0, 8.0], [3.0, 3.0, 3.0])
    """
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3


def ratios(times: Sequence[tuple[float, float]], layer_speed_up: float) -> Record:
    """Speed-up and eta, each as quartiles over rounds.

    Args:
        times: seconds of the baseline and of the candidate, one pair a round.
        layer_speed_up: layers that the baseline runs, divided by those of the candidate.

    >>> found = ratios([(4.0, 2.0), (4.2, 2.0), (4.0, 2.5)], layer_speed_up=2.0)
    >>> [round(each, 3) for each in found["speed_up"]], [round(each, 3) for each in found["eta"]]
    ([1.8, 2.0, 2.05], [0.9, 1.0, 1.025])
    """
    speed_up = quartiles([baseline / candidate for baseline, candidate in times])
    return {"speed_up": speed_up, "eta": [each / layer_speed_up for each in speed_up]}


def timed(run: Callable[[], Answer], device: torch.device) -> tuple[float, Answer]:
    """Seconds until the answers are on the host, and the answers."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    answer = run()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, answer


@torch.inference_mode()
def measure(
    work: Workload, candidate: str, baseline: str, batch_size: int, batch_tokens: int, rounds: int = 5
) -> Record:
    """Time two of `RUNS` in turn, after a pass of each that warms up; every answer of every pass is checked.

    Args:
        batch_size: texts of a batch, for runs that have one.
        batch_tokens: tokens of a batch, pads included, for `predict` and "static-tokens".

    Raises:
        AnswersDifferError: a run gave a wrong answer.
    """
    # What pads by itself is compared with what pads within its time, too.
    ready = not any(name.startswith(("predict", "pipeline")) for name in (candidate, baseline))
    runs = {name: make_run(work, name, batch_size, batch_tokens, ready) for name in (baseline, candidate)}
    seconds: dict[str, list[float]] = {baseline: [], candidate: []}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            spent, answer = timed(run, work.model.device)
            check_answer(name, answer, work.expected)
            seconds[name].append(spent)
    times = list(zip(seconds[baseline][1:], seconds[candidate][1:], strict=True))
    saves = candidate in EXITS and baseline not in EXITS
    return {
        "layer_speed_up": work.layer_speed_up if saves else 1.0,
        "token_layer_speed_up": work.token_layer_speed_up if saves else 1.0,
        **ratios(times, work.layer_speed_up if saves else 1.0),
        "seconds": [[round(each, 6) for each in pair] for pair in times],
        "same_head": work.expected.stock is work.expected.full_depth,
        "texts_near_threshold": int((~work.expected.sure).sum()),
    }


def workload(
    model: EarlyExitForSequenceClassification,
    rows: list[Row],
    plan: list[int] | None = None,
    compile_static: bool = False,
    **more: Any,
) -> Workload:
    """A model and texts with what is to come out; `more` are other fields of the workload.

    Raises:
        AnswersDifferError: a planted model does not do as planned, or its stock twin answers otherwise.
    """
    stock, expected = stock_twin(model), expected_answers(model, rows, plan=plan)
    work = Workload(model, stock, stock, rows, expected, plan, **more)
    with torch.inference_mode():
        answer = make_run(work, "static", 32, 0, ready=False)()
    try:
        check_answer("static", answer, expected)
    except AnswersDifferError:
        if plan is not None:
            raise
        # Exits with another pooling or head: the stock classifier takes the same time, but has answers of its own.
        work.expected = expected._replace(stock=answer[0])
    if compile_static:
        work.static = torch.compile(stock)
    return work


def planted_workload(
    model: EarlyExitForSequenceClassification, texts: int, saving: float, lengths: str, seed: int = 0, **more: Any
) -> Workload:
    """Random texts that leave a planted model as planned; arguments as in `planted_exits`."""
    config = model.config.encoder_config
    plan = planned_layers(texts, config.num_hidden_layers, saving, seed)
    rows = list(planted_rows(plan, text_lengths(texts, lengths, seed), config.vocab_size, seed))
    return workload(model, rows, plan, **more)


def trained_workload(
    model: EarlyExitForSequenceClassification, tokenizer: Any, texts: list[Any], **more: Any
) -> Workload:
    """Texts, or pairs of texts, that leave a trained model by its threshold; `more` as for `workload`.

    Texts that are too long are cut off, with a warning that counts them.
    """
    config = model.config.encoder_config
    limits = (tokenizer.model_max_length, family_of(config).max_tokens(config))
    reader = RowReader(tokenizer, min(limit for limit in limits if limit))
    rows = [row for _, row in reader.rows(numbered(texts, 0, 1))]
    if reader.truncated:
        warnings.warn(f"{reader.truncated} texts have more than {reader.longest} tokens and are cut off", stacklevel=2)
    return workload(model, rows, texts=texts, tokenizer=tokenizer, **more)


def cells(
    pairs: Sequence[str], batch_sizes: Sequence[int], batch_tokens: Sequence[int]
) -> list[tuple[str, str, int, int]]:
    """Candidate, baseline, batch size and tokens of all cells; 0 where a pair has none.

    Runs of single texts are compared with batches of one.

    >>> cells(["in-model/static", "predict/static-tokens", "authors/static"], [8, 32], [1024])
    [('in-model', 'static', 8, 0), ('in-model', 'static', 32, 0), ('predict', 'static-tokens', 0, 1024), \
('authors', 'static', 1, 0)]
    """
    found = []
    for pair in pairs:
        candidate, _, baseline = pair.partition("/")
        if candidate not in RUNS or baseline not in RUNS or candidate == baseline:
            raise ValueError(f"pairs: got {pair!r}; pass candidate/baseline, two of {', '.join(RUNS)}")
        both = {candidate, baseline}
        packed = {name for name in both if name.startswith("predict") or name == "static-tokens"}
        sizes = [0] if both <= {*packed, *SINGLE} else [1] if both & set(SINGLE) else batch_sizes
        sizes = [1] if both <= set(SINGLE) else sizes
        tokens = batch_tokens if packed else [0]
        found += [(candidate, baseline, size, budget) for size in sizes for budget in tokens]
    return found


def grow(
    texts: int, encoder: Record, saving: float, lengths: str, dtype: str, device: str, threads: int, max_memory: int
) -> Record:
    """Time per text and peak memory of `predict_stream` over so many planted texts, in a process of its own.

    The texts are made while they are read, as from a file that does not fit into memory; making them counts.

    Args:
        encoder: arguments of the `BertConfig`.
    """
    arguments = (texts, encoder, saving, lengths, dtype, device, threads, max_memory)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_grown, *arguments).result()


def _grown(
    texts: int, encoder: Record, saving: float, lengths: str, dtype: str, device: str, threads: int, max_memory: int
) -> Record:
    torch.set_num_threads(threads)
    config: PreTrainedConfig = BertConfig(**encoder)
    model = planted_model(config, getattr(torch, dtype), device)

    def run(count: int) -> float:
        plan = planned_layers(count, config.num_hidden_layers, saving)
        rows = planted_rows(plan, text_lengths(count, lengths), config.vocab_size)
        started = time.perf_counter()
        for answer in predict_stream(model, rows, max_memory=max_memory, progress=False):
            if answer.exit_layer != plan[answer.place]:
                raise AnswersDifferError(f"predict_stream: text {answer.place} leaves at layer {answer.exit_layer}")
        return time.perf_counter() - started

    run(32)
    before = peak_memory()
    spent = run(texts)
    on_device = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
    found = {"seconds_per_text": spent / texts, "memory_before": before, "peak_memory": peak_memory()}
    return found | {"peak_device_memory": on_device}


def peak_memory() -> int:
    """The most bytes of memory that this process held so far.

    From Linux' own count: `ru_maxrss` of a child starts from what its parent held.
    """
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), flags=re.MULTILINE) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
