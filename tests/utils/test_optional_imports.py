"""What is not installed is named, with the command that brings it."""

import sys

import pytest

from adaexit_hf import CurvePoint
from adaexit_hf.visualization.figures import tradeoff_figure


@pytest.mark.parametrize("module", ["datasets", "evaluate", "scipy.stats", "sklearn.metrics"])
def test_without_the_extra_train_tasks_say_what_to_install(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "adaexit_hf.data.tasks", raising=False)
    with pytest.raises(ImportError, match=rf"need {module.split('.')[0]},.* pip install adaexit_hf\[train\]"):
        import adaexit_hf.data.tasks  # noqa: F401


def test_without_matplotlib_figures_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"need matplotlib,.* pip install adaexit_hf\[plot\]"):
        tradeoff_figure([CurvePoint(None, 0.5, 3.0, 0.0)], "accuracy", 3)
