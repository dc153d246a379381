"""The benchmark: plans, ratios from given times, checked answers, a file that continues, the command line."""

import json
import sys
from pathlib import Path

import inference as benchmark_inference
import pytest
import torch
from helpers.fresh import run as run_in_new_process
from helpers.tiny import build, encoder_config
from helpers.words import new_tokenizer

from adaexit_hf.benchmark import timing
from adaexit_hf.benchmark.planted import planned_layers, planted_model, planted_rows, text_lengths
from adaexit_hf.benchmark.records import find_record, read_lines
from adaexit_hf.benchmark.runs import FROM_TEXTS, RUNS, AnswersDifferError, check_output, make_run
from adaexit_hf.benchmark.timing import cells, measure, planted_workload, workload

EXAMPLE = Path(__file__).parents[2] / "benchmarks" / "inference.py"
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "very", "LABEL"]
SHAPE = ["--layers", "3", "--hidden_size", "16", "--heads", "2", "--intermediate_size", "16", "--vocab_size", "40"]
SHAPE += ["--device", "cpu", "--threads", "1"]


@pytest.fixture
def planted():
    model = planted_model(encoder_config("bert", max_position_embeddings=512), torch.float32, "cpu")
    return planted_workload(model, 12, 1.5, "short")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A tiny DeeBERT that exits by entropy, with its tokenizer, and texts."""
    folder = tmp_path_factory.mktemp("checkpoint")
    build("deebert", exit_threshold=0.9).save_pretrained(folder)
    new_tokenizer(WORDS[4:]).save_pretrained(folder)
    texts = [" ".join(WORDS[3 + (i + j * i) % 6] for j in range(1 + i % 7)) for i in range(12)]
    lines = [json.dumps({"one": text, "two": "very bad film"}) for text in texts]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.mark.parametrize("saving", [1.0, 1.5, 2.0, 3.0, 7.3, 12.0])
@pytest.mark.parametrize("texts", [1, 7, 1000])
def test_a_plan_has_the_requested_mean(texts, saving):
    layers = planned_layers(texts, 12, saving)
    assert len(layers) == texts
    assert set(layers) <= set(range(1, 13))
    assert abs(sum(layers) - texts * 12 / saving) <= 0.5
    assert layers == planned_layers(texts, 12, saving)


def test_exits_are_spread_over_the_layers():
    for saving in (1.5, 2.0, 3.0):
        layers = planned_layers(1000, 12, saving)
        assert set(layers) == set(range(1, 13))
        assert max(layers.count(layer) for layer in range(1, 13)) < 300
        assert layers != planned_layers(1000, 12, saving, seed=1)
    assert set(planned_layers(1000, 12, 1.0)) == {12}


@pytest.mark.parametrize("saving", [0.9, 12.5, float("nan")])
def test_a_saving_that_layers_cannot_give_is_refused(saving):
    with pytest.raises(ValueError, match="saving: got .* a number from 1 to 12"):
        planned_layers(5, 12, saving)


def test_lengths_lie_around_what_was_asked():
    short, mixed = torch.tensor(text_lengths(4000, "short")).float(), text_lengths(4000, "mixed")
    assert (short.min().item(), short.max().item() <= 128) == (5, True)
    assert short.mean().item() == pytest.approx(53, abs=1)
    assert short.std().item() == pytest.approx(16, abs=1)
    assert (min(mixed), max(mixed) > 500) == (1, True)
    long = torch.tensor(text_lengths(4000, "long")).float()
    assert (long.min().item() >= 256, long.max().item() <= 512) == (True, True)
    assert long.mean().item() == pytest.approx(400, abs=3)
    with pytest.raises(ValueError, match="lengths: got 'longer'"):
        text_lengths(1, "longer")


def test_a_planted_model_exits_as_planned_and_computes_its_exits(planted):
    rows = list(planted_rows(planted.plan, [4] * 12, 64))
    output = planted.model(torch.tensor([row["input_ids"] for row in rows]))
    assert output.exit_layer.tolist() == planted.plan
    assert planted.layer_speed_up == 1.5
    tokens = [len(row["input_ids"]) for row in planted.rows]
    ran = sum(count * layer for count, layer in zip(tokens, planted.plan, strict=True))
    assert planted.token_layer_speed_up == pytest.approx(3 * sum(tokens) / ran)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in FROM_TEXTS])
def test_every_run_gives_the_answers_in_order(planted, name):
    for ready in (True, False):
        with torch.inference_mode():
            answer = make_run(planted, name, 5, 100, ready)()
        check_output(name, answer, planted.expected)
        assert (answer[1] is None) == name.startswith("static")


def test_wrong_answers_are_reported(planted):
    expected = planted.expected
    logits, layers = expected.logits, expected.exit_layer
    later, other = layers.clone(), logits.clone()
    later[4] += 1
    other[7, 0] += 0.01
    with pytest.raises(AnswersDifferError, match=r"it: 1 of 12 texts .* text 4: (\d) instead of \d"):
        check_output("it", (logits, later), expected)
    with pytest.raises(AnswersDifferError, match=r"it: logits of 1 of 12 .* text 7: by 0\.01"):
        check_output("it", (other, layers), expected)
    with pytest.raises(AnswersDifferError, match="it: logits"):
        check_output("it", (torch.full_like(logits, torch.nan), layers), expected)
    for name in ("static", "pipeline-full-depth"):
        with pytest.raises(AnswersDifferError, match=f"{name}: logits"):
            check_output(name, (expected.full_depth.flip(0), None), expected)
    near = expected._replace(unambiguous=torch.arange(12) != 4)
    check_output("it", (logits, later), near)
    planted.model.exits[0].classifier.bias.data += 1
    with pytest.raises(AnswersDifferError, match="predict: logits"):
        measure(planted, "predict", "static-tokens", 0, 100, rounds=1)


def test_a_stock_model_with_other_answers_is_reported(planted, monkeypatch):
    twin = timing.stock_twin(planted.model)
    twin.classifier.bias.data += 1
    monkeypatch.setattr(timing, "stock_twin", lambda model: twin)
    with pytest.raises(AnswersDifferError, match="static: logits of 12"):
        planted_workload(planted.model, 12, 1.5, "short")


def test_runs_take_turns_after_a_warm_up_and_ratios_are_of_neighbours(planted, monkeypatch):
    clock, called = iter([9.0, 9.0, 4.0, 2.0, 6.0, 4.0, 3.0, 1.0]), []
    monkeypatch.setattr(timing, "timed", lambda run, device: (next(clock), run()))
    make = timing.make_run

    def noted(work, name, *rest):
        run = make(work, name, *rest)
        return lambda: called.append(name) or run()

    monkeypatch.setattr(timing, "make_run", noted)
    found = measure(planted, "in-model", "static", 5, 0, rounds=3)
    assert called == ["static", "in-model"] * 4
    assert found["speed_up"] == [1.75, 2.0, 2.5]
    assert found["eta"] == pytest.approx([1.75 / 1.5, 2.0 / 1.5, 2.5 / 1.5])
    assert found["seconds"] == [[4.0, 2.0], [6.0, 4.0], [3.0, 1.0]]


def test_two_runs_that_exit_save_no_layers_against_each_other(planted):
    found = measure(planted, "predict", "authors", 0, 100, rounds=1)
    assert (found["layer_speed_up"], found["eta"]) == (1.0, found["speed_up"])


def test_a_stock_classifier_with_another_head_has_to_agree_with_itself():
    rows = [{"input_ids": [1, 5 + place, 6]} for place in range(4)]
    work = workload(build("deebert", exit_threshold=0.9, exit_pooling="mean"), rows)
    assert not measure(work, "predict", "static", 2, 9, rounds=1)["same_head"]
    with pytest.raises(AnswersDifferError, match="static: logits of 4"):
        check_output("static", (work.expected.full_depth, None), work.expected)


def test_pairs_are_checked():
    with pytest.raises(ValueError, match="pairs: got 'predict/fast'; pass candidate/baseline, two of static,"):
        cells(["predict/fast"], [1], [1024])
    assert cells(["predict/static", "predict/authors"], [1, 8], [9]) == [
        ("predict", "static", 1, 9), ("predict", "static", 8, 9), ("predict", "authors", 0, 9)
    ]  # fmt: skip


def test_texts_need_a_checkpoint_and_the_authors_loop_entropy(planted):
    with pytest.raises(ValueError, match="run: 'pipeline' starts from texts"):
        make_run(planted, "pipeline", 1, 0, True)
    rows = [{"input_ids": [1, 5, 6]}, {"input_ids": [1, 7]}]
    model = build("berxit", exit_threshold=0.6)
    with pytest.raises(ValueError, match="run: 'authors' .* exit_criterion='entropy'"):
        make_run(workload(model, rows), "authors", 1, 0, True)
    with pytest.raises(ValueError, match="exit_threshold: got None"):
        workload(build("deebert"), rows)


def test_a_last_line_that_was_cut_off_is_measured_again(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    path.write_text('{"a": 1}\n{"a": 2, "b')
    assert read_lines(path) == [{"a": 1}]
    assert path.read_text() == '{"a": 1}\n'
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(ValueError, match="output: line 2 of .* is not JSON"):
        read_lines(path)
    assert find_record([{"a": 1, "eta": 1.0}], {"a": 1}) == {"a": 1, "eta": 1.0}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def call(*more: str) -> list[dict]:
        output = tmp_path / "speed.jsonl"
        monkeypatch.setattr(sys, "argv", ["run", "--output", str(output), *SHAPE, "--rounds", "2", *more])
        benchmark_inference.main()
        return [json.loads(line) for line in output.read_text().splitlines()]

    return call


def test_the_command_measures_what_is_missing(run, tmp_path, capsys, monkeypatch):
    small = ["--texts", "6", "--batch_sizes", "1", "4", "--savings", "1", "1.5", "--batch_tokens", "100"]
    lines = run(*small)
    assert len(lines) == 2 * (3 * 2 + 3)
    assert {line["layer_speed_up"] for line in lines if line["candidate"] == "in-model"} == {1.0, 1.5}
    first = lines[0]
    assert {"cpu", "threads", "torch", "transformers", "commit", "dtype"} <= first.keys()
    printed = capsys.readouterr().out
    assert "| run | against | batch | dtype | layers | speed-up (quartiles) | eta (quartiles) | overhead |" in printed
    assert f"| in-model | static | 1 | float32 | 1.00x | {first['speed_up'][1]:.2f} (" in printed
    monkeypatch.setattr(benchmark_inference, "measure", lambda *_: pytest.fail("measured again"))
    path = tmp_path / "speed.jsonl"
    assert run(*small) == lines
    monkeypatch.undo()
    path.write_text(path.read_text()[:-9])
    assert [line["candidate"] for line in run(*small)] == [line["candidate"] for line in lines]
    assert len(run(*small[:-6], "--savings", "1.5", "--pairs", "one-by-one/static", "--seed", "1")) == len(lines) + 1


def test_a_checkpoint_is_measured_on_texts(run, checkpoint):
    texts = f"{checkpoint}/texts.jsonl"
    small = ["--model_name_or_path", checkpoint, "--text_file", texts, "--batch_sizes", "4"]
    lines = run(*small, "--text_columns", "one")
    assert len(lines) == 6
    assert 1 < lines[0]["layer_speed_up"] < 3
    assert lines[0]["same_head"]
    assert (lines[0]["texts"], lines[0]["exit_threshold"], lines[0]["texts_near_threshold"]) == (12, 0.9, 0)
    pairs = ["--pairs", "predict-texts/pipeline", "predict-texts/pipeline-full-depth", "authors/static"]
    assert len(run(*small, "--text_columns", "one", "two", *pairs)) == 9
    assert len(run(*small, "--text_columns", "one", "--exit_threshold", "0.5", *pairs[:2])) == 10


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_measured(run, dtype):
    lines = run(
        "--texts", "6", "--batch_sizes", "4", "--savings", "2", "--pairs", "in-model/static", "--dtypes", dtype
    )
    assert [line["dtype"] for line in lines] == [dtype]


def test_bad_arguments_of_the_command_are_refused(run, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="dtypes: got 'int3'"):
        run("--dtypes", "int3")
    with pytest.raises(ValueError, match="text_file: got None"):
        run("--model_name_or_path", checkpoint)
    with pytest.raises(
        ValueError, match="text_columns: row 0 of .* has no text in sentence, .*its columns are one, two"
    ):
        run(
            "--model_name_or_path",
            checkpoint,
            "--text_file",
            f"{checkpoint}/texts.jsonl",
            "--text_columns",
            "sentence",
        )


def test_plots(run, tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    run("--texts", "4", "--batch_sizes", "2", "--plot", str(tmp_path / "speed.png"))
    assert (tmp_path / "speed.png").stat().st_size > 1000


@pytest.mark.slow
def test_growth_is_measured_in_a_process_of_its_own_and_nothing_needs_datasets(tmp_path):
    more = ["--output", str(tmp_path / "speed.jsonl"), *SHAPE, "--grow", "10", "--savings", "1.5"]
    block = f"import sys, runpy; sys.modules['datasets'] = None; sys.argv = {[str(EXAMPLE), *more]}; "
    printed = run_in_new_process(block + "runpy.run_path(sys.argv[0], run_name='__main__')")
    (line,) = read_lines(tmp_path / "speed.jsonl")
    assert line["peak_memory"] >= line["memory_before"] > 2**26
    assert "| texts | dtype | ms per text |" in printed
