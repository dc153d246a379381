"""The results page: its numbers are those of the runs, and the page in the repository is up to date."""

import doctest
import json
import shutil
from pathlib import Path

import pytest
import readme_figure
import results_claims
import results_figures
import results_page
import results_savings
from results_figures import by_method

from adaexit_hf.evaluation.curves import CurvePoint
from adaexit_hf.visualization.figures import comparison_figure

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks"


def line(method: str, seed: int, curve: list[tuple[float | None, float, float]], dataset: str = "trec") -> dict:
    """A run of two layers: its curve as (threshold, score, mean layers); it exits at the first of them.

    The test set is 10 points harder at full depth, and 12 with exits.
    """
    (threshold, score, layers), (_, full, _) = curve[0], curve[-1]
    result = {
        "full_depth": {"accuracy": full}, "at_threshold": {"accuracy": score}, "mean_exit_layer": layers,
        "exit_threshold": threshold, "by_exit": {"1": {"accuracy": 0.5}, "2": {"accuracy": full}},
        "exit_histogram": {"1": 1, "2": 1},
    }  # fmt: skip
    test = result | {"full_depth": {"accuracy": full - 0.1}, "at_threshold": {"accuracy": score - 0.12}}
    points = [CurvePoint(threshold, score, layers, 1 - layers / 2)._asdict() for threshold, score, layers in curve]
    return {
        "dataset": dataset, "method": method, "seed": seed, "model": "some/encoder", "metric": "accuracy",
        "settings": ["--method", method, "--seed", str(seed)],
        "results": {"validation": result, "test": test}, "curve": points, "seconds": 60.0,
        "versions": {"torch": "2"}, "machine": {"processor": "one", "threads": "1", "gpu": "none"},
    }  # fmt: skip


def exits(method: str, gain: float = 0.0, **options: str) -> list[dict]:
    """Three seeds, a curve from 1 to 2 layers that rises from 60 % + gain to 80 % + gain + seed."""
    return [
        line(method, seed, [(0.5, 0.6 + gain, 1.0), (None, 0.8 + gain + seed / 100, 2.0)], **options)
        for seed in range(3)
    ]


