"""The command `adaexit predict`."""

import os
import shlex
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..inference.text_files import (
    Text,
    check_file,
    decoded,
    encodable,
    parse_json,
    plain_lines,
    read_rows,
    texts_of,
)
from ..models.exit_criteria import label_sets
from ..utils.files import check_writable
from ..utils.imports import needed
from .columns import SAMPLE, guess_text_columns
from .options import CHECKPOINT, ModelOptions, Positionals, TextOptions, read_config
from .runtime import RuntimeOptions, load_runtime, predictions_of
from .streams import print_json

# What is printed of a text besides the answer, and the text; None if it is empty.
Item = tuple[dict[str, Any], Text | None]


@dataclass(kw_only=True)
class PredictOptions(ModelOptions, RuntimeOptions, TextOptions):
    """Flags of `adaexit predict`."""

    positionals: ClassVar[Positionals] = CHECKPOINT | {
        "texts": {
            "nargs": "*",
            "help": "Texts to classify; for a model of pairs two for each pair. Default: the lines of stdin.",
        }
    }
    file: str | None = field(
        default=None, metadata={"help": "File with the texts: .txt, .csv, .tsv, .jsonl, .json or .parquet."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or a local folder, with the texts (extra train)."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    split: str | None = field(default=None, metadata={"help": "Split of the data set. Default: the only one."})
    id_column: str | None = field(
        default=None, metadata={"help": "Column whose value is printed with each answer, as id."}
    )
    pairs: bool = field(
        default=False, metadata={"help": "The texts are pairs. Only for a checkpoint that does not say so itself."}
    )
    all_scores: bool = field(default=False, metadata={"help": "Also print the probability of every label, as scores."})
    output: str | None = field(
        default=None, metadata={"help": "File to write the answers to, one JSON object per line. Default: stdout."}
    )


def predict(options: PredictOptions, positionals: Any) -> None:
    """Classify texts from the command line, from a file or a data set, or from stdin (one text per line).

    Prints one JSON object per text, in input order: text, label (not for regression), score and exit_layer. A model
    for several labels at once gives `labels`, the list of those with a probability above 0.5, and `scores`, the
    probability of every label. Label and score are null where the model's answer is not finite, and with a reason
    where the text is empty.

    Pairs of texts are two arguments, two columns, or on stdin two fields with a tab between them, or JSON lines, whose
    fields --text_columns names.
    """
    config = read_config(positionals.checkpoint, options)
    if options.all_scores and config.num_labels == 1:
        raise ValueError("all_scores: the model predicts one number, which has no probabilities; leave it out")
    source = items_of_input(options, positionals.texts, config.pairs)
    output = Path(options.output) if options.output else None
    if output is not None:
        if output.is_dir() or (options.file and output.resolve() == Path(options.file).resolve()):
            raise ValueError(f"output: got '{output}', a folder or the input itself; pass another file")
        if output.suffix.lower() in (".csv", ".tsv", ".parquet"):
            raise ValueError(f"output: got '{output}', but answers are JSON lines; pass a file that ends with .jsonl")
        check_writable("output", output.parent)
    model, tokenizer = load_runtime(positionals.checkpoint, options, options.exit_threshold)
    texts = empty = layers = 0
    part = output
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        if not output.exists() or (output.is_file() and not output.is_symlink()):  # not of a pipe or a device
            part = output.with_name(f"{output.name}.part")
    stream = None if part is None else part.open("w", encoding="utf-8")
    try:
        with nullcontext() if stream is None else stream:
            for record in answers(model, tokenizer, source, options.all_scores):
                print_json(record, stream)
                texts, empty = texts + 1, empty + ("reason" in record)
                layers += record["exit_layer"] or 0
    except BaseException:
        if part is not None:
            print(f"adaexit predict: stopped; the first {texts} answers are in {part}", file=sys.stderr)
        raise
    if output is not None and part is not None:
        if part != output:
            part.replace(output)
        mean = f", mean exit layer {layers / (texts - empty):.2f}" if texts > empty else ""
        message = f"{texts} texts, {empty} of them empty{mean}; answers in {output}"
        print(f"adaexit predict: {message}", file=sys.stderr)


def answers(model: Any, tokenizer: Any, source: Iterable[Item], all_scores: bool) -> Iterator[dict[str, Any]]:
    """The answers to print, in the order of the texts.

    If the source raises an error, the answers to the texts before it come first.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        source: What to print of each text, and the text.
        all_scores: Whether to add the probability of every label.
    """
    pending: deque[Item] = deque()

    def texts() -> Iterator[Text]:
        for item in source:
            pending.append(item)
            if item[1] is not None:
                yield item[1]

    def empty() -> Iterator[dict[str, Any]]:
        while pending and pending[0][1] is None:
            yield pending.popleft()[0] | answer_of_empty(model.config)

    stream, failure = texts(), None
    try:
        first = list(islice(stream, 1))
        if first or not pending:  # no texts at all are refused
            for prediction in predictions_of(model, chain(first, stream), tokenizer):
                yield from empty()
                record, _ = pending.popleft()
                answer = answer_of(model.config, prediction.logits, all_scores)
                yield record | answer | {"exit_layer": prediction.exit_layer}
    except Exception as error:
        failure = error
    yield from empty()
    if failure is not None:
        raise failure


def answer_of(config: Any, logits: Tensor, all_scores: bool) -> dict[str, Any]:
    """Label and score of a text. Scores have six digits: a float32 has hardly more."""
    names = config.id2label
    if config.num_labels == 1:
        return {"score": _six_digits(logits.item())}
    finite = bool(logits.isfinite().all())
    probabilities = logits.sigmoid() if config.multi_label else logits.softmax(dim=-1)
    scores = {names[label]: _six_digits(score) for label, score in enumerate(probabilities.tolist())}
    if config.multi_label:
        chosen = [names[label] for label in label_sets(logits).nonzero().flatten().tolist()]
        return {"labels": chosen if finite else None, "scores": scores}
    label = int(logits.argmax())
    answer: dict[str, Any] = {"label": names[label] if finite else None, "score": scores[names[label]]}
    return answer | ({"scores": scores} if all_scores else {})


def _six_digits(number: float) -> float:
    return float(f"{number:.6g}")


def answer_of_empty(config: Any) -> dict[str, Any]:
    """The answer to an empty text."""
    keys = ("labels", "scores") if config.multi_label else ("score",) if config.num_labels == 1 else ("label", "score")
    return dict.fromkeys((*keys, "exit_layer")) | {"reason": "the text is empty"}


def items_of_input(options: PredictOptions, arguments: Sequence[str], trained_on_pairs: bool | None) -> Iterable[Item]:
    """The texts from the command line, from a file or a data set, or from stdin.

    Args:
        options: The flags.
        arguments: Texts from the command line.
        trained_on_pairs: Whether the model was trained on pairs of texts; None if that is not known.

    Raises:
        ValueError: There are no texts or several sources, or the texts are of another kind than those of training;
            while the texts are read, a row or a line is not as it should be.
    """
    given = [f"'{name}'" for name in (options.file, options.dataset_name) if name]
    if len(given) + bool(arguments) > 1:
        raise ValueError(
            f"file: got {' and '.join([*given, *(['texts as arguments'] if arguments else [])])}; pass either a file "
            "or texts, or a data set"
        )
    if options.pairs and trained_on_pairs is False:
        raise ValueError("pairs: the model was trained on single texts; leave it out")
    columns = options.text_columns
    pairs: bool | None = options.pairs or trained_on_pairs
    if columns is not None:
        if len(columns) not in (1, 2) or pairs not in (None, len(columns) == 2):
            wanted = "two columns, since the model was trained on pairs of texts" if pairs else "one column"
            raise ValueError(f"text_columns: got {columns}; pass {'one or two columns' if pairs is None else wanted}")
        pairs = len(columns) == 2
    for flag in ("split", "dataset_config", "dataset_revision"):
        if getattr(options, flag) and not options.dataset_name:
            raise ValueError(f"{flag}: got '{getattr(options, flag)}' without --dataset_name; leave it out")
    if options.delimiter is not None and Path(options.file or "").suffix.lower() != ".csv":
        raise ValueError(f"delimiter: got {options.delimiter!r} without a .csv file; leave it out")
    if arguments:
        return _items_of_arguments(arguments, bool(pairs), options)
    if options.file:
        path = Path(options.file)
        check_file(path, columns or ["text"])
        if path.suffix.lower() != ".txt":
            return _items_of_rows(read_rows(path, options.delimiter), f"of '{path}'", pairs, options)
        return _items_of_text_file(path, bool(pairs), options)
    if options.dataset_name:
        return _items_of_rows(_split_of(options), f"of '{options.dataset_name}'", pairs, options)
    if sys.stdin.isatty():
        raise ValueError("texts: got none; pass them as arguments, with --file, or on stdin, one text per line")
    return _items_of_lines(sys.stdin.buffer, "stdin", bool(pairs), options)


def _item(text: str | list[str]) -> Item:
    """Return a text, or a pair of texts as a list, with what is printed of it."""
    row = {"text": text} if isinstance(text, str) else dict(zip("ab", text, strict=True))
    return {"text": text}, texts_of(row, list(row), "")


def _items_of_arguments(arguments: Sequence[str], pairs: bool, options: PredictOptions) -> list[Item]:
    for flag in ("text_columns", "id_column"):
        if getattr(options, flag):
            raise ValueError(f"{flag}: got {getattr(options, flag)!r} and texts as arguments; leave it out")
    texts = [encodable(text, f"texts: argument {number}") for number, text in enumerate(arguments, start=1)]
    for text in texts:
        if os.path.isfile(text):  # false also for texts that are too long for a name
            print(
                f"adaexit predict: '{text}' is answered as a text; for the texts in this file pass --file "
                f"{shlex.quote(text)}",
                file=sys.stderr,
            )
    if not pairs:
        return [_item(text) for text in texts]
    if len(texts) % 2:
        raise ValueError(
            f"texts: got {len(texts)} arguments, but the model takes pairs of texts; pass two for each pair, e.g. "
            f"adaexit predict MODEL 'He said so.' 'He told them so.'"
        )
    return [_item(list(pair)) for pair in zip(texts[::2], texts[1::2], strict=True)]


def _items_of_text_file(path: Path, pairs: bool, options: PredictOptions) -> Iterator[Item]:
    with path.open("rb") as stream:
        yield from _items_of_lines(stream, str(path), pairs, options)


def _items_of_lines(stream: Iterable[bytes], name: str, pairs: bool, options: PredictOptions) -> Iterator[Item]:
    """Yield the texts of lines: with --text_columns JSON; otherwise texts, or pairs with a tab between or as JSON."""
    if options.text_columns or options.id_column:
        rows = (
            parse_json(line, f"{name}: line {number}")
            for number, line in enumerate(decoded(stream, name), start=1)
            if line.strip()
        )
        yield from _items_of_rows(rows, f"of {name}", pairs, options)
        return
    told = False
    for number, line in enumerate(plain_lines(stream, name), start=1):
        if not pairs:
            if not told and ("\t" in line or line.startswith("{")):
                message = (
                    f"{name}: line {number} is {line!r:.80}, which is classified as one text as it is; if it has "
                    "several fields, pass --text_columns for JSON lines, or a .tsv file"
                )
                print(f"adaexit: {message}", file=sys.stderr)
                told = True
            yield _item(line)
            continue
        fields: Any = line.split("\t")
        if line.startswith(("{", "[")):
            fields = parse_json(line, f"{name}: line {number}")
            fields = list(fields.values()) if isinstance(fields, dict) else fields
        if not line.strip():
            fields = ["", ""]
        if len(fields) != 2 or not all(isinstance(text, str) for text in fields):
            raise ValueError(
                f"{name}: line {number} is {line!r:.80}, but the model takes pairs of texts; pass two with a tab "
                "between them, or JSON with two texts (with more fields also --text_columns)"
            )
        yield _item([encodable(text, f"{name}: line {number}") for text in fields])


def _items_of_rows(
    rows: Iterable[Mapping[str, Any]], where: str, pairs: bool | None, options: PredictOptions
) -> Iterator[Item]:
    """Yield the texts of rows, in the columns that were passed, that are called text, or that only can be meant."""
    rows = _objects(rows, where)
    head = list(islice(rows, 1))
    columns, id_column = options.text_columns, options.id_column
    if columns is None and head:
        if "text" not in head[0] or (pairs and "text_pair" not in head[0]):
            head += islice(rows, SAMPLE - 1)
        columns = guess_text_columns(head, pairs, [id_column] if id_column else [])
        if len(head) > 1:
            message = f"text_columns {' '.join(columns)} (guessed; pass --text_columns for others)"
            print(f"adaexit: {message}", file=sys.stderr)
    for number, row in enumerate(chain(head, rows)):
        found = texts_of(row, columns or [], f"row {number} {where}")
        texts = [row[name] for name in columns or []]
        record: dict[str, Any] = {}
        if id_column:
            if id_column not in row:
                raise ValueError(f"id_column: row {number} {where} has no '{id_column}'; it has {', '.join(row)}")
            value = row[id_column]
            record["id"] = value if isinstance(value, str | int | float | None) else str(value)
        yield record | {"text": texts if len(texts) == 2 else texts[0]}, found


def _objects(rows: Iterable[Any], where: str) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f'row {number} {where} is {row!r:.80}; pass JSON objects, e.g. {{"text": "a good film"}}')
        yield row


def _split_of(options: PredictOptions) -> Any:
    datasets = needed("datasets", "train")
    splits = datasets.load_dataset(options.dataset_name, options.dataset_config, revision=options.dataset_revision)
    if options.split not in splits and (options.split or len(splits) != 1):
        raise ValueError(f"split: got {options.split!r}; the data set has {', '.join(splits)}: pass one with --split")
    return splits[options.split] if options.split else next(iter(splits.values()))
