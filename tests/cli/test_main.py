"""The command `adaexit`, in process, on a tiny checkpoint."""

import errno
import inspect
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from helpers.fresh import run
from helpers.report_page import embedded
from helpers.reviews import write_csv
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adaexit_hf import (
    METHODS,
    BerxitForSequenceClassification,
    DeeBertForSequenceClassification,
    ExitTrace,
    __version__,
    bootstrap_samples,
    collect_trace,
    cross_fitted,
    explain,
    predict,
    tradeoff_curve,
)
from adaexit_hf.cli import calibrate as calibrate_command
from adaexit_hf.cli import evaluate as evaluate_command
from adaexit_hf.cli import main as cli
from adaexit_hf.cli.help import help_text
from adaexit_hf.cli.parser import INDENT, WIDTH
from adaexit_hf.cli.printing import print_curve, print_results
from adaexit_hf.evaluation.cross_fit import split_in_halves
from adaexit_hf.evaluation.curves import CurvePoint
from adaexit_hf.evaluation.summary import results_at_threshold

TEXTS = ["very good film", "bad book", "good", "very very bad film"]


@pytest.fixture
def checkpoint(start, tmp_path) -> str:
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = BerxitForSequenceClassification.from_encoder_pretrained(start, **names, exit_threshold=0.5)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def labelled(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "dev.csv"
    path.write_text("text,label\n" + "".join(f"{text},{'good' if 'good' in text else 'bad'}\n" for text in TEXTS * 3))
    return ["--validation_file", str(path), "--text_columns", "text"]


def called(capsys, *arguments: str) -> str:
    """What a command prints, when it succeeds."""
    code = cli.main(list(arguments))
    found = capsys.readouterr()
    assert code == 0, found.err
    return found.out


def refused(capsys, *arguments: str, code: int = 1) -> str:
    """What it complains about, when it fails."""
    assert cli.main(list(arguments)) == code
    found = capsys.readouterr()
    assert found.out == ""
    return found.err


def answers(printed: str) -> list[dict]:
    return [json.loads(line) for line in printed.splitlines()]


def test_without_arguments_it_says_what_there_is(capsys) -> None:
    printed = called(capsys)
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)
    assert called(capsys, "--version").strip() == __version__


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(capsys, command: str) -> None:
    printed = called(capsys, command, "--help")
    assert f"usage: adaexit {command}" in printed
    assert "default: None" not in printed
    assert max(map(len, printed.splitlines())) <= WIDTH


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_help_files_are_those_of_the_flags(command: str) -> None:
    message = "run python -m adaexit_hf.cli.help, which writes the help texts anew"
    assert help_text(command) == cli.parser_of(command).format_help(), message


@pytest.mark.parametrize("command", sorted(cli.COMMANDS.keys() - {"train"}))
def test_help_shows_every_flag(command: str) -> None:
    flags = {action.option_strings[0] for action in cli.parser_of(command)._actions if action.option_strings}
    assert {flag for flag in flags - {"-h"} if f"  {flag}" not in help_text(command)} == set()


def test_help_needs_no_torch() -> None:
    code = "import sys; from adaexit_hf.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for arguments in (["--help"], ["train", "--help"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_an_unknown_command_is_refused(capsys) -> None:
    assert "unknown command 'predit'; choose one of train, evaluate" in refused(capsys, "predit", code=2)


def test_predict_answers_like_the_model(capsys, checkpoint) -> None:
    found = answers(called(capsys, "predict", checkpoint, *TEXTS))
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert [answer["text"] for answer in found] == TEXTS
    for answer in found:
        output = model(**tokenizer(answer["text"], return_tensors="pt"))
        chosen = int(output.logits.argmax())
        assert answer["label"] == model.config.id2label[chosen]
        assert answer["score"] == pytest.approx(output.logits.softmax(-1)[0, chosen].item(), abs=1e-5)
        assert answer["exit_layer"] == output.exit_layer.item()


@pytest.fixture
def several(start, tmp_path) -> tuple[str, list[str]]:
    """A checkpoint for several labels at once, and flags of labelled texts."""
    options = {"id2label": {0: "good", 1: "short", 2: "odd"}, "problem_type": "multi_label_classification"}
    model = BerxitForSequenceClassification.from_encoder_pretrained(start, **options, exit_threshold=0.51)
    with torch.no_grad():
        for exit in model.exits:
            exit.classifier.bias.copy_(torch.tensor([2.0, 3.0, -2.0]))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "model")
    rows = [{"text": text, "label": ["good"] * ("good" in text) + ["short"] * (len(text) < 9)} for text in TEXTS * 3]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "model"), ["--validation_file", str(tmp_path / "dev.jsonl"), "--text_columns", "text"]


def test_predict_gives_all_labels_above_a_half(capsys, several) -> None:
    (found,) = answers(called(capsys, "predict", several[0], "good"))
    model = AutoModelForSequenceClassification.from_pretrained(several[0]).eval()
    output = model(**AutoTokenizer.from_pretrained(several[0])("good", return_tensors="pt"))
    assert found["labels"] == ["good", "short"] and found["exit_layer"] == output.exit_layer.item()
    assert list(found["scores"].values()) == pytest.approx(output.logits.sigmoid()[0].tolist(), abs=1e-5)


def test_several_labels_are_evaluated_calibrated_and_reported(capsys, several) -> None:
    checkpoint, flags = several
    result = json.loads(called(capsys, "evaluate", checkpoint, *flags, "--json"))["validation"]
    assert set(result["at_threshold"]) == {"f1_micro", "f1_macro", "accuracy"}
    low, high = result["intervals"]["f1_micro"]
    assert low <= result["at_threshold"]["f1_micro"] <= high
    chosen = json.loads(called(capsys, "calibrate", checkpoint, *flags, "--temperatures", "--json"))
    assert chosen["metric"] == "f1_micro" and len(chosen["exit_temperatures"]) == 3
    called(capsys, "report", checkpoint, *flags)
    assert (Path(checkpoint) / "report.html").exists()
    called(capsys, "card", checkpoint)
    assert "micro F1" in (Path(checkpoint) / "README.md").read_text()
    assert "explanations are of one class" in refused(capsys, "report", checkpoint, *flags, "--explain", "2")


def test_columns_with_the_names_of_the_models_labels_are_taken(capsys, several, tmp_path) -> None:
    lists = json.loads(called(capsys, "evaluate", several[0], *several[1], "--json"))["validation"]
    rows = [f"{text},{int('good' in text)},{int(len(text) < 9)},0\n" for text in TEXTS * 3]
    (tmp_path / "dev.csv").write_text("text,good,short,odd\n" + "".join(rows))
    flags = ["--validation_file", str(tmp_path / "dev.csv")]
    columns = json.loads(called(capsys, "evaluate", several[0], *flags, "--json"))["validation"]
    assert columns["at_threshold"] == lists["at_threshold"]
    message = refused(capsys, "train", "--model_name_or_path", several[0], "--train_file", flags[1])
    assert "or for several labels at once --label_columns good short" in message
    assert "or columns of 0 and 1 as --label_columns" in refused(
        capsys, "evaluate", several[0], *flags, "--label_column", "good"
    )


def test_a_column_with_lists_goes_before_columns_with_the_names_of_labels(capsys, several, tmp_path) -> None:
    expected = called(capsys, "evaluate", several[0], *several[1], "--json")
    lines = (tmp_path / "dev.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"good": 0, "short": 0, "odd": 1} for line in lines]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert called(capsys, "evaluate", several[0], *several[1], "--json") == expected


def test_a_label_without_a_column_is_not_taken_for_absent(capsys, several, tmp_path) -> None:
    (tmp_path / "dev.csv").write_text("text,short,good\n" + "".join(f"{text},1,0\n" for text in TEXTS))
    flags = ["--validation_file", str(tmp_path / "dev.csv"), "--text_columns", "text"]
    message = refused(capsys, "evaluate", several[0], *flags, "--label_columns", "short", "good")
    assert "label_columns: got ['short', 'good'], but the model also predicts ['odd']" in message


def test_the_threshold_can_be_given(capsys, checkpoint) -> None:
    depth = AutoModelForSequenceClassification.from_pretrained(checkpoint).config.exit_layers[-1]
    found = answers(called(capsys, "predict", checkpoint, "good", "--exit_threshold", "1.0"))
    assert [answer["exit_layer"] for answer in found] == [depth]


def test_predict_reads_files_and_stdin(capsys, checkpoint, tmp_path, monkeypatch) -> None:
    direct = called(capsys, "predict", checkpoint, *TEXTS)
    (tmp_path / "texts.csv").write_text("id,review\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS)))
    flags = ["--file", str(tmp_path / "texts.csv"), "--text_columns", "review"]
    assert called(capsys, "predict", checkpoint, *flags) == direct
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
    assert called(capsys, "predict", checkpoint) == direct


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_valid_whatever_the_encoding_of_stdout(checkpoint, tmp_path, monkeypatch, encoding: str) -> None:
    (tmp_path / "texts.txt").write_text("Äpfel 電影\n", encoding="utf-8")
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["predict", checkpoint, "--file", str(tmp_path / "texts.txt")]) == 0
    printed = out.buffer.getvalue()
    assert json.loads(printed.decode("utf-8"))["text"] == "Äpfel 電影"
    assert ("Äpfel".encode() in printed) is (encoding == "utf-8")


def test_a_table_is_printed_whatever_the_encoding_of_stdout(checkpoint, labelled, monkeypatch) -> None:
    edit_config(checkpoint, id2label={"0": "bad", "1": "良い"}, label2id={"bad": 0, "良い": 1})
    path = Path(labelled[1]).rename(Path(labelled[1]).with_name("開発.csv"))
    path.write_text(path.read_text().replace(",good", ",良い"), encoding="utf-8")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["report", checkpoint, "--validation_file", str(path), "--text_columns", "text"]) == 0
    assert cli.main(["report", checkpoint, "--validation_file", str(path), "--text_columns", "良い"]) == 1
    err.flush()
    assert b"\\u826f\\u3044" in err.buffer.getvalue()


