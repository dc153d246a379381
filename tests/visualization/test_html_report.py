"""The HTML report: what it embeds and refuses, and what a real browser makes of it."""

import dataclasses
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.report_page import embedded
from helpers.words import new_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adaexit_hf.evaluation.bootstrap import score_bands
from adaexit_hf.evaluation.metrics import compute_score
from adaexit_hf.evaluation.trace import CRITERIA_IN_WORDS, ExitTrace, predictions
from adaexit_hf.evaluation.tradeoff import layer_scores, tradeoff_curve
from adaexit_hf.interpretation.attribution import Attribution, Explanation
from adaexit_hf.models import METHODS
from adaexit_hf.models.exit_criteria import CRITERIA
from adaexit_hf.visualization.attributed_tokens import TokenAttributions, token_attributions
from adaexit_hf.visualization.html_report import ASSETS, build_report, write_report

TEXTS = ["</script><b>bold</b>", "not so bad", "good", "bad & worse"] * 5


def made_trace(
    labels: int = 3,
    samples: int = 20,
    exits: tuple[int, ...] = (1, 2, 4),
    seed: int = 0,
    labelled: bool = True,
    **facts: Any,
) -> ExitTrace:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, len(exits), labels, generator=generator)
    truth = torch.arange(samples) % max(labels, 2)
    scores = torch.rand(samples, len(exits), generator=generator)
    scores[:1, 0] = float("nan")
    facts = {"criterion": "confidence", "bounds": (0.0, 1.0), "about": {"dataset": "made"}} | facts
    if labels > 1:
        facts = {"label_names": tuple("abcdefgh"[:labels])} | facts
    return ExitTrace(logits, scores, (truth if labels > 1 else truth / 7) if labelled else None, exits, "gt", **facts)


def explanation(tokens: list[str]) -> Explanation:
    """Of the answer after layer 1; the number of a token is its place."""
    numbers = [torch.zeros(1)] * 5
    values = Attribution(torch.arange(len(tokens))[None].float(), *numbers)
    special = torch.tensor([token.startswith("[") for token in tokens])
    return Explanation(tuple(tokens), special, 1, 0, (1,), "margin", values, None)


def test_everything_is_in_one_file(tmp_path: Path) -> None:
    page = write_report(made_trace(), tmp_path / "report.html", texts=TEXTS).read_text()
    assert not re.findall(r"(?:src|href)=\"(?!#)|https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)
    data = embedded(page)
    assert data["texts"] == TEXTS
    assert data["methods"][0]["scores"][0][0] is None
    assert [len(row) for row in data["methods"][0]["answers"]] == [3] * 20


def test_200_samples_of_12_layers_are_less_than_a_megabyte() -> None:
    words = ["gripping", "film"] * 20  # 40 tokens, with 128 of them it is 1.00 MB
    names = [f"{what} at layer {k}" for what in ("answer", "confidence") for k in range(1, 13)]
    numbers = torch.randn(200, len(names), len(words), generator=torch.Generator().manual_seed(0)).tolist()
    found = [TokenAttributions(words, dict(zip(names, rows, strict=True))) for rows in numbers]
    traces = {name: made_trace(2, 200, tuple(range(1, 13)), seed) for seed, name in enumerate("pq")}
    page = build_report(traces, texts=[" ".join(words)] * 200, attributions={"p": found}).page
    assert len(page.encode()) < 500_000


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1.0], "has 1 numbers for 2 tokens; pass one per token"),
        ([1.0, float("nan")], "has the number nan; pass finite numbers, or leave"),
    ],
)
def test_attributions_that_do_not_fit_their_tokens_are_refused(numbers: list[float], message: str) -> None:
    found = {"b": [TokenAttributions(["not", "bad"], {"answer": numbers})]}
    with pytest.raises(ValueError, match=rf"attributions\['b'\]: 'answer' of sample 0 {message}"):
        build_report({"a": made_trace(), "b": made_trace()}, attributions=found)


def test_the_folder_is_made(tmp_path: Path) -> None:
    assert write_report(made_trace(), tmp_path / "made" / "too" / "report.html").is_file()


