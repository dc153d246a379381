"""The Right Tool for the Job: Matching Model and Instance Complexities. Schwartz, Stanovsky, Swayamdipta, Dodge,
Smith. ACL 2020. https://aclanthology.org/2020.acl-main.593

Some layers k have a classifier. One pooler p, shared by all, turns the sentence vector h_i of every layer i into
p(h_i); classifier k reads those of all layers up to its own, summed with weights w_k of its own (section 3):

    z_k = W_k sum_{i<=k} (w_ki / |w_k|) p(h_i) + b_k.

Everything is trained together with sum_k L_k, unweighted. Then every classifier gets a temperature T_k that makes its
probabilities fit held-out data (`calibrate_temperatures`). At inference a sample leaves at the first classifier with
max softmax(z_k / T_k) >= threshold.

Deliberate differences from the authors' code: there w_k is drawn at random and, by accident, never trained; here it
starts with equal weights and is learned. There a batch leaves when one of its samples is sure; here every sample
decides for itself. There layers above the last classifier are removed; here the last layer always has one.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from .configuration_early_exit import EarlyExitConfig
from .early_exit_loop import sentence_vector
from .encoder_layers import Context
from .encoder_layers import family_of
from .exit_heads import Exit
from .exit_heads import ExitFeatures
from .exit_heads import State
from .exit_heads import output_layer
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import total_loss

__all__ = ["RightToolConfig", "RightToolForSequenceClassification", "RightToolModel"]


class RightToolConfig(EarlyExitConfig):
    """Config of The Right Tool; `exit_threshold` is the largest probability, in [0, 1], at or above which a sample
    leaves: at 0 all leave at the first exit, at 1 only those whose probability rounds to 1.

    The default exit after every layer is this package's. The paper has four; the authors' example for 12 layers is
    `exit_layers=[1, 4, 6, 12]`.

    >>> RightToolConfig(exit_layers=[1, 4, 6, 12], exit_threshold=0.9).exit_criterion
    'confidence'
    """

    model_type = "right-tool"
    own_criterion: ClassVar[str | None] = "confidence"  # its own reading: at the threshold a sample leaves


class RightToolModel(EarlyExitModel):
    """The encoder of a Right Tool checkpoint, without pooler and classifiers."""

    config_class = RightToolConfig


def layer_sum(vectors: Tensor, weights: Tensor) -> Tensor:
    """Sum of the layers' vectors with L2-normalised weights: (batch, layers, size), (layers,) -> (batch, size).

    >>> vectors = torch.tensor([[[1.0, 0.0], [5.0, -10.0]]])
    >>> [round(value, 6) for value in layer_sum(vectors, torch.tensor([3.0, 4.0]))[0].tolist()]
    [4.6, -8.0]
    """
    unit = functional.normalize(weights.float(), dim=0)
    # No product of matrices: it rounds differently in smaller batches, and with loaded weights, as in `SingleUnit`.
    return (vectors * unit[:, None]).sum(dim=1).to(vectors.dtype)


class LayerSumClassifier(nn.Module):
    """Classifier after layer `layers`, (batch, layers, size) -> logits (batch, labels)."""

    def __init__(self, layers: int, size: int, num_labels: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.ones(layers))
        self.classifier = output_layer(size, num_labels)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.classifier(layer_sum(vectors, self.layer_weights))


class RightToolForSequenceClassification(EarlyExitForSequenceClassification):
    """Joint training, exits by calibrated confidence. Scores are largest probabilities, (batch, exits)."""

    config_class = RightToolConfig
    objectives = ("joint",)
    own_ready = torch.ge
    paper: ClassVar[Paper] = Paper(
        title="The Right Tool for the Job: Matching Model and Instance Complexities",
        authors="Roy Schwartz, Gabriel Stanovsky, Swabha Swayamdipta, Jesse Dodge, Noah A. Smith",
        venue="ACL 2020",
        url="https://aclanthology.org/2020.acl-main.593",
        bibtex="""@inproceedings{schwartz-etal-2020-right,
  title = {The Right Tool for the Job: Matching Model and Instance Complexities},
  author = {Schwartz, Roy and Stanovsky, Gabriel and Swayamdipta, Swabha and Dodge, Jesse and Smith, Noah A.},
  booktitle = {Proceedings of the 58th Annual Meeting of the Association for Computational Linguistics},
  year = {2020}
}""",
    )

    def __init__(self, config: RightToolConfig) -> None:
        super().__init__(config)
        encoder = config.encoder_config
        self.pooler = ExitFeatures(encoder)
        self.exits = nn.ModuleList(
            LayerSumClassifier(layer, encoder.hidden_size, config.num_labels) for layer in config.exit_layers
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LayerSumClassifier):
            # Only their ratios count, and from the size of all other weights they can change as fast as those; from 1
            # they would hardly move at the learning rates of fine-tuning.
            init.constant_(module.layer_weights, self.config.encoder_config.initializer_range)

    @torch.no_grad()
    def adopt_classifier(self) -> None:
        """Let the last exit read the last layer alone, as a fine-tuned classifier does; training mixes in others."""
        cast(LayerSumClassifier, self.exits[-1]).layer_weights[:-1] = 0.0

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("joint", ("joint",)),)

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        state = self._read(pooled, state)
        return Exit(self.exits[index](state[0])), state

    def skip_step(self, hidden: Tensor, context: Context, state: State) -> State:
        finished = family_of(self.encoder.config).finish(self.encoder, hidden)
        return self._read(sentence_vector(self, finished, context), state)

    def _read(self, pooled: Tensor, state: State) -> State:
        """Add the vector of one more layer, (batch, size), to those of the layers below it, (batch, layers, size)."""
        return (torch.cat([*state, self.pooler.features(pooled)[:, None]], dim=1),)

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """`joint`: sum of all exits' cross-entropies."""
        return total_loss([self.task_loss(exit.logits, labels) for exit in exits], objective)
