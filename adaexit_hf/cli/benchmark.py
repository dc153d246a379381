"""The command `adaexit benchmark`."""

import sys
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from ..benchmark.records import machine
from ..benchmark.timing import cells, measure, measure_single, trained_workload
from ..evaluation.summary import exit_settings
from ..models.configuration_early_exit import check_whole_number
from ..version import __version__
from .options import CHECKPOINT, ModelOptions, OutputOptions, Positionals, TextOptions, load, read_config
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


def benchmark(options: BenchmarkOptions, positionals: Any) -> None:
    """Compare the speed of a checkpoint with that of Transformers' classifier without exits, on your own texts.

    Measures what a server does, one text at a time, and what a batch job does, many texts at once, each from the text
    to the answer. Prints a table with milliseconds per text, or with --json one object per comparison, which also has
    the speed-up and eta (the measured speed-up divided by the speed-up in layers), each as lower quartile, median and
    upper quartile over the rounds. Every prediction is checked.
    """
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
    model, tokenizer = load(positionals.checkpoint, options, options.exit_threshold)
    batch_tokens = 1024 if model.device.type == "cpu" else 16384
    standard = not options.pairs
    pairs = ["predict-texts/static-texts"] if standard else options.pairs
    all_cells = cells(pairs, [options.batch_size], [batch_tokens])
    work = trained_workload(model, tokenizer, texts)
    setting = machine(str(model.device)) | {"dtype": str(model.dtype).removeprefix("torch."), "texts": len(texts)}
    setting |= {**exit_settings(model.config), "version": __version__}
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
