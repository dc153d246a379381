"""The example with Ray Serve: two replicas on a local Ray, behind the interface of `adaexit serve`."""

import importlib
import runpy
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from helpers.predictions import exiting
from helpers.serving import SOON
from helpers.words import new_tokenizer
from starlette.testclient import TestClient

from adaexit_hf import predict

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ray") / "out"
    exiting("berxit", num_labels=2).save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def port(checkpoint: str) -> Iterator[int]:
    """Started before `no_network` guards a test: Ray asks the system for the machine's address."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -c constraints.txt -e .[ray,serve]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydantic, about Ray
        from ray import serve

    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as free:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(EXAMPLES))  # replicas find the module; a command sends it along
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token is left in the home folder
        number = free.getsockname()[1]
        free.close()
        ray.init(
            num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
        serve.start(http_options={"host": "127.0.0.1", "port": number})
        example = importlib.import_module("serve_ray")
        settings = example.Settings(checkpoint=checkpoint, min_replicas=2, max_replicas=2)
        serve.run(example.app(settings), name="adaexit")
        yield number
        serve.shutdown()
        ray.shutdown()


def test_two_replicas_give_the_answers_of_predict(port: int, checkpoint: str) -> None:
    model, tokenizer = exiting("berxit", num_labels=2), new_tokenizer()
    texts = [f"w{4 + place} w{9 + place}" for place in range(12)]
    expected = predict(model, texts, tokenizer, progress=False)
    for text, scores, layer in zip(texts, expected.logits.softmax(-1), expected.exit_layer.tolist(), strict=True):
        body = {"inputs": text, "return_exit_layer": True}
        found = httpx.post(f"http://127.0.0.1:{port}/predict", json=body, timeout=SOON).json()
        assert max(each["score"] for each in found) == pytest.approx(scores.max().item(), abs=1e-5)
        assert {each["exit_layer"] for each in found} == {layer}
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=SOON).text
    (line,) = [line for line in metrics.splitlines() if line.startswith("adaexit_texts_answered_total")]
    answered = float(line.split()[1])
    assert 0 < answered < len(texts)  # of one replica; the other one has answered, too


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--min_replicas", "3", "--max_replicas", "2"],
            "max_replicas: got 2, fewer than min_replicas 3; pass at least",
        ),
        (["--cpus_per_replica", "half"], "cpus_per_replica"),
        (["--exit_threshold", "high"], "exit_threshold: got 'high'; pass a number"),
        (["--exit_threshold", "7"], "exit_threshold: got 7.0"),
    ],
)
def test_bad_settings_are_refused_before_ray_starts(
    checkpoint: str,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=object()))
    main: Any = runpy.run_path(str(EXAMPLES / "serve_ray.py"))["main"]
    with pytest.raises(SystemExit):
        main(["--checkpoint", checkpoint, *flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("threshold", "layers"), [("0.0", {1}), ("none", {3})])
def test_a_replica_serves_at_the_threshold_that_is_set(
    checkpoint: str, threshold: str, layers: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    fake = SimpleNamespace(ingress=lambda build: built.append(build) or (lambda kind: kind), deployment=MagicMock())
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=fake))
    monkeypatch.setenv("ADAEXIT_API_KEY", "secret")
    example = runpy.run_path(str(EXAMPLES / "serve_ray.py"))
    example["app"](example["Settings"](checkpoint=checkpoint, exit_threshold=threshold))
    monkeypatch.delenv("ADAEXIT_API_KEY")  # as on another machine
    with TestClient(built[0]()) as client:
        body = {"inputs": "w5 w6", "return_exit_layer": True}
        assert client.post("/predict", json=body).status_code == 401
        answer = client.post("/predict", json=body, headers={"Authorization": "Bearer secret"}).json()
    assert {each["exit_layer"] for each in answer} == layers


def test_without_ray_there_is_help_and_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    main: Any = runpy.run_path(str(EXAMPLES / "serve_ray.py"))["main"]
    for arguments in (["--help"], ["--checkpoint", "out"]):
        with pytest.raises(SystemExit):
            main(arguments)
    printed = capsys.readouterr()
    assert "requests_per_replica" in printed.out
    assert "ray: not installed; run pip install adaexit_hf[ray,serve]" in printed.err
