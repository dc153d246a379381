"""`certificate.json` in a model's folder: certificates, each bound to the files that answered when it was made."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import torch

from ..onnx_runtime.folder import MANIFEST, TOKENIZER, find_folder, hash_of_file
from ..utils.files import replace_text
from ..version import __version__
from .certificate import Certificate
from .guarantee import KINDS

CERTIFICATE_FILE = "certificate.json"
# Raised by changes that older versions cannot read.
FORMAT_VERSION = 1
_FIELDS = {"certificate", "max_tokens", "data", "made_with", "code", "files", "digest"}
# Files beside a model that no answer depends on: the certificate itself, descriptions, measurements and data, and what
# a training run leaves behind. All others are sealed.
NOT_SEALED = (
    *(CERTIFICATE_FILE, "metrics.json", "curve.json", "*_results.json", "*.md", "LICENSE*", "report.html", ".*", "_*"),
    *("*.png", "*.svg", "*.csv", "*.tsv", "*.jsonl", "seen_rows.npz", "stages.json", "training_args.bin"),
    *("trainer_state.json", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth"),
)


class CertificateFileError(ValueError):
    """`certificate.json` is not what `save_certificate` writes."""


@dataclass(frozen=True)
class SealedCertificate:
    """A certificate as it is stored, and whether it still holds for the files beside it.

    Attributes:
        certificate: The certificate.
        runtime: What computed the answers: `"torch"` or `"onnx"`.
        precision: Of the weights: `"float32"`, ... for PyTorch, `"fp32"` or `"int8"` for ONNX.
        max_tokens: Length to which texts were truncated; None if unknown.
        data: What it was computed from, in words: name and split of the data.
        made_with: Versions of the packages that computed it.
        void: Why it no longer holds, one sentence each; empty if it holds.
    """

    certificate: Certificate
    runtime: str
    precision: str
    max_tokens: int | None
    data: Mapping[str, Any]
    made_with: Mapping[str, str]
    void: tuple[str, ...]

    @property
    def name(self) -> str:
        """Runtime and precision, e.g. `"torch float32"`: what a folder has one certificate of."""
        return f"{self.runtime} {self.precision}"

    def __str__(self) -> str:
        certificate = self.certificate
        unit, mean = ("groups", ", as a mean over groups") if certificate.grouped else ("rows", "")
        promises = " and ".join(
            f"{KINDS[guarantee.kind]}{mean}: at most {guarantee.limit:g}" for guarantee in certificate.guarantees
        )
        return (
            f"{promises}; with {100 * certificate.confidence:g} % confidence, on texts like the {certificate.n} {unit}"
            f"{source_in_words(self.data, certificate.repeats)} (computed with {self.name})"
        )


def source_in_words(data: Mapping[str, Any], repeats: int | None) -> str:
    """Say where certified rows come from, and how many were seen before.

    Args:
        data: What was passed to `save_certificate`.
        repeats: From the certificate.

    Examples:
        >>> source_in_words({"name": "traffic.jsonl", "left_out": 5}, 0)
        ' of traffic.jsonl, without the 5 texts that were seen before'
        >>> source_in_words({"name": "traffic.jsonl"}, 5)
        ' of traffic.jsonl, 5 of whose texts were seen before'
    """
    name = " ".join(str(data[key]) for key in ("name", "split") if data.get(key))
    words = f" of {name}" if name else ""
    if data.get("left_out"):
        words += f", without the {data['left_out']} texts that were seen before"
    return words + (f", {repeats} of whose texts were seen before" if repeats else "")


def save_certificate(
    folder: str | Path,
    certificate: Certificate,
    *,
    runtime: str = "torch",
    precision: str = "float32",
    max_tokens: int | None = None,
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Store a certificate beside the model, bound to all files that its answers depend on.

    It becomes void as soon as one of these files changes: weights, config (criterion, temperatures, threshold),
    tokenizer, code, or for ONNX the graphs; and under a version of this package with other code. A certificate of the
    same runtime and precision is replaced.

    Args:
        folder: Folder of the model, which was saved with the certificate's threshold.
        certificate: From `certify`.
        runtime: What computed the trace: `"torch"` (default), or `"onnx"` for the exported model.
        precision: Dtype of the model that was traced, e.g. `"float32"` (default); for ONNX `"fp32"` or `"int8"`.
        max_tokens: Length to which the texts were truncated. Default: unknown.
        data: What the trace was collected from, e.g. `{"name": "traffic.jsonl"}`; `"split"` and `"left_out"`, the
            number of rows that were seen before, are shown, too. Default: unknown.

    Returns:
        Path of `certificate.json`.

    Raises:
        ValueError: If the folder has no such model, or another threshold, criterion or temperatures than the
            certificate.
        CertificateFileError: If there is a `certificate.json` that cannot be read.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import BertConfig
        >>> from adaexit_hf import BerxitConfig, BerxitForSequenceClassification, ExitTrace, Guarantee, certify
        >>> scores = torch.ones(200, 2)  # every text is sure at once, and no answer changes
        >>> trace = ExitTrace(torch.zeros(200, 2, 2), scores, None, (1, 2), "gt", "confidence", bounds=(0.0, 1.0))
        >>> certificate = certify(trace, Guarantee("changed_answers", 0.02))
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> config = BerxitConfig(encoder_config=encoder, num_labels=2, exit_threshold=certificate.threshold)
        >>> with TemporaryDirectory() as folder:
        ...     BerxitForSequenceClassification(config).save_pretrained(folder)
        ...     path = save_certificate(folder, certificate)
        ...     print(path.name, list(verify_certificates(folder)))
        certificate.json ['torch float32']
    """
    folder = Path(folder)
    config = _settings(folder, runtime, precision)
    if config["exit_threshold"] != certificate.exit_threshold:
        raise ValueError(
            f"folder: the model in '{folder}' has the threshold {config['exit_threshold']}, certified is "
            f"{certificate.exit_threshold}; set model.config.exit_threshold and save the model first"
        )
    for name, certified in certificate.settings.items():
        if name in config and config[name] != certified:
            raise ValueError(
                f"folder: the model in '{folder}' has {name} {config[name]!r}, certified is {certified!r}; collect a "
                "trace of this model and certify it"
            )
    records = read_records(folder)
    record = {
        "certificate": certificate.as_dict(),
        "max_tokens": max_tokens,
        "data": dict(data or {}),
        "made_with": _versions(runtime),
        "code": code_of(runtime),
        "files": sealed_files(folder, runtime, precision),
    }
    records[f"{runtime} {precision}"] = record | {"digest": _digest(record)}
    path = folder / CERTIFICATE_FILE
    text = json.dumps({"format_version": FORMAT_VERSION, "certificates": records}, indent=2, allow_nan=False)
    replace_text(path, text + "\n")
    return path