def test_the_page_says_what_the_trace_knows() -> None:
    data = embedded(build_report(made_trace(2, label_names=("bad", "good"))).page)
    assert (data["labels"], data["methods"][0]["criterion"]) == (["bad", "good"], "confidence")
    assert "first exit where the probability of the predicted class is above the thr" in data["methods"][0]["rule"]
    data = embedded(build_report(made_trace(2, label_names=None, criterion=None, bounds=None)).page)
    assert (data["labels"], data["methods"][0]["criterion"]) == (["0", "1"], "score")


@pytest.mark.parametrize("threshold", [0.5, (0.1, 0.2, 0.3), [0.1, 0.2, 0.3]])
def test_a_single_trace_takes_a_threshold_without_its_name(threshold: Any) -> None:
    start = embedded(build_report(made_trace(), thresholds=threshold).page)["methods"][0]["start"]
    assert start == (threshold if threshold == 0.5 else [0.1, 0.2, 0.3])


def test_patience_0_is_full_depth() -> None:
    trace = dataclasses.replace(made_trace(), scores=torch.ones(20, 3), ready="ge", criterion="patience", bounds=None)
    assert trace.at(0)[1].eq(4).all()
    method = embedded(build_report(trace, thresholds=0).page)["methods"][0]
    assert (method["start"], 0 in method["thresholds"]) == (None, False)


def test_a_notebook_shows_the_page() -> None:
    report = build_report(made_trace())
    assert report._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')


@pytest.mark.parametrize(
    ("traces", "options", "message"),
    [
        ({}, {}, "traces: got none"),
        (made_trace(labelled=False), {}, "'model' has no labels"),
        ({"a": made_trace(3), "b": made_trace(2)}, {}, "traces: 'b' has 2 labels, 'a' has 3; coll"),
        ({"a": made_trace(samples=20), "b": made_trace(samples=19)}, {}, "'b' has 19 samples, 'a' has 20"),
        ({"a": made_trace(2), "b": made_trace(2, label_names=("no", "yes"))}, {}, r"classes \('no', 'yes'\), 'a' has"),
        (
            {"a": made_trace(), "b": made_trace(about={"dataset": "rte"})},
            {},
            "'b' has the data set 'rte', 'a' has 'made'",
        ),
        (made_trace(1), {}, "metric: got 'accuracy' for 1 labels; pass pearson or spearmanr"),
        (made_trace(), {"metric": "pearson"}, "metric: got 'pearson' for 3 labels; pass accuracy"),
        (made_trace(), {"metric": "f1"}, "metric: got 'f1' for 3 labels; pass accuracy or matthews_correlation"),
        (
            made_trace(),
            {"metric": "bleu"},
            "metric: got 'bleu', which the page cannot compute; choose one of accuracy",
        ),
        (made_trace(), {"texts": TEXTS[1:]}, "texts: got 19 for 20 samples"),
        (made_trace(), {"thresholds": 7.0}, r"for 'model', threshold: got 7.0; confidence takes numbers in \[0, 1\]"),
        (made_trace(), {"thresholds": {"model": [0.5]}}, "threshold: got 1 numbers for 3 exits"),
        (made_trace(), {"thresholds": {"b": 0.5}}, "thresholds: got 'b'; the traces are model"),
        (made_trace(), {"thresholds": float("nan")}, "threshold: got nan; confidence takes numbers"),
        ({"a": made_trace(), "b": made_trace()}, {"thresholds": 0.5}, "thresholds: got 0.5 for 2 traces; pass a dict"),
        (made_trace(), {"attributions": {"model": []}}, r"attributions\['model'\]: got 0 for 20 samples"),
        (made_trace(), {"attributions": {"model": [TokenAttributions([], {})] * 21}}, "got 21 for 20 samples"),
        (made_trace(), {"attributions": {"b": [TokenAttributions([], {})] * 20}}, "got 'b'; the traces are model"),
    ],
)
def test_what_does_not_fit_together_is_refused(traces: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_report(traces, **options)


def test_a_threshold_of_the_wrong_type_is_named() -> None:
    with pytest.raises(TypeError, match="thresholds: for 'b', threshold: got 'x'; confidence takes numbers"):
        build_report({"a": made_trace(), "b": made_trace()}, thresholds={"b": "x"})


def test_attributions_stand_over_the_text_as_it_was_written() -> None:
    tokenizer, pair = new_tokenizer(), ["w5  w6 w7", "w8\tw9"]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(*pair, truncation=True, max_length=7)["input_ids"])
    assert tokens == ["[CLS]", "w5", "w6", "[SEP]", "w8", "w9", "[SEP]"]
    found = token_attributions(explanation(tokens), pair, tokenizer)
    assert found == (["w5  ", "w6", " w7", "\n", "w8\t", "w9"], {"answer at layer 1": [1, 2, 0, 0, 4, 5]}, "")


