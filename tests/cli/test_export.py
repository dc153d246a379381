"""`adaexit export`, and the commands with `--runtime onnx`, in process, on a tiny checkpoint."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from helpers.exports import graphs_of
from transformers import AutoTokenizer

from adaexit_hf import BerxitForSequenceClassification, ExportFolderError, OnnxEarlyExitClassifier
from adaexit_hf.cli import main as cli
from adaexit_hf.evaluation.certificate_file import verify_certificates
from adaexit_hf.evaluation.fingerprints import hashes_of, read_seen_rows, save_seen_rows

TEXTS = ["very good film", "bad book", "good", "very very bad film"] * 3


@pytest.fixture(scope="module")
def exported(start, tmp_path_factory) -> tuple[Path, list[str]]:
    """A checkpoint exported with int8 and a threshold for it, and the flags of its labelled texts."""
    folder = tmp_path_factory.mktemp("exported")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    torch.manual_seed(0)
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = BerxitForSequenceClassification.from_encoder_pretrained(
        start, **names, exit_threshold=0.99, num_hidden_layers=2
    )
    model.save_pretrained(folder / "out")
    AutoTokenizer.from_pretrained(start).save_pretrained(folder / "out")
    rows = "".join(f"{text},{'good' if 'good' in text else 'bad'}\n" for text in TEXTS)
    (folder / "dev.csv").write_text(f"text,label\n{rows}")
    flags = ["--validation_file", str(folder / "dev.csv"), "--text_columns", "text"]
    save_seen_rows(folder / "out", {"training": torch.tensor([7])})
    assert cli.main(["export", str(folder / "out"), "--int8", *flags]) == 0
    return folder / "out", flags


@pytest.fixture
def checkpoint(exported, tmp_path) -> str:
    """A copy, which a test may change, and which knows of no rows that chose a threshold."""
    shutil.copytree(exported[0], tmp_path / "out", ignore=shutil.ignore_patterns("seen_rows.npz"))
    return str(tmp_path / "out")


def called(capsys, *arguments: str) -> str:
    capsys.readouterr()
    code = cli.main(list(arguments))
    found = capsys.readouterr()
    assert code == 0, found.err
    return found.out


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(list(arguments)) == 1
    return capsys.readouterr().err


def test_export_adds_the_rows_that_chose_to_the_record(exported) -> None:
    folder, _ = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen = read_seen_rows(folder)
    assert seen["training"].tolist() == [7]
    assert set(seen["threshold"].tolist()) == set(hashes_of([tokenizer(text) for text in TEXTS]).tolist())


def answers(printed: str) -> list[dict]:
    return [json.loads(line) for line in printed.splitlines()]


def test_both_precisions_are_exported_with_thresholds(exported) -> None:
    facts = json.loads((exported[0] / "onnx" / "early_exit.json").read_text())["precisions"]
    assert list(facts) == ["fp32", "int8"] and all(entry["calibrated"] for entry in facts.values())
    assert facts["fp32"]["exit_threshold"] == 0.99 and "cross_fitted_thresholds" in facts["int8"]["results"]


def test_export_prints_a_row_per_precision(capsys, checkpoint, exported) -> None:
    with graphs_of(exported[0] / "onnx"):
        printed = called(capsys, "export", checkpoint, *exported[1])
    assert "\nfp32 " in printed and "int8" not in printed and printed.endswith(f"saved in {checkpoint}/onnx\n")


def test_export_says_how_often_int8_gives_the_class_of_fp32(capsys, checkpoint, exported) -> None:
    printed = called(capsys, "export", checkpoint, "--int8", *exported[1])
    facts = json.loads(Path(checkpoint, "onnx", "early_exit.json").read_text())
    same = facts["precisions"]["int8"]["results"]["same_as_fp32"]
    line = (
        f"int8: the class of fp32 on {same['at_threshold']:.1%} of the texts with exits, {same['full_depth']:.1%} at"
    )
    assert line in printed


def test_predict_gives_the_answers_of_pytorch(capsys, checkpoint) -> None:
    arguments = ("predict", checkpoint, *TEXTS[:4])
    expected = answers(called(capsys, *arguments))
    found = answers(called(capsys, *arguments, "--runtime", "onnx", "--precision", "fp32"))
    assert found == [each | {"score": pytest.approx(each["score"], abs=1e-4)} for each in expected]


@pytest.mark.filterwarnings("ignore:1 texts have more than 3 tokens")
def test_predict_truncates_as_asked(capsys, checkpoint) -> None:
    arguments = ("predict", checkpoint, "good bad very very very bad", "--max_seq_length", "3", "--all_scores")
    (expected,) = answers(called(capsys, *arguments))
    (found,) = answers(called(capsys, *arguments, "--runtime", "onnx", "--precision", "fp32"))
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-4)


def test_evaluate_scores_the_exported_model(capsys, checkpoint, exported) -> None:
    arguments = ("evaluate", checkpoint, *exported[1], "--json")
    expected = answers(called(capsys, *arguments))[0]["validation"]
    found = answers(called(capsys, *arguments, "--runtime", "onnx", "--precision", "fp32"))[0]["validation"]
    for name in ("exit_histogram", "by_exit", "at_threshold", "exit_threshold"):
        assert found[name] == expected[name]


def test_evaluate_says_that_the_rows_chose_the_threshold(capsys, checkpoint, exported) -> None:
    assert cli.main(["evaluate", checkpoint, *exported[1], "--runtime", "onnx"]) == 0
    assert "the threshold was chosen on these rows" in capsys.readouterr().err


def test_calibrate_changes_the_exported_threshold_only(capsys, checkpoint, exported) -> None:
    config = Path(checkpoint, "config.json").read_text()
    found = answers(
        called(capsys, "calibrate", checkpoint, *exported[1], "--runtime", "onnx", "--max_drop", "90%", "--json")
    )
    assert found[0]["saved"] == "early_exit.json" and Path(checkpoint, "config.json").read_text() == config
    assert OnnxEarlyExitClassifier.from_pretrained(checkpoint).exit_threshold == found[0]["threshold"]
    assert OnnxEarlyExitClassifier.from_pretrained(checkpoint, "fp32").exit_threshold == 0.99


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "report", "compare"])
@pytest.mark.parametrize(
    ("flags", "runtime", "text"),
    [
        (["--runtime", "onnx"], {"runtime": "onnx", "precision": "int8"}, ", onnx int8"),
        (["--dtype", "bfloat16"], {"runtime": "torch", "dtype": "bfloat16"}, ", torch bfloat16"),
    ],
)
def test_results_say_what_ran(capsys, checkpoint, exported, command, flags, runtime, text) -> None:
    arguments = (command, checkpoint, *exported[1], *flags)
    assert f"12 samples{text}" in called(capsys, *arguments)
    (found,) = answers(called(capsys, *arguments, "--json"))
    result = found["models"][0] if command == "compare" else found.get("validation", found)
    assert runtime.items() <= result.items()


@pytest.mark.parametrize(
    ("command", "flags", "file"),
    [
        ("calibrate", ["--runtime", "onnx"], "onnx/early_exit.json"),
        ("report", ["--runtime", "onnx"], "onnx/int8/metrics.json"),
        ("calibrate", [], "metrics.json"),
        ("report", [], "metrics.json"),
    ],
)
def test_results_that_are_kept_say_what_ran(capsys, checkpoint, exported, command, flags, file) -> None:
    called(capsys, command, checkpoint, *exported[1], *flags)
    written = json.loads(Path(checkpoint, file).read_text())
    (result,) = written.get("results", {}).values() or [written["precisions"]["int8"]["results"]]
    expected = {"runtime": "onnx", "precision": "int8"} if flags else {"runtime": "torch", "dtype": "float32"}
    assert expected.items() <= result.items()


@pytest.mark.parametrize("place", ["onnx", "onnx/int8"])
def test_an_exported_model_in_place_of_its_checkpoint_names_the_checkpoint(
    capsys, checkpoint, exported, place
) -> None:
    folder = f"{checkpoint}/{place}"
    message = f"'{folder}' holds graphs that adaexit export wrote, and no checkpoint; pass '{checkpoint}', with"
    data, file = exported[1], exported[1][1]
    commands = [
        ["predict", folder, "good"],
        ["predict", folder, "good", "--runtime", "onnx"],
        ["evaluate", folder, *data],
    ]
    commands += [["calibrate", folder, *data, "--runtime", "onnx"], ["report", folder, *data], ["export", folder]]
    commands += [["compare", folder, checkpoint, *data], ["benchmark", folder, file], ["card", folder]]
    commands += [["push", folder, "you/model"], ["convert", folder, "new"]]
    for arguments in commands:
        assert message in refused(capsys, *arguments)
    for flag in ("--model_name_or_path", "--add_exits"):
        assert cli.main(["train", flag, folder, "--train_file", file]) == 2
        assert message in capsys.readouterr().err


def test_a_local_folder_has_no_revisions(capsys, checkpoint) -> None:
    message = f"revision: got 'v2', but '{checkpoint}' is a local folder, which has none; leave it out"
    for arguments in (["predict", checkpoint, "good"], ["export", checkpoint], ["convert", checkpoint, "new"]):
        assert message in refused(capsys, *arguments, "--revision", "v2")


def test_a_dry_run_saves_nothing(capsys, checkpoint, exported) -> None:
    before = Path(checkpoint, "onnx", "early_exit.json").read_bytes()
    called(capsys, "calibrate", checkpoint, *exported[1], "--runtime", "onnx", "--max_drop", "90%", "--dry_run")
    assert Path(checkpoint, "onnx", "early_exit.json").read_bytes() == before


def test_calibrating_the_checkpoint_says_that_the_export_is_old(capsys, checkpoint, exported) -> None:
    assert cli.main(["calibrate", checkpoint, *exported[1], "--max_drop", "90%"]) == 0
    assert "the exported model still has the old threshold; run adaexit export" in capsys.readouterr().err
    with pytest.raises(ExportFolderError, match="config.json' has changed since"):
        OnnxEarlyExitClassifier.from_pretrained(checkpoint)


def test_report_writes_beside_the_graphs(capsys, checkpoint, exported) -> None:
    printed = called(capsys, "report", checkpoint, *exported[1], "--runtime", "onnx")
    folder = Path(checkpoint, "onnx", "int8")
    assert printed.endswith(f"saved in {folder}/report.html\n")
    assert "Runtime: ONNX, int8." in (folder / "report.html").read_text()
    assert not Path(checkpoint, "metrics.json").exists() and (folder / "metrics.json").exists()


def test_a_model_without_threshold_asks_for_one(capsys, checkpoint, exported) -> None:
    with graphs_of(exported[0] / "onnx"):
        called(capsys, "export", checkpoint, "--int8")
    message = refused(capsys, "predict", checkpoint, "good", "--runtime", "onnx")
    assert f"none was chosen for int8; call adaexit calibrate {checkpoint} --runtime onnx" in message
    assert answers(called(capsys, "predict", checkpoint, "good", "--runtime", "onnx", "--exit_threshold", "none"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--runtime", "jax", "good"], "runtime: got 'jax'; choose torch or onnx"),
        (["predict", "--precision", "int8", "good"], "precision: got 'int8' without --runtime onnx"),
        (["predict", "--runtime", "onnx", "--dtype", "bfloat16", "good"], "dtype: got 'bfloat16' with --runtime onnx"),
        (["predict", "--runtime", "onnx", "--device", "cuda", "good"], "device: got 'cuda' with --runtime onnx"),
        (["predict", "--runtime", "onnx", "--exit_threshold", "3", "good"], "exit_threshold: got 3"),
        (["calibrate", "--runtime", "ONNX", "--validation_file", "dev.csv"], "runtime: got 'ONNX'"),
        (["calibrate", "--precision", "int8", "--validation_file", "dev.csv"], "precision: got 'int8' without"),
        (["evaluate", "--runtime", "onnx", "--batch_size", "7", "--validation_file", "dev.csv"], "batch_size: got 7"),
        (["export", "--metrics", "f1"], "metrics: got ['f1'] without labelled texts"),
        (["export", "--output", "."], "holds other files"),
        (["export", "--max_drop", "2%"], "max_drop: got 0.02, but only a threshold for --int8 is chosen here"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    capsys, monkeypatch, checkpoint, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(Path(checkpoint).parent)
    Path("dev.csv").write_text("text,label\ngood,good\n")
    assert message in refused(capsys, arguments[0], checkpoint, *arguments[1:])


@pytest.mark.parametrize("flags", [["--explain", "2"], ["--flops"]])
def test_reports_that_need_pytorch_are_refused(capsys, checkpoint, exported, flags: list[str]) -> None:
    name = flags[0].removeprefix("--")
    assert f"{name}: " in refused(capsys, "report", checkpoint, *exported[1], "--runtime", "onnx", *flags)


def test_texts_are_not_longer_than_the_graphs_read(capsys, checkpoint) -> None:
    called(capsys, "export", checkpoint, "--max_seq_length", "4")
    message = refused(capsys, "predict", checkpoint, "good", "--runtime", "onnx", "--max_seq_length", "5")
    assert "max_seq_length: got 5, but the model was exported for at most 4 tokens" in message


def test_a_checkpoint_is_never_replaced_by_its_export(capsys, checkpoint) -> None:
    before = {path.name for path in Path(checkpoint).iterdir()}
    assert "holds a checkpoint; pass another folder" in refused(capsys, "export", checkpoint, "--output", checkpoint)
    assert {path.name for path in Path(checkpoint).iterdir()} == before


def test_an_export_of_another_model_is_refused(capsys, checkpoint) -> None:
    path = Path(checkpoint, "onnx", "early_exit.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["no", "yes"], "source": {}}))
    assert "its labels is ['no', 'yes']" in refused(capsys, "predict", checkpoint, "good", "--runtime", "onnx")


def test_a_report_on_few_rows_leaves_the_results_alone(capsys, checkpoint, exported) -> None:
    called(capsys, "report", checkpoint, *exported[1], "--runtime", "onnx", "--max_eval_samples", "6")
    assert not Path(checkpoint, "onnx", "int8", "metrics.json").exists()


def test_criteria_are_part_of_the_graphs(capsys, checkpoint, exported) -> None:
    flags = ("--runtime", "onnx", "--exit_criterion", "layer")
    assert "are part of the exported graphs" in refused(capsys, "calibrate", checkpoint, *exported[1], *flags)


def test_certify_binds_the_exported_model(capsys, checkpoint, exported) -> None:
    flags = ("--runtime", "onnx", "--precision", "int8", "--changed_answers", "90%")
    called(capsys, "certify", checkpoint, *exported[1], *flags)
    (sealed,) = verify_certificates(checkpoint).values()
    facts = json.loads((Path(checkpoint) / "onnx" / "early_exit.json").read_text())["precisions"]["int8"]
    assert (sealed.name, sealed.void) == ("onnx int8", ())
    assert facts["exit_threshold"] == sealed.certificate.threshold and "results" not in facts
    assert OnnxEarlyExitClassifier.from_pretrained(checkpoint, "int8").exit_threshold == sealed.certificate.threshold
    called(capsys, "calibrate", checkpoint, *exported[1], "--runtime", "onnx", "--max_drop", "99%")
    assert "void: onnx int8" in refused(capsys, "verify", checkpoint)


def test_what_is_written_beside_graphs_does_not_void(capsys, checkpoint, exported) -> None:
    runtime = ("--runtime", "onnx")
    called(capsys, "certify", checkpoint, *exported[1], *runtime, "--changed_answers", "90%")
    called(capsys, "report", checkpoint, *exported[1], *runtime)
    Path(checkpoint, "onnx", "int8", ".cache").mkdir()
    assert "onnx int8: holds for these files" in called(capsys, "verify", checkpoint)
    assert "Certified: share of texts" in Path(checkpoint, "onnx", "int8", "report.html").read_text()
