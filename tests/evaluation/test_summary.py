"""What metrics.json keeps when a model is measured again."""

import json
from pathlib import Path
from typing import Any

import pytest

from adaexit_hf.evaluation.summary import beside_earlier, earlier_measurements

SETTINGS = {
    "exit_threshold": 0.5,
    "exit_criterion": "confidence",
    "exit_temperatures": None,
    "patience_tolerance": None,
}


def result(fingerprint: str = "rows", **more: Any) -> dict[str, Any]:
    """A result at one threshold, with what is compared."""
    return SETTINGS | {"at_threshold": {"accuracy": 0.8}, "data": {"fingerprint": fingerprint}} | more


def folder_with(path: Path, **contents: Any) -> Path:
    """A folder with such a metrics.json."""
    (path / "metrics.json").write_text(json.dumps(contents))
    return path


def measured(name: str = "SST-2", **results: Any) -> dict[str, Any]:
    """New measurements of a data set."""
    return {"dataset": {"name": name}, "results": results}


def beside(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """The new measurements beside those in a folder."""
    return beside_earlier(earlier_measurements(folder), summary)


def test_a_folder_without_earlier_results(tmp_path: Path) -> None:
    assert beside(tmp_path, measured(test=result())) == measured(test=result())


def test_what_training_wrote_and_other_splits_stay_behind_the_new_one(tmp_path: Path) -> None:
    folder_with(tmp_path, training={"seconds": 7}, **measured(validation=result("a")))
    summary = beside(tmp_path, measured(test=result("b")))
    assert summary["training"] == {"seconds": 7}
    assert list(summary["results"]) == ["test", "validation"]


def test_a_new_result_of_the_same_rows_replaces_the_earlier_one(tmp_path: Path) -> None:
    folder_with(tmp_path, **measured(test=result(at_threshold={"accuracy": 0.1})))
    assert beside(tmp_path, measured(test=result()))["results"] == {"test": result()}


def test_a_cross_fitted_result_of_the_same_rows_stays(tmp_path: Path) -> None:
    honest = result(cross_fitted_thresholds=[0.4, 0.6])
    folder_with(tmp_path, **measured(validation=honest))
    assert beside(tmp_path, measured(validation=result()))["results"] == {"validation": honest}


def test_a_cross_fitted_result_of_other_rows_does_not_stay(tmp_path: Path) -> None:
    folder_with(tmp_path, **measured(validation=result("old", cross_fitted_thresholds=[0.4, 0.6])))
    assert beside(tmp_path, measured(validation=result()))["results"] == {"validation": result()}


@pytest.mark.parametrize("change", [{"exit_threshold": 0.9}, {"exit_criterion": "margin"}])
def test_results_of_other_exit_settings_do_not_stay(tmp_path: Path, change: dict[str, Any]) -> None:
    earlier = result("a", cross_fitted_thresholds=[0.4, 0.6]) | change
    folder_with(tmp_path, **measured(validation=earlier))
    assert list(beside(tmp_path, measured(test=result()))["results"]) == ["test"]


def test_results_that_do_not_say_their_settings_do_not_stay(tmp_path: Path) -> None:
    earlier = result("a")
    del earlier["exit_criterion"]
    folder_with(tmp_path, **measured(validation=earlier))
    assert list(beside(tmp_path, measured(test=result()))["results"]) == ["test"]


def test_another_data_set_stands_beside_the_one_of_training(tmp_path: Path) -> None:
    folder_with(tmp_path, **measured(validation=result("a")))
    summary = beside(tmp_path, measured("reviews.csv", validation=result("b")))
    assert list(summary["results"]) == ["reviews.csv, validation", "validation"]
    assert summary["dataset"] == {"name": "SST-2"}


@pytest.mark.parametrize("content", ["accuracy: 0.9", "[]", '{"accuracy": 0.9}', '{"results": {"test": 0.9}}'])
def test_a_file_that_is_not_ours_is_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics.json' was not written by adaexit_hf"):
        earlier_measurements(tmp_path)
