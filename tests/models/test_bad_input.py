"""Bad input is refused with a message that names the argument, the value, what is allowed and what to do."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import CLASSES, build, config, encoder, encoder_config, inputs_of, labels_of
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, GPT2Config

from adaexit_hf import BerxitConfig, DactBertConfig, DeeBertConfig

every_method = pytest.mark.parametrize("method", CLASSES)


def config_class(method: str) -> Any:
    return CLASSES[method].config_class


# Configs -------------------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("unknown", [GPT2Config(), {"model_type": "gpt2"}, {"model_type": "no-such"}, {}])
def test_an_unknown_encoder_is_refused(method: str, unknown: Any) -> None:
    with pytest.raises(
        ValueError, match="encoder_config: cannot run '.*' layer by layer; supported: albert, .* Pass the"
    ):
        config_class(method)(encoder_config=unknown)


@pytest.mark.parametrize("wrong", ["bert-base-uncased", GPT2Config, encoder("bert")], ids=["name", "class", "model"])
def test_an_encoder_that_is_no_config_is_refused(wrong: Any) -> None:
    with pytest.raises(
        TypeError, match="encoder_config: got a .*; pass a config or its dict, .* from_encoder_pretrained"
    ):
        DeeBertConfig(encoder_config=wrong)


def test_an_early_exit_config_is_no_encoder() -> None:
    with pytest.raises(ValueError, match="encoder_config: cannot run 'berxit' layer by layer"):
        DeeBertConfig(encoder_config=BerxitConfig())


@pytest.mark.parametrize("method", ["deebert", "dact-bert"])
def test_regression_is_refused_where_it_is_not_defined(method: str) -> None:
    with pytest.raises(ValueError, match=rf"num_labels: got 1 \(regression\), which {method} does not .* berxit"):
        config_class(method)(num_labels=1)


def test_regression_with_several_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="num_labels: got 3 with problem_type='regression'; pass num_labels=1"):
        BerxitConfig(num_labels=3, problem_type="regression")


def test_an_unknown_problem_type_is_refused() -> None:
    with pytest.raises(ValueError, match="problem_type: got 'ranking'; leave it out, or pass 'regression'"):
        BerxitConfig(problem_type="ranking")


@every_method
@pytest.mark.parametrize("count", [0, -2])
def test_a_model_without_labels_is_refused(method: str, count: int) -> None:
    with pytest.raises(ValueError, match="num_labels: got .*; pass 1 for regression, 2 or more for classification"):
        config_class(method)(num_labels=count)


def test_regression_cannot_exit_by_confidence() -> None:
    with pytest.raises(
        ValueError, match="exit_criterion: got 'confidence', which needs .* pass exit_criterion='learned'"
    ):
        BerxitConfig(num_labels=1, exit_criterion="confidence")


@every_method
@pytest.mark.parametrize("value", ["0.5", True, [True, True, True], {0.5}, np.bool_(True), [1.0, None, 1.0]])
def test_a_threshold_of_the_wrong_type_is_refused(method: str, value: Any) -> None:
    with pytest.raises(
        TypeError, match="exit_threshold: got .* of type .*; pass a number in .* or None for full depth"
    ):
        config(method, exit_threshold=value)


@every_method
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 100.0, -100.0, [0.5, 0.5, math.nan]])
def test_a_threshold_out_of_range_is_refused(method: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"exit_threshold: got .*; {method} with 3 labels takes a number in \[.*\], or None"
    ):
        config(method, exit_threshold=value)


def test_the_message_gives_the_range() -> None:
    with pytest.raises(ValueError, match=r"got 1\.2; deebert with 3 labels takes a number in \[0, 1\.099\]"):
        config("deebert", exit_threshold=1.2)


@every_method
@pytest.mark.parametrize("value", [[], [0.5], [0.5] * 4])
def test_a_list_of_thresholds_of_the_wrong_length_is_refused(method: str, value: list[float]) -> None:
    with pytest.raises(
        ValueError, match=f"exit_threshold: got {len(value)} numbers for 3 exits; pass one number, or one per"
    ):
        config(method, exit_threshold=value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("exit_threshold", [np.float32(0.5), np.float64(0.25), 1.0], [0.5, 0.25, 1.0]),
        ("exit_threshold", np.float32(0.5), 0.5),
        ("exit_threshold", torch.tensor(0.5), 0.5),
        ("exit_threshold", np.array([0.5, 0.25, 1.0]), [0.5, 0.25, 1.0]),
        ("exit_threshold", Fraction(1, 2), 0.5),
        ("exit_temperatures", np.array([0.5, 2.0, 1.0], dtype=np.float32), [0.5, 2.0, 1.0]),
        ("class_weights", torch.tensor([0.5, 2.0, 1.0]), [0.5, 2.0, 1.0]),
        ("label_smoothing", np.float32(0.5), 0.5),
        ("exit_layers", (np.int64(1), np.int32(3)), [1, 3]),
        ("exit_layers", np.array([1, 3]), [1, 3]),
    ],
)
@pytest.mark.parametrize("set_later", [False, True])
def test_numbers_may_come_from_numpy_and_torch(
    name: str, value: Any, expected: Any, set_later: bool, tmp_path: Path
) -> None:
    made = config("deebert", **{} if set_later else {name: value})
    if set_later:
        setattr(made, name, value)
    made.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert getattr(reloaded, name) == expected
    assert repr(getattr(reloaded, name)) == repr(getattr(made, name)) == repr(expected)


def test_other_numbers_may_come_from_numpy() -> None:
    tolerance = config("pabee-regression", patience_tolerance=np.float32(0.5)).patience_tolerance
    limit = BerxitConfig(fine_tuning="limit", limit_layer=np.int64(4)).limit_layer
    penalty = DactBertConfig(ponder_cost=np.float64(0.5), tied_halting=np.bool_(False)).ponder_cost
    assert [type(value) for value in (tolerance, limit, penalty)] == [float, int, float]


def test_the_threshold_of_a_call_may_come_from_numpy_and_torch() -> None:
    model = build("right-tool")
    expected = model(**inputs_of(model), exit_threshold=0.5).exit_layer.tolist()
    for value in (np.float32(0.5), torch.tensor(0.5), torch.full((3,), 0.5)):
        assert model(**inputs_of(model), exit_threshold=value).exit_layer.tolist() == expected


@pytest.mark.parametrize(
    ("method", "value"),
    [
        *((method, [3, 1]) for method in CLASSES),
        *(("deebert", value) for value in ([], [1, 1, 3], [1, 2], [1, 4], [0, 3], [1.0, 3.0], [True, 3], 3, "123")),
    ],
)  # the check is one for all configs; a method could only forget it
def test_bad_exit_layers_are_refused(method: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match="exit_layers: got .*; pass ascending layer numbers from 1 to 3 .* exit_layers="
    ):
        config(method, exit_layers=value)


@pytest.mark.parametrize(
    ("made", "name", "meant"),
    [
        (DeeBertConfig, "exit_treshold", "exit_threshold"),
        (DeeBertConfig, "exit_layer", "exit_layers"),
        (DeeBertConfig, "encoder_confg", "encoder_config"),
        (DeeBertConfig, "num_lables", "num_labels"),
        (BerxitConfig, "exit_criterium", "exit_criterion"),
        (DactBertConfig, "ponder_costs", "ponder_cost"),
    ],
)
def test_a_misspelt_argument_is_refused(made: Any, name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"got an unknown argument '{name}'; did you mean '{meant}'"):
        made(**{name: 1})


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (DeeBertConfig, {"ponder_cost": 0.1}, "'ponder_cost'; its arguments are class_weights, .*, exit_threshold, "),
        (DeeBertConfig, {"fine_tuning": "joint"}, "'fine_tuning'; its arguments are"),
        (DeeBertConfig, {"threshold": 0.3}, "'threshold'; did you mean 'exit_threshold'"),
        (DeeBertConfig, {"layers": [1, 12]}, "'layers'; did you mean 'exit_layers'"),
        (BerxitConfig, {"ponder_cost": 0.1}, "'ponder_cost'; its arguments are"),
        (DactBertConfig, {"foo": 1}, "'foo'; its arguments are"),
    ],
)
def test_an_unknown_or_foreign_argument_is_refused(made: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"got an unknown argument {message}"):
        made(**options)


def test_transformers_own_arguments_are_allowed() -> None:
    options = {"name_or_path": "a", "dtype": "float16", "attn_implementation": "eager", "output_attentions": True}
    made = DeeBertConfig(**options, architectures=["A"], output_hidden_states=True, return_dict=False)
    assert (made.output_hidden_states, made.return_dict, made.output_attentions) == (True, False, True)


def test_a_users_config_may_have_arguments_of_its_own() -> None:
    class Mine(BerxitConfig):
        model_type = "mine"

        def __init__(self, *args: Any, mine: int = 1, **kwargs: Any) -> None:
            self.mine = mine
            super().__init__(*args, **kwargs)

    assert Mine.from_dict(Mine(mine=2, fine_tuning="joint").to_dict()).mine == 2
    with pytest.raises(TypeError, match="'other'; its arguments are .*, mine, "):
        Mine(other=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"id2label": {1: "a", 2: "b"}},
            ValueError,
            r"id2label: got \{1: 'a', 2: 'b'\}; pass one name for",
        ),
        ({"id2label": {0: "a", "1.5": "b"}}, ValueError, "id2label: got .*; pass one name for each of the indices"),
        ({"id2label": {0: "a", 0.5: "b"}}, ValueError, "id2label: got .*; pass one name for each of the indices"),
        ({"id2label": {0: "a", "0": "b"}}, ValueError, "id2label: got .*; pass one name for each of the indices"),
        ({"id2label": {False: "a", True: "b"}}, ValueError, "id2label: got .*; pass one name for each of the indices"),
        ({"id2label": {}}, ValueError, "id2label: got .*; pass one name for each of the indices"),
        ({"id2label": ["a", "b"]}, TypeError, "id2label: got .*; pass a dict, e.g."),
        ({"id2label": {0: 0, 1: 1}}, TypeError, "id2label: got the name 0 of type int; pass a string, e.g. '0'"),
        ({"id2label": {0: "a", 1: None}}, TypeError, "id2label: got the name None of type NoneType; pass a string"),
        ({"id2label": {0: "a", 1: "a"}}, ValueError, "id2label: got .*, where several classes have one name"),
        ({"label2id": {"a": 0, "b": 2}}, ValueError, "label2id: got .*; pass one name for each of the indices"),
        ({"label2id": {"a": 0, "A": 0}}, ValueError, "label2id: got .*; pass one name for each of the indices"),
        (
            {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}},
            ValueError,
            "label2id: got .*, which contradicts",
        ),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0}}, ValueError, "label2id: got .*, which contradicts"),
        ({"id2label": {0: "a", 1: "b"}, "num_labels": 3}, ValueError, "num_labels: got 3, but id2label has 2 names"),
        ({"label2id": {"a": 0, "b": 1}, "num_labels": 3}, ValueError, "num_labels: got 3, but label2id has 2 names"),
        ({"num_labels": 3.0}, ValueError, "num_labels: got 3.0; pass 1 for regression, 2 or more for classification"),
        ({"num_labels": True}, ValueError, "num_labels: got True; pass 1 for regression"),
        ({"num_labels": "3"}, ValueError, "num_labels: got '3'; pass 1 for regression"),
    ],
)
def test_names_and_numbers_of_classes_that_do_not_fit_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DeeBertConfig(**options)


def test_names_of_classes_are_known_in_both_directions() -> None:
    names = {0: "a", 1: "b", 2: "c"}
    inverse = {"a": 0, "b": 1, "c": 2}
    for options in ({"id2label": {"2": "c", 0: "a", 1: "b"}}, {"label2id": inverse}, {"num_labels": np.int64(3)}):
        made = DeeBertConfig(**options)
        assert made.num_labels == 3
        made.id2label = names
        assert (made.id2label, made.label2id) == (names, inverse)
    assert DeeBertConfig(label2id=inverse).id2label == names


def test_names_of_classes_changed_to_nonsense_build_no_model() -> None:
    made = config("deebert")
    made.id2label = {1: "a", 2: "b"}
    with pytest.raises(ValueError, match="id2label: got .*; pass one name for each of the indices from 0 on"):
        CLASSES["deebert"](made)


@pytest.mark.parametrize(
    ("made", "name", "choices"),
    [
        (BerxitConfig, "fine_tuning", "'alternating', 'joint', 'two_stage'"),
        (
            BerxitConfig,
            "exit_criterion",
            "'learned', 'entropy', .*, 'confidence', 'margin', 'patience'",
        ),
        (BerxitConfig, "lte_variant", "'paper', 'authors'"),
        (DactBertConfig, "halting_bound", "'tight', 'paper'"),
    ],
)
def test_an_unknown_choice_is_refused(made: Any, name: str, choices: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got 'none'; choose one of {choices}"):
        made(**{name: "none"})


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("ponder_cost", -1, ValueError, "ponder_cost: got -1; pass a finite number >= 0"),
        ("ponder_cost", "1", TypeError, "ponder_cost: got '1' of type str; pass a number"),
        ("halting_bias", math.nan, ValueError, "halting_bias: got nan; pass a finite number"),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DactBertConfig(**{name: value})


# Calls ---------------------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize(("label", "got"), [(-1, -1), (3, 3)])
def test_a_label_out_of_range_is_refused(method: str, label: int, got: int) -> None:
    model = build(method)
    with pytest.raises(ValueError, match=f"labels: got {got}; allowed are 0 to 2. Pass num_labels="):
        model(**inputs_of(model), labels=torch.tensor([0, 1, 2, 0, 1, label]))


def test_of_labels_out_of_range_the_first_is_named() -> None:
    model = build("deebert")
    with pytest.raises(ValueError, match="labels: got 7; allowed are 0 to 2"):
        model(**inputs_of(model), labels=torch.tensor([0, 7, -1, 0, 9, 1]))


@every_method
def test_labels_that_are_no_indices_are_refused(method: str) -> None:
    model = build(method)
    with pytest.raises(
        ValueError, match=r"labels: got torch.float32 for 3 classes; pass class indices, .* num_labels=1"
    ):
        model(**inputs_of(model), labels=labels_of(model).float())


@every_method
@pytest.mark.parametrize("labels", [torch.zeros(5), torch.zeros(6, 3), torch.tensor(0)], ids=["5", "6x3", "scalar"])
def test_labels_of_the_wrong_shape_are_refused(method: str, labels: Tensor) -> None:
    model = build(method)
    with pytest.raises(ValueError, match=r"labels: got shape \(.*\); pass one label per text, shape \(6,\)"):
        model(**inputs_of(model), labels=labels.long())


def test_labels_that_are_not_finite_are_refused_in_regression() -> None:
    model = build("berxit-regression")
    with pytest.raises(ValueError, match="labels: got NaN or infinity; drop the rows"):
        model(**inputs_of(model), labels=torch.full((6,), math.nan))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_no_exit_starts_from_a_mean_that_is_not_finite(wrong: float) -> None:
    model = build("pabee", num_labels=1)
    rows = [{"input_ids": [1, 7, 2], "label": label} for label in (1.0, wrong)]
    with pytest.raises(ValueError, match=f"label: got {wrong} in row 1; pass finite numbers, and drop rows"):
        model.prepare(rows)
    assert not any(classifier.bias.any() for classifier in model.classifiers)
    with pytest.raises(ValueError, match=r"label: got \[1.0, 2.0\] in row 0; pass one number per row"):
        model.prepare([row | {"label": [1.0, 2.0]} for row in rows])
    with pytest.raises(ValueError, match="mean: got nan; pass a finite number"):
        model.start_from_mean(math.nan)


@every_method
@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8])
def test_labels_of_any_integer_type_are_fine(method: str, dtype: torch.dtype) -> None:
    model = build(method)
    labels = labels_of(model)
    assert model(**inputs_of(model), labels=labels.to(dtype)).loss == model(**inputs_of(model), labels=labels).loss


@every_method
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_an_empty_batch_is_refused(method: str, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"input_ids: got an empty batch of shape \(\d, \d\); pass at least one text"):
        build(method)(input_ids=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(("name", "limit"), [("bert", 32), ("roberta", 30), ("distilbert", 32), ("mpnet", 30)])
def test_a_text_that_is_too_long_is_refused(name: str, limit: int) -> None:
    model = build("deebert", name)
    text = torch.full((1, limit + 1), 7)
    model(input_ids=text[:, :limit])
    with pytest.raises(ValueError, match=f"input_ids: got {limit + 1} tokens, .* truncation=True, max_length={limit}"):
        model(input_ids=text)


def test_a_text_without_a_batch_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input_ids: got shape \(4,\); pass a batch, shape \(batch, tokens\)"):
        build("deebert")(input_ids=torch.full((4,), 7))


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention_mask: got shape \(1, 3\); pass that of input_ids, \(1, 4\)"):
        build("deebert")(input_ids=torch.full((1, 4), 7), attention_mask=torch.ones(1, 3))


@pytest.mark.parametrize("given", [{}, {"input_ids": torch.ones(1, 2).long(), "inputs_embeds": torch.ones(1, 2, 32)}])
def test_neither_or_both_inputs_are_refused(given: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="pass exactly one of input_ids and inputs_embeds"):
        build("deebert")(**given)


@every_method
def test_an_unknown_objective_is_refused(method: str) -> None:
    model = build(method)
    with pytest.raises(
        ValueError, match=f"objective: got 'none'; {type(model).__name__} has the objectives {model.objectives[0]}"
    ):
        model(**inputs_of(model), labels=labels_of(model), objective="none")


@every_method
def test_a_bad_threshold_of_a_call_is_refused(method: str) -> None:
    model = build(method)
    with pytest.raises(ValueError, match="exit_threshold: got nan"):
        model(**inputs_of(model), exit_threshold=math.nan)
    with pytest.raises(TypeError, match="exit_threshold: got '1' of type str"):
        model(**inputs_of(model), exit_threshold="1")


def test_a_bad_threshold_set_on_the_config_is_refused() -> None:
    model = build("deebert")
    model.config.exit_threshold = 7
    with pytest.raises(ValueError, match="exit_threshold: got 7"):
        model(**inputs_of(model))


# Checkpoints ---------------------------------------------------------------------------------------------------------


@every_method
def test_the_checkpoint_of_another_method_is_refused(method: str, tmp_path: Path) -> None:
    build(method).save_pretrained(tmp_path)
    for other, model_class in CLASSES.items():
        if other != method:
            message = (
                f"is of method '{method}', not '{other}'; call AutoModelForSequenceClassification.from_pretrained"
            )
            with pytest.raises(ValueError, match=message):
                model_class.from_pretrained(tmp_path)
            with pytest.raises(ValueError, match=message):
                model_class.config_class.from_pretrained(tmp_path)


@every_method
def test_the_checkpoint_of_a_stock_classifier_is_refused(method: str, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_config(encoder_config()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"a BertForSequenceClassification .*not '{method}'; .* from_encoder_pretrained"
    ):
        CLASSES[method].from_pretrained(tmp_path)


@every_method
def test_a_threshold_where_no_row_can_exit_is_refused(method: str) -> None:
    model = build(method)
    inputs, low = inputs_of(model), model.config.threshold_bounds[0]
    message = r"exit_threshold: got .* in training mode or with an objective, .* call model.eval\(\)"
    with pytest.raises(ValueError, match=message):
        model(**inputs, exit_threshold=low, objective=model.objectives[0], labels=labels_of(model))
    with pytest.raises(ValueError, match=message):
        model.train()(**inputs, exit_threshold=low)
    with pytest.raises(ValueError, match=message):
        model.answers(inputs, exit_threshold=low)


@pytest.mark.parametrize("value", [[4], [0, -5], [1.0], [True], ["1"], 2, "1"])
def test_states_that_do_not_exist_are_refused(value: Any) -> None:
    model = build("deebert")
    message = r"output_hidden_states: got .*; pass True, False, or a list of indices from -4 to 3"
    with pytest.raises(ValueError, match=message):
        model(**inputs_of(model), output_hidden_states=value)


def test_states_may_be_counted_from_the_end() -> None:
    model = build("deebert")
    states = model(**inputs_of(model), output_hidden_states=[-1, 0]).hidden_states
    assert [state is None for state in states] == [False, True, True, False]
