"""The command `adaexit`: train, evaluate, calibrate, predict, publish. Results go to stdout, progress to stderr."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import get_type_hints

from ..version import __version__

# The module of every command, imported when it is used, and what the command does.
COMMANDS = {
    "train": ("train", "fine-tune an encoder with exits and choose its threshold"),
    "evaluate": ("evaluate", "score a checkpoint on labelled texts: full depth, its threshold, every exit"),
    "calibrate": ("evaluate", "choose the threshold anew: the most saving for a drop that you allow"),
    "report": ("report", "trade-off table, curve and pictures of a checkpoint"),
    "predict": ("predict", "classify texts, a file or stdin; JSON lines out"),
    "benchmark": ("benchmark", "time a checkpoint on your texts against the classifier without exits"),
    "card": ("publish", "write the model card of a checkpoint"),
    "convert": ("publish", "convert a checkpoint of the papers' authors"),
    "push": ("publish", "upload a checkpoint to the Hub, in one commit"),
}


def usage() -> str:
    lines = "\n".join(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: adaexit COMMAND [--help] ...\n\nEarly exit for encoders: how many layers run is decided per text.\n\n"
        f"{lines}\n\nadaexit COMMAND --help says what it takes; --version prints {__version__}.\n"
        "Exit codes: 0 done, 1 failed, 2 called wrongly, 130 interrupted."
    )


def run(command: str, argv: Sequence[str]) -> None:
    """Parse the flags of a command and carry it out."""
    module = importlib.import_module(f".{COMMANDS[command][0]}", __package__)
    if command == "train":
        module.main(argv, prog="adaexit train")
        return
    from transformers import HfArgumentParser

    function = getattr(module, command)
    options_type = get_type_hints(function)["options"]
    parser = HfArgumentParser(options_type, prog=f"adaexit {command}", description=function.__doc__)
    for name, more in options_type.positionals.items():
        parser.add_argument(name, **more)
    options, positionals, unknown = parser.parse_args_into_dataclasses(
        list(argv), look_for_args_file=False, return_remaining_strings=True
    )
    if "texts" in options_type.positionals and not any(each.startswith("-") for each in unknown):
        positionals.texts, unknown = [*positionals.texts, *unknown], []  # argparse takes none behind a flag
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    function(options, positionals)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    command, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        print(f"adaexit: no command '{command}'; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        run(command, rest)
    except BrokenPipeError:
        # Whoever read the results has enough; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"\nadaexit {command}: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        needed = f"needs '{error.name}', which is not installed: pip install 'adaexit_hf[train]'"
        print(f"adaexit {command}: {needed}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("ADAEXIT_TRACEBACK"):
            raise
        print(f"adaexit {command}: {error} [{type(error).__name__}; ADAEXIT_TRACEBACK=1 shows where]", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
