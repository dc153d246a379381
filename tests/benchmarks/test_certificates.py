"""Certificates on populations of known risk, and the tables of docs/certificates.md."""

import doctest
import math
import shutil
from pathlib import Path

import certificates
import pytest

from adaexit_hf import ExitTrace
from adaexit_hf.evaluation.trace import at_exits

ROOT = Path(__file__).parents[2]


def test_the_examples_in_the_docstrings():
    tested = doctest.testmod(certificates)
    assert (tested.failed, tested.attempted > 0) == (0, True)


@pytest.mark.slow
def test_the_tables_on_the_page_are_up_to_date(tmp_path):
    copy = Path(shutil.copy(certificates.PAGE, tmp_path))
    certificates.write_tables(copy, certificates.lines_of(certificates.RESULTS))
    assert copy.read_text() == certificates.PAGE.read_text(), "run python benchmarks/certificates.py --table"


@pytest.mark.parametrize("kind", certificates.KINDS[:4])
def test_the_populations_cross_the_limit_where_they_say(kind):
    def risks(name: str) -> list[float]:
        trace = certificates.population(name, kind)
        (guarantee,) = certificates.wanted(trace, kind)
        losses = certificates.row_losses(trace, guarantee)
        return [at_exits(losses, trace.exits_at(threshold)).mean().item() for threshold in certificates.GRID]

    limit, just = certificates.LIMIT, certificates.LIMIT + 2 / certificates.SIZE
    assert max(risks("easy")) < 0.01
    assert [risk > limit for risk in risks("hard")] == [threshold < 0.206 for threshold in certificates.GRID]
    assert all(limit < risk <= just for risk in risks("edge"))
    ties = dict(zip(certificates.GRID, risks("ties"), strict=True))
    assert ties[0.7] < limit < ties[0.6] <= just
    waves = risks("waves")
    assert waves[0] == 0 and all(limit < risk <= just for risk in waves[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in certificates.POPULATIONS for kind in certificates.KINDS]
)
def test_few_certificates_are_wrong(name, kind):
    draws, trace = 1000, certificates.population(name, kind)
    known = certificates.Known(trace, certificates.wanted(trace, kind), certificates.GRID)
    found = certificates.outcome(known, 150, draws, certificates.Known.certified)
    assert found["violated"] <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


@pytest.mark.slow
def test_the_tempting_ways_are_wrong_more_often():
    trace = certificates.population("hard", "changed_answers")
    known = certificates.Known(trace, certificates.wanted(trace, "changed_answers"), certificates.GRID)
    for way in ("best of the grid by the observed risk", "first threshold of six whose test fails"):
        found = certificates.outcome(known, 300, 200, certificates.WRONG_WAYS[way])
        assert found["violated"] > 0.2


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(certificates, "KINDS", ("harm",))
    monkeypatch.setattr(certificates, "POPULATIONS", ("edge",))
    monkeypatch.setattr(certificates, "SIZES", (100,))
    monkeypatch.setattr(certificates, "SPLITS", 3)
    monkeypatch.setattr(certificates, "WRONG_WAYS", {})
    monkeypatch.setattr(certificates, "STREAMS", {"changed answers, early": ("changed_answers", [(50, 0.02)])})
    trace = certificates.population("hard", "harm")
    path = tmp_path / "cell" / "test.safetensors"
    trace.take(certificates.torch.arange(0, certificates.SIZE, 400)).save(path)
    monkeypatch.setattr(certificates, "guarantees_of", lambda trace: [certificates.Guarantee("harm", 0.2)])
    arguments = ["--draws", "5", "--traces", str(path), "--results", str(tmp_path / "cells.jsonl"), "--page", "none"]
    certificates.main(arguments)
    lines = certificates.lines_of(tmp_path / "cells.jsonl")
    assert [line["part"] for line in lines] == ["validity", "monitor", "real"]
    certificates.main(arguments)
    assert certificates.lines_of(tmp_path / "cells.jsonl") == lines
    assert ExitTrace.load(path).fingerprint is None
