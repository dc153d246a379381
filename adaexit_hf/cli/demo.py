"""The commands `adaexit demo` and `adaexit space` (need the extra `demo-app`)."""

import json
import shutil
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from huggingface_hub import HfApi, ModelCardData, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig

from ..demo_app import app
from ..demo_app.facts import LONGEST_EXAMPLE, demo_facts, examples_of
from ..evaluation.summary import (
    changed_setting,
    earlier_measurements,
    exit_settings,
    label_names,
    score_settings,
)
from ..hub.card_facts import CardDataset
from ..utils.files import check_writable
from ..utils.imports import needed
from .data_arguments import DataArguments
from .evaluate import curve_with_threshold, labelled_splits
from .options import CHECKPOINT, LoadOptions, ModelOptions, Positionals, listen, load
from .publish import check_is_model, read_curve
from .runtime import trace_of

ROW_SETTINGS = {each.name for each in fields(DataArguments)} | {"batch_size"}
ROW_FLAGS = ("task_name", "dataset_name", "train_file", "validation_file")
BATCH_SIZE_HELP = "Texts per batch, when labelled rows are measured."
# Those of `pyproject.toml`.
REQUIREMENTS = ("torch>=2.6", "transformers>=5.18,<6", "safetensors", "gradio>=6.31,<7")
PYTHON = "3.11"


@dataclass(kw_only=True)
class DemoOptions(DataArguments, ModelOptions):
    """Flags of `adaexit demo`."""

    positionals: ClassVar[Positionals] = CHECKPOINT
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 lets other machines connect."}
    )
    port: int = field(default=7860, metadata={"help": "Port to listen on; 0 takes a free one."})
    batch_size: int = field(default=32, metadata={"help": BATCH_SIZE_HELP})


