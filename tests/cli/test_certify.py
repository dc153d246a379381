"""`adaexit certify` and `adaexit verify`, and the commands that read certificates, on a tiny checkpoint."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoTokenizer

from adaexit_hf import BerxitForSequenceClassification, Guarantee
from adaexit_hf.cli import certify as certify_module
from adaexit_hf.cli import main as cli
from adaexit_hf.cli.certify import rows_to_certify
from adaexit_hf.evaluation.certificate_file import verify_certificates
from adaexit_hf.evaluation.fingerprints import hashes_of, read_seen_rows, save_seen_rows

WORDS = ["good", "bad", "film", "book", "very"]
TEXTS = [f"{one} {two} {three}" for one in WORDS for two in WORDS for three in WORDS]  # 125
PROMISE = ["--changed_answers", "0.1"]


@pytest.fixture(scope="module")
def made(start, tmp_path_factory) -> Path:
    """A checkpoint of which every exit is nearly sure that every text is good, and files with texts."""
    folder = tmp_path_factory.mktemp("certified")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    torch.manual_seed(0)
    model = BerxitForSequenceClassification.from_encoder_pretrained(start, **names, exit_threshold=0.99)
    with torch.no_grad():
        for exit in model.exits:
            exit.classifier.bias += torch.tensor([-2.0, 2.0])
    model.save_pretrained(folder / "out")
    AutoTokenizer.from_pretrained(start).save_pretrained(folder / "out")
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    rows = "".join(f"{text},{'good' if 'good' in text else 'bad'},{text.split()[0]}\n" for text in TEXTS)
    (folder / "rows.csv").write_text(f"text,label,author\n{rows}")
    return folder


@pytest.fixture
def checkpoint(made, tmp_path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def texts(made) -> list[str]:
    return ["--file", str(made / "texts.txt")]


@pytest.fixture
def rows(made) -> list[str]:
    return ["--validation_file", str(made / "rows.csv"), "--text_columns", "text"]


@pytest.fixture
def call(capsys):
    def run(*arguments: str | Path, code: int = 0):
        capsys.readouterr()
        found = cli.main(list(map(str, arguments)))
        printed = capsys.readouterr()
        assert found == code, printed.err
        return printed

    return run


def hashes(checkpoint: Path, texts: list[str]) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return hashes_of([tokenizer(text) for text in texts])


def test_certify_saves_threshold_and_certificate(checkpoint, texts, call) -> None:
    printed = call("certify", checkpoint, *texts, *PROMISE)
    (sealed,) = verify_certificates(checkpoint).values()
    certificate = sealed.certificate
    assert certificate.guarantees == (Guarantee("changed_answers", 0.1),) and certificate.n == len(TEXTS)
    assert json.loads((checkpoint / "config.json").read_text())["exit_threshold"] == certificate.threshold
    assert sealed.name == "torch float32" and sealed.void == () and sealed.data == {"name": "texts.txt"}
    assert f"saved in {checkpoint / 'certificate.json'}" in printed.out
    assert f"exit_threshold in config.json is {certificate.threshold}, was 0.99" in printed.err


def test_files_that_still_have_the_old_threshold_are_named(checkpoint, texts, call) -> None:
    for name in ("README.md", "report.html", "metrics.json"):
        (checkpoint / name).write_text("{}")
    told = call("certify", checkpoint, *texts, *PROMISE).err
    assert f"README.md still has the old threshold; run adaexit card {checkpoint}" in told
    for name in ("report.html", "metrics.json"):
        assert f"{name} still has the old threshold; run adaexit report {checkpoint} ..." in told


def test_dry_run_saves_nothing(checkpoint, texts, call) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert "dry run" in call("certify", checkpoint, *texts, *PROMISE, "--dry_run").out
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_json_has_the_certificate(checkpoint, texts, call) -> None:
    found = json.loads(call("certify", checkpoint, *texts, *PROMISE, "--mean_layers", "2.5", "--json").out)
    assert found["certified"] and [each["kind"] for each in found["guarantees"]] == ["changed_answers", "mean_layers"]


def test_refusal_names_the_rows_that_it_takes_and_saves_nothing(checkpoint, texts, call) -> None:
    printed = call("certify", checkpoint, *texts, "--changed_answers", "0.01", "--json", code=1)
    assert json.loads(printed.out)["smallest_n"] == 299 and "Refused: 125 rows are too few" in printed.err
    assert not (checkpoint / "certificate.json").exists()


@pytest.mark.parametrize("flag", ["harm", "drop"])
def test_labelled_rows_certify_harm_and_drop(checkpoint, rows, call, flag) -> None:
    call("certify", checkpoint, *rows, f"--{flag}", "10%")
    (sealed,) = verify_certificates(checkpoint).values()
    assert sealed.data == {"name": "rows.csv", "split": "validation"}


def test_groups_are_the_independent_draws(checkpoint, rows, call) -> None:
    flags = ("--harm", "0.7", "--group_column", "author", "--dry_run")
    found = json.loads(call("certify", checkpoint, *rows, *flags, "--json").out)
    assert found["n"] == len(WORDS) and found["grouped"]


def test_texts_without_labels_may_have_groups(checkpoint, made, call) -> None:
    flags = ("--file", made / "rows.csv", "--text_columns", "text", "--group_column", "author", "--json", "--dry_run")
    assert json.loads(call("certify", checkpoint, *flags, "--changed_answers", "0.7").out)["n"] == len(WORDS)


@pytest.mark.filterwarnings("error")
def test_rows_of_the_training_are_refused_dropped_or_kept(checkpoint, texts, call) -> None:
    save_seen_rows(
        checkpoint, {"training": hashes(checkpoint, TEXTS[:20]), "threshold": hashes(checkpoint, TEXTS[15:25])}
    )
    arguments = ("certify", checkpoint, *texts, *PROMISE, "--json", "--dry_run")
    message = "25 of the 125 rows had a part in this model (20 in training, 10 in threshold)"
    assert message in call(*arguments, code=1).err
    assert "(20 in training, 10 in threshold): kept" in call(*arguments, "--repeats", "keep").err
    dropped, kept = (json.loads(call(*arguments, "--repeats", how).out) for how in ("drop", "keep"))
    assert (dropped["n"], dropped["repeats"]) == (100, 0) and (kept["n"], kept["repeats"]) == (125, 25)


def test_rows_that_were_kept_are_told_and_not_all_can_be(checkpoint, texts, call) -> None:
    save_seen_rows(checkpoint, {"training": hashes(checkpoint, TEXTS[:20])})
    call("certify", checkpoint, *texts, *PROMISE, "--repeats", "keep")
    (sealed,) = verify_certificates(checkpoint).values()
    assert "on texts like the 125 rows of texts.txt, 20 of whose texts were seen before (computed" in str(sealed)
    save_seen_rows(checkpoint, {"training": hashes(checkpoint, TEXTS)})
    for how in ("keep", "drop"):
        printed = call("certify", checkpoint, *texts, *PROMISE, "--repeats", how, code=1)
        assert "all 125 rows had a part in this model (125 in training); pass other rows" in printed.err


def test_copies_are_counted(checkpoint, texts, tmp_path, call) -> None:
    assert "are copies" not in call("certify", checkpoint, *texts, *PROMISE, "--dry_run").err
    (tmp_path / "twice.csv").write_text("text,author\n" + "".join(f"{text},{text}\n" for text in TEXTS) * 2)
    arguments = ("certify", checkpoint, "--file", tmp_path / "twice.csv", "--text_columns", "text", *PROMISE)
    assert "125 of 250 rows are copies of others" in call(*arguments, "--dry_run").err
    assert "are copies" not in call(*arguments, "--group_column", "author", "--dry_run").err


def test_another_certificate_that_becomes_void_is_named(checkpoint, texts, rows, call) -> None:
    message = "the certificate for torch float32 does not hold for the files as they are now"
    assert message not in call("certify", checkpoint, *texts, *PROMISE).err
    assert message not in call("calibrate", checkpoint, *rows, "--dry_run").err
    assert message in call("calibrate", checkpoint, *rows).err
    (checkpoint / "seen_rows.npz").unlink()  # the same rows are certified again
    assert message not in call("certify", checkpoint, *texts, *PROMISE).err
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + " ")
    assert message in call("certify", checkpoint, *texts, *PROMISE, "--dtype", "bfloat16").err


def test_seen_rows_are_refused_before_the_model_is_loaded(checkpoint, texts, call, monkeypatch) -> None:
    save_seen_rows(checkpoint, {"training": hashes(checkpoint, TEXTS[:20])})
    monkeypatch.setattr(certify_module, "trace_of", lambda *_: pytest.fail("texts ran"))
    assert "had a part in this model" in call("certify", checkpoint, *texts, *PROMISE, code=1).err


def test_unknown_training_rows_are_named(checkpoint, texts, call) -> None:
    arguments = ("certify", checkpoint, *texts, *PROMISE, "--dry_run")
    assert "does not say which rows it was trained on" in call(*arguments).err
    save_seen_rows(checkpoint, {"training": hashes(checkpoint, ["very good"])})
    assert "trained on" not in call(*arguments).err


@pytest.mark.filterwarnings("ignore:temperature")
def test_calibrate_adds_the_rows_that_chose_to_the_record(checkpoint, rows, call) -> None:
    call("calibrate", checkpoint, *rows)
    assert set(read_seen_rows(checkpoint)) == {"unknown", "threshold"}
    save_seen_rows(checkpoint, {"training": hashes(checkpoint, TEXTS[:3])})
    call("calibrate", checkpoint, *rows, "--temperatures")
    seen = read_seen_rows(checkpoint)
    assert set(seen) == {"training", "threshold", "temperatures"} and len(seen["training"]) == 3
    found = {*seen["threshold"].tolist(), *seen["temperatures"].tolist()}
    assert found == set(hashes(checkpoint, TEXTS).tolist())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "guarantee: got none"),
        (["--changed_answers", "2"], "changed_answers: limit: got 2"),
        (["--confidence", "1", *PROMISE], "confidence: got 1;"),
        (["--tolerance", "1", "--harm", "0.1"], "tolerance: got 1.0 without --changed_answers"),
        (["--drop", "0.1"], "drop: needs labels"),
        (["--repeats", "no", *PROMISE], "repeats: got 'no'"),
        (["--value_range", "1", "--mean_difference", "0.1"], "value_range: got [1.0]"),
        (["--mean_difference", "0.1"], "pass them, e.g. --value_range 0 5"),
        (["--task_name", "sst2", *PROMISE], "pass texts without labels or labelled rows"),
        (["--split", "test", *PROMISE], "split: got it with --file"),
        (["--metrics", "f1", *PROMISE], "metrics: got f1, but none is computed here"),
    ],
)
def test_wrong_flags_are_wrong_usage(checkpoint, texts, call, flags, message) -> None:
    assert message in call("certify", checkpoint, *texts, *flags, code=2).err


def test_certify_without_rows_is_wrong_usage(checkpoint, call) -> None:
    assert "file: got no rows" in call("certify", checkpoint, *PROMISE, code=2).err


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"num_labels": 1}, ("--changed_answers", "0.1"), "the answers are numbers, which need one"),
        ({}, ("--mean_difference", "0.1", "--value_range", "0", "5"), "is for numbers, but the answers are classes"),
        ({}, ("--mean_layers", "99"), "texts run from 1 to 3 layers"),
        ({"exit_layers": [3]}, PROMISE, "has one exit"),
    ],
)
def test_a_promise_that_cannot_be_meant_is_refused_before_the_model_is_loaded(
    start, tmp_path, texts, call, monkeypatch, changes, flags, message
) -> None:
    model = BerxitForSequenceClassification.from_encoder_pretrained(start, **changes)
    model.save_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "out")
    monkeypatch.setattr(certify_module, "load_runtime", None)
    assert message in call("certify", tmp_path / "out", *texts, *flags, code=2).err


def test_verify_holds_until_a_file_changes(checkpoint, texts, call) -> None:
    call("certify", checkpoint, *texts, *PROMISE)
    assert "torch float32: holds for these files" in call("verify", checkpoint).out
    (checkpoint / "tokenizer_config.json").write_text("{}")
    printed = call("verify", checkpoint, code=1)
    assert "void: tokenizer_config.json has changed" in printed.out and "void: torch float32" in printed.err


@pytest.mark.parametrize("flags", [["--group_column", "author"], ["--split", "test"], ["--text_columns", "text"]])
def test_verify_without_rows_takes_no_flags_about_them(checkpoint, call, flags) -> None:
    assert f"{flags[0][2:]}: got " in call("verify", checkpoint, *flags, code=2).err


def test_verify_without_a_certificate_is_a_no(checkpoint, call) -> None:
    assert "has no certificate.json" in call("verify", checkpoint, code=1).err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dtype", "float32"), ""),
        (("--dtype", "bfloat16"), "has no certificate for torch bfloat16, only for torch float32"),
        (("--runtime", "onnx"), "has no certificate for onnx, only for torch float32"),
        (("--runtime", "onnx", "--precision", "int8"), "has no certificate for onnx int8, only for torch float32"),
        (("--precision", "int8"), "precision: got 'int8' without --runtime onnx"),
    ],
)
def test_verify_without_rows_wants_a_certificate_of_the_runtime(checkpoint, texts, call, flags, message) -> None:
    call("certify", checkpoint, *texts, *PROMISE)
    assert message in call("verify", checkpoint, *flags, code=1 if message else 0).err


def test_verify_tests_rows_against_the_certificate(checkpoint, texts, call) -> None:
    call("certify", checkpoint, *texts, *PROMISE)
    found = json.loads(call("verify", checkpoint, *texts, "--json").out)["torch float32"]
    (test,) = found["tests"]
    assert found["holds"] and (test["n"], test["contradicted"]) == (125, False)
    assert "these are the rows that were certified" in call("verify", checkpoint, *texts).err


def test_verify_says_where_rows_contradict(checkpoint, texts, call) -> None:
    call("certify", checkpoint, *texts, *PROMISE)
    content = json.loads((checkpoint / "certificate.json").read_text())
    model = BerxitForSequenceClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        model.exits[0].classifier.bias -= torch.tensor([-20.0, 20.0])  # sure of the other answer
    model.save_pretrained(checkpoint)
    (checkpoint / "certificate.json").write_text(json.dumps(content))
    printed = call("verify", checkpoint, *texts, code=1)
    assert "changed_answers <= 0.1 is contradicted by 125 rows: 1 there" in printed.out
    assert "void: model.safetensors has changed" in printed.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), ""),
        (("--exit_threshold", "0.5"), "the threshold is 0.5, certified was"),
        (("--max_seq_length", "5"), "texts are truncated to 5 tokens, not to 32"),
        (("--dtype", "float16"), "no certificate for torch float16, only for torch float32"),
    ],
)
def test_predict_says_if_the_certificate_does_not_hold(checkpoint, texts, call, flags, message) -> None:
    call("certify", checkpoint, *texts, *PROMISE)
    printed = call("predict", checkpoint, "good", *flags)
    assert message in printed.err and (message or "certificate" not in printed.err)


def test_push_refuses_a_void_certificate(checkpoint, texts, call, monkeypatch) -> None:
    call("certify", checkpoint, *texts, *PROMISE)
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text() + " ")
    assert "is void: config.json has changed" in call("push", checkpoint, "you/model", code=1).err


def test_push_refuses_a_card_with_another_promise(checkpoint, rows, call) -> None:
    call("certify", checkpoint, *rows, "--harm", "0.1")
    call("report", checkpoint, *rows)
    call("card", checkpoint)
    call("certify", checkpoint, *rows, "--harm", "0.2")  # at the same threshold
    message = "does not state the guarantees in certificate.json; run adaexit card"
    assert message in call("push", checkpoint, "you/model", code=1).err
    (checkpoint / "certificate.json").unlink()
    assert message in call("push", checkpoint, "you/model", code=1).err


def test_card_states_the_guarantee(checkpoint, rows, call) -> None:
    call("certify", checkpoint, *rows, "--harm", "0.1")
    call("report", checkpoint, *rows)
    call("card", checkpoint)
    card = (checkpoint / "README.md").read_text()
    assert (
        "- share of texts that full depth answers right and early exit wrong: at most 0.1; with 95 % confidence"
        in card
    )
    assert "share of texts that full depth answers right" in (checkpoint / "report.html").read_text()
    assert "holds for these files" in call("verify", checkpoint).out


def test_certify_changes_nothing_if_the_certificate_cannot_be_saved(checkpoint, texts, call) -> None:
    (checkpoint / "certificate.json").write_text("{}")
    before = (checkpoint / "config.json").read_bytes()
    assert "is not what adaexit certify writes" in call("certify", checkpoint, *texts, *PROMISE, code=1).err
    assert (checkpoint / "config.json").read_bytes() == before


def test_predict_answers_beside_a_certificate_that_cannot_be_read(checkpoint, call) -> None:
    (checkpoint / "certificate.json").write_text("{}")
    printed = call("predict", checkpoint, "good")
    assert "label" in printed.out and "is not what adaexit certify writes" in printed.err


def test_certify_is_refused_if_files_change_meanwhile(checkpoint, texts, call, monkeypatch) -> None:
    def slow(*arguments, **more):
        (checkpoint / "tokenizer_config.json").write_text("{}")
        return rows_to_certify(*arguments, **more)

    monkeypatch.setattr(certify_module, "rows_to_certify", slow)
    before = (checkpoint / "config.json").read_bytes()
    message = call("certify", checkpoint, *texts, *PROMISE, code=1).err
    assert f"tokenizer_config.json in '{checkpoint}' has changed since" in message
    assert (checkpoint / "config.json").read_bytes() == before


def test_whole_groups_are_drawn_or_none(checkpoint, made, call) -> None:
    flags = ("--file", made / "rows.csv", "--text_columns", "text", *PROMISE, "--max_eval_samples", "50")
    message = call("certify", checkpoint, *flags, "--group_column", "author", code=2).err
    assert "max_eval_samples: got 50 with --group_column, whose groups it would take apart" in message


def test_rows_without_a_group_are_refused(checkpoint, made, call, tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good", "author": "A"}\n{"text": "bad", "author": null}\n')
    (tmp_path / "rows.csv").write_text("text,label,author\ngood,good,A\nbad,bad,\n")
    more = (*PROMISE, "--text_columns", "text", "--group_column", "author")
    for flags in (("--file", tmp_path / "rows.jsonl"), ("--validation_file", tmp_path / "rows.csv")):
        message = call("certify", checkpoint, *flags, *more, code=1).err
        assert "group_column: row 1 has no author; fill it in" in message
    message = call("certify", checkpoint, "--file", tmp_path / "rows.jsonl", *more[:-1], "autor", code=1).err
    assert "group_column: row 0 of" in message and "has no 'autor'" in message


def test_the_length_of_the_served_texts_is_certified(checkpoint, texts, call) -> None:
    message = call("certify", checkpoint, *texts, *PROMISE, "--max_seq_length", "4", code=2).err
    assert "max_seq_length: got 4, but a certificate is for texts of the length to which the saved tok" in message


@pytest.mark.filterwarnings("ignore:temperature")
def test_temperatures_are_recorded_even_if_the_training_is_unknown(checkpoint, rows, call) -> None:
    call("calibrate", checkpoint, *rows, "--temperatures")
    printed = call("certify", checkpoint, *rows, *PROMISE, code=1)
    assert "does not say which rows" in printed.err and " in temperatures" in printed.err


def test_the_promise_says_of_which_texts_it_is(checkpoint, rows, call) -> None:
    save_seen_rows(checkpoint, {"training": hashes(checkpoint, TEXTS[:5])})
    call("certify", checkpoint, *rows, "--changed_answers", "0.9", "--repeats", "drop", "--group_column", "author")
    (sealed,) = verify_certificates(checkpoint).values()
    assert str(sealed).startswith(
        "share of texts with another answer than at full depth, as a mean over groups: at most 0.9; with 95 % "
        "confidence, on texts like the 5 groups of rows.csv validation, without the 5 texts that were seen before"
    )
