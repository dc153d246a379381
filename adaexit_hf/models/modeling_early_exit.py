"""The model that all methods are: what comes in, which way the recurrence is run, what goes out.

Training unrolls it to full depth. Inference lets each row leave the batch when its score passes the threshold.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from .batches import model_inputs
from .classifier_base import EarlyExitPreTrainedModel
from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .exit_types import EarlyExitOutput
from .exit_types import Exit
from .exit_types import first_ready
from .in_flight import InFlight
from .in_flight import trimmed
from .pretrained_encoder import load_encoder
from .recurrence import Recurrence
from .recurrence import recorded
from .walk import Answers
from .walk import walk

logger = logging.get_logger(__name__)


class EarlyExitModel(EarlyExitPreTrainedModel):
    """The encoder alone at full depth; heads in the checkpoint are left out."""

    _auto_class = "AutoModel"  # checkpoints carry their code
    _keys_to_ignore_on_load_unexpected = [r"^(?!encoder\.)"]

    def __init__(self, config: EarlyExitConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        """As the encoder's own forward."""
        return self.encoder(*args, **kwargs)


class EarlyExitForSequenceClassification(Recurrence):
    """Base of every method; a method adds its heads, `exit_step`, `exit_loss`, `stages` and `paper`."""

    _auto_class = "AutoModelForSequenceClassification"  # checkpoints carry their code

    @classmethod
    def from_encoder_pretrained(cls, name_or_path: str, **config: Any) -> "EarlyExitForSequenceClassification":
        """Start from a pretrained encoder or a fine-tuned classifier, on the Hub or in a folder.

        A pretrained pooler is copied into every exit; a fine-tuned classifier's head becomes the last exit, and its
        labels and `problem_type` are kept.

        Args:
            name_or_path: as in `from_pretrained`.
            **config: arguments of the method's config (`num_labels`, `exit_layers`, ...), and of the download
                (`revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, `dtype`, `attn_implementation`);
                `num_hidden_layers` keeps the first layers of the encoder.

        Raises:
            ValueError: the checkpoint is of an unsupported family or already an early-exit model.
        """
        return load_encoder(cls, name_or_path, config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        objective: str | None = None,
        exit_threshold: Threshold = None,
        early_exit: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        exit_states: Tensor | None = None,
    ) -> EarlyExitOutput | tuple[Any, ...]:
        """Classify a batch; in eval mode rows exit early when a threshold is set.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as for the encoder.
            labels: (batch,), class indices in [0, labels), or numbers for regression.
            objective: one of `objectives`; runs full depth and gives its loss. Default: in training the first of
                `objectives`, in eval the task loss of the answer.
            exit_threshold: overrides the config's for this call.
            early_exit: False runs full depth and fills `exit_logits` and `exit_scores`; True insists on a threshold.
                Default: in eval mode, exit early when a threshold is set.
            output_hidden_states, output_attentions: these run every layer, since a skipped layer has none to give;
                answers and exit layers stay those of the early exit. A list of indices keeps only those states, the
                others are None. Attention weights exist with `attn_implementation="eager"` only.
            exit_states: what `states_for_exits` gave for these texts; then only the exits run, all of them, and of the
                other inputs only the mask is read. There are no hidden states or attention weights.

        Raises:
            ValueError: bad labels, objective or threshold, an empty batch, a text longer than the position table;
                `exit_states` of another shape, or with what only the encoder can give.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        return self._classify(
            inputs,
            labels,
            objective,
            exit_threshold,
            early_exit,
            output_hidden_states,
            output_attentions,
            return_dict,
            exit_states,
        )

    def _classify(
        self,
        inputs: dict[str, Tensor | None],
        labels: Tensor | None,
        objective: str | None,
        exit_threshold: Threshold,
        early_exit: bool | None,
        output_hidden_states: bool | list[int] | None,
        output_attentions: bool | None,
        return_dict: bool | None,
        exit_states: Tensor | None = None,
    ) -> EarlyExitOutput | tuple[Any, ...]:
        """`forward`, for any inputs that `embed` understands."""
        return_dict = self.config.return_dict if return_dict is None else return_dict
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attend = bool(self.config.output_attentions if output_attentions is None else output_attentions)
        if exit_states is not None:
            self._check_exit_states(exit_states, output_hidden_states or output_attentions)
            keep_states = attend = False
        if attend and self.encoder.config._attn_implementation != "eager":
            logger.warning_once(  # as the stock models do
                f"output_attentions: attention implementation '{self.encoder.config._attn_implementation}' keeps no "
                "weights, so there are none in the output; load the model with attn_implementation='eager'"
            )
        if objective is not None and objective not in self.objectives:
            raise ValueError(f"objective: got {objective!r}; {type(self).__name__} knows {', '.join(self.objectives)}")
        thresholds = self.thresholds_in_use(exit_threshold, early_exit, not self.training and objective is None)
        # A branch on data cannot be compiled or exported: there every layer runs, then the answer is selected.
        compact = thresholds is not None and not (keep_states or attend or torch.compiler.is_compiling())
        # The loss of an objective is that of training, in eval mode, too.
        temperatures = None if self.training or objective is not None else self.config.exit_temperatures
        run: dict[str, Any]
        if exit_states is not None:
            run = self._run_exits(exit_states, inputs["attention_mask"], temperatures)
            answer = self._answer(run["exits"], run["scores"], thresholds)
        elif compact:
            answers = self._walk(inputs, thresholds, temperatures)
            run = {"exits": [], "scores": [answers.all_scores], "states": []}
            answer = {"logits": answers.logits, "exit_layer": answers.exit_layer}
        else:
            keep, flags = bool(keep_states), {"output_attentions": attend, "return_dict": True}
            run = recorded(self.encoder, self._unroll, inputs, temperatures, keep, **flags)
            answer = self._answer(run["exits"], run["scores"], thresholds)
        if not self.training and not torch.compiler.is_compiling():
            report_not_finite(run["scores"])
        loss = None
        if objective is not None and objective in self.unlabelled_objectives:
            loss = self.unlabelled_loss(run["exits"], objective)
        elif labels is not None:
            labels = self.checked_labels(labels, answer["logits"].shape[0])
            if self.training or objective is not None:
                loss = self.exit_loss(run["exits"], labels, objective or self.objectives[0])
            else:
                loss = self.task_loss(answer["logits"], labels)
        states = run["states"]
        if isinstance(keep_states, list | tuple):
            kept = {index % len(states) for index in keep_states}
            states = [state if index in kept else None for index, state in enumerate(states)]
        # All at once: a tuple output has the order in which the fields are set.
        output = EarlyExitOutput(
            loss=loss,
            **answer,
            hidden_states=tuple(states) if keep_states else None,
            attentions=tuple(run["returned_attentions"] or run["attentions"]) or None if attend else None,
        )
        return output if return_dict else output.to_tuple()

    def answers(
        self, inputs: Mapping[str, Tensor | None], exit_threshold: Threshold = None, early_exit: bool | None = None
    ) -> Answers:
        """What `forward` answers, and how ready the exit of each row was, at the cost of the early exit alone.

        Args:
            inputs: as for `forward`, by name.
            exit_threshold, early_exit: as for `forward`.

        Raises:
            ValueError: as `forward`.
        """
        thresholds = self.thresholds_in_use(exit_threshold, early_exit, not self.training)
        temperatures = None if self.training else self.config.exit_temperatures
        answers = self._walk(model_inputs(self, inputs), thresholds, temperatures)
        if not self.training:
            report_not_finite([answers.all_scores])
        return answers

    def _walk(
        self, inputs: dict[str, Tensor | None], thresholds: list[float] | None, temperatures: list[float] | None
    ) -> Answers:
        inputs, extents = trimmed(inputs)
        return walk(self, [InFlight.of(*self.embed(inputs), extents)], thresholds, temperatures)

    def _answer(self, exits: list[Exit], scores: list[Tensor], thresholds: list[float] | None) -> dict[str, Tensor]:
        """The answer of a full-depth run: the last exit's with the trace, or the one that the thresholds select."""
        depths = torch.tensor(self.config.exit_layers, device=exits[-1].logits.device)
        exit_logits = torch.stack([exit.logits for exit in exits], dim=1)  # (batch, exits, labels)
        if thresholds is None:
            return {
                "logits": exits[-1].logits,
                "exit_layer": depths[-1].repeat(exit_logits.shape[0]),
                "exit_logits": exit_logits,
                "exit_scores": torch.stack(scores, dim=1),
            }
        pairs = zip(scores, thresholds, strict=True)
        chosen = first_ready(torch.stack([self.ready(score, threshold) for score, threshold in pairs], dim=1))
        rows = torch.arange(chosen.shape[0], device=chosen.device)
        return {"logits": exit_logits[rows, chosen], "exit_layer": depths[chosen]}


def report_not_finite(scores: list[Tensor]) -> None:
    """Warn of the NaN among scores."""
    count = int(torch.stack([score.isnan().sum() for score in scores]).sum())
    if count:
        warnings.warn(
            f"{count} exits gave NaN or infinite logits; their rows went on to the next exit. Check the input, or "
            "load the model in a wider dtype, e.g. dtype=torch.float32",
            RuntimeWarning,
            stacklevel=3,
        )