def demo_page(options: Any, name: str, model: Any, tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Collect what the page shows: from labelled rows if the flags name some, otherwise from the model's folder.

    Args:
        options: `DataArguments`, with a batch size.
        name: Folder or Hub name of the model.
        model: The model.
        tokenizer: Its tokenizer.
        **more: Arguments of `demo_facts`.

    Returns:
        The contents of `demo.json`.

    Raises:
        ValueError: As `labelled_splits`; or the folder's curve is of other settings than the model's, or flags say how
            to read rows, but not which.
    """
    shown = Path(name).resolve().name if Path(name).is_dir() else name
    facts: dict[str, Any] = {"max_tokens": tokenizer.model_max_length} | more
    if any(getattr(options, flag) for flag in ROW_FLAGS):
        threshold = model.config.exit_threshold
        rows, texts, metrics = labelled_splits(model, tokenizer, options)
        split = next(iter(rows))
        trace = trace_of(model, rows[split], options.batch_size)
        data = options.for_card()
        facts |= {
            "dataset": data._replace(name=f"{data.name}, {split}" if split != "validation" else data.name),
            "metric": metrics[0],
            "curve": curve_with_threshold(trace, metrics[0], threshold),
            "examples": examples_of(trace, texts[split], threshold),
        }
        if not facts["examples"]:
            print(
                "adaexit: no examples, since the texts leave at one exit, or have more than "
                f"{LONGEST_EXAMPLE} characters, or repeat each other",
                file=sys.stderr,
            )
    else:
        facts |= measured_before(Path(name), model.config)
        print(
            "adaexit: no examples of easy and hard texts: pass labelled rows, e.g. --validation_file new.csv",
            file=sys.stderr,
        )
    return demo_facts(model, shown, **facts)


def check_no_row_flags(options: Any) -> None:
    """Check that without rows no flag says how to read them.

    Raises:
        ValueError: One does.
    """
    if any(getattr(options, flag) for flag in ROW_FLAGS):
        return
    for each in (each for each in fields(options) if each.name in ROW_SETTINGS):
        if getattr(options, each.name) != each.default:
            raise ValueError(
                f"{each.name}: got {getattr(options, each.name)!r} without rows; pass --validation_file, --task_name "
                "or --dataset_name, too, or leave it out"
            )


def measured_before(folder: Path, config: Any) -> dict[str, Any]:
    """Read the curve that `adaexit train` or `adaexit report` has written into a model's folder.

    Args:
        folder: The model's folder, or a name on the Hub.
        config: The model's config.

    Returns:
        Arguments of `demo_facts`; none if the folder has no curve, which is told on stderr.

    Raises:
        ValueError: The files are not ours, or the curve was measured with other settings than the model's.
    """
    if not folder.is_dir():
        print(
            "adaexit: no trade-off curve, since it is read from a local folder only: pass labelled rows, or run hf "
            f"download {folder} --local-dir FOLDER first",
            file=sys.stderr,
        )
        return {}
    if not (folder / "curve.json").is_file() or not (folder / "metrics.json").is_file():
        print(
            "adaexit: no trade-off curve, since none was measured: pass labelled rows, or run adaexit report first",
            file=sys.stderr,
        )
        return {}
    curve, metrics = read_curve(folder), earlier_measurements(folder)
    for point in curve:
        changed = changed_setting(point.settings or {}, score_settings(config))
        if changed:
            raise ValueError(
                f"checkpoint: the curve in '{folder / 'curve.json'}' was {changed}; run adaexit report {folder} ... "
                "first, which measures the model again, or pass labelled rows, e.g. --validation_file new.csv"
            )
    measured: dict[str, Any] = next(iter(metrics["results"].values()), {})
    dataset = CardDataset(**metrics["dataset"]) if metrics.get("dataset") else None
    if dataset is not None:  # that of the first measurement; the curve is of the newest
        dataset = dataset._replace(name=measured.get("data", {}).get("name", dataset.name))
    return {
        "curve": curve,
        "metric": next(iter(measured.get("at_threshold", {})), "score"),
        "dataset": dataset,
    }


def demo(options: DemoOptions, positionals: Any) -> None:
    """Open a page on which to try a checkpoint: type a text, and see where it leaves and what every exit says.

    A slider moves the threshold. With labelled rows the page has their trade-off curve, and examples of easy and hard
    texts among them; without, the curve that adaexit train or adaexit report has measured. Ctrl-C stops it.
    """
    needed("gradio", "demo-app")
    check_no_row_flags(options)
    with listen(options.host, options.port) as listening:  # freed only when the model is loaded
        port = listening.getsockname()[1]
        model, tokenizer = load(positionals.checkpoint, options, options.exit_threshold)
        facts = demo_page(options, positionals.checkpoint, model, tokenizer)
        page = app.build(model, tokenizer, facts)
    app.launch(page, server_name=options.host, server_port=port, quiet=True, prevent_thread_lock=True)
    print(f"adaexit demo: {positionals.checkpoint} on http://{options.host}:{port}, Ctrl-C stops it", file=sys.stderr)
    page.block_thread()


@dataclass(kw_only=True)
class SpaceOptions(DataArguments):
    """Flags of `adaexit space`."""

    positionals: ClassVar[Positionals] = {
        "folder": {"help": "Local folder of an early-exit model."},
        "repo_id": {"help": "Hub name of the Space, e.g. you/berxit-sst2-demo."},
    }
    model: str | None = field(
        default=None,
        metadata={
            "help": "Hub name of the same model, e.g. you/berxit-sst2, which the Space loads, at the commit that is "
            "there now. Default: a copy of the model in the Space."
        },
    )
    output: str | None = field(
        default=None,
        metadata={"help": "Folder to write the Space into, to look at or to try; then nothing is pushed."},
    )
    license: str | None = field(default=None, metadata={"help": "License, as a Hub identifier, e.g. apache-2.0."})
    private: bool = field(default=False, metadata={"help": "Make the Space private, if it is created."})
    message: str = field(default="Upload a page to try early exit", metadata={"help": "Commit message."})
    batch_size: int = field(default=32, metadata={"help": BATCH_SIZE_HELP})


def space(options: SpaceOptions, positionals: Any) -> None:
    """Publish the page of adaexit demo as a Space on the Hugging Face Hub, in one commit.

    The Space holds the page, the model with its code, and the curve; it does not need this package. With labelled rows
    (--validation_file, --task_name, ...) up to seven of their texts are published with it, as examples: they are
    printed. Needs a Hub token, from `hf auth login` or in the variable HF_TOKEN. Prints the URL of the Space.
    """
    gradio = needed("gradio", "demo-app")
    folder, repo_id = Path(positionals.folder), positionals.repo_id
    check_no_row_flags(options)
    check_names(repo_id, folder, options)
    check_is_model(folder, "; a Space of this kind shows exits")
    if options.output is None and get_token() is None:
        raise ValueError(
            "repo_id: there is no Hub token to push with; call hf auth login, set HF_TOKEN, or pass --output FOLDER "
            "to write the Space without pushing it"
        )
    revision = None if options.model is None else commit_of_same_model(options.model, folder)
    model, tokenizer = load(str(folder), LoadOptions())
    facts = demo_page(
        options,
        str(folder),
        model,
        tokenizer,
        title=repo_id.split("/")[-1],
        hub_model=options.model,
        revision=revision,
    )
    for example in facts["examples"]:
        print(f"adaexit space: published as an example: {' / '.join(example['texts'])}", file=sys.stderr)
    header = space_header(facts, gradio.__version__, options.license)
    if options.output is not None:
        write_space(Path(options.output), facts, header, model, tokenizer)
        print(options.output)
        print(
            f"adaexit space: try it with python {Path(options.output, 'app.py')}, push it with hf upload {repo_id} "
            f"{options.output} --repo-type space",
            file=sys.stderr,
        )
        return
    api = HfApi()
    with TemporaryDirectory() as scratch:
        write_space(Path(scratch), facts, header, model, tokenizer)
        url = api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=options.private or None, exist_ok=True
        )
        api.upload_folder(repo_id=url.repo_id, repo_type="space", folder_path=scratch, commit_message=options.message)
    print(url)


def check_names(repo_id: str, folder: Path, options: SpaceOptions) -> None:
    """Check the names on the Hub, and the folder to write to.

    Raises:
        ValueError: One is no name; or the folder to write to is in the model's, has files or cannot be written; or a
            flag is for a push only.
    """
    for flag, name, example in (("repo_id", repo_id, "you/berxit-demo"), ("model", options.model, "you/berxit-sst2")):
        if name is None:
            continue
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise ValueError(f"{flag}: got '{name}', which is no name on the Hub; pass e.g. {example}") from error
    if options.output is None:
        return
    for each in fields(options):
        if each.name in ("private", "message") and getattr(options, each.name) != each.default:
            raise ValueError(
                f"{each.name}: got {getattr(options, each.name)!r} with --output, with which nothing is pushed; leave "
                "out one of them"
            )
    output = Path(options.output)
    if folder.resolve() in (output.resolve(), *output.resolve().parents):
        raise ValueError(f"output: '{output}' is in the model's folder; pass another folder")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ValueError(f"output: '{output}' exists and is not empty; pass another folder, or remove it")
    check_writable("output", output)


def commit_of_same_model(name: str, folder: Path) -> str | None:
    """Return the newest commit of a model on the Hub, if it is the one in a folder.

    Args:
        name: Name on the Hub.
        folder: The folder.

    Raises:
        ValueError: The model on the Hub has other exits, labels, thresholds or criteria. Weights are not compared.
    """
    commit = HfApi().model_info(name).sha
    there, here = AutoConfig.from_pretrained(name, revision=commit), AutoConfig.from_pretrained(folder)
    for setting, ours in settings_of(here).items():
        theirs = settings_of(there).get(setting)
        if theirs != ours:
            raise ValueError(
                f"model: '{name}' has {setting} {theirs!r}, but '{folder}' has {ours!r}; call adaexit push {folder} "
                f"{name} first, or leave out --model"
            )
    return commit


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a config by which two models are known to differ."""
    if not hasattr(config, "exit_layers"):
        return {"model_type": config.model_type}
    return {
        "model_type": config.model_type,
        "exit_layers": list(config.exit_layers),
        "labels": label_names(config),
    } | exit_settings(config)


def space_header(facts: dict[str, Any], gradio_version: str, license: str | None) -> str:
    """The README.md of a Space, which is little more than its header."""
    values = {
        "title": facts["title"],
        "emoji": "🚪",
        "colorFrom": "indigo",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": gradio_version,
        "python_version": PYTHON,
        "app_file": "app.py",
        "pinned": False,
        "license": license,
        "models": [facts["hub_model"]] if facts["hub_model"] else None,
        "tags": ["early-exit", "adaexit_hf"],
    }
    header = ModelCardData(**values).to_yaml()
    return (
        f"---\n{header}\n---\n\nType a text, and see after which layer an early-exit classifier answers it. Written "
        "by `adaexit space` of adaexit_hf.\n"
    )


def write_space(folder: Path, facts: dict[str, Any], header: str, model: Any, tokenizer: Any) -> None:
    """Write the folder of a Space: app.py, requirements.txt, README.md, demo.json, and model/ unless it is on the Hub.

    Args:
        folder: The folder, which is created.
        facts: The contents of demo.json.
        header: The contents of README.md.
        model: The model.
        tokenizer: Its tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(app.__file__, folder / "app.py")
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(header, encoding="utf-8")
    (folder / "demo.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if facts["hub_model"] is None:
        # Saved, not copied: a model's folder may hold a report with texts, or any other file.
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
