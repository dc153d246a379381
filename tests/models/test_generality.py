"""DeeBERT and FastBERT as special cases of DACT-BERT, whose entropy thresholds are learned."""

import math
from pathlib import Path

import learned_entropy_thresholds as example
import pytest
import torch
from helpers.runs import largest_difference, new_model, new_trainer, texts, weights
from helpers.tiny import CORE, build, inputs_of, labels_of, predicted, thresholds_between, trace_of

from adaexit_hf import DactBertForSequenceClassification, DeeBertForSequenceClassification

Model = DactBertForSequenceClassification
THREE_STAGE = {"halting_input": "entropy", "fine_tuning": "three_stage"}
ENCODERS = (*CORE, "distilbert", "modernbert")
encoders = pytest.mark.parametrize("encoder", ENCODERS)


@torch.no_grad()
def as_dact(deebert: DeeBertForSequenceClassification, encoder: str, thresholds: list[float], **options: str) -> Model:
    """DACT with the same weights, and halting units as steep as a step; a single threshold is shared by all layers."""
    tied = len(thresholds) == 1
    model = build("dact-bert", encoder, halting_input="entropy", tied_halting=tied, **options)
    missing = model.load_state_dict(deebert.state_dict(), strict=False)
    assert all(name.startswith("halting.") for name in missing.missing_keys) and not missing.unexpected_keys
    for unit, threshold in zip(model.halting, thresholds, strict=True):
        unit.threshold.fill_(threshold)
        unit.log_weight.fill_(math.log(1e6))
    return model


@torch.no_grad()
def check_equal(deebert: DeeBertForSequenceClassification, threshold: float | list[float], model: Model) -> set[int]:
    """Equal exit layers and probabilities, example by example; returns the layers at which they leave."""
    inputs = inputs_of(deebert, rows=12)
    theirs, ours = deebert(**inputs, exit_threshold=threshold), model(**inputs, exit_threshold=0.0)
    assert ours.exit_layer.tolist() == theirs.exit_layer.tolist()
    assert ours.logits.argmax(dim=-1).tolist() == theirs.logits.argmax(dim=-1).tolist()
    torch.testing.assert_close(ours.logits.exp(), theirs.logits.softmax(dim=-1), atol=1e-6, rtol=1e-5)
    logits, layers = predicted(model, trace_of(model, inputs), 0.0)
    assert layers.tolist() == ours.exit_layer.tolist()
    torch.testing.assert_close(logits, ours.logits, atol=1e-5, rtol=1e-5)
    return set(theirs.exit_layer.tolist())


# A bound reads the scores, whatever encoder they come from.
@pytest.mark.parametrize(("encoder", "bound"), [*((encoder, "tight") for encoder in ENCODERS), ("bert", "paper")])
def test_deebert_is_dact_with_one_steep_entropy_threshold(encoder: str, bound: str) -> None:
    deebert, seen = build("deebert", encoder), set()
    for threshold in [0.0, *thresholds_between(trace_of(deebert, inputs_of(deebert, rows=12)), 10), math.log(3)]:
        seen |= check_equal(deebert, threshold, as_dact(deebert, encoder, [threshold], halting_bound=bound))
    assert len(seen) > 2


@encoders
def test_each_layer_may_have_a_threshold(encoder: str) -> None:
    deebert = build("deebert", encoder)
    between = thresholds_between(trace_of(deebert, inputs_of(deebert, rows=12)), 5)
    exits = len(deebert.exits)
    for thresholds in (between[:exits], between[-exits:]):
        check_equal(deebert, thresholds, as_dact(deebert, encoder, thresholds))


@encoders
def test_fastberts_criterion_is_dact_with_that_share_of_the_largest_entropy(encoder: str) -> None:
    fastbert, seen = build("deebert", encoder, exit_criterion="normalized_entropy"), set()
    for speed in thresholds_between(trace_of(fastbert, inputs_of(fastbert, rows=12)), 10):
        seen |= check_equal(fastbert, speed, as_dact(fastbert, encoder, [speed * math.log(3)]))
    assert len(seen) > 2


def trained(folder: Path, stage: str = "halting", steps: int = 30, **options: object) -> tuple[Model, Model]:
    """The same model before and after a stage."""
    before, after = (new_model("dact-bert", **THREE_STAGE | options) for _ in range(2))
    new_trainer(after, folder, max_steps=steps, learning_rate=0.03).train(stage=stage)
    return before, after


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("halting_input", ["entropy", "state"])
def test_the_third_stage_trains_the_halting_units_alone(halting_input: str, tied: bool, tmp_path: Path) -> None:
    options = {"halting_input": halting_input, "tied_halting": tied}
    before, after = (weights(each) for each in trained(tmp_path, steps=3, **options))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in after if name.startswith("halting.")}


