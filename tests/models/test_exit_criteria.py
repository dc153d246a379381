"""Every method exits by every criterion that its mathematics allows, and as its trace predicts."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.scripted import naming, scripted, texts
from helpers.tiny import (
    CLASSES,
    build,
    check_early_exit,
    config,
    encoder_config,
    inputs_of,
    thresholds_between,
    trace_of,
)
from transformers import AutoModelForSequenceClassification

from adaexit_hf import BerxitConfig, DactBertConfig, DeeBertConfig, DepthAdaptiveConfig, PabeeConfig
from adaexit_hf.models import EarlyExitForSequenceClassification
from adaexit_hf.models.exit_criteria import CRITERIA

Model = EarlyExitForSequenceClassification
PAIRS = [
    (method, criterion)
    for method, model in CLASSES.items()
    for criterion in dict.fromkeys([model.config_class.own_criterion, *CRITERIA])
    if criterion is not None
]
every_pair = pytest.mark.parametrize(("method", "criterion"), PAIRS)


def four_layers(method: str, criterion: str, **kwargs: Any) -> Model:
    layers = encoder_config("bert", num_hidden_layers=4)
    return build(method, encoder_config=layers, exit_criterion=criterion, exit_threshold=None, **kwargs)


# Scores, one list of logits after the other -------------------------------------------------------------------------


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(logits)) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def entropy(logits: list[float]) -> float:
    return -sum(p * math.log(p) for p in softmax(logits) if p > 0)


def margin(logits: list[float]) -> float:
    *_, second, first = sorted(softmax(logits))
    return first - second


def agreements(exits: list[list[float]]) -> list[int]:
    classes, counts = [logits.index(max(logits)) for logits in exits], [0]
    for index in range(1, len(classes)):
        counts.append(counts[-1] + 1 if classes[index] == classes[index - 1] else 0)
    return counts


COUNTS: dict[str, Callable[[list[list[float]]], list[int]]] = {
    "patience": agreements,
    "layer": lambda exits: list(range(1, len(exits) + 1)),  # one exit per layer
}
NAIVE: dict[str, Callable[[list[float]], float]] = {
    "entropy": entropy,
    "normalized_entropy": lambda logits: entropy(logits) / math.log(len(logits)),
    "confidence": lambda logits: max(softmax(logits)),
    "margin": margin,
}


@every_pair
def test_early_exit_is_what_the_trace_predicts(method: str, criterion: str) -> None:
    model = four_layers(method, criterion, num_labels=2)  # two: some exits shall agree
    inputs = inputs_of(model, rows=5)
    trace = trace_of(model, inputs)
    if criterion in CRITERIA:
        answers = trace.exit_logits.tolist()
        naive = [
            COUNTS[criterion](row) if criterion in COUNTS else list(map(NAIVE[criterion], row)) for row in answers
        ]
        torch.testing.assert_close(trace.exit_scores, torch.tensor(naive).float(), atol=1e-5, rtol=1e-5)
    low, high = model.config.threshold_bounds
    between = thresholds_between(trace, 2)
    seen = check_early_exit(model, inputs, [*between, [high, low, between[0], low]])
    assert len(seen) > 1


@every_pair
@torch.no_grad()
def test_the_ends_of_the_threshold(method: str, criterion: str) -> None:
    """At one end none exits early; at the other, where the criterion is not the method's own, all at once."""
    model = four_layers(method, criterion)
    inputs = inputs_of(model)
    low, high = model.config.threshold_bounds
    scores = trace_of(model, inputs).exit_scores
    assert ((low <= scores) & (scores <= high) | (scores == 0)).all()
    never, always = (low, high) if model.ready is torch.lt else (high, low)
    if criterion == model.config.own_criterion:
        return
    assert model(**inputs, exit_threshold=never).exit_layer.tolist() == [4] * 6
    if criterion != "patience":
        assert model(**inputs, exit_threshold=always).exit_layer.tolist() == [1] * 6


