"""Flags that several commands share, and the function that loads their checkpoint."""

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ..models import MODEL_TYPES
from ..models.configuration_early_exit import check_whole_number
from ..models.encoder_layers import family_of
from ..onnx_runtime.folder import MANIFEST
from ..utils.files import LEDGER

# Positional arguments of a command: name -> keyword arguments of `ArgumentParser.add_argument`.
Positionals = dict[str, dict[str, Any]]

CHECKPOINT: Positionals = {"checkpoint": {"help": "Local folder or Hub name of an early-exit model."}}
LOCAL_CHECKPOINT: Positionals = {"checkpoint": {"help": "Local folder of an early-exit model."}}


class Fraction(float):
    """A number that can also be written in percent.

    >>> Fraction("2%"), Fraction("0.02"), Fraction(0.5)
    (0.02, 0.02, 0.5)
    """

    def __new__(cls, value: str | float) -> "Fraction":
        text = str(value).strip()
        return super().__new__(cls, float(text[:-1]) / 100 if text.endswith("%") else float(text))


MAX_DROP_HELP = (
    "Largest allowed drop of the score, as a share of that at full depth: 0.02, or with the sign of percent."
)


@dataclass(kw_only=True)
class OutputOptions:
    """Flags for what is printed."""

    json: bool = field(default=False, metadata={"help": "Print the results as a JSON object instead of tables."})


@dataclass(kw_only=True)
class LoadOptions:
    """Flags for loading a checkpoint."""

    positionals: ClassVar[Positionals] = CHECKPOINT
    dtype: str = field(
        default="auto", metadata={"help": "float32, bfloat16 or float16; auto keeps the dtype of the saved weights."}
    )
    device: str = field(default="auto", metadata={"help": "cpu, cuda, ...; auto uses a GPU if there is one."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a checkpoint on the Hub."})
    max_seq_length: int | None = field(
        default=None,
        metadata={"help": "Truncate texts to this many tokens. Default: as in training, saved with the tokenizer."},
    )


@dataclass(kw_only=True)
class ModelOptions(LoadOptions):
    """Flags for running a checkpoint at a threshold."""

    exit_threshold: str | None = field(
        default=None,
        metadata={"help": "Exit threshold to use; none is full depth. Default: the one saved with the checkpoint."},
    )


@dataclass(kw_only=True)
class TextOptions:
    """Flags for texts without labels."""

    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "aliases": ["--text_column"],
            "help": "Column of the texts, or two for pairs. Default: text (and text_pair), or guessed if only one "
            "choice makes sense.",
        },
    )
    delimiter: str | None = field(
        default=None,
        metadata={"help": "What separates the fields of a .csv file. Default: found out, of , ; tab and |."},
    )


def threshold_in(text: str) -> float | None:
    """The threshold in a flag.

    Raises:
        ValueError: It is neither a number nor "none".

    >>> threshold_in("0.5"), threshold_in("none")
    (0.5, None)
    """
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"exit_threshold: got '{text}'; pass a number, e.g. 0.9, or none for full depth") from None


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Args:
        host: Name or address of this machine.
        port: Port, 0 for a free one.

    Raises:
        ValueError: It is no port, or cannot be listened on.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port: got {port}; pass a number from 0 to 65535, e.g. --port 8080")
    try:
        return socket.create_server((host, port), backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        message = f"host, port: cannot listen on {host}:{port} ({reason}); pass another --port, or --host 127.0.0.1"
        raise ValueError(message) from error


def limit_length(tokenizer: Any, encoder_config: Any, max_seq_length: int | None, default: int | None = None) -> None:
    """Set the number of tokens to which a tokenizer truncates, its `model_max_length`, which is saved with it.

    Args:
        tokenizer: The tokenizer.
        encoder_config: Config of the encoder, or None for any other model, whose positions are not looked at.
        max_seq_length: Number of tokens. Default: None, that of the tokenizer.
        default: Without `max_seq_length`, not more than this many tokens. Default: None, as many as the encoder has
            positions for.

    Raises:
        ValueError: `max_seq_length` is not a whole number from 1, or more than the encoder has positions for.
    """
    longest = None if encoder_config is None else family_of(encoder_config).max_tokens(encoder_config)
    if max_seq_length is None:
        limits = [limit for limit in (tokenizer.model_max_length, longest, default) if limit is not None]
        tokenizer.model_max_length = min(limits)
        return
    check_whole_number("max_seq_length", max_seq_length, low=1, advice="e.g. 128")
    if longest is not None and max_seq_length > longest:
        raise ValueError(
            f"max_seq_length: got {max_seq_length}, but the encoder, a '{encoder_config.model_type}', has positions "
            f"for {longest} tokens; pass at most {longest}"
        )
    tokenizer.model_max_length = max_seq_length


def check_folder(argument: str, name: str, hub_names_have_owners: bool = False) -> None:
    """Check, before anything is loaded, that what can only be a folder exists.

    Args:
        argument: The flag, for the message.
        name: Folder or Hub name.
        hub_names_have_owners: Whether a name without a slash cannot be one of the Hub, as of old encoders
            ("bert-base-uncased").

    Raises:
        ValueError: There is no such folder, or it holds an exported model.

    >>> check_folder("checkpoint", "bert-base-uncased")
    >>> check_folder("checkpoint", "./missing")
    Traceback (most recent call last):
        ...
    ValueError: checkpoint: there is no folder './missing'; pass an existing folder or a Hub name
    """
    slashes = name.count("/")
    only_folder = name.startswith((".", "/")) or slashes > 1 or (hub_names_have_owners and not slashes)
    if only_folder and not Path(name).is_dir():
        raise ValueError(f"{argument}: there is no folder '{name}'; pass an existing folder or a Hub name")
    check_not_exported(argument, name)


def check_not_exported(argument: str, name: str) -> None:
    """Check that a folder is not an exported model in place of its checkpoint.

    Args:
        argument: The flag, for the message.
        name: Folder or Hub name.

    Raises:
        ValueError: It is an exported model, or the part of it with one precision.
    """
    path = Path(name)
    folder = next((each for each in (path, path.parent) if (each / MANIFEST).is_file()), None)
    if folder is None or (path / "config.json").is_file():
        return
    checkpoint = folder.parent if folder.name else folder.absolute().parent
    known = (checkpoint / "config.json").is_file()
    advice = f"pass '{checkpoint}'" if known else "pass the folder of the checkpoint that it was exported from"
    raise ValueError(
        f"{argument}: '{name}' holds graphs that adaexit export wrote, and no checkpoint; {advice}, with --runtime "
        "onnx where the graphs are to run"
    )


def check_revision(name: str, revision: str | None) -> None:
    """Check that a revision is not asked for of a local folder, which has none.

    Raises:
        ValueError: It is.
    """
    if revision not in (None, "main") and Path(name).is_dir():
        raise ValueError(f"revision: got '{revision}', but '{name}' is a local folder, which has none; leave it out")


def local_folder(checkpoint: str) -> Path:
    """Return the folder of a checkpoint that a command changes.

    Raises:
        ValueError: It is not a local folder of a checkpoint.
    """
    check_not_exported("checkpoint", checkpoint)
    folder = Path(checkpoint)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"checkpoint: '{checkpoint}' is not a local folder with a config.json; download it first, e.g. hf "
            f"download {checkpoint} --local-dir FOLDER"
        )
    return folder


