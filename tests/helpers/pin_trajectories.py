"""Write `trajectories.json`, the losses of 20 steps per stage and method. A change of it needs a reason in its commit.

python tests/helpers/pin_trajectories.py
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # it runs as a script
from helpers.runs import METHODS, run

if __name__ == "__main__":
    torch.set_num_threads(1)
    pinned = {}
    for method in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            _, logs = run(method, Path(folder), max_steps=20)
        pinned[method] = [round(log["loss"], 6) for log in logs if "loss" in log]
    (Path(__file__).parents[1] / "trainer" / "trajectories.json").write_text(json.dumps(pinned, indent=1) + "\n")