@pytest.mark.parametrize(
    ("criterion", "bounds"),
    [
        ("entropy", (0, math.log(5))),
        ("normalized_entropy", (0, 1)),
        ("confidence", (0, 1)),
        ("margin", (0, 1)),
        ("patience", (1, 3)),
        ("layer", (1, 12)),
    ],
)
def test_the_range_of_the_threshold(criterion: str, bounds: tuple[float, float]) -> None:
    made = DeeBertConfig(exit_criterion=criterion, num_labels=5, exit_layers=[4, 8, 12])
    assert made.threshold_bounds == pytest.approx(bounds)
    with pytest.raises(ValueError, match="exit_threshold: got "):
        made.thresholds(bounds[0] - 0.01)
    with pytest.raises(ValueError, match="exit_threshold: got "):
        made.thresholds(bounds[1] + 0.01)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("entropy", [True, False, False]),
        ("normalized_entropy", [True, False, False]),
        ("confidence", [False, False, True]),
        ("margin", [False, False, True]),
        ("patience", [False, True, True]),
        ("layer", [False, True, True]),
    ],
)
def test_comparisons(criterion: str, expected: list[bool]) -> None:
    ready = build("deebert", exit_criterion=criterion).ready
    assert ready(torch.tensor([0.0, 1.0, 2.0, math.nan]), 1.0).tolist() == [*expected, False]


def test_defaults() -> None:
    assert DeeBertConfig().exit_criterion == "entropy"
    assert PabeeConfig().exit_criterion == "patience"
    assert DactBertConfig().exit_criterion == "dact"
    assert BerxitConfig().exit_criterion == "confidence"
    assert BerxitConfig(num_labels=1).exit_criterion == "learned"


def test_the_default_threshold_of_an_own_score_is_not_that_of_another() -> None:
    assert DactBertConfig().exit_threshold == DactBertConfig(exit_criterion="dact").exit_threshold == 0.0
    for criterion in CRITERIA:
        assert DactBertConfig(exit_criterion=criterion).exit_threshold is None


