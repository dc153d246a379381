"""The commands `adaexit certify` and `adaexit verify` (need the extra `train`)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..evaluation.certificate import Certificate, Check, Refusal, check_on_rows
from ..evaluation.certificate import certify as certify_trace
from ..evaluation.certificate_file import (
    CERTIFICATE_FILE,
    SealedCertificate,
    read_records,
    save_certificate,
    sealed_files,
    source_in_words,
    verify_certificates,
)
from ..evaluation.fingerprints import UNKNOWN, hashes_of, read_seen_rows
from ..evaluation.guarantee import Guarantee
from ..evaluation.trace import ExitTrace
from ..models.padded_batches import Row, stream_rows
from ..utils.files import check_writable, replace_text
from .data_arguments import DataArguments
from .errors import RefusedError, wrong_usage
from .evaluate import labelled_splits
from .options import LOCAL_CHECKPOINT, Fraction, LoadOptions, OutputOptions, Positionals, local_folder, read_config
from .predict import PredictOptions, items_of_input
from .runtime import (
    ExportedModel,
    RuntimeOptions,
    load_runtime,
    ran_by,
    save_exported_threshold,
    tell_of_old_threshold,
    tell_of_void_certificates,
    trace_of,
)
from .streams import print_json


@dataclass(kw_only=True)
class RowsOptions(DataArguments, LoadOptions, RuntimeOptions, OutputOptions):
    """Flags that select the rows of a certificate: labelled ones, or texts without labels."""

    file: str | None = field(
        default=None,
        metadata={
            "help": "File with texts without labels: .txt, .csv, .tsv, .jsonl, .json or .parquet. For labelled rows "
            "pass --validation_file."
        },
    )
    split: str | None = field(
        default=None, metadata={"help": "Split with the labelled rows. Default: the validation split."}
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the group of each row, e.g. its author, where rows of a group resemble each other."
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Texts per batch."})


@dataclass(kw_only=True)
class CertifyOptions(RowsOptions):
    """Flags of `adaexit certify`."""

    positionals: ClassVar[Positionals] = LOCAL_CHECKPOINT
    changed_answers: Fraction | None = field(
        default=None,
        metadata={"help": "Promise: at most this share of the texts gets another answer than at full depth."},
    )
    harm: Fraction | None = field(
        default=None,
        metadata={"help": "Promise: full depth is right and early exit wrong for at most this share of the texts."},
    )
    drop: Fraction | None = field(
        default=None,
        metadata={
            "help": "Promise: the accuracy is at most so much below that at full depth, e.g. 0.01 for one point."
        },
    )
    mean_difference: float | None = field(
        default=None,
        metadata={"help": "Promise for regression: the numbers differ from full depth by at most this, on average."},
    )
    mean_layers: float | None = field(
        default=None, metadata={"help": "Promise: texts run at most so many layers on average. Goes with another one."}
    )
    tolerance: float | None = field(
        default=None, metadata={"help": "For --changed_answers of regression: numbers this near count as the same."}
    )
    value_range: list[float] | None = field(
        default=None, metadata={"help": "For --mean_difference: lowest and highest number; others are cut to it."}
    )
    confidence: Fraction = field(
        default=Fraction(0.95), metadata={"help": "Probability with which the promise is kept: 0.95, or 95%%."}
    )
    repeats: str | None = field(
        default=None,
        metadata={
            "help": "What to do with rows that training or a choice has seen: drop them, and promise something of new "
            "texts only, or keep them where the same texts recur by themselves. Default: refuse."
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "Show what would be certified, and save nothing."})


def certify(options: CertifyOptions, positionals: Any) -> None:
    """Choose the threshold that saves the most layers among those that provably keep a promise on new texts.

    The promise holds for texts like the ones passed here, with the stated confidence, if those are a random sample of
    them and had no part in training or in a choice. --changed_answers needs texts only, --harm and --drop need labels.
    If no threshold can be certified, the command says how many rows it would take, and ends with exit code 1.

    The threshold is saved in config.json, with --runtime onnx in early_exit.json, and the certificate in
    certificate.json. It is void as soon as a file that answers depend on has changed.
    """
    with wrong_usage():
        guarantees = guarantees_of(options)
        check_rows(options)
        if options.repeats not in (None, "drop", "keep"):
            raise ValueError(f"repeats: got '{options.repeats}'; choose drop or keep, or leave it out to refuse")
        if not 0 < options.confidence < 1:
            raise ValueError(
                f"confidence: got {options.confidence:g}; pass a number between 0 and 1, e.g. 0.95, or 95%"
            )
        unlabelled = [flag for flag in ("harm", "drop") if options.file and getattr(options, flag) is not None]
        if unlabelled:
            raise ValueError(
                f"{unlabelled[0]}: needs labels, which are not read from --file; pass a file with labels as "
                "--validation_file, or promise --changed_answers"
            )
    folder = local_folder(positionals.checkpoint)
    if not options.dry_run:
        check_writable("checkpoint", folder)
        read_records(folder)  # raises if no certificate can be added
    config = read_config(positionals.checkpoint, options)
    with wrong_usage():
        certify_trace(one_row(config), guarantees)  # raises what does not fit the model
    model, tokenizer = load_runtime(positionals.checkpoint, options, threshold_needed=False)
    runtime, precision = ran_by(model).values()
    files = sealed_files(folder, runtime, precision)
    all_rows, groups, data = rows_to_certify("certify", model, tokenizer, options)
    rows, groups, seen = without_seen_rows(all_rows, groups, folder, options.repeats)
    if len(rows) < len(all_rows):
        data["left_out"] = len(all_rows) - len(rows)
    found = certify_trace(
        trace_of(model, rows, options.batch_size),
        guarantees,
        options.confidence,
        groups=groups,
        seen=seen,
        allow_repeats=options.repeats == "keep",
    )
    saved = None
    if isinstance(found, Certificate) and not options.dry_run:
        saved = CERTIFICATE_FILE
        changed = sorted(dict(files.items() ^ sealed_files(folder, runtime, precision).items()))
        if changed:
            raise ValueError(
                f"checkpoint: {', '.join(changed)} in '{folder}' has changed since the model was loaded; certify again"
            )
        save_threshold(model, folder, found.exit_threshold)
        save_certificate(
            folder, found, runtime=runtime, precision=precision, max_tokens=tokenizer.model_max_length, data=data
        )
        tell_of_void_certificates("certify", folder)
    if options.json:
        print_json(found.as_dict() | {"certified": isinstance(found, Certificate), "saved": saved})
    elif isinstance(found, Certificate):
        print_certificate(found, data)
        print(f"saved in {folder / CERTIFICATE_FILE}" if saved else "dry run: nothing was saved")
    if isinstance(found, Refusal):
        raise RefusedError(str(found))


@dataclass(kw_only=True)
class VerifyOptions(RowsOptions):
    """Flags of `adaexit verify`."""

    positionals: ClassVar[Positionals] = LOCAL_CHECKPOINT


def verify(options: VerifyOptions, positionals: Any) -> None:
    """Check whether a checkpoint's certificates still hold: for the files as they are and, with rows, on these.

    A certificate is void if weights, config, tokenizer, code or graphs have changed since. With rows (--file, or
    labelled ones) the command also tests whether they contradict the certificate of the chosen runtime, at its own
    confidence: few rows seldom do. The exit code is 1 if a certificate is void or contradicted, or if there is none.
    """
    with_rows = any(
        [options.file, options.task_name, options.dataset_name, options.train_file, options.validation_file]
    )
    with wrong_usage():
        if with_rows:
            check_rows(options)
        else:
            check_no_rows(options)
    folder = local_folder(positionals.checkpoint)
    sealed = verify_certificates(folder)
    check_runtime(options, sealed, folder)
    if not sealed:
        raise RefusedError(f"'{folder}' has no {CERTIFICATE_FILE}; call adaexit certify {folder} ...")
    tests: tuple[Check, ...] = ()
    name, unit = None, "rows" if options.group_column is None else "groups"
    if with_rows:
        model, tokenizer = load_runtime(positionals.checkpoint, options, threshold_needed=False)
        name = " ".join(ran_by(model).values())
        if name not in sealed:
            raise RefusedError(f"'{folder}' has no certificate for {name}, only for {', '.join(sealed)}")
        rows, groups, data = rows_to_certify("verify", model, tokenizer, options)
        trace = trace_of(model, rows, options.batch_size)
        certificate = sealed[name].certificate
        tests = check_on_rows(certificate, trace, groups)
        if trace.fingerprint == certificate.fingerprint:
            message = "these are the rows that were certified, which say nothing new; pass others"
            print(f"adaexit verify: {message}", file=sys.stderr)
    if options.json:
        shown = [vars(test) | {"guarantee": str(test.guarantee), "unit": unit} for test in tests]
        print_json({key: described(each) | ({"tests": shown} if key == name else {}) for key, each in sealed.items()})
    else:
        for key, each in sealed.items():
            print(f"{key}: {'void' if each.void else 'holds for these files'}")
            print_certificate(each.certificate, each.data, indent="  ")
            for reason in each.void:
                print(f"  void: {reason}")
        for test in tests:
            verdict = "contradicted" if test.contradicted else "not contradicted"
            print(f"{name}: {test.guarantee} is {verdict} by {test.n} {unit}: {test.risk:.4g} there")
    void = [key for key, each in sealed.items() if each.void]
    contradicted = [str(test.guarantee) for test in tests if test.contradicted]
    if void or contradicted:
        reasons = [f"void: {', '.join(void)}"] if void else []
        reasons += [f"contradicted: {', '.join(contradicted)}"] if contradicted else []
        raise RefusedError(f"{'; '.join(reasons)}; certify again with adaexit certify {folder} ...")


def guarantees_of(options: CertifyOptions) -> list[Guarantee]:
    """The guarantees that the flags ask for.

    Raises:
        ValueError: There are none, or one of their numbers is not allowed.
    """
    low_high = None if options.value_range is None else tuple(options.value_range)
    if low_high is not None and len(low_high) != 2:
        raise ValueError(f"value_range: got {options.value_range}; pass the lowest and the highest number, e.g. 0 5")
    flags: dict[str, tuple[float | None, dict[str, Any]]] = {
        "changed_answers": (options.changed_answers, {"tolerance": options.tolerance}),
        "harm": (options.harm, {}),
        "accuracy_drop": (options.drop, {}),
        "mean_difference": (options.mean_difference, {"value_range": low_high}),
        "mean_layers": (options.mean_layers, {}),
    }
    if options.mean_difference is not None and low_high is None:
        raise ValueError(
            "mean_difference: needs the lowest and the highest number that the model can give; pass them, e.g. "
            "--value_range 0 5"
        )
    found = []
    for kind, (limit, more) in flags.items():
        if limit is not None:
            try:
                found.append(Guarantee(kind, limit, **more))
            except ValueError as error:
                raise ValueError(f"{'drop' if kind == 'accuracy_drop' else kind}: {error}") from error
    if not found:
        raise ValueError(
            "guarantee: got none; pass what is to be promised, e.g. --changed_answers 0.02, which needs no labels, or "
            "--drop 0.01"
        )
    for flag, kind in {"tolerance": "changed_answers", "value_range": "mean_difference"}.items():
        if getattr(options, flag) is not None and flags[kind][0] is None:
            raise ValueError(f"{flag}: got {getattr(options, flag)} without --{kind}; leave it out")
    return found


def check_runtime(options: RowsOptions, sealed: dict[str, SealedCertificate], folder: Path) -> None:
    """Check that there is a certificate for the runtime and precision that the flags name, if they name one.

    Args:
        options: The flags.
        sealed: The certificates by runtime and precision.
        folder: The checkpoint's folder.

    Raises:
        RefusedError: There are certificates, but none for it.
        ValueError: A precision was given without --runtime onnx.
    """
    exported = options.runtime == "onnx"
    if options.precision is not None and not exported:
        raise ValueError(f"precision: got '{options.precision}' without --runtime onnx; leave it out")
    precision = options.precision if exported else None if options.dtype == "auto" else options.dtype
    if not sealed or (options.runtime == "torch" and precision is None):
        return
    if not any(name.split()[0] == options.runtime and precision in (None, name.split()[1]) for name in sealed):
        wanted = f"{options.runtime} {precision or ''}".strip()
        raise RefusedError(f"'{folder}' has no certificate for {wanted}, only for {', '.join(sealed)}")


def check_rows(options: RowsOptions) -> None:
    """Check that the flags name rows, and only once.

    Raises:
        ValueError: They do not.
    """
    labelled = {
        name: getattr(options, name) for name in ("task_name", "dataset_name", "train_file", "validation_file")
    }
    given = [f"--{name}" for name, value in labelled.items() if value]
    if options.file and given:
        raise ValueError(f"file: got '{options.file}' and {given[0]}; pass texts without labels or labelled rows")
    if not options.file and not given:
        raise ValueError(
            "file: got no rows; pass --file with texts without labels, or labelled rows with --validation_file, "
            "--task_name or --dataset_name"
        )
    needless = [name for name in ("split", "label_column", "label_columns") if getattr(options, name)]
    if options.file and needless:
        raise ValueError(f"{needless[0]}: got it with --file, whose texts have no labels; leave it out")
    if options.metrics:
        raise ValueError(f"metrics: got {' '.join(options.metrics)}, but none is computed here; leave it out")
    if options.max_seq_length is not None:
        raise ValueError(
            f"max_seq_length: got {options.max_seq_length}, but a certificate is for texts of the length to which the "
            "saved tokenizer truncates; leave it out"
        )
    if options.group_column and options.max_eval_samples is not None:
        raise ValueError(
            f"max_eval_samples: got {options.max_eval_samples} with --group_column, whose groups it would take apart; "
            "pass a file with fewer groups"
        )


def one_row(config: Any) -> ExitTrace:
    """A trace of one made-up row of a model, with which it is found early what cannot be certified.

    Args:
        config: The model's config.
    """
    exits, labels = len(config.exit_layers), config.num_labels
    given = torch.zeros((1, labels) if config.multi_label else (1,))
    return ExitTrace(
        torch.zeros(1, exits, labels),
        torch.full((1, exits), config.threshold_bounds[0]),
        given if labels == 1 else given.long(),
        tuple(config.exit_layers),
        "gt",
        criterion=config.exit_criterion,
        bounds=config.threshold_bounds,
        multi_label=config.multi_label,
    )


def check_no_rows(options: VerifyOptions) -> None:
    """Check that without rows no flag says how to read them.

    Raises:
        ValueError: One does.
    """
    of_rows = [
        *fields(DataArguments),
        *(each for each in fields(RowsOptions) if each.name in ("split", "group_column")),
    ]
    for each in of_rows:
        value = getattr(options, each.name)
        if value != each.default:
            raise ValueError(
                f"{each.name}: got {value!r} without rows; pass --file or --validation_file, or leave it out"
            )


def rows_to_certify(
    command: str, model: Any, tokenizer: Any, options: RowsOptions
) -> tuple[Sequence[Row], list[Any] | None, dict[str, Any]]:
    """Read and tokenize the rows that the flags name.

    Args:
        command: Name of the command, for messages.
        model: The model, or an `ExportedModel`.
        tokenizer: Its tokenizer.
        options: The flags.

    Returns:
        The tokenized rows, the group of each row if there are groups, and name and split of the data.

    Raises:
        ValueError: There is no such split or column, or a text is empty.
    """
    if options.file:
        source = PredictOptions(
            file=options.file,
            text_columns=options.text_columns,
            delimiter=options.delimiter,
            id_column=options.group_column,
        )
        try:
            items = list(items_of_input(source, [], model.config.pairs))
        except ValueError as error:
            raise ValueError(str(error).replace("id_column:", "group_column:")) from error
        if options.max_eval_samples is not None:
            chosen = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))[: options.max_eval_samples]
            items = [items[place] for place in chosen.sort().values.tolist()]
        kept = [item for item in items if item[1] is not None]
        if len(kept) < len(items):
            message = f"{len(items) - len(kept)} of {len(items)} rows of '{options.file}' without a text are left out"
            print(f"adaexit {command}: {message}", file=sys.stderr)
        groups = [record["id"] for record, _ in kept] if options.group_column else None
        check_groups(groups, options.group_column)
        rows = list(stream_rows([text for _, text in kept], tokenizer, model.config))
        return rows, groups, {"name": Path(options.file).name}
    datasets_by_split, _, _ = labelled_splits(model, tokenizer, options, keep=options.group_column)
    split = options.split or next(iter(datasets_by_split))
    if split not in datasets_by_split:
        raise ValueError(
            f"split: got '{split}'; the labelled rows have {', '.join(datasets_by_split)}: pass one of them"
        )
    rows = list(datasets_by_split[split])
    groups = [row[options.group_column] for row in rows] if options.group_column else None
    check_groups(groups, options.group_column)
    return rows, groups, {"name": options.for_card().name, "split": split}


def check_groups(groups: list[Any] | None, column: str | None) -> None:
    """Check that every row has a group: rows without one would count as one group.

    Raises:
        ValueError: A row has none.

    >>> check_groups(["A", "B"], "author")
    """
    for row, group in enumerate(groups or []):
        if group is None or group != group or group == "":  # NaN is not equal to itself
            raise ValueError(f"group_column: row {row} has no {column}; fill it in, or leave the row out")


def without_seen_rows(
    rows: Sequence[Row], groups: list[Any] | None, folder: Path, repeats: str | None
) -> tuple[Sequence[Row], list[Any] | None, list[torch.Tensor]]:
    """Find the rows that had a part in training or in a choice, and leave them out if that was asked for.

    Args:
        rows: The tokenized rows.
        groups: The group of each row, or None.
        folder: The model's folder, whose record says what was seen.
        repeats: `"drop"`, `"keep"` or None.

    Returns:
        The rows to certify and their groups, and the hashes of all rows that were seen.

    Raises:
        ValueError: Rows were seen, and nothing says what to do with them; or all of them were.
    """
    hashes = hashes_of(rows)
    tell_of_copies(hashes, groups)
    record = read_seen_rows(folder)
    if record is None or UNKNOWN in record:
        print(
            f"adaexit certify: '{folder}' does not say which rows it was trained on, or only some of them, so that "
            "nothing tells whether these are among them; if they are, the certificate promises nothing",
            file=sys.stderr,
        )
    if record is None:
        return rows, groups, []
    in_part = {part: torch.isin(hashes, seen) for part, seen in record.items()}
    repeated = torch.stack(list(in_part.values())).any(dim=0)
    count, total = int(repeated.sum()), len(repeated)
    if not count:
        return rows, groups, list(record.values())
    listed = ", ".join(f"{int(found.sum())} in {part}" for part, found in in_part.items() if found.any())
    if count == total:
        raise ValueError(f"rows: all {total} rows had a part in this model ({listed}); pass other rows")
    if repeats is None:
        raise ValueError(
            f"rows: {count} of the {total} rows had a part in this model ({listed}), so that they say too little "
            "about new texts; pass other rows, or --repeats drop to leave these out, or --repeats keep if the same "
            "texts recur by themselves"
        )
    if repeats == "drop":
        print(
            f"adaexit certify: {count} of {total} rows had a part in this model ({listed}): left out", file=sys.stderr
        )
        kept = (~repeated).nonzero().flatten().tolist()
        groups = None if groups is None else [groups[row] for row in kept]
        rows = [rows[row] for row in kept]
    else:
        print(f"adaexit certify: {count} of {total} rows had a part in this model ({listed}): kept", file=sys.stderr)
    return rows, groups, list(record.values())


def tell_of_copies(hashes: torch.Tensor, groups: list[Any] | None) -> None:
    """Say on stderr how many rows are copies of others, each of which counts as evidence of its own.

    Args:
        hashes: Hashes of the rows.
        groups: The group of each row; copies in a group count once, and nothing is said.
    """
    rows = len(hashes)
    copies = rows - len(hashes.unique())
    if copies and groups is None:
        print(
            f"adaexit certify: {copies} of {rows} rows are copies of others, and count as rows of their own; that is "
            "right where texts recur like this in the traffic, and not where a file holds them twice",
            file=sys.stderr,
        )


def save_threshold(model: Any, folder: Path, threshold: Any) -> None:
    """Save a certified threshold in config.json, or for an exported model in early_exit.json.

    Args:
        model: The model, or an `ExportedModel`.
        folder: The checkpoint's folder.
        threshold: The threshold.
    """
    if isinstance(model, ExportedModel):
        save_exported_threshold(model, threshold)
        return
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    old = config.get("exit_threshold")
    if old == threshold:
        return
    replace_text(path, json.dumps(config | {"exit_threshold": threshold}, indent=2, sort_keys=True) + "\n")
    print(f"adaexit certify: exit_threshold in config.json is {threshold}, was {old}", file=sys.stderr)
    tell_of_old_threshold("certify", folder, also=["metrics.json"])


def described(sealed: SealedCertificate) -> dict[str, Any]:
    """A certificate as `adaexit verify --json` prints it."""
    more = {"holds": not sealed.void, "void": list(sealed.void), "max_tokens": sealed.max_tokens}
    return sealed.certificate.as_dict() | {"data": sealed.data, "made_with": sealed.made_with} | more


def print_certificate(certificate: Certificate, data: Any, indent: str = "") -> None:
    """Print what a certificate promises, and what from.

    Args:
        certificate: The certificate.
        data: Name and split of the rows.
        indent: What stands before every line.
    """
    confidence = f"{certificate.confidence:.1%}".replace(".0%", "%")
    unit = "groups" if certificate.grouped else "rows"
    of = source_in_words(data, certificate.repeats)
    threshold = certificate.threshold
    shown = "per exit" if isinstance(threshold, tuple) else f"{threshold:.6g}"
    print(f"{indent}threshold {shown}, with {confidence} confidence, from {certificate.n} {unit}{of}:")
    for guarantee, risk, bound in zip(certificate.guarantees, certificate.risks, certificate.bounds, strict=True):
        print(f"{indent}  {guarantee}: {risk:.4g} on these {unit}, at most {bound:.4g}")
    saving = f"{certificate.saving:.1%} of the layers saved, {certificate.mean_layers:.2f} run on average"
    print(f"{indent}  {saving} (on these {unit}, not promised)")
