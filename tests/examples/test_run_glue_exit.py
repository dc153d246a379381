"""The main job, in process, on a tiny encoder and data made here."""

import json
import sys
from pathlib import Path

import datasets
import pytest
import torch
from helpers.reviews import write_csv
from helpers.tiny import encoder, encoder_config
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from adaexit_hf import ExitTrace, RightToolForSequenceClassification, cross_fitted
from adaexit_hf.cli import train as train_command
from adaexit_hf.cli import train_rows
from adaexit_hf.cli.main import main
from adaexit_hf.data.tasks import tokenize
from adaexit_hf.evaluation.curves import CurvePoint
from adaexit_hf.evaluation.fingerprints import hashes_of, read_seen_rows
from adaexit_hf.pruning.layerdrop import keep_layers

pytestmark = pytest.mark.usefixtures("blank_pictures")


@pytest.fixture
def flags(start, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(*more: str, labels=("bad", "good"), validation=None, data: bool = True, folder: str = "out") -> Path:
        arguments = [
            "--model_name_or_path",
            start,
            "--output_dir",
            str(tmp_path / folder),
            "--max_steps",
            "2",
            "--use_cpu",
        ]
        arguments += ["--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true"]
        if data:
            train = write_csv(tmp_path, "train", 16, list(labels))
            dev = write_csv(tmp_path, "dev", 8, list(validation or labels))
            arguments += ["--train_file", train, "--validation_file", dev, "--text_columns", "text"]
        monkeypatch.setattr(sys, "argv", ["adaexit train", *arguments, *more])
        train_command.main()
        return tmp_path / folder

    return run


def test_only_results_go_to_stdout(flags, capsys):
    flags("--method", "deebert", "--logging_steps", "1")
    printed = capsys.readouterr()
    assert "'train_loss'" in printed.err and "train_loss" not in printed.out
    assert "<- chosen" in printed.out


def test_a_run_says_what_it_reads_and_which_scores_to_quote(flags, capsys):
    out = flags("--method", "berxit", "--max_train_samples", "10")
    printed = capsys.readouterr()
    assert "adaexit train: train: 10 of 16 rows, validation: 8 rows" in printed.err
    assert "a loss of 1.00% is 0.1 of the 8 texts in validation, on which the threshold is chosen" in printed.err
    assert "exits after layers 1, 2, 3. A text leaves at the first exit where" in printed.out
    assert "quote these scores, not those in the table above" in printed.out
    assert f"next: adaexit predict {out} 'A text.'" in printed.out


@pytest.mark.filterwarnings("ignore:temperature")
def test_a_run_records_which_rows_it_has_seen(flags):
    out = flags("--method", "berxit", "--calibrate")
    tokenizer = AutoTokenizer.from_pretrained(out)
    expected = hashes_of([tokenizer("very good film"), tokenizer("very bad film")]).sort().values.tolist()
    seen = read_seen_rows(out)
    assert seen["training"].tolist() == seen["threshold"].tolist() == expected and set(seen["temperatures"].tolist())


def test_enough_rows_to_choose_a_threshold_are_not_spoken_of(flags, capsys):
    flags("--method", "berxit", "--max_drop", "0.4")
    assert "on which the threshold is chosen" not in capsys.readouterr().err


def test_a_plain_classifier_is_not_said_to_have_exits(flags, capsys):
    flags("--method", "plain")
    printed = capsys.readouterr()
    assert "accuracy: 0." in printed.out and "of always the same answer" in printed.out
    for word in ("exit", "chosen", "next:"):
        assert word not in printed.out
    assert "on which the threshold is chosen" not in printed.err


def test_the_loss_of_the_recipe_is_said_to_be_a_sum(flags, capsys):
    flags()
    assert "train_loss is the sum of the losses of all exits" in capsys.readouterr().err


def test_bfloat16_without_units_for_it_is_told(flags, capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    flags("--method", "berxit", "--bf16", "--max_steps", "1")
    assert "bf16: this CPU has no units for bfloat16" in capsys.readouterr().err


def test_continuing_a_finished_run_says_that_its_threshold_is_replaced(flags, capsys):
    continued = (
        "--method",
        "berxit",
        "--resume_from_checkpoint",
        "auto",
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
    )
    config = flags(*continued) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"exit_threshold": 0.123}))
    capsys.readouterr()
    flags(*continued)
    assert "its exit_threshold 0.123 is replaced by" in capsys.readouterr().err