def is_classifier(config: Any) -> bool:
    """Whether a model has a classification head, and so was fine-tuned."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def read_config(checkpoint: str, options: LoadOptions) -> Any:
    """The config of a checkpoint, which is read before anything that takes long.

    Raises:
        ValueError: The folder does not exist, holds an exported model or has no revisions, or the checkpoint has no
            exits.
    """
    check_folder("checkpoint", checkpoint, hub_names_have_owners=True)
    check_revision(checkpoint, options.revision)
    if Path(checkpoint, LEDGER).is_file() and not Path(checkpoint, "config.json").is_file():
        raise ValueError(
            f"checkpoint: '{checkpoint}' holds a training run that was interrupted; finish it with adaexit train ... "
            "--resume_from_checkpoint auto"
        )
    config = AutoConfig.from_pretrained(checkpoint, revision=options.revision)
    if config.model_type not in MODEL_TYPES:
        flag = "--add_exits" if is_classifier(config) else "--model_name_or_path"
        raise ValueError(
            f"checkpoint: '{checkpoint}' is a '{config.model_type}' model without exits; train some with "
            f"adaexit train {flag} {checkpoint} ..."
        )
    return config


def load(
    checkpoint: str, options: LoadOptions, exit_threshold: str | None = None, exit_criterion: str | None = None
) -> tuple[Any, Any]:
    """Load a checkpoint for inference.

    Args:
        checkpoint: Local folder or Hub name.
        options: Flags for loading it.
        exit_threshold: Exit threshold to use, or "none" for full depth. Default: None, the one saved with the
            checkpoint.
        exit_criterion: Exit criterion to use; there is no threshold then. Default: None, the one of the checkpoint.

    Returns:
        The model, in eval mode on its device, and its tokenizer, which truncates to `max_seq_length` tokens.

    Raises:
        ValueError: As `read_config`; or weights are missing or unreadable, or the dtype, the device, the threshold or
            the length is invalid.
    """
    config = read_config(checkpoint, options)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=options.revision)
    limit_length(tokenizer, config.encoder_config, options.max_seq_length)
    dtypes = ("auto", "float32", "bfloat16", "float16")
    if options.dtype not in dtypes:
        raise ValueError(f"dtype: got '{options.dtype}'; choose one of {', '.join(dtypes)}")
    cuda = torch.cuda.is_available()
    device = options.device if options.device != "auto" else "cuda" if cuda else "cpu"
    if device.startswith("cuda") and not cuda:
        raise ValueError(f"device: got '{device}', but torch finds no GPU; pass cpu")
    if exit_threshold is not None:
        config.thresholds(threshold_in(exit_threshold))  # raises if it is invalid, before the weights are loaded
    other = {} if exit_criterion is None else {"exit_criterion": exit_criterion, "exit_threshold": None}
    try:
        model, loading_info = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=options.dtype, revision=options.revision, output_loading_info=True, **other
        )
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint: the weights of '{checkpoint}' cannot be read; download or copy them again ({error})"
        ) from error
    if loading_info["missing_keys"]:
        missing = sorted(loading_info["missing_keys"])
        raise ValueError(
            f"checkpoint: '{checkpoint}' lacks {len(missing)} weights, {', '.join(missing[:3])}, ..., which would be "
            "random; download or copy it again, or train it"
        )
    if exit_threshold is not None:
        model.config.exit_threshold = threshold_in(exit_threshold)
    return model.eval().to(device), tokenizer
