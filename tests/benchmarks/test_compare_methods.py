"""The comparison: what runs, what is skipped, what the tables say. Runs are a script of a few lines, save one."""

import doctest
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import compare_methods
import comparison_tables
import datasets
import pytest
import torch
from compare_methods import CONFIGS, append_line, applies, cells_of, main, parse, read_results, variant_of
from comparison_tables import is_regression
from transformers import BertConfig

from adaexit_hf import METHODS, ExitTrace, choose_threshold, cross_fitted, tradeoff_curve
from adaexit_hf.cli import train
from adaexit_hf.cli.train_model import follow_recipe
from adaexit_hf.data.tasks import Labels
from adaexit_hf.trainer.training_args import checked_overrides

# Writes what a run writes; the score is told by the seed. Fails for deebert with seed 1; notes that it ran.
FAKE = """
import json, pathlib, shutil, sys, time
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
method, seed, out = flags["--method"], int(flags["--seed"]), pathlib.Path(flags["--output_dir"])
open(LOG, "a").write(f"{flags.get('--task_name', 'none')} {method} {seed}\\n")
time.sleep(SLEEP)
if method == "deebert" and seed == 1:
    sys.exit("the reason")
depth = json.loads(flags.get("--method_config", "{}")).get("num_hidden_layers", 6)
exits = method not in ("plain",)
result = {
    "full_depth": {"f1": 0.7 + seed / 10, "accuracy": 0.5},
    "at_threshold": {"f1": 0.7 + seed / 10 - 0.1 * exits, "accuracy": 0.5},
    "mean_exit_layer": depth / (1 + exits),
    "by_exit": {str(layer): {} for layer in ([*range(1, depth + 1)] if exits else [depth])},
}
out.mkdir()
training = {"seconds": 2.5, "optimizer_steps": 7}
(out / "metrics.json").write_text(
    json.dumps({"training": training, "results": {"validation": result, "test": result}})
)
(out / "model.safetensors").write_bytes(bytes(1000))
traces = pathlib.Path(flags["--save_traces"])
traces.mkdir(parents=True)
for split in ("validation", "test"):
    shutil.copy(TRACES + ("/exits" if exits else "/one"), traces / f"{split}.safetensors")
(out / "curve.json").write_text(json.dumps([{"threshold": None, "score": 0.7}]))
"""


