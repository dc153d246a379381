"""PABEE: BERT Loses Patience: Fast and Robust Inference with Early Exit. Zhou, Xu, Ge, McAuley, Xu, Wei. NeurIPS 2020.
https://arxiv.org/abs/2006.04152

Every layer i has a classifier of its own on top of one pooler that all layers share. They are trained together with
the encoder, deeper ones weighing more: L = sum_i i L_i / sum_i i (section 3.3). At inference a counter goes up when a
layer agrees with the layer before it and back to 0 when not; with one label, two layers agree when their answers
differ by less than a tolerance (section 3.2). A sample leaves when the counter reaches the patience, so at the
earliest after layer patience + 1.

With fewer exits than layers, i in the loss is the number of the exit, and the counter counts exits.

Deliberate difference from the authors' code: there all samples of a batch must agree; here every sample has a counter
of its own.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import ClassVar

from torch import Tensor, nn

from .configuration_early_exit import EarlyExitConfig
from .encoder_layers import Context
from .exit_heads import Exit
from .exit_heads import ExitFeatures
from .exit_heads import State
from .exit_heads import output_layer
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import depth_weighted

__all__ = ["PabeeConfig", "PabeeForSequenceClassification", "PabeeModel"]


class PabeeConfig(EarlyExitConfig):
    """Config of PABEE; `exit_threshold` is the patience, in exits, from 1 to their number; 0 is full depth.

    >>> PabeeConfig(num_labels=1, exit_threshold=3).tolerance
    0.1
    """

    model_type = "pabee"
    supports_regression: ClassVar[bool] = True

    @property
    def default_criterion(self) -> str:
        return "patience"


class PabeeModel(EarlyExitModel):
    """The encoder of a PABEE checkpoint, without its classifiers."""

    config_class = PabeeConfig


class PabeeForSequenceClassification(EarlyExitForSequenceClassification):
    """Depth-weighted joint training, exits when layers agree. Scores are agreements in a row, (batch, exits)."""

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
        self.pooler = ExitFeatures(config.encoder_config)
        size = config.encoder_config.hidden_size
        self.exits = nn.ModuleList(output_layer(size, config.num_labels) for _ in config.exit_layers)
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
        return Exit(self.exits[index](self.pooler.features(pooled))), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """`weighted`: section 3.3."""
        return depth_weighted([self.task_loss(exit.logits, labels) for exit in exits])
