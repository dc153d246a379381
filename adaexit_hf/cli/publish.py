"""The commands `adaexit card`, `adaexit convert` and `adaexit push`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi
from transformers import AutoConfig, AutoModelForSequenceClassification

from ..evaluation.certificate_file import CERTIFICATE_FILE, SealedCertificate, verify_certificates
from ..evaluation.curves import CurvePoint
from ..evaluation.summary import SCORE_SETTINGS, changed_setting, earlier_measurements, exit_settings
from ..hub.card_facts import CardDataset, MeasuredSpeed
from ..hub.card_text import saved_threshold
from ..hub.conversion import convert_checkpoint
from ..hub.model_card import MARKER, write_model_card
from ..hub.upload import NEVER_UPLOADED
from ..models import MODEL_TYPES
from ..utils.files import LEDGER, check_writable
from .options import Positionals, check_not_exported, check_revision

FOLDER: Positionals = {"folder": {"help": "Local folder of an early-exit model."}}


@dataclass(kw_only=True)
class CardOptions:
    """Flags of `adaexit card`: facts for the card that were not measured."""

    positionals: ClassVar[Positionals] = FOLDER
    name: str | None = field(
        default=None,
        metadata={"help": "Name of the model on the Hub, e.g. you/berxit-mrpc. Default: the folder's name."},
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Hub name of the encoder that the model was trained from."}
    )
    language: str | None = field(default=None, metadata={"help": "Language of the texts, as a Hub code, e.g. en."})
    license: str | None = field(default=None, metadata={"help": "License, as a Hub identifier, e.g. apache-2.0."})
    speed: str | None = field(default=None, metadata={"help": "File with the output of adaexit benchmark --json."})
    overwrite: bool = field(
        default=False, metadata={"help": "Replace README.md even if this package did not write it."}
    )


def card(options: CardOptions, positionals: Any) -> None:
    """Write the model card, README.md with its pictures, into a model's folder.

    The numbers are read from metrics.json and curve.json in the same folder. `adaexit train` writes these files and
    the card; `adaexit report` adds its measurements, and keeps what `adaexit train` wrote about the training.
    """
    folder = Path(positionals.folder)
    if not folder.is_dir():
        raise ValueError(f"folder: there is no '{folder}'; pass an existing folder")
    check_not_exported("folder", positionals.folder)
    for name in ("config.json", "metrics.json", "curve.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"folder: '{folder}' has no {name}; run adaexit report {folder} ... first, which measures the model"
            )
    check_writable("folder", folder)
    check_has_exits(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    metrics = read_metrics(folder, exit_settings(model.config))
    dataset, training = metrics.get("dataset"), metrics.get("training") or {}
    print(
        write_model_card(
            model,
            folder,
            name=options.name,
            curve=read_curve(folder),
            metrics=metrics["results"],
            dataset=CardDataset(**dataset) if dataset else None,
            speed=measured_speed(Path(options.speed)) if options.speed else None,
            training=training.get("arguments"),
            base_model=options.base_model or training.get("base_model"),
            language=options.language,
            license=options.license,
            certificates=valid_certificates(folder),
            overwrite=options.overwrite,
        )
    )


def valid_certificates(folder: Path) -> list[SealedCertificate]:
    """The certificates of a model, all of which still hold.

    Raises:
        ValueError: One is void.
    """
    certificates = verify_certificates(folder)
    for name, sealed in certificates.items():
        if sealed.void:
            raise ValueError(
                f"folder: the certificate for {name} in '{folder / CERTIFICATE_FILE}' is void: "
                f"{'; '.join(sealed.void)}. Run adaexit certify {folder} ... again, or delete the file"
            )
    return list(certificates.values())


def check_has_exits(folder: Path, advice: str = "") -> None:
    """Check that a folder's model is one of ours.

    Raises:
        ValueError: It is not.
    """
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(f"folder: '{folder}' contains a '{kind}' model without exits{advice}")


def measured_speed(path: Path) -> MeasuredSpeed:
    """The first pair of runs in the output of `adaexit benchmark --json`, in the form that a card reports.

    Args:
        path: File with the output of `adaexit benchmark --json`.

    Raises:
        ValueError: The first line of the file is not such an output.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        low, median, high = record["speed_up"]
        machine = f"{record['threads']} threads of {record['cpu']}" if record["device"] == "cpu" else record["device"]
        how = (
            f"{record['candidate']} against {record['baseline']} in batches of {record['batch_size']}, "
            f"{record['dtype']}, {record['texts']} texts, {len(record['seconds'])} rounds, "
            f"quartiles {low:.2f} to {high:.2f}"
        )
        threshold = record["exit_threshold"]
        settings = {name: record[name] for name in SCORE_SETTINGS}
    except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"speed: '{path}' is not the output of adaexit benchmark --json ({type(error).__name__}: {error}); pass a "
            "file with that output"
        ) from error
    if isinstance(threshold, list):
        raise ValueError(
            f"speed: '{path}' was measured with one threshold per exit, which is no point of the curve; leave --speed "
            "out, or measure with one threshold"
        )
    return MeasuredSpeed(machine, how, {threshold: median}, settings)


def read_curve(folder: Path) -> list[CurvePoint]:
    """The curve in curve.json.

    Raises:
        ValueError: The file is not one that `adaexit report` or `adaexit train` wrote.
    """
    try:
        return [CurvePoint(**point) for point in json.loads((folder / "curve.json").read_text(encoding="utf-8"))]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"folder: '{folder / 'curve.json'}' was not written by adaexit_hf ({type(error).__name__}: {error}); move "
            "it away: adaexit report writes it anew"
        ) from error


