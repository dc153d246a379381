"""What `adaexit COMMAND --help` prints, in files, since a parser with Transformers' flags takes seconds to make.

`python -m adaexit_hf.cli.help` writes the files anew, after a change of flags.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def help_text(command: str) -> str:
    """The help text of a command, which ends with a newline."""
    return (FOLDER / f"{command}.txt").read_text(encoding="utf-8")