def written(folder: Path, lines: list[dict], *more: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "lines.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert results_page.main([str(folder / "lines.jsonl"), *more]) == 0
    return (folder / "RESULTS.md").read_text()


@pytest.mark.parametrize("module", [results_claims, results_figures, results_page])
def test_the_examples_in_the_docstrings(module):
    tested = doctest.testmod(module)
    assert (tested.failed, tested.attempted > 0) == (0, True)


def test_the_pages_in_the_repository_are_up_to_date(tmp_path):
    cards = [ROOT / "model_cards" / f"{method}.md" for method in results_figures.PAPERS]
    pages = [ROOT / "README.md", ROOT / "docs" / "results.md", *cards]
    copies = [Path(shutil.copy(page, tmp_path)) for page in pages]
    runs, speed = (shutil.copy(RESULTS / name, tmp_path) for name in ("comparison.jsonl", "inference_speed.jsonl"))
    assert results_page.main([str(runs), "--speed", str(speed), "--pages", *map(str, copies)]) == 0
    for page in [RESULTS / "RESULTS.md", *pages]:
        assert (tmp_path / page.name).read_text() == page.read_text(), "run the command in benchmarks/results_page.py"
    assert {path.name for path in tmp_path.glob("*.svg")} == {path.name for path in RESULTS.glob("results_*.svg")}


def test_the_readmes_chart_is_up_to_date(tmp_path):
    assert readme_figure.main([str(RESULTS / "comparison.jsonl"), "--output", str(tmp_path)]) == 0
    assert (tmp_path / readme_figure.NAME).read_bytes() == (RESULTS / readme_figure.NAME).read_bytes()


def test_the_chart_without_runs_is_an_error_that_says_what_to_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        readme_figure.main([str(tmp_path / "none.jsonl")])
    assert "run compare_methods.py --results" in capsys.readouterr().err


def test_the_area_by_hand(tmp_path):
    # Straight lines: their means are 70, 70.5 and 71.
    assert "| DeeBERT | 70.5 ± 1.2 |" in written(tmp_path, exits("deebert"))


def test_a_curve_that_starts_later_has_no_area(tmp_path):
    late = [line("pabee", seed, [(2.0, 0.8, 1.5), (None, 0.9, 2.0)]) for seed in range(3)]
    assert "| PABEE | starts later (3 of 3 seeds) |" in written(tmp_path, [*exits("deebert"), *late])


def test_what_was_not_run_is_told_from_what_is_not_defined(tmp_path):
    page = written(tmp_path, [*exits("berxit"), *exits("deebert"), *exits("berxit", dataset="sst2")])
    assert "| deebert | not run |" in page and "| deebert | - |" not in page


def test_fewer_seeds_are_marked(tmp_path):
    assert "| DeeBERT | 70.2 ± 3.2 (2 seeds) |" in written(tmp_path, exits("deebert")[:2])


def test_the_recipe_is_compared_with_the_best_of_the_papers_seed_by_seed(tmp_path):
    page = written(tmp_path, [*exits("deebert"), *exits("berxit", gain=0.03), *exits("berxit-exits-1e-3", gain=0.05)])
    # Two layers have a half, and no third.
    assert page.count("| trec | 2 | berxit | 2.00 ± 0.00, higher | 2.00 ± 0.00, higher |") == 1
    assert page.count("higher on 1 data sets, lower on 0, no difference seen on 0; its mean is higher on 1 of 1") == 1


def test_a_recipe_that_loses_is_reported_as_such(tmp_path):
    page = written(tmp_path, [*exits("deebert"), *exits("berxit-exits-1e-3", gain=-0.05)])
    assert "| trec | 1 | deebert | -5.00 ± 0.00, lower |  |" in page
    assert "higher on 0 data sets, lower on 1, no difference seen on 0; its mean is higher on 0 of 1" in page


def test_a_recipe_with_fewer_seeds_is_not_the_best(tmp_path):
    few = exits("fastbert", gain=0.1)[:1]
    page = written(tmp_path, [*few, *exits("deebert"), *exits("berxit-exits-1e-3", gain=0.05)])
    assert "| trec | 1 | deebert | 5.00 ± 0.00, higher |  |" in page


def test_what_exits_gain_over_fixed_layers_by_hand():
    # The fixed layers rise from 50 to 80 %, the exits from 60 to 80 %: 10 points more at one end, none at the other.
    (row,) = results_claims.against_fixed_layers(by_method(exits("deebert")))[2:]
    assert row == "| deebert | 5.00 ± 0.00, higher |"


def test_every_layer_by_how_it_was_trained():
    lines = results_claims.fine_tuning(by_method([*exits("berxit", gain=0.02), *exits("deebert")]))
    assert "| deebert: two-stage, exits at 1e-3 | 3 | 50.0 | 81.0 |" in lines
    assert "| berxit minus deebert, first exit | 0.00 ± 0.00, no difference seen |" in lines
    assert "| berxit minus deebert, last exit | 2.00 ± 0.00, higher |" in lines


def test_exits_against_models_of_their_own():
    # On the line from 60 % at one layer to 80 % at full depth; the static models are their last points.
    short = line("static-3", 0, [(None, 0.65, 3.0)])
    short["results"]["validation"]["by_exit"] = {"3": {"accuracy": 0.65}}
    deep = line("static-6", 0, [(None, 0.7, 6.0)])
    run = line("deebert", 0, [(0.5, 0.68, 2.6), (0.6, 0.72, 3.4), (None, 0.8, 5.0)])
    assert results_claims.against_static(by_method([short, deep, run]))[2:] == [
        "| deebert minus static-3, after three layers | 5.00 (1 seed) |",
        "| deebert minus static-6, full depth | 10.00 (1 seed) |",
    ]


def test_a_method_that_runs_more_layers_is_not_compared_with_three():
    late, gap = [(2.0, 0.8, 4.0), (None, 0.9, 6.0)], [(1.0, 0.4, 2.6), (2.0, 0.8, 4.0), (None, 0.9, 6.0)]
    assert [results_figures.score_after_three_layers(line("pabee", 0, curve)) for curve in (late, gap)] == [None, None]


def test_ponder_costs_in_their_order():
    other = 'dact-bert:{"ponder_cost": 0.05}'
    curve = [(0.0, 0.7, 1.5), (None, 0.8, 2.0)]
    runs = by_method([line(other, 0, curve), line("dact-bert", 0, curve)])
    assert results_savings.ponder_costs(runs)[2:4] == [
        "| trec | 0.005 | 1 | 80.0 | 1.50 | 70.0 | 1.50 |",
        "| trec | 0.05 | 1 | 80.0 | 1.50 | 70.0 | 1.50 |",
    ]


def test_runs_of_one_setting():
    thresholds = [[(0.0, 0.7, 1 + seed / 4), (None, 0.8, 2.0)] for seed in range(3)]
    runs = by_method([line("dact-bert", seed, curve) for seed, curve in enumerate(thresholds)])
    first, second, third = results_savings.one_setting(runs)[2:]
    assert first == "| dact-bert, same ponder cost, threshold 0 | 1.00 to 1.50 |"
    assert second == "| dact-bert, same threshold, that of seed 0 | 1.00 to 1.50 |"
    assert third == "| deebert, same threshold, that of seed 0 |  |"


def test_learning_to_exit_against_patience_by_hand():
    runs = by_method([*exits("berxit", dataset="stsb"), *exits("pabee", gain=0.04, dataset="stsb")])
    assert results_claims.regression(runs)[2:] == [
        "| stsb | fixed layers of the same model | 5.00 ± 0.00, higher |",
        "| stsb | PABEE, at its points | -4.00 ± 0.00, lower |",
    ]


def test_the_test_set_is_the_one_that_counts_for_a_promise():
    (row,) = results_savings.transfer(by_method(exits("deebert")))[2:]
    assert row == "| deebert | 23.0 (24.0) |"  # 20 to 22 points on validation, 2 more on test


def test_texts_at_the_last_layer():
    sound = [line("dact-bert", seed, [(0.0, 0.7, 1.5), (None, 0.8, 2.0)]) for seed in range(3)]
    rows = results_savings.last_layers(by_method([*sound, *exits("deebert")]))
    assert "| deebert | 50 % |" in rows and "| dact-bert, threshold 0: mean layers | 1.50 ± 0.00 |" in rows


def test_where_depths_come_from():
    halting = 'depth-adaptive:{"depth_source":"halting"}'
    rows = results_savings.depth_sources(by_method([*exits("depth-adaptive", gain=0.01), *exits(halting)]))
    assert rows[2:] == [
        "| trec | depth-adaptive | 3 | 82.0 ± 2.5 | 1.00 ± 0.00 |  |",
        f"| trec | {halting} | 3 | 81.0 ± 2.5 | 1.00 ± 0.00 | 1.00 ± 0.00, higher |",
    ]


def test_time_saved_is_that_of_the_shape_it_names():
    run = {
        "device": "cpu", "weights": "random", "hidden_size": 768, "candidate": "predict", "baseline": "static-sorted",
        "batch_size": 32, "layer_speed_up": 2.0, "speed_up": [1.0, 1.6, 3.0],
    }  # fmt: skip
    rows = results_savings.saving_on_the_clock([run, run | {"device": "cuda"}, run | {"hidden_size": 128}])
    assert rows[2:] == ["| predict | static-sorted | 32 | 50% | 38% |"]


def test_a_half_written_line_is_left_out(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in exits("deebert")) + '{"dataset": "tr')
    with pytest.warns(UserWarning, match="line 4: incomplete line, ignored"):
        assert results_page.main([str(path)]) == 0
    assert "| DeeBERT | 70.5 ± 1.2 |" in (tmp_path / "RESULTS.md").read_text()


