"""The results page: its numbers are those of the runs, and the page in the repository is up to date."""

import doctest
import json
import shutil
from pathlib import Path

import pytest
import readme_figure
import results_claims
import results_figures
import results_first
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
        "exit_histogram": {"1": 1, "2": 1}, "samples": 2,
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


@pytest.mark.parametrize("module", [results_claims, results_figures, results_first, results_page, results_savings])
def test_the_examples_in_the_docstrings(module):
    tested = doctest.testmod(module)
    assert (tested.failed, tested.attempted > 0) == (0, True)


def test_the_pages_in_the_repository_are_up_to_date(tmp_path):
    names = ("results_by_method", "inference_speed", "dact_ponder_costs", "comparison")
    results, speed, costs, earlier = (str(RESULTS / f"{name}.jsonl") for name in names)
    cards = [ROOT / "model_cards" / f"{method}.md" for method in results_figures.PAPERS]
    pages = [ROOT / "README.md", ROOT / "docs" / "results.md", *cards]
    (tmp_path / "pages").mkdir()
    copies = {page: Path(shutil.copy(page, tmp_path / "pages")) for page in pages}
    given = ["--speed", speed, "--ponder_costs", costs, "--earlier", earlier, "--output", str(tmp_path / "out")]
    assert results_page.main([results, *given, "--pages", *map(str, copies.values())]) == 0
    copies |= {RESULTS / path.name: path for path in (tmp_path / "out").iterdir()}
    for page, copy in copies.items():
        assert page.exists() and page.read_bytes() == copy.read_bytes(), (
            f"{page}: run the command in benchmarks/results_page.py"
        )


def test_the_readmes_chart_is_up_to_date(tmp_path):
    assert readme_figure.main([str(RESULTS / "results_by_method.jsonl"), "--output", str(tmp_path)]) == 0
    assert (tmp_path / readme_figure.NAME).read_bytes() == (RESULTS / readme_figure.NAME).read_bytes()


def test_the_chart_without_runs_is_an_error_that_says_what_to_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        readme_figure.main([str(tmp_path / "none.jsonl")])
    assert "run compare_methods.py --results" in capsys.readouterr().err


def test_the_area_by_hand(tmp_path):
    # Straight lines: their means are 70, 70.5 and 71.
    assert "| DeeBERT | 70.5 ± 1.2 |" in written(tmp_path, exits("deebert"))


def from_a_third(method: str, gain: float, samples: int = 100) -> list[dict]:
    """Runs from a third of the layers, 60 % + gain, to all of them, 80 % + gain."""
    points = [(0.5, 0.6 + gain, 2 / 3), (None, 0.8 + gain, 2.0)]
    rows = [line(method, seed, points) for seed in range(3)]
    for row in rows:
        row["results"]["validation"]["samples"] = samples
    return rows


def test_exits_are_compared_where_both_methods_have_one(tmp_path):
    def rows(method: str, by_exit: dict[str, float]) -> list[dict]:
        found = [line(method, seed, [(0.5, 0.6, 1.0), (None, by_exit["3"], 3.0)]) for seed in range(3)]
        for row in found:
            row["results"]["validation"]["by_exit"] = {k: {"accuracy": score} for k, score in by_exit.items()}
        return found

    few, all_layers = {"2": 0.8, "3": 0.9}, {"1": 0.5, "2": 0.7, "3": 0.75}
    page = written(tmp_path, [*rows("recommended", few), *rows("berxit", all_layers)])
    assert "| berxit: alternating | 3 | 50.0 | 70.0 | 75.0 |" in page
    assert "| recommended: the recommended recipe | 3 |  | 80.0 | 90.0 |" in page
    assert "| recommended minus berxit, last exit | 15.00" in page
    assert "recommended minus berxit, first exit" not in page


