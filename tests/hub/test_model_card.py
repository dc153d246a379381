"""A model's card: its metadata and tables say what was measured, and nothing else."""

import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from helpers.cards import FILES, NAME, THRESHOLD, Settings, card_of, curve_of, facts, table_under, two_labels
from helpers.runs import clear_thresholds, collate, new_model, texts
from helpers.tiny import CLASSES, build
from huggingface_hub import ModelCard

from adaexit_hf import CurvePoint, collect_trace, tradeoff_curve
from adaexit_hf.hub.card_facts import CardDataset, MeasuredSpeed
from adaexit_hf.hub.model_card import build_model_card, write_model_card


def test_the_written_card_is_what_the_hub_reads(tmp_path: Path) -> None:
    path = write_model_card(two_labels(), tmp_path / "out", name=NAME, language="en", license="mit", **facts())
    content = path.read_text()
    header = yaml.safe_load(content.split("---\n")[1])
    data = ModelCard.load(path).data.to_dict()
    assert data == header
    assert list(data) == [
        "base_model", "datasets", "language", "library_name", "license", "metrics", "pipeline_tag", "tags",
        "model-index",
    ]  # fmt: skip
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    assert (data["base_model"], data["datasets"]) == ("google-bert/bert", ["nyu-mll/glue"])
    assert data["tags"] == ["early-exit", "berxit", "adaexit_hf"]
    assert data["metrics"] == ["f1", "pearsonr"]
    assert sorted(os.listdir(tmp_path / "out")) == FILES
    assert all(f"({name})" in content for name in FILES[1:])


def test_what_is_not_known_is_left_out() -> None:
    card = build_model_card(two_labels(threshold=None), "out")
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "Trade-off" not in card.text and ".png" not in card.text
    assert "The inference time was not measured." in card.text
    assert "\n\n\n" not in card.text


def test_the_model_index_gives_the_metrics_back(tmp_path: Path) -> None:
    write_model_card(two_labels(), tmp_path, name=NAME, **facts())
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.model_name == "berxit-mrpc"
    found = {(each.metric_type, each.metric_name): each.metric_value for each in data.eval_results}
    measured = facts()["metrics"]["validation"]
    assert found == {
        ("f1", "F1 with early exit"): measured["at_threshold"]["f1"],
        ("pearsonr", "Pearson correlation with early exit"): 0.25,
        ("f1", "F1 at full depth"): 0.8512,
        ("pearsonr", "Pearson correlation at full depth"): 0.5,
    }
    for each in data.eval_results:
        where = (each.task_type, each.dataset_type, each.dataset_name, each.dataset_config, each.dataset_split)
        assert where == ("text-classification", "nyu-mll/glue", "GLUE MRPC", "mrpc", "validation")


def test_the_tables_have_the_numbers_of_the_curve() -> None:
    card, points = card_of(), {f"{point.threshold:.6g}": point for point in curve_of()[:-1]}
    *rows, last = table_under(card, "threshold | F1")
    assert last == ["none: full depth", "0.8512", "3.00", "0.0%"]
    assert 10 <= len(rows) <= 12
    assert f"{THRESHOLD}, saved" in [row[0] for row in rows]
    for name, *numbers in rows:
        point = points[name.removesuffix(", saved")]
        assert numbers == [f"{point.score:.4f}", f"{point.mean_layers:.2f}", f"{point.saving:.1%}"]
    chosen = points[str(THRESHOLD)]
    exits = [f"{chosen.score:.4f}", f"{chosen.mean_layers:.2f}", f"{chosen.saving:.1%}"]
    assert table_under(card, "split | texts")[0] == ["validation", "408", "F1", "0.8512", *exits]


def test_the_model_does_what_its_table_says() -> None:
    model, rows = new_model("berxit"), texts()
    trace = collect_trace(model, rows, progress=False)

    card = build_model_card(model, NAME, curve=tradeoff_curve(trace, "accuracy", clear_thresholds(trace)))
    inputs = collate(rows)
    labels = inputs.pop("labels")
    shown = table_under(card, "threshold | score")[:-1]
    assert len({row[2] for row in shown}) >= 4
    for threshold, score, layers, _ in shown:
        with torch.inference_mode():
            output = model.eval()(**inputs, exit_threshold=float(threshold))
        assert f"{(output.logits.argmax(-1) == labels).double().mean():.4f}" == score.split(",")[0]
        assert f"{output.exit_layer.double().mean():.2f}" == layers


