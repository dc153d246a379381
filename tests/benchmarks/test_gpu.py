"""The measurement on a GPU, at toy size on the CPU: its cells, the captured classifier, its records and its budget."""

import json
import sys
from dataclasses import fields
from pathlib import Path

import gpu
import pytest
import torch

TOY = ["--device", "cpu", "--toy", "--rounds", "1", "--statics", "eager", "graphs", "--lengths", "short"]
TOY += ["--batch_sizes", "8", "1"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call the script with the toy's arguments and others; its exit status, what it printed, and its records."""

    def call(*arguments: str):
        output = tmp_path / "gpu.jsonl"
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(output), *TOY, *arguments])
        status = gpu.main()
        lines = output.read_text().splitlines() if output.exists() else []
        return status, capsys.readouterr().out, [json.loads(line) for line in lines]

    return call


def arguments_of(**changes) -> gpu.Arguments:
    arguments = gpu.Arguments()
    assert changes.keys() <= {field.name for field in fields(arguments)}
    for name, value in changes.items():
        setattr(arguments, name, value)
    return arguments


def test_every_cell_is_measured_once_and_its_answers_are_checked(run, monkeypatch):
    status, printed, records = run()
    assert (status, len(records)) == (0, 5)
    assert [(record["candidate"], record["batch_size"]) for record in records] == [
        ("predict", 0),
        ("predict", 8),
        ("in-model", 8),
        ("predict", 1),
        ("in-model", 1),
    ]
    for record in records:
        assert record["layer_speed_up"] == 2
        assert record["static"] in record["eta_against"]
        assert set(record["eta_against"]) == {"eager", "graphs"}
        (static,), (ours,) = record["seconds"][record["static"]], record["seconds"][record["candidate"]]
        assert record["eta"] == pytest.approx([static / ours / 2] * 3, rel=0.01)
        assert record["launch_bound_share"] is None  # there is no GPU that could wait
        assert (record["reading_seconds"] is None) == (record["candidate"] == "in-model")
        assert (record["driver"], record["failures"]) == (None, {})
    assert "5 cells, 0 not run, 0 wrong or failed" in printed

    monkeypatch.setattr(gpu, "Models", None)  # nothing is built again
    status, printed, again = run()
    assert (status, again) == (0, records)
    assert printed.count("| predict | 256 tokens | short | float16 | sdpa | 2.00x |") == 1


def test_what_does_not_fit_into_the_budget_is_named(run):
    status, printed, records = run("--max_minutes", "0")
    assert (status, records) == (0, [])
    assert printed.count("not run: out of time: ") == 5
    assert (
        "not run: out of time: in-model, batches of 1, short texts, 2.0 times fewer layers, float16, sdpa" in printed
    )


def test_wrong_answers_are_named_and_not_recorded(run, monkeypatch):
    def spoilt(work, *arguments):
        run = make_run(work, *arguments)
        return lambda: (run()[0] + 1, run()[1])

    make_run = gpu.make_run
    monkeypatch.setattr(gpu, "make_run", spoilt)
    status, printed, records = run("--batch_sizes", "8")
    assert (status, records) == (1, [])
    assert "wrong answers: predict, full batches, short texts" in printed
    assert "predict: logits of 12 of 12 texts differ" in printed


def test_a_cell_that_fails_does_not_stop_the_others(run, monkeypatch):
    def failing(work, sizes):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "reading_seconds", failing)
    status, printed, records = run("--batch_sizes", "8")
    assert (status, [record["candidate"] for record in records]) == (1, ["in-model"])
    assert printed.count("failed: predict, ") == 2
    assert "1 cells, 0 not run, 2 wrong or failed" in printed


def test_a_classifier_that_fails_is_left_out(run, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(gpu.Captured, "__call__", broken)
    status, printed, records = run("--batch_sizes", "8")
    assert (status, len(records)) == (0, 3)
    assert printed.count("graphs: failed: RuntimeError: no compiler\n") == 1
    assert {record["static"] for record in records} == {"eager"}
    assert records[0]["failures"] == {"graphs": "RuntimeError: no compiler"}


def test_the_most_important_cells_come_first():
    arguments = arguments_of(batch_sizes=[32, 1], statics=list(gpu.STATICS))
    found = gpu.cells(arguments, flash=True)
    assert len(set(found)) == len(found) == 2 * 2 * 3 * 2 * 5 + 2
    first = found[:10]
    assert {(cell.dtype, cell.attention, cell.saving, cell.compiled) for cell in first} == {
        ("float16", "sdpa", 2.0, False)
    }
    assert [(cell.candidate, cell.batch_size, cell.compiled) for cell in found[10:12]] == [
        ("in-model", 32, True),
        ("in-model", 1, True),
    ]
    assert {cell.attention for cell in gpu.cells(arguments, flash=False)} == {"sdpa"}


def test_a_batch_without_padding_needs_no_mask_and_others_have_a_multiple_of_8_tokens():
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    full = gpu.bucketed({"input_ids": ids[:1], "attention_mask": torch.ones(1, 3, dtype=torch.long)}, 4)
    assert {name: value.tolist() for name, value in full.items()} == {"input_ids": [[5, 6, 7]]}
    padded = gpu.bucketed({"input_ids": ids, "attention_mask": (ids != 0).long()}, 4)
    assert padded["input_ids"].tolist() == [[5, 6, 7, 4, 4, 4, 4, 4], [8, 9, 0, 4, 4, 4, 4, 4]]
    assert padded["attention_mask"].sum(dim=1).tolist() == [3, 2]


@torch.inference_mode()
def test_the_captured_classifier_answers_every_batch_of_a_shape_anew():
    models = gpu.Models(arguments_of(toy=True, device="cpu"), "float32", "sdpa")
    captured = models.static("graphs")
    batches = [{"input_ids": torch.randint(5, 99, (2, width))} for width in (4, 4, 6)]
    logits = [captured(batch) for batch in batches]
    assert len(captured.shapes) == 2
    for batch, found in zip(batches, logits, strict=True):
        torch.testing.assert_close(found, models.stock(**batch).logits)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_what_to_pass(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"^device: got 'cuda', but PyTorch .* finds no GPU; run this on .*--toy$"):
        gpu.main()


def test_arguments_that_cannot_be_measured_are_refused(monkeypatch):
    for arguments, message in (
        (["--dtypes", "int8"], "dtypes: got 'int8'; choose from float16, bfloat16, float32"),
        (["--statics", "eager", "onnx"], "statics: got 'onnx'; choose from eager, graphs, compiled-graphs, compiled"),
        (["--statics", "graphs"], "statics: got none of them eager"),
    ):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *TOY, *arguments])
        with pytest.raises(SystemExit, match=f"^{message}"):
            gpu.main()


def test_the_script_is_named_in_its_own_commands():
    assert f"python benchmarks/{Path(gpu.__file__).name} --output gpu.jsonl --max_minutes 8" in str(gpu.__doc__)