def test_runs_of_several_encoders_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        written(tmp_path, [*exits("deebert"), *(row | {"model": "another"} for row in exits("berxit"))])
    assert (
        "has runs of the encoders another, some/encoder; pass a file with runs of one encoder"
        in capsys.readouterr().err
    )


def test_of_several_recipes_the_latest_counts_alone(tmp_path, capsys):
    earlier = [row | {"settings": [*row["settings"], "--bf16"]} for row in exits("deebert", gain=0.1)]
    assert "| DeeBERT | 70.5 ± 1.2 |" in written(tmp_path, [*earlier, *exits("deebert")])
    assert "3 lines of earlier training settings left out" in capsys.readouterr().err


def test_a_seed_without_a_test_set_leaves_the_other_seeds(tmp_path):
    first, *others = exits("deebert")
    first["results"].pop("test")
    page = written(tmp_path, [first, *others])
    assert "| deebert | 71.5 ± 6.4 -> 48.0 ± 0.0 | 1.00 ± 0.00 | 50 ± 0 % |" in page


def test_the_threshold_of_another_seed_by_hand():
    chosen = [[(0.2, 0.7, 1.0), (0.4, 0.75, 1.5), (None, 0.8, 2.0)], [(0.41, 0.5, 1.2), (None, 0.9, 2.0)]]
    runs = by_method([line("deebert", seed, chosen[seed % 2]) for seed in range(3)])
    (row,) = results_savings.threshold_sensitivity(runs)[2:]
    # 0.41 is nearest to 0.4 of seeds 0 and 2, which then lose 5 points; 0.2 costs seed 1 40, and the others 10.
    assert row == "| deebert | trec | 0.2, 0.41, 0.2 | 1.00 to 1.20 | 1.00 to 1.50 | 18.3 (40.0) |"