def test_a_speed_up_is_shown_where_it_was_measured_and_nowhere_else() -> None:
    speed = MeasuredSpeed("2 cores of a made-up machine", "batches of 32, float32", {THRESHOLD: 1.6, 0.5125: 2.5})
    card = card_of(speed=speed)
    found = {row[0]: row[-1] for row in table_under(card, "threshold | F1")}
    assert (found[f"{THRESHOLD}, saved"], found["0.5125"]) == ("1.60x", "2.50x")
    assert set(found.values()) == {"1.60x", "2.50x", "not measured"}
    assert "2 cores of a made-up machine" in card.text
    assert "speed-up" not in card_of().text


@pytest.mark.parametrize("method", CLASSES)
def test_every_method_says_what_it_is(method: str) -> None:
    model = two_labels(method, threshold=None)
    text = build_model_card(model, f"you/{method}", **facts(None)).text
    paper = model.paper
    assert all(part in text for part in (paper.title, paper.authors, paper.venue, paper.url))
    assert f"```bibtex\n{paper.bibtex}\n```" in text
    assert all(f"| `{stage.name}` |" in text for stage in model.stages)
    assert f"`{model.config.exit_criterion}`" in text
    assert "No threshold is saved: until you choose one" in text
    assert "none: full depth, saved" in text
    assert "encoder_config" not in text


def test_stages_show_their_own_arguments() -> None:
    training = {"learning_rate": 2e-5, "stage_overrides": {"exits": {"learning_rate": 1e-3}}}
    card = build_model_card(two_labels("deebert", threshold=None), NAME, training=training)
    rows = {row[0]: row[1:] for row in table_under(card, "stage | objectives, alternating by optimizer step")}
    assert rows["`exits`"] == ["`exits`", "`encoder`, `exits.2`", "`learning_rate=0.001`"]
    assert rows["`backbone`"][-1] == "-"
    assert table_under(card, "argument") == [["`learning_rate`", "`2e-05`"]]


def test_one_exit_has_nothing_to_trade(tmp_path: Path) -> None:
    model = two_labels(threshold=None, exit_layers=[3])
    given = {**facts(None), "curve": [CurvePoint(None, 0.8512, 3.0, 0.0)]}
    text = write_model_card(model, tmp_path, **given).read_text()
    assert "There is only one exit, so every text runs all 3 layers." in text
    assert "exits after layer 3" in text
    assert os.listdir(tmp_path) == ["README.md"]


def test_a_threshold_for_every_exit_is_said_and_marks_no_row() -> None:
    thresholds = [0.9, 0.8, 0.0]
    card = card_of(thresholds)
    assert "The saved thresholds are 0.9, 0.8, 0 (one per exit)." in card.text
    assert not [row for row in table_under(card, "threshold | F1") if "saved" in row[0]]


def test_regression_has_no_labels() -> None:
    model = build("berxit-regression", exit_threshold=0.5)
    text = build_model_card(model, NAME, dataset=CardDataset("my texts")).text
    assert "It predicts one number" in text and "A text regressor with early exit" in text
    assert "LABEL_0" not in text


def test_several_labels_at_once_are_named_and_used() -> None:
    model = build("berxit", problem_type="multi_label_classification", exit_threshold=0.9)
    metrics = {"validation": {"at_threshold": {"f1_micro": 0.8, "f1_macro": 0.7, "accuracy": 0.5}}}
    card = build_model_card(model, NAME, metrics=metrics, dataset=CardDataset("my texts"))
    assert "It predicts none, one or several of `LABEL_0`, `LABEL_1`, `LABEL_2`" in card.text
    assert "a text is as ready as its least sure label, which is a rule of adaexit_hf" in card.text
    assert f'pipeline("text-classification", model="{NAME}", top_k=None)' in card.text
    assert [row[2] for row in table_under(card, "split | texts")] == ["micro F1", "macro F1", "accuracy"]
    assert card.data.metrics == ["f1", "accuracy"]
    code = card.text.split("output = model(**batch)\n")[1].split("print(")[0]
    answers: dict[str, Any] = {
        "model": model,
        "output": SimpleNamespace(logits=torch.tensor([[1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]])),
    }
    exec(code, answers)
    assert answers["predictions"] == [["LABEL_0", "LABEL_2"], []]


def test_special_characters_keep_the_table_whole() -> None:
    card = build_model_card(two_labels(threshold=None), NAME, training={"optim_args": "a|b", "note": "ü"})
    assert "| `optim_args` | `a\\|b` |" in card.text


