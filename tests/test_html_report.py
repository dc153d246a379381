"""The HTML report: what it embeds and refuses, and what a real browser makes of it."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adaexit_hf.evaluation import ExitTrace, predictions
from adaexit_hf.html_report import TokenAttributions, build_report, write_report
from adaexit_hf.tasks import compute_score

TEXTS = ["</script><b>bold</b>", "not so bad", "good", "bad & worse"] * 5


def made_trace(labels: int = 3, samples: int = 20, exits: tuple[int, ...] = (1, 2, 4), seed: int = 0) -> ExitTrace:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, len(exits), labels, generator=generator)
    truth = torch.arange(samples) % max(labels, 2)
    scores = torch.rand(samples, len(exits), generator=generator)
    scores[:1, 0] = float("nan")
    return ExitTrace(logits, scores, truth if labels > 1 else truth / 7, exits, "gt")


def embedded(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_everything_is_in_one_file(tmp_path: Path) -> None:
    page = write_report(made_trace(), tmp_path / "report.html", texts=TEXTS).read_text()
    assert not re.findall(r"(?:src|href)=\"(?!#)|https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page)
    data = embedded(page)
    assert data["texts"] == TEXTS
    assert data["methods"][0]["scores"][0][0] is None
    assert [len(row) for row in data["methods"][0]["answers"]] == [3] * 20


def test_200_samples_of_12_layers_are_less_than_a_megabyte() -> None:
    words = ["gripping"] * 15
    found = [
        TokenAttributions(words, {f"{what} at layer {k}": [0.12345] * 15 for what in "ab" for k in range(1, 13)})
    ] * 200
    traces = {name: made_trace(2, 200, tuple(range(1, 13)), seed) for seed, name in enumerate("pq")}
    page = build_report(traces, texts=[" ".join(words)] * 200, attributions={"p": found}).page
    assert len(page.encode()) < 1_000_000


def test_a_notebook_shows_the_page() -> None:
    report = build_report(made_trace())
    assert report._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')


@pytest.mark.parametrize(
    ("traces", "options", "message"),
    [
        ({}, {}, "traces: got none"),
        (None, {}, "'model' has no labels"),
        ({"a": made_trace(3), "b": made_trace(2)}, {}, "'b' has 2 labels, 'a' 3"),
        ({"a": made_trace(samples=20), "b": made_trace(samples=19)}, {}, "'b' and 'a' are of different samples"),
        (made_trace(1), {}, "metric: got 'accuracy' for 1 labels; pass pearson or spearmanr"),
        (made_trace(), {"metric": "pearson"}, "metric: got 'pearson' for 3 labels; pass accuracy"),
        (made_trace(), {"metric": "bleu"}, "metric: got 'bleu'; choose one of accuracy"),
        (made_trace(), {"texts": TEXTS[1:]}, "texts: got 19 for 20 samples"),
        (made_trace(), {"labels": ["a"]}, "labels: got 1 names for 3 labels"),
        (made_trace(), {"attributions": {"model": []}}, r"attributions\['model'\]: got 0 for 20 samples"),
        (made_trace(), {"attributions": {"b": [TokenAttributions([], {})] * 20}}, "got 'b'; the traces are model"),
    ],
)
def test_what_does_not_fit_together_is_refused(traces: Any, options: dict[str, Any], message: str) -> None:
    if traces is None:
        whole = made_trace()
        traces = ExitTrace(whole.logits, whole.scores, None, whole.exit_layers, whole.ready)
    with pytest.raises(ValueError, match=message):
        build_report(traces, **options)


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
        "(slider, place) => { slider.value = place; slider.dispatchEvent(new Event('input')); }", place
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
        expected = compute_score(metric, predictions(logits).numpy(), trace.labels.numpy())
        assert page.locator("#m0-score").inner_text() == f"{100 * expected:.2f} %"
        assert page.locator("#m0-layers").inner_text() == f"{layers.double().mean():.2f}"
        counts = page.locator("#m0-exits tbody tr td:nth-child(2)").all_inner_texts()
        assert [int(count) for count in counts] == [int((layers == layer).sum()) for layer in trace.exit_layers]


@pytest.mark.slow
def test_samples_are_filtered_and_tokens_coloured(browser: Any, tmp_path: Path) -> None:
    trace = made_trace(2)
    found = [TokenAttributions(text.split(), {"answer": [1.0, -0.5, 0.1][: len(text.split())]}) for text in TEXTS]
    path = write_report(
        trace,
        tmp_path / "report.html",
        texts=TEXTS,
        labels=["bad", "good"],
        thresholds={"model": 0.5},
        attributions={"model": found},
    )
    page = opened(browser, path)
    assert page.locator("#m0-threshold").inner_text() == "0.5"
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
def test_a_score_that_is_not_defined_is_no_zero(browser: Any, tmp_path: Path) -> None:
    whole = made_trace(2)
    one_class = ExitTrace(whole.logits, whole.scores, torch.zeros(20, dtype=torch.long), whole.exit_layers, "gt")
    page = opened(browser, write_report(one_class, tmp_path / "report.html", metric="matthews_correlation"))
    assert page.locator("#m0-score").inner_text() == "not defined"


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_sticks_out_of_the_page_and_the_keyboard_reaches_all(browser: Any, tmp_path: Path, width: int) -> None:
    traces = {name: made_trace(2, seed=seed) for seed, name in enumerate(["berxit", "deebert", "pabee"])}
    path = write_report(traces, tmp_path / "report.html", texts=TEXTS)
    page = opened(browser, path, viewport={"width": width, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#m1-slider").focus()
    before = page.locator("#m1-layers").inner_text()
    page.keyboard.press("Home")
    assert page.locator("#m1-layers").inner_text() != before
    assert page.locator("#m1-slider").get_attribute("aria-valuetext").startswith("threshold ")
    unnamed = "[...document.querySelectorAll('input, select')].filter((each) => !each.labels.length).length"
    assert page.evaluate(unnamed) == 0
