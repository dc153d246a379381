"""Scores at thresholds that were chosen on other rows, compared with a reference that handles one row at a time."""

import math

import pytest
import torch

from adaexit_hf import ExitTrace, choose_layer, choose_threshold, choose_within, cross_fitted, tradeoff_curve
from adaexit_hf.evaluation.cross_fit import NoHalvesError, split_in_halves
from adaexit_hf.evaluation.summary import results_at_threshold
from adaexit_hf.evaluation.thresholds import spread_thresholds


def random_trace(rows: int = 60, labels: int = 3, seed: int = 0) -> ExitTrace:
    """Deeper exits are right more often, and confidence says how often."""
    source = torch.Generator().manual_seed(seed)
    truth = torch.randint(max(labels, 2), (rows,), generator=source)
    logits = torch.randn(rows, 3, labels, generator=source)
    if labels == 1:
        logits += truth[:, None, None] * torch.tensor([0.5, 1.0, 2.0])[:, None]
        return ExitTrace(logits, torch.rand(rows, 3, generator=source), truth.double(), (1, 2, 3), "gt")
    logits += torch.eye(labels)[truth][:, None] * torch.tensor([1.0, 2.0, 3.0])[:, None]
    return ExitTrace(logits, logits.softmax(-1).amax(-1), truth, (1, 2, 3), "gt", bounds=(0.0, 1.0))


def right_at(trace: ExitTrace, row: int, threshold: float | None) -> tuple[bool, int]:
    """Whether a row is right, and after how many layers, one exit after the other."""
    for exit, layer in enumerate(trace.exit_layers):
        last = exit == len(trace.exit_layers) - 1
        if last or (threshold is not None and trace.scores[row, exit].item() > threshold):
            values = trace.logits[row, exit].tolist()
            return values.index(max(values)) == trace.labels[row].item(), layer
    raise AssertionError


def test_each_row_is_scored_with_the_threshold_of_the_other_half():
    trace = random_trace()
    found = cross_fitted(trace, ["accuracy"], max_drop=0.05)
    first, second = split_in_halves(trace.labels)
    rights, layers = [], []
    for half, other, threshold in zip((first, second), (second, first), found.thresholds, strict=True):
        part = trace.take(half)
        assert choose_threshold(tradeoff_curve(part, "accuracy", spread_thresholds(part)), 0.05).threshold == threshold
        for row in other.tolist():
            right, layer = right_at(trace, row, threshold)
            rights.append(right)
            layers.append(layer)
    assert found.scores == {"accuracy": pytest.approx(sum(rights) / 60)}
    assert found.mean_layers == pytest.approx(sum(layers) / 60)
    assert found.saving == pytest.approx(1 - sum(layers) / 180)


def test_a_score_that_only_fits_its_own_rows_is_not_reported():
    """The scores are noise, so what the threshold gains on its own rows is chance."""
    gains = []
    for seed in range(20):
        trace = random_trace(rows=40, labels=2, seed=seed)
        noise = torch.rand(40, 3, generator=torch.Generator().manual_seed(seed))
        trace = ExitTrace(trace.logits, noise, trace.labels, (1, 2, 3), "gt")
        same_rows = choose_threshold(tradeoff_curve(trace, "accuracy"), 0.1).score
        gains.append(same_rows - cross_fitted(trace, ["accuracy"], max_drop=0.1).scores["accuracy"])
    assert sum(gains) / 20 > 0.01


def test_every_class_is_in_both_halves_alike():
    labels = torch.tensor([0] * 31 + [1] * 8 + [2] * 2)
    halves = split_in_halves(labels[torch.randperm(41, generator=torch.Generator().manual_seed(1))])
    assert sorted(torch.cat(halves).tolist()) == list(range(41))
    shuffled = labels[torch.randperm(41, generator=torch.Generator().manual_seed(1))]
    counts = [torch.bincount(shuffled[half], minlength=3) for half in halves]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert [len(half) for half in halves] == [21, 20]


def test_halves_depend_on_labels_and_seed_alone():
    first, second = (random_trace(seed=seed) for seed in (0, 1))
    other = ExitTrace(second.logits, second.scores, first.labels, (1, 2, 3), "gt")
    a, b = cross_fitted(first, ["accuracy"]), cross_fitted(other, ["accuracy"])
    assert a.thresholds != b.thresholds
    assert torch.equal(split_in_halves(first.labels)[0], split_in_halves(other.labels)[0])
    assert not torch.equal(split_in_halves(first.labels)[0], split_in_halves(first.labels, seed=1)[0])


def test_regression_is_split_at_random():
    found = cross_fitted(random_trace(labels=1), ["spearmanr", "pearson"], max_layers=2)
    assert list(found.scores) == ["spearmanr", "pearson"] and found.mean_layers < 2.5


