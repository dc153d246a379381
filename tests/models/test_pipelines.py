"""Transformers' pipeline exits early with our models, and ours says where, with the package and without it."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fresh import run_script
from helpers.pipeline_without_package import OWN, TEXTS, answers
from helpers.predictions import count_layers, exiting
from helpers.tiny import CLASSES, build
from helpers.words import new_tokenizer
from transformers import AutoModelForSequenceClassification, TextClassificationPipeline, pipeline

from adaexit_hf import predict
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.pipeline_early_exit import EarlyExitTextClassificationPipeline

PAIRS = [{"text": text, "text_pair": "w9 w8"} for text in TEXTS]
Model = EarlyExitForSequenceClassification


class Lines(logging.Handler):
    """Every line that Transformers logs as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    handler = Lines()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def expected(model: Model, items: list[Any], **settings: Any) -> tuple[list[Any], list[int], list[float]]:
    """Probabilities or numbers, exit layers and scores, by `predict`."""
    found = predict(model, items, new_tokenizer(), progress=False, **settings)
    logits = found.logits if model.config.num_labels == 1 else found.logits.softmax(dim=-1)
    return logits.tolist(), found.exit_layer.tolist(), found.exit_score.tolist()


def of_labels(model: Model, found: list[dict[str, Any]]) -> list[float]:
    scores = {each["label"]: each["score"] for each in found}
    return [scores[model.config.id2label[index]] for index in range(model.config.num_labels)]


def close(given: Any, wanted: Any) -> None:
    torch.testing.assert_close(torch.tensor(given), torch.tensor(wanted), atol=1e-5, rtol=1e-4)


