"""The folder of a training run: an earlier model is refused, removed or continued. An interruption says how."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers.reviews import write_csv

from adaexit_hf import EarlyExitTrainer
from adaexit_hf.cli import main as cli
from adaexit_hf.cli import train as train_command
from adaexit_hf.cli.output_folder import check_output_dir, how_to_continue, no_empty_folder, remove_model
from adaexit_hf.cli.train_rows import check_several_classes
from adaexit_hf.data.tasks import labels_of
from adaexit_hf.hub.model_card import MARKER

OURS = ["config.json", "model.safetensors", "tokenizer.json", "modeling_berxit.py", "encoder_layers.py",
        "metrics.json", "curve.json", "report.html", "tradeoff.png", "exit_layers.png", "stages.json",
        "training_args.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "losses-train.jsonl"]  # fmt: skip
OURS_IN_FOLDERS = ["stage-1-joint/final/config.json", "stage-2-exits/checkpoint-5/trainer_state.json"]
THEIRS = ["notes.txt", "train.csv", "my_model.py", "data/config.json", "checkpoint-best/file", "stage-plan/file",
          "results.json", "plot.png"]  # fmt: skip

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    def make(*names: str) -> Path:
        root = tmp_path / "out"
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("")
        return root

    return make


def files_in(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_all_that_belongs_to_a_model_is_removed_and_nothing_else(folder: Folder) -> None:
    root = folder(*OURS, *OURS_IN_FOLDERS, *THEIRS)
    (root / "README.md").write_text(f"card\n{MARKER}\n")
    removed = remove_model(root)
    assert sorted(removed) == sorted([*OURS, "README.md", "stage-1-joint", "stage-2-exits"])
    assert files_in(root) == sorted(THEIRS)
    assert remove_model(root) == []


def test_a_readme_of_ones_own_is_kept(folder: Folder) -> None:
    root = folder("config.json", "README.md")
    assert remove_model(root) == ["config.json"]


def test_a_folder_without_a_model_is_left_alone(folder: Folder) -> None:
    root = folder("tokenizer.json", "vocab.txt", "metrics.json")
    assert remove_model(root) == [] and len(files_in(root)) == 3


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["config.json"], {}, r"'.*out' already contains a model \(config.json\); pass another folder, or"),
        (["model.safetensors"], {}, "already contains a model"),
        (["stage-1-joint/final/x"], {}, "pass another folder, --resume_from_checkpoint auto to continue that run, or"),
        (["config.json"], {"resume": True}, "and no checkpoint of such a run to continue from; pass another folder"),
        (["checkpoint-5/x"], {"resume": True}, "and no checkpoint of such a run to continue from"),
        (["stage-1-joint/final/x"], {"resume": True, "plain": True}, "and no checkpoint of such a run"),
        (["config.json"], {"resume": True, "overwrite": True}, "overwrite_output_dir: got it with --resume_from"),
        (["config.json"], {"overwrite": True, "source": "out"}, "overwrite_output_dir: would remove '.*out', the mod"),
        (["stage-1-a/final/x"], {"overwrite": True, "source": "out/stage-1-a/final"}, "would remove"),
    ],
)  # fmt: skip
def test_a_folder_with_another_model_is_refused(folder: Folder, names: list[str], options: Any, message: str) -> None:
    root = folder(*names)
    settings = {"resume": False, "overwrite": False, "plain": False} | options
    settings["source"] = str(root.parent / options.get("source", "encoder"))
    with pytest.raises(ValueError, match=message):
        check_output_dir(root, **settings)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ([], {}),
        (["notes.txt"], {}),
        (["stages.json"], {"resume": True}),  # interrupted before the first checkpoint
        (["stage-1-joint/checkpoint-5/x"], {"resume": True}),
        (["checkpoint-5/x", "config.json"], {"resume": True, "plain": True}),
        (["config.json"], {"overwrite": True}),
        (["config.json"], {"overwrite": True, "source": "out/encoder"}),
    ],
)
def test_other_folders_are_not(folder: Folder, names: list[str], options: Any) -> None:
    root = folder(*names)
    settings = {"resume": False, "overwrite": False, "plain": False} | options
    check_output_dir(root, **settings | {"source": str(root.parent / options.get("source", "encoder"))})


def test_a_folder_that_was_made_and_stayed_empty_is_removed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for path, file in ((tmp_path / "new" / "out", None), (tmp_path / "old", None), (tmp_path / "used", "file")):
        with pytest.raises(KeyError), no_empty_folder(path):
            path.mkdir(parents=True, exist_ok=True)
            if file:
                (path / file).touch()
            raise KeyError
    assert sorted(os.listdir(tmp_path)) == ["old", "used"]


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank_pictures: None) -> Any:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = ["--train_file", write_csv(tmp_path, "train", 16, ["bad", "good"]), "--text_columns", "text"]
    files += ["--validation_file", write_csv(tmp_path, "dev", 8, ["bad", "good"])]
    quick = ["--max_steps", "3", "--use_cpu", "--report_to", "none", "--disable_tqdm", "true"]

    def run(*more: str) -> int:
        out = ["--output_dir", str(tmp_path / "out")]
        return cli.main(["train", "--model_name_or_path", start, *files, *out, *quick, *more])

    return run


def test_overwriting_leaves_no_mix_of_two_models(train: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train("--method", "deebert", "--save_strategy", "epoch") == 0
    (out / "notes.txt").write_text("mine")
    assert train("--method", "plain", "--save_strategy", "no", "--overwrite_output_dir") == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "bert"
    assert not list(out.glob("*.py")) and not list(out.glob("stage-*")) and not (out / "stages.json").exists()
    assert not (out / "README.md").exists()
    remove_model(out)
    assert files_in(out) == ["notes.txt"]


def test_a_refused_run_removes_nothing_and_leaves_no_folder(train: Any, tmp_path: Path) -> None:
    assert train("--method", "berxit", "--method_config", '{"fine_tuning": "none"}') == 2
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    assert train("--method", "berxit", "--stage", "no-such-stage", "--overwrite_output_dir") == 2
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_a_metric_that_does_not_fit_removes_nothing(train: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert train() == 0
    before = files_in(out)
    numbers = write_numbers(tmp_path)
    assert (
        train("--train_file", numbers, "--validation_file", numbers, "--metrics", "accuracy", "--overwrite_output_dir")
        == 2
    )
    assert "accuracy compares classes per text, but the model predicts one number" in capsys.readouterr().err
    assert files_in(out) == before


def write_numbers(folder: Path) -> str:
    path = folder / "numbers.csv"
    path.write_text("text,label\n" + "".join(f"a film {row},{float(row % 2)}\n" for row in range(8)))
    return str(path)


def test_labels_that_may_be_classes_are_told(train: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    numbers = write_numbers(tmp_path)
    assert train("--train_file", numbers, "--validation_file", numbers) == 0
    err = capsys.readouterr().err
    assert "'label' has floating-point numbers, 0.0, 1.0, so that a regression is trained; if they are classes" in err
    assert "recommended recipe for a regression, berxit" in err


def test_rows_of_one_class_are_no_training_set(train: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train("--train_file", write_csv(tmp_path, "same", 8, ["good"])) == 1
    assert "all rows of train have the label 'good' in column 'label'; pass rows of two" in capsys.readouterr().err


def test_one_class_of_several_named_ones_is_no_training_set() -> None:
    named = datasets.Features({"label": datasets.ClassLabel(names=["bad", "good"])})
    rows = datasets.Dataset.from_dict({"label": [1, 1]}, features=named)
    with pytest.raises(ValueError, match="all rows of train have the label 'good' in column 'label'"):
        check_several_classes(rows, "label", labels_of(rows, "label"))
    check_several_classes(rows.add_item({"label": 0}), "label", labels_of(rows, "label"))


def test_a_column_with_a_label_per_row_holds_no_classes() -> None:
    few = datasets.Dataset.from_dict({"label": [f"class {row}" for row in range(20)]})
    check_several_classes(few, "label", labels_of(few, "label"))
    half = datasets.Dataset.from_dict({"label": [f"class {row // 2}" for row in range(60)]})
    check_several_classes(half, "label", labels_of(half, "label"))
    texts = datasets.Dataset.from_dict({"label": [f"text {row}" for row in range(30)]})
    with pytest.raises(ValueError, match="column 'label' has 30 labels in 30 rows of train, e.g. 'text 0'; pass"):
        check_several_classes(texts, "label", labels_of(texts, "label"))


def test_an_interrupted_run_names_the_command_that_continues_it(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, steps = EarlyExitTrainer.training_step, list[int]()

    def interrupted_after_two(self: Any, *args: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(EarlyExitTrainer, "training_step", interrupted_after_two)
    assert (
        train("--method", "berxit", "--save_strategy", "steps", "--save_steps", "1", "--overwrite_output_dir") == 130
    )
    told = capsys.readouterr().err
    before, _, command = told.partition("To continue from the last checkpoint:\n")
    assert "adaexit train: interrupted. " in before
    words = shlex.split(command.splitlines()[0])
    assert words[:2] == ["adaexit", "train"] and words[-2:] == ["--resume_from_checkpoint", "auto"]
    assert "--overwrite_output_dir" not in words
    assert cli.main(words[1:]) == 0
    assert len(steps) == 4  # the third step, once more
    assert json.loads((tmp_path / "out" / "stages.json").read_text())["done"] == ["alternate"]


def test_an_interruption_before_the_old_model_was_removed_names_the_same_command(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--method", "plain", "--save_strategy", "no") == 0
    model = (tmp_path / "out" / "model.safetensors").read_bytes()
    capsys.readouterr()

    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("adaexit_hf.cli.train_rows.load_splits", interrupted)
    assert train("--method", "berxit", "--overwrite_output_dir") == 130
    told = capsys.readouterr().err
    assert "interrupted before the earlier model was removed. To start again:\n" in told
    assert "--overwrite_output_dir" in told and "--resume_from_checkpoint" not in told
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model


def test_an_interruption_before_the_first_checkpoint_says_so(tmp_path: Path) -> None:
    assert how_to_continue(tmp_path, "adaexit train", ["--seed", "1"]) == (
        "interrupted before the first checkpoint was saved. To start again:\n"
        "  adaexit train --seed 1 --resume_from_checkpoint auto"
    )


def test_a_run_with_a_file_of_settings_is_continued_in_the_file(folder: Folder) -> None:
    root = folder("stage-1-joint/checkpoint-1/trainer_state.json")
    assert how_to_continue(root, "adaexit train", ["run.yaml"]) == (
        'interrupted. To continue from the last checkpoint, set resume_from_checkpoint to "auto" in the file:\n'
        "  adaexit train run.yaml"
    )
    assert "and remove overwrite_output_dir in the file" in how_to_continue(root, "adaexit train", ["run.yaml"], True)


# Exit codes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--method", "berx"], 2, "method: got 'berx'; choose one of"),
        (["--method", "plain", "--stage", "exits"], 2, "stage: got 'exits'; --method plain has no stages, leave"),
        (["--method", "berxit", "--layer_drop", "0.5"], 2, "layer_drop: got 0.5 with --method berxit"),
        (["--max_drop", "-1"], 2, "max_drop: got -1"),
        (["--recipe", "mine"], 2, "recipe: got 'mine'"),
        (["--metrics", "spearmanr"], 2, "label_column: 'label' contains the classes"),
        (["--method", "berxit", "--train_file", "missing.csv"], 1, "train_file: there is no 'missing.csv'"),
        (["--method", "berxit", "--label_column", "text2"], 1, "has no column 'text2'"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2_and_failed_work_with_1(
    train: Any, tmp_path: Path, more: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*more) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_failing_work_ends_with_1(train: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(train_command, "tradeoff_curve", fails)
    assert train("--method", "berxit", "--save_strategy", "no") == 1
