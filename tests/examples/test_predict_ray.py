"""The example with Ray Data: what `predict` says, file by file, on a local Ray with two workers."""

import importlib
import runpy
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from helpers.reviews import WORDS
from helpers.runs import new_model
from transformers import AutoTokenizer

from adaexit_hf import predict

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["low", "middle", "high"]


@pytest.fixture(scope="module")
def example():
    why = "needs Ray: pip install -c constraints.txt -e .[ray]"
    pytest.importorskip("ray", reason=why)
    return importlib.import_module("predict_ray")


@pytest.fixture(scope="module")
def cluster(example):
    """Started before `no_network` guards a test: Ray asks the system for the machine's address."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(EXAMPLES))  # workers find the class; a command sends it along
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token is left in the home folder
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def checkpoint(start, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    model = new_model("deebert", id2label=dict(enumerate(NAMES)), exit_threshold=0.9)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(start).save_pretrained(folder)
    return str(folder)


def rows_of(seed: int, count: int) -> dict[str, list]:
    def text(row: int) -> str:
        return " ".join(WORDS[(row * 7 + seed + place * place) % len(WORDS)] for place in range(1 + row % 5))

    return {
        "id": [f"{seed}-{row}" for row in range(count)],
        "first": [text(row) for row in range(count)],
        "second": [text(row + 3) for row in range(count)],
    }


@pytest.fixture
def inputs(example, tmp_path) -> Path:
    """Files of several pieces, of one, and of none, one of them with a column more."""
    pa, pq = example.pa, example.pq
    files = {"a": rows_of(0, 70), "deep/a": rows_of(1, 9) | {"more": [1.5] * 9}, "empty": rows_of(2, 0)}
    for name, rows in files.items():
        path = tmp_path / "inputs" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        types = {"id": pa.string(), "first": pa.string(), "second": pa.string(), "more": pa.float32()}
        table = pa.table({key: pa.array(values, types[key]) for key, values in rows.items()})
        pq.write_table(table, path, row_group_size=25)
    return tmp_path / "inputs"


@pytest.fixture
def run(example, checkpoint, inputs, tmp_path):
    def run(*more: str) -> dict[str, list[dict]]:
        """What the outputs hold."""
        arguments = ["--model_name_or_path", checkpoint, "--input", str(inputs), "--text_columns", "first", "second"]
        example.main([*arguments, "--output_dir", str(tmp_path / "out"), *more])
        files = sorted((tmp_path / "out").rglob("*.parquet"))
        return {
            str(file.relative_to(tmp_path / "out").with_suffix("")): example.pq.read_table(file).to_pylist()
            for file in files
        }

    return run


def in_process(example, seen: list):
    """Instead of `classified`: runs without Ray and records the files."""

    def classified(pieces, options):
        worker = example.Predictor(options)
        for piece in pieces:
            seen.append(Path(piece["file"]).name)
            yield worker({name: np.array([value]) for name, value in piece.items()})

    return classified


@pytest.mark.slow
# Ray sets these itself.
@pytest.mark.filterwarnings("ignore:`use_push_based_shuffle` is deprecated!:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`use_polars` is deprecated, please configure:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`use_arrow_tensor_v2` is deprecated\\.:DeprecationWarning")
def test_two_workers_say_of_every_row_what_predict_does(
    example, cluster, run, checkpoint, inputs, tmp_path, monkeypatch
):
    monkeypatch.setattr(example, "ROWS", 10)
    outputs = run("--workers", "2", "--batch_tokens", "64")
    assert list(outputs) == ["a", "deep/a", "empty"]
    model = new_model("deebert").from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    layers = set()
    for name, rows in outputs.items():
        own = example.pq.read_table(inputs / f"{name}.parquet").to_pylist()
        assert [{key: row[key] for key in list(row)[:-4]} for row in rows] == own
        if rows:
            answers = predict(model, [(row["first"], row["second"]) for row in own], tokenizer, progress=False)
            assert [row["exit_layer"] for row in rows] == answers.exit_layer.tolist()
            assert [row["label"] for row in rows] == [NAMES[label] for label in answers.logits.argmax(dim=-1)]
            for row, logits, score in zip(rows, answers.logits.tolist(), answers.exit_score.tolist(), strict=True):
                assert row["logits"] == pytest.approx(logits, abs=1e-5)
                assert row["exit_score"] == pytest.approx(score, abs=1e-5)
            layers |= {row["exit_layer"] for row in rows}
    assert len(layers) > 1  # texts exit


def test_only_what_is_not_there_is_made(example, run, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(example, "classified", in_process(example, seen))
    outputs = run()
    out = tmp_path / "out"
    assert (len(outputs["a"]), seen) == (70, ["a.parquet"] * 4)  # three row groups, and that of deep/a
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.parquet")}
    (out / "a.parquet").rename(out / "a.parquet.tmp")  # as if stopped there
    seen.clear()
    capsys.readouterr()
    assert run() == outputs
    assert seen == ["a.parquet"] * 3
    assert "2 of 3 files already exist" in capsys.readouterr().out
    assert not list(out.rglob("*.tmp"))
    changed = {file for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert changed == {out / "a.parquet"}


def test_interrupted_files_are_written_again(example, run, tmp_path, monkeypatch):
    def classified(pieces, options):
        yield next(in_process(example, [])(pieces, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "classified", classified)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.parquet.tmp"]


def test_rows_that_would_land_in_the_wrong_file_are_refused(example, run, tmp_path, monkeypatch):
    def classified(pieces, options):
        yield example.pa.concat_tables(in_process(example, [])([*pieces[:3], pieces[2]], options))

    monkeypatch.setattr(example, "classified", classified)
    with pytest.raises(RuntimeError, match=r"output: 20 rows more than 'a.parquet' has"):
        run()
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_outputs_lie_as_the_inputs_do(example, inputs, tmp_path):
    def lie(pattern: Path, output_dir: Path) -> list[str]:
        outputs = example.outputs_of(str(pattern), str(output_dir)).values()
        return [str(path.relative_to(output_dir)) for path in outputs]

    everything = ["a.parquet", "deep/a.parquet", "empty.parquet"]
    assert lie(inputs, tmp_path / "out") == everything
    assert lie(inputs / "**" / "*.parquet", tmp_path / "out") == everything
    assert lie(inputs / "deep" / "a.parquet", tmp_path / "out") == ["a.parquet"]
    assert lie(inputs, inputs / "deep") == ["a.parquet", "empty.parquet"]  # outputs are no inputs


def test_bad_arguments_are_refused_before_ray_starts(example, run, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "classified", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(ValueError, match="input: no file matches '.*nothing'; pass a folder"):
        run("--input", str(tmp_path / "nothing"))
    with pytest.raises(
        ValueError, match="text_columns: '.*a.parquet' has no column 'text'; it has id, first, second$"
    ):
        run("--text_columns", "text")
    with pytest.raises(ValueError, match=r"exit_threshold: got -1.0; .* takes a number in"):
        run("--exit_threshold", "-1")
    table = example.pq.read_table(inputs / "a.parquet")
    example.pq.write_table(table.append_column("label", table["id"]), inputs / "a.parquet")
    with pytest.raises(ValueError, match="input: '.*a.parquet' has a column 'label'; pass --prefix"):
        run()
    assert capsys.readouterr().out.count("full depth") == 0
    assert not (tmp_path / "out").exists()


def test_running_at_full_depth_is_reported(example, run, start, checkpoint, tmp_path, capsys):
    example.AutoConfig.from_pretrained(checkpoint, exit_threshold=None).save_pretrained(tmp_path / "full")
    with pytest.raises(ValueError, match="input: no file"):
        run("--model_name_or_path", str(tmp_path / "full"), "--input", "nothing")
    assert "exit_threshold: neither a flag nor the checkpoint sets one, so all layers run" in capsys.readouterr().out


def test_a_row_without_a_text_names_its_file(example, checkpoint, tmp_path):
    file = tmp_path / "holes.parquet"
    example.pq.write_table(example.pa.table({"text": ["good film", None]}), file)
    options = Namespace(
        model_name_or_path=checkpoint, cpus_per_worker=1, gpus_per_worker=0, text_columns=["text"], prefix=""
    )
    _, (piece,) = example.plan(str(file), options, [])
    with pytest.raises(ValueError, match="text_columns: '.*holes.parquet' has rows without a text"):
        example.Predictor(options)({name: np.array([value]) for name, value in piece.items()})


def test_without_ray_there_is_help_and_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    main = runpy.run_path(str(EXAMPLES / "predict_ray.py"))["main"]
    for arguments in (["--help"], ["--model_name_or_path", "out", "--input", "texts", "--output_dir", "labels"]):
        with pytest.raises(SystemExit):
            main(arguments)
    printed = capsys.readouterr()
    assert "Parquet files" in printed.out
    assert "ray: not installed; run pip install adaexit_hf[ray]" in printed.err


def test_several_labels_at_once_are_lists(example, checkpoint, start, tmp_path) -> None:
    model = new_model("deebert", id2label=dict(enumerate(NAMES)), problem_type="multi_label_classification")
    for exit in model.exits:
        exit.classifier.bias.data = example.torch.tensor([9.0, -9.0, 9.0])
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "model")
    example.pq.write_table(example.pa.table(rows_of(0, 3)), tmp_path / "a.parquet")
    options = Namespace(
        model_name_or_path=str(tmp_path / "model"), text_columns=["first"], prefix="", exit_threshold=None,
        batch_tokens=None, cpus_per_worker=1, gpus_per_worker=0,
    )  # fmt: skip
    piece = {"file": str(tmp_path / "a.parquet"), "group": 0, "start": 0, "rows": 3}
    table = example.Predictor(options)({name: np.array(value) for name, value in piece.items()})
    assert table["label"].to_pylist() == [["low", "high"]] * 3
