"""The argument parser of the commands: helpful messages for flags that do not exist, and help texts."""

from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser

from ..utils.spelling import did_you_mean


class HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Shows the default of a flag only if it has one."""

    def _get_help_string(self, action: Any) -> str | None:
        return action.help if action.default in (None, [], {}, "") else super()._get_help_string(action)


class CommandParser(HfArgumentParser):
    """A parser of dataclasses that suggests the flag that was probably meant.

    Args:
        dataclass_types: As in Transformers.
        **kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: Any, **kwargs: Any) -> None:
        super().__init__(dataclass_types, formatter_class=HelpFormatter, **kwargs)

    def refuse(self, unknown: Sequence[str]) -> None:
        """Exit with an error that names arguments that do not exist, and what was probably meant."""
        flags = [argument.split("=")[0] for argument in unknown if argument.startswith("-")]
        known = [flag for action in self._actions for flag in action.option_strings]
        self.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(flags, known)}")

    def show_first(self, names: Sequence[str], hide: Sequence[str] = ()) -> None:
        """Order the flags in the help text.

        Args:
            names: Names of the flags to show first, in this order.
            hide: Names of flags to leave out of the help text.
        """
        rank = {name: place for place, name in enumerate(names)}
        for group in self._action_groups:
            group._group_actions.sort(key=lambda action: rank.get(action.dest, len(rank)))
        self._actions.sort(key=lambda action: rank.get(action.dest, len(rank)))
        for action in self._actions:
            if action.dest in hide:
                action.help = SUPPRESS