def verify_certificates(folder: str | Path) -> dict[str, SealedCertificate]:
    """Read a model's certificates, and find out which of them still hold for the files in its folder.

    Args:
        folder: Local folder of a model.

    Returns:
        The certificates by runtime and precision, e.g. `"torch float32"`; empty without `certificate.json`.

    Raises:
        CertificateFileError: If the file cannot be read.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import BertConfig
        >>> from adaexit_hf import BerxitConfig, BerxitForSequenceClassification, ExitTrace, Guarantee, certify
        >>> scores = torch.ones(200, 2)  # every text is sure at once, and no answer changes
        >>> trace = ExitTrace(torch.zeros(200, 2, 2), scores, None, (1, 2), "gt", "confidence", bounds=(0.0, 1.0))
        >>> certificate = certify(trace, Guarantee("changed_answers", 0.02))
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> config = BerxitConfig(encoder_config=encoder, num_labels=2, exit_threshold=certificate.threshold)
        >>> with TemporaryDirectory() as folder:
        ...     BerxitForSequenceClassification(config).save_pretrained(folder)
        ...     path = save_certificate(folder, certificate)
        ...     holds = verify_certificates(folder)["torch float32"].void
        ...     _ = path.with_name("tokenizer.json").write_text("{}")
        ...     print(holds, verify_certificates(folder)["torch float32"].void)
        () ('tokenizer.json is new',)
    """
    folder, found = Path(folder), {}
    for name, record in read_records(folder).items():
        runtime, _, precision = name.partition(" ")
        found[name] = SealedCertificate(
            Certificate.from_dict(record["certificate"]),
            runtime,
            precision,
            record["max_tokens"],
            record["data"],
            record["made_with"],
            tuple(_void_reasons(folder, runtime, precision, record)),
        )
    return found


def _void_reasons(folder: Path, runtime: str, precision: str, record: Mapping[str, Any]) -> list[str]:
    reasons = []
    if _digest({key: value for key, value in record.items() if key != "digest"}) != record["digest"]:
        reasons.append(f"{CERTIFICATE_FILE} was edited")
    try:
        now = sealed_files(folder, runtime, precision)
    except ValueError as error:  # no such model
        return [*reasons, str(error)]
    then = record["files"]
    reasons += [f"{name} has changed" for name in then.keys() & now.keys() if then[name] != now[name]]
    reasons += [f"{name} is missing" for name in then.keys() - now.keys()]
    reasons += [f"{name} is new" for name in now.keys() - then.keys()]
    if record["code"] != code_of(runtime):
        certified = record["made_with"].get("adaexit_hf")
        which = f"another state of {certified}" if certified == __version__ else str(certified)
        reasons.append(f"the code for {runtime} is that of adaexit_hf {__version__}, certified was that of {which}")
    return sorted(reasons)