def read_metrics(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of metrics.json, if its results are of the model as it is now.

    Args:
        folder: The model's folder.
        settings: The settings in config.json that decide where a text exits.

    Raises:
        ValueError: The file is not one that `adaexit report` or `adaexit train` wrote; or its results were measured
            with other settings, or do not say with which.
    """
    metrics = earlier_measurements(folder)
    for split, result in metrics["results"].items():
        unknown = sorted(settings.keys() - result.keys())
        changed = f"measured at an unknown {unknown[0]}" if unknown else changed_setting(result, settings)
        if changed:
            raise ValueError(
                f"folder: '{split}' was {changed}; run adaexit report {folder} ... and adaexit card {folder} first"
            )
    return metrics


@dataclass(kw_only=True)
class ConvertOptions:
    """Flags of `adaexit convert`: facts that the checkpoint does not contain."""

    positionals: ClassVar[Positionals] = {
        "source": {"help": "Local folder or Hub name of a checkpoint of the authors of DeeBERT, BERxiT or PABEE."},
        "output": {"help": "Folder to write the converted model to."},
    }
    labels: list[str] | None = field(
        default=None,
        metadata={"help": "Class names, in the order of the classifier's outputs. Default: those in its config."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a checkpoint on the Hub."})


def convert(options: ConvertOptions, positionals: Any) -> None:
    """Convert a checkpoint that was trained with the code of the papers' authors into a model of this package."""
    if Path(positionals.output, "config.json").exists():
        raise ValueError(f"output: '{positionals.output}' already contains a model; pass another folder")
    check_not_exported("source", positionals.source)
    check_revision(positionals.source, options.revision)
    check_writable("output", Path(positionals.output))
    convert_checkpoint(positionals.source, positionals.output, labels=options.labels, revision=options.revision)
    print(positionals.output)


@dataclass(kw_only=True)
class PushOptions:
    """Flags of `adaexit push`."""

    positionals: ClassVar[Positionals] = FOLDER | {
        "repo_id": {"help": "Hub name of the repository, e.g. you/berxit-mrpc."}
    }
    private: bool = field(default=False, metadata={"help": "Make the repository private, if it is created."})
    revision: str | None = field(default=None, metadata={"help": "Branch to push to. Default: main."})
    message: str = field(default="Upload a model with early exit", metadata={"help": "Commit message."})


def check_finished(folder: Path) -> None:
    """Check that no training run in a folder was interrupted.

    Raises:
        ValueError: A stage has checkpoints but was not finished, so the folder's model is not the one of this run.
    """
    ledger = folder / LEDGER
    done = json.loads(ledger.read_text())["done"] if ledger.is_file() else []
    begun = {path.parent.name.split("-", 2)[2] for path in folder.glob("stage-*-*/checkpoint-*")}
    unfinished = sorted(begun - set(done))
    if unfinished:
        raise ValueError(
            f"folder: '{folder}' holds a training run that was interrupted in stage {', '.join(unfinished)}; finish "
            "it with adaexit train ... --resume_from_checkpoint True"
        )


def check_is_model(folder: Path, advice: str) -> None:
    """Check that a folder holds a finished model with exits.

    Args:
        folder: The folder.
        advice: End of the message about a model without exits.

    Raises:
        ValueError: It does not, or holds an exported model or an interrupted training run.
    """
    check_not_exported("folder", str(folder))
    check_finished(folder)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"folder: '{folder}' has no model (config.json and *.safetensors); pass the folder of a saved model"
        )
    check_has_exits(folder, advice)


def push(options: PushOptions, positionals: Any) -> None:
    """Upload a model's folder to the Hub in one commit.

    Weights, code, tokenizer, card and pictures are uploaded; files of the training run (stage folders, optimizer
    states, training_args.bin) are not. Needs a Hub token, from `hf auth login` or in the variable HF_TOKEN. Prints the
    URL of the commit.
    """
    folder = Path(positionals.folder)
    check_is_model(folder, "; push it with hf upload or model.push_to_hub")
    if not (folder / "README.md").exists():
        print(f"adaexit push: uploading without a model card; adaexit card {folder} writes one", file=sys.stderr)
    settings = AutoConfig.from_pretrained(folder)
    if (folder / "metrics.json").is_file():
        read_metrics(folder, exit_settings(settings))
    text = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").exists() else ""
    if MARKER in text and len(settings.exit_layers) > 1 and saved_threshold(settings) not in text:
        raise ValueError(
            f"folder: '{folder / 'README.md'}' was written for another threshold than that in config.json; run "
            f"adaexit card {folder} first"
        )
    promises = [f"- {sealed}." for sealed in valid_certificates(folder)]
    stated = [line for line in text.splitlines() if " % confidence, on texts like the " in line]
    if MARKER in text and sorted(promises) != sorted(stated):
        raise ValueError(
            f"folder: '{folder / 'README.md'}' does not state the guarantees in {CERTIFICATE_FILE}; run adaexit card "
            f"{folder} first"
        )
    api = HfApi()
    repo = api.create_repo(positionals.repo_id, private=options.private or None, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        revision=options.revision,
        commit_message=options.message,
        ignore_patterns=list(NEVER_UPLOADED),
    )
    print(commit.commit_url)
