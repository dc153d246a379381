"""PABEE: BERT Loses Patience: Fast and Robust Inference with Early Exit. Zhou, Xu, Ge, McAuley, Xu, Wei. NeurIPS 2020.
https://arxiv.org/abs/2006.04152

Every layer i has a classifier with loss L_i, on top of a pooler that all layers share. All are trained together with
the encoder, and deeper layers have larger weights: L = sum_i i L_i / sum_i i (section 3.3). In inference a counter
goes up by 1 if a layer predicts the same class as the layer before it, and back to 0 otherwise; in regression, if the
two predictions differ by less than a tolerance (section 3.2). A sample leaves when the counter reaches the patience,
so after layer patience + 1 at the earliest.

With fewer exits than layers, i in the loss is the number of the exit, and the counter counts exits.

Deliberate difference from the authors' code: there a batch leaves when the counter of the whole batch reaches the
patience, which requires that all of its samples agree; here every sample has its own counter.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import ClassVar

from torch import Tensor, nn

from .configuration_early_exit import EarlyExitConfig
from .encoder_layers import Context
from .exit_heads import Exit
from .exit_heads import State
from .exit_heads import exit_features
from .exit_heads import output_layer
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import depth_weighted

__all__ = ["PabeeConfig", "PabeeForSequenceClassification", "PabeeModel"]


class PabeeConfig(EarlyExitConfig):
    """Config of PABEE; its arguments are those of `EarlyExitConfig`.

    The exit rule is `patience` in `exit_criteria.py`.

    `exit_threshold` is the patience: a sample leaves once that many exits in a row agreed with the exit before them. A
    whole number from 1 to the number of exits; 0 is full depth.

    Examples:
        >>> PabeeConfig(num_labels=1, exit_threshold=3).tolerance
        0.1
    """

    model_type = "pabee"
    supports_regression: ClassVar[bool] = True
    supports_multi_label: ClassVar[bool] = True

    @property
    def default_criterion(self) -> str:
        return "patience"


class PabeeModel(EarlyExitModel):
    """The encoder of a PABEE checkpoint, without its classifiers."""

    config_class = PabeeConfig


class PabeeForSequenceClassification(EarlyExitForSequenceClassification):
    """PABEE: all exits trained together, weighted by depth; samples leave when consecutive exits agree.

    The readiness score is the number of exits in a row that agreed with the exit before them; a sample leaves at or
    above the threshold.

    Args:
        config: the config.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig
        >>> from adaexit_hf import PabeeConfig, PabeeForSequenceClassification
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> model = PabeeForSequenceClassification(PabeeConfig(encoder, num_labels=2)).eval()
        >>> for exit in model.exits:
        ...     exit.bias.data[1] = 9.0  # all exits predict class 1
        >>> input_ids = torch.tensor([[1, 5, 2]])
        >>> model(input_ids).exit_scores.tolist()  # exits in a row that agreed with the one before
        [[0.0, 1.0, 2.0]]
        >>> model(input_ids, exit_threshold=1).exit_layer.tolist()  # a patience of 1
        [2]
    """

    config_class = PabeeConfig
    objectives = ("weighted",)
    paper: ClassVar[Paper] = Paper(
        title="BERT Loses Patience: Fast and Robust Inference with Early Exit",
        authors="Wangchunshu Zhou, Canwen Xu, Tao Ge, Julian McAuley, Ke Xu, Furu Wei",
        venue="NeurIPS 2020",
        url="https://arxiv.org/abs/2006.04152",
        bibtex="""@inproceedings{zhou-etal-2020-bert,
  title = {{BERT} Loses Patience: Fast and Robust Inference with Early Exit},
  author = {Zhou, Wangchunshu and Xu, Canwen and Ge, Tao and McAuley, Julian and Xu, Ke and Wei, Furu},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {33},
  year = {2020}
}""",
    )

    def __init__(self, config: PabeeConfig) -> None:
        super().__init__(config)
        self.pooler = exit_features(config)
        self.exits = nn.ModuleList(output_layer(self.pooler.size, config.num_labels) for _ in config.exit_layers)
        self.post_init()

    @property
    def classifiers(self) -> list[nn.Module]:
        return list(self.exits)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("joint", ("weighted",)),)

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        return Exit(self.exits[index](self.pooler.features(pooled, hidden, context.padding))), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Compute the loss of the only objective, "weighted": sum_i i L_i / sum_i i (section 3.3).

        Args:
            exits: as in the base class.
            labels: as in the base class.
            objective: "weighted".
        """
        return depth_weighted([self.task_loss(exit.logits, labels) for exit in exits])