def test_one_exit_has_nothing_to_choose():
    trace = random_trace()
    one = ExitTrace(trace.logits[:, -1:], trace.scores[:, -1:], trace.labels, (3,), "gt")
    found = cross_fitted(one, ["accuracy"])
    assert found.thresholds == (None, None) and found.mean_layers == 3
    assert found.scores["accuracy"] == pytest.approx(
        (one.logits[:, 0].argmax(-1) == one.labels).double().mean().item()
    )


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        ([], {}, r"metrics: got \[\]; pass a list of one name or more"),
        ("accuracy", {}, "metrics: got 'accuracy'; pass a list of one name or more"),
        (["accuracy"], {"max_drop": 0.1, "max_layers": 2}, "max_drop, max_layers: got 0.1, 2; pass one of them"),
    ],
)
def test_what_cannot_be_chosen_by_is_refused(metrics, options, message):
    labels = torch.tensor([0, 1] * 2)
    trace = ExitTrace(torch.zeros(4, 2, 2), torch.zeros(4, 2), labels, (1, 2), "gt")
    with pytest.raises(ValueError, match=message):
        cross_fitted(trace, metrics, **options)


def test_one_row_has_no_halves():
    with pytest.raises(NoHalvesError, match="trace: got 1 row, which cannot be split into halves"):
        cross_fitted(random_trace(rows=1), ["accuracy"])


def test_a_budget_is_spent():
    curve = tradeoff_curve(random_trace(), "accuracy")
    assert choose_within(curve, 2).mean_layers == max(point.mean_layers for point in curve if point.mean_layers <= 2)
    assert choose_within(curve, 3).mean_layers == 3.0
    equal = [
        point._replace(score=score, mean_layers=1.5) for point, score in zip(curve, (0.1, 0.9, 0.5), strict=False)
    ]
    assert choose_within(equal, 2).score == 0.9
    with pytest.raises(ValueError, match=r"max_layers: got 0.5, but every point of the curve runs at least 1 layers"):
        choose_within(curve, 0.5)


@pytest.mark.parametrize(("max_drop", "layer"), [(0.0, 12), (0.15, 9), (0.35, 9), (0.4, 3)])
def test_one_layer_for_all_is_the_last_before_the_first_that_is_worse(max_drop, layer):
    # Accuracies 0.7, 0.6, 0.9, 1: the second exit is worse than the first.
    right = torch.tensor([[index < count for count in (7, 6, 9, 10)] for index in range(10)])
    logits = torch.eye(2)[right.long()]
    trace = ExitTrace(logits, torch.zeros(10, 4), torch.ones(10, dtype=torch.long), (3, 6, 9, 12), "lt")
    assert choose_layer(trace, "accuracy", max_drop) == layer


def test_one_layer_for_all_where_full_depth_has_no_score():
    logits = torch.tensor([[1.0, math.nan], [2.0, math.nan]])[..., None]
    trace = ExitTrace(logits, torch.zeros(2, 2), torch.tensor([1.0, 2.0]), (1, 2), "lt")
    with (
        pytest.warns(RuntimeWarning, match="not finite"),
        pytest.raises(ValueError, match="trace: the score at full depth is nan"),
    ):
        choose_layer(trace, "pearson")


def test_several_labels_at_once_are_scored_and_one_layer_chosen_for_them():
    source = torch.Generator().manual_seed(0)
    truth = torch.randint(2, (30, 3), generator=source)
    weights = torch.tensor([1.0, 3.0, 30.0])[:, None]  # the last exit gives every label
    logits = torch.randn(30, 3, 3, generator=source) + weights * (2 * truth[:, None] - 1)
    trace = ExitTrace(logits, logits.abs().amin(-1), truth.double(), (1, 2, 3), "gt", multi_label=True)
    found = cross_fitted(trace, ["f1_micro", "accuracy"], max_drop=0.2)
    answered = logits[torch.arange(30), found.exits] > 0
    assert found.scores["accuracy"] == pytest.approx((answered == truth).all(-1).double().mean().item())
    assert found.scores["f1_micro"] > 0.75
    assert choose_layer(trace, "accuracy", 0.0) == 3 and choose_layer(trace, "accuracy", 0.99) == 1


def test_a_regression_whose_halves_leave_at_different_exits_has_the_mean_of_their_scores():
    """The two exits answer on other scales, so a correlation over both halves says nothing."""
    truth = torch.arange(8.0)
    first, second = split_in_halves(truth, classes=False)
    middle = truth + 100  # right in the first half, in another order in the second
    middle[second] = 100 + torch.tensor([3.0, 1.0, 0.0, 2.0])
    answers = torch.stack([-truth, middle, truth], dim=1)[..., None]
    trace = ExitTrace(answers, torch.tensor([1.0, 2.0, 3.0]).repeat(8, 1), truth.double(), (1, 2, 3), "ge")
    honest = cross_fitted(trace, ["spearmanr"])
    assert honest.thresholds == (2.0, None)
    assert honest.mean_layers == pytest.approx(2.5) and honest.half_layers == (2, 3)
    # The first half is answered after 3 layers, the second after 2.
    assert honest.scores == {"spearmanr": pytest.approx((1.0 - 0.4) / 2)}
    assert results_at_threshold(trace, ["spearmanr"], 2.0, honest=honest)["at_threshold"] == honest.scores