@pytest.mark.parametrize("name", ["README.md", "results.md"])
def test_the_summary_goes_where_a_page_has_it(tmp_path, name):
    page = tmp_path / name
    page.write_text(f"before\n{results_page.MARK}\nold\n{results_page.MARK}\nafter\n")
    for _ in range(2):  # anew, not once more
        written(tmp_path, exits("deebert"), "--pages", str(page))
        before, table, after = page.read_text().split(results_page.MARK)
        assert (before, after) == ("before\n", "\nafter\n")
        assert "| DeeBERT | 81.0 -> 60.0, 1.00 |" in table and "old" not in table


def test_the_readme_shows_a_part(tmp_path):
    pages = [tmp_path / "README.md", tmp_path / "results.md"]
    for page in pages:
        page.write_text(f"{results_page.MARK}{results_page.MARK}")
    runs = [*exits("deebert"), *exits("deebert", dataset="sick"), *exits("plain")]
    written(tmp_path, runs, "--pages", *map(str, pages))
    readme, everything = (page.read_text() for page in pages)
    assert "| method | trec (accuracy) |\n" in readme and "| plain |" not in readme
    assert "| method | trec (accuracy) | sick (accuracy) |\n" in everything and "| plain |" in everything


def test_a_card_has_its_own_table(tmp_path):
    card = tmp_path / "deebert.md"
    card.write_text(f"{results_page.MARK}{results_page.MARK}")
    written(tmp_path, [*exits("plain", gain=0.1), *exits("deebert"), *exits("berxit")], "--pages", str(card))
    (row,) = (line for line in card.read_text().splitlines() if line.startswith("| trec"))
    assert row == "| trec (accuracy) | 3 | 91.0 ± 2.5 | 81.0 ± 2.5 | 60.0 ± 0.0 | 1.00 ± 0.00 | 50 ± 0 % |"


def test_a_page_without_a_place_for_the_summary(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="pages: .* does not have two lines"):
        written(tmp_path, exits("deebert"), "--pages", str(page))
    assert page.read_text() == "nothing\n"


def test_figures_are_the_same_whenever_they_are_drawn(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        written(folder, exits("deebert"))
    assert (first / "results_trec.svg").read_bytes() == (second / "results_trec.svg").read_bytes()


@pytest.mark.parametrize("text", [None, ""])
def test_no_results_is_an_error_that_says_what_to_run(tmp_path, text, capsys):
    path = tmp_path / "none.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit):
        results_page.main([str(path)])
    assert f"run compare_methods.py --results {path}" in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, 9])
def test_too_many_lines_for_one_figure(count):
    curves = {str(index): [CurvePoint(None, 0.5, 1.0, 0.0)] for index in range(count)}
    with pytest.raises(ValueError, match=f"curves: got {count}; pass 1 to 8, or draw several figures"):
        comparison_figure(curves, "f1", 6)


def test_a_method_keeps_its_colour_where_another_is_missing():
    curve = [CurvePoint(0.5, 0.6, 1.0, 0.5), CurvePoint(None, 0.8, 2.0, 0.0)]
    both, one = (comparison_figure({"a": each, "b": curve}, "f1", 2) for each in (curve, []))
    assert one.axes[0].lines[-1].get_color() == both.axes[0].lines[-1].get_color()
    assert [text.get_text() for text in one.axes[0].get_legend().get_texts()] == ["b"]
