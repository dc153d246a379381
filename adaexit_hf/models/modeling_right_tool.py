"""The Right Tool for the Job: Matching Model and Instance Complexities. Schwartz, Stanovsky, Swayamdipta, Dodge,
Smith. ACL 2020. https://aclanthology.org/2020.acl-main.593

Some layers k have a classifier. A pooler p that all layers share maps the sentence vector h_i of every layer i to
p(h_i). Classifier k reads a weighted sum of the p(h_i) of all layers up to k, with learned weights w_k (section 3):

    z_k = W_k sum_{i<=k} (w_ki / |w_k|) p(h_i) + b_k.

Encoder, pooler and classifiers are trained together with the unweighted sum of the losses, sum_k L_k. Then every
classifier is calibrated with a temperature T_k on a validation set (`calibrate_temperatures`). In inference a sample
leaves at the first classifier with max softmax(z_k / T_k) >= threshold.

Deliberate differences from the authors' code: there w_k is initialized at random and, by accident, never trained; here
it starts with equal weights and is learned. There a whole batch leaves when one of its samples is confident; here
every sample leaves on its own. There the layers above the last classifier are removed; here the last layer always has
one.

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
from .exit_heads import State
from .exit_heads import exit_features
from .exit_heads import output_layer
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import total_loss

__all__ = ["RightToolConfig", "RightToolForSequenceClassification", "RightToolModel"]


class RightToolConfig(EarlyExitConfig):
    """Config of The Right Tool for the Job; its arguments are those of `EarlyExitConfig`.

    `exit_threshold` is the confidence (largest probability) at or above which a sample leaves, from 0 (all samples
    leave at the first exit) to 1 (only those leave whose probability is rounded to 1).

    By default there is an exit after every layer, unlike in the paper, which has four; the authors' example for 12
    layers is `exit_layers=[1, 4, 6, 12]`.

    Examples:
        >>> RightToolConfig(exit_layers=[1, 4, 6, 12], exit_threshold=0.9).exit_criterion
        'confidence'
    """

    model_type = "right-tool"
    supports_multi_label: ClassVar[bool] = True
    # As the common criterion of this name, but a sample leaves also if its confidence is equal to the threshold.
    own_criterion: ClassVar[str | None] = "confidence"


class RightToolModel(EarlyExitModel):
    """The encoder of a Right Tool checkpoint, without its pooler and classifiers."""

    config_class = RightToolConfig


def layer_sum(vectors: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of the layers' vectors, weighted with `weights` divided by their L2 norm.

    Args:
        vectors: shape `(batch, layers, size)`.
        weights: shape `(layers,)`.

    Returns:
        Shape `(batch, size)`.

    Examples:
        >>> vectors = torch.tensor([[[1.0, 0.0], [5.0, -10.0]]])
        >>> [round(value, 6) for value in layer_sum(vectors, torch.tensor([3.0, 4.0]))[0].tolist()]
        [4.6, -8.0]
    """
    unit = functional.normalize(weights.float(), dim=0)
    # Not a matrix product, which rounds differently in smaller batches, and with loaded weights (see `SingleUnit`).
    return (vectors * unit[:, None]).sum(dim=1).to(vectors.dtype)


class LayerSumClassifier(nn.Module):
    """The classifier after layer `layers`: (batch, layers, size) -> logits (batch, labels).

    Args:
        layers: number of vectors that it reads, one per layer.
        size: size of a vector.
        num_labels: number of logits.
    """

    def __init__(self, layers: int, size: int, num_labels: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.ones(layers))
        self.classifier = output_layer(size, num_labels)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.classifier(layer_sum(vectors, self.layer_weights))


class RightToolForSequenceClassification(EarlyExitForSequenceClassification):
    """The Right Tool for the Job: classifiers trained together; samples leave at high calibrated confidence.

    The readiness score is the confidence, from 1 / num_labels to 1; a sample leaves at or above the threshold.

    Args:
        config: the config.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig
        >>> from adaexit_hf import RightToolConfig, RightToolForSequenceClassification
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> config = RightToolConfig(encoder, exit_layers=[1, 3], num_labels=2, exit_threshold=0.8)
        >>> model = RightToolForSequenceClassification(config).eval()
        >>> [exit.layer_weights.numel() for exit in model.exits]  # the layers that each classifier reads
        [1, 3]
        >>> model.exits[0].classifier.bias.data[0] = 2.0  # a confidence of about 0.88
        >>> model(torch.tensor([[1, 5, 2]])).exit_layer.tolist()
        [1]
    """

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
        self.pooler = exit_features(config)
        self.exits = nn.ModuleList(
            LayerSumClassifier(layer, self.pooler.size, config.num_labels) for layer in config.exit_layers
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LayerSumClassifier):
            # Only their ratios matter. From 1 they would hardly change at the learning rates of fine-tuning, so they
            # start from the size of all other weights.
            init.constant_(module.layer_weights, self.config.encoder_config.initializer_range)

    @torch.no_grad()
    def adopt_classifier(self) -> None:
        """Let the last exit read only the last layer, as the fine-tuned classifier did, until training changes it."""
        cast(LayerSumClassifier, self.exits[-1]).layer_weights[:-1] = 0.0

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("joint", ("joint",)),)

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        state = self._append_layer(pooled, hidden, context, state)
        return Exit(self.exits[index](state[0])), state

    def skip_step(self, hidden: Tensor, context: Context, state: State) -> State:
        finished = family_of(self.encoder.config).finish(self.encoder, hidden)
        return self._append_layer(sentence_vector(self, finished, context), finished, context, state)

    def _append_layer(self, pooled: Tensor, hidden: Tensor, context: Context, state: State) -> State:
        """Append one more layer's pooled vector to those of the layers below, (batch, layers, size)."""
        vector = self.pooler.features(pooled, hidden, context.padding)
        return (torch.cat([*state, vector[:, None]], dim=1),)

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Compute the loss of the only objective, "joint": the sum of the cross-entropies of all exits.

        Args:
            exits: as in the base class.
            labels: as in the base class.
            objective: "joint".
        """
        return total_loss([self.task_loss(exit.logits, labels) for exit in exits], objective)
