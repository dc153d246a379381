"""Records of a benchmark: the machine, the commit, and JSON lines files to which later runs can append."""

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
    """CPU, device, threads and library versions; a measurement is reused only if all of these are the same."""
    cpu_info = Path("/proc/cpuinfo")
    text = cpu_info.read_text() if cpu_info.exists() else ""
    cpu_name = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return {
        "cpu": cpu_name[1] if cpu_name else platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def commit() -> str | None:
    """The git commit of this package's source, with "+" if files have changed since; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def read_lines(path: Path) -> list[Record]:
    """Read a file of JSON lines; an empty list if there is no file.

    An incomplete last line, from a run that was stopped while writing, is removed from the file, so that later records
    can be appended.

    Raises:
        ValueError: Any other line is not JSON.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        content = content[: content.rfind(b"\n") + 1]
        with path.open("r+b") as file:
            file.truncate(len(content))
    records = []
    for number, line in enumerate(content.decode().splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"output: line {number} of '{path}' is not JSON; repair it or pass another file"
            ) from error
    return records


def find_record(records: Sequence[Record], settings: Record) -> Record | None:
    """The first record that was measured with these settings, or None.

    >>> records = [{"batch_size": 8, "eta": 0.9}]
    >>> find_record(records, {"batch_size": 8}), find_record(records, {"batch_size": 1})
    ({'batch_size': 8, 'eta': 0.9}, None)
    """
    return next((record for record in records if settings.items() <= record.items()), None)
