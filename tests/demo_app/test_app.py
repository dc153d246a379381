"""The page: what it computes against naive references, what it shows, and what a real browser makes of it."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
import torch
from helpers.tiny import VARIANTS, build
from helpers.words import new_tokenizer

from adaexit_hf.demo_app import app
from adaexit_hf.demo_app.facts import demo_facts
from adaexit_hf.evaluation.curves import CurvePoint
from adaexit_hf.hub.card_facts import CardDataset

TEXT = "w7 w8 w9 w10"
CURVE = [CurvePoint(0.2, 0.7, 1.0, 0.6), CurvePoint(0.6, 0.8, 2.0, 0.3), CurvePoint(None, 0.9, 3.0, 0.0)]
TAGS = re.compile(r"<[^>]+>")


def page_facts(model: Any, **more: Any) -> dict[str, Any]:
    return demo_facts(
        model, "tiny", **{"curve": CURVE, "metric": "accuracy", "dataset": CardDataset("dev.csv")} | more
    )


def middle(model: Any, *texts: str) -> float:
    """A threshold of the first exit's own readiness, or one that its criterion allows."""
    scores = app.run(model, new_tokenizer(), texts or [TEXT], None).scores
    low, high = model.config.threshold_bounds
    return min(max(round(scores[:-1].mean().item(), 3), low), high)


