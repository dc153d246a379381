"""What `adaexit predict` and `adaexit benchmark` do."""

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from .benchmark.measure import cells, measure, trained_workload
from .benchmark.records import machine
from .inference.predict import predict_stream
from .inference.text_files import Text, check_file, plain_lines, read_texts
from .models import METHODS

Positionals = dict[str, dict[str, Any]]
CHECKPOINT: Positionals = {"checkpoint": {"help": "Folder or Hub name of a model with exits."}}


@dataclass(kw_only=True)
class ModelOptions:
    """How to run the checkpoint."""

    positionals: ClassVar[Positionals] = CHECKPOINT
    exit_threshold: float | None = field(default=None, metadata={"help": "Default: the checkpoint's own."})
    dtype: str = field(default="auto", metadata={"help": "float32, bfloat16, float16; auto: as it was saved."})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto takes a GPU if there is one."})
    revision: str = field(default="main", metadata={"help": "Of a checkpoint on the Hub: branch, tag or commit."})


@dataclass(kw_only=True)
class PredictOptions(ModelOptions):
    """Where the texts are."""

    positionals: ClassVar[Positionals] = CHECKPOINT | {"texts": {"nargs": "*", "help": "Default: stdin, one a line."}}
    file: str | None = field(default=None, metadata={"help": "Texts: .txt, .csv, .tsv, .jsonl or .json."})
    text_columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "One, or two for pairs."})


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
        metadata={"help": "candidate/baseline, named as in examples/benchmark_inference.py."},
    )


def load(checkpoint: str, options: ModelOptions) -> tuple[Any, Any]:
    """Model, on its device, and tokenizer.

    Raises:
        ValueError: no such folder, a checkpoint without exits or with weights missing or broken, a dtype, device or
            threshold that is none.
    """
    if not Path(checkpoint).is_dir() and checkpoint.count("/") != 1:
        raise ValueError(f"checkpoint: no folder '{checkpoint}'; pass one that is there, or a name on the Hub")
    config = AutoConfig.from_pretrained(checkpoint, revision=options.revision)
    if config.model_type not in {each.model_type for each, _, _ in METHODS}:
        raise ValueError(
            f"checkpoint: '{checkpoint}' is a '{config.model_type}', which has no exits; train them with "
            f"adaexit train --model_name_or_path {checkpoint} --method ..."
        )
    dtypes = ("auto", "float32", "bfloat16", "float16")
    if options.dtype not in dtypes:
        raise ValueError(f"dtype: got '{options.dtype}'; choose one of {', '.join(dtypes)}")
    cuda = torch.cuda.is_available()
    device = options.device if options.device != "auto" else "cuda" if cuda else "cpu"
    if device.startswith("cuda") and not cuda:
        raise ValueError(f"device: got '{device}', but torch finds no GPU; pass cpu")
    if options.exit_threshold is not None:
        config.thresholds(options.exit_threshold)  # raises where it is none
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=options.dtype, revision=options.revision, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint: the weights of '{checkpoint}' cannot be read; copy them again ({error})"
        ) from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(
            f"checkpoint: '{checkpoint}' lacks {len(missing)} weights, {', '.join(missing[:3])}, ..., and would "
            "answer by chance; copy it again, or train it"
        )
    if options.exit_threshold is not None:
        model.config.exit_threshold = options.exit_threshold
    return model.eval().to(device), AutoTokenizer.from_pretrained(checkpoint, revision=options.revision)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def predict(options: PredictOptions, given: Any) -> None:
    """Classify texts: arguments, a file, or the lines of stdin. Prints one JSON object a line, in their order."""
    source = texts_given(options, given.texts)
    model, tokenizer = load(given.checkpoint, options)
    pending: deque[Text] = deque()

    def texts() -> Iterator[Text]:
        for text in source:
            pending.append(text)
            yield text

    for found in predict_stream(model, texts(), tokenizer, progress=sys.stderr.isatty()):
        answer: dict[str, Any] = {"text": pending.popleft()}
        if model.config.num_labels == 1:
            answer["score"] = found.logits.item()
        else:
            chosen = int(found.logits.argmax())
            probability = found.logits.softmax(dim=-1)[chosen].item()
            answer |= {"label": model.config.id2label[chosen], "score": probability}
        print_json(answer | {"exit_layer": found.exit_layer})


def texts_given(options: PredictOptions, texts: Sequence[str]) -> Iterable[Text]:
    """The texts of the command line, of the file, or of stdin."""
    if texts and options.file:
        raise ValueError(f"file: got '{options.file}' and texts as arguments; pass one of the two")
    if texts:
        return texts
    if options.file:
        check_file(Path(options.file), options.text_columns)
        return read_texts(Path(options.file), options.text_columns)
    if sys.stdin.isatty():
        raise ValueError("texts: got none; pass them as arguments, by --file, or on stdin, one a line")
    return plain_lines(sys.stdin.buffer, "stdin")


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