def trace_of_four() -> ExitTrace:
    """Two exits; the first is wrong for the last text, of which it is not sure."""
    labels = torch.tensor([0, 1, 0, 1])
    first = torch.eye(2)[[0, 1, 0, 0]]
    scores = torch.tensor([[0.9, 0.9], [0.9, 0.9], [0.9, 0.9], [0.2, 0.9]])
    return ExitTrace(torch.stack([first, torch.eye(2)[labels]], dim=1), scores, labels, (1, 2), "gt")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The cells that ran so far, when the job is the script above; `ran.sleep(seconds)` makes it slow."""
    trace = trace_of_four()
    trace.save(tmp_path / "traces" / "exits")
    replace(trace, logits=trace.logits[:, 1:], scores=trace.scores[:, 1:], exit_layers=(2,)).save(
        tmp_path / "traces" / "one"
    )
    log = tmp_path / "ran"
    job = tmp_path / "job.py"
    monkeypatch.setattr(compare_methods, "JOB", job)

    def write(seconds: float) -> None:
        names = {"LOG": repr(str(log)), "SLEEP": str(seconds), "TRACES": repr(str(tmp_path / "traces"))}
        job.write_text(functools.reduce(lambda text, name: text.replace(name, names[name]), names, FAKE))

    def seen() -> list[str]:
        return sorted(log.read_text().split("\n")[:-1]) if log.exists() else []

    seen.sleep = write
    write(0)
    before = signal.getsignal(signal.SIGTERM)
    yield seen
    signal.signal(signal.SIGTERM, before)


def flags(tmp_path: Path, *more: str, methods=("plain", "berxit"), names=("mrpc",), seeds: int = 2) -> list[str]:
    return [
        "--datasets", *names, "--methods", *methods, "--seeds", str(seeds), "--model_name_or_path", "some/encoder",
        "--results", str(tmp_path / "results.jsonl"), "--jobs", "2", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("module", [compare_methods, comparison_tables])
def test_the_examples_in_the_docstrings(module):
    tested = doctest.testmod(module)
    assert (tested.failed, tested.attempted > 1) == (0, True)


def test_every_cell_is_one_line_with_all_that_was_measured(ran, tmp_path):
    assert main(flags(tmp_path, "--", "--bf16")) == 0
    assert ran() == ["mrpc berxit 0", "mrpc berxit 1", "mrpc plain 0", "mrpc plain 1"]
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    row = next(row for row in rows if (row["method"], row["seed"]) == ("berxit", 1))
    assert (row["dataset"], row["metric"], row["model"]) == ("mrpc", "f1", "some/encoder")
    assert row["results"]["validation"]["full_depth"]["f1"] == pytest.approx(0.8)
    assert row["curve"] == [{"threshold": None, "score": 0.7}]
    assert set(row["versions"]) == {"torch", "transformers", "adaexit_hf"}
    assert {"--bf16", "--learning_rate", "5e-5", "--seed", "1"} <= set(row["settings"])
    assert row["seconds"] >= 0 and row["machine"]["threads"] and isinstance(row["machine"]["cpu_flags"], list)
    assert (row["training"], row["bytes"]) == ({"seconds": 2.5, "optimizer_steps": 7}, 1000)
    assert [point[2] for point in row["other_curves"]["test"]] == [1.0, 1.25, 2.0]
    plain = next(row for row in rows if row["method"] == "plain")
    assert (plain["points"], plain["other_curves"]) == ({}, {})


def test_points_are_scored_on_rows_that_chose_no_threshold():
    trace = trace_of_four()
    eight = trace.take(torch.arange(4).repeat(2))
    points = compare_methods.points_of({"validation": eight, "test": trace}, "accuracy")
    assert [{**point, "thresholds": 0} for point in points["validation"]] == [
        {"max_drop": drop, "score": honest.scores["accuracy"], "mean_layers": honest.mean_layers, "thresholds": 0}
        for drop in compare_methods.MAX_DROPS
        for honest in [cross_fitted(eight, ["accuracy"], drop)]
    ] + [
        {"max_layers": layers, "score": honest.scores["accuracy"], "mean_layers": honest.mean_layers, "thresholds": 0}
        for layers in (1, 2)
        for honest in [cross_fitted(eight, ["accuracy"], max_layers=layers)]
    ]
    chosen = choose_threshold(tradeoff_curve(eight, "accuracy"), 0.01).threshold
    (point,) = (point for point in points["test"] if point.get("max_drop") == 0.01)
    assert point == {"max_drop": 0.01, "score": 1.0, "mean_layers": 1.25, "thresholds": [chosen]}


def test_depths_that_no_threshold_reaches_have_no_point():
    trace = trace_of_four()
    late = replace(trace, scores=torch.zeros(4, 2), bounds=(0.0, 1.0))  # nobody leaves early
    points = compare_methods.points_of({"validation": late}, "accuracy")["validation"]
    assert [point["max_layers"] for point in points if "max_layers" in point] == [2]


@pytest.mark.parametrize(("layers", "static"), [(6, [2, 3, 4, 6]), (12, [3, 4, 6, 8, 12])])
def test_the_full_grid(tmp_path, layers, static, capsys):
    BertConfig(num_hidden_layers=layers).save_pretrained(tmp_path / "encoder")
    base = ["--model_name_or_path", str(tmp_path / "encoder"), "--results", "r", "--grid", "full"]
    options, rest = parse(base)
    cells = cells_of(options, rest)
    assert (len(options.datasets), options.seeds) == (9, 5)
    assert [name for name in options.methods if name.startswith("static")] == [f"static-{k}" for k in static]
    recipes = {cell.method: compare_methods.grouped(cell.settings).get("--recipe") for cell in cells}
    assert (recipes["plain"], recipes["fastbert"], recipes["fastbert+head"]) == (None, ["paper"], ["recommended"])
    assert len({(cell.dataset, cell.settings) for cell in cells}) == len(cells)  # none is the same as another
    for cell in {cell.method: cell for cell in cells}.values():  # every method's flags fit each other
        arguments, training = train.parse([*cell.settings, *cell.places, "--output_dir", "out", "--use_cpu", "true"])
        labels = Labels(None if is_regression(cell.dataset) else ["no", "yes"])
        follow_recipe(arguments, training, labels, BertConfig(num_hidden_layers=layers))
        if cell.method != "plain":
            sizes = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
            depth = arguments.method_config.pop("num_hidden_layers", layers)
            config = CONFIGS[arguments.method](BertConfig(num_hidden_layers=depth, **sizes), **arguments.method_config)
            model = METHODS[arguments.method](config)
            checked_overrides(training, [stage.name for stage in model.stages])
    assert cells[0].seed == 0 and cells[-1].seed == 4  # a stopped grid has all methods
    with pytest.raises(SystemExit):
        parse([*base, "--seeds", "2"])
    assert "seeds: got 2 with --grid full, which sets it; leave it out" in capsys.readouterr().err


def test_finished_cells_are_skipped(ran, tmp_path, capsys):
    main(flags(tmp_path, seeds=1))
    main(flags(tmp_path))
    assert ran() == ["mrpc berxit 0", "mrpc berxit 1", "mrpc plain 0", "mrpc plain 1"]
    assert "4 cells, 2 to run" in capsys.readouterr().out


def test_other_places_are_no_other_settings(ran, tmp_path):
    main(flags(tmp_path, "--", "--bf16", "--use_cpu"))
    arguments = flags(tmp_path, "--data_root", "elsewhere", "--", "--use_cpu", "--bf16")
    main(["/folder/some/encoder" if argument == "some/encoder" else argument for argument in arguments])
    assert len(ran()) == 4


def test_a_run_in_another_precision_is_not_run_again(ran, tmp_path, capsys):
    main(flags(tmp_path, "--", "--use_cpu"))
    main(flags(tmp_path, "--", "--bf16"))
    assert len(ran()) == 4
    assert "4 cells, 0 to run" in capsys.readouterr().out


def test_changed_settings_run_again_and_only_they_are_in_the_table(ran, tmp_path, capsys):
    main(flags(tmp_path))
    assert main(flags(tmp_path, "--", "--num_train_epochs", "1")) == 0
    assert len(ran()) == 8
    main(flags(tmp_path, "--table_only", "--", "--num_train_epochs", "2"))
    assert "| plain | not run |" in capsys.readouterr().out
    assert len(ran()) == 8


def test_a_half_written_line_is_left_out_and_its_cell_runs_again(ran, tmp_path):
    results = tmp_path / "results.jsonl"
    main(flags(tmp_path))
    whole = results.read_text()
    results.write_text(whole[:-20])
    with pytest.warns(UserWarning, match=r"line 4: incomplete line, ignored"):
        assert main(flags(tmp_path)) == 0
    assert len(ran()) == 5
    with pytest.warns(UserWarning, match="line 4"):
        assert len(read_results(results)) == 4


def test_a_line_is_written_whole_after_a_half_one(tmp_path):
    path = tmp_path / "results"
    append_line(path, {"a": 1})
    path.write_text(path.read_text() + '{"b')
    append_line(path, {"c": 2})
    assert path.read_text() == '{"a": 1}\n{"b\n{"c": 2}\n'


def test_a_failed_cell_stops_no_other(ran, tmp_path, capsys):
    assert main(flags(tmp_path, methods=("deebert", "berxit"))) == 1
    said = capsys.readouterr()
    assert "mrpc deebert seed 1: failed" in said.out
    assert "| deebert | 70.0 -> 60.0 (n=1, failed: 1) | 3.00 | 50 % |" in said.out
    assert "| berxit | 75.0 ± 63.5 -> 65.0 ± 63.5 | 3.00 ± 0.00 | 50 ± 0 % |" in said.out
    assert "the reason" in said.err
    assert "the reason" in (tmp_path / "results-mrpc-deebert-seed-1.log").read_text()
    assert main(flags(tmp_path, methods=("deebert", "berxit"))) == 1
    assert len(ran()) == 5


def test_where_no_seed_worked_the_table_says_so(ran, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare_methods, "JOB", tmp_path / "missing.py")
    assert main(flags(tmp_path, methods=("plain",))) == 1
    assert "| plain | failed |  |  |" in capsys.readouterr().out


def test_what_does_not_apply_is_not_run(ran, tmp_path, capsys):
    methods = ("plain", "deebert", "berxit", 'berxit:{"exit_criterion": "entropy"}')
    assert main(flags(tmp_path, methods=methods, names=("stsb",), seeds=1)) == 0
    assert ran() == ["stsb berxit 0", "stsb plain 0"]
    assert '| deebert | - |  |  |\n| berxit | 70.0 -> 60.0 (n=1) | 3.00 | 50 % |\n| berxit:{"exit' in (
        capsys.readouterr().out
    )


def test_only_classes_have_a_confidence():
    assert applies(variant_of('berxit:{"exit_criterion": "learned"}'), "sick")
    assert applies(variant_of('berxit:{"exit_criterion": "patience"}'), "sick")
    assert not applies(variant_of('berxit:{"exit_criterion": "confidence"}'), "sick")
    assert applies(variant_of('berxit:{"exit_criterion": "confidence"}'), "mrpc")


def test_depths_from_classes_do_not_apply_to_regression(ran, tmp_path, capsys):
    assert main(flags(tmp_path, methods=("plain", "depth-adaptive"), names=("stsb",), seeds=1)) == 0
    assert ran() == ["stsb plain 0"]
    assert "| depth-adaptive | - |  |  |" in capsys.readouterr().out
    assert applies(variant_of("depth-adaptive"), "mrpc")
    assert applies(variant_of('depth-adaptive:{"depth_source": "reconstruction"}'), "stsb")


@pytest.mark.parametrize(
    "config",
    ['{"exit_layers": [2, 4]}', '{"exit_threshold": [0.9, 0.8, 0.7]}', '{"num_hidden_layers": 4, "exit_layers": [4]}'],
)
def test_settings_of_encoders_of_any_depth_apply(config):
    assert applies(variant_of(f"berxit:{config}"), "mrpc")


def test_what_only_regression_knows_is_an_error_elsewhere(tmp_path, capsys):
    name = 'pabee:{"patience_tolerance": 0.5}'
    assert applies(variant_of(name), "stsb")
    with pytest.raises(SystemExit):
        parse(flags(tmp_path, methods=("plain", name), names=("stsb", "mrpc")))
    assert 'methods: pabee with {"patience_tolerance": 0.5}: patience_tolerance: got 0.5' in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["mrpc", "stsb"])
@pytest.mark.parametrize("config", ['{"fine_tuning": "jiont"}', '{"exit_layer": [1]}'])
def test_a_config_that_nobody_takes_is_an_error_at_once(tmp_path, capsys, dataset, config):
    with pytest.raises(SystemExit):
        parse(flags(tmp_path, methods=(f"berxit:{config}",), names=(dataset,)))
    assert f"methods: berxit with {config}: " in capsys.readouterr().err


def test_a_row_may_have_an_encoder_of_its_own(ran, tmp_path, capsys):
    config = '{"num_hidden_layers": 2}'
    methods = ("plain", "plain@/folder/distilbert/distilbert-base", f"plain@other/encoder:{config}")
    assert main(flags(tmp_path, methods=methods, seeds=1)) == 0
    rows = {row["method"]: row for row in read_results(tmp_path / "results.jsonl").values()}
    assert [rows[name]["model"] for name in methods] == [
        "some/encoder",
        "distilbert/distilbert-base",
        "other/encoder",
    ]
    assert rows[methods[1]]["places"][:2] == ["--model_name_or_path", "/folder/distilbert/distilbert-base"]
    assert rows[methods[2]]["results"]["validation"]["mean_exit_layer"] == 2
    assert "| plain@/folder/distilbert/distilbert-base | 70.0 (n=1) |" in capsys.readouterr().out


def test_the_first_layers_alone_save_against_the_whole_encoder(ran, tmp_path, capsys):
    main(flags(tmp_path, methods=("plain", "limit-2")))
    said = capsys.readouterr().out
    assert "| method | mrpc (f1) | layer of 6 | saved |" in said
    assert "| plain | 75.0 ± 63.5 | 6.00 ± 0.00 | 0 ± 0 % |" in said
    assert "| limit-2 | 75.0 ± 63.5 | 2.00 ± 0.00 | 67 ± 0 % |" in said
    assert said.index("two texts, validation") < said.index("two texts, test")


def test_data_sets_of_a_kind_share_a_table(ran, tmp_path, capsys):
    main(flags(tmp_path, names=("mrpc", "trec", "rte"), methods=("plain",), seeds=1))
    said = capsys.readouterr().out
    assert "| method | mrpc (f1) | layer of 6 | saved | rte (f1) | layer of 6 | saved |" in said
    assert "one text, test\n\n| method | trec (f1) |" in said


def test_the_interval_is_that_computed_by_hand():
    # mean 4, deviation 2, t(0.975, 3) = 3.182446: 4 ± 3.182446 * sqrt(20 / 3) / 2
    mean, half = comparison_tables.interval([1.0, 3.0, 5.0, 7.0])
    assert (mean, half) == (4.0, pytest.approx(3.182446 * (20 / 3) ** 0.5 / 2, abs=1e-5))


def test_settings_of_methods_and_data_sets():
    def settings(name: str, dataset: str, *more: str) -> dict[str, list[str]]:
        options, rest = parse(
            ["--datasets", dataset, "--methods", name, "--seeds", "1", "--model_name_or_path", "m", "--results", "r",
             "--exit_pooling", "mean", "--", *more]
        )  # fmt: skip
        (cell,) = cells_of(options, rest)
        return compare_methods.grouped([*cell.settings, *cell.places])

    dact = settings("dact-bert", "sst2")
    assert json.loads(*dact["--method_config"]) == {"exit_pooling": "mean", "halting_bias": 0, "ponder_cost": 0.1}
    assert (dact["--max_train_samples"], dact["--task_name"]) == (["10000"], ["sst2"])
    assert json.loads(*settings("deebert", "mrpc")["--stage_overrides"]) == {"exits": {"learning_rate": 1e-3}}
    assert json.loads(*settings("fastbert", "mrpc")["--stage_overrides"]) == {"distil": {"learning_rate": 5e-4}}
    assert "--calibrate" in settings("right-tool", "mrpc") and "--calibrate" not in settings("berxit", "mrpc")
    assert "--method_config" not in settings("plain", "mrpc")
    assert "--method_config" not in settings("layerdrop", "mrpc")
    assert settings("layerdrop", "stsb")["--layer_drop"] == ["0.2"]
    trec = settings("plain", "trec", "--max_train_samples=7", "--num_train_epochs", "1")
    assert trec["--label_column"] == ["coarse_label"] and trec["--validation_fraction"] == ["0.1"]
    assert (trec["--max_train_samples"], trec["--num_train_epochs"]) == (["7"], ["1"])
    assert settings("berxit", "sick")["--text_columns"] == ["sentence_A", "sentence_B"]


def test_depths_by_reconstruction_come_from_a_masked_language_model_per_data_set(ran, tmp_path, capsys):
    arguments = flags(tmp_path, methods=("plain", 'depth-adaptive:{"depth_source": "reconstruction"}'), seeds=1)
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "token_depths: missing; " in capsys.readouterr().err
    assert main([*arguments, "--token_depths", "depths"]) == 0
    rows = {row["method"].split(":")[0]: row["places"] for row in read_results(tmp_path / "results.jsonl").values()}
    assert rows["depth-adaptive"][-2:] == ["--token_depths_model", "depths/mrpc/masked-lm"]
    assert "--token_depths_model" not in rows["plain"]


def test_every_run_keeps_its_traces_in_a_folder_of_its_own(ran, tmp_path):
    methods = ("berxit", 'berxit:{"fine_tuning": "joint"}')
    assert main([*flags(tmp_path, methods=methods), "--traces", str(tmp_path / "kept")]) == 0
    rows = read_results(tmp_path / "results.jsonl").values()
    folders = {row["places"][row["places"].index("--save_traces") + 1] for row in rows}
    assert len(folders) == len(rows) and any("/kept/mrpc-berxit-0-" in folder for folder in folders)
    assert main([*flags(tmp_path, methods=methods)]) == 0  # where traces are kept is no setting
    assert len(read_results(tmp_path / "results.jsonl")) == len(rows)


def test_one_head_for_all_methods_with_exits():
    assert variant_of("static-3", exit_head="pair").config["exit_head"] == "pair"
    assert variant_of("deebert", exit_head="pair").config == {"exit_head": "pair"}
    assert variant_of("plain", exit_head="pair").config == {}


@pytest.mark.parametrize("name", ["plain+head", "limit-3+paper", "static-3+head", "deebert+paper", "recommended+head"])
def test_an_addition_that_a_method_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=r"methods: got '.*'; write \+head after a paper's method with exits"):
        variant_of(name)


def test_folders_in_place_of_the_hub():
    assert compare_methods.places_of("mrpc", "m", "data")[-2:] == ("--dataset_name", "data/glue")
    assert compare_methods.places_of("sick", "m", "data")[2:] == ("--task_name", "sick", "--dataset_name", "data/sick")
    assert "--label_column" not in compare_methods.places_of("trec", "m", "data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--methods", "bertxit"],
            "methods: got 'bertxit'; choose from berxit, berxit-exits-1e-3, berxit-joint,",
        ),
        (["--", "--seed", "3"], "flags after --: got --seed, which this script sets itself"),
        (["--", "3"], "flags after --: got '3' first; start with a flag"),
        (["--jobs", "0"], "seeds, jobs: got 2, 0; pass 1 or more"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse([*flags(tmp_path), *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_stop_loses_only_what_is_unfinished_and_leaves_no_process(ran, tmp_path):
    main(flags(tmp_path, seeds=1))
    ran.sleep(600)
    path = os.pathsep.join([str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    code = f"import compare_methods, pathlib, sys; compare_methods.JOB = pathlib.Path({str(compare_methods.JOB)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; sys.exit(compare_methods.main())", *flags(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    wait_until(lambda: len(ran()) == 4)
    process.terminate()
    assert process.wait(30) == 130
    assert not list(tmp_path.glob("cell-*"))
    assert len(read_results(tmp_path / "results.jsonl")) == 2
    assert str(compare_methods.JOB) not in commands()


def wait_until(happened, seconds: float = 120) -> None:
    for _ in itertools.takewhile(lambda _: not happened(), range(int(seconds * 20))):
        time.sleep(0.05)
    assert happened()


def commands() -> str:
    """The command lines of all processes."""
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_real_run(start, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_methods, "PAPER", "")  # the recipe is no part of this test
    columns = {"text": ["a good film", "very bad film"] * 40, "label": [1, 0] * 40}
    for split in ("train", "test"):
        (tmp_path / "trec").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "trec" / f"{split}-0.parquet")
    arguments = flags(tmp_path, names=("trec",), methods=("pabee",), seeds=1)
    arguments[arguments.index("some/encoder")] = start
    assert main([*arguments, "--data_root", str(tmp_path), "--", "--max_steps", "1", "--use_cpu"]) == 0
    (row,) = read_results(tmp_path / "results.jsonl").values()
    assert {split: result["samples"] for split, result in row["results"].items()} == {"validation": 8, "test": 80}
    assert len(row["results"]["validation"]["cross_fitted_thresholds"]) == 2
    assert row["training"]["optimizer_steps"] == 1 and row["bytes"] > 10_000
    assert {point["max_layers"] for point in row["points"]["test"] if "max_layers" in point} <= {1, 2, 3}
    assert row["other_curves"]["test"][-1][0] is None  # full depth