def test_half_a_surrogate_pair_is_refused(capsys, checkpoint, tmp_path) -> None:
    assert "texts: argument 2: character 0 is '\\ud83d'" in refused(capsys, "predict", checkpoint, "good", "\ud83d")
    (tmp_path / "texts.jsonl").write_text('{"text": "good"}\n{"text": "\\ud83d"}\n')
    assert cli.main(["predict", checkpoint, "--file", str(tmp_path / "texts.jsonl")]) == 1
    printed = capsys.readouterr()
    assert [answer["text"] for answer in answers(printed.out)] == ["good"]
    assert "row 1, column 'text': character 0 is '\\ud83d'" in printed.err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # that there are such numbers
def test_predict_prints_null_for_an_answer_that_is_not_finite(capsys, checkpoint) -> None:
    weights = Path(checkpoint, "model.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    good = AutoTokenizer.from_pretrained(checkpoint).convert_tokens_to_ids("good")
    tensors[name][good] = math.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    lost, found = answers(called(capsys, "predict", checkpoint, "good", "bad"))
    assert (lost["text"], lost["label"], lost["score"]) == ("good", None, None)
    assert found["label"] in NAMED and found["score"] > 0


def test_predict_takes_pairs_of_texts(capsys, checkpoint, tmp_path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"a": "good", "b": "bad film"}))
    printed = called(
        capsys, "predict", checkpoint, "--file", str(tmp_path / "pairs.jsonl"), "--text_columns", "a", "b"
    )
    assert answers(printed)[0]["text"] == ["good", "bad film"]


@pytest.fixture
def of_pairs(start, tmp_path) -> str:
    """A checkpoint that was trained on pairs of texts."""
    names = {"id2label": {0: "bad", 1: "good"}}
    BerxitForSequenceClassification.from_encoder_pretrained(start, **names, pairs=True).save_pretrained(tmp_path / "p")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "p")
    return str(tmp_path / "p")


def test_pairs_come_from_arguments_stdin_and_files(capsys, of_pairs, tmp_path, monkeypatch) -> None:
    direct = called(capsys, "predict", of_pairs, "good", "bad film", "very good", "book")
    assert [answer["text"] for answer in answers(direct)] == [["good", "bad film"], ["very good", "book"]]
    lines = 'good\tbad film\n{"a": "very good", "b": "book"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert called(capsys, "predict", of_pairs) == direct
    rows = '{"n": 1, "b": "bad film", "a": "good"}\n{"n": 2, "a": "very good", "b": "book"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
    assert called(capsys, "predict", of_pairs, "--text_columns", "a", "b") == direct
    (tmp_path / "pairs.txt").write_text("good\tbad film\nvery good\tbook\n")
    assert called(capsys, "predict", of_pairs, "--file", str(tmp_path / "pairs.txt")) == direct
    (tmp_path / "pairs.csv").write_text("id;premise;hypothesis\n1;good;bad film\n2;very good;book\n")
    flags = ["--file", str(tmp_path / "pairs.csv"), "--text_columns", "premise", "hypothesis"]
    assert called(capsys, "predict", of_pairs, *flags) == direct


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["good", "bad", "book"],
            "texts: got 3 arguments, but the model takes pairs of texts; pass two for each pair",
        ),
        (["--file", "lines.txt"], "line 1 is 'good', but the model takes pairs of texts; pass two with a tab between"),
        (["--file", "lines.txt", "--text_column", "a"], "got ['a']; pass two columns, since the model was trained on"),
    ],
)
def test_a_model_of_pairs_takes_no_single_texts(
    capsys, of_pairs, tmp_path, monkeypatch, more: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("good\n")
    assert message in refused(capsys, "predict", of_pairs, *more)


def test_labelled_texts_of_the_other_kind_are_refused(capsys, of_pairs, labelled) -> None:
    for command in ("evaluate", "calibrate", "report"):
        message = refused(capsys, command, of_pairs, *labelled)
        assert "text_columns: got ['text'], single texts, but the model was trained on pairs; pass two" in message


def test_empty_texts_are_answered_with_null_and_a_reason(capsys, checkpoint, tmp_path) -> None:
    (tmp_path / "texts.csv").write_text("n,text\n1,\n2,good\n3,  \n4,bad\n5,\n")
    flags = ["--file", str(tmp_path / "texts.csv"), "--id_column", "n"]
    found = answers(called(capsys, "predict", checkpoint, *flags))
    assert [answer["id"] for answer in found] == list("12345")
    assert found[0] == {
        "id": "1", "text": "", "label": None, "score": None, "exit_layer": None, "reason": "the text is empty",
    }  # fmt: skip
    direct = answers(called(capsys, "predict", checkpoint, "good", "bad"))
    assert [{"id": answer["id"]} | other for answer, other in zip(found[1::2], direct, strict=True)] == found[1::2]
    (only,) = answers(called(capsys, "predict", checkpoint, " "))
    assert only["reason"] == "the text is empty"


def test_an_empty_text_has_no_labels(capsys, several) -> None:
    (found,) = answers(called(capsys, "predict", several[0], ""))
    assert (found["labels"], found["scores"], found["reason"]) == (None, None, "the text is empty")


def test_predict_writes_a_file(capsys, checkpoint, tmp_path) -> None:
    direct = called(capsys, "predict", checkpoint, "good", "bad")
    assert cli.main(["predict", checkpoint, "good", "bad", "--output", str(tmp_path / "answers.jsonl")]) == 0
    printed = capsys.readouterr()
    assert (tmp_path / "answers.jsonl").read_text() == direct and printed.out == ""
    assert "2 texts, 0 of them empty, mean exit layer" in printed.err
    (tmp_path / "texts.txt").write_text("good\n")
    flags = ["--file", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "texts.txt")]
    assert "output: got" in refused(capsys, "predict", checkpoint, *flags)


def test_predict_gives_the_scores_of_all_labels(capsys, checkpoint) -> None:
    (found,) = answers(called(capsys, "predict", checkpoint, "good", "--all_scores"))
    assert set(found["scores"]) == {"bad", "good"}
    assert sum(found["scores"].values()) == pytest.approx(1, abs=1.1e-6)  # two scores of six digits each
    assert found["scores"][found["label"]] == found["score"]


def test_the_threshold_none_is_full_depth(capsys, checkpoint, labelled) -> None:
    flags = ["--exit_threshold", "none"]
    assert [answer["exit_layer"] for answer in answers(called(capsys, "predict", checkpoint, "good", *flags))] == [3]
    (found,) = answers(called(capsys, "evaluate", checkpoint, *labelled, *flags, "--json"))
    assert found["validation"]["exit_threshold"] is None and found["validation"]["mean_exit_layer"] == 3
    assert "exit_threshold: got 'no'; pass a number, e.g. 0.9, or none" in refused(
        capsys, "predict", checkpoint, "good", "--exit_threshold", "no"
    )


def test_predict_reads_a_data_set_and_finds_its_texts(capsys, checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    rows = "".join(json.dumps({"number": index, "review": text}) + "\n" for index, text in enumerate(TEXTS[:2]))
    (tmp_path / "data" / "test.jsonl").write_text(rows)
    assert cli.main(["predict", checkpoint, "--dataset_name", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr()
    assert printed.out == called(capsys, "predict", checkpoint, *TEXTS[:2])
    assert "text_columns review (guessed; pass --text_columns for others)" in printed.err
    flags = ["--dataset_name", str(tmp_path / "data"), "--split", "dev"]
    assert "split: got 'dev'; the data set has test" in refused(capsys, "predict", checkpoint, *flags)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["good", "--id_column", "n"], "id_column: got 'n' and texts as arguments; leave it out"),
        (["good", "--split", "test"], "split: got 'test' without --dataset_name; leave it out"),
        (["good", "--delimiter", ";"], "delimiter: got ';' without a .csv file; leave it out"),
        (["good", "--max_seq_length", "33"], "has positions for 32 tokens; pass at most 32"),
        (["good", "--max_seq_length", "0"], "max_seq_length: got 0; pass a whole number from 1, e.g. 128"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(capsys, checkpoint, more: list[str], message: str) -> None:
    assert message in refused(capsys, "predict", checkpoint, *more)


@pytest.mark.filterwarnings("ignore:1 texts have more than 3 tokens")
def test_texts_are_truncated_as_the_flag_says(capsys, checkpoint) -> None:
    long, short = (
        answers(called(capsys, "predict", checkpoint, text, "--max_seq_length", "3"))[0]["score"]
        for text in ("good bad bad", "good")
    )
    assert long == pytest.approx(short, abs=1e-6)


def test_regression_prints_the_number(capsys, start, tmp_path) -> None:
    model = BerxitForSequenceClassification.from_encoder_pretrained(start, num_labels=1)
    model.save_pretrained(tmp_path / "number")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "number")
    (answer,) = answers(called(capsys, "predict", str(tmp_path / "number"), "good"))
    assert set(answer) == {"text", "score", "exit_layer"}


def test_answers_before_a_bad_line_are_printed(capsys, checkpoint, monkeypatch) -> None:
    lines = b"good\nvery bad\n" + "Äpfel".encode("latin1")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert cli.main(["predict", checkpoint]) == 1
    found = capsys.readouterr()
    assert [answer["text"] for answer in answers(found.out)] == ["good", "very bad"]
    assert "stdin: line 3 is not UTF-8" in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["a text", "--file", __file__], "and texts as arguments; pass either a file or texts"),
        (["--file", "missing.txt"], "file: there is no 'missing.txt'"),
        (["good", "--device", "cuda"], "device: got 'cuda', but torch finds no GPU"),
        (["good", "--exit_threshold", "nan"], "exit_threshold: got nan"),
        (["good", "--dtype", "int3"], "dtype: got 'int3'; choose one of auto, float32"),
        (["good", "--device", "toaster"], "toaster"),
    ],
)
def test_bad_calls_of_predict_are_refused(capsys, checkpoint, more: list[str], message: str) -> None:
    assert message in refused(capsys, "predict", checkpoint, *more)


