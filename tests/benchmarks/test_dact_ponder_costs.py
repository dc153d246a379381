"""What the benchmark of DACT-BERT's ponder cost records of every exit."""

import datasets
import pytest
import torch
from dact_ponder_costs import by_layer
from helpers.tiny import build


@torch.no_grad()
def test_halting_values_and_own_accuracy_are_those_of_each_text_alone():
    model = build("dact-bert")
    rows = [{"input_ids": [1, 5 + row, 6, 2][: 3 + row % 2], "labels": row % 3} for row in range(5)]
    halting, right = [0.0] * 3, [0.0] * 3
    for row in rows:
        states = model.encoder(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[1:]
        for index, state in enumerate(states):
            halting[index] += model.halting[index](state[:, 0]).item() / 5
            right[index] += (model.exits[index](state[:, 0]).argmax().item() == row["labels"]) / 5
    found = by_layer(model, datasets.Dataset.from_list(rows), batch_size=2)
    assert found["halting"] == pytest.approx(halting, abs=1e-5)
    assert found["own_accuracy"] == pytest.approx(right)
