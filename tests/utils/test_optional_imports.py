"""What is not installed is named, with the command that brings it."""

import sys

import pytest

from adaexit_hf import CurvePoint, compute_score
from adaexit_hf.visualization.figures import tradeoff_figure


def test_without_the_extra_train_tasks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "adaexit_hf.data.tasks", raising=False)
    with pytest.raises(ImportError, match=r"need datasets,.* pip install adaexit_hf\[train\]"):
        import adaexit_hf.data.tasks  # noqa: F401


@pytest.mark.parametrize(
    ("metric", "module"),
    [("f1", "sklearn.metrics"), ("matthews_correlation", "sklearn.metrics"), ("pearson", "scipy.stats")],
)
def test_without_the_extra_train_metrics_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, metric: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"need {module.split('.')[0]},.* pip install adaexit_hf\[train\]"):
        compute_score(metric, predictions=[0, 1], references=[1, 0])


def test_accuracy_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("datasets", "scipy.stats", "sklearn.metrics"):
        monkeypatch.setitem(sys.modules, module, None)
    assert compute_score("accuracy", predictions=[0, 1], references=[1, 1]) == 0.5


def test_without_matplotlib_figures_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"need matplotlib,.* pip install adaexit_hf\[plot\]"):
        tradeoff_figure([CurvePoint(None, 0.5, 3.0, 0.0)], "accuracy", 3)