def test_test_sets_and_differences_beyond_the_spread(tmp_path):
    rows = [*with_points(exits("recommended"), {1: 0.85, 2: 0.9}), *one_exit("static-1", 1, 0.8)]
    page = written(tmp_path, rows).partition("## On test sets")[2].partition("## Goals")[0]
    assert "| trec (accuracy) |  | 71.0 | 71.0 | 76.0 | 5.00 ± 0.00, higher |" in page
    assert "the recipe is higher beyond their spread in 1 (trec at 1), lower in none; in 0 no difference" in page
    one_seed = written(tmp_path, [row for row in rows if row["seed"] == 0])
    assert "beyond their spread" not in one_seed


def test_scores_by_depth_beside_rivals_name_the_seeds_once():
    rows = [*with_points(exits("deebert"), {1: 0.7}), *one_exit("plain", 2, 0.9), *one_exit("static-1", 1, 0.8)]
    one_seed = by_method([row for row in rows if row["seed"] == 0])
    assert results_first.scores_by_depth(one_seed, "deebert") == [
        "| method (1 seed) | trec (accuracy) |", "| --- | --- |", "| plain | 90.0, -, - |",
        "| static-1 | 80.0, 80.0, - |", "| static-0 |  |", "| recommended |  |", "| DeeBERT | 80.0, 70.0, - |",
    ]  # fmt: skip
    mixed = results_first.scores_by_depth(by_method(rows[:-1]))
    assert mixed[0] == "| method | trec (accuracy) |" and "| static-1 | 80.5, 80.5, - (2 seeds) |" in mixed


def test_the_settings_with_the_most_seeds_are_kept():
    trial = line("deebert", 3, [(0.5, 0.1, 1.0), (None, 0.2, 2.0)])
    trial["settings"] += ["--learning_rate", "1"]
    assert [row["seed"] for row in by_method([*exits("deebert"), trial])["trec", "deebert"]] == [0, 1, 2]


def test_in_short_compares_on_the_same_data_sets(tmp_path):
    def of(dataset: str) -> list[dict]:
        rows = [
            *with_points(exits("recommended"), {1: 0.85}),
            *one_exit("static-1", 1, 0.8),
            *one_exit("plain", 2, 0.9),
        ]
        return [row | {"dataset": dataset} for row in rows]

    deebert = with_points(exits("deebert"), {1: 0.7})
    both = written(tmp_path, [*of("trec"), *of("mrpc"), *deebert]).partition("## In short")[2].partition("## What")[0]
    assert "*recommended* is -5.0 points from plain fine-tuning with all layers, mean of 2 data sets" in both
    assert "best paper" not in both
    assert "*best paper's method* is -20.0 points" in written(tmp_path, [*of("trec"), *deebert])


def test_one_exit_for_all_texts_is_not_compared_with_itself(tmp_path):
    rows = [row | {"dataset": "stsb"} for row in exits("recommended")]
    assert "recommended: deciding per text" not in written(tmp_path, rows)
    assert "recommended: deciding per text" in written(tmp_path, exits("recommended"))


def test_seeds_of_another_precision_are_of_the_same_method(tmp_path):
    rows = exits("deebert")
    rows[1]["settings"].extend(["--bf16", "--use_cpu"])
    page = written(tmp_path, rows)
    assert "| DeeBERT | 70.5 ± 1.2 |" in page
    assert "- Precision: bf16 in 1 runs, fp32 in 2." in page


def test_earlier_runs_stand_in_for_papers_methods_that_were_not_run(tmp_path):
    earlier = [*from_a_third("deebert", 0.02), *from_a_third("pabee", 0.01), *from_a_third("berxit-exits-1e-3", 0.04)]
    (tmp_path / "earlier.jsonl").write_text("".join(json.dumps(each) + "\n" for each in earlier))
    rows = [*from_a_third("recommended", 0.05), *from_a_third("deebert", 0.03)]
    page = written(tmp_path, rows, "--earlier", str(tmp_path / "earlier.jsonl"))
    assert "| deebert | 2.00 ± 0.00, higher |" in page  # of this version
    assert "| pabee | 4.00 ± 0.00, higher |" in page
    assert "| berxit-exits-1e-3 | 1.00 ± 0.00, higher |" in page