def test_predict_on_a_terminal_asks_for_texts(capsys, checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    assert "texts: got none; pass them as arguments" in refused(capsys, "predict", checkpoint)


def test_a_stock_checkpoint_is_refused(capsys, start, tmp_path) -> None:
    assert f"'{start}' is a 'bert' model without exits; train some with adaexit train --model_name_or_path" in refused(
        capsys, "predict", start, "good"
    )
    assert str(tmp_path) in refused(capsys, "predict", str(tmp_path), "good")
    assert "there is no folder 'nowhere'" in refused(capsys, "predict", "nowhere", "good")
    assert "there is no folder './nowhere/at/all'" in refused(capsys, "predict", "./nowhere/at/all", "good")


def test_a_missing_extra_is_named(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "adaexit_hf.cli.evaluate")
    assert "needs 'datasets', which is not installed; run pip install 'adaexit_hf[train]'" in refused(
        capsys, "evaluate", "out"
    )


def test_texts_may_stand_behind_flags(capsys, checkpoint) -> None:
    (answer,) = answers(called(capsys, "predict", checkpoint, "--exit_threshold", "0.9", "very good film"))
    assert answer["text"] == "very good film"


def test_missing_or_broken_weights_are_refused(capsys, checkpoint) -> None:
    path = Path(checkpoint, "model.safetensors")
    tensors = load_file(path)
    save_file({name: value for name, value in tensors.items() if "exits.2" not in name}, path, {"format": "pt"})
    assert (
        "lacks 4 weights, exits.2.classifier.bias" in refused(capsys, "predict", checkpoint, "good").splitlines()[-1]
    )
    path.write_bytes(path.read_bytes()[:5000])
    assert "cannot be read" in refused(capsys, "predict", checkpoint, "good")


def test_calibrate_takes_no_threshold_and_writes_its_results(capsys, checkpoint, labelled) -> None:
    with pytest.raises(SystemExit):
        cli.main(["calibrate", checkpoint, *labelled, "--exit_threshold", "0.9"])
    assert "unrecognized arguments: --exit_threshold" in capsys.readouterr().err
    called(capsys, "report", checkpoint, *labelled)
    Path(checkpoint, "README.md").write_text("")
    before = Path(checkpoint, "metrics.json").read_text()
    called(capsys, "calibrate", checkpoint, *labelled, "--max_drop", "99%", "--dry_run")
    assert Path(checkpoint, "metrics.json").read_text() == before
    assert cli.main(["calibrate", checkpoint, *labelled, "--max_drop", "99%", "--json"]) == 0
    printed = capsys.readouterr()
    (result,) = json.loads(Path(checkpoint, "metrics.json").read_text())["results"].values()
    chosen = json.loads(printed.out)
    assert result["exit_threshold"] == chosen["threshold"] != 0.5
    assert result["at_threshold"]["accuracy"] == chosen["score"]
    assert "README.md still has the old threshold; run adaexit card" in printed.err


@pytest.mark.parametrize("change", [{"exit_criterion": "margin"}, {"exit_temperatures": [1.0, 2.0, 1.0]}])
def test_numbers_of_other_settings_are_neither_shown_nor_pushed(capsys, checkpoint, labelled, change: dict) -> None:
    called(capsys, "report", checkpoint, *labelled)
    ((name, _),) = change.items()
    measured = json.loads(Path(checkpoint, "metrics.json").read_text())["results"]["validation"]
    assert measured["exit_criterion"] == "confidence"
    assert measured["exit_temperatures"] is None
    assert (measured["version"], measured["data"]["name"], measured["data"]["split"]) == (
        __version__,
        "dev.csv",
        "validation",
    )
    edit_config(checkpoint, **change)
    assert f"'validation' was measured at {name}" in refused(capsys, "card", checkpoint)
    assert f"'validation' was measured at {name}" in refused(capsys, "push", checkpoint, "you/model")


def test_numbers_that_do_not_say_what_made_them_are_not_pushed(capsys, checkpoint, labelled) -> None:
    called(capsys, "report", checkpoint, *labelled)
    path = Path(checkpoint, "metrics.json")
    summary = json.loads(path.read_text())
    del summary["results"]["validation"]["exit_criterion"]
    path.write_text(json.dumps(summary))
    message = refused(capsys, "push", checkpoint, "you/model")
    assert "'validation' was measured at an unknown exit_criterion; run adaexit report" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", '{"accuracy": 0.9}'),
        ("metrics.json", '[{"accuracy": 0.9}]'),
        ("metrics.json", '{"results": {"test": 0.9}}'),
        ("metrics.json", '{"results": {"test": {"at_threshold": 0.9}}}'),
        ("metrics.json", "accuracy: 0.9"),
        ("curve.json", '{"x": [1, 2]}'),
        ("curve.json", '[{"x": 1}]'),
    ],
)
def test_a_file_of_the_user_with_the_name_of_ours_is_named(capsys, checkpoint, name: str, content: str) -> None:
    for ours, least in (("metrics.json", '{"results": {}}'), ("curve.json", "[]")):
        Path(checkpoint, ours).write_text(content if ours == name else least)
    message = f"{name}' was not written by adaexit_hf"
    assert message in refused(capsys, "card", checkpoint)
    if name == "metrics.json":
        assert message in refused(capsys, "push", checkpoint, "you/model")


def test_push_takes_early_exit_models_only(capsys, start) -> None:
    assert "contains a 'bert' model without exits" in refused(capsys, "push", start, "you/model")


def test_wrong_flags_are_usage_errors(capsys, checkpoint) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", checkpoint, "good", "--exit_treshold", "0.5"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --exit_treshold 0.5. Did you mean '--exit_threshold'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--model_name_or_path", "x", "--output_dir", "y", "--exit_learning_rate=1"])
    assert stopped.value.code == 2
    assert "Did you mean '--exits_learning_rate'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--model_name_or_path", "x", "--exit_layers", "2", "4"],
            "is a setting of the method: pass --method_config '{\"exit_layers\": ...}'",
        ),
        (
            ["train", "--model_name_or_path", "x", "--num_hidden_layers", "3"],
            "is a setting of the method: pass --method_config '{\"num_hidden_layers\": ...}'",
        ),
        (
            ["train", "--model_name_or_path", "x", "--exit_layers", "2", "--exit_learning_rate=1"],
            "pass --method_config '{\"exit_layers\": ...}'. Did you mean '--exits_learning_rate'?",
        ),
        (["evaluate", "model", "a" * 600], f"unrecognized arguments: {'a' * 600}\n"),
        (["evaluate", "model", "--file", __file__], "Did you mean '--validation_file'?"),
        (["evaluate", "model", __file__], "; pass files with --validation_file"),
        (["export", "model", "--precision", "int8"], "Did you mean '--int8'?"),
    ],
)
def test_what_another_command_takes_is_told(capsys, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_in_place_of_a_text_is_told(capsys, checkpoint, tmp_path) -> None:
    (tmp_path / "texts.csv").write_text("text\na\n")
    assert cli.main(["predict", checkpoint, str(tmp_path / "texts.csv"), "a" * 5000]) == 0
    assert f"is answered as a text; for the texts in this file pass --file {tmp_path}" in capsys.readouterr().err


def test_a_missing_file_is_refused_before_the_slow_imports(capsys, monkeypatch) -> None:
    monkeypatch.setattr(cli.importlib, "import_module", lambda *_: pytest.fail("imported"))
    for command, flag in (("evaluate", "validation_file"), ("predict", "file"), ("train", "train_file")):
        message = f"{flag}: there is no 'nowhere.csv'; pass an existing file"
        assert message in refused(capsys, command, f"--{flag}", "nowhere.csv")
        assert message in refused(capsys, command, f"--{flag}=nowhere.csv")


def test_only_errors_of_others_point_to_the_traceback(capsys, checkpoint) -> None:
    hint = "; set ADAEXIT_TRACEBACK=1 for the traceback]"
    assert hint not in refused(capsys, "predict", "no/such/folder", "a text")
    Path(checkpoint, "config.json").write_text("{")
    assert hint in refused(capsys, "predict", checkpoint, "a text")


def test_errors_of_functions_in_c_point_to_the_traceback(capsys, monkeypatch) -> None:
    monkeypatch.setattr(cli, "check_files", lambda argv: max([]))
    monkeypatch.setattr(cli, "PACKAGE", Path(__file__).parent)  # as if the call were in the package
    assert "ValueError; set ADAEXIT_TRACEBACK=1" in refused(capsys, "predict", "folder", "a text")


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        (["--metrics", "acuracy"], "accuracy"),
        (["--task_name", "sst3"], "sst2"),
        (["--label_column", "labels"], "label"),
    ],
)
def test_misspelt_names_are_recognized(capsys, checkpoint, labelled, flags: list[str], meant: str) -> None:
    given = labelled[:2] if "--task_name" in flags else labelled
    assert f"Did you mean '{meant}'?" in refused(capsys, "evaluate", checkpoint, *given, *flags)