def test_a_higher_price_raises_every_threshold(tmp_path: Path) -> None:
    learned = [trained(tmp_path / str(cost), ponder_cost=cost)[1].entropy_thresholds() for cost in (0.0, 0.05, 0.5)]
    for cheap, dearer in zip(learned, learned[1:], strict=False):
        assert all(low < high for low, high in zip(cheap[:-1], dearer[:-1], strict=True)), learned


def test_every_layer_learns_a_threshold_of_its_own_unless_they_are_tied(tmp_path: Path) -> None:
    _, free = trained(tmp_path / "free", steps=3)
    _, tied = trained(tmp_path / "tied", steps=3, tied_halting=True)
    assert len(set(free.entropy_thresholds())) == 4
    assert len(tied.entropy_thresholds()) == 4 and len(set(tied.entropy_thresholds())) == 1


def test_distilled_exits_need_no_labels(tmp_path: Path) -> None:
    model = new_model("dact-bert", **THREE_STAGE | {"fine_tuning": "three_stage_distilled"})
    before = weights(model)
    new_trainer(model, tmp_path, rows=texts(labels=False)).train(stage="exits")
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(("exits.0.", "exits.1.", "exits.2."))}


def test_distilled_exits_learn_what_the_last_one_says(tmp_path: Path) -> None:
    before, after = trained(tmp_path, "exits", fine_tuning="three_stage_distilled")
    inputs = {"input_ids": torch.tensor([row["input_ids"][:4] for row in texts()])}
    losses = [model.eval()(**inputs, objective="distillation").loss.item() for model in (before, after)]
    assert losses[1] < losses[0] / 2


def test_all_three_stages_in_one_call(tmp_path: Path) -> None:
    model = new_model("dact-bert", **THREE_STAGE)
    before = weights(model)
    new_trainer(model, tmp_path, learning_rate=0.01).train()
    assert all(not torch.equal(value, before[name]) for name, value in weights(model).items())
    assert largest_difference(before, weights(model)) < 1


def test_thresholds_survive_saving(tmp_path: Path) -> None:
    _, model = trained(tmp_path / "run", steps=3)
    model.save_pretrained(tmp_path / "saved")
    assert Model.from_pretrained(tmp_path / "saved").entropy_thresholds() == model.entropy_thresholds()


def test_missing_thresholds_start_anew(tmp_path: Path) -> None:
    model = build("dact-bert", **THREE_STAGE, halting_bias=1.0)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("halting.")}
    model.save_pretrained(tmp_path, state_dict=kept)
    again = Model.from_pretrained(tmp_path)
    assert again.entropy_thresholds() == model.entropy_thresholds()
    assert [unit.log_weight.item() for unit in again.halting] == [unit.log_weight.item() for unit in model.halting]


def test_only_entropy_halting_has_thresholds() -> None:
    with pytest.raises(ValueError, match="halting_input: got 'state', .* pass halting_input='entropy' to the config"):
        build("dact-bert").entropy_thresholds()


@pytest.mark.parametrize(("bias", "classes"), [(0.0, 2), (2.0, 3), (-1.5, 5)])
def test_entropy_halting_starts_in_the_middle_of_its_range(bias: float, classes: int) -> None:
    model = build("dact-bert", halting_input="entropy", halting_bias=bias, num_labels=classes)
    middle = torch.tensor([math.log(classes) / 2])
    for unit in model.halting:
        torch.testing.assert_close(unit(middle), torch.tensor([bias]).sigmoid())
        assert unit(2 * middle) > unit(middle) > unit(0 * middle)


def test_labels_are_needed_but_for_distillation() -> None:
    model = build("dact-bert", **THREE_STAGE)
    with_labels = model(**inputs_of(model), labels=labels_of(model), objective="distillation").loss
    assert torch.equal(model(**inputs_of(model), objective="distillation").loss, with_labels)
    assert model(**inputs_of(model), objective="adaptive").loss is None


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--tied"]])
def test_the_example_shows_a_threshold_for_each_layer(
    options: list[str],
    demo_encoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example.logging, "set_verbosity_error", lambda: None)  # it would last
    monkeypatch.setattr(example.logging, "disable_progress_bar", lambda: None)
    example.main(["--model_name_or_path", demo_encoder, "--train_size", "80", *options])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["tau", "S_1", "S_2", "accuracy", "mean", "exit", "layer"]
    assert [float(row.split()[0]) for row in rows] == list(example.PONDER_COSTS)
    assert "--tied" not in options or all(row.split()[1] == row.split()[2] for row in rows)