def test_the_room_that_checkpoints_take_is_told(tmp_path, capsys):
    train_command.tell_of_checkpoints(tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "stage-1-joint" / "final").mkdir(parents=True)
    with (tmp_path / "stage-1-joint" / "final" / "model.safetensors").open("wb") as file:
        file.truncate(2 * 10**8)
    train_command.tell_of_checkpoints(tmp_path)
    assert "stage-*, 0.2 GB, are needed no more" in capsys.readouterr().out


def test_a_folder_with_a_model_is_not_overwritten(flags, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(
        ValueError,
        match=r"output_dir: '.*/out' already contains a model \(config.json\); pass another folder, or --over",
    ):
        flags("--model_name_or_path", "missing")  # before anything is loaded


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(flags, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="output_dir: got '.*/out', but no file can be written"):
        flags("--model_name_or_path", "missing")


@pytest.mark.parametrize("method", ["deebert", "plain"])
def test_auto_starts_and_then_continues(flags, method, capsys):
    for _ in range(2):
        out = flags(
            "--method", method, "--resume_from_checkpoint", "auto", "--save_strategy", "steps", "--save_steps", "1"
        )
    assert (out / "metrics.json").exists()


@pytest.mark.parametrize("method", ["berxit", "deebert", "dact-bert"])
def test_trains_saves_and_reports(flags, method, capsys):
    out = flags("--method", method)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    result = json.loads((out / "metrics.json").read_text())["results"]["validation"]
    curve = json.loads((out / "curve.json").read_text())
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.exit_threshold == result["exit_threshold"]
    assert set(result["by_exit"]) == {"1", "2", "3"}
    assert sum(result["exit_histogram"].values()) == 8
    assert set(curve[0]) == set(CurvePoint._fields)
    assert "<- chosen" in capsys.readouterr().out


def test_the_saved_model_answers_as_the_table_says(flags, start):
    out = flags("--method", "berxit")
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    words = PreTrainedTokenizerFast.from_pretrained(start)
    rows = datasets.load_dataset("csv", data_files=str(out.parent / "dev.csv"))["train"]
    with torch.inference_mode():
        batch = words(list(rows["text"]), return_tensors="pt", padding=True, return_token_type_ids=False)
        output = model(**batch, early_exit=False)
    result = json.loads((out / "metrics.json").read_text())["results"]["validation"]
    right = (
        (output.logits.argmax(dim=-1) == torch.tensor([label == "good" for label in rows["label"]])).double().mean()
    )
    assert right.item() == pytest.approx(result["full_depth"]["accuracy"])


def test_traces_are_kept_on_request(flags, tmp_path):
    out = flags("--method", "berxit", "--save_traces", str(tmp_path / "traces"))
    trace = ExitTrace.load(tmp_path / "traces" / "validation.safetensors")
    result = json.loads((out / "metrics.json").read_text())["results"]["validation"]
    honest = cross_fitted(trace, ["accuracy"])
    assert honest.mean_layers == pytest.approx(result["mean_exit_layer"])


def test_rows_that_choose_the_threshold_are_scored_with_that_of_the_other_half(flags, tmp_path, capsys):
    out = flags("--method", "deebert", "--learning_rate", "1e-2", "--save_traces", str(tmp_path / "traces"))
    metrics = json.loads((out / "metrics.json").read_text())
    result, honest = (
        metrics["results"]["validation"],
        cross_fitted(ExitTrace.load(tmp_path / "traces" / "validation.safetensors"), ["accuracy"]),
    )
    assert result["at_threshold"] == honest.scores and result["saving"] == pytest.approx(honest.saving)
    assert result["cross_fitted_thresholds"] == list(honest.thresholds)
    assert list(result["exit_histogram"].values()) == torch.bincount(honest.exits, minlength=3).tolist()
    assert "each half of the rows with a threshold that was chosen on the other half" in capsys.readouterr().out
    assert "with exits are cross-fitted: each half" in (out / "README.md").read_text()
    assert metrics["training"]["optimizer_steps"] == 4 and metrics["training"]["seconds"] > 0  # two stages


def test_measuring_again_keeps_what_is_known_of_the_training(flags, tmp_path, capsys):
    out = flags("--exits_learning_rate", "1e-2")
    trained = json.loads((out / "metrics.json").read_text())
    assert trained["training"]["arguments"]["recipe"] == "recommended"
    data = ["--validation_file", str(tmp_path / "dev.csv"), "--text_columns", "text"]
    assert main(["report", str(out), *data]) == 0
    again = json.loads((out / "metrics.json").read_text())
    assert again["training"] == trained["training"]
    assert again["results"] == trained["results"]  # cross-fitted; those of the same rows would be better
    assert "metrics.json keeps the earlier results of validation" in capsys.readouterr().err
    written = (out / "README.md").read_text()
    assert "`exits_learning_rate` | `0.01`" in written and "`recipe` | `recommended`" in written
    assert main(["card", str(out)]) == 0
    assert (out / "README.md").read_text() == written


def test_results_of_other_data_stand_beside_those_of_the_training(flags, tmp_path, capsys):
    out = flags("--exits_learning_rate", "1e-2")
    other = tmp_path / "other.csv"
    other.write_text((tmp_path / "dev.csv").read_text())
    assert main(["report", str(out), "--validation_file", str(other), "--text_columns", "text"]) == 0
    results = json.loads((out / "metrics.json").read_text())["results"]
    assert list(results) == ["other.csv, validation", "validation"]
    assert "metrics.json keeps" not in capsys.readouterr().err


def test_too_few_rows_to_choose_and_to_score_on_are_told(flags, capsys):
    labels = (0.5, 2.5)
    out = flags("--method", "berxit", "--max_eval_samples", "3", labels=labels)
    assert "adaexit train: scores with exits are those on the rows on which the threshold was chosen" in (
        capsys.readouterr().err
    )
    result = json.loads((out / "metrics.json").read_text())["results"]["validation"]
    assert "cross_fitted_thresholds" not in result


def test_settings_of_the_method_come_as_json(flags):
    out = flags("--method", "dact-bert", "--method_config", '{"ponder_cost": 0.25, "halting_bound": "paper"}')
    config = AutoModelForSequenceClassification.from_pretrained(out).config
    assert (config.ponder_cost, config.halting_bound) == (0.25, "paper")


def test_floats_make_it_a_regression(flags):
    out = flags("--method", "berxit", labels=(0.5, 2.5))
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert (model.config.num_labels, model.config.exit_criterion) == (1, "learned")
    assert set(json.loads((out / "metrics.json").read_text())["results"]["validation"]["full_depth"]) == {
        "spearmanr",
        "pearson",
    }


@pytest.mark.parametrize("method", ["berxit", "fastbert", "plain"])
def test_several_labels_at_once_are_trained_and_scored(flags, tmp_path, method):
    for name, rows in (("train", 16), ("dev", 8)):
        texts = ("very good film", "bad book", "good")
        lines = (f"{texts[row % 3]},{row % 2},{row % 3 // 2}\n" for row in range(rows))
        (tmp_path / f"{name}.csv").write_text("text,good,short\n" + "".join(lines))
    files = ["--train_file", f"{tmp_path}/train.csv", "--validation_file", f"{tmp_path}/dev.csv"]
    out = flags(*files, "--text_columns", "text", "--label_columns", "good", "short", "--method", method, data=False)
    config = AutoModelForSequenceClassification.from_pretrained(out).config
    assert (config.problem_type, config.id2label) == ("multi_label_classification", {0: "good", 1: "short"})
    scores = json.loads((out / "metrics.json").read_text())["results"]["validation"]["full_depth"]
    assert list(scores) == ["f1_micro", "f1_macro", "accuracy"]


def test_settings_may_come_from_a_file(start, tmp_path, monkeypatch):
    settings = {
        "model_name_or_path": start, "method": "deebert", "output_dir": str(tmp_path / "out"), "max_steps": 1,
        "train_file": write_csv(tmp_path, "train", 8, [0, 1]),
        "validation_file": write_csv(tmp_path, "dev", 4, [0, 1]),
        "text_columns": ["text"], "report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        "stage_overrides": {"exits": {"max_steps": 3}},
    }  # fmt: skip
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    monkeypatch.setattr(sys, "argv", ["adaexit train", str(tmp_path / "settings.yaml")])
    train_command.main()
    assert json.loads((tmp_path / "out" / "stages.json").read_text())["done"] == ["backbone", "exits"]


def test_both_dev_sets_of_mnli_are_reported(flags, tmp_path, start):
    sets = tmp_path / "glue"
    for split, rows in {"train": 12, "validation_matched": 6, "validation_mismatched": 6}.items():
        (sets / "mnli").mkdir(parents=True, exist_ok=True)
        table = {"premise": ["good film"] * rows, "hypothesis": ["bad book"] * rows, "label": [0, 1, 2] * (rows // 3)}
        features = datasets.Features(
            {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
             "label": datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])}
        )  # fmt: skip
        datasets.Dataset.from_dict(table, features).to_parquet(sets / "mnli" / f"{split}-0.parquet")
    files = "".join(
        f"  - split: {split}\n    path: mnli/{split}-*\n"
        for split in ("train", "validation_matched", "validation_mismatched")
    )
    (sets / "README.md").write_text(f"---\nconfigs:\n- config_name: mnli\n  data_files:\n{files}---\n")
    out = flags("--method", "deebert", "--dataset_name", str(sets), "--task_name", "mnli", data=False)
    assert set(json.loads((out / "metrics.json").read_text())["results"]) == {
        "validation_matched",
        "validation_mismatched",
    }


def test_sick_is_a_regression_on_the_relatedness(flags, tmp_path):
    for split, rows in {"train": 12, "validation": 6}.items():
        table = {"sentence1": ["good film"] * rows, "sentence2": ["bad book", "good book"] * (rows // 2)}
        table |= {"label": [1.5, 4.0] * (rows // 2)}
        (tmp_path / "sick").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(table).to_parquet(tmp_path / "sick" / f"{split}-0.parquet")
    out = flags("--method", "berxit", "--dataset_name", str(tmp_path / "sick"), "--task_name", "sick", data=False)
    result = json.loads((out / "metrics.json").read_text())["results"]["validation"]
    assert list(result["full_depth"]) == ["spearmanr", "pearson"]
    assert AutoModelForSequenceClassification.from_pretrained(out).config.num_labels == 1


def test_sick_needs_a_data_set(flags):
    with pytest.raises(ValueError, match="task_name: got 'sick'; only tasks of GLUE have a default data set"):
        flags("--task_name", "sick", data=False)


def test_a_plain_classifier_is_the_baseline_and_the_start_of_a_later_stage(flags, tmp_path):
    plain = flags("--method", "plain")
    result = json.loads((plain / "metrics.json").read_text())["results"]["validation"]
    assert result["saving"] == 0.0
    out = tmp_path / "exits"
    flags("--method", "deebert", "--model_name_or_path", str(plain), "--stage", "exits", "--output_dir", str(out))
    assert (
        json.loads((out / "metrics.json").read_text())["results"]["validation"]["full_depth"] == result["full_depth"]
    )


def test_the_plain_encoder_may_have_fewer_layers(flags):
    out = flags("--method", "plain", "--method_config", '{"num_hidden_layers": 2}')
    assert AutoModelForSequenceClassification.from_pretrained(out).config.num_hidden_layers == 2
    assert json.loads((out / "metrics.json").read_text())["results"]["validation"]["mean_exit_layer"] == 2


def test_layer_drop_reports_every_depth_and_saves_the_whole_model(flags):
    out = flags("--method", "plain", "--layer_drop", "0.5")
    result = json.loads((out / "metrics.json").read_text())["results"]["validation"]
    assert list(result["by_exit"]) == ["1", "2", "3"]
    assert result["mean_exit_layer"] == (result["exit_threshold"] or 3)
    curve = json.loads((out / "curve.json").read_text())
    assert [(point["threshold"], point["mean_layers"]) for point in curve] == [(1.0, 1.0), (2.0, 2.0), (None, 3.0)]
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.num_hidden_layers == 3
    rows = datasets.load_dataset("csv", data_files=str(out.parent / "dev.csv"))["train"]
    words = PreTrainedTokenizerFast.from_pretrained(out)
    keep_layers(model.eval(), [1, 2])  # what two evenly spaced layers of three are
    with torch.inference_mode():
        output = model(**words(list(rows["text"]), return_tensors="pt", padding=True, return_token_type_ids=False))
    right = (
        (output.logits.argmax(dim=-1) == torch.tensor([label == "good" for label in rows["label"]])).double().mean()
    )
    assert right.item() == result["by_exit"]["2"]["accuracy"]


def test_a_plain_encoder_may_have_groups_of_shared_layers(flags, start, tmp_path):
    encoder("albert-groups").save_pretrained(tmp_path / "albert")
    PreTrainedTokenizerFast.from_pretrained(start).save_pretrained(tmp_path / "albert")
    out = flags("--method", "plain", "--model_name_or_path", str(tmp_path / "albert"))
    assert json.loads((out / "metrics.json").read_text())["results"]["validation"]["mean_exit_layer"] == 4


def test_layer_drop_changes_the_training(flags, tmp_path):
    def weights(*more: str) -> torch.Tensor:
        out = flags("--method", "plain", *more, folder="-".join(["plain", *more]))
        model = AutoModelForSequenceClassification.from_pretrained(out)
        return model.base_model.encoder.layer[0].output.dense.weight

    before = encoder("bert").encoder.layer[0].output.dense.weight
    assert not torch.equal(weights(), before)
    torch.testing.assert_close(weights("--layer_drop", "1"), before, rtol=0, atol=0)


def test_layer_drop_is_for_plain_encoders(flags):
    with pytest.raises(ValueError, match="layer_drop: got 0.5 with --method berxit; pass --method plain"):
        flags("--method", "berxit", "--layer_drop", "0.5")


def without_validation(folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    rows = {"text": [f"very good film {index}" for index in range(40)], "label": [0, 1] * 20}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "train-0.parquet")
    return ["--dataset_name", str(folder), "--text_columns", "text", "--method", "plain"]


def test_validation_may_be_taken_from_train(flags, tmp_path, monkeypatch):
    more = without_validation(tmp_path / "sets")
    seen = []
    monkeypatch.setattr(
        train_rows, "tokenize", lambda rows, *rest: seen.append(list(rows["text"])) or tokenize(rows, *rest)
    )
    for seed in "01":
        flags(
            *more, "--validation_fraction", "0.2", "--seed", seed, "--max_eval_samples", "5", data=False, folder=seed
        )
    train, validation, same_train, same_validation = seen
    assert (train, validation) == (same_train, same_validation)
    assert (len(set(train)), len(set(validation)), set(train) & set(validation)) == (32, 5, set())


def test_a_validation_split_that_is_there_is_taken(flags):
    out = flags("--method", "plain", "--validation_fraction", "0.5")
    assert json.loads((out / "metrics.json").read_text())["results"]["validation"]["samples"] == 8


def test_without_a_validation_split_a_tenth_is_held_out_or_the_fraction_that_was_passed(flags, tmp_path, capsys):
    more = without_validation(tmp_path / "sets")
    flags(*more, data=False)
    assert "no validation split" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"validation_fraction: got 1.0; pass a fraction of train between 0 and 1"):
        flags(*more, "--validation_fraction", "1", data=False, folder="other")


def test_an_unknown_method_is_refused(flags):
    with pytest.raises(ValueError, match="method: got 'bertxit'; choose one of berxit, dact-bert, deebert"):
        flags("--method", "bertxit")


def test_a_method_without_regression_is_refused(flags):
    with pytest.raises(ValueError, match="num_labels: got 1"):
        flags("--method", "deebert", labels=(0.5, 2.5))


def test_a_file_that_does_not_exist_is_refused(start, tmp_path, monkeypatch):
    flags = ["--model_name_or_path", start, "--train_file", "x.csv", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run", *flags])
    with pytest.raises(ValueError, match="train_file: there is no 'x.csv'; pass an existing file"):
        train_command.main()


def test_a_missing_label_column_is_named(flags):
    with pytest.raises(ValueError, match="split 'train' has no column 'gold'; it has text, label"):
        flags("--label_column", "gold")


def test_correlations_need_numbers(flags):
    with pytest.raises(
        ValueError, match=r"label_column: 'label' contains the classes .* but \('pearson',\) need numbers"
    ):
        flags("--metrics", "pearson")


def test_the_sound_threshold_is_among_the_candidates(flags):
    out = flags("--method", "dact-bert")
    assert 0.0 in [point["threshold"] for point in json.loads((out / "curve.json").read_text())]


@pytest.mark.filterwarnings("ignore:temperature")  # eight rows
def test_calibration_uses_one_half_of_the_validation_set_and_is_reported(flags, monkeypatch):
    seen = []
    original = RightToolForSequenceClassification.calibrate_temperatures

    def calibrate(self, rows, **options):
        seen.append([tuple(row["input_ids"]) for row in rows])
        return original(self, rows, **options)

    monkeypatch.setattr(RightToolForSequenceClassification, "calibrate_temperatures", calibrate)
    for seed in "01":
        flag = ["--method", "right-tool", "--calibrate", "--seed", seed]
        out = flags(*flag, validation=("bad", "good", "good"), folder=seed)
    result = json.loads((out / "metrics.json").read_text())["results"]["validation"]
    config = AutoModelForSequenceClassification.from_pretrained(out).config
    assert seen[0] == seen[1] and len(seen[0]) == 4
    assert result["samples"] == 8
    assert len(result["exit_temperatures"]) == 3 and result["exit_temperatures"] == config.exit_temperatures


def test_without_calibration_there_are_no_temperatures(flags):
    out = flags("--method", "right-tool")
    assert json.loads((out / "metrics.json").read_text())["results"]["validation"]["exit_temperatures"] is None


@pytest.mark.parametrize(("method", "labels"), [("plain", ("bad", "good")), ("berxit", (0.5, 2.5))])
def test_only_exits_with_probabilities_are_calibrated(flags, method, labels):
    with pytest.raises(ValueError, match=f"calibrate: .* --method {method}"):
        flags("--method", method, "--calibrate", labels=labels)


def test_limit_fine_tuning_has_no_full_depth_to_compare_with(flags):
    with pytest.raises(ValueError, match="--method plain --method_config '{\"num_hidden_layers\": 2}'"):
        flags("--method", "berxit", "--method_config", '{"fine_tuning": "limit", "limit_layer": 2}')


RECONSTRUCTION = ("--method", "depth-adaptive", "--method_config", '{"depth_source": "reconstruction"}')


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("masked-lm")
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(encoder_config("bert")).save_pretrained(folder)
    return str(folder)


def test_depths_by_reconstruction_serve_regression(flags, masked_lm):
    out = flags(*RECONSTRUCTION, "--token_depths_model", masked_lm, labels=(0.5, 2.5))
    result = json.loads((out / "metrics.json").read_text())["results"]["validation"]
    assert result["samples"] == 8
    assert AutoModelForSequenceClassification.from_pretrained(out).config.depth_source == "reconstruction"
    lines = [len((out / f"losses-{name}.jsonl").read_text().splitlines()) for name in ("train", "validation")]
    assert lines == [1 + 16, 1 + 8]


def test_depths_by_reconstruction_need_a_masked_language_model(flags, masked_lm):
    with pytest.raises(ValueError, match="token_depths_model: missing; .*/depths_by_reconstruction.py"):
        flags(*RECONSTRUCTION)
    with pytest.raises(ValueError, match="token_depths_model: got .* with --method berxit; pass --method depth-"):
        flags("--method", "berxit", "--token_depths_model", masked_lm)


def test_the_masked_language_model_must_fit_the_encoder(flags, tmp_path):
    config = encoder_config("bert")
    config.num_hidden_layers = 2
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "shallow")
    with pytest.raises(ValueError, match="has 2 layers and 64 tokens in its vocabulary, but the encoder has 3 and 64"):
        flags(*RECONSTRUCTION, "--token_depths_model", str(tmp_path / "shallow"))