# Patience ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_exit_that_is_not_finite_agrees_with_nobody() -> None:
    answers = naming([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    answers[1, 2] = math.nan  # counts: 0 1 - 0 1 2
    answers[2, 1, 1] = math.inf  # 0 - 0 1 2 3
    model = scripted("pabee", answers)
    with pytest.warns(RuntimeWarning, match="2 exits gave NaN"):
        scores = trace_of(model, texts(3)).exit_scores
    nan = math.nan
    expected = torch.tensor([[0.0, 1, 2, 3, 4, 5], [0, 1, nan, 0, 1, 2], [0, nan, 0, 1, 2, 3]])
    torch.testing.assert_close(scores, expected, equal_nan=True)
    for patience, layers in {1: [2, 2, 4], 2: [3, 6, 5], 3: [4, 6, 6], 4: [5, 6, 6]}.items():
        with pytest.warns(RuntimeWarning, match="NaN or infinite"):
            assert model(**texts(3), exit_threshold=patience).exit_layer.tolist() == layers


@pytest.mark.parametrize("method", CLASSES)
@torch.no_grad()
def test_the_memory_of_patience_leaves_with_its_row(method: str) -> None:
    """Rows leave at the first, third and last chance; those that stay keep their own counts."""
    answers = naming([[0, 1, 0, 0, 0], [2, 2, 0, 1, 1], [1, 2, 2, 2, 0], [0, 1, 2, 2, 2], [0, 1, 0, 1, 0]])
    model = scripted(method, answers, exit_criterion="patience", exit_threshold=None)
    for patience, layers in {1: [4, 2, 3, 4, 5], 2: [5, 5, 4, 5, 5], 3: [5, 5, 5, 5, 5]}.items():
        assert model(**texts(5), exit_threshold=patience).exit_layer.tolist() == layers


@pytest.mark.parametrize("tolerance", [0.5, 0.3])
@torch.no_grad()
def test_regression_by_patience_for_a_method_with_a_score_of_its_own(tolerance: float) -> None:
    answers = torch.tensor([[1.0, 1.25, 1.5, 1.75, 2.0], [1.0, 1.4, 1.0, 1.25, 3.0], [0.0, 5.0, 5.0, 5.0, 5.0]])
    model = scripted("berxit", answers[..., None], exit_criterion="patience", patience_tolerance=tolerance)
    expected = {0.5: {1: [2, 2, 3], 2: [3, 3, 4], 3: [4, 4, 5]}, 0.3: {1: [2, 4, 3], 2: [3, 5, 4], 3: [4, 5, 5]}}
    for patience, layers in expected[tolerance].items():
        assert model(**texts(3), exit_threshold=patience).exit_layer.tolist() == layers


def test_regression_by_patience_is_what_the_trace_predicts() -> None:
    for method in ("berxit", "pabee"):
        model = four_layers(method, "patience", num_labels=1, patience_tolerance=0.4)
        inputs = inputs_of(model, rows=5)
        assert len(check_early_exit(model, inputs, [1, 2, [3, 1, 2, 1]])) > 1


def test_only_regression_by_patience_has_a_tolerance() -> None:
    assert BerxitConfig(num_labels=1, exit_criterion="patience").tolerance == 0.1
    assert BerxitConfig(num_labels=1, exit_criterion="patience", patience_tolerance=0).tolerance == 0
    assert PabeeConfig(num_labels=2).tolerance is None  # classes are the same or not


# One layer for all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CLASSES)
@torch.no_grad()
def test_all_rows_leave_after_the_layer_of_the_threshold(method: str) -> None:
    answers = naming([[0, 1, 0, 0, 0], [2, 2, 0, 1, 1]])
    model = scripted(method, answers, exit_criterion="layer", exit_threshold=2)
    assert model(**texts(2)).exit_layer.tolist() == [2, 2]
    assert model(**texts(2), exit_threshold=5).exit_layer.tolist() == [5, 5]
    assert model(**texts(2), early_exit=False).exit_layer.tolist() == [5, 5]


@torch.no_grad()
def test_without_an_exit_after_the_layer_the_next_one_answers() -> None:
    model = build("deebert", exit_criterion="layer", exit_layers=[1, 3], exit_threshold=2)
    assert model(**inputs_of(model)).exit_layer.tolist() == [3] * 6
    assert trace_of(model, inputs_of(model)).exit_scores[0].tolist() == [1.0, 3.0]


@torch.no_grad()
def test_regression_may_leave_by_layer() -> None:
    model = build("berxit", num_labels=1, exit_criterion="layer", exit_threshold=2)
    assert model(**inputs_of(model)).exit_layer.tolist() == [2] * 6


@torch.no_grad()
def test_a_regression_that_learned_to_exit_is_loaded_to_leave_by_layer(tmp_path: Path) -> None:
    build("berxit", num_labels=1, exit_threshold=0.5, lte_variant="authors").save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, exit_criterion="layer", exit_threshold=2)
    assert model.eval()(**inputs_of(model)).exit_layer.tolist() == [2] * 6


@torch.no_grad()
def test_a_criterion_that_was_changed_in_place_is_saved(tmp_path: Path) -> None:
    model = build("berxit", num_labels=1, lte_variant="authors")
    model.config.exit_criterion, model.config.exit_threshold = "layer", 2
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded(**inputs_of(loaded)).exit_layer.tolist() == [2] * 6


@torch.no_grad()
def test_an_exit_that_is_not_finite_does_not_answer_for_its_layer() -> None:
    answers = naming([[1, 1, 1], [1, 1, 1]])
    answers[1, 1] = math.nan
    model = scripted("pabee", answers, exit_criterion="layer", exit_threshold=2)
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        assert model(**texts(2)).exit_layer.tolist() == [2, 3]


@pytest.mark.parametrize("value", [0, 4, 2.5, math.nan])
def test_a_layer_that_does_not_exist_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"exit_threshold: got .* number in \[1, 3\], or None for full depth"):
        config("deebert", exit_criterion="layer", exit_threshold=value)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["none", "dact", 3, ["entropy"]])