# What a card refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at_threshold": {"f1": math.nan}}, r"metrics: 'f1' of 'validation' \(at_threshold\) is nan; a card reports"),
        ({"full_depth": {"f1": -math.inf}}, r"'f1' of 'validation' \(full_depth\) is -inf"),
        ({"mean_exit_layer": math.nan}, "mean_exit_layer of 'validation' is nan"),
        ({"exit_threshold": 0.5}, r"'validation' was measured at exit_threshold 0.5, but the model's is 0.8137"),
        ({"exit_criterion": "entropy"}, r"was measured at exit_criterion 'entropy', but the model's is 'confidence'"),
        ({"exit_temperatures": [1.0, 2.0, 1.5]}, r"exit_temperatures \[1.0, 2.0, 1.5\], but the model's is None"),
    ],
)
def test_bad_metrics_are_named_and_nothing_is_written(change: Settings, message: str, tmp_path: Path) -> None:
    given = facts()
    given["metrics"]["validation"] |= change
    with pytest.raises(ValueError, match=message):
        write_model_card(two_labels(), tmp_path, **given)
    assert not os.listdir(tmp_path)


def test_a_curve_with_nan_is_refused() -> None:
    curve = [*curve_of(), CurvePoint(0.25, math.nan, 2.0, 0.3)]
    with pytest.raises(ValueError, match=r"curve: score at threshold 0.25 is nan"):
        card_of(curve=curve)


@pytest.mark.parametrize(
    ("speed_up", "message"),
    [
        ({THRESHOLD: math.inf}, "speed: the speed-up at threshold 0.8137 is inf; pass a ratio of times, above 0"),
        ({THRESHOLD: 0.0}, "is 0.0"),
        ({0.123: 2.0}, "speed: threshold 0.123 is not in the curve"),
    ],
)
def test_bad_speeds_are_refused(speed_up: dict[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        card_of(speed=MeasuredSpeed("a machine", "somehow", speed_up))


def test_a_speed_of_other_settings_is_refused() -> None:
    speed = MeasuredSpeed("a machine", "somehow", {THRESHOLD: 2.0}, {"exit_criterion": "margin"})
    with pytest.raises(ValueError, match="speed: was measured at exit_criterion 'margin', but the model's is 'conf"):
        card_of(speed=speed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"exit_criterion": "margin"},
            "curve: was measured at exit_criterion 'confidence', but the model's is 'margin'",
        ),
        (
            {"exit_temperatures": [1.0, 2.0, 1.5, 1.0]},
            "curve: was measured at exit_temperatures None, but the model's is",
        ),
    ],
)
def test_a_curve_of_other_settings_is_refused(change: Settings, message: str) -> None:
    model = new_model("berxit", exit_criterion="confidence")
    curve = tradeoff_curve(collect_trace(model, texts(), progress=False), "accuracy")
    for name, value in change.items():
        setattr(model.config, name, value)
    model.config.exit_threshold = 0.3
    with pytest.raises(ValueError, match=message):
        build_model_card(model, NAME, curve=curve)


def test_an_unknown_fact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="licence"):
        write_model_card(two_labels(), tmp_path, licence="mit")


def test_results_of_another_data_set_are_under_its_name() -> None:
    measured = facts()["metrics"]["validation"]
    other = measured | {"data": {"name": "reviews.csv", "split": "validation"}}
    card = card_of(metrics={"validation": measured, "reviews.csv, validation": other})
    found = {(each.dataset_type, each.dataset_name, each.dataset_split) for each in card.data.eval_results}
    assert found == {("nyu-mll/glue", "GLUE MRPC", "validation"), ("unknown", "reviews.csv", "validation")}


def test_scores_of_a_threshold_from_the_other_half_are_said_to_be_that() -> None:
    measured = facts()["metrics"]["validation"] | {"cross_fitted_thresholds": [0.8, 0.9]}
    text = card_of(metrics={"validation": measured}).text
    assert "The results on `validation` with exits are cross-fitted: each half of the texts was answered with" in text
    assert "The saved threshold was chosen from these rows, so that its own row is slightly better" in text
    assert "results there are slightly better than on new texts" not in text
    assert "results there are slightly better than on new texts" in card_of().text


def test_the_majority_is_told_and_what_is_no_better() -> None:
    measured = facts()["metrics"]["validation"] | {"majority": {"f1": 0.99, "pearson": 0.0}}
    text = card_of(metrics={"validation": measured}).text
    assert "for numbers their mean): F1 0.9900 on `validation`, Pearson correlation 0.0000 on `validation`. " in text
    assert "no better than that in F1 on `validation`.\n" in text
    lowest = [point._replace(majority=facts()["curve"][0].score) for point in facts()["curve"]]
    assert text.count("no better than the majority") == 0
    assert card_of(curve=lowest).text.count("no better than the majority") == 1


def test_one_layer_for_all_is_no_decision_for_each_text() -> None:
    text = build_model_card(two_labels(threshold=2, exit_criterion="layer"), NAME).text
    assert "**Every text leaves after layer 2 (exit criterion `layer`).**" in text
    assert "answers all texts at one of them. The model is an encoder" in text and "Easy texts" not in text