def test_earlier_runs_on_other_rows_are_not_compared():
    runs, earlier = by_method(from_a_third("recommended", 0.05)), by_method(from_a_third("pabee", 0.01, samples=101))
    assert not [row for row in results_first.recommended_against_papers(runs, earlier) if row.startswith("| pabee")]


def test_a_data_set_counts_as_measured_once_every_papers_method_is():
    runs = by_method(from_a_third("recommended", 0.05))
    papers = [row for method in results_figures.PAPERS for row in from_a_third(method, 0.01)]
    goal = "| area from a third of the layers above every paper's method that has one | 5 of 6 | {} |"
    every = ", ".join(results_figures.PAPERS)
    assert goal.format(f"1 of 1 (trec: above {every})") in results_first.goals(runs, by_method(papers))
    assert goal.format("0 of 0") in results_first.goals(runs, by_method(papers[3:]))
    # A method that always runs more than a third of the layers has no area to compare.
    late = [line("pabee", seed, [(2.0, 0.8, 1.5), (None, 0.9, 2.0)]) for seed in range(3)]
    for row in late:
        row["results"]["validation"]["samples"] = 100
    others = every.replace("pabee, ", "")
    found = results_first.goals(runs, by_method(papers) | by_method(late))
    assert goal.format(f"1 of 1 (trec: above {others})") in found
    all_late = [row | {"method": method} for method in results_figures.PAPERS for row in late]
    assert goal.format("0 of 0") in results_first.goals(runs, by_method(all_late))


def test_a_curve_that_starts_later_has_no_area(tmp_path):
    late = [line("pabee", seed, [(2.0, 0.8, 1.5), (None, 0.9, 2.0)]) for seed in range(3)]
    assert "| PABEE | starts later (3 of 3 seeds) |" in written(tmp_path, [*exits("deebert"), *late])


def test_what_was_not_run_is_told_from_what_is_not_defined(tmp_path):
    page = written(tmp_path, [*exits("berxit"), *exits("deebert"), *exits("berxit", dataset="sst2")])
    assert "| deebert | not run |" in page and "| deebert | - |" not in page


def test_fewer_seeds_are_marked(tmp_path):
    assert "| DeeBERT | 70.2 ± 3.2 (2 seeds) |" in written(tmp_path, exits("deebert")[:2])


def test_what_exits_gain_over_fixed_layers_by_hand():
    # The fixed layers rise from 50 to 80 %, the exits from 60 to 80 %: 10 points more at one end, none at the other.
    (row,) = results_claims.against_fixed_layers(by_method(exits("deebert")))[2:]
    assert row == "| deebert | 5.00 ± 0.00, higher |"


def test_every_layer_by_how_it_was_trained():
    lines = results_claims.fine_tuning(by_method([*exits("berxit", gain=0.02), *exits("deebert")]))
    assert "| deebert: two-stage, exits at 1e-3 | 3 | 50.0 | 81.0 |" in lines
    assert "| berxit minus deebert, first exit | 0.00 ± 0.00, no difference seen |" in lines
    assert "| berxit minus deebert, last exit | 2.00 ± 0.00, higher |" in lines


def with_points(rows: list[dict], scores: dict[int, float]) -> list[dict]:
    """The runs with scores by largest mean number of layers, plus a hundredth per seed, on test 10 points lower."""
    points = {
        row["seed"]: [
            {"max_layers": layers, "score": score + row["seed"] / 100, "mean_layers": layers, "thresholds": [0.5, 0.6]}
            for layers, score in scores.items()
        ]
        for row in rows
    }
    harder = {seed: [each | {"score": each["score"] - 0.1} for each in found] for seed, found in points.items()}
    return [row | {"points": {"validation": points[row["seed"]], "test": harder[row["seed"]]}} for row in rows]


