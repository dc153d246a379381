"""Two processes give what one process gives at the same global batch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.run
from helpers.distributed_worker import CASES, FILED, SETTINGS
from helpers.fresh import run_ranks, run_script, told
from helpers.runs import METHODS, largest_difference, new_model, new_trainer, run, texts, weights
from safetensors.torch import load_file

Outcome = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Folder and results of the worker; one launch for all cases, since importing torch takes most of its time."""
    folder = tmp_path_factory.mktemp("distributed")
    assert run_ranks("distributed_worker", folder) == [0, 0]  # what went wrong is on stderr
    results = folder / "results.json"
    return folder, json.loads(results.read_text())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("single")
    return {method: run(method, folder / method, **SETTINGS) for method in METHODS}


def test_the_processes_were_told_what_torchrun_tells(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "helpers" / "say_environment.py"
    launch = ["--nnodes", "1", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    run_script(Path(torch.distributed.run.__file__), *launch, str(script), str(tmp_path))
    for rank in range(2):
        environment = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told(rank, 2, int(environment["MASTER_PORT"])).items() <= environment.items()


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
