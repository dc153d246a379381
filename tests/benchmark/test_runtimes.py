"""PyTorch against ONNX Runtime: who takes part, what is checked, which is the best, and what a first answer costs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import inference as benchmark_inference
import pytest
import torch
from helpers.exports import TEXTS
from helpers.tiny import build, encoder_config
from helpers.words import new_tokenizer

from adaexit_hf.benchmark import runtimes
from adaexit_hf.benchmark.runs import AnswersDifferError, Workload
from adaexit_hf.benchmark.runtimes import compare_runtimes, exported_folder, measure_in_turn
from adaexit_hf.benchmark.start_up import measure_start_up
from adaexit_hf.benchmark.timing import trained_workload
from adaexit_hf.cli import main as cli
from adaexit_hf.export.onnx import export_onnx, export_stock
from adaexit_hf.utils.processor import bf16_is_slow

STATIC = ["stock torch", "stock onnx fp32", "stock onnx int8"]
BATCHES = ["stock torch, batches", "stock onnx fp32, batches", "stock onnx int8, batches"]
EXITS = ["exits torch", "exits onnx fp32", "exits onnx int8"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Workload, Path, dict[str, Path]]:
    """A tiny checkpoint with its exported model, some texts, and the graphs of the classifier without exits."""
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    two_layers = encoder_config("bert", num_hidden_layers=2)
    model, tokenizer = build("deebert", encoder_config=two_layers, exit_threshold=1.09), new_tokenizer()
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    texts = [text for text in TEXTS if text and len(text.split()) < 20]
    (checkpoint / "texts.txt").write_text("\n".join(texts))
    rows = [{"text": text, "label": place % 3} for place, text in enumerate(texts)]
    export_onnx(model, tokenizer, checkpoint / "onnx", int8=True, validation=rows)
    work = trained_workload(model, tokenizer, texts)
    stock = checkpoint / "stock"
    stock.mkdir()
    return work, checkpoint / "onnx", export_stock(work.stock, stock, ["input_ids"], 32)


@pytest.fixture(scope="module")
def records(exported) -> list[dict]:
    return compare_runtimes(*exported, single_texts=3, batch_size=4, batch_tokens=40, rounds=2)


def test_all_ways_to_run_take_part(records) -> None:
    single, many = records
    assert (single["way"], single["texts"], many["way"]) == ("single", 3, "many")
    bfloat16 = ["stock torch bf16", "exits torch bf16"] if not bf16_is_slow(runtimes.CPU) else []
    assert sorted(single["runs"]) == sorted([*STATIC, *EXITS, *bfloat16])
    assert {*STATIC[1:], *BATCHES, *EXITS} <= set(many["runs"])
    assert len(many["runs"]["exits torch"]["seconds"]) == 2
    json.dumps(records)


def test_the_rival_is_the_fastest_without_exits(records) -> None:
    for record in records:
        assert record["best_static"].startswith("stock") and record["best_with_exits"].startswith("exits")
    runs = {"stock a": [[4.0], [4.0]], "stock onnx int8": [[3.0], [5.0]], "stock b": [[2.0], [2.0]]}
    runs |= {"exits torch": [[3.0], [3.0]], "exits onnx int8": [[1.0], [2.0]]}
    of = {name: runtimes.Run([], None, 2.0 if name.startswith("exits") else None) for name in runs}
    found = runtimes._summary(of, runs, depth=4)
    assert (found["best_static"], found["best_with_exits"]) == ("stock b", "exits onnx int8")
    assert found["speed_up"] == [1.25, 1.5, 1.75]
    assert found["eta"] == {"exits onnx int8": [2.625 / 2, 2.75 / 2, 2.875 / 2]}


def test_layers_are_counted_for_each_run(records, exported) -> None:
    work, _, _ = exported
    single, many = records
    assert {many["runs"][name]["mean_layers"] for name in (*STATIC[1:], *BATCHES)} == {2}
    for name in ("exits torch", "exits onnx fp32"):
        assert many["runs"][name]["mean_layers"] == work.expected.exit_layer.double().mean().item()
        assert single["runs"][name]["mean_layers"] == work.expected.exit_layer[:3].double().mean().item()


def test_runs_take_turns(monkeypatch) -> None:
    called: list[str] = []

    def run(name: str) -> runtimes.Run:
        return runtimes.Run([lambda: (called.append(name), (torch.zeros(1, 2), None))[1]] * 2, None)

    seconds = measure_in_turn({"a": run("a"), "b": run("b")}, rounds=2)
    assert called == ["a", "a", "b", "b"] * 3
    assert [len(values) for values in seconds["a"]] == [2, 2]


def test_graphs_with_other_answers_are_reported(exported) -> None:
    work, folder, stock = exported
    wrong = work.expected._replace(stock=work.expected.stock + 0.1)
    other = Workload(work.model, work.stock, work.static, work.rows, wrong, texts=work.texts, tokenizer=work.tokenizer)
    graphs = runtimes._Graphs(other, folder, stock, 1)
    for run in (lambda: graphs.text_by_text("fp32"), lambda: graphs.batches("fp32", 4)):
        with pytest.raises(AnswersDifferError, match="stock: logits of"):
            measure_in_turn({"stock": runtimes.Run([run], wrong)}, rounds=1)


def test_a_run_that_does_not_repeat_its_answers_is_reported() -> None:
    answers = iter([torch.zeros(1, 2), torch.ones(1, 2)])
    with pytest.raises(AnswersDifferError, match="it: logits of 1"):
        measure_in_turn({"it": runtimes.Run([lambda: (next(answers), None)], None)}, rounds=1)


def test_int8_must_exit_where_its_trace_does(exported) -> None:
    work, folder, _ = exported
    classifier = runtimes._classifier(folder, "int8")
    expected = runtimes._expected_of_trace(classifier, work, 1.05)
    found = classifier.predict(work.texts, exit_threshold=1.05)
    assert expected.exit_layer.tolist() == found.exit_layer.tolist()
    run = runtimes.Run([lambda: runtimes._classify(classifier, work.texts, 0.5, None)], expected)
    with pytest.raises(AnswersDifferError, match="int8: .* exit at another layer"):
        measure_in_turn({"int8": run}, rounds=1)


def test_threads_run_texts_or_operators(exported) -> None:
    work, folder, stock = exported
    graphs = runtimes._Graphs(work, folder, stock, 2)
    for logits, _ in (graphs.text_by_text("fp32"), graphs.batches("fp32", 4)):
        torch.testing.assert_close(logits, work.expected.stock, rtol=0, atol=1e-5)
    assert graphs.sessions["fp32"].get_session_options().intra_op_num_threads == 2
    assert graphs.own_thread["fp32"].get_session_options().intra_op_num_threads == 1


def test_bfloat16_runs_only_where_the_cpu_has_it(exported, records, monkeypatch, tmp_path) -> None:
    if bf16_is_slow(runtimes.CPU):
        assert "no bfloat16 units" in records[0]["left_out"]["stock torch bf16"]
    monkeypatch.setattr(runtimes, "bf16_is_slow", lambda device: False)
    single, many = compare_runtimes(*exported, single_texts=1, rounds=1)
    assert {"stock torch bf16", "exits torch bf16"} <= set(single["runs"])
    assert {"stock torch bf16, batches", "exits torch bf16"} <= set(many["runs"])
    assert not single["left_out"]


def test_what_was_not_exported_is_left_out_with_the_reason(exported, monkeypatch) -> None:
    work, folder, stock = exported
    facts = json.loads((folder / "early_exit.json").read_text())
    del facts["precisions"]["int8"]
    monkeypatch.setattr(runtimes, "read_manifest", lambda _: facts)
    single, _ = compare_runtimes(work, folder, stock, single_texts=1, rounds=1)
    assert "adaexit export with --int8" in single["left_out"]["exits onnx int8"]
    assert "exits onnx int8" not in single["runs"] and "stock onnx int8" in single["runs"]


def test_a_checkpoint_must_be_exported(tmp_path, exported) -> None:
    with pytest.raises(ValueError, match="onnx: '.*' has no exported model; call adaexit export"):
        exported_folder(str(tmp_path))
    assert exported_folder(str(exported[1].parent)) == exported[1]


def test_other_dtypes_are_not_compared(exported) -> None:
    work, folder, stock = exported
    half = Workload(build("deebert").bfloat16(), None, None, work.rows, work.expected)
    with pytest.raises(ValueError, match="needs float32 on the CPU; pass --dtype float32"):
        compare_runtimes(half, folder, stock, 1)


@pytest.mark.slow
def test_a_first_answer_without_pytorch_costs_less(exported) -> None:
    _, folder, stock = exported
    thresholds = dict.fromkeys(EXITS)
    found = measure_start_up(str(folder.parent), folder, stock, "w5 w6", 1, thresholds, rounds=1)
    assert list(found) == [*EXITS, "stock onnx fp32", "stock onnx int8"]
    for name in ("peak_memory", "cpu_seconds"):
        assert 0 < found["exits onnx int8"][name] < found["exits torch"][name]


def test_a_process_that_fails_is_reported(exported) -> None:
    _, folder, stock = exported
    with pytest.raises(RuntimeError, match=r"start-up of exits onnx int3: the process failed(.|\n)*int3"):
        measure_start_up(str(folder.parent), folder, stock, "w5", 1, {"exits onnx int3": None}, rounds=1)


@pytest.fixture
def command(exported, monkeypatch, capsys) -> Callable[..., str]:
    """Call the command with the graphs that exist, and without the processes of the start-up."""
    work, folder, stock = exported
    start_up = {"exits torch": {"cpu_seconds": 2.0, "wall_seconds": 3.0, "peak_memory": 2**20}}
    monkeypatch.setattr("adaexit_hf.export.onnx.export_stock", lambda *_: stock)
    monkeypatch.setattr("adaexit_hf.cli.benchmark.measure_start_up", lambda *_: start_up)

    def call(*flags: str, code: int = 0) -> str:
        texts = str(folder.parent / "texts.txt")
        capsys.readouterr()
        assert cli.main(["benchmark", str(folder.parent), texts, "--rounds", "1", *flags]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return call


def test_the_command_names_the_best_of_each_side(command) -> None:
    printed = command("--onnx", "--single_texts", "2")
    assert "1 thread of" in printed and "the fastest with exits, is" in printed
    rows = [line.split("  ")[1] for line in printed.splitlines() if line.startswith("  ")]
    assert {*STATIC, *BATCHES, *EXITS} <= set(rows)
    assert "first answer of a new process" in printed


def test_the_command_prints_an_object_per_way(command) -> None:
    lines = [json.loads(line) for line in command("--onnx", "--json", "--single_texts", "2").splitlines()]
    assert [line["way"] for line in lines] == ["single", "many", "start-up"]
    assert all({"cpu", "threads", "onnxruntime", "exit_threshold"} <= set(line) for line in lines)


def test_a_threshold_that_is_passed_is_that_of_all_runs(command) -> None:
    lines = command("--onnx", "--json", "--exit_threshold", "0").splitlines()
    runs = json.loads(lines[1])["runs"]
    assert {runs[name]["mean_layers"] for name in EXITS} == {2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "cuda"], "onnx: got --device cuda --dtype auto, but it compares float32 on the CPU"),
        (["--max_seq_length", "7"], "max_seq_length: got 7, but the exported model truncates to 32 tokens"),
        (["--pairs", "predict/static"], "pairs: got predict/static with --onnx, which compares all runs"),
        (["--threads", "0"], "threads: got 0; pass a whole number from 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(command, flags, message) -> None:
    assert message in command("--onnx", *flags, code=1)


def test_threads_are_those_of_the_flag_and_then_as_before(command) -> None:
    before = torch.get_num_threads()
    lines = command("--json", "--threads", str(before + 1), "--single_texts", "1").splitlines()
    assert json.loads(lines[0])["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_planted_texts_exit_as_planned_in_both_precisions(tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "speed.jsonl"
    shape = ["--layers", "2", "--hidden_size", "16", "--heads", "2", "--intermediate_size", "16"]
    flags = [*shape, "--vocab_size", "40", "--threads", "1", "--texts", "6", "--rounds", "1", "--single_texts", "2"]
    more = ["--onnx", "--savings", "1.5", "--lengths", "long"]
    monkeypatch.setattr(sys, "argv", ["run", "--output", str(output), *flags, *more])
    benchmark_inference.main()
    (record,) = map(json.loads, output.read_text().splitlines())
    assert {record["ways"][1]["runs"][name]["mean_layers"] for name in EXITS} == {2 / 1.5}
    assert "| 6, many | exits onnx int8 | 1.33 of 2 |" in capsys.readouterr().out
    monkeypatch.setattr(benchmark_inference, "compare_runtimes", lambda *_: pytest.fail("measured again"))
    benchmark_inference.main()
