"""BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression. Xin, Tang, Yu, Lin. EACL 2021.
https://aclanthology.org/2021.eacl-main.8

Every layer i has a classifier with loss L_i. Fine-tuning (section 3): joint, sum_i L_i (Eq. 3); two-stage, L_n, then
sum_{i<n} L_i with the rest frozen (Eq. 4, 5); alternating, L_n in odd iterations, sum_i L_i in even ones (Eq. 6, 7).
Exits (section 4): confidence max softmax > threshold, or entropy <, or learning to exit: one layer, shared by all,
u_i = sigmoid(c h_i + b) (Eq. 8), trained with J_i = (u_i - t_i)^2 (Eq. 9) towards t_i = 1[argmax g_i = y] (Eq. 10) or,
for regression, t_i = 1 - tanh |g_i - y| (Eq. 11), every L_i becoming L_i + J_i; a sample leaves when u_i > threshold.

Deliberate differences from the authors' code: iterations are optimizer steps, there micro-batches; u is certainty,
there uncertainty (exit below the threshold); and see `lte_variant`.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .configuration_early_exit import check_choice
from .encoder_layers import Context
from .exit_heads import ExitFeatures
from .exit_heads import ExitHead
from .exit_heads import SingleUnit
from .exit_types import Exit
from .exit_types import Paper
from .exit_types import Stage
from .exit_types import State
from .exit_types import total_loss
from .exit_types import two_stages
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel

__all__ = ["BerxitConfig", "BerxitForSequenceClassification", "BerxitModel"]


class BerxitConfig(EarlyExitConfig):
    """Config of BERxiT.

    Args:
        exit_threshold: confidence or certainty in [0, 1] above which a sample leaves, or the entropy in nats, in
            [0, ln num_labels], below which it does.
        fine_tuning: "alternating", "joint" or "two_stage".
        exit_criterion: "confidence", "learned" (learning to exit), or another of `EarlyExitConfig`. Default:
            "confidence", and "learned" with `num_labels=1`.
        lte_variant: "paper" as above; "authors": as in their code, the certainty reads the classifier's features in
            place of h_i, at the last layer those of a pooler of its own; J is the mean over all layers in every step;
            and joint steps leave out L_n.

    >>> BerxitConfig(num_labels=1).exit_criterion
    'learned'
    """

    model_type = "berxit"
    supports_regression: ClassVar[bool] = True
    own_criterion: ClassVar[str | None] = "learned"

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        exit_threshold: Threshold = None,
        exit_layers: list[int] | None = None,
        fine_tuning: str = "alternating",
        lte_variant: str = "paper",
        **kwargs: Any,
    ) -> None:
        self.fine_tuning = fine_tuning
        self.lte_variant = lte_variant
        super().__init__(encoder_config, exit_threshold, exit_layers, **kwargs)

    def _check_task(self) -> None:
        super()._check_task()
        check_choice("fine_tuning", self.fine_tuning, ("alternating", "joint", "two_stage"))
        check_choice("lte_variant", self.lte_variant, ("paper", "authors"))
        if self.lte_variant != "paper" and self.exit_criterion != "learned":
            raise ValueError(
                f"lte_variant: got '{self.lte_variant}', which exits by '{self.exit_criterion}' do not use; pass "
                "exit_criterion='learned' too"
            )

    @property
    def default_criterion(self) -> str:
        return "learned" if self.num_labels == 1 else "confidence"


class BerxitModel(EarlyExitModel):
    """The encoder of a BERxiT checkpoint, without its classifiers."""

    config_class = BerxitConfig


def certainty_target(logits: Tensor, labels: Tensor) -> Tensor:
    """What learning to exit should predict, BERxiT Eq. 10 and 11: logits (batch, labels), labels (batch,) -> (batch,).

    1 where the class is right, else 0; with one label 1 - tanh of the absolute error, in (0, 1].

    >>> certainty_target(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1])).tolist()
    [1.0, 0.0]
    >>> round(certainty_target(torch.tensor([[2.5]]), torch.tensor([2.0])).item(), 6)
    0.537883
    """
    if logits.shape[-1] == 1:
        return 1 - (logits.squeeze(-1).float() - labels.float()).abs().tanh()
    return (logits.argmax(dim=-1) == labels).float()


class BerxitForSequenceClassification(EarlyExitForSequenceClassification):
    """Alternating, joint or two-stage training; confidence, entropy or learned exits. Scores (batch, exits)."""

    config_class = BerxitConfig
    objectives = ("joint", "final", "exits")
    own_ready = torch.gt
    paper: ClassVar[Paper] = Paper(
        title="BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression",
        authors="Ji Xin, Raphael Tang, Yaoliang Yu, Jimmy Lin",
        venue="EACL 2021",
        url="https://aclanthology.org/2021.eacl-main.8",
        bibtex="""@inproceedings{xin-etal-2021-berxit,
  title = {{BER}xi{T}: Early Exiting for {BERT} with Better Fine-Tuning and Extension to Regression},
  author = {Xin, Ji and Tang, Raphael and Yu, Yaoliang and Lin, Jimmy},
  booktitle = {Proceedings of the 16th Conference of the European Chapter of the
    Association for Computational Linguistics},
  year = {2021}
}""",
    )

    def __init__(self, config: BerxitConfig) -> None:
        super().__init__(config)
        self.exits = nn.ModuleList(ExitHead(config.encoder_config, config.num_labels) for _ in config.exit_layers)
        learned = config.exit_criterion == "learned"
        self.lte = SingleUnit(config.encoder_config.hidden_size) if learned else None
        authors = learned and config.lte_variant == "authors"
        self.lte_last = ExitFeatures(config.encoder_config) if authors else None
        self.post_init()

    @property
    def stages(self) -> tuple[Stage, ...]:
        if self.config.fine_tuning == "alternating":
            return (Stage("alternate", ("final", "joint")),)
        if self.config.fine_tuning == "joint":
            return (Stage("joint", ("joint",)),)
        return two_stages(len(self.exits))

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        head = cast(ExitHead, self.exits[index])
        features = head.features(pooled)
        logits = head.classifier(features)
        if self.lte is None:
            return Exit(logits), ()
        if self.lte_last is None:
            seen = pooled
        else:
            seen = features if index < len(self.exits) - 1 else self.lte_last.features(pooled)
        certainty = self.lte(seen).squeeze(-1).sigmoid()
        return Exit(logits, certainty.detach(), (certainty,)), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """`joint`: Eq. 3; `final`: Eq. 4; `exits`: Eq. 5; with learning to exit each L_i + J_i."""
        used = slice(*{"final": (-1, None), "exits": (0, -1), "joint": (0, None)}[objective])
        tasks = [self.task_loss(exit.logits, labels) for exit in exits]
        if self.lte is None:
            return total_loss(tasks[used], objective)
        misses = [  # J_i
            (exit.extras[0] - certainty_target(exit.logits.detach(), labels)).square().mean() for exit in exits
        ]
        if self.config.lte_variant == "paper":
            return total_loss(tasks[used] + misses[used], objective)
        alternating = self.config.fine_tuning == "alternating"
        without_last = slice(0, -1) if objective == "joint" and alternating else used
        return total_loss([*tasks[without_last], torch.stack(misses).mean()], objective)
