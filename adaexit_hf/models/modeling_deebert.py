"""DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference. Xin, Tang, Lee, Yu, Lin. ACL 2020.
https://aclanthology.org/2020.acl-main.204

Every layer i has an off-ramp f_i. Two stages of training: first the encoder and the last off-ramp with L_n, as in
plain fine-tuning; then, with those frozen, all other off-ramps with sum_{i<n} L_i (section 3.1, Eq. 1). At inference a
sample leaves at the first off-ramp with entropy(z_i) < S (Algorithm 1).

Deliberate difference from the authors' code: there the last off-ramp is a second, never trained head that answers when
its entropy is low. Here, as in the paper, the last off-ramp is the classification layer of the fine-tuned model.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import ClassVar

from torch import Tensor, nn

from .configuration_early_exit import EarlyExitConfig
from .encoder_layers import Context
from .exit_heads import Exit
from .exit_heads import ExitHead
from .exit_heads import State
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import total_loss
from .modeling_early_exit import two_stages

__all__ = ["DeeBertConfig", "DeeBertForSequenceClassification", "DeeBertModel"]


class DeeBertConfig(EarlyExitConfig):
    """Config of DeeBERT; `exit_threshold` is the entropy S in nats, in [0, ln num_labels]: 0 never exits early.

    >>> DeeBertConfig(num_labels=2, exit_threshold=0.3).exit_layers[-1]
    12
    """

    model_type = "deebert"


class DeeBertModel(EarlyExitModel):
    """The encoder of a DeeBERT checkpoint, without its off-ramps."""

    config_class = DeeBertConfig


class DeeBertForSequenceClassification(EarlyExitForSequenceClassification):
    """Two-stage training, entropy exits. Scores are entropies in nats, (batch, exits)."""

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
        self.exits = nn.ModuleList(ExitHead(config.encoder_config, config.num_labels) for _ in config.exit_layers)
        self.post_init()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return two_stages(len(self.exits))

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        return Exit(self.exits[index](pooled)), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """`final`: L_n; `exits`: sum of the others; `joint`: sum of all (not in the paper; without stages)."""
        used = {"final": exits[-1:], "exits": exits[:-1], "joint": exits}[objective]
        return total_loss([self.task_loss(exit.logits, labels) for exit in used], objective)
