"""The command `adaexit benchmark`."""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from ..benchmark.records import machine
from ..benchmark.timing import cells, measure, trained_workload
from ..evaluation.summary import exit_settings
from ..inference.text_files import check_file, read_texts
from ..version import __version__
from .options import CHECKPOINT, ModelOptions, Positionals, load
from .streams import print_json


@dataclass(kw_only=True)
class BenchmarkOptions(ModelOptions):
    """Flags of `adaexit benchmark`."""

    positionals: ClassVar[Positionals] = CHECKPOINT | {
        "file": {"help": "File with the texts: .txt, .csv, .tsv, .jsonl, .json or .parquet."}
    }
    text_columns: list[str] = field(
        default_factory=lambda: ["text"], metadata={"help": "Column of the texts, or two columns for pairs of texts."}
    )
    max_texts: int = field(default=1000, metadata={"help": "Use only this many texts from the start of the file."})
    batch_size: int = field(default=32, metadata={"help": "Texts per batch, for runs with a fixed batch size."})
    rounds: int = field(
        default=5, metadata={"help": "Timed passes of each run, after one pass to warm up. Both runs take turns."}
    )
    pairs: list[str] = field(
        default_factory=lambda: ["predict-texts/pipeline", "predict/static-sorted"],
        metadata={"help": "Runs to compare, as candidate/baseline; benchmarks/inference.py lists their names."},
    )


def benchmark(options: BenchmarkOptions, positionals: Any) -> None:
    """Compare the speed of a checkpoint with that of Transformers' classifier without exits, on your own texts.

    Prints one JSON object per pair of runs. It contains the speed-up and eta (the measured speed-up divided by the
    speed-up in layers), each as lower quartile, median and upper quartile over the rounds. Every prediction is
    checked.
    """
    path = Path(positionals.file)
    check_file(path, options.text_columns)
    texts = list(islice(read_texts(path, options.text_columns), options.max_texts))
    if not texts:
        raise ValueError(f"file: '{path}' has no texts, or max_texts {options.max_texts} is 0; pass at least one text")
    model, tokenizer = load(positionals.checkpoint, options, options.exit_threshold)
    batch_tokens = 1024 if model.device.type == "cpu" else 16384
    all_cells = cells(options.pairs, [options.batch_size], [batch_tokens])
    work = trained_workload(model, tokenizer, texts)
    setting = machine(str(model.device)) | {"dtype": str(model.dtype).removeprefix("torch."), "texts": len(texts)}
    setting |= {**exit_settings(model.config), "version": __version__}
    for cell in all_cells:
        cell_fields = dict(zip(("candidate", "baseline", "batch_size", "batch_tokens"), cell, strict=True))
        print_json(setting | cell_fields | measure(work, *cell, options.rounds))
