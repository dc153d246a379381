"""Class weights and label smoothing of the config, in every objective that compares logits with labels."""

from typing import Any

import pytest
import torch
from helpers.tiny import CLASSES, VARIANTS, build, check_loss_and_gradients, inputs_of, labels_of
from torch import Tensor

from adaexit_hf import BerxitConfig, DeeBertConfig
from adaexit_hf.models import EarlyExitForSequenceClassification

WEIGHTS, SMOOTHING = [0.5, 2.0, 5.0], 0.2
COMPARED = [("berxit", {"fine_tuning": kind, "limit_layer": 2 if kind == "limit" else None}) for kind in (
    "weighted", "self_distillation", "limit"
)]  # fmt: skip
CLASSIFIERS = [(name, {}) for name, (_, settings) in VARIANTS.items() if settings.get("num_labels") != 1]
LABELLED = [
    (variant, options, objective)
    for variant, options in [*CLASSIFIERS, *COMPARED]
    for model in [build(variant, **options)]
    for objective in sorted({model.objectives[0], *(name for stage in model.stages for name in stage.objectives)})
    if objective not in model.unlabelled_objectives
]


def naive_loss(model: EarlyExitForSequenceClassification, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy as in its definition, row by row: the target is (1 - s) one-hot + s / classes, weighted."""
    total, weights = torch.zeros(()), torch.tensor(WEIGHTS)
    for row, label in zip(logits.log_softmax(dim=-1), labels.tolist(), strict=True):
        target = torch.full((3,), SMOOTHING / 3)
        target[label] += 1 - SMOOTHING
        total = total - (target * weights * row).sum()
    return total / sum(WEIGHTS[label] for label in labels.tolist())


@pytest.mark.parametrize(("variant", "options", "objective"), LABELLED)
def test_every_objective_honours_weights_and_smoothing(
    variant: str, options: dict[str, Any], objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss with the config's settings is the loss whose cross-entropies are all computed by the definition."""
    weighted = build(variant, class_weights=WEIGHTS, label_smoothing=SMOOTHING, **options)
    call: dict[str, Any] = inputs_of(weighted) | {"labels": labels_of(weighted), "objective": objective}
    loss = weighted(**call).loss
    assert abs(loss - build(variant, **options)(**call).loss) > 1e-4
    monkeypatch.setattr(type(weighted), "task_loss", naive_loss)
    check_loss_and_gradients(weighted, weighted(**call).loss, loss)


@pytest.mark.parametrize("method", CLASSES)
def test_the_loss_in_eval_mode_is_weighted_too(method: str) -> None:
    model = build(method, class_weights=WEIGHTS, label_smoothing=SMOOTHING)
    labels = labels_of(model)
    output = model(**inputs_of(model), labels=labels)
    torch.testing.assert_close(output.loss, naive_loss(model, output.logits, labels))


def test_distillation_has_no_labels_to_weigh() -> None:
    call = inputs_of(build("fastbert")) | {"objective": "distillation"}
    assert build("fastbert", class_weights=WEIGHTS)(**call).loss == build("fastbert")(**call).loss


def test_they_are_saved(tmp_path: Any) -> None:
    build("deebert", class_weights=WEIGHTS, label_smoothing=SMOOTHING).save_pretrained(tmp_path)
    config = CLASSES["deebert"].from_pretrained(tmp_path).config
    assert (config.class_weights, config.label_smoothing) == (WEIGHTS, SMOOTHING)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"class_weights": [1.0, 2.0]},
            ValueError,
            r"class_weights: got \[1.0, 2.0\] for 3 classes; pass \[1.0, 2.0,",
        ),
        ({"class_weights": {0: 1.0}}, ValueError, r"class_weights: got \{0: 1.0\} for 3 classes"),
        ({"class_weights": [1.0, 0.0, 1.0]}, ValueError, "class_weights: got 0.0; pass positive numbers"),
        ({"class_weights": [1.0, float("inf"), 1.0]}, ValueError, "class_weights: got inf; pass a finite number"),
        ({"class_weights": [1.0, True, 1.0]}, TypeError, "class_weights: got True of type bool"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing: got 1.0; pass a number in \[0, 1\)"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing: got -0.1"),
        ({"label_smoothing": True}, TypeError, "label_smoothing: got True of type bool"),
    ],
)
def test_wrong_weights_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DeeBertConfig(num_labels=3, **options)


def test_weights_may_be_whole_numbers_and_are_checked_again_when_they_were_changed() -> None:
    model, inputs = build("deebert", class_weights=[4, 1, 1]).train(), {"labels": torch.arange(6) % 3}
    inputs |= inputs_of(model)
    assert model(**inputs, objective="joint").loss.isfinite()
    model.config.class_weights = [1.0, 2.0]
    with pytest.raises(ValueError, match=r"class_weights: got \[1.0, 2.0\] for 3 classes"):
        model(**inputs, objective="joint")


@pytest.mark.parametrize("options", [{"class_weights": [1.0]}, {"label_smoothing": 0.1}])
def test_regression_has_no_classes_to_weigh(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="class_weights, label_smoothing: got .* num_labels=1, has no classes"):
        BerxitConfig(num_labels=1, **options)