def test_an_unknown_criterion_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="exit_criterion: got .*; choose one of 'learned', 'entropy', .*'patience'"):
        BerxitConfig(exit_criterion=value)


@pytest.mark.parametrize("criterion", NAIVE)
def test_regression_has_no_distribution(criterion: str) -> None:
    refusal = f"got '{criterion}', which needs class probabilities, and num_labels=1 has none; pass exit_criterion="
    with pytest.raises(ValueError, match=f"{refusal}'learned' or 'patience' or 'layer'$"):
        BerxitConfig(num_labels=1, exit_criterion=criterion)
    with pytest.raises(ValueError, match=f"{refusal}'patience' or 'layer'$"):
        PabeeConfig(num_labels=1, exit_criterion=criterion)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_labels": 3}, ValueError, "got 0.2, which only regression .* not 3 labels with 'patience'; leave it"),
        ({"exit_criterion": "learned"}, ValueError, "got 0.2, which only regression .* with 'learned'; leave it out"),
        ({"patience_tolerance": -0.1}, ValueError, "got -0.1; pass a finite number >= 0"),
        ({"patience_tolerance": math.nan}, ValueError, "got nan; pass a finite number >= 0"),
        ({"patience_tolerance": "0.1"}, TypeError, "got '0.1' of type str; pass a number"),
        ({"patience_tolerance": True}, TypeError, "got True of type bool; pass a number"),
    ],
)
def test_a_wrong_tolerance_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    defaults = {"num_labels": 1, "exit_criterion": "patience", "patience_tolerance": 0.2}
    with pytest.raises(error, match=f"patience_tolerance: {message}"):
        BerxitConfig(**defaults | options)


@pytest.mark.parametrize("value", [-1, 4, 0.5, math.nan, math.inf, [0, 1, 1], [1, 1, 4], [-1, 1, 1]])
def test_a_patience_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"exit_threshold: got .* takes a number in \[1, 3\], or None for full depth"):
        config("deebert", exit_criterion="patience", exit_threshold=value)


@pytest.mark.parametrize("value", ["1", True, False, {1}, torch.tensor(True), np.bool_(True), [1, "1", 1]], ids=repr)
def test_a_patience_of_the_wrong_type_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"exit_threshold: got .* of type .*; pass a number in \[1, 3\], one such"):
        config("deebert", exit_criterion="patience", exit_threshold=value)


@pytest.mark.parametrize("zero", [0, 0.0, np.int64(0), np.float32(0)])
def test_a_patience_of_0_is_full_depth(zero: float) -> None:
    model = build("deebert", exit_criterion="patience", exit_threshold=zero)
    assert model.config.exit_threshold is None
    assert model(**inputs_of(model), exit_threshold=zero).exit_layer.tolist() == [3] * 6


# Changing the criterion of a model that exists -----------------------------------------------------------------------


@every_pair
def test_a_saved_criterion_comes_back(method: str, criterion: str, tmp_path: Path) -> None:
    made = config(method, exit_criterion=criterion)
    made.exit_threshold = made.threshold_bounds[1]
    made.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path)
    assert (again.exit_criterion, again.exit_threshold) == (criterion, made.exit_threshold)
    assert (again.exit_temperatures, again.patience_tolerance) == (None, None)


def test_a_saved_tolerance_comes_back(tmp_path: Path) -> None:
    build("pabee", num_labels=1, patience_tolerance=0.25, exit_threshold=2).save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert (again.exit_criterion, again.patience_tolerance, again.exit_threshold) == ("patience", 0.25, 2)


