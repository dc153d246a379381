"""`adaexit benchmark`."""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from ..benchmark.records import machine
from ..benchmark.timing import cells, measure, trained_workload
from ..inference.text_files import check_file, read_texts
from .options import CHECKPOINT, ModelOptions, Positionals, load
from .printing import print_json


@dataclass(kw_only=True)
class BenchmarkOptions(ModelOptions):
    """What to time."""

    positionals: ClassVar[Positionals] = CHECKPOINT | {"file": {"help": "Texts: .txt, .csv, .tsv, .jsonl or .json."}}
    text_columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "One, or two for pairs."})
    max_texts: int = field(default=1000, metadata={"help": "Take the first so many texts of the file."})
    batch_size: int = field(default=32, metadata={"help": "Texts per batch, where a run has batches."})
    rounds: int = field(default=5, metadata={"help": "Timed passes of each run, in turn, after one that warms up."})
    pairs: list[str] = field(
        default_factory=lambda: ["predict-texts/pipeline", "predict/static-sorted"],
        metadata={"help": "candidate/baseline, named as in benchmarks/inference.py."},
    )


def benchmark(options: BenchmarkOptions, given: Any) -> None:
    """Time a checkpoint on texts as they come in service, in turns with the classifier without exits.

    Prints one JSON object for every pair of runs: speed-up and eta (speed-up on the clock over that in layers), each
    as lower quartile, median and upper quartile over the rounds. All answers are checked.
    """
    check_file(Path(given.file), options.text_columns)
    model, tokenizer = load(given.checkpoint, options)
    texts = list(islice(read_texts(Path(given.file), options.text_columns), options.max_texts))
    tokens = 1024 if model.device.type == "cpu" else 16384
    todo = cells(options.pairs, [options.batch_size], [tokens])
    work = trained_workload(model, tokenizer, texts)
    where = machine(str(model.device)) | {"dtype": str(model.dtype).removeprefix("torch."), "texts": len(texts)}
    where |= {"exit_threshold": model.config.exit_threshold}
    for cell in todo:
        named = dict(zip(("candidate", "baseline", "batch_size", "batch_tokens"), cell, strict=True))
        print_json(where | named | measure(work, *cell, options.rounds))
