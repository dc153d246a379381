"""The table of rules for choosing a threshold."""

import pytest
import threshold_rules
import torch

from adaexit_hf import CurvePoint, ExitTrace


def test_a_row_per_trace_and_a_column_per_rule(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, scores = torch.randn(40, 3, 2, generator=generator), torch.rand(40, 3, generator=generator)
    (tmp_path / "cell").mkdir()
    path = tmp_path / "cell" / "validation.safetensors"
    ExitTrace(logits, scores, torch.arange(40) % 2, (1, 2, 3), "gt").save(path)
    threshold_rules.main([str(path), "--ways", "2"])
    header, _, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| cell |") and row.count("|") == header.count("|") == len(threshold_rules.RULES) + 2


def test_the_rules_differ_beyond_the_first_loss() -> None:
    scores = {2: 0.80, 4: 0.70, 6: 0.795, 12: 0.80}
    curve = [CurvePoint(None if n == 12 else float(n), score, n, 1 - n / 12) for n, score in scores.items()]
    chosen = {name: rule(curve).mean_layers for name, rule in threshold_rules.RULES.items()}
    assert (chosen["1 % first"], chosen["1 % any"]) == (6, 2)
    assert threshold_rules.best_within(curve, 5).mean_layers == 2
