"""Two processes give what one process gives at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.distributed_worker import CASES, FILED, SETTINGS
from helpers.runs import METHODS, largest_difference, new_model, new_trainer, run, texts, weights
from safetensors.torch import load_file

Outcome = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Folder and results of the worker; one launch for all cases, since importing torch takes most of its time."""
    folder = tmp_path_factory.mktemp("distributed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    worker = Path(__file__).parents[1] / "helpers" / "distributed_worker.py"
    finished = subprocess.run(
        [*launch, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(worker), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    results = folder / "results.json"
    assert results.exists(), finished.stderr[-3000:]
    return folder, json.loads(results.read_text())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("single")
    return {method: run(method, folder / method, **SETTINGS) for method in METHODS}


def test_there_are_two_processes(outcome: Outcome) -> None:
    assert {outcome[1][case]["processes"] for case in CASES} == {2}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_weights_of_one(case: str, outcome: Outcome, one_process: dict[str, Any]) -> None:
    model, _ = one_process[CASES[case][0]]
    # Rounding: 1.4e-6 on a CPU without AVX-512. Gradients of half the size would differ by 7e-3 or more.
    assert largest_difference(weights(model), load_file(outcome[0] / f"{case}.safetensors")) < 3e-6


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_have_the_same_weights(case: str, outcome: Outcome) -> None:
    assert outcome[1][case]["ranks agree"]


@pytest.mark.parametrize("case", CASES)
def test_logged_losses_are_the_global_means(case: str, outcome: Outcome, one_process: dict[str, Any]) -> None:
    _, logs = one_process[CASES[case][0]]
    for log, same in zip(logs, outcome[1][case]["logs"], strict=True):
        losses = {name: value for name, value in log.items() if name == "loss" or name.startswith("exit_")}
        assert {name: same[name] for name in losses} == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("case", ["resumed berxit", "resumed deebert"])
def test_two_processes_resume_bit_for_bit(case: str, outcome: Outcome) -> None:
    assert outcome[1][case] == {"ranks agree": True, "difference": 0.0}


@pytest.mark.parametrize("method", FILED)
def test_two_processes_share_a_frozen_encoder_and_its_file(method: str, outcome: Outcome, tmp_path: Path) -> None:
    found = outcome[1][f"filed {method}"]
    assert sum(found["rows"]) == len(texts()) and min(found["rows"]) > 0
    assert found["ranks agree"] and found["files"] and not found["left"]
    model = new_model(method)
    new_trainer(model, tmp_path, **SETTINGS).train(stage=model.stages[-1].name)
    assert largest_difference(weights(model), load_file(outcome[0] / f"filed-{method}.safetensors")) < 1e-6