def test_bytes_of_one_character_are_added_up() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    tokens = tokenizer.tokenize("n\u00e9e")
    assert len(tokens) == 4
    found = token_attributions(explanation(tokens), "n\u00e9e", tokenizer)
    assert found == (["n", "\u00e9", "e"], {"answer at layer 1": [0, 3, 3]}, "")


def test_special_tokens_are_left_out_where_the_tokenizer_knows_no_places() -> None:
    found = token_attributions(explanation(["[CLS]", "w5", "[SEP]"]), "w5", SimpleNamespace(is_fast=False))
    assert found == (["w5"], {"answer at layer 1": [1]}, " ")


def test_an_answer_that_is_not_finite_is_none_of_the_classes() -> None:
    trace = made_trace()
    trace.logits[0, 1] = float("nan")
    (method,) = embedded(build_report(trace).page)["methods"]
    assert [answer is None for answer in method["answers"][0]] == [False, True, False]


def test_attributions_of_another_text_are_refused() -> None:
    with pytest.raises(ValueError, match=r"text: 'w5' has other tokens than the 3 that were explained; pass the text"):
        token_attributions(explanation(["[CLS]", "w6", "[SEP]"]), "w5", new_tokenizer())


@pytest.mark.parametrize("method", METHODS)
def test_every_criterion_is_said_in_plain_english(method: str) -> None:
    own = METHODS[method].config_class.own_criterion
    assert {own, *CRITERIA} - {None} <= CRITERIA_IN_WORDS.keys()


def test_the_rule_says_which_label_must_be_sure_and_what_one_exit_does() -> None:
    (method,) = embedded(build_report(several(), metric="f1_micro").page)["methods"]
    assert "class, of its least sure label, is above the threshold, and otherwise at the last one" in method["rule"]
    (method,) = embedded(build_report(made_trace(exits=(4,))).page)["methods"]
    assert method["rule"] == "There is one exit, after layer 4, at which all texts leave."


def test_the_page_has_the_baselines_and_the_interval_of_every_threshold() -> None:
    trace = made_trace()
    data = embedded(build_report(trace, thresholds=0.5, fixed={"3 layers": (3.0, 0.4)}).page)
    assert (data["majority"], data["fixed"]) == (0.35, [{"name": "3 layers", "layers": 3.0, "score": 0.4}])
    (method,) = data["methods"]
    bands = dict(zip(map(str, method["thresholds"]), method["bands"], strict=True))
    expected = score_bands(trace, "accuracy", [0.5, None])
    assert [bands["0.5"], bands["None"]] == [pytest.approx(band, abs=1e-5) for band in expected]
    with pytest.raises(
        ValueError, match=r"fixed\['3 layers'\]: got \(3.0, nan\); pass \(layers, score\), two finite numb"
    ):
        build_report(trace, fixed={"3 layers": (3.0, NAN)})


