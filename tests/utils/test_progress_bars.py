"""Progress bars write seldom to log files, whatever library they are of."""

import io
import sys

import pytest
import tqdm.std
from tqdm.auto import tqdm as any_bar

from adaexit_hf.models.padded_batches import progress_bar
from adaexit_hf.utils.progress_bars import VARIABLE, write_seldom_to_files


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(tqdm.std.tqdm, "__init__", tqdm.std.tqdm.__init__)


def interval(**options: float) -> float:
    return any_bar(total=3, file=io.StringIO(), **options).mininterval


def test_a_line_every_ten_seconds_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    write_seldom_to_files()
    assert interval() == 10
    assert interval(mininterval=0.5) == 0.5


def test_our_own_bars_need_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaexit_hf.models.padded_batches.tqdm", lambda items, **settings: settings)
    for stream, settings in ((io.StringIO(), {"mininterval": 10}), (Terminal(), {}), (None, {"mininterval": 10})):
        monkeypatch.setattr(sys, "stderr", stream)
        assert progress_bar(total=3) == settings | {"total": 3}
    monkeypatch.setenv(VARIABLE, "3")
    assert progress_bar(total=3) == {"total": 3}


def test_as_usual_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = interval()
    monkeypatch.setattr(sys, "stderr", Terminal())
    write_seldom_to_files()
    assert interval() == before


def test_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = interval()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv(VARIABLE, "3")
    write_seldom_to_files()
    assert interval() == before