def one_exit(method: str, layers: int, score: float, **options: str) -> list[dict]:
    """Three seeds of a model with one exit, whose score grows by a hundredth per seed."""
    rows = [line(method, seed, [(None, score + seed / 100, float(layers))], **options) for seed in range(3)]
    for row in rows:
        for split, result in row["results"].items():
            row["results"][split] = result | {"by_exit": {str(layers): result["full_depth"]}}
    return rows


def measured_lines() -> list[dict]:
    return [
        *one_exit("plain", 2, 0.9),
        *one_exit("static-1", 1, 0.8),
        *with_points(exits("deebert"), {1: 0.7}),
        *with_points(exits("berxit"), {1: 0.75}),
        *with_points(exits("berxit+head", gain=0.01), {1: 0.8}),
        *with_points(exits("recommended", gain=0.05), {1: 0.85}),
    ]


def test_seeds_without_plain_fine_tuning_are_not_counted_in_the_difference():
    rows = [*with_points(exits("recommended"), {1: 0.85}), one_exit("plain", 2, 0.9)[0]]
    assert results_first.at_half(by_method(rows))[2].endswith("| 86.0 (-5.0 (1 seed)) |")


def test_what_is_lost_at_half_of_the_layers_by_hand():
    assert results_first.at_half(by_method(measured_lines()))[2:] == [
        "| trec | 91.0 | 86.0 | 81.0 (-10.0) | 76.0 (-15.0, berxit) | 86.0 (-5.0) |"
    ]


def test_a_number_of_fewer_seeds_says_so_and_is_compared_on_them_alone():
    rows = [row for row in measured_lines() if row["method"] != "recommended" or row["seed"] == 2]
    (row,) = results_first.at_half(by_method(rows))[2:]
    assert row.endswith("| 87.0 (-5.0) (1 seed) |")


def test_the_chart_shows_what_the_table_says(tmp_path):
    runs = by_method(measured_lines())
    figure = results_first.chart(runs)
    drawn = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert drawn == {"one exit after half of the layers", "best paper's method", "recommended"}
    assert results_first.chart(by_method(one_exit("plain", 2, 0.9))) is None


def test_goals_are_counted():
    goals = results_first.goals(by_method(measured_lines()), {})
    # Two layers: a third of them is no layer, so that there is no area, nor a model with that many layers.
    assert "| above static-1, at 1 layers | 4 of 6 | 1 of 1 |" in goals
    assert "| full depth not below plain fine-tuning | all | 0 of 1 |" in goals  # 85 against 90 %


def test_a_gain_that_is_not_seen_is_no_goal_reached():
    rows = with_points(exits("recommended"), {1: 0.8})
    goals = results_first.goals(by_method([*one_exit("static-1", 1, 0.8), *rows, *one_exit("plain", 2, 0.8)]), {})
    assert "| above static-1, at 1 layers | 4 of 6 | 0 of 1 |" in goals
    assert "| full depth not below plain fine-tuning | all | 1 of 1 |" in goals


def test_dact_bert_reaches_its_goal_at_the_sound_rule_alone():
    # On average 1.5 of 2 layers, at a loss of 0.9 %, and of 2 %.
    near, far = (
        by_method(
            [line("dact-bert", seed, [(-0.5, 0.5, 1.0), (0.0, score, 1.5), (None, 0.8, 2.0)]) for seed in range(3)]
        )
        for score in (0.793, 0.784)
    )
    assert [results_first.sound_saving(runs, "trec") for runs in (near, far, by_method(exits("deebert")))] == [
        True, False, None,
    ]  # fmt: skip


