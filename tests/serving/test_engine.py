"""`EarlyExitEngine`: texts that arrive one by one get the answers of `predict`, whoever comes, goes or breaks."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.predictions import rows_of
from helpers.serving import SOON, Gated, text
from helpers.tiny import CLASSES, build, inputs_of, thresholds_between, trace_of
from helpers.words import new_tokenizer

from adaexit_hf import predict
from adaexit_hf.serving import (
    Answer,
    EarlyExitEngine,
    EngineClosedError,
    InferenceError,
    QueueFullError,
    TextTooLongError,
)
from adaexit_hf.serving.backends import LONG_TEXT
from adaexit_hf.serving.engine import companions, most_worth


def check_answers(futures: Sequence["Future[Answer]"], expected: Any) -> None:
    answers = [future.result(SOON) for future in futures]
    found = torch.stack([answer.logits for answer in answers])
    torch.testing.assert_close(found, torch.as_tensor(expected.logits), atol=1e-5, rtol=1e-5)
    assert [answer.exit_layer for answer in answers] == expected.exit_layer.tolist()
    assert [answer.exit_score for answer in answers] == pytest.approx(expected.exit_score.tolist(), abs=1e-5)


# The answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CLASSES)
def test_answers_are_those_of_predict(method: str) -> None:
    model, rows = build(method), rows_of()
    threshold = thresholds_between(trace_of(model, inputs_of(model)))[0]
    expected = predict(model, rows, exit_threshold=threshold, progress=False)
    assert len(set(expected.exit_layer.tolist())) > 1
    with EarlyExitEngine(model, exit_threshold=threshold, batch_tokens=60) as engine:
        futures = [engine.submit(row) for row in rows]
        check_answers(futures, expected)
    assert max(engine.statistics().batches) > 1


def test_texts_from_several_threads_get_their_own_answers() -> None:
    model, rows = build("berxit"), rows_of()
    expected = predict(model, rows, exit_threshold=0.5, progress=False)
    futures: list[Any] = [None] * len(rows)

    def send(first: int) -> None:
        for place in range(first, len(rows), 4):
            futures[place] = engine.submit(rows[place])

    with EarlyExitEngine(model, exit_threshold=0.5) as engine:
        threads = [threading.Thread(target=send, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check_answers(futures, expected)


def test_full_depth_where_there_is_no_threshold() -> None:
    model, rows = build("berxit"), rows_of()[:5]
    with EarlyExitEngine(model) as engine:
        check_answers([engine.submit(row) for row in rows], predict(model, rows, progress=False))


def test_each_text_may_have_a_threshold_of_its_own() -> None:
    model, (row, *_) = build("berxit"), rows_of()
    options: list[dict[str, Any]] = [
        {"exit_threshold": 0.0},
        {"exit_threshold": [1.0, 0.0, 1.0]},
        {"early_exit": False},
        {},
    ]
    with EarlyExitEngine(model, exit_threshold=1.0) as engine:
        answers = [future.result(SOON) for future in [engine.submit(row, **each) for each in options]]
    assert [answer.exit_layer for answer in answers] == [1, 2, 3, 3]


def test_a_checkpoint_is_loaded_with_its_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = build("berxit", exit_threshold=0.5), new_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with EarlyExitEngine(str(tmp_path)) as engine:
        check_answers([engine.submit("w5 w6")], predict(model, ["w5 w6"], tokenizer, progress=False))


def test_pairs_and_texts_share_the_engine_but_no_batch_with_other_columns() -> None:
    model, tokenizer = build("berxit"), new_tokenizer()
    items: list[Any] = ["w5 w6", ("w7", "w8"), {"text": "w9"}, {"input_ids": [1, 5, 2], "token_type_ids": [0, 0, 1]}]
    with EarlyExitEngine(model, tokenizer, exit_threshold=0.4) as engine:
        futures = [engine.submit(item) for item in items]
        for future, item in zip(futures, items, strict=True):
            check_answers([future], predict(model, [item], tokenizer, exit_threshold=0.4, progress=False))


def test_logits_can_be_changed_in_place() -> None:
    with EarlyExitEngine(build("berxit")) as engine:
        engine.submit(rows_of()[0]).result(SOON).logits.add_(1)


# Coming and going, on a model whose steps wait until they are let go -----------------------------------------------


@pytest.fixture
def gated() -> Iterator[tuple[EarlyExitEngine, Gated]]:
    backend = Gated()
    engine = EarlyExitEngine(backend, max_texts=4)
    yield engine, backend
    backend.go.release(1000)
    engine.close()


def begin(backend: Gated) -> None:
    """Wait until a step has begun."""
    assert backend.began.acquire(timeout=SOON)


def test_a_text_enters_when_a_step_begins_and_is_joined_deeper(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, backend = gated
    first = engine.submit(text("a"))
    begin(backend)  # layer 1 for a
    second = engine.submit(text("b", leaves=2))
    backend.go.release(100)
    assert [first.result(SOON).exit_layer, second.result(SOON).exit_layer] == [3, 2]
    assert backend.steps[0] == (1, ["a"])
    assert (1, ["b"]) in backend.steps  # and not with a, which was at layer 2 by then


def test_texts_at_one_depth_share_a_batch(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, backend = gated
    futures = [engine.submit(text("first"))]
    begin(backend)
    futures += [engine.submit(text(name, leaves)) for name, leaves in (("a", 1), ("b", 3), ("c", 3))]
    backend.go.release(100)
    assert [future.result(SOON).exit_layer for future in futures] == [3, 1, 3, 3]
    assert (1, ["a", "b", "c"]) in backend.steps
    assert all("a" not in names for number, names in backend.steps if number > 1)


def test_a_full_engine_refuses_and_has_room_again(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, backend = gated
    futures = [engine.submit(text(name)) for name in "abcd"]
    with pytest.raises(QueueFullError, match="has 4 texts, as many as it may hold; try again later"):
        engine.submit(text("e"))
    backend.go.release(100)
    wait(futures, SOON)
    assert engine.submit(text("e")).result(SOON).exit_layer == 3
    assert engine.statistics().refused == 1


def test_a_cancelled_text_leaves_before_the_next_layer(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, backend = gated
    running, waiting = engine.submit(text("running")), None
    begin(backend)
    waiting = engine.submit(text("waiting"))
    assert running.cancel()
    assert waiting.cancel()
    assert engine.statistics().inside == 0  # there is room at once
    backend.go.release(100)
    assert engine.submit(text("next")).result(SOON).exit_layer == 3
    assert backend.steps == [(1, ["running"]), (1, ["next"]), (2, ["next"]), (3, ["next"])]
    assert wait([running, waiting], SOON).not_done == set()
    with pytest.raises(CancelledError):
        running.result()
    assert engine.statistics().cancelled == 2


def test_cancelling_a_task_takes_its_text_out(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, backend = gated

    async def cancel_one() -> Answer:
        tasks = [asyncio.ensure_future(engine.classify(text(name))) for name in "ab"]
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, begin, backend)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        assert engine.statistics().inside == 1
        backend.go.release(100)
        return await tasks[1]

    assert asyncio.run(cancel_one()).exit_layer == 3
    assert engine.statistics().cancelled == 1


def test_after_its_deadline_a_text_leaves_at_the_exit_that_it_reaches(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, backend = gated
    late, in_time = engine.submit(text("late"), deadline=0.0), engine.submit(text("in time"), deadline=1000.0)
    backend.go.release(100)
    assert late.result(SOON)[1:4] == (1, 0.0, True)
    assert in_time.result(SOON)[1:4] == (3, 0.0, False)
    assert engine.statistics().deadlines_passed == 1


def test_a_text_that_waits_past_its_deadline_leaves_with_its_last_exit(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, backend = gated
    late = engine.submit(text("late"), deadline=0.2)
    begin(backend)
    other = engine.submit(text("other"))
    backend.go.release()
    begin(backend)  # either's next layer; meanwhile the deadline passes
    time.sleep(0.25)
    backend.go.release(100)
    answer = late.result(SOON)
    assert (answer.exit_layer, answer.deadline_passed) in ((1, True), (2, True))
    assert answer.logits.tolist() == [float(answer.exit_layer)] * 2
    assert other.result(SOON).exit_layer == 3


def test_an_error_of_the_model_is_that_of_one_text_only(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, backend = gated
    futures = [engine.submit(text("first"))]
    begin(backend)
    futures += [engine.submit(each) for each in (text("a"), text("bad", breaks=2), text("b"))]
    backend.go.release(100)
    with pytest.raises(InferenceError, match=r"^the model raised ValueError: broken$"):
        futures[2].result(SOON)
    assert [futures[place].result(SOON).exit_layer for place in (0, 1, 3)] == [3, 3, 3]
    assert engine.statistics().failed == 1


def test_a_text_that_cannot_be_read_is_refused_where_it_was_sent(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, _ = gated
    with pytest.raises(ValueError, match="text is None"):
        engine.submit(None)
    with pytest.raises(TextTooLongError, match=r"has more than 50 tokens, the most that this model reads"):
        engine.submit(text("long", tokens=51), truncate=False)
    assert engine.statistics().inside == 0


def test_closing_answers_what_is_inside_and_takes_no_more(gated: tuple[EarlyExitEngine, Gated]) -> None:
    engine, backend = gated
    futures = [engine.submit(text(name)) for name in "abc"]
    begin(backend)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while engine.alive:
        time.sleep(0.001)
    with pytest.raises(EngineClosedError, match="the engine is closed"):
        engine.submit(text("d"))
    backend.go.release(100)
    closing.join(SOON)
    assert all(future.done() for future in futures)
    assert [future.result().exit_layer for future in futures] == [3, 3, 3]
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_if_the_engine_itself_fails_nobody_waits_for_ever(
    gated: tuple[EarlyExitEngine, Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = gated
    first = engine.submit(text("a"))
    begin(backend)
    second = engine.submit(text("b"))
    monkeypatch.setattr(engine, "_answer", lambda *_: 1 / 0)
    backend.go.release(100)
    for future in (first, second):
        with pytest.raises(EngineClosedError, match="the engine has failed"):
            future.result(SOON)
    assert not engine.alive


def test_states_of_texts_that_have_left_are_freed(gated: tuple[EarlyExitEngine, Gated]) -> None:
    """Once half of a batch has left, the others get a batch of their own."""
    engine, backend = gated
    joined: list[Any] = []
    original = backend.joined
    backend.joined = lambda pieces: joined.append(pieces) or original(pieces)  # type: ignore[method-assign]
    futures = [engine.submit(text("first", 1))]
    begin(backend)
    futures += [engine.submit(text(name, leaves)) for name, leaves in (("a", 1), ("b", 3), ("c", 1))]
    backend.go.release(100)
    wait(futures, SOON)
    assert [rows for _, rows in joined[0]] == [[1]]
    assert [rows for _, rows in joined[1]] == [[0]]


# Bad input on a real model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [3, None, "\ud800", ("a", "b", "c"), {"label": 1}, {"input_ids": [99]}])
def test_what_is_no_text_is_refused(bad: Any) -> None:
    with EarlyExitEngine(build("berxit"), new_tokenizer()) as engine:
        with pytest.raises(ValueError, match=r"^text "):
            engine.submit(bad)
        assert engine.submit("w5").result(SOON).exit_layer == 3


def test_long_texts_are_truncated_as_by_predict_or_refused() -> None:
    model, tokenizer, long = build("berxit"), new_tokenizer(), "w5 w6 " * 100
    with EarlyExitEngine(model, tokenizer) as engine:
        with pytest.raises(TextTooLongError, match="has more than 32 tokens"):
            engine.submit(long, truncate=False)
        future = engine.submit(long)
        with pytest.warns(UserWarning, match="truncated"):
            check_answers([future], predict(model, [long], tokenizer, progress=False))


def test_long_texts_are_cut_at_the_end_that_is_asked_for() -> None:
    model, tokenizer = build("berxit"), new_tokenizer()
    words = [f"w{4 + place % 50}" for place in range(100)]
    first, last = (predict(model, [" ".join(part)], tokenizer, progress=False) for part in (words[:30], words[-30:]))
    with EarlyExitEngine(model, tokenizer) as engine:
        for text in (" ".join(words), " ".join(words * LONG_TEXT)):  # read by one reader, and by the other
            for side, expected in (("left", last), (None, first), ("right", first)):
                check_answers([engine.submit(text, truncation_side=side)], expected)
    assert tokenizer.truncation_side == "right"


def test_the_default_end_is_the_tokenizers() -> None:
    model, tokenizer = build("berxit"), new_tokenizer()
    tokenizer.truncation_side = "left"
    words = [f"w{4 + place % 50}" for place in range(100)]
    with EarlyExitEngine(model, tokenizer) as engine:
        check_answers(
            [engine.submit(" ".join(words))], predict(model, [" ".join(words[-30:])], tokenizer, progress=False)
        )


@pytest.mark.parametrize(
    ("item", "side", "message"),
    [
        ({"input_ids": [1, 5, 2]}, "left", "truncation_side: got 'left' for a tokenized text; pass the text"),
        ("w5", "Left", "truncation_side: got 'Left'; pass 'left' or 'right'"),
    ],
)
def test_an_end_that_cannot_be_used_is_refused(item: Any, side: Any, message: str) -> None:
    with (
        EarlyExitEngine(build("berxit"), new_tokenizer()) as engine,
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        engine.submit(item, truncation_side=side)


def test_any_function_may_be_the_tokenizer_if_no_end_is_asked_for() -> None:
    class Reader:
        tokenizer = new_tokenizer()

        def read(self, *texts: Any, **options: Any) -> Any:
            return self.tokenizer(*texts, **options)

    model = build("berxit")
    with EarlyExitEngine(model, Reader().read) as engine:
        check_answers([engine.submit("w5 w6")], predict(model, ["w5 w6"], new_tokenizer(), progress=False))
        with pytest.raises(ValueError, match="truncation_side: got 'left', but this tokenizer has none; leave it out"):
            engine.submit("w5 w6", truncation_side="left")


def test_logits_that_are_not_finite_harm_no_neighbour() -> None:
    model, rows, bad = build("berxit"), rows_of()[:6], {"input_ids": [1, 4, 2]}  # those have no 4
    clean = predict(model, rows, exit_threshold=0.0, progress=False)
    model.encoder.embeddings.word_embeddings.weight.data[4] = torch.nan
    with EarlyExitEngine(model, exit_threshold=0.0) as engine:
        futures = [engine.submit(row) for row in [bad, *rows]]
        assert futures[0].result(SOON).logits.isnan().all()
        assert futures[0].result(SOON).exit_layer == 3
        check_answers(futures[1:], clean)
    assert engine.statistics().not_finite == 1


def test_a_long_text_does_not_hold_the_event_loop() -> None:
    names: list[str] = []

    async def classify(engine: EarlyExitEngine) -> None:
        await asyncio.gather(engine.classify("w5 " * LONG_TEXT), engine.classify("w5"))

    with EarlyExitEngine(build("berxit"), new_tokenizer()) as engine:
        read = engine.backend.read
        engine.backend.read = lambda item, side: names.append(threading.current_thread().name) or read(item)  # type: ignore
        asyncio.run(classify(engine))
    assert sorted(name.split("_")[0] for name in names) == ["MainThread", "adaexit-tokenizer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_texts": 0}, "max_texts: got 0"),
        ({"batch_tokens": 0}, "batch_tokens: got 0"),
        ({"exit_threshold": 7.0}, "exit_threshold: got 7.0"),
        ({"early_exit": True}, "early_exit: got True, which needs a threshold"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    model = build("berxit").train()
    with pytest.raises(ValueError, match=message):
        EarlyExitEngine(model, **arguments)
    assert model.training


def test_a_model_without_exits_is_refused() -> None:
    with pytest.raises(TypeError, match="which has no exits"):
        EarlyExitEngine(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("deadline", [-1.0, float("nan")])
def test_a_deadline_is_a_number_of_seconds_from_now(deadline: float) -> None:
    with EarlyExitEngine(build("berxit")) as engine, pytest.raises(ValueError, match="deadline: got"):
        engine.submit(rows_of()[0], deadline=deadline)


def test_the_model_is_in_eval_mode_only_while_it_is_served() -> None:
    model = build("berxit").train()
    with EarlyExitEngine(model):
        assert not model.training
    assert model.training


# What runs next ------------------------------------------------------------------------------------------------------


def waiting(entered: float = 0.0, tokens: int = 10, deadline: float = float("inf"), kind: str = "") -> Any:
    return SimpleNamespace(entered=entered, deadline=deadline, text=SimpleNamespace(tokens=tokens, kind=kind))


def choose(queues: list[list[Any]], **options: Any) -> Any:
    return most_worth(queues, **{"now": 10.0, "batch_tokens": 1000, "fixed_cost": 80, "step_seconds": 0.5} | options)


def test_nothing_waits() -> None:
    assert choose([[], []]) is None


def test_the_older_of_two_texts_runs_first() -> None:
    young, old = waiting(entered=9.0), waiting(entered=5.0)
    assert choose([[young], [], [old]]) == (2, old)
    assert choose([[old], [], [young]]) == (0, old)


def test_of_equal_ones_the_deeper_runs_first() -> None:
    texts = [waiting(), waiting()]
    assert choose([[texts[0]], [texts[1]]]) == (1, texts[1])


def test_a_full_batch_overtakes_a_single_text_that_is_hardly_older() -> None:
    old, many = waiting(entered=0.0), [waiting(entered=1.0, tokens=100) for _ in range(10)]
    assert choose([many, [old]])[0] == 0
    assert choose([many, [old]], now=1.05)[0] == 1  # but not for long: by then it is much older than they


def test_a_text_whose_deadline_is_near_goes_first() -> None:
    old, near, far = waiting(), waiting(entered=9.0, deadline=10.9), waiting(entered=9.0, deadline=12.0)
    assert choose([[far, near], [old]]) == (0, near)
    assert choose([[far], [old]]) == (1, old)


def test_of_two_near_deadlines_the_earlier_goes_first() -> None:
    first, second = waiting(deadline=9.0), waiting(deadline=10.5)
    assert choose([[second], [], [first]]) == (2, first)


def tokens_of(queue: list[Any], first: int, batch_tokens: int = 1000, fixed_cost: int = 80) -> list[int]:
    chosen = companions(queue, queue[first], batch_tokens, fixed_cost)
    assert queue[first] in chosen
    return [each.text.tokens for each in chosen]


def lengths(*tokens: int) -> list[Any]:
    return [waiting(tokens=each) for each in tokens]


def test_texts_of_similar_length_share_a_batch() -> None:
    assert tokens_of(lengths(10, 400, 50, 390), 0) == [10, 50]
    assert tokens_of(lengths(10, 400, 50, 390), 1) == [390, 400]


def test_a_batch_has_no_more_tokens_than_allowed() -> None:
    assert tokens_of(lengths(*[50] * 30), 17, batch_tokens=400) == [50] * 8
    assert tokens_of(lengths(500, 700), 1, batch_tokens=400) == [700]


def test_longer_texts_join_if_the_others_need_little_padding() -> None:
    assert tokens_of(lengths(100, 130), 0) == [100, 130]
    assert tokens_of(lengths(*[100] * 8, 130), 0) == [100] * 8  # eight times 30 tokens cost more than a step


def test_other_kinds_of_rows_wait() -> None:
    queue = [waiting(kind="a"), waiting(kind="b"), waiting(kind="a")]
    assert companions(queue, queue[0], 1000, 80) == [queue[0], queue[2]]


def test_with_one_token_a_batch_each_text_runs_alone() -> None:
    assert tokens_of(lengths(10, 10), 0, batch_tokens=1, fixed_cost=0) == [10]
