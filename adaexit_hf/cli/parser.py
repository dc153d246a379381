"""The argument parser of the commands: help texts in groups, and helpful messages for flags that do not exist."""

import os
import textwrap
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_type_hints

from transformers import HfArgumentParser

from ..utils.spelling import did_you_mean

WIDTH, INDENT = 100, 32
NUMBERS = (float, float | None)
# Flags of one command that another command has under another name.
OF_OTHER_COMMANDS = {"--file": "--validation_file", "--precision": "--int8"}

# The flags that `--help` shows, by their names, for all commands; a command has some of them. Others are behind
# `--help_all`.
GROUPS = {
    "Data": """
        task_name train_file validation_file dataset_name dataset_config dataset_revision file text_columns
        label_column label_columns validation_fraction max_seq_length max_train_samples max_eval_samples
        max_texts single_texts pairs metrics id_column split group_column delimiter drop_empty repeats
    """,
    "Model": """
        model model_name_or_path add_exits method recipe method_config exit_threshold exit_criterion temperatures
        max_drop batch_size rounds onnx threads runtime precision int8 dtype device revision
    """,
    "Promise": """
        changed_answers harm drop mean_difference mean_layers tolerance value_range confidence shadow
    """,
    "Server": """
        host port api_key allow_thresholds refuse_long_texts max_client_batch_size max_concurrent_texts
        max_body_bytes batch_tokens
    """,
    "Training": """
        num_train_epochs learning_rate exits_learning_rate per_device_train_batch_size bf16 use_cpu seed
        resume_from_checkpoint
    """,
    "Output": """
        output_dir overwrite_output_dir output explain explain_steps flops json all_scores dry_run save_traces
        push_to_hub name base_model language license speed labels private message overwrite help help_all
    """,
}


class HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Shows the default of a flag only if it has one, and each flag once, with a short name of its value."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=INDENT, width=WIDTH)

    def _get_help_string(self, action: Any) -> str | None:
        # A flag without a value is off by default.
        hidden = action.default in (None, [], {}, "", SUPPRESS) or action.default is False
        return action.help if hidden else super()._get_help_string(action)

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        return " ".join((action.option_strings[-1 if action.dest == "help" else 0], *_value(action)))


def _value(action: Action) -> list[str]:
    """How the value of a flag is shown: [] for one without a value, otherwise the last word of its name.

    >>> from argparse import ArgumentParser
    >>> _value(ArgumentParser().add_argument("--train_file")), _value(ArgumentParser().add_argument("--x", nargs="+"))
    (['FILE'], ['X ...'])
    """
    if action.nargs in (0, "?"):
        return []
    name = str(action.metavar or action.dest.rsplit("_", 1)[-1].upper())
    return [f"{name} ..." if action.nargs in ("+", "*") else name]


def _number(value: Any) -> Any:
    """A text as a number if it is one, and anything else as it is.

    >>> _number("1e-3"), _number("fast"), _number(None)
    (0.001, 'fast', None)
    """
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


class CommandParser(HfArgumentParser):
    """A parser of dataclasses that suggests the flag that was probably meant. Flags cannot be abbreviated.

    Args:
        dataclass_types: As in Transformers.
        **kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: Any, **kwargs: Any) -> None:
        super().__init__(dataclass_types, formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)

    def refuse(self, unknown: Sequence[str], settings: Collection[str] = ()) -> None:
        """Exit with an error that names arguments that do not exist, and what was probably meant.

        Args:
            unknown: The arguments.
            settings: Names of settings that are no flags, but entries of `--method_config`.
        """
        flags = [argument.split("=")[0] for argument in unknown if argument.startswith("-")]
        known = [flag for action in self._actions for flag in action.option_strings]
        hints, misspelt = [], []
        for flag in flags:
            name = flag.removeprefix("--")
            if name in settings:
                hints.append(f"; {flag} is a setting of the method: pass --method_config '{{\"{name}\": ...}}'")
            elif OF_OTHER_COMMANDS.get(flag) in known:
                hints.append(f". Did you mean '{OF_OTHER_COMMANDS[flag]}'?")
            else:
                misspelt.append(flag)
        if not flags and "--validation_file" in known and any(map(os.path.isfile, unknown)):
            hints.append("; pass files with --validation_file")
        meant = "".join([*hints, did_you_mean(misspelt, known)])
        self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")

    def parse_dict(self, args: dict[str, Any], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """As in Transformers, but texts are numbers where a number is wanted: YAML reads 1e-3 as a text.

        Args:
            args: The settings of a file.
            allow_extra_keys: As in Transformers.
        """
        hints = {name: hint for each in self.dataclass_types for name, hint in get_type_hints(each).items()}
        return super().parse_dict(
            {name: _number(value) if hints.get(name) in NUMBERS else value for name, value in args.items()},
            allow_extra_keys,
        )

    def describe(self, texts: Mapping[str, str]) -> None:
        """Replace help texts, by the names of their flags."""
        for action in self._actions:
            action.help = texts.get(action.dest, action.help)

    def format_usage(self) -> str:
        """The required arguments in one line."""
        positionals = [action.dest if action.nargs != "*" else f"[{action.dest} ...]" for action in self._positional()]
        required = [
            " ".join((action.option_strings[0], *_value(action)))
            for action in self._actions
            if action.option_strings and action.required
        ]
        return f"usage: {' '.join([self.prog, *positionals, *required])} [--FLAG VALUE ...]\n"

    def format_help(self, everything: bool = False) -> str:
        """The help text.

        Args:
            everything: Also show the flags that are in none of the `GROUPS`. Default: False.
        """
        actions: dict[str, list[Action]] = {}
        for action in self._actions:
            if action.option_strings:
                actions.setdefault(action.dest, []).append(action)
        sections = {"Arguments": self._positional()}
        for title, names in GROUPS.items():
            sections[title] = [action for name in names.split() for action in actions.pop(name, [])[:1]]
        if everything:
            sections["Other flags"] = [action for several in actions.values() for action in several]
        formatter = self._get_formatter()
        for title, shown in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(shown)
            formatter.end_section()
        paragraphs = map(_filled, (self.description or "").strip().split("\n\n"))
        return "\n\n".join([self.format_usage().rstrip(), *paragraphs, formatter.format_help()])

    def _positional(self) -> list[Action]:
        return [action for action in self._actions if not action.option_strings]


class HelpAll(Action):
    """The flag `--help_all`: prints the help text with all flags."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, nargs=0, default=SUPPRESS)

    def __call__(self, parser: Any, *args: Any) -> None:
        """Print and exit."""
        print(parser.format_help(everything=True), end="")
        parser.exit()


def _filled(paragraph: str) -> str:
    """A paragraph in lines of the help text's width; one that is indented, as code is, stays as it is."""
    if paragraph.startswith("    "):
        return paragraph
    return textwrap.fill(" ".join(paragraph.split()), WIDTH, break_long_words=False, break_on_hyphens=False)
