"""DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference. Xin, Tang, Lee, Yu, Lin. ACL 2020.
https://aclanthology.org/2020.acl-main.204

Every layer i of n has an exit, the paper's off-ramp, with logits z_i and cross-entropy loss L_i. Training has two
stages (section 3.1, Eq. 1): first the encoder and the last exit with L_n, as in ordinary fine-tuning; then, with those
frozen, all other exits with sum_{i<n} L_i. In inference a sample leaves at the first exit with entropy(z_i) < S, the
threshold (Algorithm 1).

Deliberate difference from the authors' code: there, after the last layer, a second head that was never trained gives
the prediction if its entropy is low. Here, as in the paper, the last exit is the classifier of the fine-tuned model.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import ClassVar

from torch import Tensor

from .configuration_early_exit import EarlyExitConfig
from .encoder_layers import Context
from .exit_heads import Exit
from .exit_heads import State
from .exit_heads import exit_heads
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import total_loss
from .modeling_early_exit import two_stages

__all__ = ["DeeBertConfig", "DeeBertForSequenceClassification", "DeeBertModel"]


class DeeBertConfig(EarlyExitConfig):
    """Config of DeeBERT; its arguments are those of `EarlyExitConfig`.

    `exit_threshold` is the entropy S in nats, from 0 (no sample exits early) to ln(num_labels); a sample leaves below
    it.

    Examples:
        >>> DeeBertConfig(num_labels=2, exit_threshold=0.3).exit_layers[-1]
        12
    """

    model_type = "deebert"
    has_separate_heads: ClassVar[bool] = True
    supports_multi_label: ClassVar[bool] = True


class DeeBertModel(EarlyExitModel):
    """The encoder of a DeeBERT checkpoint, without its exits."""

    config_class = DeeBertConfig


class DeeBertForSequenceClassification(EarlyExitForSequenceClassification):
    """DeeBERT: exits trained on a frozen fine-tuned encoder; samples leave at low entropy.

    The readiness score is the entropy in nats, from 0 to ln(num_labels); a sample leaves below the threshold.

    Args:
        config: the config.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig
        >>> from adaexit_hf import DeeBertConfig, DeeBertForSequenceClassification
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> model = DeeBertForSequenceClassification(DeeBertConfig(encoder, num_labels=2)).eval()
        >>> [stage.name for stage in model.stages]
        ['backbone', 'exits']
        >>> model.exits[1].classifier.bias.data[0] = 9.0  # exit 2 is certain of class 0, so its entropy is low
        >>> model(torch.tensor([[1, 5, 2]]), exit_threshold=0.3).exit_layer.tolist()
        [2]
    """

    config_class = DeeBertConfig
    objectives = ("joint", "final", "exits")
    paper: ClassVar[Paper] = Paper(
        title="DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference",
        authors="Ji Xin, Raphael Tang, Jaejun Lee, Yaoliang Yu, Jimmy Lin",
        venue="ACL 2020",
        url="https://aclanthology.org/2020.acl-main.204",
        bibtex="""@inproceedings{xin-etal-2020-deebert,
  title = {{D}ee{BERT}: Dynamic Early Exiting for Accelerating {BERT} Inference},
  author = {Xin, Ji and Tang, Raphael and Lee, Jaejun and Yu, Yaoliang and Lin, Jimmy},
  booktitle = {Proceedings of the 58th Annual Meeting of the Association for Computational Linguistics},
  year = {2020}
}""",
    )

    def __init__(self, config: DeeBertConfig) -> None:
        super().__init__(config)
        self.exits = exit_heads(config)
        self.post_init()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return two_stages(len(self.exits))

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        return Exit(self.exits[index](pooled, hidden, context.padding)), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Compute the loss of an objective.

        Args:
            exits: as in the base class.
            labels: as in the base class.
            objective: "final", L_n; "exits", the sum of the other L_i; or "joint", the sum of all, for training
                without stages (not in the paper).
        """
        used = {"final": exits[-1:], "exits": exits[:-1], "joint": exits}[objective]
        return total_loss([self.task_loss(exit.logits, labels) for exit in used], objective)