def words_of(html: str) -> str:
    return re.sub(r"\s+", " ", unescape(TAGS.sub(" ", html)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_exits_and_the_exit_taken_are_those_of_the_model(variant: str) -> None:
    model, tokenizer = build(variant), new_tokenizer()
    threshold = 1.0 if model.config.exit_criterion in app.COUNTS else middle(model)
    done = app.run(model, tokenizer, [TEXT], threshold)
    inputs = app.tokenized(model, tokenizer, [[TEXT]])
    with torch.no_grad():
        full, early = model(**inputs, early_exit=False), model(**inputs, exit_threshold=threshold)
    assert torch.equal(done.logits, full.exit_logits[0]) and torch.equal(done.scores, full.exit_scores[0])
    assert model.config.exit_layers[done.exit] == early.exit_layer.item()
    torch.testing.assert_close(done.logits[done.exit], early.logits[0], atol=1e-5, rtol=1e-5)
    assert app.run(model, tokenizer, [TEXT], None).exit == len(model.config.exit_layers) - 1


def test_one_threshold_per_exit_is_used_and_shown() -> None:
    model = build("right-tool", exit_threshold=[1.0, 0.0, 0.5])
    done = app.run(model, new_tokenizer(), [TEXT], model.config.exit_threshold)
    assert done.exit == 1 and done.thresholds == [1.0, 0.0, 0.5]
    rows = [words_of(row) for row in app.result_html(model, done).split("<tr")[2:]]
    assert "(≥ 1) not ready" in rows[0] and "(≥ 0) left here" in rows[1] and rows[2].endswith("not run ")
    assert app.own_label(model.config) == "The model's thresholds, one per exit: 1, 0, 0.5"


@pytest.mark.parametrize(
    ("settings", "logits", "expected"),
    [
        ({"num_labels": 3}, [0.0, 1.0, 2.0], lambda z: z.softmax(0)[2].log()),
        ({"num_labels": 1}, [2.5], lambda z: z[0]),
        (
            {"num_labels": 2, "problem_type": "multi_label_classification"},
            [1.5, -2.0],
            lambda z: (z[0].sigmoid() * (1 - z[1].sigmoid())).log(),
        ),
    ],
)
def test_support_is_the_log_probability_of_the_answer(settings: Any, logits: list[float], expected: Any) -> None:
    config, row = build("berxit", **settings).config, torch.tensor(logits)
    torch.testing.assert_close(app.support(config, row[None], row)[0], expected(row))


@pytest.mark.parametrize("texts", [["w7 w8  w9"], ["w7 w8", "w9"]])
def test_words_are_left_out_one_by_one(texts: list[str]) -> None:
    model, tokenizer = build("deebert"), new_tokenizer()
    done = app.run(model, tokenizer, texts, middle(model, *texts))
    words, total = app.word_effects(model, tokenizer, texts, done)
    assert total == len(words) == 3
    said = int(done.logits[done.exit].argmax())
    for word in words:
        without = list(texts)
        without[word.text] = texts[word.text][: word.start] + texts[word.text][word.end :]
        alone = app.run(model, tokenizer, without, None).logits[done.exit].log_softmax(0)[said]
        expected = (done.logits[done.exit].log_softmax(0)[said] - alone).item()
        assert word.effect == pytest.approx(expected, abs=1e-5)


def test_words_beyond_the_limit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_WORDS", 2)
    model, tokenizer = build("deebert"), new_tokenizer()
    done = app.run(model, tokenizer, [TEXT], None)
    words, total = app.word_effects(model, tokenizer, [TEXT], done)
    assert (len(words), total) == (2, 4)
    html = app.words_html(model, [TEXT], done, words, total)
    assert "Only the first 2 of 4 words were left out in turn." in html


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert app.WORD.findall("a good 映画です") == ["a", "good", *"映画です"]


def test_texts_are_escaped_and_fill_in_no_template() -> None:
    model, tokenizer, text = build("deebert"), new_tokenizer(), "<b>w7</b> ${x} {{y}}"
    done = app.run(model, tokenizer, [text], None)
    html = app.words_html(model, [text], done, *app.word_effects(model, tokenizer, [text], done))
    assert "<b>" not in html and "${" not in html and "{{" not in html
    shown = re.sub(r"<small>[^<]*</small>", "", html.split("</p>")[0].split('"words">')[1])
    assert unescape(TAGS.sub("", shown)) == text


def test_the_sentence_says_what_was_saved_and_whether_full_depth_agrees() -> None:
    config = build("deebert", num_labels=2, id2label={0: "bad", 1: "good"}).config
    logits = torch.tensor([[0.0, 3.0], [0.0, 1.0], [2.0, 0.0]])
    done = app.Run(logits, torch.zeros(3), 0, [0.5] * 3, 4, 32)
    beginning = "good, 95.3\u00a0%. Left after layer 1 of 3: 2 layers were not run."
    assert app.sentence(config, done) == f"{beginning} At full depth the answer is bad."
    assert (
        app.sentence(config, done._replace(logits=logits[[0, 1, 1]]))
        == f"{beginning} At full depth the answer is the same."
    )
    assert app.sentence(config, done._replace(exit=2)) == "bad, 88.1\u00a0%. Ran through all 3 layers."


def test_a_number_has_no_probability() -> None:
    model = build("berxit", num_labels=1)
    done = app.run(model, new_tokenizer(), [TEXT], None)
    html = app.result_html(model, done)
    assert "probability" not in html and f"{done.logits[-1].item():.3f}. Ran through" in html


def test_long_texts_and_numbers_that_are_not_finite_are_told() -> None:
    model = build("deebert")
    done = app.Run(torch.full((3, 3), torch.nan), torch.full((3,), torch.nan), 2, [0.5] * 3, 40, 32)
    shown = words_of(app.result_html(model, done))
    assert "The text has 40 tokens; only 32 of them were read." in shown
    assert "Some exits gave numbers that are not finite." in shown and "not a number. Ran through" in shown


@pytest.mark.parametrize(
    ("variant", "sign"), [("deebert", "&lt;"), ("berxit", "&gt;"), ("dact-bert", "≥"), ("pabee", "≥")]
)
def test_the_table_says_which_scores_are_ready(variant: str, sign: str) -> None:
    model = build(variant)
    html = app.result_html(model, app.run(model, new_tokenizer(), [TEXT], 1.0))
    assert f"A text leaves if its readiness is {sign}&nbsp;1." in html


def test_the_curve_marks_the_nearest_measured_threshold() -> None:
    facts = page_facts(build("deebert"))
    assert "Marked, with threshold 0.6: 80.0\u00a0% accuracy, 2.00 of 3 layers per text." in app.curve_html(
        facts, 0.5, 3
    )
    assert "Marked, at full depth: 90.0\u00a0% accuracy" in app.curve_html(facts, None, 3)
    several = app.curve_html(facts, [0.1, 0.2, 0.3], 3)
    assert "one per exit, are no point of the curve" in several and "<circle" not in several
    assert app.curve_html(page_facts(build("deebert"), curve=[]), 0.5, 3) == ""


@pytest.mark.parametrize(
    ("variant", "bounds", "step"), [("right-tool", (0.0, 1.0), 0.001), ("pabee", (1.0, 3.0), 1.0)]
)
def test_without_a_curve_the_slider_is_the_threshold(variant: str, bounds: Any, step: float) -> None:
    model = build(variant)
    found = app.slider_settings(model, page_facts(model, curve=[]))
    assert (found["minimum"], found["maximum"]) == bounds and found["step"] == pytest.approx(step)


@pytest.mark.parametrize(("variant", "end"), [("right-tool", "maximum"), ("deebert", "minimum")])
def test_without_curve_and_threshold_the_slider_starts_at_full_depth(variant: str, end: str) -> None:
    model = build(variant)
    found = app.slider_settings(model, page_facts(model, curve=[]))
    assert found["value"] == found[end]
    assert app.own_label(model.config) == "No threshold: full depth"
    assert app.run(model, new_tokenizer(), [TEXT], found["value"]).exit == len(model.config.exit_layers) - 1


def test_a_tokenizer_needs_no_padding_token() -> None:
    model, tokenizer = build("deebert"), new_tokenizer()
    expected = app.tokenized(model, tokenizer, [["w7 w8 w9"], ["w7"]])
    tokenizer.pad_token = None
    found = app.tokenized(model, tokenizer, [["w7 w8 w9"], ["w7"]])
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in expected.items()
    }
    assert found["attention_mask"].sum(dim=1).tolist() == [5, 3]


def test_with_a_curve_the_slider_is_its_mean_layers() -> None:
    model = build("right-tool", exit_threshold=0.6)
    found = app.slider_settings(model, page_facts(model))
    assert (found["minimum"], found["value"], found["step"]) == (1.0, 2.0, 0.1) and 3.0 <= found["maximum"] <= 3.1


def test_gradio_is_imported_only_for_the_page() -> None:
    code = "import sys, adaexit_hf.demo_app.app, adaexit_hf.cli.demo; assert 'gradio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def pages() -> Iterator[Any]:
    """Make a page; what its browser does is tested with a Space, in tests/cli/test_demo_page.py."""
    pytest.importorskip("gradio", reason='pip install "adaexit_hf[demo-app]"')
    make, made = asyncio.new_event_loop, []

    def recorded() -> Any:
        made.append(make())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", recorded)  # every page makes several, and closes none
        yield lambda model, **facts: app.build(model, new_tokenizer(), page_facts(model, **facts))
    for loop in made:
        loop.close()


@pytest.fixture(scope="module")
def page(pages: Any) -> Any:
    return pages(build("right-tool", exit_threshold=0.6, pairs=False))


def called(page: Any, name: str, *values: Any) -> Any:
    """What a function of the page returns, without a server between."""
    (found,) = (each.fn for each in page.fns.values() if each.api_name == name)
    return found(*values)


@pytest.mark.slow
def test_the_slider_counts_only_if_the_models_own_threshold_is_not_ticked(page: Any) -> None:
    own, _, own_curve = called(page, "classify", True, 1.0, TEXT)
    moved, _, curve = called(page, "classify", False, 1.0, TEXT)
    assert "readiness is ≥&nbsp;0.6." in own and "threshold 0.6:" in own_curve
    assert "readiness is ≥&nbsp;0.2." in moved and "threshold 0.2:" in curve
    assert "Ran through all 3 layers" in called(page, "classify", False, 3.0, TEXT)[0]


@pytest.mark.slow
def test_of_all_visitors_one_at_a_time_uses_the_model(pages: Any) -> None:
    example = {"kind": "easy", "texts": [TEXT], "layer": 1, "label": None}
    functions = pages(build("right-tool"), examples=[example]).fns.values()
    assert {(each.concurrency_id, each.concurrency_limit) for each in functions} == {("model", 1)}


@pytest.mark.slow
def test_words_are_shown_on_request(page: Any) -> None:
    assert called(page, "classify", True, 1.0, TEXT)[1] == ""
    assert "Words that decided, at the exit after layer" in called(page, "words", True, 1.0, TEXT)[1]


@pytest.mark.slow
def test_an_empty_text_is_asked_for_again(page: Any, pages: Any) -> None:
    assert "Type a text" in called(page, "classify", True, 1.0, "  ")[0]
    pairs = pages(build("right-tool", pairs=True))
    assert "Both texts are needed." in called(pairs, "classify", True, 1.0, "w7", "")[0]
    either = pages(build("right-tool", pairs=None), dataset=None)
    assert "Ran through" in called(either, "classify", True, 1.0, "w7", "")[0]


@pytest.mark.slow
def test_long_texts_are_truncated(pages: Any) -> None:
    page = pages(build("right-tool"), max_tokens=8)
    assert "has 22 tokens; only 8 of them were read" in called(page, "classify", True, 1.0, "w7 " * 20)[0]


@pytest.mark.slow
def test_a_model_with_one_exit_has_no_slider(pages: Any) -> None:
    page = pages(build("right-tool", exit_layers=[3]), curve=[])
    config = json.loads(json.dumps(page.config, default=str))
    sliders = [each["props"]["visible"] for each in config["components"] if each["type"] == "slider"]
    assert sliders == [False]
    assert "Ran through all 3 layers" in called(page, "classify", True, 1.0, TEXT)[0]
