"""A sample of the traffic runs at full depth, too, and watches the certificate."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest
from helpers.predictions import exiting
from helpers.words import new_tokenizer
from starlette.testclient import TestClient

from adaexit_hf import Certificate, Guarantee, SealedCertificate, predict
from adaexit_hf.serving import EarlyExitEngine
from adaexit_hf.serving.server import ServerSettings, create_app
from adaexit_hf.serving.shadow import ShadowTraffic

TEXTS = [" ".join(f"w{4 + (7 * place + word) % 60}" for word in range(1 + place % 12)) for place in range(40)]


def sealed(model: Any, *guarantees: Guarantee, void: tuple[str, ...] = ()) -> SealedCertificate:
    certificate = Certificate(
        threshold=model.config.exit_threshold,
        guarantees=guarantees or (Guarantee("changed_answers", 0.5),),
        confidence=0.95,
        risks=(0.0,),
        bounds=(0.1,),
        mean_layers=2.0,
        saving=0.3,
        n=300,
        grouped=False,
        methods=("exact binomial",),
        repeats=None,
        fingerprint=None,
        criterion="confidence",
        settings={},
    )
    return SealedCertificate(certificate, "torch", "float32", None, {}, {}, void)


@pytest.fixture
def model() -> Any:
    return exiting("berxit", num_labels=3)


@pytest.fixture
def engine(model: Any) -> Any:
    with EarlyExitEngine(model, new_tokenizer()) as engine:
        yield engine


def changed(model: Any) -> list[bool]:
    """Whether each text has another answer than at full depth."""
    found = [
        predict(model, TEXTS, new_tokenizer(), early_exit=early, progress=False).logits.argmax(-1)
        for early in (True, False)
    ]
    return (found[0] != found[1]).tolist()


async def finished(shadow: ShadowTraffic) -> None:
    while shadow._tasks:
        await asyncio.gather(*shadow._tasks)


def offered(shadow: ShadowTraffic, engine: EarlyExitEngine, texts: list[str]) -> None:
    """Serve texts, offer them, and wait until they were compared."""

    async def run() -> None:
        answers = [await engine.classify(text) for text in texts]
        shadow.offer(texts, answers, truncate=True)
        await finished(shadow)

    asyncio.run(run())


def test_the_monitor_sees_how_many_answers_change(model: Any, engine: EarlyExitEngine) -> None:
    shadow = ShadowTraffic(engine, sealed(model), 1.0)
    offered(shadow, engine, TEXTS)
    expected = changed(model)
    assert 0 < sum(expected) < len(TEXTS)
    assert shadow.monitor.n == len(TEXTS) and shadow.monitor.risk == pytest.approx(sum(expected) / len(TEXTS))


def test_only_the_share_is_sampled(model: Any, engine: EarlyExitEngine) -> None:
    draws = iter([0.1, 0.3] * 20)
    shadow = ShadowTraffic(engine, sealed(model), 0.2, draw=lambda: next(draws))
    offered(shadow, engine, TEXTS)
    assert shadow.monitor.n == 20


def test_answers_that_a_deadline_cut_short_are_not_sampled(model: Any, engine: EarlyExitEngine) -> None:
    shadow = ShadowTraffic(engine, sealed(model), 1.0)

    async def run() -> None:
        answer = await engine.classify(TEXTS[0])
        shadow.offer(TEXTS[:1], [answer._replace(deadline_passed=True)], truncate=True)
        await finished(shadow)

    asyncio.run(run())
    assert shadow.monitor.n == 0


def test_the_alarm_is_told_once(model: Any, engine: EarlyExitEngine, caplog: pytest.LogCaptureFixture) -> None:
    shadow = ShadowTraffic(engine, sealed(model, Guarantee("changed_answers", 0.001)), 1.0)
    text = TEXTS[changed(model).index(True)]
    with caplog.at_level(logging.ERROR):
        offered(shadow, engine, [text] * 12)
    assert shadow.monitor.alarm
    assert [record.getMessage()[:38] for record in caplog.records] == ["the certificate no longer holds: chang"]


def test_texts_are_left_out_while_the_engine_is_full(model: Any) -> None:
    with EarlyExitEngine(model, new_tokenizer(), max_texts=1) as engine:
        shadow = ShadowTraffic(engine, sealed(model), 1.0)
        offered(shadow, engine, TEXTS[:5])
    assert shadow.left_out >= 1 and shadow.left_out + shadow.monitor.n == 5


@pytest.mark.parametrize(
    ("change", "share", "message"),
    [
        ({}, 0.0, "shadow: got 0; pass the share"),
        ({"void": ("config.json has changed",)}, 0.1, "is void: config.json has changed"),
        ({"guarantees": (Guarantee("harm", 0.1),)}, 0.1, "promises harm, which full depth alone does not tell"),
    ],
)
def test_what_cannot_be_watched_is_refused(model: Any, engine: Any, change: Any, share: float, message: str) -> None:
    found = sealed(model, *change.pop("guarantees", ()))
    with pytest.raises(ValueError, match=message):
        ShadowTraffic(engine, replace(found, **change), share)


def test_the_server_tells_of_certificate_and_monitor(model: Any) -> None:
    engine = EarlyExitEngine(model, new_tokenizer())
    certificate = sealed(model)
    shadow = ShadowTraffic(engine, certificate, 1.0)
    settings = ServerSettings(model_id="out", precision="float32", allow_thresholds=True, certificate=certificate)
    with TestClient(create_app(engine, model.config, settings, shadow)) as client:
        client.post("/predict", json={"inputs": [[text] for text in TEXTS[:6]]})
        client.post("/predict", json={"inputs": TEXTS[7], "exit_threshold": 0.4})  # nothing was promised about it
        client.portal.call(finished, shadow)
        found = client.get("/info").json()["early_exit"]["certificate"]
        metrics = client.get("/metrics").text
    assert found["guarantees"] == ["changed_answers <= 0.5"] and found["alarm"] is False
    assert "adaexit_shadow_texts_total 6.0" in metrics and "adaexit_certificate_alarm 0.0" in metrics


def test_without_a_certificate_the_server_says_so(model: Any) -> None:
    engine = EarlyExitEngine(model, new_tokenizer())
    with TestClient(create_app(engine, model.config, ServerSettings(model_id="out", precision="float32"))) as client:
        assert client.get("/info").json()["early_exit"]["certificate"] is None
