"""The HTTP server: what clients of text-embeddings-inference send and expect, and what no client should."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx
import pytest
import serving as benchmark
from helpers.predictions import exiting
from helpers.serving import SOON, Gated, served
from helpers.tiny import build
from helpers.words import new_tokenizer
from huggingface_hub import InferenceClient, constants
from starlette.testclient import TestClient

from adaexit_hf import predict
from adaexit_hf.serving import EarlyExitEngine
from adaexit_hf.serving.server import ServerSettings, create_app

TEXTS = [" ".join(f"w{4 + (7 * place + word) % 60}" for word in range(1 + place % 12)) for place in range(30)]


class Served(NamedTuple):
    """A server of a classifier, and how to reach it."""

    model: Any
    tokenizer: Any
    engine: EarlyExitEngine
    port: int

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{self.port}{path}", json=fields, timeout=SOON)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=SOON)

    def expected(self, items: list[Any], **options: Any) -> list[dict[str, float]]:
        """Probabilities by label, of `predict`."""
        found = predict(self.model, items, self.tokenizer, progress=False, **options)
        names = self.model.config.id2label
        return [
            {names[label]: score for label, score in enumerate(row)} for row in found.logits.softmax(dim=-1).tolist()
        ]


def start(model: Any, **settings: Any) -> Iterator[Served]:
    tokenizer = new_tokenizer()
    engine = EarlyExitEngine(model, tokenizer)
    with served(engine, model.config, **settings) as port:
        yield Served(model, tokenizer, engine, port)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's clients refuse any address in offline mode, also one on loopback."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    yield from start(exiting("berxit", num_labels=2), max_body_bytes=100_000, body_seconds=0.3, allow_thresholds=True)


@pytest.fixture(scope="module")
def reranker() -> Iterator[Served]:
    yield from start(build("berxit-regression", exit_threshold=0.5))


def scores(answer: list[dict[str, Any]]) -> dict[str, float]:
    assert [each["score"] for each in answer] == sorted((each["score"] for each in answer), reverse=True)
    return {each["label"]: each["score"] for each in answer}


# What clients send and expect ----------------------------------------------------------------------------------------


def test_a_text_gets_the_score_of_every_label(server: Served) -> None:
    response = server.post("/predict", inputs="w5 w6")
    assert response.status_code == 200
    assert all(each.keys() == {"label", "score"} for each in response.json())
    assert scores(response.json()) == pytest.approx(server.expected(["w5 w6"])[0], abs=1e-5)


def test_a_batch_gets_a_list_for_each_text(server: Served) -> None:
    items: list[Any] = ["w5", ("w6 w7", "w8"), "w9"]
    answers = server.post("/predict", inputs=[["w5"], ["w6 w7", "w8"], ["w9"]]).json()
    for answer, expected in zip(answers, server.expected(items), strict=True):
        assert scores(answer) == pytest.approx(expected, abs=1e-5)


def test_a_list_of_two_texts_is_a_pair(server: Served) -> None:
    answer = server.post("/predict", inputs=["w5", "w6"]).json()
    assert scores(answer) == pytest.approx(server.expected([("w5", "w6")])[0], abs=1e-5)


def test_raw_scores_are_logits(server: Served) -> None:
    answer = server.post("/predict", inputs="w5", raw_scores=True).json()
    logits = predict(server.model, ["w5"], server.tokenizer, progress=False).logits[0]
    assert scores(answer) == pytest.approx(dict(zip(("LABEL_0", "LABEL_1"), logits.tolist(), strict=True)), abs=1e-5)


@pytest.mark.parametrize(("direction", "kept"), [("Left", slice(-30, None)), ("right", slice(30))])
def test_texts_that_are_too_long_are_cut_in_the_direction_that_is_asked_for(
    server: Served, direction: str, kept: slice
) -> None:
    words = [f"w{4 + place % 50}" for place in range(100)]
    answer = server.post("/predict", inputs=" ".join(words), truncation_direction=direction).json()
    assert scores(answer) == pytest.approx(server.expected([" ".join(words[kept])])[0], abs=1e-5)


@pytest.mark.usefixtures("online")
def test_the_clients_of_the_hub_need_no_change(server: Served) -> None:
    for path in ("", "/predict"):
        client = InferenceClient(f"http://127.0.0.1:{server.port}{path}")
        answer = client.text_classification("w5 w6")
        found = {each.label: each.score for each in answer}
        assert found == pytest.approx(server.expected(["w5 w6"])[0], abs=1e-5)
        (best,) = client.text_classification("w5 w6", top_k=1)
        assert best == answer[0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Served) -> None:
    command = ["curl", "--silent", f"http://127.0.0.1:{server.port}/predict", "--data", '{"inputs": "w5"}']
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=SOON).stdout)
    assert scores(answer) == pytest.approx(server.expected(["w5"])[0], abs=1e-5)


def test_several_labels_at_once_have_independent_probabilities() -> None:
    model = build("berxit", problem_type="multi_label_classification")
    for server in start(model):
        answer = server.post("/predict", inputs="w5").json()
        logits = predict(model, ["w5"], server.tokenizer, progress=False).logits[0]
        assert sorted(scores(answer).values()) == pytest.approx(sorted(logits.sigmoid().tolist()), abs=1e-5)


# The requests of LlamaIndex, Haystack, and with all fields of the description.
@pytest.mark.parametrize(
    "fields",
    [
        {"raw_scores": False, "return_text": False, "truncate": True},
        {"raw_scores": False, "truncate": True, "truncation_direction": "Right"},
        {"raw_scores": True, "return_text": True, "truncate": None, "model": "ignored"},
    ],
)
def test_a_reranker_orders_texts_by_their_score_for_the_query(reranker: Served, fields: dict[str, Any]) -> None:
    texts = TEXTS[:9]
    ranks = reranker.post("/rerank", query="w5 w6", texts=texts, **fields).json()
    pairs = [("w5 w6", text) for text in texts]
    logits = predict(reranker.model, pairs, reranker.tokenizer, progress=False).logits[:, 0]
    expected = (logits if fields["raw_scores"] else logits.sigmoid()).tolist()
    assert {rank["index"]: rank["score"] for rank in ranks} == pytest.approx(dict(enumerate(expected)), abs=1e-5)
    assert [rank["score"] for rank in ranks] == sorted((rank["score"] for rank in ranks), reverse=True)
    for rank in ranks:
        assert rank.get("text") == (texts[rank["index"]] if fields.get("return_text") else None)


def test_the_root_of_a_reranker_reranks(reranker: Served) -> None:
    assert reranker.post("/", query="w5", texts=["w6"]).json()[0].keys() == {"index", "score"}


def test_exit_layers_are_told_to_those_who_ask(server: Served) -> None:
    answers = server.post("/predict", inputs=[[text] for text in TEXTS], return_exit_layer=True).json()
    expected = predict(server.model, TEXTS, server.tokenizer, progress=False).exit_layer.tolist()
    assert [[each["exit_layer"] for each in answer] for answer in answers] == [[layer] * 2 for layer in expected]
    assert len(set(expected)) > 1


def test_a_request_may_bring_a_threshold_where_that_is_allowed(server: Served, reranker: Served) -> None:
    for threshold, layer in ((0.0, 1), (1.0, 3), ([1.0, 0.0, 1.0], 2)):
        answer = server.post("/predict", inputs="w5", exit_threshold=threshold, return_exit_layer=True).json()
        assert answer[0]["exit_layer"] == layer
    response = server.post("/predict", inputs="w5", exit_threshold=2.0)
    assert (response.status_code, response.json()["error_type"]) == (422, "Validation")
    assert response.json()["error"] == "exit_threshold: got 2.0; berxit with 2 labels takes a number in [0, 1]"
    response = reranker.post("/rerank", query="w5", texts=["w6"], exit_threshold=0.5)
    assert response.status_code == 422
    assert response.json()["error"] == (
        "exit_threshold: is not allowed by this server; start it with --allow_thresholds"
    )


def test_a_deadline_that_has_passed_is_told(server: Served) -> None:
    fields = {"inputs": "w5", "exit_threshold": 1.0, "return_exit_layer": True}
    late, in_time = (server.post("/predict", deadline_ms=ms, **fields).json()[0] for ms in (0, 60_000))
    assert (late["exit_layer"], late["deadline_passed"]) == (1, True)
    assert (in_time["exit_layer"], in_time["deadline_passed"]) == (3, False)


def test_info(server: Served) -> None:
    info = server.get("/info").json()
    assert info["model_id"] == "tiny"
    assert info["model_dtype"] == "float32"
    assert info["model_type"]["classifier"]["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    assert info["max_input_length"] == 32
    assert info["early_exit"] == {
        "method": "berxit",
        "exit_layers": [1, 2, 3],
        "exit_criterion": "confidence",
        "exit_threshold": server.model.config.exit_threshold,
        "allow_thresholds": True,
        "certificate": None,
    }


def test_metrics_count_exits_and_requests(server: Served) -> None:
    server.post("/predict", inputs="w5", exit_threshold=0.0)
    text = server.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    found = server.engine.statistics()
    assert float(values['adaexit_exit_layer_bucket{le="1.0"}']) == found.exits[1] > 0
    assert float(values["adaexit_exit_layer_count"]) == found.answered
    assert float(values["adaexit_exit_layer_sum"]) == sum(layer * count for layer, count in found.exits.items())
    assert values['adaexit_waiting_texts{layers="2"}'] == "0.0"
    assert float(values['adaexit_requests_total{path="/predict",status="200"}']) > 0
    assert float(values["te_request_duration_count"]) > 0


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b"", 422, "Validation", "body: Invalid JSON"),
        (b"\xff\xfe", 422, "Validation", "body: Invalid JSON"),
        (b"[]", 422, "Validation", "body: Input should be an object"),
        (b"{}", 422, "Validation", "inputs: Field required"),
        (b'{"inputs": 3}', 422, "Validation", "inputs: got 3; pass a text, a pair of texts"),
        (b'{"inputs": ["a", "b", "c"]}', 422, "Validation", "inputs: got ['a', 'b', 'c']; pass"),
        (b'{"inputs": [["a", 3]]}', 422, "Validation", "inputs: got ['a', 3]; pass"),
        (b'{"inputs": "\\ud800"}', 422, "Validation", "body: Invalid JSON"),
        (b'{"inputs": "a", "truncate": "yes"}', 422, "Validation", "truncate: Input should be a valid boolean"),
        (b'{"inputs": "a", "truncation_direction": "Up"}', 422, "Validation", "truncation_direction: Input should be"),
        (b'{"inputs": "a", "deadline_ms": -1}', 422, "Validation", "deadline_ms: Input should be greater"),
        (b'{"inputs": []}', 400, "Empty", "batch is empty"),
        (json.dumps({"inputs": [["a"]] * 33}).encode(), 413, "Validation", "batch size 33 is more than 32"),
        (b'{"inputs": "' + b"w5 " * 40 + b'", "truncate": false}', 413, "Validation", "text: has more than 32 tokens"),
        (b"[" * 90_000, 422, "Validation", "body: Invalid JSON"),
    ],
)
def test_bad_requests_say_what_is_wrong(server: Served, body: bytes, status: int, kind: str, message: str) -> None:
    response = httpx.post(f"http://127.0.0.1:{server.port}/predict", content=body, timeout=SOON)
    assert response.status_code == status
    assert response.json()["error_type"] == kind
    assert response.json()["error"].startswith(message)


def test_a_body_that_is_too_large_is_refused(server: Served) -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b"a" * 10_000] * 11

    response = httpx.post(f"http://127.0.0.1:{server.port}/predict", content=chunks(), timeout=SOON)
    assert response.status_code == 413
    assert response.json() == {
        "error": "the body has more than 100000 bytes, the most allowed",
        "error_type": "Validation",
    }


def test_a_body_that_does_not_come_is_not_waited_for(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=SOON) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_classifier_does_not_rerank(server: Served) -> None:
    response = server.post("/rerank", query="w5", texts=["w6"])
    assert (response.status_code, response.json()["error_type"]) == (424, "Backend")


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/predict", 405)])
def test_other_paths_and_methods_are_errors_of_the_same_form(server: Served, path: str, status: int) -> None:
    response = server.get(path)
    assert (response.status_code, response.json()["error_type"]) == (status, "Validation")


def test_scores_that_are_not_finite_are_an_error_of_the_model() -> None:
    model = build("berxit")
    model.encoder.embeddings.word_embeddings.weight.data[63] = float("nan")
    for server in start(model):
        response = server.post("/predict", inputs=[["w5"], ["w63"]])
        assert (response.status_code, response.json()["error_type"]) == (424, "Backend")
        assert server.post("/predict", inputs="w5").status_code == 200


@pytest.mark.usefixtures("online")
def test_only_those_with_the_key_are_answered() -> None:
    for server in start(build("berxit"), api_key="secret"):
        url, body = f"http://127.0.0.1:{server.port}", {"inputs": "w5"}
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            assert httpx.post(f"{url}/predict", json=body, headers=header).status_code == 401
        assert httpx.post(f"{url}/predict", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert InferenceClient(url, token="secret").text_classification("w5")
        assert httpx.get(f"{url}/info").status_code == 401
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_list_of_two_texts_is_no_batch_and_the_error_shows_one() -> None:
    for server in start(build("berxit", num_labels=2, pairs=False)):
        response = server.post("/predict", inputs=["w5", "w6"])
        assert (response.status_code, response.json()["error_type"]) == (422, "Validation")
        assert 'pass a batch as [["..."], ["..."]]' in response.json()["error"]


def test_the_code_of_an_older_checkpoint_knows_no_pairs() -> None:
    model = build("berxit", num_labels=2)
    old = SimpleNamespace(id2label=model.config.id2label, num_labels=2, multi_label=False)
    with served(EarlyExitEngine(model, new_tokenizer()), old) as port:
        body = {"inputs": ["w5", "w6"]}
        assert httpx.post(f"http://127.0.0.1:{port}/predict", json=body, timeout=SOON).status_code == 200


# Coming and going, with steps that wait until they are let go --------------------------------------------------------


@pytest.fixture
def held() -> Iterator[tuple[int, EarlyExitEngine, Gated]]:
    backend = Gated()
    backend.read = lambda item, side, read=backend.read: read({"name": item, "leaves": 3})  # type: ignore[method-assign]
    engine = EarlyExitEngine(backend, max_texts=2)
    with served(engine, build("berxit", num_labels=2).config) as port:
        yield port, engine, backend
        backend.let_go()


def until(condition: Any) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_server_says_so_and_keeps_nothing_of_the_request(held: tuple[int, EarlyExitEngine, Gated]) -> None:
    port, engine, _ = held
    response = httpx.post(f"http://127.0.0.1:{port}/predict", json={"inputs": [["a"]] * 3}, timeout=SOON)
    assert (response.status_code, response.json()["error_type"]) == (429, "Overloaded")
    until(lambda: engine.statistics().inside == 0)


def test_a_client_that_goes_away_is_not_worked_for(held: tuple[int, EarlyExitEngine, Gated]) -> None:
    port, engine, backend = held
    body = b'{"inputs": "a"}'
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert backend.began.acquire(timeout=SOON)
    until(lambda: engine.statistics().cancelled == 1)
    backend.let_go()
    until(lambda: engine.statistics().inside == 0)
    assert backend.steps == [(1, ["a"])]


def test_health_is_that_of_the_engine() -> None:
    model = build("berxit")
    engine = EarlyExitEngine(model)
    with TestClient(create_app(engine, model.config, ServerSettings(model_id="", precision=""))) as client:
        assert client.get("/health").status_code == 200
        engine.close()
        response = client.get("/health")
        assert (response.status_code, response.json()) == (503, {"error": "unhealthy", "error_type": "Unhealthy"})
        assert client.post("/predict", json={"inputs": "a"}).status_code == 503


def test_the_engine_is_closed_with_the_server() -> None:
    model = build("berxit")
    engine = EarlyExitEngine(model)
    with TestClient(create_app(engine, model.config, ServerSettings(model_id="", precision=""))):
        assert engine.alive
    assert not engine.alive


def test_nothing_is_lost_and_nothing_mixed_up_under_load(server: Served) -> None:
    answers = predict(server.model, TEXTS, server.tokenizer, progress=False)
    labels = list(server.model.config.id2label.values())
    found = benchmark.load_test(server.port, TEXTS, answers, labels, range(300))
    assert found["messages"] == []
    assert found["sent"].keys() == {kind for kind, _ in benchmark.KINDS}
    until(lambda: server.engine.statistics().inside == 0)
