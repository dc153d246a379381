"""Two processes share the texts and both get all answers, in order."""

import json
from typing import Any

import pytest
import torch
from helpers.fresh import run_ranks
from helpers.predict_worker import THRESHOLD
from helpers.predictions import rows_of, silent
from helpers.tiny import build


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("predicted")
    assert run_ranks("predict_worker", folder) == [0, 0]  # what went wrong is on stderr
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def test_both_have_all_answers_in_order(outcomes: list[dict[str, Any]]) -> None:
    alone = silent(build("deebert"), rows_of(), exit_threshold=THRESHOLD)
    for outcome in outcomes:
        torch.testing.assert_close(torch.tensor(outcome["logits"]), alone.logits, atol=1e-5, rtol=1e-5)
        assert outcome["exit_layer"] == alone.exit_layer.tolist()


def test_a_process_may_have_no_text(outcomes: list[dict[str, Any]]) -> None:
    assert [len(outcome["few"]) for outcome in outcomes] == [1, 1]


def test_a_stream_gives_each_process_its_share(outcomes: list[dict[str, Any]]) -> None:
    assert [outcome["share"] for outcome in outcomes] == [[0, 2, 4], [1, 3]]


def test_an_error_in_one_process_reaches_the_other(outcomes: list[dict[str, Any]]) -> None:
    error = "ValueError: dataset: item 4 has no tokens"
    assert outcomes[0]["bad_row"].startswith(error)
    assert outcomes[1]["bad_row"].startswith(f"RuntimeError: predict: process 0 raised {error}")


def test_an_error_that_cannot_be_pickled_reaches_the_other(outcomes: list[dict[str, Any]]) -> None:
    assert outcomes[0]["broken_model"] == "LocalError: weights lost"
    assert outcomes[1]["broken_model"] == "RuntimeError: predict: process 0 raised LocalError: weights lost"
