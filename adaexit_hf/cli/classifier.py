"""Classifiers without exits: their logits, and exits for one that stays as it is (`adaexit train --add_exits`)."""

import sys
from typing import Any

import datasets
import torch
from scipy.optimize import linear_sum_assignment
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForSequenceClassification, DataCollatorWithPadding

from ..data.tasks import Labels, labels_of
from ..evaluation.metrics import compute_score
from ..evaluation.trace import predictions
from ..models import MODEL_TYPES
from .evaluate import names_in_data
from .options import is_classifier


def classifier_config(name: str) -> Any:
    """The config of the classifier that gets exits.

    Args:
        name: Its folder or Hub name.

    Raises:
        ValueError: It is no classifier, or has exits.
    """
    config = AutoConfig.from_pretrained(name)
    made = ", ".join(config.architectures or ["no model"])
    if config.model_type in MODEL_TYPES:
        raise ValueError(f"add_exits: '{name}' is a '{config.model_type}' model, which has exits; use it as it is")
    if not is_classifier(config):
        raise ValueError(
            f"add_exits: got '{name}', a {made} without a trained classification head; pass a fine-tuned classifier, "
            "or --model_name_or_path to train the encoder, too"
        )
    return config


def match_labels(name: str, config: Any, train: datasets.Dataset, column: str) -> tuple[Labels, bool]:
    """Match the labels of the data with those of the classifier, and print the mapping to stderr.

    They are matched by their names, or by their order where one of the sides has nothing but indices (0, LABEL_0).

    Args:
        name: The classifier's folder or Hub name.
        config: Its config.
        train: The training split, without missing labels.
        column: The column with labels.

    Returns:
        The labels of the data in the order of the classifier's outputs, and whether they were matched by name.

    Raises:
        ValueError: The labels are not those of the classifier.
    """
    labels = labels_of(train, column)
    multi_label = config.problem_type == "multi_label_classification"
    of_classifier = _kind(None if config.num_labels == 1 else [""] * config.num_labels, multi_label)
    if _kind(labels.names, labels.multi_label) != of_classifier:
        raise ValueError(
            f"label_column: '{column}' has {_kind(labels.names, labels.multi_label)}, but --add_exits '{name}' "
            f"predicts {of_classifier}; pass another --label_column, or a classifier of such labels"
        )
    if labels.names is None:
        return labels, True
    own = [str(config.id2label[index]) for index in range(config.num_labels)]
    if multi_label and len(labels.names) != len(own):  # a label without a column would count as absent
        raise ValueError(
            f"label_column: '{column}' has the labels {labels.names}, but --add_exits '{name}' predicts {own}; pass "
            "all of them"
        )
    found, by_name = names_in_data([train], column, own)
    how = "by name" if by_name else "by order, since one side has indices and no names"
    pairs = ", ".join(f"{theirs} -> {mine}" for theirs, mine in zip(found, own, strict=True))
    print(f"adaexit train: labels of the data -> of '{name}': {pairs} ({how})", file=sys.stderr)
    return Labels(found, multi_label), by_name


def _kind(names: list[str] | None, multi_label: bool) -> str:
    """What labels are, in words.

    >>> _kind(None, False), _kind(["no", "yes"], True), _kind(["no", "yes"], False)
    ('numbers (regression)', 'several labels at once', 'one of several classes')
    """
    if names is None:
        return "numbers (regression)"
    return "several labels at once" if multi_label else "one of several classes"


def stage_before(chosen: str | None, model: Any) -> str:
    """The name of the stage that trains exits before a last exit that stays as it is.

    Args:
        chosen: What was passed as --stage.
        model: The model with the classifier's head as its last exit.

    Raises:
        ValueError: The head is not the last exit, the model has no such stage, or another one was chosen.
    """
    last = f"exits.{len(model.config.exit_layers) - 1}"
    stage = next((stage.name for stage in model.stages if {"encoder", last} <= set(stage.frozen)), None)
    if stage is None or not model.took_over_classifier:
        why = "no stage that leaves the encoder as it is" if stage is None else "another head at the last exit"
        raise ValueError(
            f"method_config: with --add_exits these settings of {model.config.model_type} give {why}; leave out "
            "fine_tuning and last_exit_head, and name more than one layer in exit_layers"
        )
    if chosen not in (None, stage):
        raise ValueError(f"stage: got '{chosen}' with --add_exits, which trains stage '{stage}'; leave it out")
    return stage


