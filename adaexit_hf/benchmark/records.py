"""Records of a benchmark: the machine, the commit, and files of JSON lines that can be continued."""

import json
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

Record = dict[str, Any]


def machine(device: str) -> Record:
    """What ran the benchmark; a cell that was measured elsewhere is another cell."""
    facts = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", facts.read_text(), flags=re.MULTILINE) if facts.exists() else None
    return {
        "cpu": named[1] if named else platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def commit() -> str | None:
    """The commit of this package's sources, if they are in a repository; "+" where files were changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def read_lines(path: Path) -> list[Record]:
    """Records of a file of JSON lines. A last line that was not finished is cut off, so that one can append.

    Raises:
        ValueError: another line that is no JSON.
    """
    if not path.exists():
        return []
    whole = path.read_bytes()
    if whole and not whole.endswith(b"\n"):
        whole = whole[: whole.rfind(b"\n") + 1]
        with path.open("r+b") as file:
            file.truncate(len(whole))
    records = []
    for number, line in enumerate(whole.decode().splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"output: line {number} of '{path}' is no JSON; repair it or pass another") from error
    return records


def known(records: Sequence[Record], settings: Record) -> Record | None:
    """The record that was measured with the same settings, if there is one.

    >>> known([{"batch_size": 8, "eta": 0.9}], {"batch_size": 8}), known([{"batch_size": 8}], {"batch_size": 1})
    ({'batch_size': 8, 'eta': 0.9}, None)
    """
    return next((each for each in records if settings.items() <= each.items()), None)