def test_in_short_is_computed():
    lines = results_first.in_short(by_method(measured_lines()))
    assert lines[0] == (
        "- At 1 of 2 layers, *one exit after half of the layers* is -10.0 points from plain fine-tuning with all "
        "layers, mean of 1 data set (from -10.0 to -10.0)."
    )
    assert lines[-1] == (
        "- Recommended recipe minus `static-1`, at 1 layers: +5.0 points, mean of 1 data set (from +5.0 to +5.0). "
        "With three seeds, it is better on 1, worse on 0, and not seen to differ on 0 of 1 data sets."
    )


def test_without_plain_fine_tuning_the_scores_alone_are_shown():
    rows = [row for row in measured_lines() if row["method"] in ("static-1", "recommended") and row["seed"] == 0]
    assert results_first.at_half(by_method(rows))[2:] == [
        "| trec |  | 85.0 (1 seed) | 80.0 (1 seed) |  | 85.0 (1 seed) |"
    ]
    assert results_first.in_short(by_method(rows)) == [
        "- Recommended recipe minus `static-1`, at 1 layers: +5.0 points, mean of 1 data set (from +5.0 to +5.0)."
    ]


def test_every_method_against_models_with_one_exit():
    rows = results_first.against_static(by_method(measured_lines()))
    assert "| recommended | 5.00 ± 0.00, higher |" in rows and "| deebert | -10.00 ± 0.00, lower |" in rows
    assert "| berxit+head | 0.00 ± 0.00, no difference seen |" in rows


def test_both_prices():
    def costs(rows: list[dict], seconds: float, size: int) -> list[dict]:
        training = {"seconds": seconds, "optimizer_steps": 10}
        return [row | {"training": training, "bytes": size} for row in rows]

    rows = [
        *costs(one_exit("plain", 2, 0.9), 100.0, 20_000_000),
        *costs(one_exit("static-1", 1, 0.8), 60.0, 10_000_000),
        *costs(one_exit("static-2", 2, 0.9), 110.0, 20_000_000),
        *costs(exits("recommended"), 120.0, 21_000_000),
    ]
    head, _, row = results_first.prices(by_method(rows))
    assert "static-1, 2 together" in head
    assert row == "| trec | 100 | 120 | 170 | 10 | 10 | 20 | 20.0 | 21.0 | 30.0 |"
    without_all = results_first.prices(by_method([row for row in rows if row["method"] != "static-1"]))
    assert without_all[2] == "| trec | 100 | 120 | 10 | 10 | 20.0 | 21.0 |"


def test_a_section_without_runs_says_where_older_numbers_are(tmp_path):
    page = written(tmp_path, exits("deebert"))
    _, _, prices = page.partition("### What both cost")
    assert results_first.NOTHING in prices.partition("## How to read")[0]


def test_the_depth_of_dact_bert_by_ponder_cost():
    validation = {"samples": 4, "full_depth": {"accuracy": 0.75}, "mean_exit_layer": 1.25, "saving": 0.375}
    settings = {"task_name": "mrpc", "dataset_name": None, "model_name_or_path": "some/encoder", "seed": 3}
    config = {"exit_pooling": "mean", "halting_bias": 2}
    line = {
        "settings": settings | {"method_config": config, "exits_learning_rate": 1e-3},
        "results": {"validation": validation | {"exit_histogram": {"1": 3, "2": 1}}},
        "by_layer": {"halting": [0.5, 0.012], "own_accuracy": [0.5, 0.75]},
    }
    lines = [line | {"ponder_cost": cost} for cost in (0.2, 0.05)]
    assert results_savings.depth_by_ponder_cost(lines)[2:] == [
        f'| mrpc, encoder | "halting_bias": 2 | {cost} | 0.001 | 3 | 75.0 (accuracy) | 1.25 | 38% | 75% 25% '
        "| 0.50 0.01 | 50 75 |"
        for cost in (0.05, 0.2)
    ]