@torch.inference_mode()
def logits_of(model: Any, rows: datasets.Dataset, tokenizer: Any, batch_size: int, **options: Any) -> torch.Tensor:
    """Logits of the last layer's classifier, (samples, labels), in float32 on the CPU.

    Args:
        model: A classifier with or without exits.
        rows: Tokenized rows.
        tokenizer: The model's tokenizer.
        batch_size: Rows per batch.
        **options: Arguments of the model's forward.
    """
    model.eval()
    texts = rows.remove_columns([column for column in rows.column_names if "label" in column])
    batches = DataLoader(texts, batch_size, collate_fn=DataCollatorWithPadding(tokenizer))
    return torch.cat([model(**batch.to(model.device), **options).logits.float().cpu() for batch in batches])


class KeptClassifier:
    """A fine-tuned classifier's logits on the held-out rows, with which those at full depth are compared.

    Args:
        name: The classifier's folder or Hub name.
        rows: The held-out rows, tokenized, with labels.
        split: Their name.
        tokenizer: The classifier's tokenizer.
        batch_size: Rows per batch.
        device: Where the classifier runs.
    """

    def __init__(
        self, name: str, rows: datasets.Dataset, split: str, tokenizer: Any, batch_size: int, device: Any
    ) -> None:
        self.name, self.rows, self.split, self.tokenizer, self.batch_size = name, rows, split, tokenizer, batch_size
        model = AutoModelForSequenceClassification.from_pretrained(name).to(device)
        self.multi_label = model.config.problem_type == "multi_label_classification"
        self.logits = logits_of(model, rows, tokenizer, batch_size)

    def tell_score(self, metric: str, by_name: bool) -> None:
        """Print its score to stderr.

        Args:
            metric: Name of the metric.
            by_name: Whether the labels were matched by name, and not by order.

        Raises:
            ValueError: In another order of the labels 5 % more of the answers are right; if they were matched by name,
                also less than with always the most frequent class.
        """
        references = torch.tensor(self.rows["labels"][:])
        answers = predictions(self.logits, self.multi_label)
        score = compute_score(metric, predictions=answers, references=references)
        scored = f"'{self.name}' has {metric} {score:.4f} on the {len(answers)} rows of {self.split}"
        print(f"adaexit train: {scored}", file=sys.stderr)
        if self.logits.shape[1] == 1 or self.multi_label:
            return
        right = (answers == references).float().mean().item()
        classes = self.logits.shape[1]
        confusion = (answers * classes + references).bincount(minlength=classes**2).reshape(classes, classes)
        best = confusion.numpy()[linear_sum_assignment(confusion.numpy(), maximize=True)].sum() / len(references)
        majority = references.bincount().max().item() / len(references)
        enough = len(references) >= 3 * classes or right < majority  # few rows fit another order by chance
        if best > right + 0.05 and enough and (not by_name or right < majority):
            cure = "name the classes in the label column as the classifier does"
            if by_name:
                cure = "correct the labels of the data, or the classifier's id2label"
            raise ValueError(
                f"label_column: with its labels matched by {'name' if by_name else 'order'}, {scored}: {right:.1%} "
                f"are right, and {best:.1%} would be if the classes were exchanged; {cure}"
            )

    def check(self, model: Any) -> None:
        """Check that a model with exits gives the same logits at full depth, bit for bit, on the same batches.

        Args:
            model: The model, not calibrated, which computes in the precision of its weights.

        Raises:
            RuntimeError: It does not. For regression, where the last layer of an exit is computed in another order,
                the rounding may differ.
        """
        # With the states requested, the last layer runs for all tokens, as in the classifier, and not for the first.
        found = logits_of(
            model, self.rows, self.tokenizer, self.batch_size, early_exit=False, output_hidden_states=[0]
        )
        difference = (found - self.logits).abs().max().item()
        rounding = 0.0 if self.logits.shape[1] > 1 else 1e-5 * max(1.0, self.logits.abs().max().item())
        if not difference <= rounding:
            raise RuntimeError(
                f"add_exits: at full depth the logits differ from those of '{self.name}' by up to {difference:.2g} on "
                f"the {len(found)} rows of {self.split}, so the classifier was not kept; train without settings that "
                "change the encoder or the last exit"
            )