def sealed_files(folder: str | Path, runtime: str = "torch", precision: str = "float32") -> dict[str, str]:
    """Return the hashes of the files in a model's folder that its answers depend on.

    Args:
        folder: The folder.
        runtime: `"torch"` or `"onnx"`.
        precision: For ONNX, which graphs.

    Returns:
        SHA-256 by file name. Of ONNX's `early_exit.json` only what concerns this precision is hashed.

    Raises:
        ValueError: If there is no such model in the folder.
    """
    folder = Path(folder)
    if runtime == "torch":
        if not (folder / "config.json").is_file():
            raise ValueError(f"folder: '{folder}' has no config.json; pass the folder of a saved model")
        return {path.name: hash_of_file(path) for path in _sealed_in(folder)}
    manifest, exported = _manifest(folder, precision)
    own = manifest | {"precisions": {precision: manifest["precisions"][precision]}}
    hashes = {MANIFEST: _digest(own)}
    for path in [exported / TOKENIZER, *_sealed_in(exported / precision)]:
        hashes[path.relative_to(exported).as_posix()] = hash_of_file(path)
    return hashes


def _sealed_in(folder: Path) -> list[Path]:
    """Return the files of a folder, not of those in it, that answers may depend on."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [path for path in files if not any(fnmatchcase(path.name, pattern) for pattern in NOT_SEALED)]


def _manifest(folder: Path, precision: str) -> tuple[dict[str, Any], Path]:
    """Return what `early_exit.json` says, and its folder.

    Raises:
        ValueError: There is no exported model with this precision.
    """
    exported = find_folder(folder)
    manifest = {} if exported is None else json.loads((exported / MANIFEST).read_text(encoding="utf-8"))
    if exported is None or precision not in manifest.get("precisions", {}):
        raise ValueError(f"folder: '{folder}' has no model that was exported in {precision}; call adaexit export")
    return manifest, exported


def _settings(folder: Path, runtime: str, precision: str) -> dict[str, Any]:
    """Return threshold, criterion and temperatures of a saved model.

    Raises:
        ValueError: There is no such model.
    """
    if runtime == "onnx":
        manifest, _ = _manifest(folder, precision)
        return {
            "exit_threshold": manifest["precisions"][precision].get("exit_threshold"),
            "exit_criterion": manifest["criterion"],
        }
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder: '{folder}' has no config.json; save the model there first")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: config.get(name) for name in ("exit_threshold", "exit_criterion", "exit_temperatures")}


@cache
def code_of(runtime: str) -> str:
    """Return a hash of the package's code that computes answers, `models/*.py` or `onnx_runtime/*.py`.

    Args:
        runtime: `"torch"` or `"onnx"`.
    """
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.joinpath("models" if runtime == "torch" else "onnx_runtime").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _versions(runtime: str) -> dict[str, str]:
    if runtime == "onnx":
        return {"adaexit_hf": __version__, "onnxruntime": installed("onnxruntime")}
    return {"adaexit_hf": __version__, "torch": torch.__version__, "transformers": installed("transformers")}


def _digest(value: Any) -> str:
    """Return the SHA-256 of a value as JSON, whatever the order of its keys.

    >>> _digest({"a": 1, "b": 2}) == _digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_records(folder: str | Path) -> dict[str, Any]:
    """Return what `certificate.json` says, by runtime and precision; empty without a file.

    Args:
        folder: Local folder of a model.

    Raises:
        CertificateFileError: If the file cannot be read.
    """
    path = Path(folder, CERTIFICATE_FILE)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, records = content["format_version"], content["certificates"]
        if version == FORMAT_VERSION:
            for record in records.values():
                Certificate.from_dict(record["certificate"])
                if set(record) != _FIELDS:
                    raise ValueError(f"has {', '.join(record)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CertificateFileError(
            f"'{path}' is not what adaexit certify writes ({type(error).__name__}: {error}); delete it and certify "
            "again"
        ) from error
    if version != FORMAT_VERSION:
        raise CertificateFileError(
            f"'{path}' has format version {version}, and this version of the package reads {FORMAT_VERSION}; update "
            "the package, or delete the file and certify again"
        )
    return dict(records)
