"""The depth-adaptive transformer against its paper, token by token."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import (
    EAGER_ONLY,
    ENCODERS,
    FAMILIES,
    batch,
    build,
    check_loss_and_gradients,
    encoder,
    encoder_config,
    inputs_of,
    labels_of,
    one_by_one,
    trace_of,
)
from torch import Tensor

from adaexit_hf import DepthAdaptiveConfig, DepthAdaptiveForSequenceClassification
from adaexit_hf.models.encoder_layers import embed_inputs, family_of, run_layer, run_tokens
from adaexit_hf.models.modeling_depth_adaptive import binned_depths, mutual_information, mutual_information_depths

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
Model = DepthAdaptiveForSequenceClassification


def depths_of(model: Model, inputs: dict[str, Tensor]) -> Tensor:
    return model.depth_table(inputs["input_ids"])


def naive(model: Model, example: dict[str, Tensor], depths: list[int]) -> tuple[Tensor, int]:
    """Logits and n_max of one example without padding: Eq. 5 token by token, then Eq. 6."""
    family, (hidden, context) = family_of(model.encoder.config), stem(model, example)
    for n, layer in enumerate(family.layers(model.encoder), start=1):
        if n > max(depths):
            break
        after, _ = run_layer(model.encoder, n - 1, layer, hidden, context)
        states = [after[0, t] if n <= d else hidden[0, t] for t, d in enumerate(depths)]
        hidden = torch.stack(states)[None]
    states = family.finish(model.encoder, hidden)[0]
    v = torch.cat([states.max(dim=0).values, states.mean(dim=0)]).relu()
    return model.classifier.weight @ v + model.classifier.bias, max(depths)


def stem(model: Model, example: dict[str, Tensor]) -> Any:
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    return embed_inputs(model.encoder, **{name: example.get(name) for name in names})


def unpadded(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    rows = []
    for row in one_by_one(inputs):
        kept = row["attention_mask"][0].bool()
        rows.append({name: value[:, kept] for name, value in row.items()})
    return rows


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_and_layers_are_those_of_equations_5_and_6(name: str) -> None:
    model = build("depth-adaptive", name)
    inputs = inputs_of(model)
    output = model(**inputs, exit_threshold=1.0)
    for row, example in enumerate(unpadded(inputs)):
        logits, deepest = naive(model, example, depths_of(model, example)[0].tolist())
        assert output.exit_layer[row] == deepest
        torch.testing.assert_close(output.logits[row], logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", ["task"])
def test_the_loss_and_its_gradients(objective: str) -> None:
    model = build("depth-adaptive")
    inputs, labels = inputs_of(model), labels_of(model)
    logits = [naive(model, example, depths_of(model, example)[0].tolist())[0] for example in unpadded(inputs)]
    expected = -torch.stack([z.log_softmax(dim=0)[y] for z, y in zip(logits, labels, strict=True)]).mean()
    check_loss_and_gradients(model, expected, model(**inputs, labels=labels, objective=objective).loss)


def test_training_runs_whole_layers_and_gives_the_same_loss() -> None:
    model = build("depth-adaptive", encoder_config=encoder_config("bert", **NO_DROPOUT))
    inputs, labels = inputs_of(model), labels_of(model)
    losses = [each(**inputs, labels=labels, objective="task").loss for each in (model.eval(), model.train())]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [name for name in ENCODERS if not name.startswith("deberta")])
@torch.no_grad()
def test_active_tokens_alone_give_the_states_of_the_whole_layer(name: str, attention: str, padding: str) -> None:
    if attention == "sdpa" and name in EAGER_ONLY:
        return
    stock = encoder(name, attn_implementation=attention)
    inputs = batch(stock.config, padding)
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    hidden, context = embed_inputs(stock, **{each: inputs.get(each) for each in names})
    torch.manual_seed(0)
    active = torch.rand(hidden.shape[:2]) < 0.5
    active[0], active[1] = False, True
    active &= inputs.get("attention_mask", torch.ones_like(active)).bool()
    for index, layer in enumerate(family_of(stock.config).layers(stock)):
        whole, _ = run_tokens(stock, index, layer, hidden, context, active, whole=True)
        spared, _ = run_tokens(stock, index, layer, hidden, context, active)
        torch.testing.assert_close(spared, whole, atol=2e-5, rtol=1e-4)
        assert torch.equal(spared[~active], hidden[~active])
        hidden = whole


@torch.no_grad()
def test_only_active_tokens_are_computed() -> None:
    model = build("depth-adaptive")
    rows: list[int] = []
    for layer in model.encoder.encoder.layer:
        layer.intermediate.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    inputs = inputs_of(model)
    depths = depths_of(model, inputs) * inputs["attention_mask"]
    model(**inputs, exit_threshold=1.0)
    assert rows == [int((depths >= n).sum()) for n in range(1, int(depths.max()) + 1)]


@torch.no_grad()
def test_copied_tokens_stay_visible() -> None:
    model = build("depth-adaptive")
    inputs = {name: value[:1] for name, value in inputs_of(model, "none").items()}
    depths = torch.full_like(inputs["input_ids"], 1)
    depths[0, 0] = 3
    before = model(**inputs, token_depths=depths, output_hidden_states=True).hidden_states
    inputs["input_ids"][0, 5] = (inputs["input_ids"][0, 5] + 1) % 60
    after = model(**inputs, token_depths=depths, output_hidden_states=True).hidden_states
    assert torch.equal(before[3][0, 1:], before[1][0, 1:])
    assert not torch.allclose(before[3][0, 0], after[3][0, 0])


@torch.no_grad()
def test_pads_do_not_count() -> None:
    model = build("depth-adaptive")
    inputs = {name: value[:1] for name, value in inputs_of(model, "none").items()}
    alone = model(**inputs, exit_threshold=1.0)
    longer = {name: torch.nn.functional.pad(value, (0, 4)) for name, value in inputs.items()}
    longer["attention_mask"] = torch.nn.functional.pad(torch.ones_like(inputs["input_ids"]), (0, 4))
    model.depth_table.weight[0] = 3  # the pad's
    padded = model(**longer, exit_threshold=1.0)
    assert padded.exit_layer.tolist() == alone.exit_layer.tolist()
    torch.testing.assert_close(padded.logits, alone.logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_score_is_the_share_of_tokens_at_their_depth() -> None:
    model = build("depth-adaptive")
    inputs = {name: value[:1, :4] for name, value in inputs_of(model, "none").items()}
    trace = model(**inputs, token_depths=torch.tensor([[1, 1, 2, 3]]), early_exit=False)
    assert trace.exit_scores.tolist() == [[0.5, 0.75, 1.0]]


@pytest.mark.parametrize(("depth", "layers"), [(1, 1), (3, 3)])
@torch.no_grad()
def test_all_tokens_may_have_one_depth(depth: int, layers: int) -> None:
    model = build("depth-adaptive")
    inputs = inputs_of(model)
    output = model(**inputs, token_depths=torch.full_like(inputs["input_ids"], depth), exit_threshold=1.0)
    assert output.exit_layer.tolist() == [layers] * 6


@torch.no_grad()
def test_the_deepest_table_is_the_plain_encoder() -> None:
    model = build("depth-adaptive")
    model.depth_table.weight.fill_(3)
    inputs = inputs_of(model)
    stock = model.encoder(**inputs, output_hidden_states=True).hidden_states
    ours = trace_of(model, inputs | {"output_hidden_states": True}).hidden_states
    for mine, theirs in zip(ours, stock, strict=True):
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(mine[real], theirs[real], atol=1e-5, rtol=1e-4)


# The table


def slow_information(texts: list[list[int]], labels: list[int], word: int, smoothing: float = 0.1) -> float:
    total = 0.0
    for label in sorted(set(labels)):
        counts = {(i, j): smoothing for i in (0, 1) for j in (0, 1)}
        for text, given in zip(texts, labels, strict=True):
            counts[int(word in text), int(given == label)] += 1
        n = sum(counts.values())
        for (i, j), count in counts.items():
            marginal = (counts[i, 0] + counts[i, 1]) * (counts[0, j] + counts[1, j]) / n**2
            total += count / n * math.log(count / n / marginal)
    return total


TEXTS = [[1, 5, 6], [1, 5, 7], [1, 5, 8, 6], [1, 9, 6], [1, 9, 7, 7], [1, 8, 7], [1, 10, 5]]
LABELS = [0, 0, 0, 1, 1, 2, 0]


def test_mutual_information_word_by_word() -> None:
    words = sorted({word for text in TEXTS for word in text})
    rows = [[sum(word in text for text, y in zip(TEXTS, LABELS, strict=True) if y == label) for label in range(3)]
            for word in words]  # fmt: skip
    totals = [LABELS.count(label) for label in range(3)]
    found = mutual_information(torch.tensor([*rows, totals]))
    assert found.tolist() == pytest.approx([slow_information(TEXTS, LABELS, word) for word in words], abs=1e-12)


def test_words_with_more_information_get_fewer_layers() -> None:
    depths = mutual_information_depths(TEXTS, LABELS, vocab_size=12, depth=4)
    information = {word: slow_information(TEXTS, LABELS, word) for word in range(5, 11)}
    ranked = sorted(information, key=lambda word: -information[word])
    assert depths[ranked].tolist() == sorted(depths[ranked].tolist())
    assert depths[ranked[0]] == 1 and depths[5] == 1 and depths.max() == 4 and depths.min() == 1


def test_unseen_words_are_deepest_and_words_of_every_text_shallowest() -> None:
    depths = mutual_information_depths(TEXTS, LABELS, vocab_size=12, depth=4, special_ids=[2])
    assert depths[[0, 3, 4, 11]].tolist() == [4] * 4
    assert depths[[1, 2]].tolist() == [1, 1]


def test_a_balanced_word_does_not_stretch_the_bins() -> None:
    information = torch.tensor([0.5, 0.2, 0.05, 0.01, 0.002, 0.0, 1e-17])
    assert binned_depths(information, depth=4).tolist() == [1, 1, 2, 3, 4, 4, 4]


def test_no_word_says_anything() -> None:
    assert binned_depths(torch.zeros(3), depth=4).tolist() == [4, 4, 4]


def test_the_table_travels_inside_the_checkpoint(tmp_path: Path) -> None:
    model = build("depth-adaptive")
    rows = [{"input_ids": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    table = model.estimate_depths_by_mutual_information(rows)
    assert model.depth_table(torch.tensor([[5, 63, 64, 1000]])).tolist() == [[int(table[5]), 3, 3, 3]]
    model.save_pretrained(tmp_path)
    again = DepthAdaptiveForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again.depth_table.weight, table.float())


def test_a_reloaded_model_estimates_anew(tmp_path: Path) -> None:
    build("depth-adaptive").save_pretrained(tmp_path)
    model = DepthAdaptiveForSequenceClassification.from_pretrained(tmp_path)
    table = model.estimate_depths_by_mutual_information(
        [{"input_ids": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    )
    model.resize_token_embeddings(80)
    assert torch.equal(model.depth_table.weight[:64], table.float()) and not model.depth_table.weight[64:].any()


def test_training_on_depths_that_nobody_estimated_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = DepthAdaptiveForSequenceClassification(DepthAdaptiveConfig(encoder_config(), num_labels=3)).train()
    logging.getLogger("transformers").propagate = True
    for _ in range(2):
        model(**inputs_of(model), labels=labels_of(model))
    warned = [record for record in caplog.records if "depths of words are not estimated" in record.getMessage()]
    assert len(warned) == 1 and "call model.prepare(train_dataset)" in warned[0].getMessage()


@torch.no_grad()
def test_embeddings_have_no_words_to_look_up() -> None:
    model = build("depth-adaptive")
    inputs = inputs_of(model)
    ids = inputs.pop("input_ids")
    inputs["inputs_embeds"] = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match=r"inputs_embeds: .* pass the depths, too, token_depths=model.depth_table"):
        model(**inputs)
    expected = model(**inputs_of(model))
    found = model(**inputs, token_depths=model.depth_table(ids))
    torch.testing.assert_close(found.logits, expected.logits)


def test_pads_of_a_padded_data_set_are_not_words() -> None:
    model = build("depth-adaptive")
    rows = [{"input_ids": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    expected = model.estimate_depths_by_mutual_information(rows).clone()
    padded = [
        {"input_ids": [*row["input_ids"], 0, 0], "attention_mask": [1] * len(row["input_ids"]) + [0, 0]}
        | row
        | {"input_ids": [*row["input_ids"], 0, 0]}
        for row in rows
    ]
    assert torch.equal(model.estimate_depths_by_mutual_information(padded), expected)


# The halting unit


def test_the_halting_unit_reads_layer_1_and_its_likeliest_depth_counts() -> None:
    model = build("depth-adaptive-halting")
    inputs = inputs_of(model)
    with torch.no_grad():
        states = model.encoder(**inputs, output_hidden_states=True).hidden_states[1]
        depths = (states @ model.halting.weight.T + model.halting.bias).argmax(dim=-1) + 1
        output = model(**inputs, exit_threshold=1.0)
    deepest = (depths * inputs["attention_mask"]).amax(dim=1)
    assert output.exit_layer.tolist() == deepest.tolist()
    assert len(set(deepest.tolist())) > 1


def test_the_anytime_loss_and_its_gradients() -> None:
    model = build("depth-adaptive-halting", encoder_config=encoder_config("bert", **NO_DROPOUT))
    inputs, labels = inputs_of(model), labels_of(model)
    losses, penalty = [], model.config.halting_penalty
    total = torch.zeros(())
    tokens = int(inputs["attention_mask"].sum())
    for example, label in zip(unpadded(inputs), labels, strict=True):
        states = model.encoder(**example, output_hidden_states=True).hidden_states[1:]
        answers = [model.classifier(torch.cat([h[0].max(dim=0).values, h[0].mean(dim=0)]).relu()) for h in states]
        losses.append(torch.stack([-z.log_softmax(dim=0)[label] for z in answers]).mean())
        worth = [float(z.argmax() == label) - penalty * n for n, z in enumerate(answers, start=1)]
        target = worth.index(max(worth))
        for h in states[0][0]:
            total = total - (model.halting.weight @ h + model.halting.bias).log_softmax(dim=0)[target]
    expected = torch.stack(losses).mean() + total / tokens
    check_loss_and_gradients(model, expected, model.train()(**inputs, labels=labels, objective="anytime").loss)


# What is refused


@pytest.mark.parametrize("variant", ["depth-adaptive", "depth-adaptive-halting"])
def test_a_batch_without_inputs_is_refused(variant: str) -> None:
    with pytest.raises(ValueError, match="pass exactly one of input_ids and inputs_embeds"):
        build(variant).train()(attention_mask=torch.ones(1, 3))


def test_settings_of_a_missing_halting_unit_are_refused() -> None:
    with pytest.raises(ValueError, match="halting_penalty, halting_weight: got 0.1, 1.0, which depth_source='mutual"):
        DepthAdaptiveConfig(halting_penalty=0.1)


def test_depths_of_another_tokenizer_are_refused() -> None:
    model = build("depth-adaptive")
    inputs = inputs_of(model)
    with pytest.raises(ValueError, match=r"token_depths: got shape \(6, 8\) for tokens .*another tokenizer"):
        model(**inputs, token_depths=torch.ones(6, 8, dtype=torch.long))


@pytest.mark.parametrize("value", [0, 4])
def test_depths_beyond_the_encoder_are_refused(value: int) -> None:
    model = build("depth-adaptive")
    inputs = inputs_of(model)
    with pytest.raises(ValueError, match=f"token_depths: got {value}; this encoder has layers 1 to 3"):
        model(**inputs, token_depths=torch.full_like(inputs["input_ids"], value))


def test_missing_depths_are_refused() -> None:
    model = build("depth-adaptive", depth_source="reconstruction")
    with pytest.raises(ValueError, match="token_depths: missing; .* call estimate_depths_by_reconstruction"):
        model(**inputs_of(model))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "got no rows"),
        ([{"input_ids": [1, 2]}], "has no labels"),
        ([{"input_ids": [1, 2], "label": 1}] * 3, "got 3 texts with 1 classes"),
        (
            [{"input_ids": [1, 64], "label": 1}, {"input_ids": [1], "label": 0}],
            "item 0 has the token id 64, .* vocabulary has the ids 0 to 63",
        ),
    ],
)
def test_data_that_mutual_information_cannot_use_is_refused(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=f"dataset: {message}"):
        build("depth-adaptive").estimate_depths_by_mutual_information(rows)


def test_a_model_without_a_table() -> None:
    with pytest.raises(ValueError, match="depth_source: 'halting' has no table"):
        build("depth-adaptive-halting").estimate_depths_by_mutual_information([])


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="exit_pooling: got 'first', but this method reads the maximum and the mean"):
        DepthAdaptiveConfig(exit_pooling="first")
    with pytest.raises(
        ValueError, match="depth_source: got 'mutual_information', which needs classes, and num_labels=1 has none"
    ):
        DepthAdaptiveConfig(num_labels=1)
    assert DepthAdaptiveConfig(num_labels=1, depth_source="reconstruction").exit_threshold == 1.0


def test_anytime_training_needs_a_halting_unit() -> None:
    model = build("depth-adaptive")
    with pytest.raises(ValueError, match="objective: got .anytime.; .* has the objectives task"):
        model(**inputs_of(model), labels=labels_of(model), objective="anytime")
