"""Entry point of the command `adaexit`. Results go to stdout, progress and messages to stderr."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_type_hints

from ..utils.progress_bars import write_seldom_to_files
from ..utils.spelling import did_you_mean
from ..version import __version__
from .errors import RefusedError, UsageError, wrong_usage
from .help import help_text
from .streams import escape_what_cannot_be_printed

# Command: (module, which is imported only when the command is used; one line for `adaexit --help`).
COMMANDS = {
    "train": ("train", "fine-tune an encoder with early exits and choose its exit threshold"),
    "evaluate": ("evaluate", "score a checkpoint on labelled texts: at full depth, at its threshold, at every exit"),
    "calibrate": ("calibrate", "choose a new exit threshold: the largest saving within an allowed drop of the score"),
    "certify": ("certify", "choose a threshold that keeps a promise on new texts, with a stated confidence"),
    "verify": ("certify", "check whether a checkpoint's certificates still hold"),
    "report": ("report", "measure checkpoints and write the trade-off table, the curve and an HTML report"),
    "compare": (
        "compare",
        "compare checkpoints on the same labelled texts: scores, layers run, majority baseline",
    ),
    "predict": ("predict", "classify texts from the command line, a file or stdin; prints JSON lines"),
    "benchmark": ("benchmark", "compare the speed of a checkpoint with the same classifier without exits"),
    "serve": ("serve", "answer texts over HTTP, with the interface of text-embeddings-inference"),
    "demo": ("demo", "open a page to try a checkpoint: where a text leaves, and what every exit says"),
    "export": ("export", "export a checkpoint to ONNX by stages, to run it without PyTorch"),
    "card": ("publish", "write the model card of a checkpoint"),
    "convert": ("publish", "convert a checkpoint of the papers' authors to this package's format"),
    "push": ("publish", "upload a checkpoint to the Hugging Face Hub, in one commit"),
    "space": ("demo", "publish the page of demo as a Space on the Hugging Face Hub"),
}

PACKAGE = Path(__file__).parents[1]
FILE_FLAGS = ("--file", "--train_file", "--validation_file", "--speed")


def usage() -> str:
    """The text that `adaexit --help` prints."""
    command_lines = "\n".join(f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: adaexit COMMAND [--help] ...\n\n"
        "Early exit for Hugging Face Transformers encoders: easy texts run through fewer layers.\n\n"
        f"{command_lines}\n\n"
        "adaexit COMMAND --help lists the arguments of a command. "
        f"adaexit --version prints the version ({__version__}).\n"
        "Exit codes: 0 success, 1 error, 2 wrong usage, 130 interrupted. ADAEXIT_TRACEBACK=1 shows where an error "
        "came from."
    )


def check_files(argv: Sequence[str]) -> None:
    """Check that the files that flags name exist, before the imports that take seconds.

    Raises:
        ValueError: There is no such file.
    """
    for place, argument in enumerate(argv):
        flag, _, value = argument.partition("=")
        value = value or "".join(argv[place + 1 : place + 2])
        if flag in FILE_FLAGS and not Path(value).is_file():
            raise ValueError(f"{flag.removeprefix('--')}: there is no '{value}'; pass an existing file")


def says_what_to_do(error: Exception) -> bool:
    """Whether an error is a ValueError of this package, whose message names the argument and the cure.

    Args:
        error: An exception that was caught.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_here = isinstance(error, ValueError) and Path(frame.f_code.co_filename).is_relative_to(PACKAGE)
    # Functions in C that were called here leave no frame.
    return raised_here and re.match(r"[a-z_]+(, [a-z_]+)*: |got |split '", str(error)) is not None


def parser_of(command: str) -> Any:
    """The parser of a command."""
    module, prog = module_of(command), f"adaexit {command}"
    if command == "train":
        return module.command_parser(prog)
    from .parser import CommandParser

    function = getattr(module, command)
    options_type = get_type_hints(function)["options"]
    parser = CommandParser(options_type, prog=prog, description=cleandoc(function.__doc__))
    for name, settings in options_type.positionals.items():
        parser.add_argument(name, **settings)
    return parser


def module_of(command: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f".{COMMANDS[command][0]}", __package__)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse the arguments of a command and run it."""
    if "--help" in argv or "-h" in argv:
        print(help_text(command), end="")
        return
    check_files(argv)
    if command == "train":
        module_of(command).main(argv, prog="adaexit train")
        return
    parser, function = parser_of(command), getattr(module_of(command), command)
    options_type = get_type_hints(function)["options"]
    with wrong_usage():
        options, positionals, unknown = parser.parse_args_into_dataclasses(
            list(argv), look_for_args_file=False, return_remaining_strings=True
        )
    if "texts" in options_type.positionals and not any(argument.startswith("-") for argument in unknown):
        positionals.texts, unknown = [*positionals.texts, *unknown], []  # argparse ignores texts after a flag
    if unknown:
        parser.refuse(unknown)
    function(options, positionals)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    Args:
        argv: Command and arguments. Default: those of the process.

    Returns:
        0 for success, 1 for an error, 2 for wrong usage, 130 when interrupted.
    """
    escape_what_cannot_be_printed()
    write_seldom_to_files()
    command, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        meant = did_you_mean(command, COMMANDS)
        print(f"adaexit: unknown command '{command}'; choose one of {', '.join(COMMANDS)}{meant}", file=sys.stderr)
        return 2
    try:
        run(command, arguments)
    except BrokenPipeError:
        # The reader of stdout, e.g. `head`, has closed it. Without this Python reports the error again when it
        # flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"\nadaexit {command}: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        message = f"needs '{error.name}', which is not installed; run pip install 'adaexit_hf[train]'"
        print(f"adaexit {command}: {message}", file=sys.stderr)
        return 1
    except UsageError as error:
        if os.environ.get("ADAEXIT_TRACEBACK"):
            raise
        print(f"adaexit {command}: {error}", file=sys.stderr)
        return 2
    except RefusedError as error:
        print(f"adaexit {command}: {error}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("ADAEXIT_TRACEBACK"):
            raise
        hint = f" [{type(error).__name__}; set ADAEXIT_TRACEBACK=1 for the traceback]"
        print(f"adaexit {command}: {error}{'' if says_what_to_do(error) else hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