@pytest.mark.parametrize("auto", [True, False])
@torch.no_grad()
def test_loading_may_change_the_criterion(auto: bool, tmp_path: Path) -> None:
    saved = four_layers("deebert", "entropy", num_labels=2)
    saved.config.exit_threshold = 0.3
    saved.save_pretrained(tmp_path)
    loader = AutoModelForSequenceClassification if auto else type(saved)
    model = loader.from_pretrained(tmp_path, exit_criterion="patience", exit_threshold=2).eval()
    assert (model.config.exit_criterion, model.config.exit_threshold) == ("patience", 2)
    assert model.ready is torch.ge
    inputs = inputs_of(model)
    expected = four_layers("deebert", "patience", num_labels=2)(**inputs, exit_threshold=2)
    assert model(**inputs).exit_layer.tolist() == expected.exit_layer.tolist()


@pytest.mark.parametrize("criterion", ["confidence", "patience"])
def test_a_saved_threshold_is_not_taken_for_one_in_another_unit(criterion: str, tmp_path: Path) -> None:
    build("deebert", exit_threshold=0.3).save_pretrained(tmp_path)
    message = (
        f"exit_criterion: got '{criterion}', but the checkpoint's exit_threshold, 0.3, is in the unit of 'entropy'; "
        "pass exit_threshold, too: a number, or None for full depth"
    )
    with pytest.raises(ValueError, match=message):
        CLASSES["deebert"].from_pretrained(tmp_path, exit_criterion=criterion)
    model = CLASSES["deebert"].from_pretrained(tmp_path, exit_criterion=criterion, exit_threshold=None)
    assert model.config.exit_threshold is None
    assert CLASSES["deebert"].from_pretrained(tmp_path, exit_criterion="entropy").config.exit_threshold == 0.3


def test_a_saved_tolerance_is_left_behind_with_patience(tmp_path: Path) -> None:
    options = {"num_labels": 1, "depth_source": "reconstruction"}
    DepthAdaptiveConfig(exit_criterion="patience", patience_tolerance=0.3, **options).save_pretrained(tmp_path)
    assert DepthAdaptiveConfig.from_pretrained(tmp_path, exit_criterion="depth").patience_tolerance is None


@pytest.mark.parametrize("auto", [True, False])
def test_a_checkpoint_that_did_not_learn_to_exit_cannot(auto: bool, tmp_path: Path) -> None:
    saved = build("berxit")
    saved.save_pretrained(tmp_path)
    loader = AutoModelForSequenceClassification if auto else type(saved)
    message = (
        r"got 'learned', but the checkpoint has 'confidence' and did not learn to exit .* exit_criterion='learned'$"
    )
    with pytest.raises(ValueError, match=message):
        loader.from_pretrained(tmp_path, exit_criterion="learned")


def test_a_regression_that_did_not_learn_to_exit_is_not_offered_it() -> None:
    config = {"num_labels": 1, "exit_criterion": "patience", "learning_to_exit": False}
    assert build("berxit", **config).config.learning_to_exit is False
    with pytest.raises(ValueError, match="num_labels=1 has none; pass exit_criterion='patience' or 'layer'$"):
        build("berxit", **config | {"exit_criterion": "confidence"})
    with pytest.raises(ValueError, match="pass exit_criterion='learned' or 'patience' or 'layer'$"):
        build("berxit", num_labels=1, exit_criterion="confidence")


@pytest.mark.parametrize("name", ["exit_head", "last_exit_head"])
def test_another_head_in_the_config_is_refused_when_the_model_is_saved(name: str, tmp_path: Path) -> None:
    model = build("deebert", exit_head="attention-pool")
    setattr(model.config, name, "dense")
    with pytest.raises(ValueError, match="but the model was built with 'attention-pool' and None"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_a_model_that_learned_to_exit_can_be_switched_back(tmp_path: Path, variant: str) -> None:
    learned = build("berxit", exit_criterion="learned", lte_variant=variant, exit_threshold=0.5)
    inputs = inputs_of(learned)
    learned.save_pretrained(tmp_path)
    for settings in ({"exit_criterion": "layer", "exit_threshold": 2}, {"exit_criterion": "learned"}):
        settings = {"exit_threshold": 0.5} | settings
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, **settings).eval()
        model.save_pretrained(tmp_path)
    torch.testing.assert_close(model(**inputs).exit_scores, learned(**inputs).exit_scores, atol=0, rtol=0)
    assert model.config.lte_variant == variant