def test_max_drop_is_checked_before_work(capsys) -> None:
    for command in (["calibrate", "nowhere"], ["train", "--model_name_or_path", "nowhere", "--output_dir", "out"]):
        assert "max_drop: got 2; pass a fraction from 0 to below 1, e.g. 0.01. Did you mean 0.02 (2%)?" in refused(
            capsys, *command, "--max_drop", "2", code=2
        )


@pytest.mark.parametrize("command", ["report", "card", "convert"])
def test_a_folder_that_cannot_be_written_is_refused_first(
    capsys, checkpoint, labelled, tmp_path, monkeypatch, command: str
) -> None:
    if command == "card":
        called(capsys, "report", checkpoint, *labelled)

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("adaexit_hf.utils.files.tempfile.TemporaryFile", full)
    for module in ("publish.AutoModelForSequenceClassification.from_pretrained", "publish.convert_checkpoint"):
        monkeypatch.setattr(f"adaexit_hf.cli.{module}", lambda *_, **__: pytest.fail("too late"))
    monkeypatch.setattr("adaexit_hf.cli.report.load_runtime", lambda *_, **__: pytest.fail("too late"))
    more = {"report": [checkpoint, *labelled], "card": [checkpoint], "convert": ["somewhere", str(tmp_path / "new")]}
    assert "no file can be written into" in refused(capsys, command, *more[command])


def test_push_takes_no_folder_of_an_interrupted_run(capsys, checkpoint) -> None:
    folder = Path(checkpoint)
    (folder / "stages.json").write_text(json.dumps({"plan": [], "done": ["exits"]}))
    for stage in ("stage-1-exits", "stage-2-joint"):
        (folder / stage / "checkpoint-5").mkdir(parents=True)
    assert "a training run that was interrupted in stage joint; finish it" in refused(
        capsys, "push", checkpoint, "a/b"
    )