def test_a_threshold_that_rounding_puts_outside_of_its_bounds_has_an_interval() -> None:
    scores = torch.full((20, 3), math.log(2)).nextafter(torch.tensor(0.0))
    trace = dataclasses.replace(made_trace(2), scores=scores, ready="lt", criterion="entropy", bounds=(0, math.log(2)))
    (method,) = embedded(build_report(trace, thresholds=math.log(2)).page)["methods"]
    assert method["start"] > math.log(2) and None not in method["bands"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_of_methods_stand_out_from_the_page(scheme: str) -> None:
    template = (ASSETS / "report_template.html").read_text(encoding="utf-8")
    colours = re.findall(r"--(page|card|m\d): (#\w+)", template)
    half = len(colours) // 2
    named = dict(colours[:half] if scheme == "light" else colours[half:])
    assert len(named) == 10

    def luminance(colour: str) -> float:
        code = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(code[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in ("page", "card"):
        for index in range(8):
            low, high = sorted(luminance(named[name]) for name in (ground, f"m{index}"))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, index)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system, driven by Playwright: `apt-get install chromium` and `pip install playwright`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, path: Path, **context: Any) -> Any:
    page = browser.new_context(offline=True, **context).new_page()
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(f"file://{path}")
    return page


def slide(page: Any, place: int) -> None:
    page.locator("#m0-slider").evaluate(
        """(slider, place) => {
            slider.value = place;
            slider.dispatchEvent(new Event('input'));
            return new Promise(requestAnimationFrame);
        }""",
        place,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "metric"),
    [(3, "accuracy"), (2, "f1"), (3, "matthews_correlation"), (1, "pearson"), (1, "spearmanr")],
)
def test_the_slider_computes_what_the_trace_says(browser: Any, tmp_path: Path, labels: int, metric: str) -> None:
    trace = made_trace(labels)
    page = opened(browser, write_report(trace, tmp_path / "report.html", metric=metric))
    curve = page.evaluate("data.methods[0].curve")
    assert [point["threshold"] for point in curve].count(None) == 1
    for place in range(0, len(curve), max(1, len(curve) // 6)):
        slide(page, place)
        logits, layers = trace.at(curve[place]["threshold"])
        expected = compute_score(metric, predictions=predictions(logits), references=trace.labels)
        assert page.locator("#m0-score").inner_text() == f"{100 * expected:.2f} %"
        assert page.locator("#m0-layers").inner_text() == f"{layers.double().mean():.2f}"
        counts = page.locator("#m0-exits tbody tr td:nth-child(2)").all_inner_texts()
        assert [int(count) for count in counts] == [int((layers == layer).sum()) for layer in trace.exit_layers]


def several(samples: int = 20, **facts: Any) -> ExitTrace:
    """A trace of three labels at once."""
    made, generator = made_trace(3, samples), torch.Generator().manual_seed(1)
    truth = torch.randint(2, (samples, 3), generator=generator)
    return dataclasses.replace(made, labels=truth, multi_label=True, **facts)


def test_label_sets_are_texts_of_zeros_and_ones() -> None:
    data = embedded(build_report(several(), metric="f1_micro").page)
    assert data["label_sets"] and len(data["truth"][0]) == len(data["methods"][0]["answers"][0][0]) == 3
    assert data["truth"] == ["".join(map(str, row)) for row in several().known_labels().tolist()]
    with pytest.raises(ValueError, match="metric: got 'f1' for 3 labels at once; pass accuracy or f1_micro or f1_mac"):
        build_report(several(), metric="f1")


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["accuracy", "f1_micro", "f1_macro"])
def test_the_page_scores_label_sets_as_the_trace_does(browser: Any, tmp_path: Path, metric: str) -> None:
    trace = several()
    trace.logits[3, 1] = NAN
    path = write_report(trace, tmp_path / "report.html", metric=metric, thresholds=0.5)
    page = opened(browser, path)
    with pytest.warns(RuntimeWarning, match="not finite"):
        expected = list(layer_scores(trace, metric).values())
    assert page.evaluate("data.methods[0].layer_scores") == pytest.approx(expected)
    answers, _ = trace.at(0.5)
    row = page.locator("#table tbody tr").first.locator("td")
    names = [", ".join(name for name, flag in zip("abc", flags, strict=True) if flag) or "none"
             for flags in (trace.known_labels()[0].tolist(), (answers[0] > 0).tolist())]  # fmt: skip
    assert [row.nth(2).inner_text(), row.nth(3).inner_text()[:-2]] == names
    given = page.locator("#confusion tbody tr td:nth-child(2)").all_inner_texts()
    assert list(map(int, given)) == trace.known_labels().sum(dim=0).tolist()


NAN = float("nan")


@pytest.mark.slow
def test_metrics_are_those_of_compute_score(browser: Any, tmp_path: Path) -> None:
    page = opened(browser, write_report(made_trace(), tmp_path / "report.html"))
    classes = [
        ([0, 0], [0, 0]),
        ([1, 0], [0, 0]),
        ([0, 0], [0, 1]),
        ([1, 1], [0, 1]),
        ([0, 1], [1, 1]),
        ([1, 0], [1, 0]),
    ]
    numbers = [([0.1] * 3, [1.0, 2.0, 4.0]), ([0.1, 0.2, 0.2], [0.3] * 3), ([0.1, 0.1, 0.3], [1.0, 2.0, 2.0])]
    numbers += [([NAN, 0.2, 0.1], [1.0, 2.0, 4.0]), ([0.3, 0.2, 0.1], [1.0, 2.0, 4.0]), ([0.5], [0.5])]
    cases = [(name, *case) for name in ("accuracy", "f1", "matthews_correlation") for case in classes]
    cases += [(name, *case) for name in ("pearson", "spearmanr") for case in numbers]
    for name, given, wanted in cases:
        try:
            expected: float | None = compute_score(name, predictions=given, references=wanted)
        except ValueError:
            expected = None  # not defined
        embeddable = [None if value != value else value for value in given]
        found = page.evaluate("([name, given, wanted]) => METRICS[name](given, wanted)", [name, embeddable, wanted])
        same = found is None if expected is None or expected != expected else found == pytest.approx(expected)
        assert same, (name, given, wanted, found, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:trace. . of . predictions:RuntimeWarning")
def test_a_class_that_is_not_finite_counts_as_wrong(browser: Any, tmp_path: Path) -> None:
    cases = ("accuracy", [1, 0, 1], 2), ("f1", [1, 0], 1), ("f1", [1, 0], 0), ("matthews_correlation", [0, 1, 1, 0], 1)
    for metric, truth, lost in cases:
        labels = torch.tensor(truth)
        logits = torch.eye(2)[labels][:, None].repeat(1, 2, 1)
        logits[lost, 1] = NAN
        trace = ExitTrace(logits, torch.zeros(len(truth), 2), labels, (1, 2), "gt")
        page = opened(browser, write_report(trace, tmp_path / "report.html", metric=metric))
        expected = layer_scores(trace, metric)
        assert page.evaluate("data.methods[0].layer_scores") == pytest.approx(list(expected.values()))
        assert page.locator("#m0-score").inner_text() == f"{100 * expected[2]:.2f} %"
        answer = page.locator("#table tbody tr").nth(lost).locator("td").nth(3)
        assert answer.inner_text().startswith("not finite")


@pytest.mark.slow
def test_an_answer_that_is_not_finite_is_no_zero(browser: Any, tmp_path: Path) -> None:
    trace = made_trace(1)
    trace.logits[3, -1] = NAN
    page = opened(browser, write_report(trace, tmp_path / "report.html", metric="pearson"))
    assert page.locator("#m0-score").inner_text() == "not defined"
    assert page.locator("#table tbody tr").count() == 20
    answer = page.locator("#table tbody tr").nth(3).locator("td")
    assert [answer.nth(place).inner_text() for place in (3, 6)] == ["not finite", "not finite"]


@pytest.mark.slow
def test_samples_are_filtered_and_tokens_coloured(browser: Any, tmp_path: Path) -> None:
    trace = made_trace(2, label_names=("bad", "good"))
    found = [TokenAttributions(text.split(), {"answer": [1.0, -0.5, 0.1][: len(text.split())]}) for text in TEXTS]
    path = write_report(
        trace,
        tmp_path / "report.html",
        texts=TEXTS,
        thresholds=0.5,
        attributions={"model": found},
    )
    page = opened(browser, path)
    assert page.locator("#m0-threshold").inner_text() == "0.5000"
    assert page.locator("#table b").count() == 0  # a text is never markup
    logits, layers = trace.at(0.5)
    wrong = (predictions(logits) != trace.labels) & (layers == 1)
    page.locator("#filter-layer").select_option("1")
    page.locator("#filter-right").select_option("wrong")
    shown = page.locator("#table tbody tr td:first-child").all_inner_texts()
    assert [int(place) for place in shown] == wrong.nonzero().flatten().tolist()
    confusion = page.locator("#confusion tbody td").all_inner_texts()
    assert sum(map(int, confusion)) == int(wrong.sum())
    page.locator("#filter-layer").select_option("all")
    page.locator("#filter-right").select_option("all")
    page.locator("#filter-explain").select_option("answer")
    assert "rgba(var(--plus)" in page.locator("#table .token").first.get_attribute("style")
    page.locator("#filter-search").fill("WORSE")
    assert page.locator("#table tbody tr").count() == 5


@pytest.mark.slow
def test_colours_are_those_of_the_layer_where_a_sample_leaves(browser: Any, tmp_path: Path) -> None:
    trace = made_trace(2)
    values = {"answer at layer 1": [1.0, 0.0], "answer at layer 4": [0.0, -1.0]}
    found = {"model": [TokenAttributions(["not ", "bad"], values, separator="")]}
    page = opened(browser, write_report(trace, tmp_path / "report.html", texts=TEXTS, attributions=found))
    page.locator("#filter-explain").select_option("answer")
    assert page.locator("#table .token").all_text_contents() == ["not", "bad"]  # of the first sample, and no other
    assert (
        page.locator("#table .explained").evaluate("cell => cell.textContent") == "not badlargest effect: bad \u22121"
    )
    last = page.evaluate("data.methods[0].curve.length") - 1
    for place in range(last + 1):
        slide(page, place)
        layer = trace.at(page.evaluate(f"data.methods[0].curve[{place}].threshold"))[1][0].item()
        styles = [word.get_attribute("style") for word in page.locator("#table .token").all()]
        expected = {1: ["plus),0.750", "plus),0.000"], 2: [], 4: ["plus),0.000", "minus),0.750"]}[layer]
        assert len(styles) == len(expected)
        assert all(end in style for end, style in zip(expected, styles, strict=True))


@pytest.mark.slow
def test_a_slider_redraws_only_what_it_changes(browser: Any, tmp_path: Path) -> None:
    traces = {name: made_trace(2, seed=seed) for seed, name in enumerate(["berxit", "deebert"])}
    page = opened(browser, write_report(traces, tmp_path / "report.html", texts=TEXTS))
    place = page.evaluate("""() => {
        window.rows = [...document.querySelectorAll("#table tbody tr")];
        window.untouched = [...document.querySelectorAll("circle, input, #methods table")];
        return data.methods[0].curve.length >> 1;
    }""")
    deep = page.locator("#m1-layers").inner_text()
    slide(page, place)
    assert page.evaluate("untouched.every((each) => each.isConnected)")
    leave = traces["berxit"].at(page.evaluate(f"data.methods[0].curve[{place}].threshold"))[1]
    kept = page.evaluate("rows.map((row) => row.isConnected)")
    assert kept == (leave == 4).tolist()
    assert 0 < sum(kept) < 20
    assert page.locator("#m1-layers").inner_text() == deep


@pytest.mark.slow
def test_the_slider_tells_the_flops_of_the_trace(browser: Any, tmp_path: Path) -> None:
    flops = torch.tensor([[10, 25, 50], [30, 70, 130]]).repeat(10, 1)
    trace = dataclasses.replace(made_trace(), flops=flops)
    page = opened(browser, write_report(trace, tmp_path / "report.html", thresholds={"model": 0.5}))
    point = next(each for each in tradeoff_curve(trace, "accuracy", [0.5]) if each.threshold == 0.5)
    assert page.locator("#m0-flops").inner_text() == f"{100 * (1 - point.flops / 90):.1f} %"


@pytest.mark.slow
def test_a_score_that_is_not_defined_is_no_zero(browser: Any, tmp_path: Path) -> None:
    whole = made_trace(2)
    one_class = ExitTrace(whole.logits, whole.scores, torch.zeros(20, dtype=torch.long), whole.exit_layers, "gt")
    page = opened(browser, write_report(one_class, tmp_path / "report.html", metric="matthews_correlation"))
    assert page.locator("#m0-score").inner_text() == "not defined"
    assert "is not defined" in page.locator("#curves").inner_text()


# The numbers of which a line break separates a part, in the page outside of the samples' texts.
SPLIT_NUMBERS = """(() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), split = [];
    while (walker.nextNode()) {
        const node = walker.currentNode;
        if (!node.parentElement.offsetParent || node.parentElement.closest("script, option, .text")) continue;
        for (const match of node.textContent.matchAll(/[-\\d.]+(\\s%)?/g)) {
            const range = document.createRange();
            range.setStart(node, match.index);
            range.setEnd(node, match.index + match[0].length);
            const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
            if (lines.size > 1) split.push(node.textContent);
        }
    }
    return split;
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_everything_fits_the_page_and_the_keyboard_reaches_it(browser: Any, tmp_path: Path, width: int) -> None:
    traces = {name: made_trace(2, seed=seed) for seed, name in enumerate(["berxit", "deebert", "pabee"])}
    path = write_report(traces, tmp_path / "report.html", texts=TEXTS)
    page = opened(browser, path, viewport={"width": width, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#m1-slider").focus()
    before = page.locator("#m1-layers").inner_text()
    page.keyboard.press("Home")
    assert page.locator("#m1-layers").inner_text() != before
    assert page.locator("#m1-slider").get_attribute("aria-valuetext").startswith("threshold ")
    assert page.evaluate(SPLIT_NUMBERS) == []
    unnamed = "[...document.querySelectorAll('input, select')].filter((each) => !each.labels.length).length"
    assert page.evaluate(unnamed) == 0


@pytest.mark.slow
def test_no_point_is_hidden_under_another(browser: Any, tmp_path: Path) -> None:
    trace = made_trace(2)
    same = dict.fromkeys(("a", "b", "c"), trace)
    fixed = {"a": (2.0, 0.5), "b": (2.0, 0.5)}
    path = write_report(same, tmp_path / "report.html", thresholds=dict.fromkeys(same, 0.5), fixed=fixed)
    page = opened(browser, path, viewport={"width": 400, "height": 800})
    boxes = [page.locator(f"#m{index}-dot").bounding_box() for index in range(3)]
    centres = [complex(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]
    assert min(abs(a - b) for index, a in enumerate(centres) for b in centres[:index]) > 14
    shapes = page.evaluate("[...document.querySelectorAll('path[id$=dot]')].map((dot) => dot.getAttribute('d'))")
    dashes = page.evaluate("data.methods.map((_, index) => dashOf(index))")
    assert len(set(shapes)) == len(set(dashes)) == 3


@pytest.mark.slow
def test_points_tell_their_values_to_mouse_and_keyboard(browser: Any, tmp_path: Path) -> None:
    trace = made_trace(2)
    page = opened(browser, write_report(trace, tmp_path / "report.html", thresholds=0.5, fixed={"3 layers": (3, 0.6)}))
    tip, point = page.locator(".tip"), tradeoff_curve(trace, "accuracy", [0.5])
    box = page.locator("#m0-dot").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    chosen = next(each for each in point if each.threshold == 0.5)
    assert "model, threshold 0.5000" in tip.inner_text() and f"{chosen.mean_layers:.2f} layers" in tip.inner_text()
    page.mouse.move(0, 0)
    assert tip.is_hidden()
    page.locator(".hit").first.focus()
    first = tip.inner_text()
    assert page.locator(".hit").first.get_attribute("aria-label") == first.replace("\n", ", ")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() != first
    page.keyboard.press("Enter")
    assert page.locator("#m0-slider").input_value() == "1"
    labels = page.evaluate("[...document.querySelectorAll('.hit')].map((hit) => hit.getAttribute('aria-label'))")
    assert labels[-1] == "3 layers, without exits, accuracy 60.0\u00a0%, 3 layers"
    assert sum(label.startswith("all texts leave after layer") for label in labels) == 3


@pytest.mark.slow
def test_sliders_bars_and_points_have_the_colour_of_their_method(browser: Any, tmp_path: Path) -> None:
    traces = {name: made_trace(2, seed=seed) for seed, name in enumerate("ab")}
    page = opened(browser, write_report(traces, tmp_path / "report.html"))
    for index in range(2):
        of = f"""(() => {{ const style = (name, part) => getComputedStyle(document.querySelector(name))[part];
            return [style("#m{index}-slider", "accentColor"), style("#m{index}-exits .bar", "backgroundColor"),
                style("#m{index}-dot", "fill")]; }})()"""
        assert len(set(page.evaluate(of))) == 1


@pytest.mark.slow
def test_what_is_no_better_than_the_majority_is_named(browser: Any, tmp_path: Path) -> None:
    labels = (torch.arange(20) < 15).long()
    logits = torch.stack([torch.eye(2)[torch.ones(20).long()], torch.eye(2)[labels]], dim=1)
    trace = ExitTrace(logits, torch.rand(20, 2), labels, (1, 2), "gt", criterion="confidence", bounds=(0.0, 1.0))
    page = opened(browser, write_report(trace, tmp_path / "report.html", thresholds=0.0))
    warning = page.locator("#m0-warning")
    assert warning.inner_text() == "This is no better than always giving the most frequent answer (75.00\u00a0%)."
    assert [cell.endswith("\u25bc") for cell in page.locator("#m0-exits td:last-child").all_inner_texts()] == [
        True,
        False,
    ]
    assert "majority (always the most frequent answer): 75.0\u00a0%" in page.locator(".legend").inner_text()
    slide(page, page.evaluate("data.methods[0].curve.length >> 1"))
    assert warning.inner_text() == "The exit after layer 1 gives the same answer to all texts."
    slide(page, page.evaluate("data.methods[0].curve.length - 1"))
    assert warning.inner_text() == ""


@pytest.mark.slow
def test_samples_are_cards_on_a_narrow_screen_and_more_are_shown_on_demand(browser: Any, tmp_path: Path) -> None:
    path = write_report(made_trace(2), tmp_path / "report.html", texts=TEXTS, most_rows=8)
    page = opened(browser, path, viewport={"width": 400, "height": 800})
    region = page.locator("[aria-labelledby=samples-title].scroll")
    assert region.evaluate("each => each.scrollWidth <= each.clientWidth")
    cells = page.locator("#table tbody tr").first.locator("td")
    assert cells.evaluate_all("cells => cells.map((cell) => getComputedStyle(cell).display)") == ["block"] * 7
    assert cells.evaluate_all("cells => cells.map((cell) => cell.dataset.name)")[:3] == ["sample", "text", "label"]
    more = page.locator("#more")
    assert (more.inner_text(), page.locator("#table tbody tr").count()) == ("Show 8 more of 12", 8)
    more.click()
    more.click()
    assert (more.is_hidden(), page.locator("#table tbody tr").count()) == (True, 20)


@pytest.mark.slow
def test_thresholds_are_in_order_and_have_equal_decimals(browser: Any, tmp_path: Path) -> None:
    page = opened(browser, write_report(made_trace(2), tmp_path / "report.html"))
    last, shown = page.evaluate("data.methods[0].curve.length") - 1, []
    for place in range(last):
        slide(page, place)
        shown.append(page.locator("#m0-threshold").inner_text())
    assert len({len(name.partition(".")[2]) for name in shown}) == 1
    assert list(map(float, shown)) == sorted(map(float, shown))  # a confidence: the lowest threshold saves most
