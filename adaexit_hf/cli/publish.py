"""What `adaexit card`, `convert` and `push` do."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi
from transformers import AutoModelForSequenceClassification

from ..evaluation.curves import CurvePoint
from ..hub.card_facts import CardDataset, MeasuredSpeed
from ..hub.conversion import convert_checkpoint
from ..hub.model_card import write_model_card
from ..hub.upload import NEVER_UPLOADED
from .options import Positionals

FOLDER: Positionals = {"folder": {"help": "Folder of a model with exits."}}


@dataclass(kw_only=True)
class CardOptions:
    """What the card says besides what was measured."""

    positionals: ClassVar[Positionals] = FOLDER
    name: str | None = field(
        default=None, metadata={"help": "On the Hub, e.g. you/berxit-mrpc. Default: the folder's."}
    )
    base_model: str | None = field(default=None, metadata={"help": "Name on the Hub of the encoder it started from."})
    language: str | None = field(default=None, metadata={"help": "Of the texts, as the Hub names it, e.g. en."})
    license: str | None = field(default=None, metadata={"help": "As the Hub names it, e.g. apache-2.0."})
    speed: str | None = field(default=None, metadata={"help": "File with what `adaexit benchmark` printed."})
    overwrite: bool = field(default=False, metadata={"help": "Also replace a README.md of somebody else."})


def card(options: CardOptions, given: Any) -> None:
    """Write README.md and its pictures into a model's folder, from the metrics.json and curve.json that lie there.

    `adaexit train` writes a card by itself; `adaexit report` measures a model anew for this command.
    """
    folder = Path(given.folder)
    if not folder.is_dir():
        raise ValueError(f"folder: there is no '{folder}'; pass one that is there")
    for name in ("config.json", "metrics.json", "curve.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"folder: '{folder}' has no {name}; run adaexit report {folder} ... first, which measures it"
            )
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    measured = json.loads((folder / "metrics.json").read_text())
    facts = measured.get("dataset")
    print(
        write_model_card(
            model,
            folder,
            name=options.name,
            curve=[CurvePoint(**point) for point in json.loads((folder / "curve.json").read_text())],
            metrics=measured["results"],
            dataset=CardDataset(**facts) if facts else None,
            speed=measured_speed(Path(options.speed)) if options.speed else None,
            base_model=options.base_model,
            language=options.language,
            license=options.license,
            overwrite=options.overwrite,
        )
    )


def measured_speed(path: Path) -> MeasuredSpeed:
    """What `adaexit benchmark` printed, as a card reports it: the first pair of runs.

    Raises:
        ValueError: the file holds no such line.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        low, middle, high = found["speed_up"]
        machine = f"{found['threads']} threads of {found['cpu']}" if found["device"] == "cpu" else found["device"]
        how = (
            f"{found['candidate']} against {found['baseline']} in batches of {found['batch_size']}, {found['dtype']}, "
            f"{found['texts']} texts, {len(found['seconds'])} rounds, quartiles {low:.2f} to {high:.2f}"
        )
        return MeasuredSpeed(machine, how, {found["exit_threshold"]: middle})
    except (IndexError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"speed: '{path}' is not what adaexit benchmark prints ({type(error).__name__}: {error}); pass its output"
        ) from error


@dataclass(kw_only=True)
class ConvertOptions:
    """What the checkpoint does not say itself."""

    positionals: ClassVar[Positionals] = {
        "source": {"help": "Folder or Hub name of a checkpoint of DeeBERT's, BERxiT's or PABEE's authors."},
        "output": {"help": "Folder for the model."},
    }
    labels: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the classes in the classifier's order. Default: those of its config."},
    )
    revision: str | None = field(default=None, metadata={"help": "Of a checkpoint on the Hub."})


def convert(options: ConvertOptions, given: Any) -> None:
    """Convert a checkpoint of the papers' authors into a model of this package."""
    if Path(given.output, "config.json").exists():
        raise ValueError(f"output: '{given.output}' already holds a model; pass another folder")
    convert_checkpoint(given.source, given.output, labels=options.labels, revision=options.revision)
    print(given.output)


@dataclass(kw_only=True)
class PushOptions:
    """Where to, and who may see it."""

    positionals: ClassVar[Positionals] = FOLDER | {"repo_id": {"help": "Name on the Hub, e.g. you/berxit-mrpc."}}
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    revision: str | None = field(default=None, metadata={"help": "Branch to push to. Default: main."})
    message: str = field(default="Upload a model with early exit", metadata={"help": "Of the commit."})


def push(options: PushOptions, given: Any) -> None:
    """Upload a model's folder in one commit: weights, code, tokenizer, card and pictures, but nothing of its training.

    Needs a token: `hf auth login`, or HF_TOKEN. Prints where the commit is.
    """
    folder = Path(given.folder)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise ValueError(f"folder: '{folder}' holds no model (config.json and *.safetensors); pass one that does")
    if not (folder / "README.md").exists():
        print(f"adaexit push: without a card; adaexit card {folder} writes one", file=sys.stderr)
    measured, config = folder / "metrics.json", json.loads((folder / "config.json").read_text())
    if measured.is_file():
        for split, result in json.loads(measured.read_text())["results"].items():
            if result["exit_threshold"] != config["exit_threshold"]:
                raise ValueError(
                    f"folder: '{split}' was measured at exit_threshold {result['exit_threshold']}, the model's is"
                    f" {config['exit_threshold']}; run adaexit report {folder} ... and adaexit card {folder} first"
                )
    api = HfApi()
    repo = api.create_repo(given.repo_id, private=options.private or None, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        revision=options.revision,
        commit_message=options.message,
        ignore_patterns=list(NEVER_UPLOADED),
    )
    print(commit.commit_url)
