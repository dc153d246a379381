"""Writes the help texts of all commands into this folder."""

from ..main import COMMANDS, parser_of
from . import FOLDER

if __name__ == "__main__":
    for command in COMMANDS:
        (FOLDER / f"{command}.txt").write_text(parser_of(command).format_help(), encoding="utf-8")
