"""`adaexit serve`, in process, on a tiny checkpoint: a server that is asked once and then stopped."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from helpers.tiny import build
from helpers.words import new_tokenizer
from starlette.testclient import TestClient

from adaexit_hf.cli import main as cli
from adaexit_hf.cli import serve as command

Ask = Callable[[TestClient], Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("serve") / "out"
    build("berxit", num_labels=2, exit_threshold=0.0).save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def ask(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start the command with flags, and give what a function gets from its server."""

    def call(question: Ask, *flags: str) -> Any:
        found: list[Any] = []

        def run(self: Any, sockets: list[socket.socket]) -> None:
            assert sockets[0].getsockname()[0] == "127.0.0.1"
            with TestClient(self.config.app) as client:
                found.append(question(client))

        monkeypatch.setattr(uvicorn.Server, "run", run)
        assert cli.main(["serve", checkpoint, "--port", "0", *flags]) == 0
        return found[0]

    return call


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(["serve", *arguments]) == 1
    return capsys.readouterr().err


def layer_of(client: TestClient, **fields: Any) -> int:
    answer = client.post("/predict", json={"inputs": "w5 w6", "return_exit_layer": True} | fields).json()
    return answer[0]["exit_layer"]


def test_the_checkpoint_is_served_at_its_threshold(ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(layer_of) == 1
    assert "/out on http://127.0.0.1:" in capsys.readouterr().err


def test_ctrl_c_is_the_way_to_stop_it_and_no_failure(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Any, sockets: list[socket.socket]) -> None:
        raise KeyboardInterrupt  # as uvicorn does, when all is answered

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert cli.main(["serve", checkpoint, "--port", "0"]) == 0
    assert "adaexit serve: stopped; what was under way is answered" in capsys.readouterr().err


def test_another_threshold_or_full_depth(ask: Any) -> None:
    assert ask(layer_of, "--exit_threshold", "1.0") == 3
    assert ask(layer_of, "--exit_threshold", "none") == 3


def test_the_flags_are_told_and_used(ask: Any) -> None:
    flags = [
        "--batch_tokens",
        "64",
        "--max_client_batch_size",
        "2",
        "--max_concurrent_texts",
        "7",
        "--refuse_long_texts",
    ]
    info = ask(lambda client: client.get("/info").json(), *flags, "--max_seq_length", "20")
    assert info["model_id"] == "out"
    assert info["max_batch_tokens"] == 64
    assert info["max_client_batch_size"] == 2
    assert info["max_concurrent_requests"] == 7
    assert info["max_input_length"] == 20
    assert info["auto_truncate"] is False
    assert ask(lambda client: layer_of(client, exit_threshold=1.0), "--allow_thresholds") == 3
    assert ask(lambda client: client.post("/predict", content=b"a" * 20).status_code, "--max_body_bytes", "10") == 413


def test_a_key_may_come_from_the_environment(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAEXIT_API_KEY", "secret")
    header = {"Authorization": "Bearer secret"}
    assert ask(lambda client: client.get("/info").status_code) == 401
    assert ask(lambda client: client.get("/info", headers=header).status_code) == 200


def test_threads_are_those_of_pytorch(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    ask(layer_of, "--threads", "3")
    assert chosen == [3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "port: got 70000; pass a number from 0 to 65535"),
        (["--max_body_bytes", "0"], "max_body_bytes: got 0"),
        (["--exit_threshold", "7", "--port", "0"], "exit_threshold: got 7.0"),
        (["--precision", "int8", "--port", "0"], "precision: got 'int8' without --runtime onnx"),
        (["--runtime", "onnx", "--port", "0"], "out' has no exported model; call adaexit export"),
    ],
)
def test_bad_flags_are_refused(
    checkpoint: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, checkpoint, *flags)
    assert message in told and "name_or_path" not in told  # the argument is called checkpoint here


def test_a_port_that_is_taken_is_named(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port: cannot listen on 127.0.0.1:{port}" in refused(capsys, checkpoint, "--port", port)


def test_the_exported_model_is_served_with_its_own_threshold(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it gives is tested in tests/onnx_runtime; here, which arguments the engine gets."""
    made: list[Any] = []

    class Classifier:
        facts = {"max_tokens": 32}
        threads, precision = 2, "int8"

    config = build("berxit", num_labels=2, exit_threshold=0.3).config
    exported = command.ExportedModel(Classifier(), config)
    monkeypatch.setattr(command, "load_runtime", lambda *_: (exported, None))
    monkeypatch.setattr(command, "EarlyExitEngine", lambda *args, **options: made.append((args, options)))
    options = command.ServeOptions(runtime="onnx", threads=3, max_concurrent_texts=5)
    _, _, precision, _ = command.started(checkpoint, options)
    assert precision == "int8"
    assert made == [((exported.classifier,), {"exit_threshold": 0.3, "early_exit": None, "max_texts": 5})]
    assert exported.classifier.threads == 3
    for name, value in (("max_seq_length", 16), ("batch_tokens", 64)):
        with pytest.raises(ValueError, match=f"^{name}: got {value}"):
            command.started(checkpoint, command.ServeOptions(**{"runtime": "onnx", name: value}))


def test_shadow_needs_a_certificate(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = "shadow: no certificate holds for what is served"
    assert message in refused(capsys, checkpoint, "--port", "0", "--shadow", "1%")


def test_shadow_watches_the_certificate(checkpoint: str, ask: Any, tmp_path: Any) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"w5 w{4 + word}\n" for word in range(40)))
    flags = ["--file", str(tmp_path / "texts.txt"), "--changed_answers", "90%"]
    try:
        assert cli.main(["certify", checkpoint, *flags]) == 0

        def question(client: TestClient) -> dict[str, Any]:
            return client.get("/info").json()["early_exit"]["certificate"]

        found = ask(question, "--shadow", "1%")
        assert ask(question, "--exit_threshold", "0.9999") is None  # about which nothing was promised
    finally:
        (Path(checkpoint) / "certificate.json").unlink(missing_ok=True)
    assert found["guarantees"] == ["changed_answers <= 0.9"] and found["alarm"] is False
