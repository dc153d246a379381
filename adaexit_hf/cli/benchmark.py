"""The command `adaexit benchmark`."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..benchmark.records import machine
from ..benchmark.runtimes import compare_runtimes, exported_folder
from ..benchmark.start_up import measure_start_up
from ..benchmark.timing import cells, measure, measure_single, trained_workload
from ..evaluation.summary import exit_settings
from ..export.onnx import check_installed, export_stock
from ..models.configuration_early_exit import check_whole_number
from ..onnx_runtime.folder import read_manifest
from ..utils.imports import needed
from ..utils.processor import default_batch_tokens
from ..version import __version__
from .options import CHECKPOINT, ModelOptions, OutputOptions, Positionals, TextOptions, load, read_config, threshold_in
from .predict import PredictOptions, items_of_input
from .printing import print_speed
from .streams import print_json


@dataclass(kw_only=True)
class BenchmarkOptions(ModelOptions, TextOptions, OutputOptions):
    """Flags of `adaexit benchmark`."""

    positionals: ClassVar[Positionals] = CHECKPOINT | {
        "file": {"help": "File with the texts: .txt, .csv, .tsv, .jsonl, .json or .parquet."}
    }
    max_texts: int = field(default=1000, metadata={"help": "Use only this many texts from the start of the file."})
    single_texts: int | None = field(
        default=None, metadata={"help": "Of these texts, time this many one at a time. Default: 100."}
    )
    batch_size: int = field(default=32, metadata={"help": "Texts per batch, for runs with a fixed batch size."})
    rounds: int = field(
        default=5, metadata={"help": "Timed passes of each run, after one pass to warm up. Both runs take turns."}
    )
    pairs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Compare these runs instead, as candidate/baseline; benchmarks/inference.py lists their names."
        },
    )
    onnx: bool = field(
        default=False,
        metadata={
            "help": "Also run, in turn on the CPU, what adaexit export has written into the checkpoint, and the "
            "classifier without exits in ONNX Runtime, each in fp32 and int8; and measure their start-up."
        },
    )
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads. Default: as many as PyTorch uses; with --onnx 1."}
    )


def benchmark(options: BenchmarkOptions, positionals: Any) -> None:
    """Compare the speed of a checkpoint with that of Transformers' classifier without exits, on your own texts.

    Measures what a server does, one text at a time, and what a batch job does, many texts at once, each from the text
    to the answer. Prints a table with milliseconds per text, or with --json one object per comparison, which also has
    the speed-up and eta (the measured speed-up divided by the speed-up in layers), each as lower quartile, median and
    upper quartile over the rounds. Every prediction is checked.

    With --onnx it measures what a checkpoint gains on a CPU over the fastest way to run the classifier without exits,
    which need not be PyTorch: one object for single texts, one for many, and one for start-up and memory.
    """
    if options.pairs and options.onnx:
        raise ValueError(f"pairs: got {' '.join(options.pairs)} with --onnx, which compares all runs; leave out one")
    if options.pairs and options.single_texts is not None:
        raise ValueError(
            f"single_texts: got {options.single_texts} with --pairs, which replaces the comparison of single texts; "
            "leave out one of them"
        )
    single_texts = 100 if options.single_texts is None else options.single_texts
    for name, value in {
        "single_texts": single_texts,
        "rounds": options.rounds,
        "batch_size": options.batch_size,
        "threads": 1 if options.threads is None else options.threads,
    }.items():
        check_whole_number(name, value, low=1, advice=f"e.g. --{name} 5")
    config = read_config(positionals.checkpoint, options)
    source = PredictOptions(file=positionals.file, text_columns=options.text_columns, delimiter=options.delimiter)
    items = list(islice(items_of_input(source, [], config.pairs), options.max_texts))
    texts = [text for _, text in items if text is not None]
    if not texts:
        raise ValueError(
            f"file: '{positionals.file}' has no texts, or max_texts {options.max_texts} is 0; pass at least one text"
        )
    if len(texts) < len(items):
        message = f"{len(items) - len(texts)} of {len(items)} texts are empty and are left out"
        print(f"adaexit benchmark: {message}", file=sys.stderr)
    folder = None
    if options.onnx:
        folder = _exported(positionals.checkpoint, options)
        options = replace(options, device="cpu", dtype="float32")
    model, tokenizer = load(positionals.checkpoint, options, options.exit_threshold)
    threads = 1 if options.onnx and options.threads is None else options.threads
    with _threads(threads):
        if folder is None:
            _compare_in_torch(options, model, tokenizer, texts, single_texts)
        else:
            _compare_with_onnx(positionals.checkpoint, options, folder, model, tokenizer, texts, single_texts)


def _compare_in_torch(
    options: BenchmarkOptions, model: Any, tokenizer: Any, texts: list[Any], single_texts: int
) -> None:
    """Compare the standard runs, or the pairs that were chosen, and print the records."""
    batch_tokens = default_batch_tokens(model.device, model.dtype)
    standard = not options.pairs
    pairs = ["predict-texts/static-texts"] if standard else options.pairs
    all_cells = cells(pairs, [options.batch_size], [batch_tokens])
    work = trained_workload(model, tokenizer, texts)
    setting = _setting(model) | {"texts": len(texts)}
    records: list[dict[str, Any]] = []
    if standard:
        first = trained_workload(model, tokenizer, texts[:single_texts])
        fields = {"candidate": "single", "baseline": "single-static", "batch_size": 1, "batch_tokens": 0}
        records.append(setting | {"texts": len(first.rows)} | fields | measure_single(first, options.rounds))
    for cell in all_cells:
        fields = dict(zip(("candidate", "baseline", "batch_size", "batch_tokens"), cell, strict=True))
        records.append(setting | fields | measure(work, *cell, options.rounds))
    if options.json:
        for record in records:
            print_json(record)
    else:
        print_speed(records, model.config.exit_layers[-1], standard)


def _exported(checkpoint: str, options: BenchmarkOptions) -> Path:
    """Find the exported model of a checkpoint.

    Raises:
        ImportError: The extra `onnx` is not installed.
        ValueError: There is none, or the flags do not fit it.
    """
    check_installed()
    if options.device not in ("auto", "cpu") or options.dtype not in ("auto", "float32"):
        raise ValueError(
            f"onnx: got --device {options.device} --dtype {options.dtype}, but it compares float32 on the CPU (and "
            "what it is quantized to); leave them out"
        )
    folder = exported_folder(checkpoint, options.revision)
    longest = read_manifest(folder)["max_tokens"]
    if options.max_seq_length not in (None, longest):
        raise ValueError(
            f"max_seq_length: got {options.max_seq_length}, but the exported model truncates to {longest} tokens; "
            "leave it out"
        )
    return folder


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch use this many threads for a while; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _setting(model: Any) -> dict[str, Any]:
    """The fields that all records of a model have."""
    setting = machine(str(model.device)) | {"dtype": str(model.dtype).removeprefix("torch.")}
    return setting | {**exit_settings(model.config), "version": __version__}


def _compare_with_onnx(
    checkpoint: str,
    options: BenchmarkOptions,
    folder: Path,
    model: Any,
    tokenizer: Any,
    texts: list[Any],
    single_texts: int,
) -> None:
    """Compare the runs in PyTorch and ONNX Runtime, and what their first answers cost, and print the records."""
    manifest = read_manifest(folder)
    work = trained_workload(model, tokenizer, texts)
    own_threshold = None if options.exit_threshold is None else threshold_in(options.exit_threshold)
    with tempfile.TemporaryDirectory() as stock_folder:
        inputs, longest = next(iter(manifest["precisions"].values()))["stages"][0]["inputs"], manifest["max_tokens"]
        stock = export_stock(work.stock, Path(stock_folder), inputs, longest)
        sizes = {"batch_size": options.batch_size, "rounds": options.rounds}
        found = compare_runtimes(work, folder, stock, single_texts, **sizes, exit_threshold=own_threshold)
        with_exits = [
            name for name in found[0]["runs"] if name in ("exits torch", "exits onnx fp32", "exits onnx int8")
        ]
        thresholds = dict.fromkeys(with_exits, own_threshold)
        threads = torch.get_num_threads()
        start_up = measure_start_up(checkpoint, folder, stock, texts[0], threads, thresholds, options.revision)
    setting = _setting(model) | {"onnxruntime": needed("onnxruntime", "onnx").__version__}
    records = [setting | record for record in (*found, {"way": "start-up", "runs": start_up})]
    if options.json:
        for record in records:
            print_json(record)
    else:
        print_runtimes(records)


def print_runtimes(records: Sequence[dict[str, Any]]) -> None:
    """Print the table of `adaexit benchmark --onnx`, and what it means."""
    single, many = records[:2]
    threads = f"{single['threads']} thread{'s' * (single['threads'] > 1)}"
    rounds = len(next(iter(single["runs"].values()))["seconds"])
    print(f"\n{threads} of {single['cpu']}, {rounds} rounds\n")
    print(f"{'milliseconds per text':<34} {'mean layers':>12} {'median':>10} {'p95':>10} {'eta':>6}")
    titles = {
        "single": "one text at a time",
        "many": f"many texts, one at a time or, where it says so, {many['batch_size']} per batch",
    }
    for record in (single, many):
        print(f"{titles[record['way']]}; {record['texts']} texts")
        for name, run in record["runs"].items():
            eta = f"{record['eta'][name][1]:>6.2f}" if name in record["eta"] else ""
            layers, time = f"{run['mean_layers']:.2f} of {record['depth']}", run["milliseconds"]
            print(f"  {name:<32} {layers:>12} {time['median']:>10.2f} {time['p95']:>10.2f} {eta}".rstrip())
        low, median, high = record["speed_up"]
        print(
            f"  {record['best_with_exits']}, the fastest with exits, is {median:.2f} times ({low:.2f} to {high:.2f}) "
            f"as fast as\n  {record['best_static']}, the fastest without"
        )
    if len(records) > 2:
        print(f"\n{'first answer of a new process':<34} {'CPU s':>12} {'wall s':>10} {'peak MiB':>10}")
        for name, run in records[2]["runs"].items():
            times = f"{run['cpu_seconds']:>12.2f} {run['wall_seconds']:>10.2f}"
            print(f"  {name:<32} {times} {run['peak_memory'] / 2**20:>10.0f}")
    for name, reason in single["left_out"].items():
        print(f"\n{name} was left out: {reason}.")
    print(
        "\nstock: Transformers' own classifier, with the weights of the same encoder, at full depth; onnx: in ONNX "
        "Runtime.\neta: how many times as fast as the stock graph of the same precision, text by text, divided by "
        "the same in layers.\nAll runs take turns, and are from the text to the answer. The speed-up is of the total "
        "times of a round, the median\n(and quartiles); p95 is over texts or, of many texts, over the rounds."
    )
    if not single["same_head"]:
        print("The stock classifier has another head than the last exit, of about the same cost.")
