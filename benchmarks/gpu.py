"""Measure eta on a GPU against a classifier whose kernels are launched as CUDA graphs, within a budget of minutes.

    python benchmarks/gpu.py --output gpu.jsonl --max_minutes 8
    python benchmarks/gpu.py --output toy.jsonl --device cpu --toy

The model has the shape of BERT-base, random weights and planned exit layers. Its `predict`, and its early exit inside
a batch, are compared with Transformers' own classifier at full depth on the same texts, sorted by length, in four
forms:

- "eager": as Transformers runs it;
- "graphs": its kernels are captured in one CUDA graph per shape of a batch;
- "compiled-graphs": the same, and its layers are compiled by `torch.compile`;
- "compiled": `torch.compile(mode="reduce-overhead")`, measured for a few cells only, since it compiles for a minute.

eta is the time of the fastest of them divided by ours, divided by the speed-up in layers (depth / mean exit layer). No
form of the classifier is given padding that it does not need: a batch without padding has no mask, and others are as
wide as their longest text, rounded up to a multiple of 8 tokens, which suits the kernels. Capturing and compiling is
not part of the measured time. `predict` pads its batches within its time, and so does what it is compared with. It is
measured with as many tokens per batch as the classifier has on average, and (batch size 0) with `--batch_tokens`,
where the classifier has as many.

`launch_bound_share` is the share of a pass in which the GPU has nothing to do, because it waits for the CPU:
1 - time of all kernels and copies / time of the pass. It is the most that capturing our own layers could save; of
it, `predict` needs `reading_seconds` to check and pad the rows, which capturing would not save. `peak_memory` is that
of a pass of ours, with `memory_before` allocated before it, for all models and graphs.

The cells are measured in order of importance, and what does not fit into `--max_minutes` is listed. Each is written as
one JSON line as soon as it is measured; a later call with the same file measures what is missing. The answers of every
pass are checked; if any are wrong, or a cell fails, the exit status is 1.
"""

import copy
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, HfArgumentParser
from transformers.utils import is_flash_attn_2_available

from adaexit_hf.benchmark.planted import planned_layers, planted_model, planted_rows, text_lengths
from adaexit_hf.benchmark.records import Record, commit, find_record, machine, read_lines
from adaexit_hf.benchmark.runs import (
    AnswersDifferError,
    RunOutput,
    Workload,
    check_output,
    expected_outputs,
    make_run,
    stock_twin,
)
from adaexit_hf.benchmark.timing import milliseconds, ratios, timed
from adaexit_hf.data.batches_by_length import groups
from adaexit_hf.models.encoder_layers import family_of
from adaexit_hf.models.padded_batches import padded_batch, read_rows

STATICS = ("eager", "graphs", "compiled-graphs", "compiled")
BERT_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
TOY = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 99}
# Texts per pass by batch size, so that a pass takes a fraction of a second, and has several batches; 0: by tokens.
TEXTS = {0: 4096, 1: 96, 8: 512, 32: 1024, 256: 4096}
# Batch sizes at which the whole classifier is compiled.
COMPILED_SIZES = (32, 1)
# Seconds that a cell takes before one like it was measured.
GUESS = {False: 10.0, True: 90.0}
Batch = dict[str, Tensor]
Run = Callable[[], RunOutput]