def test_the_saving_at_the_exact_rule_is_that_of_the_default_settings():
    settings = {
        "task_name": None, "dataset_name": "data/trec", "model_name_or_path": "an/encoder", "method_config": {},
        "exits_learning_rate": 1e-3,
    }  # fmt: skip
    result = {
        "full_depth": {"accuracy": 0.75}, "at_threshold": {"accuracy": 0.75}, "saving": 0.4,
        "by_exit": {"1": {}, "2": {}},
    }  # fmt: skip
    run = {"ponder_cost": 0.1, "settings": settings, "results": {"validation": result}}
    others = [
        run | {"ponder_cost": 0.2},
        run | {"settings": settings | {"method_config": {"halting_bias": 2}}},
        run | {"settings": settings | {"exits_learning_rate": None}},
    ]
    assert results_savings.saving_at_the_exact_rule([*others, run]) == [
        "- encoder, 2 layers: trec 40% saved, 75.0 % (full depth 75.0 %)."
    ]


def test_each_encoder_has_a_page(tmp_path, capsys):
    rows = [*exits("deebert"), *exits("berxit"), *(row | {"model": "a/deep"} for row in exits("berxit", gain=0.1))]
    first = written(tmp_path, rows)
    second = (tmp_path / "RESULTS_deep.md").read_text()
    assert "| BERxiT | 70.5" in first and "| BERxiT | 80.5" in second and "Encoder: a/deep." in second
    assert "(results_deep_trec.svg)" in second and (tmp_path / "results_deep_trec.svg").exists()


def test_ponder_costs_in_their_order():
    other = 'dact-bert:{"ponder_cost": 0.05}'
    curve = [(0.0, 0.7, 1.5), (None, 0.8, 2.0)]
    runs = by_method([line(other, 0, curve), line("dact-bert", 0, curve)])
    assert results_savings.ponder_costs(runs)[2:4] == [
        "| trec | 0.05 | 1 | 80.0 | 1.50 | 70.0 | 1.50 |",
        "| trec | 0.1 | 1 | 80.0 | 1.50 | 70.0 | 1.50 |",
    ]


def test_runs_of_one_setting():
    thresholds = [[(0.0, 0.7, 1 + seed / 4), (None, 0.8, 2.0)] for seed in range(3)]
    runs = by_method([line("dact-bert", seed, curve) for seed, curve in enumerate(thresholds)])
    first, second = results_savings.one_setting(runs)[2:]
    assert first == "| dact-bert, same ponder cost, threshold 0 | 1.00 to 1.50 |"
    assert second == "| dact-bert, same threshold, that of seed 0 | 1.00 to 1.50 |"


def test_learning_to_exit_against_patience_by_hand():
    runs = by_method([*exits("berxit", dataset="stsb"), *exits("pabee", gain=0.04, dataset="stsb")])
    assert results_claims.regression(runs)[2:] == [
        "| stsb | fixed layers of the same model | 5.00 ± 0.00, higher |",
        "| stsb | PABEE, at its points | -4.00 ± 0.00, lower |",
    ]


def test_the_test_set_is_the_one_that_counts_for_a_promise():
    (row,) = results_savings.transfer(by_method(exits("deebert")))[2:]
    assert row == "| deebert | 23.0 (24.0) |"  # 20 to 22 points on validation, 2 more on test
    (row,) = results_savings.transfer(by_method(exits("recommended")))[2:]  # also where no paper's method was run
    assert row == "| recommended | 23.0 (24.0) |"


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


def test_of_several_recipes_the_latest_counts_alone(tmp_path, capsys):
    earlier = [row | {"settings": [*row["settings"], "--learning_rate", "1e-4"]} for row in exits("deebert", gain=0.1)]
    assert "| DeeBERT | 70.5 ± 1.2 |" in written(tmp_path, [*earlier, *exits("deebert")])
    assert "of the same seed in another precision are left out: trec deebert" in capsys.readouterr().err


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


