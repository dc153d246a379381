"""The other examples, in process, on a tiny encoder and data made here."""

import json
import runpy
import sys
from pathlib import Path

import datasets
import depth_adaptive_speed
import depths_by_reconstruction
import pytest
import train_on_csv
from accelerate.commands.config.config_args import load_config_from_file
from helpers.reviews import write_csv
from transformers import AutoModelForSequenceClassification

pytestmark = pytest.mark.slow


@pytest.fixture
def sets(tmp_path, monkeypatch) -> str:
    """A folder with train and test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "sets").mkdir()
    columns = {"text": ["good film", "very bad book"] * 4, "label": [1, 0] * 4}
    for split in ("train", "test"):
        rows = {"text": [f"{text} {split}" for text in columns["text"]], "label": columns["label"]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "sets" / f"{split}-0.parquet")
    return str(tmp_path / "sets")


@pytest.fixture
def reconstruct(start, sets, tmp_path, monkeypatch):
    def run(*more: str) -> list[dict]:
        arguments = ["--model_name_or_path", start, "--dataset_name", sets, "--work_dir", str(tmp_path / "work")]
        arguments += ["--max_steps", "1", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]
        monkeypatch.setattr(sys, "argv", ["run", *arguments, "--penalties", "0.1", *more])
        depths_by_reconstruction.main()
        table = tmp_path / "work" / "table.jsonl"
        return [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []

    return run


def test_another_seed_and_another_masking_are_lines_of_their_own(reconstruct, capsys):
    reconstruct()
    capsys.readouterr()
    lines = reconstruct("--seed", "1")
    assert [line["seed"] for line in lines] == [42, 1]
    printed = capsys.readouterr().out.partition("mean exit layer")[2]
    assert [line.split()[:2] for line in printed.strip().splitlines()] == [["0.1", "42"], ["0.1", "1"]]
    assert len(reconstruct("--seed", "1")) == 2
    lines = reconstruct("--seed", "1", "--masked_at_once", "2")
    assert [line["masked_at_once"] for line in lines] == [1, 1, 2]
    assert len(reconstruct("--num_train_epochs", "5")) == 4


def test_goes_on_after_an_interruption_with_and_without_checkpoints(reconstruct):
    stop = pytest.MonkeyPatch()
    stop.setattr(depths_by_reconstruction, "collect_trace", lambda *_: 1 / 0)
    for saving in ("no", "steps"):
        with pytest.raises(ZeroDivisionError):
            reconstruct("--save_strategy", saving, "--save_steps", "1", "--seed", "1" if saving == "no" else "2")
    stop.undo()
    reconstruct("--seed", "1")
    lines = reconstruct("--save_strategy", "steps", "--save_steps", "1", "--seed", "2")
    assert [line["seed"] for line in lines] == [1, 2]


def test_the_masked_language_model_sees_test_texts_without_labels(reconstruct, monkeypatch):
    seen = []
    train = depths_by_reconstruction.train_masked_lm
    monkeypatch.setattr(
        depths_by_reconstruction,
        "train_masked_lm",
        lambda arguments, training, texts, *rest: seen.append(texts) or train(arguments, training, texts, *rest),
    )
    reconstruct()
    assert len(seen[0]) == 16
    assert "labels" not in seen[0].column_names


def test_the_masked_language_model_is_that_of_one_data_set(reconstruct, tmp_path):
    assert reconstruct("--masked_lm_only") == []
    assert (tmp_path / "work" / "masked-lm" / "config.json").exists()
    with pytest.raises(ValueError, match="work_dir: .* was trained with .*max_train_samples.: None.*pass another"):
        reconstruct("--max_train_samples", "4")
    with pytest.raises(ValueError, match="work_dir: "):
        reconstruct("--masked_lm_on_train_only")


def test_numbers_have_no_accuracy(reconstruct, sets):
    for split in ("train", "test"):
        rows = {"one": ["good"] * 8, "two": ["film", "bad film"] * 4, "score": [0.5, 2.5] * 4}
        datasets.Dataset.from_dict(rows).to_parquet(Path(sets) / f"{split}-0.parquet")
    columns = ("--text_columns", "one", "two", "--label_column", "score")
    with pytest.raises(ValueError, match="label_column: 'score' contains numbers, .*--masked_lm_only"):
        reconstruct(*columns)
    assert reconstruct(*columns, "--masked_lm_only") == []


@pytest.fixture
def measure(start, sets, tmp_path, monkeypatch):
    def run(*more: str) -> list[dict]:
        output = tmp_path / "speed.jsonl"
        arguments = ["--model_name_or_path", start, "--dataset_name", sets, "--output", str(output), "--texts", "4"]
        monkeypatch.setattr(sys, "argv", ["run", *arguments, "--layers", "2", "3", "--rounds", "1", *more])
        depth_adaptive_speed.main()
        return [json.loads(line) for line in output.read_text().splitlines()]

    return run


def test_every_circumstance_of_a_measurement_is_one_of_its_key(measure, monkeypatch, capsys):
    lines = measure("--batch_sizes", "1", "2")
    assert [(line["layers"], line["batch_size"]) for line in lines] == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert len(measure("--batch_sizes", "1", "2")) == 4
    changes = [("--bf16",), ("--max_seq_length", "4"), ("--rounds", "2"), ("--texts", "3")]
    for count, change in enumerate(changes, start=1):
        assert len(measure("--batch_sizes", "1", *change)) == 4 + 2 * count
    monkeypatch.setattr(depth_adaptive_speed, "machine_of", lambda device: "another")
    assert len(measure("--batch_sizes", "1")) == 4 + 2 * 5


def test_cost_and_efficiency_stand_beside_the_measured_ratio(measure, capsys):
    (line, _) = measure("--batch_sizes", "2")
    share, speed_up = line["token_layers_run"], line["speed_up"]
    assert line["expected_cost"] == pytest.approx(share + (1 - share) / 6)
    assert line["measured_cost"] == pytest.approx(1 / speed_up)
    assert line["efficiency"] == pytest.approx(speed_up * share)
    printed = capsys.readouterr().out
    assert "expected cost  measured cost" in printed
    assert f"{line['expected_cost']:>14.2f} {line['measured_cost']:>14.2f}" in printed


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # the code is written for machines with a GPU, too
@pytest.mark.filterwarnings("ignore:curve. .*:UserWarning")  # a tiny model learns nothing
def test_train_on_your_own_csv(start, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = write_csv(tmp_path, "reviews", 40, ["None", "good"])
    flags = [file, "--encoder", start, "--epochs", "0.1", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["run", *flags])
    train_on_csv.main()
    assert "of the layers saved" in capsys.readouterr().out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "None", 1: "good"}
    assert (tmp_path / "out" / "README.md").exists()
    monkeypatch.setattr(sys, "argv", ["run", *flags, "--label", "stars"])
    with pytest.raises(SystemExit):
        train_on_csv.main()
    assert "no column 'stars'" in capsys.readouterr().err


def test_the_config_of_several_gpus_is_one_of_accelerate():
    config = load_config_from_file(str(Path(train_on_csv.__file__).with_name("accelerate_multi_gpu.yaml")))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == ("MULTI_GPU", 2, "bf16")


@pytest.mark.parametrize("name", ["rerank", "run_glue_exit", "train_on_csv"])
def test_help_needs_no_extra(name, monkeypatch, capsys):
    for extra in ("accelerate", "datasets", "evaluate", "sklearn"):
        monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(Path(train_on_csv.__file__).with_name(f"{name}.py")), run_name="__main__")
    assert stopped.value.code == 0
    assert "usage: " in capsys.readouterr().out