@dataclass
class Arguments:
    """What to measure; of each list the first is the most important, and is measured first."""

    output: str = field(default="gpu.jsonl", metadata={"help": "JSON lines file to append to."})
    device: str = field(default="cuda", metadata={"help": "cuda, cuda:1, ...; cpu only to try this script."})
    toy: bool = field(
        default=False, metadata={"help": "A tiny model, few texts, the first dtype and saving: to try this script."}
    )
    max_minutes: float = field(default=8.0, metadata={"help": "Budget; what does not fit into it is not measured."})
    rounds: int = field(default=5, metadata={"help": "Timed passes of each run; the runs take turns."})
    dtypes: list[str] = field(default_factory=lambda: ["float16", "bfloat16"], metadata={"help": "Dtypes."})
    lengths: list[str] = field(
        default_factory=lambda: ["short", "mixed"],
        metadata={"help": "short: about 53 +- 16 tokens; mixed: 1 to 512, log-uniform."},
    )
    savings: list[float] = field(
        default_factory=lambda: [2.0, 3.0, 1.5], metadata={"help": "Planned savings: depth / mean exit layer."}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [256, 32, 8, 1], metadata={"help": "Texts per batch."})
    batch_tokens: int = field(default=16384, metadata={"help": "Tokens per batch, in the cells with batch size 0."})
    statics: list[str] = field(
        default_factory=lambda: list(STATICS), metadata={"help": f"Classifiers without exits: {', '.join(STATICS)}."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, texts and plan."})


class Cell(NamedTuple):
    """One comparison."""

    dtype: str
    attention: str  # of the early-exit model, and of "eager"; what is captured or compiled has sdpa
    lengths: str
    saving: float
    candidate: str  # "predict" or "in-model"
    batch_size: int  # 0: batches of `batch_tokens`
    compiled: bool  # whether the whole classifier is compiled, too

    def __str__(self) -> str:
        size = f"batches of {self.batch_size}" if self.batch_size else "full batches"
        layers = f"{self.saving} times fewer layers"
        parts = [self.candidate, size, f"{self.lengths} texts", layers, self.dtype, self.attention]
        return ", ".join([*parts, "compiled"] if self.compiled else parts)


def cells(arguments: Arguments, flash: bool) -> list[Cell]:
    """Everything to measure, the most important first.

    Args:
        arguments: The arguments.
        flash: Whether flash attention is installed.
    """
    kinds = [("predict", 0), *((name, size) for size in arguments.batch_sizes for name in ("predict", "in-model"))]
    attentions = ["sdpa", "flash_attention_2"] if flash else ["sdpa"]
    dtypes, savings = (
        (arguments.dtypes[:1], arguments.savings[:1]) if arguments.toy else (arguments.dtypes, arguments.savings)
    )
    found: list[tuple[float, Cell]] = []
    for dtype in dtypes:
        for attention in attentions:
            for saving in savings:
                for lengths in arguments.lengths:
                    others = (dtype != arguments.dtypes[0]) + (saving != arguments.savings[0]) + (attention != "sdpa")
                    found += [(others, Cell(dtype, attention, lengths, saving, *kind, False)) for kind in kinds]
    if "compiled" in arguments.statics:
        first = (arguments.dtypes[0], "sdpa", arguments.lengths[0], arguments.savings[0], "in-model")
        sizes = [size for size in COMPILED_SIZES if size in arguments.batch_sizes]
        found += [(0.5, Cell(*first, size, True)) for size in sizes]
    return [cell for _, cell in sorted(found, key=lambda pair: pair[0])]


def bucketed(batch: Batch, pad_token: int) -> Batch:
    """A batch on the host without a mask if it has no padding, else as wide as the next multiple of 8 tokens."""
    if bool(batch["attention_mask"].all()):
        return {name: value for name, value in batch.items() if name != "attention_mask"}
    missing = -batch["attention_mask"].shape[1] % 8
    return {
        name: functional.pad(value, (0, missing), value=pad_token if name == "input_ids" else 0)
        for name, value in batch.items()
    }


class Captured:
    """A classifier whose kernels are captured in a CUDA graph, once per shape of a batch.

    Args:
        model: A classifier, called with the tensors of a batch. On a CPU, where nothing can be captured, it is called
            for every batch, with the same copies before and after.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.pool = model, None
        self.shapes: dict[tuple[Any, ...], tuple[Batch, Callable[[], Tensor]]] = {}

    def __call__(self, batch: Batch) -> Tensor:
        key = tuple((name, tuple(value.shape)) for name, value in batch.items())
        if key not in self.shapes:
            self.shapes[key] = self._capture(batch)
        buffers, replay = self.shapes[key]
        for name, value in batch.items():
            buffers[name].copy_(value, non_blocking=True)
        return replay().clone()  # the next replay overwrites the logits

    def _capture(self, batch: Batch) -> tuple[Batch, Callable[[], Tensor]]:
        device = self.model.device
        buffers = {name: value.to(device, copy=True) for name, value in batch.items()}
        if device.type != "cuda":
            return buffers, lambda: self.model(**buffers).logits
        # As PyTorch's documentation asks for: libraries are initialized, and layers compiled, on another stream.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.model(**buffers)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # One pool for all graphs, since they never run at the same time.
        with torch.cuda.graph(graph, pool=self.pool):
            logits = self.model(**buffers).logits
        self.pool = self.pool or graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return buffers, replay


class Models:
    """The early-exit model of one dtype and attention, the classifiers that it is compared with, and the texts."""

    def __init__(self, arguments: Arguments, dtype: str, attention: str) -> None:
        self.arguments = arguments
        config = BertConfig(**(TOY if arguments.toy else BERT_BASE))
        self.model = planted_model(config, getattr(torch, dtype), arguments.device, arguments.seed)
        self.captured_stock = stock_twin(self.model)  # flash attention reads the mask, so it cannot be captured
        self.stock = self.captured_stock
        if attention != "sdpa":
            self.model.encoder.set_attn_implementation(attention)
            self.stock = stock_twin(self.model)
        self.built: dict[str, Callable[[Batch], Tensor]] = {}
        self.failures: dict[str, str] = {}
        self.works: dict[tuple[str, float, int], Workload] = {}

    def static(self, name: str) -> Callable[[Batch], Tensor]:
        """A classifier without exits: batch -> logits."""
        if name not in self.built:
            self.built[name] = self._build(name)
        return self.built[name]

    def _build(self, name: str) -> Callable[[Batch], Tensor]:
        device = self.model.device
        if name in ("graphs", "compiled-graphs"):
            stock = self.captured_stock
            if name == "compiled-graphs":
                stock = copy.deepcopy(stock)
                for layer in family_of(stock.config).layers(stock.base_model):
                    layer.compile(dynamic=True)
            return Captured(stock)
        stock = self.stock
        if name == "compiled":
            stock = torch.compile(copy.deepcopy(self.captured_stock), mode="reduce-overhead", dynamic=True)

        def classify(batch: Batch) -> Tensor:
            moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            logits = stock(**moved).logits
            return logits.clone() if name == "compiled" else logits  # the next call overwrites those of a graph

        return classify

    def work(self, lengths: str, saving: float, texts: int) -> Workload:
        """Texts that exit as planned, and what every run must answer."""
        key = (lengths, saving, texts)
        if key not in self.works:
            seed, config = self.arguments.seed, self.model.config.encoder_config
            plan = planned_layers(texts, config.num_hidden_layers, saving, seed)
            rows = list(planted_rows(plan, text_lengths(texts, lengths, seed), config.vocab_size, seed))
            expected = expected_outputs(self.model, rows, batch_size=256, plan=plan)
            self.works[key] = Workload(self.model, self.stock, self.stock, rows, expected, plan)
        return self.works[key]


def static_run(work: Workload, classify: Callable[[Batch], Tensor], sizes: list[list[int]], ready: bool) -> Run:
    """Build a function that classifies all texts without exits.

    Args:
        work: The texts.
        classify: batch -> logits.
        sizes: The texts of every batch.
        ready: Whether batches are padded and moved to the device beforehand.
    """
    config, device = work.model.config.encoder_config, work.model.device

    def batches() -> Iterator[Batch]:
        for places in sizes:
            yield bucketed(padded_batch([work.rows[place] for place in places], config), config.pad_token_id)

    prepared = [{name: value.to(device) for name, value in batch.items()} for batch in batches()] if ready else None
    order = torch.tensor([place for places in sizes for place in places]).argsort()

    def run() -> RunOutput:
        logits = [classify(batch) for batch in prepared or batches()]
        return torch.cat(logits).float().cpu()[order], None

    return run


def warmed_up(models: Models, name: str, run: Run, work: Workload) -> float | None:
    """Seconds of the first pass, which captures or compiles; None for a classifier that fails, which is noted."""
    try:
        seconds, output = timed(run, work.model.device)
        check_output("static", output, work.expected)
        if name == "compiled":  # a graph is recorded in the second pass, and first used in the third
            run(), run()
    except Exception as error:  # whatever the compiler raises; the other classifiers are still measured
        if name == "eager":
            raise
        message = (str(error).strip() or "no message").splitlines()[0]
        models.failures[name] = f"{type(error).__name__}: {message}"
        print(f"{name}: failed: {models.failures[name]}", flush=True)
        return None
    return seconds


def launch_bound(run: Run, wall: float, device: torch.device) -> Record:
    """What one more pass takes: the GPU's idle share, the number of its kernels and copies, and its memory.

    Args:
        run: The run.
        wall: Seconds of a pass without profiler.
        device: The device; all values are None on a CPU.
    """
    names = ("launch_bound_share", "kernels", "memory_before", "peak_memory")
    if device.type != "cuda":
        return dict.fromkeys(names)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        timed(run, device)
    durations = [
        event.time_range.elapsed_us() for event in profiler.events() if str(event.device_type).endswith("CUDA")
    ]
    values = (idle_share(durations, wall), len(durations), before, torch.cuda.max_memory_allocated(device))
    return dict(zip(names, values, strict=True))


def idle_share(durations: Sequence[float], wall: float) -> float | None:
    """Share of `wall` seconds that kernels and copies of these durations, in microseconds, leave; None without any.

    >>> idle_share([250_000.0, 500_000.0], 1.0), idle_share([], 1.0), idle_share([2e6], 1.0)
    (0.25, None, 0.0)
    """
    return max(0.0, 1 - sum(durations) / 1e6 / wall) if durations else None


@torch.inference_mode()
def measure_cell(models: Models, cell: Cell, settings: Record) -> Record:
    """Time a run with exits and all classifiers without, in turn, and check the answers of every pass.

    Args:
        models: The models of the cell's dtype and attention.
        cell: The cell.
        settings: The settings of the record, for its number of texts, and of tokens per batch.

    Raises:
        AnswersDifferError: A run returned wrong logits or exit layers.
    """
    work, device = models.work(cell.lengths, cell.saving, settings["texts"]), models.model.device
    lengths, tokens = [len(row["input_ids"]) for row in work.rows], settings["batch_tokens"]
    sizes = groups(lengths, cell.batch_size) if cell.batch_size else groups(lengths, 0, tokens)
    ready = cell.candidate == "in-model"
    runs = {}
    warm_up = {}
    for name in models.arguments.statics:
        if name in models.failures or (name == "compiled" and not cell.compiled):
            continue
        run = static_run(work, models.static(name), sizes, ready)
        seconds = warmed_up(models, name, run, work)
        if seconds is not None:
            runs[name], warm_up[name] = run, round(seconds, 4)
    statics = list(runs)
    name = "in-model-sorted" if ready else "predict"
    ours = runs[cell.candidate] = make_run(work, name, cell.batch_size, tokens, ready)
    check_output(name, ours(), work.expected)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(models.arguments.rounds):
        for name, run in runs.items():
            elapsed, output = timed(run, device)
            check_output(name, output, work.expected)
            times[name].append(elapsed)
    median = {name: milliseconds(values)["median"] / 1000 for name, values in times.items()}
    static = min(statics, key=median.__getitem__)
    pairs = {name: list(zip(times[name], times[cell.candidate], strict=True)) for name in statics}
    profiled = launch_bound(ours, median[cell.candidate], device)
    static_profiled = launch_bound(runs[static], median[static], device)
    return {
        "layer_speed_up": work.layer_speed_up,
        "token_layer_speed_up": work.token_layer_speed_up,
        "static": static,
        **ratios(pairs[static], work.layer_speed_up),
        "eta_against": {name: ratios(pairs[name], work.layer_speed_up)["eta"][1] for name in statics},
        "seconds": {name: [round(value, 6) for value in values] for name, values in times.items()},
        "batches": len(sizes),
        "warm_up_seconds": warm_up,
        "failures": dict(models.failures),
        "reading_seconds": None if ready else round(reading_seconds(work, sizes), 6),
        **profiled,
        "static_launch_bound_share": static_profiled["launch_bound_share"],
        "static_kernels": static_profiled["kernels"],
    }


def reading_seconds(work: Workload, sizes: list[list[int]]) -> float:
    """Seconds in which the CPU only checks and pads the rows, as `predict` does before the first layer."""
    started = time.perf_counter()
    rows = read_rows(work.rows, None, work.model.config)
    for places in sizes:
        padded_batch([rows[place] for place in places], work.model.config.encoder_config)
    return time.perf_counter() - started


def settings_of(arguments: Arguments, cell: Cell, environment: Record) -> Record:
    """The settings of a cell, by which a record is found again."""
    texts = TEXTS.get(cell.batch_size, 16 * cell.batch_size)
    tokens = arguments.batch_tokens
    if arguments.toy:
        texts, tokens = min(12, max(2 * cell.batch_size, 4)), 256
    if cell.batch_size:
        lengths = text_lengths(texts, cell.lengths, arguments.seed)
        tokens = max(1, round(cell.batch_size * sum(lengths) / texts))
    shape = TOY if arguments.toy else BERT_BASE
    options = {name: getattr(arguments, name) for name in ("rounds", "seed", "statics")}
    return environment | shape | options | cell._asdict() | {"texts": texts, "batch_tokens": tokens}


def environment_of(device: str) -> Record:
    """The machine, with the GPU's driver and CUDA's version, and on one with a GPU its memory in bytes."""
    found = machine(device) | {"cuda": torch.version.cuda, "driver": None, "device_memory": None}
    if device.startswith("cuda"):
        found["device_memory"] = torch.cuda.get_device_properties(device).total_memory
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found["driver"] = output.splitlines()[0].strip()
        except (OSError, subprocess.CalledProcessError, IndexError):
            pass  # the measurements are valid without
    return found


def table(records: Sequence[Record]) -> str:
    """A Markdown table with one row per record."""
    head = ["run", "batch", "texts", "dtype", "attention", "layers", "against", "ms per text, static", "ours"]
    lines = [[*head, "speed-up", "eta (quartiles)", "GPU idle, static", "ours"], ["---"] * 13]
    for record in records:
        batch = str(record["batch_size"] or f"{record['batch_tokens']} tokens")
        medians = [
            f"{milliseconds(record['seconds'][name])['median'] / record['texts']:.4f}"
            for name in (record["static"], record["candidate"])
        ]
        low, middle, high = record["eta"]
        shares = [record["static_launch_bound_share"], record["launch_bound_share"]]
        idle = ["not known" if share is None else f"{100 * share:.0f} %" for share in shares]
        parts = [record["candidate"], batch, record["lengths"], record["dtype"], record["attention"]]
        parts += [f"{record['layer_speed_up']:.2f}x", record["static"], *medians, f"{record['speed_up'][1]:.2f}"]
        lines.append([*parts, f"{middle:.2f} ({low:.2f} to {high:.2f})", *idle])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check_arguments(arguments: Arguments) -> None:
    """Refuse what cannot be measured, with one line in place of a traceback."""
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            f"device: got '{arguments.device}', but PyTorch {torch.__version__} finds no GPU; run this on a machine "
            "with one, or try the script with --device cpu --toy"
        )
    for name, allowed in (("dtypes", ("float16", "bfloat16", "float32")), ("statics", STATICS)):
        wrong = [value for value in getattr(arguments, name) if value not in allowed]
        if wrong:
            raise SystemExit(f"{name}: got '{wrong[0]}'; choose from {', '.join(allowed)}")
    if "eager" not in arguments.statics:
        raise SystemExit("statics: got none of them eager; pass eager too, which every other is checked against")


def main(started: float | None = None) -> int:
    """Measure what is missing and fits into the budget, and print all results of this call."""
    started = time.monotonic() if started is None else started
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    check_arguments(arguments)
    flash = arguments.device.startswith("cuda") and is_flash_attn_2_available()
    if not flash:
        print("flash_attention_2: not measured, since the package flash-attn is not installed, or there is no GPU")
    output, environment, source = Path(arguments.output), environment_of(arguments.device), commit()
    print(json.dumps(environment), flush=True)
    records, results, wrong, skipped = read_lines(output), [], 0, 0
    models: dict[tuple[str, str], Models] = {}
    took = {}
    for cell in cells(arguments, flash):
        settings = settings_of(arguments, cell, environment)
        record = find_record(records, settings)
        if record is None:
            before, kind = time.monotonic(), (cell.candidate, cell.batch_size, cell.compiled)
            spent, guess = before - started, took.get(kind, 0.0 if arguments.toy else GUESS[cell.compiled])
            if spent + guess > 60 * arguments.max_minutes or spent >= 60 * arguments.max_minutes:
                print(f"not run: out of time: {cell}", flush=True)
                skipped += 1
                continue
            try:
                if (cell.dtype, cell.attention) not in models:
                    models.clear()  # frees the memory of the ones before
                    models[cell.dtype, cell.attention] = Models(arguments, cell.dtype, cell.attention)
                measured = measure_cell(models[cell.dtype, cell.attention], cell, settings)
            except Exception as error:  # the other cells are still measured
                wrong += 1
                if isinstance(error, AnswersDifferError):
                    print(f"wrong answers: {cell}: {error}", flush=True)
                else:
                    print(f"failed: {cell}", flush=True)
                    traceback.print_exc()
                continue
            took[kind] = time.monotonic() - before
            record = settings | measured | {"commit": source, "cell_seconds": round(took[kind], 2)}
            with output.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(table([record]).splitlines()[-1], flush=True)
        results.append(record)
    print(f"\n{table(results)}\n")
    spent = time.monotonic() - started
    print(f"{len(results)} cells, {skipped} not run, {wrong} wrong or failed; {spent:.0f} seconds")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(time.monotonic()))