def test_layers_at_the_own_threshold_are_those_of_the_curve():
    rows = [line("deebert", seed, [(0.2, 0.7, 1.0), (0.4, 0.75, 1.5), (None, 0.8, 2.0)]) for seed in range(3)]
    for row in rows:  # cross-fitted: with thresholds of the halves
        row["results"]["validation"] = row["results"]["validation"] | {"mean_exit_layer": 1.7}
    (row,) = results_savings.threshold_sensitivity(by_method(rows))[2:]
    assert row == "| deebert | trec | 0.2, 0.2, 0.2 | 1.00 to 1.00 | 1.00 to 1.00 | 10.0 (10.0) |"


def test_the_tables_go_where_a_page_has_them(tmp_path):
    page, mark = tmp_path / "results.md", results_page.MARK
    page.write_text(f"before\n{mark}{mark}\nbetween\n{4 * mark}{mark}\nold\n{mark}\nafter\n")
    for _ in range(2):  # anew, not once more
        written(tmp_path, [*measured_lines(), *exits("deebert", gain=-0.1)], "--pages", str(page))
        before, test_sets, between, beside, _, papers, _, summary, after = page.read_text().split(mark)
        assert (before, between, after) == ("before\n", "\nbetween\n", "\nafter\n")
        assert "| trec (accuracy) | 91.0 |  | 86.0 | 81.0 | 86.0 |" in beside
        assert "| trec (accuracy) | 81.0 | 76.0 | 71.0 | 76.0 | 5.00 ± 0.00, higher |" in test_sets
        assert "| minus | trec |" in papers
        assert "| DeeBERT | 71.0 -> 50.0, 1.00 |" in summary and "old" not in summary


def test_the_papers_methods_are_shown_by_earlier_runs(tmp_path):
    pages = [tmp_path / "results.md", tmp_path / "deebert.md"]
    pages[0].write_text(8 * results_page.MARK)
    pages[1].write_text(2 * results_page.MARK)
    rows = [*exits("plain"), *exits("deebert", gain=0.05)]
    (tmp_path / "earlier.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    given = ["--earlier", str(tmp_path / "earlier.jsonl"), "--pages", *map(str, pages)]
    written(tmp_path, [*measured_lines(), *exits("deebert")], *given)
    assert "| DeeBERT | 86.0 -> 65.0, 1.00 |" in pages[0].read_text()
    assert "| 65.0 ± 0.0 | 1.00 ± 0.00 |" in pages[1].read_text()


def test_the_readme_shows_the_recommended_recipe_on_test_sets(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"{results_page.MARK}{results_page.MARK}")
    written(tmp_path, [*measured_lines(), *exits("deebert", dataset="sick")], "--pages", str(page))
    _, trec, _, sentence = page.read_text().split(results_page.MARK)[1].split("\n| ---")[1].strip().splitlines()
    # Plain, and the recipe at full depth; static-1, one layer of exits.
    assert trec.startswith("| trec (accuracy) | 81.0 | 76.0 | 71.0 | 76.0 |")
    assert sentence.startswith("Of the 1 comparisons with `static-1` and `static-0` that have three seeds, the recipe")
    assert "sick" not in page.read_text()  # the recipe was not run there


def test_a_card_has_its_own_table(tmp_path):
    card = tmp_path / "deebert.md"
    card.write_text(f"{results_page.MARK}{results_page.MARK}")
    written(tmp_path, [*exits("plain", gain=0.1), *exits("deebert"), *exits("berxit")], "--pages", str(card))
    (row,) = (line for line in card.read_text().splitlines() if line.startswith("| trec"))
    assert row == "| trec (accuracy) | 3 | 91.0 ± 2.5 | 81.0 ± 2.5 | 60.0 ± 0.0 | 1.00 ± 0.00 | 50 ± 0 % |"


def test_a_page_without_a_place_for_the_summary(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="pages: .* does not have 2 lines"):
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
