"""Run a checkpoint with PyTorch, or its exported form with ONNX Runtime, behind the same commands."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from ..evaluation.certificate_file import CertificateFileError, SealedCertificate, verify_certificates
from ..evaluation.collect import collect_trace, onnx_trace
from ..evaluation.summary import label_names
from ..evaluation.trace import ExitTrace
from ..inference.prediction import Prediction, predict_stream
from ..models.configuration_early_exit import Threshold
from ..models.padded_batches import stream_rows
from ..onnx_runtime.folder import MANIFEST, find_folder
from ..utils.files import replace_text
from ..utils.imports import needed
from .options import limit_length, load, read_config, threshold_in

RUNTIMES = ("torch", "onnx")


@dataclass(kw_only=True)
class RuntimeOptions:
    """Flags that choose what runs the model."""

    runtime: str = field(
        default="torch", metadata={"help": "torch, or onnx for what adaexit export has written into the checkpoint."}
    )
    precision: str | None = field(
        default=None, metadata={"help": "With --runtime onnx: fp32 or int8. Default: int8 if it was exported."}
    )


@dataclass
class ExportedModel:
    """An exported model, and the config of its checkpoint with the threshold of this precision.

    Attributes:
        classifier: An `OnnxEarlyExitClassifier`.
        config: The config.
    """

    classifier: Any
    config: Any


def ran_by(model: Any) -> dict[str, str]:
    """What runs a model, and in which precision, for results.

    Args:
        model: The model, or an `ExportedModel`.
    """
    if isinstance(model, ExportedModel):
        return {"runtime": "onnx", "precision": model.classifier.precision}
    return {"runtime": "torch", "dtype": str(model.dtype).removeprefix("torch.")}


def load_runtime(
    checkpoint: str,
    options: Any,
    exit_threshold: str | None = None,
    exit_criterion: str | None = None,
    threshold_needed: bool = True,
) -> tuple[Any, Any]:
    """Load a checkpoint for inference, or its exported form.

    Args:
        checkpoint: Local folder or Hub name.
        options: `LoadOptions` with `RuntimeOptions`.
        exit_threshold: As for `load`.
        exit_criterion: As for `load`; only for PyTorch.
        threshold_needed: Whether an exported model without a threshold of its own is refused. Default: True.

    Returns:
        The model, or an `ExportedModel`; and its tokenizer.

    Raises:
        ValueError: As `load`; or the flags do not fit the runtime, or the exported model has no threshold, or is not
            that of the checkpoint.
    """
    if options.runtime not in RUNTIMES:
        raise ValueError(f"runtime: got '{options.runtime}'; choose torch or onnx")
    if options.runtime == "torch":
        if options.precision is not None:
            raise ValueError(
                f"precision: got '{options.precision}' without --runtime onnx; pass --dtype, or leave it out"
            )
        model, tokenizer = load(checkpoint, options, exit_threshold, exit_criterion)
        if threshold_needed and Path(checkpoint).is_dir():
            tell_of_certificate(Path(checkpoint), model, tokenizer)
        return model, tokenizer
    for flag, fitting in {"dtype": ("auto", "float32"), "device": ("auto", "cpu")}.items():
        if getattr(options, flag) not in fitting:
            advice = "pass --precision" if flag == "dtype" else "ONNX Runtime runs on the CPU here"
            raise ValueError(f"{flag}: got '{getattr(options, flag)}' with --runtime onnx; leave it out, {advice}")
    if getattr(options, "batch_size", 32) != 32:
        raise ValueError(
            f"batch_size: got {options.batch_size} with --runtime onnx, which runs text by text; leave it out"
        )
    needed("onnxruntime", "onnx")
    from ..onnx_runtime import OnnxEarlyExitClassifier

    config = read_config(checkpoint, options)
    if exit_threshold is not None:
        config.thresholds(threshold_in(exit_threshold))
    hub_options = {} if Path(checkpoint).is_dir() else {"revision": options.revision}
    try:
        classifier = OnnxEarlyExitClassifier.from_pretrained(checkpoint, options.precision, **hub_options)
    except ValueError as error:
        argument, _, message = str(error).partition(": ")
        if argument != "name_or_path":
            raise
        raise ValueError(f"checkpoint: {message}") from error  # what it is called here
    facts = classifier.facts
    same = {"method": config.model_type, "exit_layers": list(config.exit_layers), "labels": label_names(config)}
    for name, own in (same | {"criterion": config.exit_criterion, "multi_label": config.multi_label}).items():
        if facts[name] != own:
            raise ValueError(
                f"checkpoint: the exported model in '{checkpoint}' is of another one: its {name} is {facts[name]}, "
                f"that of the checkpoint {own}; call adaexit export {checkpoint}"
            )
    longest = facts["max_tokens"]
    if options.max_seq_length is not None and longest is not None and options.max_seq_length > longest:
        raise ValueError(
            f"max_seq_length: got {options.max_seq_length}, but the model was exported for at most {longest} tokens; "
            "pass it to adaexit export, too"
        )
    if exit_threshold is None and threshold_needed and not classifier.calibrated:
        raise ValueError(
            f"exit_threshold: none was chosen for {classifier.precision}; call adaexit calibrate {checkpoint} "
            "--runtime onnx --validation_file FILE, or pass --exit_threshold"
        )
    config.exit_threshold = classifier.exit_threshold if exit_threshold is None else threshold_in(exit_threshold)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=options.revision)
    limit_length(tokenizer, config.encoder_config, options.max_seq_length)
    model = ExportedModel(classifier, config)
    if threshold_needed and Path(checkpoint).is_dir():
        tell_of_certificate(Path(checkpoint), model, tokenizer)
    return model, tokenizer


def certificate_of(folder: Path, model: Any, tokenizer: Any) -> tuple[SealedCertificate | None, str]:
    """Return the certificate that holds for what a model is about to do, or None and why there is none.

    Args:
        folder: The checkpoint's folder.
        model: The model, or an `ExportedModel`, with the threshold that will be used.
        tokenizer: Its tokenizer, with the length to which it will truncate.

    Returns:
        The certificate, or None; and in one sentence why one that is there does not hold, else "".
    """
    try:
        certificates = verify_certificates(folder)
    except CertificateFileError as error:
        return None, str(error)
    name = " ".join(ran_by(model).values())
    if name not in certificates:
        return None, f"no certificate for {name}, only for {', '.join(certificates)}" if certificates else ""
    sealed = certificates[name]
    reasons = list(sealed.void)
    used, certified = model.config.exit_threshold, sealed.certificate.exit_threshold
    if used != certified:
        reasons.append(f"the threshold is {used}, certified was {certified}")
    if sealed.max_tokens not in (None, tokenizer.model_max_length):
        reasons.append(f"texts are truncated to {tokenizer.model_max_length} tokens, not to {sealed.max_tokens}")
    if reasons:
        return None, f"the certificate for {name} does not hold: {'; '.join(reasons)}"
    return sealed, ""


def tell_of_certificate(folder: Path, model: Any, tokenizer: Any) -> None:
    """Say on stderr if a certificate does not hold, as `certificate_of`. A valid one is not mentioned."""
    _, reason = certificate_of(folder, model, tokenizer)
    if reason:
        print(f"adaexit: {reason}", file=sys.stderr)


def trace_of(model: Any, rows: Any, batch_size: int, flops: bool = False) -> ExitTrace:
    """Collect the trace of a model or an `ExportedModel`.

    Args:
        model: The model.
        rows: Tokenized rows.
        batch_size: Rows per batch in PyTorch; ONNX Runtime runs text by text.
        flops: Whether to count floating-point operations.

    Raises:
        ValueError: FLOPs of an exported model.
    """
    if not isinstance(model, ExportedModel):
        return collect_trace(model, rows, batch_size=batch_size, count_flops=flops)
    if flops:
        raise ValueError("flops: cannot be counted with --runtime onnx; leave out one of them")
    return onnx_trace(model.classifier, rows, None, model.config)


def predictions_of(model: Any, texts: Iterable[Any], tokenizer: Any) -> Iterator[Prediction]:
    """Classify texts with a model or an `ExportedModel` at its threshold, in order.

    Args:
        model: The model.
        texts: The texts; there may be any number of them.
        tokenizer: Its tokenizer.
    """
    if not isinstance(model, ExportedModel):
        yield from predict_stream(model, texts, tokenizer)
        return
    rows = stream_rows(texts, tokenizer, model.config)
    threshold = model.config.exit_threshold
    found = model.classifier.predict_stream(
        rows, exit_threshold=threshold, early_exit=False if threshold is None else None
    )
    for place, (logits, exit_layer, exit_score) in enumerate(found):
        yield Prediction(place, torch.from_numpy(logits), exit_layer, exit_score)


def save_exported_threshold(
    model: ExportedModel, threshold: Threshold, measured: Mapping[str, Any] | None = None
) -> None:
    """Write a threshold into an exported model's early_exit.json; what was measured at another one is dropped.

    Args:
        model: The exported model.
        threshold: The threshold.
        measured: What it gives: `max_drop` and `results`. Default: what is known if the threshold stays, else nothing.
    """
    path = model.classifier.folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    entry = manifest["precisions"][model.classifier.precision]
    if entry.get("exit_threshold") != threshold:
        for name in ("max_drop", "results"):
            entry.pop(name, None)
    entry |= {"exit_threshold": threshold, "calibrated": True} | dict(measured or {})
    replace_text(path, json.dumps(manifest, indent=2) + "\n")


def tell_of_void_certificates(command: str, folder: Path) -> None:
    """Say on stderr which certificates of a checkpoint are void, after a command has changed its files.

    Args:
        command: Name of the command.
        folder: The checkpoint's folder.
    """
    try:
        void = [name for name, sealed in verify_certificates(folder).items() if sealed.void]
    except ValueError as error:  # the file cannot be read
        print(f"adaexit {command}: {error}", file=sys.stderr)
        return
    for name in void:
        message = f"the certificate for {name} does not hold for the files as they are now; certify it again"
        print(f"adaexit {command}: {message} with adaexit certify {folder} ...", file=sys.stderr)


def tell_of_old_threshold(command: str, folder: Path, also: Sequence[str] = ()) -> None:
    """Say on stderr which files of a checkpoint still have the threshold that it had before, and how to renew them.

    Args:
        command: Name of the command that has changed the threshold in config.json.
        folder: The checkpoint's folder.
        also: `"metrics.json"`, if the command has not written it.
    """
    cures = {"README.md": f"card {folder}"} | dict.fromkeys(("report.html", *also), f"report {folder} ...")
    stale = {name: cure for name, cure in cures.items() if (folder / name).exists()}
    if find_folder(folder) is not None:
        stale["the exported model"] = f"export {folder} ..."
    for name, cure in stale.items():
        print(f"adaexit {command}: {name} still has the old threshold; run adaexit {cure}", file=sys.stderr)
