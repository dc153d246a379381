"""What a classifier with exits is besides its recurrence: its encoder, output layers, labels, task loss, calibration.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel

from .batches import checked_rows
from .batches import full_depth
from .batches import row_labels
from .calibration import best_temperature
from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import check_number
from .encoder_layers import family_of
from .exit_heads import ExitHead


class EarlyExitPreTrainedModel(PreTrainedModel):
    """What all models of a method share: the encoder, and how checkpoints carry their code."""

    config_class: ClassVar[type[EarlyExitConfig]] = EarlyExitConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else Trainer skips the division by the number of accumulation steps
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: EarlyExitConfig) -> None:
        config.check()  # again: a config that exists already may have been changed
        super().__init__(config)
        family = family_of(config.encoder_config)
        # An unused pooler would be an unused parameter under DDP; families without one do not know the argument.
        options = {} if family.pooler is None else {"add_pooling_layer": False}
        self.encoder = AutoModel.from_config(config.encoder_config, **options)

    def post_init(self) -> None:
        """As in Transformers, but `device_map="auto"` keeps the encoder whole."""
        super().post_init()
        # Spread over several devices, exits would answer on different ones, and rows leave from there.
        self._no_split_modules = {type(self.encoder).__name__}

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in Transformers; the checkpoint also carries its code and can be loaded without this package."""
        if self._auto_class is not None:
            module = type(self).__module__.split(".")[-1]
            name = type(self).__name__.replace("ForSequenceClassification", "Model")
            self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | {"AutoModel": f"{module}.{name}"}
        super().save_pretrained(save_directory, *args, **kwargs)


class ClassifierBase(EarlyExitPreTrainedModel):
    """What `EarlyExitForSequenceClassification` has besides the recurrence."""

    spares_tokens: ClassVar[bool] = False  # may tokens skip layers, so that what a text costs depends on its words?

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in Transformers; the checkpoint also carries its code and its pipeline, and needs no package to load."""
        if self._auto_class is not None:
            # Here, since Transformers' pipelines take a while to import.
            from .pipeline_early_exit import CUSTOM_PIPELINES

            others = getattr(self.config, "custom_pipelines", None) or {}
            self.config.custom_pipelines = others | copy.deepcopy(CUSTOM_PIPELINES)
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def classifiers(self) -> list[nn.Module]:
        """The output layer of every exit, in order; a method with other exits than `ExitHead`s names its own."""
        return [cast(ExitHead, exit).classifier for exit in self.exits]

    def prepare(self, dataset: Iterable[Mapping[str, Any]]) -> None:
        """Set what the training data tell before the first step; call it once, with the tokenized training set.

        For regression the exits start from the mean label (`start_from_mean`); some methods estimate more.

        Raises:
            ValueError: no rows, no labels where they are needed, or labels that training would refuse.
        """
        if self.config.num_labels == 1:
            rows = checked_rows(dataset)
            labels = row_labels(rows, 1)
            if labels is None:
                raise ValueError("dataset: has no labels; pass the training set, with a 'label' column")
            self.start_from_mean(self.checked_labels(labels, len(rows)).double().mean().item())

    @torch.no_grad()
    def start_from_mean(self, mean: float) -> None:
        """Let the exits of a regression model start from the mean of the training labels.

        From 0, all exits together first pull the encoder towards a constant, and with several exits it may stay there.
        Sets the bias of heads where it is still 0; a fine-tuned head keeps its own.

        Raises:
            ValueError: the model classifies; NaN or infinity.
        """
        if self.config.num_labels != 1:
            labels = self.config.num_labels
            raise ValueError(f"start_from_mean is for regression, num_labels=1; got num_labels={labels}")
        check_number("mean", mean)
        for classifier in self.classifiers:
            bias = cast(Tensor, classifier.bias)
            if not bias.any():
                bias.fill_(mean)

    def calibrate_temperatures(self, dataset: Iterable[Mapping[str, Any]], batch_size: int = 32) -> list[float]:
        """Set `config.exit_temperatures`: for every exit the one that suits held-out data best. Runs it once.

        Args:
            dataset: tokenized rows with `input_ids` and `label` or `labels`, none of which was trained on.
            batch_size: rows per forward pass.

        Returns:
            one temperature per exit; above 1 where the exit was too sure of itself.

        Raises:
            ValueError: regression; no labels, or others than classes; fewer samples than classes.
        """
        classes = self.config.num_labels
        if classes == 1:
            raise ValueError("calibrate_temperatures: regression, num_labels=1, has no probabilities to calibrate")
        rows = checked_rows(dataset)
        labels = row_labels(rows, classes)
        if labels is None or len(rows) < classes:
            raise ValueError(
                f"dataset: got {len(rows)} samples, {'without' if labels is None else 'with'} labels, for {classes} "
                f"classes; pass held-out samples with labels, at least {classes}, better hundreds"
            )
        labels = self.checked_labels(labels, len(rows))
        temperatures, self.config.exit_temperatures = self.config.exit_temperatures, None
        try:
            logits, _ = full_depth(self, rows, batch_size, "Calibrating")
            temperatures = [best_temperature(each, labels) for each in logits.unbind(dim=1)]
        finally:
            self.config.exit_temperatures = temperatures
        return list(temperatures)

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, or mean squared error with one label: logits (batch, labels), labels (batch,) -> scalar."""
        if self.config.num_labels == 1:
            return functional.mse_loss(logits.squeeze(-1).float(), labels.float())
        return functional.cross_entropy(logits.float(), labels)

    def checked_labels(self, labels: Tensor, batch: int) -> Tensor:
        """Labels as the losses take them, (batch,), from (batch,) or (batch, 1), of any integer type, or numbers.

        Raises:
            ValueError: another shape, floats for classes, a class that does not exist, NaN or infinity.
        """
        labels = labels.reshape(-1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
        if labels.shape != (batch,):
            raise ValueError(f"labels: got shape {tuple(labels.shape)}; pass one label per text, shape ({batch},)")
        if torch.compiler.is_compiling():
            return labels
        if self.config.num_labels == 1:
            if not bool(labels.isfinite().all()):
                raise ValueError("labels: got NaN or infinity; drop the rows without a score before training")
            return labels
        if labels.is_floating_point():
            raise ValueError(
                f"labels: got {labels.dtype} for {self.config.num_labels} classes; pass class indices, labels.long(), "
                "or num_labels=1 for regression"
            )
        low, high = torch.stack(labels.long().aminmax()).tolist()
        if low < 0 or high >= self.config.num_labels:
            raise ValueError(
                f"labels: got {low if low < 0 else high}; allowed are 0 to {self.config.num_labels - 1}. Pass "
                "num_labels=<number of classes> to the config, or a split that has labels (GLUE's test sets have none)"
            )
        return labels.long()
