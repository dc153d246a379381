"""The command `adaexit predict`."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..inference.prediction import predict_stream
from ..inference.text_files import Text, check_file, encodable, plain_lines, read_texts
from ..models.exit_criteria import label_sets
from .options import CHECKPOINT, ModelOptions, Positionals, load
from .streams import print_json


@dataclass(kw_only=True)
class PredictOptions(ModelOptions):
    """Flags of `adaexit predict`."""

    positionals: ClassVar[Positionals] = CHECKPOINT | {
        "texts": {"nargs": "*", "help": "Texts to classify. Default: the lines of stdin."}
    }
    file: str | None = field(
        default=None, metadata={"help": "File with the texts: .txt, .csv, .tsv, .jsonl, .json or .parquet."}
    )
    text_columns: list[str] = field(
        default_factory=lambda: ["text"], metadata={"help": "Column of the texts, or two columns for pairs of texts."}
    )


def predict(options: PredictOptions, positionals: Any) -> None:
    """Classify texts from the command line, from a file, or from stdin (one text per line).

    Prints one JSON object per text, in input order: text, label (not for regression), score and exit_layer. Label and
    score are null where the model's answer is not finite. A model for several labels at once gives `labels`, the list
    of those with a probability above 0.5, and `scores`, the probability of every label.
    """
    source = input_texts(options, positionals.texts)
    model, tokenizer = load(positionals.checkpoint, options, options.exit_threshold)
    pending: deque[Text] = deque()

    def texts() -> Iterator[Text]:
        for text in source:
            pending.append(text)
            yield text

    for prediction in predict_stream(model, texts(), tokenizer, progress=sys.stderr.isatty()):
        record: dict[str, Any] = {"text": pending.popleft()}
        if model.config.num_labels == 1:
            record["score"] = prediction.logits.item()
        elif model.config.multi_label:
            names, logits = model.config.id2label, prediction.logits
            chosen = [names[label] for label in label_sets(logits).nonzero().flatten().tolist()]
            scores = {names[label]: score for label, score in enumerate(logits.sigmoid().tolist())}
            record |= {"labels": chosen if bool(logits.isfinite().all()) else None, "scores": scores}
        else:
            label = int(prediction.logits.argmax())
            probability = prediction.logits.softmax(dim=-1)[label].item()
            finite = bool(prediction.logits.isfinite().all())
            record |= {"label": model.config.id2label[label] if finite else None, "score": probability}
        print_json(record | {"exit_layer": prediction.exit_layer})


def input_texts(options: PredictOptions, arguments: Sequence[str]) -> Iterable[Text]:
    """The texts from the command line, from the file, or from stdin."""
    if arguments and options.file:
        raise ValueError(f"file: got '{options.file}' and texts as arguments; pass either a file or texts")
    if arguments:
        return [encodable(text, f"texts: argument {number}") for number, text in enumerate(arguments, start=1)]
    if options.file:
        check_file(Path(options.file), options.text_columns)
        return read_texts(Path(options.file), options.text_columns)
    if sys.stdin.isatty():
        raise ValueError("texts: got none; pass them as arguments, with --file, or on stdin, one text per line")
    return plain_lines(sys.stdin.buffer, "stdin")