def test_the_flags_of_transformers_are_behind_help_all(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help_all"])
    everything = capsys.readouterr().out
    for flag in ("--adam_beta2", "--layer_drop"):
        assert flag in everything and flag not in help_text("train")


def test_the_help_of_train_names_every_method() -> None:
    text = help_text("train").replace("-\n" + " " * INDENT, "-")  # a name may be divided at its hyphen
    assert [method for method in METHODS if method not in text] == []


def test_flags_are_not_abbreviated(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", "model", "a text", "--dev", "cpu"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --dev" in capsys.readouterr().err


def choice_of(answers_: list[list[int]], scores: list[list[float]]) -> ExitTrace:
    return ExitTrace(torch.eye(2)[torch.tensor(answers_)], torch.tensor(scores), torch.tensor([0, 1]), (1, 2), "gt")


@pytest.mark.parametrize(
    ("answers_", "threshold", "message"),
    [
        ([[0, 0], [0, 0]], 0.5, "every exit gives the same answer to all texts; train for more epochs"),
        ([[0, 0], [0, 1]], None, "the threshold saves nothing, all texts run through all layers; allow a larger"),
        ([[0, 0], [0, 1]], 0.95, "the threshold saves nothing"),
        ([[0, 0], [0, 1]], 0.1, "all texts leave at the first exit; if later exits should matter"),
        ([[0, 0], [0, 1]], 0.5, "the exit after layer 1, where 50% of the texts leave, gives the same answer to all"),
        ([[0, 1], [1, 0]], None, "the threshold saves nothing"),
        ([[1, 1], [0, 1]], 0.5, "accuracy at the threshold is 0.5000, no better than 0.5000 of always giving the mo"),
        ([[0, 0], [1, 1]], 0.5, ""),
    ],
)
def test_a_choice_without_use_is_told(capsys, answers_: list, threshold: float | None, message: str) -> None:
    evaluate_command.tell_of_choice("train", choice_of(answers_, [[0.9, 0.9], [0.3, 0.9]]), threshold, "accuracy")
    err = capsys.readouterr().err
    assert f"adaexit train: {message}" in err if message else not err


def test_rows_of_one_class_are_told(capsys) -> None:
    trace = ExitTrace(torch.eye(2)[torch.tensor([[0, 1], [1, 1]])], torch.rand(2, 2), torch.ones(2), (1, 2), "gt")
    evaluate_command.tell_of_choice("train", trace, 0.5, "accuracy")
    assert "all 2 rows have the same label, so that accuracy says nothing" in capsys.readouterr().err


def numbers_by_layer(*by_exit: list[float]) -> ExitTrace:
    """A regression with the criterion "layer", whose labels are 0, 1, 2, ..."""
    answers_ = torch.tensor(by_exit).T[..., None]
    layers = torch.arange(1, len(by_exit) + 1)
    labels = torch.arange(len(answers_)).double()
    scores = layers.float().repeat(len(answers_), 1)
    return ExitTrace(answers_, scores, labels, tuple(layers.tolist()), "ge", criterion="layer")


def test_a_layer_that_is_better_than_full_depth_is_told(capsys) -> None:
    trace = numbers_by_layer([1.0, 0.0, 3.0, 2.0], [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 3.0, 2.0])
    evaluate_command.tell_of_choice("train", trace, 1.0, "spearmanr")
    expected = (
        "spearmanr after layer 2 is 1.0000, better than 0.8000 after all layers: train for longer, or take --exit"
    )
    assert expected in capsys.readouterr().err
    evaluate_command.tell_of_choice("train", trace, 2.0, "spearmanr")
    assert "better than" not in capsys.readouterr().err


def test_an_exit_that_is_not_finite_does_not_hide_a_better_layer(capsys) -> None:
    trace = numbers_by_layer([math.nan] * 4, [1.0, 0.0, 3.0, 2.0], [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 3.0, 2.0])
    with pytest.warns(RuntimeWarning, match="4 of 16 predictions .* are not finite"):
        evaluate_command.tell_of_choice("train", trace, 2.0, "spearmanr")
    assert "spearmanr after layer 3 is 1.0000, better than 0.8000 after all layers" in capsys.readouterr().err


def test_halves_that_choose_different_layers_are_told(capsys) -> None:
    truth = torch.arange(8.0)
    first, second = split_in_halves(truth, classes=False)
    middle = truth.clone()
    middle[second] *= -1
    trace = numbers_by_layer((-truth).tolist(), middle.tolist(), truth.tolist())
    honest = honest_scores_of(trace)
    assert honest is not None and honest.thresholds == (2.0, None)
    said = "adaexit train: on one half of the rows layer 2 is chosen for all texts, on the other layer 3: more rows"
    assert said in capsys.readouterr().err
    honest_scores_of(numbers_by_layer(truth.tolist(), truth.tolist()))
    assert capsys.readouterr().err == ""


def honest_scores_of(trace: ExitTrace, max_drop: float = 0.01):
    curve = tradeoff_curve(trace, "spearmanr")
    return evaluate_command.honest_scores("train", trace, curve, ("spearmanr",), max_drop)


def test_a_loss_far_above_the_allowed_one_is_told(capsys) -> None:
    truth = torch.arange(8.0)
    first, second = split_in_halves(truth, classes=False)
    middle = truth.clone()
    middle[second] *= -1  # a layer that is right on the half that chooses it, and the contrary on the other
    trace = numbers_by_layer((-truth).tolist(), middle.tolist(), truth.tolist())
    said = "spearmanr is 0.0000, at full depth 1.0000: a larger loss than was allowed (1.00%), as on new rows"
    assert honest_scores_of(trace).scores == {"spearmanr": 0.0}
    assert said in capsys.readouterr().err
    honest_scores_of(trace, max_drop=0.6)
    assert "a larger loss than was allowed" not in capsys.readouterr().err


def test_thresholds_per_exit_are_said_to_be_no_point_of_the_curve(capsys, checkpoint, labelled) -> None:
    edit_config(checkpoint, exit_threshold=[0.6, 0.5, 0.5])
    assert cli.main(["report", checkpoint, *labelled]) == 0
    assert "the curve has no point for exit_threshold, which is a list" in capsys.readouterr().err


def test_thresholds_of_equal_depth_are_printed_in_order(capsys) -> None:
    scores = torch.tensor([[0.9, 0.9], [0.3, 0.9]])
    trace = ExitTrace(torch.zeros(2, 2, 2), scores, torch.tensor([0, 1]), (1, 2), "gt")
    curve = tradeoff_curve(trace, "accuracy", [0.5, 0.4, 0.8, 0.6])
    assert [point.threshold for point in curve] == [0.4, 0.5, 0.6, 0.8, None]
    print_curve(curve, "accuracy", 0.6)
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == ["0.4000", "0.5000", "0.6000", "0.8000", "full", "majority"]


def test_points_and_exits_no_better_than_the_majority_are_marked(capsys) -> None:
    scores = torch.tensor([[0.9, 0.9], [0.3, 0.9], [0.2, 0.9]])
    answers_ = torch.eye(2)[torch.tensor([[0, 0], [0, 1], [0, 1]])]
    trace = ExitTrace(answers_, scores, torch.tensor([0, 1, 1]), (1, 2), "gt")
    print_curve(tradeoff_curve(trace, "accuracy", [0.1, 0.5]), "accuracy", 0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("50.0% * <- chosen") and lines[3].endswith("16.7%") and lines[2].split()[0] == "0.1000"
    assert lines[-1].split()[:2] == ["majority", "0.6667"] and lines[-1].endswith("* no better than that")
    print_results({"dev": results_at_threshold(trace, ("accuracy",), 0.5)}, "accuracy")
    printed = capsys.readouterr().out
    assert "1.0000 with exits, 0.6667 of always the same answer" in printed
    assert "1: 0.3333*  2: 1.0000  (* no better than the majority)" in printed


def test_evaluate_says_what_the_exits_cost(capsys, checkpoint, labelled) -> None:
    (found,) = answers(called(capsys, "evaluate", checkpoint, *labelled, "--json"))
    result = found["validation"]
    assert (result["samples"], result["majority"]) == (12, {"accuracy": 0.5})
    predicted = answers(called(capsys, "predict", checkpoint, *(TEXTS * 3)))
    right = [answer["label"] == ("good" if "good" in answer["text"] else "bad") for answer in predicted]
    assert result["at_threshold"]["accuracy"] == pytest.approx(sum(right) / 12)
    assert result["mean_exit_layer"] == pytest.approx(sum(answer["exit_layer"] for answer in predicted) / 12)


def test_labels_that_the_checkpoint_does_not_have_are_refused(capsys, checkpoint, labelled, tmp_path) -> None:
    (tmp_path / "dev.csv").write_text("text,label\ngood,splendid\n")
    assert "labels ['splendid'] do not occur" in refused(capsys, "evaluate", checkpoint, *labelled)


def class_labels(names: list[str]) -> datasets.Dataset:
    labels = [
        names.index("good" if "good" in text else "bad") if "good" in names else int("good" in text) for text in TEXTS
    ]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": TEXTS, "label": labels}, features=features)


@pytest.mark.parametrize("column", [[0, 1], ["bad", "good"], ["0", "1"]], ids=["numbers", "names", "digits"])
@pytest.mark.parametrize("made_up", [True, False])
def test_made_up_names_of_classes_say_nothing(capsys, checkpoint, tmp_path, column: list, made_up: bool) -> None:
    wanted = answers(called(capsys, "predict", checkpoint, *TEXTS))
    right = [answer["label"] == ("good" if "good" in answer["text"] else "bad") for answer in wanted]
    if made_up:
        edit_config(checkpoint, id2label={"0": "LABEL_0", "1": "LABEL_1"}, label2id={"LABEL_0": 0, "LABEL_1": 1})
    rows = [{"text": text, "label": column["good" in text]} for text in TEXTS]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--validation_file", str(tmp_path / "dev.jsonl"), "--text_columns", "text"]
    assert cli.main(["evaluate", checkpoint, *flags, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)["validation"]["at_threshold"]["accuracy"]
    assert found == pytest.approx(sum(right) / len(right))
    taken = "the checkpoint has no names of classes; taking those of the data, in the order ['bad', 'good']"
    assert (taken in printed.err) is (made_up and column == ["bad", "good"])


def edit_config(checkpoint: str, **settings) -> None:
    path = Path(checkpoint, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


NAMED = ["bad", "good"]


@pytest.mark.parametrize(
    ("names", "of_data", "expected", "by_name"),
    [
        (NAMED, NAMED, NAMED, True),
        (NAMED, NAMED[::-1], NAMED, True),  # in any order
        (["BAD", "Good"], NAMED[::-1], NAMED, True),
        (["a", "A"], ["A", "a"], ["a", "A"], True),
        (NAMED, ["LABEL_0", "LABEL_1"], ["LABEL_0", "LABEL_1"], False),
        (["LABEL_0", "LABEL_1"], NAMED[::-1], NAMED[::-1], False),  # the order of the ClassLabel is that of training
        (["0", "1"], NAMED, NAMED, False),
    ],
)
def test_names_in_data_are_in_the_order_of_the_checkpoint(
    names: list, of_data: list, expected: list, by_name: bool
) -> None:
    assert evaluate_command.names_in_data([class_labels(of_data)], "label", names) == (expected, by_name)


@pytest.mark.parametrize(
    ("names", "of_data"),
    [
        (["1", "2", "3"], [0, 1, 2]),  # is 1 the name, or the index of 2?
        (["1", "2", "3"], [0]),
        (["-1", "0", "1"], [0, 1, 2]),
        (["0", "1", "2"], [1, 2, 3]),
        (["LABEL_1", "LABEL_2"], ["LABEL_0", "LABEL_1"]),
    ],
)
def test_names_that_may_be_indices_of_others_are_refused(names: list, of_data: list) -> None:
    rows = datasets.Dataset.from_dict({"label": of_data})
    with pytest.raises(ValueError, match="label_column: 'label' has the classes .*, but the checkpoint has"):
        evaluate_command.names_in_data([rows], "label", names)


@pytest.mark.parametrize("of_data", [["bad", "good", "fair"], ["no", "yes"]])
def test_other_classes_than_those_of_the_checkpoint_are_refused(of_data: list) -> None:
    with pytest.raises(
        ValueError, match=r"has the classes .*, but the checkpoint has \['bad', 'good'\]: labels .* do"
    ):
        evaluate_command.names_in_data([class_labels(of_data)], "label", NAMED)


def test_calibrate_changes_nothing_but_the_threshold(capsys, checkpoint, labelled) -> None:
    path = Path(checkpoint, "config.json")
    before = json.loads(path.read_text())
    (chosen,) = answers(called(capsys, "calibrate", checkpoint, *labelled, "--max_drop", "99%", "--json"))
    after = json.loads(path.read_text())
    assert chosen["threshold"] != before["exit_threshold"]
    assert after == before | {"exit_threshold": chosen["threshold"]}


def test_calibrate_scores_each_half_with_the_threshold_of_the_other(capsys, checkpoint, labelled, tmp_path) -> None:
    (chosen,) = answers(called(capsys, "calibrate", checkpoint, *labelled, "--max_drop", "0.3", "--json"))
    model, words = (kind.from_pretrained(checkpoint) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    rows = [{"label": int("good" in text), **words(text)} for text in TEXTS * 3]
    trace = collect_trace(model, rows, progress=False)
    honest = cross_fitted(trace, ["accuracy"], 0.3, also=[0.5])
    assert (chosen["score"], chosen["mean_layers"]) == pytest.approx((honest.scores["accuracy"], honest.mean_layers))
    assert chosen["cross_fitted_thresholds"] == pytest.approx(list(honest.thresholds))


def test_calibrate_chooses_one_layer_for_all(capsys, checkpoint, labelled) -> None:
    path = Path(checkpoint, "config.json")
    before = json.loads(path.read_text())
    (chosen,) = answers(
        called(capsys, "calibrate", checkpoint, *labelled, "--max_drop", "99%", "--exit_criterion", "layer", "--json")
    )
    assert (chosen["threshold"], chosen["mean_layers"]) == (1.0, 1.0)
    assert json.loads(path.read_text()) == before | {"exit_threshold": 1.0, "exit_criterion": "layer"}
    (found,) = answers(called(capsys, "evaluate", checkpoint, *labelled, "--json"))
    assert found["validation"]["exit_histogram"] == {"1": 12, "2": 0, "3": 0}


def test_a_regression_that_learned_to_exit_may_leave_at_one_layer(capsys, start, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    settings = {"num_labels": 1, "lte_variant": "authors", "exit_threshold": 0.5}
    BerxitForSequenceClassification.from_encoder_pretrained(start, **settings).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "model")
    (tmp_path / "dev.csv").write_text(
        "text,label\n" + "".join(f"{text},{index / 4}\n" for index, text in enumerate(TEXTS * 3))
    )
    data = ["--validation_file", str(tmp_path / "dev.csv"), "--text_columns", "text"]
    called(
        capsys, "calibrate", str(tmp_path / "model"), *data, "--exit_criterion", "layer", "--max_drop", "99%",
        "--metrics", "pearson",
    )  # fmt: skip
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").config
    assert (config.exit_criterion, config.lte_variant) == ("layer", "authors")
    flags = ["--exit_criterion", "learned", "--metrics", "pearson"]
    called(capsys, "calibrate", str(tmp_path / "model"), *data, *flags)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").config
    assert (config.exit_criterion, config.lte_variant) == ("learned", "authors")


def test_calibrate_refuses_a_criterion_that_the_checkpoint_does_not_have(capsys, checkpoint, labelled) -> None:
    before = Path(checkpoint, "config.json").read_text()
    said = refused(capsys, "calibrate", checkpoint, *labelled, "--exit_criterion", "learned")
    assert "exit_criterion: got 'learned', but the checkpoint has 'confidence'" in said
    assert Path(checkpoint, "config.json").read_text() == before


def test_calibrate_with_temperatures_saves_them(capsys, checkpoint, labelled) -> None:
    called(capsys, "calibrate", checkpoint, *labelled, "--temperatures", "--json")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    assert len(model.config.exit_temperatures) == len(model.config.exit_layers)


def test_calibrate_shows_the_old_threshold_beside_the_new_one(capsys, checkpoint, labelled) -> None:
    path = Path(checkpoint, "config.json")
    before = path.read_text()
    flags = [*labelled, "--max_drop", "99%", "--dry_run"]
    (found,) = answers(called(capsys, "calibrate", checkpoint, *flags, "--json"))
    table = called(capsys, "calibrate", checkpoint, *flags)
    assert path.read_text() == before and found["saved"] is None and "dry run: nothing was saved" in table
    (evaluated,) = answers(called(capsys, "evaluate", checkpoint, *labelled, "--json"))
    assert found["old"]["threshold"] == 0.5 and found["old"]["exit_criterion"] == "confidence"
    assert found["old"]["score"] == pytest.approx(evaluated["validation"]["at_threshold"]["accuracy"])
    rows = [line.split() for line in table.splitlines()]
    assert ["old", "0.5", f"{found['old']['score']:.4f}"] in [row[:3] for row in rows]
    assert ["chosen", f"{found['threshold']:.6g}", f"{found['score']:.4f}"] in [row[:3] for row in rows]
    called(capsys, "calibrate", checkpoint, *flags[:-1])
    assert json.loads(path.read_text())["exit_threshold"] == found["threshold"]


def test_the_former_criterion_is_scored_on_the_same_rows(capsys, checkpoint, labelled) -> None:
    expected = json.loads(called(capsys, "evaluate", checkpoint, *labelled, "--json"))["validation"]
    flags = [*labelled, "--exit_criterion", "margin", "--dry_run"]
    (found,) = answers(called(capsys, "calibrate", checkpoint, *flags, "--json"))
    assert found["old"]["exit_criterion"] == "confidence" and found["old"]["threshold"] == 0.5
    assert found["old"]["score"] == expected["at_threshold"]["accuracy"]
    assert found["old"]["mean_layers"] == expected["mean_exit_layer"]
    assert "exit_criterion: margin, was confidence" in called(capsys, "calibrate", checkpoint, *flags)


def test_a_criterion_that_gains_nothing_is_told(capsys, checkpoint, labelled) -> None:
    called(capsys, "calibrate", checkpoint, *labelled, "--max_drop", "99%")  # the first exit for all texts
    assert cli.main(["calibrate", checkpoint, *labelled, "--exit_criterion", "patience", "--max_drop", "0"]) == 0
    assert "on these rows confidence is better: accuracy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("score", "layers", "told"), [(0.8, 2.0, False), (0.8, 1.9, True), (0.81, 2.0, True), (0.81, 2.1, False)]
)
def test_a_former_criterion_is_better_only_if_it_is_nowhere_worse(capsys, score, layers, told) -> None:
    chosen, before = CurvePoint(0.5, 0.8, 2.0, 1 / 3), CurvePoint(0.5, score, layers, 1 - layers / 3)
    calibrate_command.tell_of_better_criterion("accuracy", "margin", chosen, "entropy", before)
    assert ("on these rows entropy is better" in capsys.readouterr().err) == told


def test_evaluate_prints_a_table(capsys, checkpoint, labelled) -> None:
    (found,) = answers(called(capsys, "evaluate", checkpoint, *labelled, "--json"))
    score = found["validation"]["full_depth"]["accuracy"]
    assert f"accuracy: {score:.4f} at full depth" in called(capsys, "evaluate", checkpoint, *labelled)


def test_a_full_disk_leaves_the_config_as_it_was(capsys, checkpoint, labelled, monkeypatch) -> None:
    before = Path(checkpoint, "config.json").read_text()

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    message = refused(capsys, "calibrate", checkpoint, *labelled, "--max_drop", "99%")
    assert "config.json' could not be written: No space left on device" in message
    assert Path(checkpoint, "config.json").read_text() == before
    assert not list(Path(checkpoint).glob(".*tmp"))


def test_calibrate_wants_a_folder(capsys) -> None:
    assert "'org/model' is not a local folder with a config.json" in refused(
        capsys, "calibrate", "org/model", "--task_name", "sst2"
    )


def test_report_prints_the_curve_and_keeps_it(capsys, checkpoint, labelled, tmp_path) -> None:
    printed = called(capsys, "report", checkpoint, *labelled)
    assert "full depth" in printed
    curve = json.loads(Path(checkpoint, "curve.json").read_text())
    results = json.loads(Path(checkpoint, "metrics.json").read_text())["results"]
    assert [point["threshold"] for point in curve].count(None) == 1
    at_threshold = next(point for point in curve if point["threshold"] == 0.5)
    assert results["validation"]["at_threshold"]["accuracy"] == pytest.approx(at_threshold["score"])
    assert "very very bad film" in Path(checkpoint, "report.html").read_text()


def test_report_makes_its_folder(capsys, checkpoint, labelled, tmp_path) -> None:
    called(capsys, "report", checkpoint, *labelled, "--output", str(tmp_path / "made" / "too"))
    assert Path(tmp_path, "made", "too", "report.html").is_file()


def test_report_refuses_an_output_that_is_no_folder(capsys, checkpoint, labelled, tmp_path) -> None:
    (tmp_path / "file").touch()
    message = refused(capsys, "report", checkpoint, *labelled, "--output", str(tmp_path / "file"))
    assert "file' is not a folder; pass --output FOLDER, which is created if it does not exist" in message
    assert "output: 'you/model' is not a folder" in refused(capsys, "report", "you/model", *labelled)


def test_report_of_a_wrong_data_set_leaves_no_folder(capsys, checkpoint, labelled, tmp_path) -> None:
    flags = ["--validation_file", str(tmp_path / "nowhere.csv"), *labelled[2:], "--output", str(tmp_path / "made")]
    assert "nowhere.csv" in refused(capsys, "report", checkpoint, *flags)
    assert not (tmp_path / "made").exists()


def test_report_does_not_tell_where_the_checkpoint_lies(capsys, checkpoint, labelled, tmp_path) -> None:
    called(capsys, "report", checkpoint, *labelled)
    assert str(tmp_path) not in Path(checkpoint, "report.html").read_text()


def attributions(folder: str) -> dict:
    return embedded(Path(folder, "report.html").read_text())["methods"][0]["attributions"]


def test_report_explains_the_first_samples(capsys, checkpoint, labelled) -> None:
    called(capsys, "report", checkpoint, *labelled, "--explain", "2")
    found = attributions(checkpoint)
    assert [sum(each["tokens"]) for each in found["samples"]] == list(map(len, TEXTS[:2]))
    layers = AutoModelForSequenceClassification.from_pretrained(checkpoint).config.exit_layers
    names = [f"{what} at layer {layer}" for what in ("answer", "confidence") for layer in layers]
    assert found["names"] == names


def test_report_explains_in_more_steps(capsys, checkpoint, labelled, monkeypatch) -> None:
    steps = []

    def recorded(*given, **options):
        steps.append(options["steps"])
        return explain(*given, **options)

    monkeypatch.setattr("adaexit_hf.cli.report.explain", recorded)
    called(capsys, "report", checkpoint, *labelled, "--explain", "1", "--explain_steps", "80")
    called(capsys, "report", checkpoint, *labelled, "--explain", "1")
    assert steps == [80, inspect.signature(explain).parameters["steps"].default]
    message = refused(capsys, "report", checkpoint, *labelled, "--explain", "1", "--explain_steps", "1")
    assert "explain_steps: got 1; pass a whole number from 2, e.g. --explain_steps 64" in message


def test_report_explains_answers_where_readiness_has_no_gradient(capsys, checkpoint, labelled) -> None:
    patient = {"exit_criterion": "patience", "exit_threshold": 1}
    AutoModelForSequenceClassification.from_pretrained(checkpoint, **patient).save_pretrained(checkpoint)
    assert cli.main(["report", checkpoint, *labelled, "--explain", "1"]) == 0
    assert "explaining predictions only, not readiness scores: exit_criterion: 'patience' counts, so its score " in (
        capsys.readouterr().err
    )
    assert {name.partition(" ")[0] for name in attributions(checkpoint)["names"]} == {"answer"}


def test_report_without_captum_says_how_to_get_it(capsys, labelled, checkpoint, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    message = refused(capsys, "report", checkpoint, *labelled, "--explain", "1")
    assert "pip install adaexit_hf[interpret]" in message


def test_report_explains_no_negative_number(capsys, checkpoint, labelled) -> None:
    message = refused(capsys, "report", checkpoint, *labelled, "--explain", "-1")
    assert "explain: got -1; pass the number of samples to explain, 0 or more" in message


@pytest.fixture
def another(start, tmp_path) -> str:
    """A checkpoint of another method, with the same classes in another order."""
    names = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    DeeBertForSequenceClassification.from_encoder_pretrained(start, **names, exit_threshold=0.68).save_pretrained(
        tmp_path / "other"
    )
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


def test_checkpoints_are_compared_in_one_table(capsys, checkpoint, another, labelled) -> None:
    found = json.loads(called(capsys, "compare", checkpoint, another, *labelled, "--json"))
    assert (found["samples"], found["metric"], found["majority"]) == (12, "accuracy", 0.5)
    for folder, model in zip((checkpoint, another), found["models"], strict=True):
        alone = json.loads(called(capsys, "evaluate", folder, *labelled, "--json"))
        result = alone["validation"]
        assert model["name"] == Path(folder).name
        assert (model["full_depth"], model["at_threshold"]) == (
            result["full_depth"]["accuracy"],
            result["at_threshold"]["accuracy"],
        )
        assert (model["mean_layers"], model["saving"]) == (result["mean_exit_layer"], result["saving"])
        assert model["interval"] == pytest.approx(result["intervals"]["accuracy"])
    lines = called(capsys, "compare", checkpoint, another, *labelled).splitlines()
    assert lines[1] == "accuracy on validation, 12 samples, torch float32"
    assert [line.split()[0] for line in lines[3:]] == ["model", "other", "majority"]


def test_several_checkpoints_are_on_one_page(capsys, checkpoint, another, labelled, tmp_path) -> None:
    before = {path: path.read_bytes() for path in Path(checkpoint).iterdir()}
    called(capsys, "report", checkpoint, another, *labelled, "--output", str(tmp_path / "both"))
    data = embedded((tmp_path / "both" / "comparison.html").read_text())
    assert [method["name"] for method in data["methods"]] == ["model", "other"]
    assert [method["start"] for method in data["methods"]] == [0.5, 0.68]
    assert (data["labels"], data["texts"]) == (["bad", "good"], TEXTS * 3)
    assert {path: path.read_bytes() for path in Path(checkpoint).iterdir()} == before
    flags = [checkpoint, another, *labelled]
    in_json = called(capsys, "report", *flags, "--output", str(tmp_path / "both"), "--json")
    assert json.loads(in_json) == json.loads(called(capsys, "compare", *flags, "--json"))
    message = refused(capsys, "report", checkpoint, another, *labelled, "--explain", "2")
    assert "explain: got 2 with 2 checkpoints; pass one checkpoint, or leave it out" in message


def test_a_checkpoint_without_exits_is_not_compared(capsys, checkpoint, start, labelled) -> None:
    message = refused(capsys, "compare", checkpoint, start, *labelled)
    assert "is a 'bert' model without exits" in message and "measuring" not in message


def test_checkpoints_of_other_classes_are_not_compared(capsys, checkpoint, several, another, labelled) -> None:
    edit_config(another, id2label={"0": "good", "1": "awful"}, label2id={"good": 0, "awful": 1})
    for command in ("compare", "report"):
        message = refused(capsys, command, checkpoint, another, *labelled)
        assert f"checkpoints: '{another}' has the classes ['good', 'awful'], but '{checkpoint}' has [" in message
    assert "is given twice; pass each once" in refused(capsys, "compare", another, another, *labelled)
    assert "there is no folder 'nowhere'" in refused(capsys, "compare", another, "nowhere", *labelled)
    message = refused(capsys, "compare", checkpoint, another, *labelled, "--exit_threshold", "0.5")
    assert "exit_threshold: got 0.5 for 2 checkpoints, which have thresholds of their own; leave it out" in message


def test_report_counts_flops(capsys, checkpoint, labelled) -> None:
    assert "FLOPs saved" not in called(capsys, "report", checkpoint, *labelled)
    assert "FLOPs saved" in called(capsys, "report", checkpoint, *labelled, "--flops")
    curve = json.loads(Path(checkpoint, "curve.json").read_text())
    assert all(point["flops"] > 0 for point in curve)


def test_evaluate_prints_the_interval_of_the_score(capsys, checkpoint, labelled) -> None:
    (found,) = answers(called(capsys, "evaluate", checkpoint, *labelled, "--json"))
    low, high = found["validation"]["intervals"]["accuracy"]
    assert low < found["validation"]["at_threshold"]["accuracy"] < high
    assert f"interval over samples: {low:.4f} to {high:.4f}" in called(capsys, "report", checkpoint, *labelled)


def test_the_interval_is_that_of_the_answers_at_the_threshold(capsys, checkpoint, labelled, monkeypatch) -> None:
    resampled = []

    def recorded(traces, statistic):
        resampled.extend(traces)
        return bootstrap_samples(traces, statistic)

    monkeypatch.setattr(evaluate_command, "bootstrap_samples", recorded)
    (found,) = answers(called(capsys, "evaluate", checkpoint, *labelled, "--json"))
    predicted = answers(called(capsys, "predict", checkpoint, *(TEXTS * 3)))
    right = torch.tensor([answer["label"] == ("good" if "good" in answer["text"] else "bad") for answer in predicted])
    (trace,) = resampled
    assert trace.logits.shape == (12, 1, 2)  # an exit that nobody takes costs nothing
    assert torch.equal(trace.logits[:, 0].argmax(-1) == trace.labels, right)
    expected = bootstrap_samples(
        [trace], lambda drawn: (drawn.logits[:, 0].argmax(-1) == drawn.labels).double().mean().item()
    )
    assert found["validation"]["intervals"]["accuracy"] == pytest.approx([expected.low, expected.high])


def test_an_interval_that_is_not_defined_is_null(capsys, checkpoint, labelled, monkeypatch) -> None:
    scores = iter([0.5])  # of all samples; then come the resamples
    monkeypatch.setattr(evaluate_command, "compute_score", lambda metric, **_: next(scores, math.nan))
    assert cli.main(["evaluate", checkpoint, *labelled, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["validation"]["intervals"] == {"accuracy": None}
    assert "validation: no interval of accuracy: statistic: is nan on 1000 of 1000 resamples" in printed.err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # that there are such numbers
def test_numbers_that_are_not_finite_have_no_score(capsys, start, tmp_path, labelled) -> None:
    model = BerxitForSequenceClassification.from_encoder_pretrained(start, num_labels=1)
    for parameter in model.exits.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "broken")
    Path(labelled[1]).write_text("text,label\ngood,1.5\nbad,0.5\nvery good,2.0\n")
    assert cli.main(["evaluate", str(tmp_path / "broken"), *labelled, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)["validation"]
    assert (found["at_threshold"], found["not_finite"]) == ({"spearmanr": None, "pearson": None}, 9)
    assert "validation: no interval of spearmanr: some predictions are not finite" in printed.err
    assert cli.main(["report", str(tmp_path / "broken"), *labelled, "--explain", "1"]) == 0
    assert "adaexit report: 3 of 6 explanations are not finite and are left out of the page" in capsys.readouterr().err
    made = {name: (tmp_path / "broken" / name).read_text() for name in ("metrics.json", "curve.json", "report.html")}
    assert "NaN" not in made["metrics.json"] + made["curve.json"]
    assert json.loads(made["metrics.json"])["results"]["validation"]["at_threshold"]["pearson"] is None
    assert {point["score"] for point in json.loads(made["curve.json"])} == {None}
    (method,) = embedded(made["report.html"])["methods"]
    assert not any(name.startswith("answer") for name in method["attributions"]["names"])
    message = refused(capsys, "card", str(tmp_path / "broken"))
    assert "curve: score at threshold" in message and "is None; a card reports finite numbers only" in message


def test_results_without_an_interval_are_printed(capsys) -> None:
    result = {
        "samples": 2,
        "mean_exit_layer": 1.5,
        "exit_histogram": {"1": 1, "2": 1},
        "by_exit": {"1": {"accuracy": 0.5}, "2": {"accuracy": 1}},
        "intervals": {"accuracy": None},
    }
    print_results(
        {"validation": result | {"full_depth": {"accuracy": 1}, "at_threshold": {"accuracy": 0.5}}}, "accuracy"
    )
    assert "accuracy: 1.0000 at full depth, 0.5000 with exits\n" in capsys.readouterr().out


def test_benchmark_prints_ratios(capsys, checkpoint, tmp_path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    flags = ["--rounds", "1", "--batch_size", "2", "--pairs", "predict/static-sorted", "--json"]
    (found,) = answers(called(capsys, "benchmark", checkpoint, str(tmp_path / "texts.txt"), *flags))
    assert found["texts"] == 4
    assert len(found["eta"]) == 3
    assert "single_texts: got 2 with --pairs" in refused(
        capsys, "benchmark", checkpoint, str(tmp_path / "texts.txt"), *flags, "--single_texts", "2"
    )
    assert "pairs: got 'predict'" in refused(
        capsys, "benchmark", checkpoint, str(tmp_path / "texts.txt"), "--pairs", "predict"
    )


def test_benchmark_times_single_texts_and_many(capsys, checkpoint, tmp_path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    flags = [str(tmp_path / "texts.txt"), "--rounds", "2", "--single_texts", "2"]
    single, many = answers(called(capsys, "benchmark", checkpoint, *flags, "--json"))
    assert (single["texts"], single["candidate"], many["texts"]) == (2, "single", 4)
    for record in (single, many):
        times = record["milliseconds"]
        assert set(times) == {record["candidate"], record["baseline"]}
        assert all(0 < time["median"] <= time["p95"] for time in times.values())
        assert len(record["seconds"]) == 2
    printed = called(capsys, "benchmark", checkpoint, *flags)
    rows = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    assert [row[:2] for row in rows] == 2 * [["with", "exits"], ["stock", "classifier"]]
    assert "milliseconds per text" in printed and "one text at a time, 2 texts" in printed
    assert "single_texts: got 0; pass a whole number from 1" in refused(
        capsys, "benchmark", checkpoint, flags[0], "--single_texts", "0"
    )


def test_train_is_the_main_job(capsys, start, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file, out = write_csv(tmp_path, "train", 20, ["bad", "good"]), str(tmp_path / "out")
    flags = ["--model_name_or_path", start, "--train_file", file, "--output_dir", out, "--max_steps", "1", "--bf16"]
    assert cli.main(["train", *flags, "--max_seq_length", "4", "--save_strategy", "no", "--report_to", "none"]) == 0
    printed = capsys.readouterr()
    assert "validation, 2 samples" in printed.out and "2 of the 20 rows of train become one" in printed.err
    assert answers(called(capsys, "predict", out, "good film"))[0]["label"] in ("good", "bad")
    # What it was trained on is known: single texts of at most 4 tokens.
    assert len(AutoTokenizer.from_pretrained(out)("good " * 9, truncation=True)["input_ids"]) == 4
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    with pytest.warns(UserWarning, match="1 texts have more than 4 tokens"):
        assert predict(model, ["good good bad bad"], tokenizer).logits.isfinite().all()
    with pytest.raises(ValueError, match="item 0 is a pair of texts, but the model was trained on single texts"):
        predict(model, [("good", "bad")], tokenizer)
    (found,) = answers(called(capsys, "evaluate", out, "--train_file", file, "--json"))
    assert found["validation"]["samples"] == 2  # the rows that training held out


def test_an_interrupt_is_no_traceback(capsys, monkeypatch) -> None:
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert "adaexit predict: interrupted" in refused(capsys, "predict", "x", code=130)


def test_a_closed_pipe_is_no_error(checkpoint, tmp_path) -> None:
    (tmp_path / "texts.txt").write_text("good film\n" * 3)
    command = f"{sys.executable} -m adaexit_hf.cli.main predict {checkpoint} --file {tmp_path}/texts.txt | head -n 1"
    found = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (found.returncode, len(found.stdout.splitlines())) == (0, 1), found.stderr
    assert "Error" not in found.stderr


def test_rows_that_training_held_out_are_those_of_the_same_file(capsys, start, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    out, file = str(tmp_path / "out"), ["--train_file", write_csv(tmp_path, "train", 20, ["bad", "good"])]
    quick = ["--max_steps", "1", "--use_cpu", "--report_to", "none", "--save_strategy", "no", "--output_dir", out]
    called(capsys, "train", "--model_name_or_path", start, *file, *quick, "--validation_fraction", "0.3")
    assert cli.main(["evaluate", out, *file, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["validation"]["samples"] == 6
    assert "the threshold was chosen on these rows of validation" in printed.err
    assert cli.main(["evaluate", out, *file, "--exit_threshold", "0.77"]) == 0
    assert "the threshold was chosen on these rows" not in capsys.readouterr().err
    refusal = refused(capsys, "evaluate", out, *file, "--validation_fraction", "0.2")
    assert f"validation_fraction: got 0.2, but the training of '{out}' held out 0.3 of" in refusal
    path = Path(out, "metrics.json")
    metrics = json.loads(path.read_text())
    metrics["training"]["settings"]["validation_file"] = "dev.csv"
    path.write_text(json.dumps(metrics))
    assert "was trained on all rows of a file of this name; pass 'dev.csv'" in refused(capsys, "evaluate", out, *file)


def test_results_at_another_threshold_do_not_replace_the_models(capsys, checkpoint, labelled) -> None:
    called(capsys, "report", checkpoint, *labelled)
    before = Path(checkpoint, "metrics.json").read_text()
    assert cli.main(["report", checkpoint, *labelled, "--exit_threshold", "0.7"]) == 0
    printed = capsys.readouterr()
    assert "metrics.json and curve.json are not written" in printed.err
    assert "<- as passed" in printed.out and "the model's threshold" not in printed.out
    assert Path(checkpoint, "metrics.json").read_text() == before
    called(capsys, "report", checkpoint, *labelled, "--max_eval_samples", "4")
    assert Path(checkpoint, "metrics.json").read_text() == before


def test_a_report_elsewhere_does_not_mix_two_models(capsys, checkpoint, labelled, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    called(capsys, "report", checkpoint, *labelled, "--output", str(tmp_path / "page"), "--max_eval_samples", "6")
    called(capsys, "report", str(other), *labelled, "--output", str(tmp_path / "page"), "--max_eval_samples", "4")
    results = json.loads((tmp_path / "page" / "metrics.json").read_text())["results"]
    assert [result["samples"] for result in results.values()] == [4]


def test_a_card_of_another_threshold_is_not_pushed(capsys, checkpoint, labelled) -> None:
    called(capsys, "report", checkpoint, *labelled)
    called(capsys, "card", checkpoint)
    edit_config(checkpoint, exit_threshold=0.75)
    called(capsys, "report", checkpoint, *labelled)
    assert "README.md' was written for another threshold" in refused(capsys, "push", checkpoint, "you/model")


def test_answers_are_complete_or_in_a_file_of_their_own(capsys, checkpoint, tmp_path) -> None:
    texts, output = tmp_path / "texts.jsonl", tmp_path / "new" / "answers.jsonl"
    texts.write_text('{"text": "good film"}\n')
    called(capsys, "predict", checkpoint, "--file", str(texts), "--output", str(output))
    before = output.read_text()
    texts.write_text('{"text": "bad"}\n{"text": 5}\n')
    message = refused(capsys, "predict", checkpoint, "--file", str(texts), "--output", str(output))
    assert f"stopped; the first 1 answers are in {output}.part" in message
    assert output.read_text() == before and json.loads(Path(f"{output}.part").read_text())["text"] == "bad"


@pytest.mark.parametrize("line", ["good film\tbad book", '{"text": "good film"}'])
def test_lines_that_look_like_fields_are_told(capsys, checkpoint, monkeypatch, line: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{line}\ngood\n".encode())))
    assert cli.main(["predict", checkpoint]) == 0
    printed = capsys.readouterr()
    assert "stdin: line 1 is" in printed.err and "is classified as one text as it is" in printed.err
    assert len(answers(printed.out)) == 2


def test_json_lines_that_are_no_objects_are_named(capsys, checkpoint, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"5\n")))
    assert "row 0 of stdin is 5; pass JSON objects" in refused(capsys, "predict", checkpoint, "--id_column", "id")


def test_benchmark_reads_what_predict_reads(capsys, checkpoint, tmp_path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("review;stars\n" + "".join(f"{text};5\n" for text in [*TEXTS, " "]))
    flags = ["--rounds", "1", "--single_texts", "2", "--json"]
    assert cli.main(["benchmark", checkpoint, str(path), *flags]) == 0
    printed = capsys.readouterr()
    assert "text_columns review (guessed" in printed.err and "1 of 5 texts are empty and are left out" in printed.err
    assert answers(printed.out)[1]["texts"] == 4


def test_the_cards_speed_needs_json(capsys, checkpoint, labelled, tmp_path) -> None:
    called(capsys, "report", checkpoint, *labelled)
    (tmp_path / "speed.txt").write_text("4 threads of a CPU\n")
    refusal = refused(capsys, "card", checkpoint, "--speed", str(tmp_path / "speed.txt"))
    assert "is not the output of adaexit benchmark --json" in refusal


@pytest.mark.parametrize("delimiter", ["tab", "\\t"])
def test_a_tab_may_be_named(capsys, checkpoint, tmp_path, delimiter: str) -> None:
    (tmp_path / "texts.csv").write_text("text\tid\ngood film\t1\n")
    flags = ["--file", str(tmp_path / "texts.csv"), "--delimiter", delimiter]
    (found,) = answers(called(capsys, "predict", checkpoint, *flags))
    assert found["text"] == "good film"
    assert "delimiter: got ';;'; pass one character" in refused(capsys, "predict", checkpoint, *flags[:3], ";;")


def test_calibrate_says_which_measurements_are_gone(capsys, checkpoint, labelled, tmp_path) -> None:
    (tmp_path / "new.csv").write_text("text,label\ngood film,good\nbad film,bad\nbad book,bad\n")
    called(capsys, "report", checkpoint, *labelled)
    called(capsys, "report", checkpoint, "--validation_file", str(tmp_path / "new.csv"))
    edit_config(checkpoint, exit_threshold=0.99)
    assert cli.main(["calibrate", checkpoint, *labelled]) == 0
    told = capsys.readouterr().err
    assert "metrics.json no longer has new.csv, validation, measured at the old threshold" in told
    assert "report.html still has the old threshold; run adaexit report" in told


def test_answers_are_no_table(capsys, checkpoint, tmp_path) -> None:
    refusal = refused(capsys, "predict", checkpoint, "good", "--output", str(tmp_path / "answers.csv"))
    assert "but answers are JSON lines; pass a file that ends with .jsonl" in refusal


def test_an_interrupted_run_is_no_checkpoint(capsys, tmp_path) -> None:
    (tmp_path / "stages.json").write_text('{"done": []}')
    assert "holds a training run that was interrupted" in refused(capsys, "predict", str(tmp_path), "good")


def test_the_models_threshold_is_one_point_of_the_curve(checkpoint, labelled) -> None:
    trace = ExitTrace(torch.zeros(4, 2, 2), torch.rand(4, 2), torch.tensor([0, 1, 0, 1]), (1, 2), "gt")
    own = evaluate_command.curve_with_threshold(trace, "accuracy", None)[0].threshold
    curve = evaluate_command.curve_with_threshold(trace, "accuracy", own)
    assert [point.threshold for point in curve].count(own) == 1


def test_report_says_where_the_page_is(capsys, checkpoint, labelled) -> None:
    assert f"saved in {Path(checkpoint, 'report.html')}" in called(capsys, "report", checkpoint, *labelled)


def test_answers_go_into_a_pipe_as_they_are(capsys, checkpoint, tmp_path) -> None:
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("")
    link.symlink_to(target)
    called(capsys, "predict", checkpoint, "good film", "--output", str(link))
    assert link.is_symlink() and json.loads(target.read_text())["text"] == "good film"


def test_checkpoints_that_held_out_different_rows_are_not_compared_on_them(capsys, checkpoint, tmp_path) -> None:
    file = write_csv(tmp_path, "train", 20, ["bad", "good"])
    folders = [str(tmp_path / name) for name in ("one", "two")]
    for folder, fraction in zip(folders, (0.1, 0.3), strict=True):
        shutil.copytree(checkpoint, folder)
        settings = {"train_file": "train.csv", "validation_fraction": fraction}
        Path(folder, "metrics.json").write_text(json.dumps({"training": {"settings": settings}, "results": {}}))
    refusal = refused(capsys, "compare", *folders, "--train_file", file, "--text_columns", "text")
    assert f"the training of '{folders[1]}' held out 0.3" in refusal


def test_predict_and_benchmark_need_no_datasets(checkpoint, tmp_path) -> None:
    (tmp_path / "texts.csv").write_text("review,stars\ngood film,5\nbad book,1\n")
    texts = str(tmp_path / "texts.csv")
    code = f"""
import contextlib, os, sys
sys.modules["datasets"] = None  # importing it is an ImportError
from adaexit_hf.cli.main import main
codes = []
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    codes.append(main(["predict", {checkpoint!r}, "--file", {texts!r}]))
    trainer = "transformers.trainer" in sys.modules  # which takes a second
    codes.append(main(["benchmark", {checkpoint!r}, "--rounds", "1", {texts!r}]))
print(codes, trainer)
"""
    assert run(code) == "[0, 0] False"
