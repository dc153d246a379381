"""Progress bars write seldom to log files, whatever library they are of."""

import io
import sys

import pytest
import tqdm.std
from tqdm.auto import tqdm as any_bar

from adaexit_hf.models.padded_batches import progress_bar
from adaexit_hf.utils.progress_bars import DELAY, VARIABLE, write_seldom_to_files


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, DELAY):
        monkeypatch.setenv(name, "1")  # so that what a test sets is removed after it
        monkeypatch.delenv(name)
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
    seldom = {"mininterval": 10, "delay": 10}
    for stream, settings in ((io.StringIO(), seldom), (Terminal(), {}), (None, seldom)):
        monkeypatch.setattr(sys, "stderr", stream)
        found = progress_bar(total=3)
        assert ("file" in found) is (type(stream) is io.StringIO)
        found.pop("file", None)
        assert found == settings | {"total": 3}
    monkeypatch.setenv(VARIABLE, "3")
    assert progress_bar(total=3).keys() == ({"total"} if sys.stderr is None else {"total", "file"})


def test_in_a_log_every_state_is_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress_bar(range(3), mininterval=0, miniters=1, delay=0):
        pass
    states = [line.partition("%")[0] for line in stream.getvalue().split("\n")]
    assert list(dict.fromkeys(states)) == ["0", "33", "67", "100", ""]


def test_a_short_run_writes_nothing_into_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress_bar([1, 2])) == [1, 2]
    assert stream.getvalue() == ""


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