def same(given: Any, wanted: Any) -> None:
    """Answers in whatever form; weights that lie elsewhere in memory are added up in another order."""
    if isinstance(wanted, dict):
        assert given.keys() == wanted.keys()
        given, wanted = list(given.values()), list(wanted.values())
    if isinstance(wanted, list):
        for one, other in zip(given, wanted, strict=True):
            same(one, other)
    else:
        assert given == (pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize("items", [TEXTS, PAIRS], ids=["texts", "pairs"])
# Batches are Transformers' affair; that a method answers one text as it does many: test_common.py.
@pytest.mark.parametrize(("method", "batch_size"), [*((method, 8) for method in CLASSES), ("deebert", 1)])
def test_transformers_own_pipeline_exits_early(method: str, batch_size: int, items: Any, logged: list[str]) -> None:
    model = exiting(method, items)
    probabilities, layers, _ = expected(model, items)
    rows = count_layers(model)
    found = pipeline("text-classification", model=model, tokenizer=new_tokenizer())(
        items, batch_size=batch_size, top_k=None
    )
    close([of_labels(model, each) for each in found], probabilities)
    assert sum(rows) == sum(layers) < 3 * len(items)
    assert logged == []


def test_a_regression_gives_the_number_and_exits_early(logged: list[str]) -> None:
    for method in ("berxit", "pabee"):
        model = exiting(method, PAIRS, num_labels=1)
        numbers, layers, _ = expected(model, PAIRS)
        rows = count_layers(model)
        found = pipeline("text-classification", model=model, tokenizer=new_tokenizer())(PAIRS, batch_size=8)
        close([[each["score"]] for each in found], numbers)
        assert sum(rows) == sum(layers) < 3 * len(PAIRS)
    assert logged == []


def test_several_labels_at_once_give_a_probability_each(logged: list[str]) -> None:
    model = exiting("deebert", problem_type="multi_label_classification")
    for task in ("text-classification", OWN):
        found = pipeline(task, model=model, tokenizer=new_tokenizer())(TEXTS, top_k=None)
        for text, answer in zip(TEXTS, found, strict=True):
            logits = model(**new_tokenizer()(text, return_tensors="pt")).logits[0]
            names = {label["label"]: label["score"] for label in answer}
            close([[names[f"LABEL_{index}"] for index in range(3)]], [logits.sigmoid().tolist()])
    assert logged == []


@pytest.mark.parametrize("method", CLASSES)
def test_ours_gives_exit_layers_and_scores(method: str, logged: list[str]) -> None:
    model = exiting(method)
    probabilities, layers, scores = expected(model, TEXTS)
    classify = pipeline(OWN, model=model.train(), tokenizer=new_tokenizer())
    assert type(classify) is EarlyExitTextClassificationPipeline
    rows = count_layers(model)
    plain, scored = classify(TEXTS, batch_size=8), classify(TEXTS, return_exit_score=True)
    assert sum(rows) == 2 * sum(layers)  # scores cost nothing
    assert min(layers) < 3
    for found in (plain, scored):
        assert [each["exit_layer"] for each in found] == layers
        close([each["score"] for each in found], [max(each) for each in probabilities])
    assert {frozenset(each) for each in plain} == {frozenset(("label", "score", "exit_layer"))}
    close([each["exit_score"] for each in scored], scores)
    assert logged == []


def test_ours_takes_a_threshold_for_good_and_for_a_call() -> None:
    model = exiting("deebert")
    classify = pipeline(OWN, model=model, tokenizer=new_tokenizer(), exit_threshold=0.0, return_exit_score=True)
    assert {each["exit_layer"] for each in classify(TEXTS)} == {3}
    called = classify(TEXTS, exit_threshold=1.0, batch_size=8)
    assert [each["exit_layer"] for each in called] == expected(model, TEXTS, exit_threshold=1.0)[1]
    assert {each["exit_layer"] for each in classify(TEXTS)} == {3}
    full = pipeline(OWN, model=model, tokenizer=new_tokenizer())(TEXTS, early_exit=False)
    assert [each["exit_layer"] for each in full] == [3] * len(TEXTS)
    with pytest.raises(ValueError, match=r"exit_threshold: got 7; deebert with 3 labels takes a number in"):
        classify(TEXTS, exit_threshold=7)


def test_ours_gives_the_forms_of_transformers_own() -> None:
    model = exiting("right-tool")
    ours, theirs = (pipeline(task, model=model, tokenizer=new_tokenizer()) for task in (OWN, "text-classification"))
    calls: list[tuple[Any, dict[str, Any]]] = [
        (TEXTS[3], {}), (TEXTS[3], {"top_k": None}), (TEXTS, {"top_k": 2}), (PAIRS[3], {}), (TEXTS[:1], {}),
        (TEXTS, {"function_to_apply": "none", "truncation": True, "max_length": 4}),
    ]  # fmt: skip
    for inputs, settings in calls:
        assert without_exit(ours(inputs, **settings)) == theirs(inputs, **settings)


def without_exit(found: Any) -> Any:
    if isinstance(found, list):
        return [without_exit(each) for each in found]
    return {name: value for name, value in found.items() if name != "exit_layer"}


def test_ours_refuses_a_model_without_exits() -> None:
    stock = AutoModelForSequenceClassification.from_config(build("deebert").config.encoder_config)
    with pytest.raises(TypeError, match=r"model: BertForSequenceClassification has no exits; .*'text-classification'"):
        pipeline(OWN, model=stock, tokenizer=new_tokenizer())


def test_calibrated_answers_are_the_same() -> None:
    model = exiting("berxit")
    threshold = model.config.exit_threshold
    model.config.exit_temperatures, model.config.exit_threshold = [2.0, 0.5, 1.5], threshold
    found = pipeline(OWN, model=model, tokenizer=new_tokenizer())(TEXTS, batch_size=8, return_exit_score=True)
    probabilities, layers, scores = expected(model, TEXTS)
    assert [each["exit_layer"] for each in found] == layers
    close(
        [[each["score"], each["exit_score"]] for each in found],
        list(zip(map(max, probabilities), scores, strict=True)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, saved by the model and by the pipeline, and what a process without the package found in them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    exiting("dact-bert").save_pretrained(folder / "dact-bert")
    new_tokenizer().save_pretrained(folder / "dact-bert")
    pipeline(OWN, model=exiting("pabee"), tokenizer=new_tokenizer()).save_pretrained(folder / "pabee")
    script = Path(__file__).parents[1] / "helpers" / "pipeline_without_package.py"
    run_script(script, str(folder), HF_HOME=str(folder / "cache"), HF_MODULES_CACHE=str(folder / "cache"))
    return folder


@pytest.mark.parametrize("method", ["dact-bert", "pabee"])
def test_a_checkpoint_brings_the_pipeline_along(folder: Path, method: str) -> None:
    found = json.loads((folder / method / "found.json").read_text())
    here = answers(pipeline(OWN, model=exiting(method), tokenizer=new_tokenizer()))
    same(found, here | {"again": here["batch"]})


def test_without_the_package_nothing_is_logged(folder: Path) -> None:
    assert (folder / "stderr").read_text() == ""


@pytest.mark.parametrize("method", ["dact-bert", "pabee"])
def test_with_the_package_its_own_pipeline_runs_without_trust(folder: Path, method: str, logged: list[str]) -> None:
    classify = pipeline(OWN, model=str(folder / method))
    assert type(classify) is EarlyExitTextClassificationPipeline
    same(answers(classify), answers(pipeline(OWN, model=exiting(method), tokenizer=new_tokenizer())))
    assert type(pipeline("text-classification", model=str(folder / method))) is TextClassificationPipeline
    assert logged == []


def test_a_fine_tuned_checkpoint_still_has_its_pipeline(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder / "pabee")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    impl = config["custom_pipelines"][OWN]["impl"]
    assert (tmp_path / f"{impl.split('.')[0]}.py").is_file()


def test_our_pipeline_truncates_as_the_tokenizer_says() -> None:
    model, tokenizer = build("deebert"), new_tokenizer(model_max_length=4)
    classify = pipeline(OWN, model=model, tokenizer=tokenizer)
    assert classify("w7 w8 w9 w10") == classify("w7 w8")
    assert classify("w7 w8 w9 w10", truncation=False) != classify("w7 w8")


def test_our_pipeline_refuses_the_other_kind_of_texts() -> None:
    for pairs, item, name in ((True, TEXTS[0], "a single text"), (False, PAIRS[0], "a pair of texts")):
        classify = pipeline(OWN, model=build("deebert", pairs=pairs), tokenizer=new_tokenizer())
        with pytest.raises(ValueError, match=f"is {name}, but the model was trained on"):
            classify(item)
        assert len(classify([PAIRS[0] if pairs else TEXTS[0]])) == 1
