"""Certificates against plain loops, what is refused and why, and what a trace says of its texts."""

import dataclasses
import json
import math

import pytest
import torch
from helpers.tiny import build
from helpers.traces import by_hand

from adaexit_hf import Certificate, ExitTrace, Guarantee, Refusal, certify, collect_trace, overlap
from adaexit_hf.evaluation.bounds import betting_p_value, binomial_p_value
from adaexit_hf.evaluation.certificate import check_on_rows
from adaexit_hf.evaluation.fingerprints import row_hash
from adaexit_hf.evaluation.guarantee import row_losses
from adaexit_hf.evaluation.thresholds import fixed_thresholds

CHANGED = Guarantee("changed_answers", 0.05)


def random_trace(rows: int = 300, classes: int = 3, exits: int = 3, seed: int = 0, **changes: object) -> ExitTrace:
    """Exits that the more agree with the last one, the more confident they are."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, exits, generator=generator)
    logits = torch.randn(rows, 1, classes, generator=generator) + torch.zeros(rows, exits, classes)
    noise = torch.randn(rows, exits, classes, generator=generator) * 2 * (1 - scores[..., None]) ** 3
    noise[:, -1] = 0
    labels = torch.randint(classes, (rows,), generator=generator) if classes > 1 else None
    facts = {"criterion": "confidence", "bounds": (0.0, 1.0), "exit_layers": (2, 4, 6)[-exits:], "ready": "gt"}
    return ExitTrace(**{"logits": logits + noise, "scores": scores, "labels": labels, **facts, **changes})


def walked(trace: ExitTrace, limit: float, delta: float, grid: list[float]) -> float | None:
    """The last threshold before the first whose share of changed answers could be above the limit, by loops."""
    chosen = None
    for threshold in grid:
        losses = 0
        for logits, scores in zip(trace.logits.tolist(), trace.scores.tolist(), strict=True):
            ready = [index for index, score in enumerate(scores[:-1]) if score > threshold]
            answers = [each.index(max(each)) for each in logits]
            losses += answers[min(ready, default=-1)] != answers[-1]
        rows = len(trace.logits)
        if sum(math.comb(rows, k) * limit**k * (1 - limit) ** (rows - k) for k in range(losses + 1)) > delta:
            break
        chosen = threshold
    return chosen


@pytest.mark.parametrize("limit", [0.03, 0.05, 0.1])
def test_the_threshold_is_that_of_a_loop(limit):
    trace = random_trace()
    certificate = certify(trace, Guarantee("changed_answers", limit), 0.9)
    assert isinstance(certificate, Certificate)
    assert certificate.threshold == walked(trace, limit, 0.1, fixed_thresholds(trace))
    assert certificate.risks[0] <= certificate.bounds[0] <= limit
    layers = trace.at(certificate.threshold)[1].double()
    assert certificate.mean_layers == pytest.approx(layers.mean().item())
    assert certificate.saving == pytest.approx(1 - layers.mean().item() / 6)


@pytest.mark.parametrize("kind", ["changed_answers", "harm", "accuracy_drop"])
def test_losses_of_classes_by_hand(kind):
    trace = random_trace()
    losses = row_losses(trace, Guarantee(kind, 0.05))
    for row, label in enumerate(trace.labels.tolist()):
        answers = trace.logits[row].argmax(-1).tolist()
        right = [answer == label for answer in answers]
        expected = {
            "changed_answers": [float(answer != answers[-1]) for answer in answers],
            "harm": [float(right[-1] and not each) for each in right],
            "accuracy_drop": [float(right[-1]) - each for each in right],
        }[kind]
        assert losses[row].tolist() == expected


def test_losses_of_numbers_by_hand():
    logits = torch.tensor([[1.0, 3.0], [6.0, 4.0], [math.nan, 2.0]])[..., None]
    trace = by_hand(logits=logits, scores=torch.zeros(3, 2), labels=None, exit_layers=(3, 6))
    assert row_losses(trace, Guarantee("changed_answers", 0.1, tolerance=1.9)).tolist() == [[1, 0], [1, 0], [1, 0]]
    assert row_losses(trace, Guarantee("changed_answers", 0.1, tolerance=2)).tolist() == [[0, 0], [0, 0], [1, 0]]
    difference = Guarantee("mean_difference", 0.1, value_range=(0, 5))
    assert row_losses(trace, difference).tolist() == [[2, 0], [1, 0], [5, 0]]  # 6 is cut to 5


def test_losses_of_label_sets_and_of_logits_that_are_not_finite():
    logits = torch.tensor([[[1.0, -1.0], [1.0, 1.0]], [[1.0, 2.0], [3.0, 1.0]], [[1.0, math.inf], [1.0, 1.0]]])
    labels = torch.tensor([[1, 1], [1, 1], [1, 1]])
    trace = by_hand(logits=logits, scores=torch.zeros(3, 2), labels=labels, exit_layers=(3, 6), multi_label=True)
    for kind in ("changed_answers", "harm", "accuracy_drop"):
        assert row_losses(trace, Guarantee(kind, 0.1)).tolist() == [[1, 0], [0, 0], [1, 0]]


def test_a_refusal_says_what_it_would_take():
    trace = random_trace(40)
    refusal = certify(trace, CHANGED)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.smallest_n) == ("40 rows are too few.", 59)  # 0.95 ** 59 < 0.05
    assert isinstance(certify(trace, Guarantee("changed_answers", refusal.best_limits[0] + 1e-6)), Certificate)
    assert isinstance(certify(trace, Guarantee("changed_answers", refusal.best_limits[0] - 1e-6)), Refusal)
    assert "At least 59 rows are needed, if none has a loss" in str(refusal)
    assert json.loads(json.dumps(refusal.as_dict()))["smallest_n"] == 59


def test_a_refusal_of_enough_rows_does_not_ask_for_fewer():
    refusal = certify(random_trace(200), CHANGED, thresholds=[0.0])
    assert isinstance(refusal, Refusal) and refusal.smallest_n == 59
    assert "At least" not in str(refusal) and "The best that these 200 rows can certify is" in str(refusal)


@pytest.mark.parametrize("kind", ["accuracy_drop", "harm"])
def test_the_best_limit_is_just_certified(kind):
    trace = random_trace(400, seed=1)
    refusal = certify(trace, Guarantee(kind, 0.001))
    assert isinstance(certify(trace, Guarantee(kind, refusal.best_limits[0] + 1e-6)), Certificate)
    assert isinstance(certify(trace, Guarantee(kind, refusal.best_limits[0] - 1e-6)), Refusal)


def test_the_likely_number_of_rows_suffices_if_losses_stay_as_frequent():
    trace = random_trace(300, seed=2)
    trace = trace.take(torch.arange(300))
    refusal = certify(trace, Guarantee("changed_answers", 0.012), thresholds=[0.5])
    rate = row_losses(trace, CHANGED).gather(1, trace.exits_at(0.5)[:, None]).mean().item()
    assert rate >= 0.012 and refusal.likely_n is None
    limit = rate * 1.2
    refusal = certify(trace, Guarantee("changed_answers", limit), thresholds=[0.5])
    assert binomial_p_value(rate * refusal.likely_n, refusal.likely_n, limit) <= 0.05
    assert binomial_p_value(rate * (refusal.likely_n - 1), refusal.likely_n - 1, limit) > 0.05
    assert refusal.reason.startswith("changed_answers <= ") and "cannot be told from" in refusal.reason


def test_a_threshold_that_saves_nothing_is_no_certificate():
    trace = random_trace(scores=torch.full((300, 3), 0.5))
    refusal = certify(trace, CHANGED, thresholds=[0.9, 0.8])
    assert isinstance(refusal, Refusal) and refusal.best_limits is None
    assert refusal.reason == "no threshold lets a text of these rows leave early."


def test_several_guarantees_of_quality_are_each_tested_at_the_full_level():
    trace, grid = random_trace(), fixed_thresholds(random_trace())
    both = certify(trace, [CHANGED, Guarantee("harm", 0.02)])
    alone = [certify(trace, each).threshold for each in (CHANGED, Guarantee("harm", 0.02))]
    assert both.threshold == min(alone, key=grid.index)


def test_quality_and_cost_share_the_error():
    trace, grid = random_trace(1000), fixed_thresholds(random_trace())
    budget = Guarantee("mean_layers", 5.5)
    both = certify(trace, [CHANGED, budget], 0.9)
    assert both.threshold == certify(trace, CHANGED, 0.95).threshold
    layers = (trace.at(both.threshold)[1].double().numpy() - 2) / 4
    assert betting_p_value(layers, 3.5 / 4, 0.05) <= 0.05
    strictest = certify(trace, budget, 0.95).threshold
    assert grid.index(strictest) <= grid.index(both.threshold)
    layers = (trace.at(grid[grid.index(strictest) - 1])[1].double().numpy() - 2) / 4
    assert betting_p_value(layers, 3.5 / 4, 0.05) > 0.05
    refusal = certify(trace, [CHANGED, Guarantee("mean_layers", 2.2)], 0.9)
    assert refusal.reason == "where the quality holds, texts run too many layers."
    assert isinstance(
        certify(trace, [CHANGED, Guarantee("mean_layers", refusal.best_limits[1] + 1e-6)], 0.9), Certificate
    )
    assert isinstance(certify(trace, [CHANGED, Guarantee("mean_layers", refusal.best_limits[1] - 1e-6)], 0.9), Refusal)


def test_groups_count_as_one_draw_each_and_all_the_same():
    trace = random_trace(900)
    groups = [row // 3 for row in range(600)] + [f"text {row}" for row in range(300)]
    certificate = certify(trace, Guarantee("changed_answers", 0.1), groups=groups)
    assert (certificate.n, certificate.grouped, certificate.methods) == (500, True, ("betting",))
    losses = row_losses(trace, CHANGED).gather(1, trace.exits_at(certificate.threshold)[:, None])[:, 0].tolist()
    by_group: dict[object, list[float]] = {}
    for group, loss in zip(groups, losses, strict=True):
        by_group.setdefault(group, []).append(loss)
    means = [sum(each) / len(each) for each in by_group.values()]
    assert certificate.risks[0] == pytest.approx(sum(means) / 500)
    # Each row ten times is not ten times as much evidence.
    copies = trace.take(torch.arange(30).repeat(10))
    assert isinstance(certify(copies, CHANGED, groups=[row % 30 for row in range(300)]), Refusal)


def test_a_path_of_one_threshold_per_exit():
    trace = random_trace()
    path = [(1 - step / 50, 1 - step / 100, 0.0) for step in range(50)]
    certificate = certify(trace, CHANGED, thresholds=path)
    assert certificate.threshold in path
    trace.exits_at(list(certificate.threshold))
    assert Certificate.from_dict(json.loads(json.dumps(certificate.as_dict()))) == certificate
    with pytest.raises(ValueError, match=r"thresholds: \[0.9, 0.9, 0.0\] follows \[0.8, 0.9, 0.0\], but is stricter"):
        certify(trace, CHANGED, thresholds=[[0.8, 0.9, 0], [0.9, 0.9, 0]])


def test_the_default_thresholds_depend_on_no_text():
    one, other = random_trace(seed=1), random_trace(seed=2)
    assert fixed_thresholds(one) == fixed_thresholds(other)
    entropy = dataclasses.replace(one, ready="lt", criterion="entropy", bounds=(0.0, math.log(3)))
    assert fixed_thresholds(entropy)[0] == pytest.approx(1e-5 * math.log(3))
    assert fixed_thresholds(entropy)[-1] == pytest.approx(math.log(3))
    layer = dataclasses.replace(one, ready="ge", criterion="layer", bounds=(1.0, 6.0))
    assert fixed_thresholds(layer) == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    with pytest.raises(ValueError, match=r"trace: its bounds are None, so no thresholds .* pass thresholds=\[...\]"):
        certify(dataclasses.replace(one, bounds=None), CHANGED)


def test_a_certificate_survives_json_and_can_be_read():
    trace = random_trace(row_hashes=torch.arange(300), settings={"exit_criterion": "confidence"})
    wanted = [Guarantee("accuracy_drop", 0.1), Guarantee("mean_layers", 5.5)]
    certificate = certify(trace, wanted)
    again = Certificate.from_dict(json.loads(json.dumps(certificate.as_dict())))
    assert again == certificate and again.fingerprint == trace.fingerprint
    assert str(certificate).startswith("Certified with a confidence of 0.95 on 300 rows, threshold 0: ")
    regression = Guarantee("mean_difference", 0.1, value_range=(0, 5))
    assert Guarantee.from_dict(json.loads(json.dumps(regression.as_dict()))) == regression


# What a trace knows of its texts


def test_the_fingerprint_does_not_depend_on_the_order():
    trace = random_trace(row_hashes=torch.arange(300))
    order = torch.randperm(300)
    assert trace.take(order).fingerprint == trace.fingerprint != trace.take(order[:299]).fingerprint
    assert random_trace().fingerprint is None


def test_collect_trace_records_the_texts_and_the_file_keeps_them(tmp_path):
    rows = [{"input_ids": [2, 5, 3]}, {"input_ids": [2, 7, 8, 3]}, {"input_ids": [2, 5, 3]}]
    trace = collect_trace(build("deebert"), rows, progress=False)
    assert trace.row_hashes.tolist() == [row_hash(row["input_ids"]) for row in rows]
    trace.save(tmp_path / "trace.safetensors")
    assert ExitTrace.load(tmp_path / "trace.safetensors").fingerprint == trace.fingerprint
    dataclasses.replace(trace, row_hashes=None).save(tmp_path / "earlier.safetensors")
    assert ExitTrace.load(tmp_path / "earlier.safetensors").row_hashes is None


def test_rows_that_were_seen_before_are_refused():
    trace = random_trace(row_hashes=torch.arange(300))
    training = torch.tensor([7, 9, 1000])
    assert overlap(trace, training).nonzero()[:, 0].tolist() == [7, 9]
    with pytest.raises(ValueError, match=r"seen: 2 of the 300 rows had a part in training .* allow_repeats=True"):
        certify(trace, CHANGED, seen=[training])
    assert certify(trace, CHANGED, seen=[training], allow_repeats=True).repeats == 2
    left = trace.take(~overlap(trace, training))
    assert (len(left.logits), certify(left, CHANGED, seen=[training]).repeats) == (298, 0)
    assert certify(trace, CHANGED).repeats is None
    with pytest.raises(ValueError, match="trace: a trace without row_hashes does not say which texts it has"):
        certify(random_trace(), CHANGED, seen=[training])
    with pytest.raises(ValueError, match="other: a trace without row_hashes"):
        certify(trace, CHANGED, seen=[random_trace()])
    with pytest.raises(TypeError, match=r"seen: got one Tensor; pass a list, e.g. seen=\[training\]"):
        certify(trace, CHANGED, seen=training)


# Bad input


@pytest.mark.parametrize(
    ("kind", "limit", "options", "message"),
    [
        ("f1", 0.01, {}, "kind: got 'f1', which is no mean over texts.* pass 'changed_answers' or 'harm'.*bootstrap"),
        ("pearson", 0.01, {}, "'changed_answers' or 'mean_difference', and for pearson call bootstrap_samples"),
        ("accuracy", 0.01, {}, "kind: got 'accuracy'; choose one of 'changed_answers', 'harm', "),
        ("harm", 2, {}, r"limit: got 2; pass a number above 0 and below 1, e.g. 0.02. Did you mean 0.02 \(2%\)"),
        ("harm", 0.0, {}, "limit: got 0; pass a number above 0"),
        ("harm", math.nan, {}, "limit: got nan"),
        ("mean_difference", 0.1, {}, r"value_range: got None; .* needed for 'mean_difference'"),
        ("mean_difference", 6, {"value_range": (0, 5)}, "limit: got 6; pass a number above 0 and below 5"),
        ("mean_difference", 0.1, {"value_range": (5, 0)}, r"value_range: got \(5, 0\); pass two ascending numbers"),
        ("harm", 0.1, {"value_range": (0, 5)}, r"value_range: got \(0, 5\); .* only there"),
        ("harm", 0.1, {"tolerance": 0.5}, "tolerance: got 0.5; .* only for 'changed_answers' of a regression"),
        ("changed_answers", 0.1, {"tolerance": -1}, "tolerance: got -1"),
    ],
)
def test_a_guarantee_that_cannot_be_meant(kind, limit, options, message):
    with pytest.raises(ValueError, match=message):
        Guarantee(kind, limit, **options)


def test_a_limit_that_is_no_number():
    with pytest.raises(TypeError, match="limit: got '2%'; pass a number, e.g. 0.02"):
        Guarantee("harm", "2%")


@pytest.mark.parametrize(
    ("guarantee", "changes", "message"),
    [
        (Guarantee("harm", 0.1), {"labels": None}, "trace: has no labels"),
        (Guarantee("mean_layers", 6), {}, r"guarantees: got mean_layers <= 6; texts run from 2 to 6 layers"),
        (Guarantee("mean_difference", 0.1, value_range=(0, 1)), {}, "mean_difference is for numbers"),
        (
            Guarantee("changed_answers", 0.1, tolerance=1),
            {},
            "answers are classes, which have none; leave the tolerance out",
        ),
    ],
)
def test_a_guarantee_that_does_not_fit_the_trace(guarantee, changes, message):
    with pytest.raises(ValueError, match=message):
        certify(random_trace(**changes), guarantee)


def test_guarantees_of_classes_for_numbers():
    numbers = random_trace(classes=1)
    with pytest.raises(ValueError, match="harm is for classes, but the answers are numbers; pass mean_difference"):
        certify(numbers, Guarantee("harm", 0.1))
    with pytest.raises(ValueError, match="need one; pass tolerance=0.5, or --tolerance 0.5 of adaexit"):
        certify(numbers, CHANGED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": 95}, r"confidence: got 95; pass a number between 0 and 1, e.g. 0.95. Did you mean 0.95\?"),
        ({"confidence": 0}, "confidence: got 0; pass"),
        ({"confidence": True}, "confidence: got True; pass"),
        ({"guarantees": []}, "guarantees: got none; pass at least one"),
        ({"guarantees": [CHANGED, CHANGED]}, "guarantees: got .* each kind once"),
        ({"groups": [1, 2]}, "groups: got 2 for 300 rows; pass one per row"),
        ({"thresholds": []}, "thresholds: got 0 numbers and 0 lists; pass one or the other"),
        ({"thresholds": [0.5, [0.5, 0.4, 0.3]]}, "thresholds: got 1 numbers and 1 lists"),
        ({"thresholds": [2.0]}, r"threshold: got 2.0; confidence takes numbers in \[0, 1\]"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments, message):
    with pytest.raises(ValueError, match=message):
        certify(random_trace(), **{"guarantees": CHANGED, **arguments})


def test_arguments_of_another_type():
    with pytest.raises(TypeError, match=r"guarantees: got 'harm'; pass Guarantee\('changed_answers', 0.02\)"):
        certify(random_trace(), "harm")
    with pytest.raises(TypeError, match=r"thresholds: got 0.5; pass a list"):
        certify(random_trace(), CHANGED, thresholds=0.5)


def test_one_exit_is_nothing_to_certify():
    with pytest.raises(ValueError, match="trace: has one exit"):
        certify(random_trace(exits=1, logits=torch.zeros(300, 1, 3)), CHANGED)


def certified(limit: float, *more: Guarantee, **changes: object) -> tuple[Certificate, ExitTrace]:
    trace = random_trace(**changes)
    certificate = certify(trace, [Guarantee("changed_answers", limit), *more])
    assert isinstance(certificate, Certificate)
    return certificate, trace


def test_rows_contradict_by_their_number_and_in_any_order():
    certificate, trace = certified(0.1)
    losses = row_losses(trace, certificate.guarantees[0])
    chosen = trace.exits_at(certificate.threshold)
    lost = losses[torch.arange(len(chosen)), chosen].sort(stable=True)
    in_order = trace.take(lost.indices)  # those with another answer last, as in a file that is sorted by class
    (check,) = check_on_rows(certificate, in_order)
    assert not check.contradicted and check == check_on_rows(certificate, trace)[0]
    assert check_on_rows(certificate, in_order.take(torch.arange(250, 300)))[0].contradicted


def test_a_check_is_the_exact_test_of_the_other_side():
    certificate, trace = certified(0.1)
    few = trace.take(torch.arange(40))
    (check,) = check_on_rows(certificate, few)
    count = round(check.risk * 40)
    expected = sum(math.comb(40, k) * 0.1**k * 0.9 ** (40 - k) for k in range(count, 41))
    assert check.p_value == pytest.approx(expected)


def test_all_guarantees_of_a_certificate_are_checked_with_its_confidence():
    certificate, trace = certified(0.2, Guarantee("mean_layers", 5.0))
    strict = dataclasses.replace(trace, scores=torch.zeros_like(trace.scores))  # no row leaves early
    quality, cost = check_on_rows(certificate, strict)
    assert not quality.contradicted and cost.contradicted and cost.risk == 6
    assert len(trace.logits) > 5 and check_on_rows(certificate, trace, groups=[0, 1, 2] * 100)[0].n == 3


@pytest.mark.slow
def test_a_promise_that_is_kept_is_seldom_contradicted():
    found = 0
    certificate, _ = certified(0.1)
    for seed in range(1000):
        losses = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < 0.1
        first = torch.eye(2)[losses.long()]
        last = torch.eye(2)[torch.zeros(200, dtype=torch.long)]
        scores = torch.tensor([1.0, 1.0, 0.0]).repeat(200, 1)
        facts = {"criterion": "confidence", "bounds": (0.0, 1.0)}
        trace = ExitTrace(torch.stack([first, first, last], dim=1), scores, None, (2, 4, 6), "gt", **facts)
        found += check_on_rows(certificate, trace)[0].contradicted
    assert found <= 64  # 5 % and two standard errors
