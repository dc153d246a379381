"""FastBERT: a Self-distilling BERT with Adaptive Inference Time. Liu, Zhou, Wang, Zhao, Deng, Ju. ACL 2020.
https://aclanthology.org/2020.acl-main.537

Every layer has a branch classifier, all of the same architecture (section 3.1): a linear layer to 128 features and
tanh, self-attention over the tokens (2 heads, no residual connection, no norm), the sentence vector, a linear layer
and tanh, and a linear layer to the classes. The classifier of the last layer L is the teacher, the others are
students. Training has two stages (section 3.2): first the encoder and the teacher with cross-entropy, as in ordinary
fine-tuning; then, with those frozen, all students with sum_{i<L} KL(p_L || p_i), which needs no labels. In inference a
sample leaves at the first student whose uncertainty, entropy(p_i) / ln(classes) in [0, 1], is below the threshold,
which the paper calls "speed" (section 3.3).

What the paper does not specify is as in the authors' code: both tanh, the initialization of the branches, the
unweighted sum, temperature 1, and dropout in the teacher also during distillation. Dropout in the frozen encoder,
however, is applied only if the Trainer runs the encoder in every step (`reuse_frozen_states=False`). The direction of
the KL divergence is that of their code; the paper has the reverse one, `distillation_kl="student_teacher"`.

Deliberate differences from their code: in their script, a sample leaves also at the threshold. Their script pools with
a mean over the features, their package with a mean over tokens and padding; here the mean is over the tokens only.
Their checkpoints cannot be converted, since the LayerNorm of their encoder uses another standard deviation, so that
the predictions would differ.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedConfig

from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .configuration_early_exit import check_choice
from .configuration_early_exit import check_number
from .encoder_layers import Context
from .exit_criteria import two_classes
from .exit_heads import Exit
from .exit_heads import State
from .exit_heads import exit_heads
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import kl_divergence
from .modeling_early_exit import total_loss

__all__ = ["FastBertConfig", "FastBertForSequenceClassification", "FastBertModel"]


class FastBertConfig(EarlyExitConfig):
    """Config of FastBERT.

    Args:
        encoder_config: as in `EarlyExitConfig`.
        exit_threshold: uncertainty (normalized entropy) below which a sample leaves, the paper's "speed": from 0 (no
            sample exits early) to 1 (samples leave at the first exit). Default: None, full depth.
        exit_layers: as in `EarlyExitConfig`.
        classifier_size: number of features in a branch classifier, a multiple of `classifier_heads`.
        classifier_heads: number of attention heads in a branch classifier. Both only with the paper's `exit_head`.
        distillation_kl: "teacher_student", KL(p_L || p_i) as in the authors' code, or "student_teacher",
            KL(p_i || p_L) as in the paper.
        **kwargs: further arguments of `EarlyExitConfig`.

    Raises:
        ValueError: an argument is out of range; see also `EarlyExitConfig`.
        TypeError: an argument is of the wrong type.

    Examples:
        >>> FastBertConfig(num_labels=2, exit_threshold=0.5).exit_criterion
        'normalized_entropy'
    """

    model_type = "fastbert"
    has_separate_heads: ClassVar[bool] = True
    paper_head: ClassVar[str] = "attention-block"
    supports_multi_label: ClassVar[bool] = True

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        exit_threshold: Threshold = None,
        exit_layers: list[int] | None = None,
        classifier_size: int = 128,
        classifier_heads: int = 2,
        distillation_kl: str = "teacher_student",
        **kwargs: Any,
    ) -> None:
        self.classifier_size = classifier_size
        self.classifier_heads = classifier_heads
        self.distillation_kl = distillation_kl
        super().__init__(encoder_config, exit_threshold, exit_layers, **kwargs)

    def _check_task(self) -> None:
        super()._check_task()
        for name in ("classifier_heads", "classifier_size"):
            value = getattr(self, name)
            check_number(name, value, low=1)
            if not isinstance(value, int):
                raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}; pass an integer")
        if self.classifier_size % self.classifier_heads:
            raise ValueError(
                f"classifier_size: got {self.classifier_size}, which {self.classifier_heads} heads do not divide; "
                f"pass a multiple of the number of heads, e.g. classifier_size={64 * self.classifier_heads}"
            )
        if self.head != "attention-block" and (self.classifier_size, self.classifier_heads) != (128, 2):
            raise ValueError(
                f"classifier_size, classifier_heads: got {self.classifier_size}, {self.classifier_heads}, which "
                f"exit_head='{self.exit_head}' does not use; leave them out"
            )
        check_choice("distillation_kl", self.distillation_kl, ("teacher_student", "student_teacher"))

    @property
    def default_criterion(self) -> str:
        return "normalized_entropy"


class FastBertModel(EarlyExitModel):
    """The encoder of a FastBERT checkpoint, without its branch classifiers."""

    config_class = FastBertConfig


class FastBertForSequenceClassification(EarlyExitForSequenceClassification):
    """FastBERT: exits distilled from the last exit on a frozen encoder; samples leave at low normalized entropy.

    The readiness score is the normalized entropy, from 0 to 1; a sample leaves below the threshold.

    Args:
        config: the config.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig
        >>> from adaexit_hf import FastBertConfig, FastBertForSequenceClassification
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> model = FastBertForSequenceClassification(FastBertConfig(encoder, num_labels=2)).eval()
        >>> [stage.name for stage in model.stages], model.unlabelled_objectives
        (['teacher', 'distil'], ('distillation',))
        >>> model.exits[1].classifier.bias.data[0] = 9.0  # student 2 is certain of class 0
        >>> model(torch.tensor([[1, 5, 2]]), exit_threshold=0.3).exit_layer.tolist()  # 30 % of the highest entropy
        [2]
    """

    config_class = FastBertConfig
    objectives = ("joint", "final", "distillation")
    unlabelled_objectives = ("distillation",)
    paper: ClassVar[Paper] = Paper(
        title="FastBERT: a Self-distilling BERT with Adaptive Inference Time",
        authors="Weijie Liu, Peng Zhou, Zhiruo Wang, Zhe Zhao, Haotang Deng, Qi Ju",
        venue="ACL 2020",
        url="https://aclanthology.org/2020.acl-main.537",
        bibtex="""@inproceedings{liu-etal-2020-fastbert,
  title = {{F}ast{BERT}: a Self-distilling {BERT} with Adaptive Inference Time},
  author = {Liu, Weijie and Zhou, Peng and Wang, Zhiruo and Zhao, Zhe and Deng, Haotang and Ju, Qi},
  booktitle = {Proceedings of the 58th Annual Meeting of the Association for Computational Linguistics},
  year = {2020}
}""",
    )

    def __init__(self, config: FastBertConfig) -> None:
        super().__init__(config)
        block = {"size": config.classifier_size, "heads": config.classifier_heads}
        self.exits = exit_heads(config, **block)
        self.post_init()

    @property
    def stages(self) -> tuple[Stage, ...]:
        last = len(self.exits) - 1
        teacher = Stage("teacher", ("final",), frozen=tuple(f"exits.{index}" for index in range(last)))
        distil = Stage("distil", ("distillation",), frozen=("encoder", f"exits.{last}"))
        return (teacher, distil) if last else (teacher,)

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        return Exit(self.exits[index](pooled, hidden, context.padding)), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Compute the loss of an objective.

        Args:
            exits: as in the base class.
            labels: as in the base class.
            objective: "final", the teacher's cross-entropy; or "joint", that plus "distillation", for training without
                stages (not in the paper).
        """
        students = self._divergences(exits) if objective == "joint" else []
        return total_loss([self.task_loss(exits[-1].logits, labels), *students], objective)

    def unlabelled_loss(self, exits: list[Exit], objective: str) -> Tensor:
        """Compute the loss of the objective "distillation": the sum of the students' KL divergences.

        The teacher gets no gradient. With several labels at once, which the paper does not define, a divergence is the
        sum of those of the labels, each of which is given or not.

        Args:
            exits: as in the base class.
            objective: "distillation".
        """
        return total_loss(self._divergences(exits), objective)

    def _divergences(self, exits: list[Exit]) -> list[Tensor]:
        *students, teacher = (two_classes(exit.logits) if self.config.multi_label else exit.logits for exit in exits)
        teacher = teacher.detach()
        if self.config.distillation_kl == "student_teacher":
            return [kl_divergence(student, teacher) for student in students]
        return [kl_divergence(teacher, student) for student in students]