def test_a_checkpoint_from_before_the_unit_was_noted_keeps_it(tmp_path: Path) -> None:
    build("berxit", num_labels=1, exit_threshold=0.5).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["learning_to_exit"]
    path.write_text(json.dumps(values))
    assert BerxitConfig.from_pretrained(tmp_path).learning_to_exit
    changed = BerxitConfig.from_pretrained(tmp_path, exit_criterion="layer", exit_threshold=2)
    assert changed.learning_to_exit and changed.exit_criterion == "layer"
    del values["exit_threshold"]
    path.write_text(json.dumps(values | {"exit_criterion": "layer"}))  # as an earlier version left it
    assert not BerxitConfig.from_pretrained(tmp_path).learning_to_exit
    options = {"exit_criterion": "learned", "exit_threshold": None}
    assert BerxitConfig.from_pretrained(tmp_path, **options, learning_to_exit=True).exit_criterion == "learned"


def test_the_learned_criterion_needs_its_unit() -> None:
    with pytest.raises(ValueError, match="learning_to_exit: got False, but exit_criterion='learned' needs it"):
        build("berxit", exit_criterion="learned", learning_to_exit=False)


@torch.no_grad()
def test_a_threshold_is_not_taken_for_one_in_another_unit() -> None:
    model = build("deebert", exit_threshold=0.3)
    inputs = inputs_of(model)
    before = model(**inputs)
    model.config.exit_criterion = "confidence"
    message = (
        "exit_threshold: 0.3 was set in the unit of 'entropy', but exit_criterion is 'confidence' now; set "
        "exit_threshold again, to a number or to None for full depth"
    )
    with pytest.raises(ValueError, match=message):
        model(**inputs)
    with pytest.raises(ValueError, match=message):
        type(model)(model.config)
    assert model(**inputs, exit_threshold=1.0).exit_layer.tolist() == [3] * 6  # explicit
    assert model(**inputs, early_exit=False).exit_scores.max() <= 1.0  # none at all
    model.config.exit_threshold = 0.3
    assert model(**inputs).exit_layer.tolist() == [1] * 6
    model.config.exit_criterion, model.config.exit_threshold = "margin", None
    assert model(**inputs).exit_layer.tolist() == [3] * 6
    model.config.exit_criterion, model.config.exit_threshold = "entropy", 0.3
    assert model(**inputs).exit_layer.tolist() == before.exit_layer.tolist()


@pytest.mark.parametrize(
    ("method", "criterion", "tempered"),
    [
        *(("deebert", name, True) for name in ("entropy", "normalized_entropy", "confidence", "margin")),
        ("right-tool", "confidence", True),
        ("deebert", "patience", False),
        ("dact-bert", "dact", False),
        ("berxit", "learned", False),
        ("depth-adaptive", "depth", False),
    ],
)
@torch.no_grad()
def test_a_threshold_is_not_taken_for_one_of_scores_with_other_temperatures(
    method: str, criterion: str, tempered: bool
) -> None:
    threshold = 1.0 if criterion == "patience" else 0.5
    model = build(method, exit_criterion=criterion, exit_threshold=threshold)
    inputs = inputs_of(model)
    model.config.exit_temperatures = [2.0, 2.0, 2.0]
    message = (
        rf"exit_threshold: {threshold} was set for scores with exit_temperatures=None, but exit_temperatures is "
        r"\[2.0, 2.0, 2.0\] now; set exit_threshold again, to a number or to None for full depth"
    )
    if tempered:
        with pytest.raises(ValueError, match=message):
            model(**inputs)
        with pytest.raises(ValueError, match=message):
            type(model)(model.config)
        assert model(**inputs, early_exit=False).exit_layer.tolist() == [3] * 6
        model(**inputs, exit_threshold=0.5)
        model.config.exit_threshold = threshold
    model(**inputs)
    model.config.exit_temperatures[0] = 3.0
    if tempered:
        with pytest.raises(ValueError, match=r"=\[2.0, 2.0, 2.0\], but exit_temperatures is \[3"):
            model(**inputs)
    model.config.exit_threshold = None
    model(**inputs)


