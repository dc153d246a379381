"""Measure what the first answer costs in a new process: time and memory, with PyTorch and without."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..onnx_runtime import folder as exported
from .records import Record

PACKAGE = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("first_answer.py")


def measure_start_up(
    checkpoint: str,
    folder: Path,
    stock: Mapping[str, Path],
    text: Any,
    threads: int,
    thresholds: Mapping[str, float | None],
    revision: str | None = None,
    rounds: int = 3,
) -> Record:
    """Start a process that imports what it needs, loads the model and answers one text, in every way, in turn.

    The exported model is run by a copy of `adaexit_hf.onnx_runtime` under the name of its own distribution,
    `adaexit_onnx`, so that PyTorch is not imported.

    Args:
        checkpoint: The checkpoint.
        folder: Folder with its exported model.
        stock: Graphs of the classifier without exits, from `export_stock`.
        text: A text, or two.
        threads: Number of threads.
        thresholds: Threshold of each way to exit early that is measured, by the names "exits torch",
            "exits onnx fp32" and "exits onnx int8"; None for the one that is saved.
        revision: Branch, tag or commit of the checkpoint on the Hub.
        rounds: Number of processes of each kind.

    Returns:
        By name of the run `cpu_seconds` and `wall_seconds` until the first answer, the medians, and `peak_memory`, the
        largest resident memory in bytes.

    Raises:
        RuntimeError: A process failed.
    """
    common = {"text": text, "threads": threads, "exit_threshold": None}
    kinds: dict[str, Record] = {}
    for name, threshold in thresholds.items():
        kind = common | {"exit_threshold": threshold}
        if name == "exits torch":
            kinds[name] = kind | {"kind": "torch", "path": checkpoint, "revision": revision}
        else:
            kinds[name] = kind | {"kind": "exits onnx", "path": str(folder), "precision": name.split()[-1]}
    for precision in exported.PRECISIONS:
        graph = {"kind": "stock onnx", "path": str(stock[precision]), "tokenizer": str(folder / exported.TOKENIZER)}
        kinds[f"stock onnx {precision}"] = common | graph
    found: dict[str, list[Record]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as packages:
        shutil.copytree(PACKAGE / "adaexit_hf" / "onnx_runtime", Path(packages, "adaexit_onnx"))
        for _ in range(rounds):
            for name, kind in kinds.items():
                path = str(PACKAGE) if kind["kind"] == "torch" else packages
                found[name].append(_first_answer(name, kind, path))
    middle, names = statistics.median, ("cpu_seconds", "wall_seconds", "peak_memory")
    return {name: {key: middle(each[key] for each in found[name]) for key in names} for name in kinds}


def _first_answer(name: str, arguments: Record, path: str) -> Record:
    """Run the script once.

    Raises:
        RuntimeError: It failed, or has imported PyTorch without need.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments["threads"])}
    command = [sys.executable, str(SCRIPT), str(time.time()), json.dumps(arguments), path]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if process.returncode:
        raise RuntimeError(f"start-up of {name}: the process failed\n{process.stderr[-2000:]}")
    found: Record = json.loads(process.stdout.splitlines()[-1])
    if found.pop("torch") != (arguments["kind"] == "torch"):
        raise RuntimeError(f"start-up of {name}: PyTorch was imported, so this is not what the runtime needs")
    return found
