"""`adaexit predict`."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..inference.prediction import predict_stream
from ..inference.text_files import Text, check_file, plain_lines, read_texts
from .options import CHECKPOINT, ModelOptions, Positionals, load
from .printing import print_json


@dataclass(kw_only=True)
class PredictOptions(ModelOptions):
    """Where the texts are."""

    positionals: ClassVar[Positionals] = CHECKPOINT | {"texts": {"nargs": "*", "help": "Default: stdin, one a line."}}
    file: str | None = field(default=None, metadata={"help": "Texts: .txt, .csv, .tsv, .jsonl or .json."})
    text_columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "One, or two for pairs."})


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