def test_a_saved_threshold_and_its_temperatures_belong_together(tmp_path: Path) -> None:
    temperatures = [2.0, 3.0, 4.0]
    build("deebert", exit_threshold=0.3, exit_temperatures=temperatures).save_pretrained(tmp_path)
    load = CLASSES["deebert"].from_pretrained
    assert load(tmp_path).config.own_thresholds() == [0.3] * 3
    assert load(tmp_path, exit_temperatures=temperatures).config.own_thresholds() == [0.3] * 3
    for other in (None, [1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="exit_temperatures: got .*, but the checkpoint's exit_threshold, 0.3"):
            load(tmp_path, exit_temperatures=other)
        assert load(tmp_path, exit_temperatures=other, exit_threshold=0.4).config.own_thresholds() == [0.4] * 3


def test_the_unit_of_a_threshold_is_not_saved() -> None:
    made = config("deebert", exit_threshold=0.3)
    assert not [name for name in made.to_dict() if "threshold" in name and name != "exit_threshold"]
    assert type(made).from_dict(made.to_dict()).exit_threshold == 0.3


other_unit = pytest.mark.parametrize(
    ("name", "value"), [("exit_criterion", "margin"), ("exit_temperatures", [2.0, 2.0, 2.0])]
)


@other_unit
def test_a_threshold_in_another_unit_is_not_saved(name: str, value: Any, tmp_path: Path) -> None:
    model = build("deebert", exit_threshold=0.3)
    model.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_text()
    setattr(model.config, name, value)
    for part in (model, model.config):
        with pytest.raises(ValueError, match=r"exit_threshold: 0.3 was set .* now; set exit_threshold again"):
            part.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    with pytest.raises(ValueError, match="set exit_threshold again"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()  # no code without weights
    model.config.exit_threshold = 0.4
    model.save_pretrained(tmp_path)
    assert CLASSES["deebert"].from_pretrained(tmp_path).config.own_thresholds() == [0.4] * 3


@other_unit
def test_a_copy_has_the_unit_of_the_threshold_too(name: str, value: Any) -> None:
    made = config("deebert", exit_threshold=0.3)
    setattr(made, name, value)
    with pytest.raises(ValueError, match=r"exit_threshold: 0.3 was set .* now; set exit_threshold again"):
        type(made).from_dict(made.to_dict())
    with pytest.raises(ValueError, match=r"exit_threshold: 0.3 was set .* now; set exit_threshold again"):
        copy.deepcopy(made).own_thresholds()
    again = type(made).from_dict(made.to_dict(), exit_threshold=0.4)
    assert again.own_thresholds() == [0.4] * 3
    assert getattr(again, name) == value


@other_unit
def test_training_does_not_use_the_threshold(name: str, value: Any) -> None:
    model = build("deebert", exit_threshold=0.3)
    inputs = inputs_of(model)
    setattr(model.config, name, value)
    assert model.train()(**inputs, labels=torch.zeros(6, dtype=torch.long)).loss.isfinite()
    with pytest.raises(ValueError, match=r"early_exit: got True, which needs a threshold, eval mode"):
        model(**inputs, early_exit=True)
    with pytest.raises(ValueError, match=r"exit_threshold: got 0.2 in training mode"):
        model(**inputs, exit_threshold=0.2)
    with pytest.raises(ValueError, match=r"exit_threshold: 0.3 was set"):
        model.eval()(**inputs)


@pytest.mark.parametrize("value", [1.5, [1, 2.5, 3]])
def test_a_patience_that_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"exit_threshold: got [12]\.5; patience counts exits, pass a whole number"):
        config("deebert", exit_criterion="patience", exit_threshold=value)


@torch.no_grad()
def test_the_criterion_of_a_model_may_be_set_like_its_threshold() -> None:
    model = build("berxit", exit_criterion="learned")
    inputs = inputs_of(model)
    certainties = trace_of(model, inputs).exit_scores
    model.config.exit_criterion = "confidence"
    trace = trace_of(model, inputs)
    torch.testing.assert_close(trace.exit_scores, trace.exit_logits.softmax(dim=-1).amax(dim=-1))
    model.config.exit_criterion = "patience"
    assert trace_of(model, inputs).exit_scores[0].tolist() == agreements(trace.exit_logits[0].tolist())
    model.config.exit_criterion = "learned"
    assert torch.equal(trace_of(model, inputs).exit_scores, certainties)


def test_a_criterion_that_the_model_cannot_use_is_refused() -> None:
    model, regression = build("berxit"), build("berxit", num_labels=1)
    model.config.exit_criterion = "learned"
    with pytest.raises(ValueError, match="exit_criterion: got 'learned', which this model was not built for"):
        model(**inputs_of(model))
    model.config.exit_criterion = "none"
    with pytest.raises(ValueError, match="exit_criterion: got 'none'; choose one of"):
        model(**inputs_of(model))
    regression.config.exit_criterion = "entropy"
    with pytest.raises(ValueError, match="exit_criterion: got 'entropy', which needs class probabilities"):
        regression(**inputs_of(regression))
    regression.config.exit_criterion = "patience"
    assert trace_of(regression, inputs_of(regression)).exit_scores[:, 0].tolist() == [0.0] * 6
    assert regression.config.patience_tolerance is None


@torch.no_grad()
def test_the_criterion_of_a_regression_may_be_set_there_and_back() -> None:
    model = build("berxit", num_labels=1)
    inputs = inputs_of(model)
    certainties = trace_of(model, inputs).exit_scores
    model.config.exit_criterion = "patience"
    trace = trace_of(model, inputs)
    near = (trace.exit_logits[:, 1] - trace.exit_logits[:, 0]).abs().squeeze(-1) < 0.1
    assert trace.exit_scores[:, 1].tolist() == near.float().tolist()
    model.config.exit_criterion = "learned"
    assert torch.equal(trace_of(model, inputs).exit_scores, certainties)


# Compiled and exported -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_patience_compiles_into_one_graph() -> None:
    model = build("pabee", num_labels=2)
    inputs = inputs_of(model)
    expected = model(**inputs, exit_threshold=1)
    output = torch.compile(model, backend="eager", fullgraph=True)(**inputs, exit_threshold=1)
    assert len(set(expected.exit_layer.tolist())) > 1
    assert output.exit_layer.tolist() == expected.exit_layer.tolist()
    torch.testing.assert_close(output.logits, expected.logits)


@pytest.mark.slow
@torch.no_grad()
def test_patience_with_a_tolerance_exports_with_a_dynamic_batch() -> None:
    model = build("pabee", num_labels=1, patience_tolerance=0.4, exit_threshold=1)
    inputs = {name: inputs_of(model)[name] for name in ("input_ids", "attention_mask")}
    shapes = {name: {0: torch.export.Dim("batch", min=2, max=64)} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    fewer = {name: value[:4] for name, value in inputs.items()}
    expected, output = model(**fewer), program.module()(**fewer)
    assert len(set(expected.exit_layer.tolist())) > 1
    assert output.exit_layer.tolist() == expected.exit_layer.tolist()
    torch.testing.assert_close(output.logits, expected.logits)
