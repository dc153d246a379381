"""BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression. Xin, Tang, Yu, Lin. EACL 2021.
https://aclanthology.org/2021.eacl-main.8

Every layer i of n has a classifier with logits g_i and loss L_i. Fine-tuning (section 3) is one of:

- joint: sum_i L_i (Eq. 3);
- two-stage: L_n, then sum_{i<n} L_i with all else frozen (Eq. 4, 5);
- alternating: L_n in odd iterations, sum_i L_i in even ones (Eq. 6, 7).

A sample leaves (section 4) if its confidence, max softmax(g_i), is above the threshold; or if its entropy is below it;
or, with "learning to exit", if its certainty u_i is above it. u_i = sigmoid(c h_i + b) (Eq. 8) is computed by a layer
that all exits share, trained with J_i = (u_i - t_i)^2 (Eq. 9), so that every L_i becomes L_i + J_i. The target is
t_i = 1[argmax g_i = y] (Eq. 10), or for regression t_i = 1 - tanh |g_i - y| (Eq. 11).

The paper compares these with: depth-weighted training, sum_i i L_i / sum_i i (only in the authors' code), where i is
the number of the exit; self-distillation (Appendix A), sum_i L_i + w sum_{i<n} D_i with
D_i = -sum_c softmax(g_n)_c log softmax(g_i)_c, where this g_n gets no gradient; and Limit (section 6), L_k alone,
which is what a model of the first k layers can reach.

Deliberate differences from the authors' code: iterations are optimizer steps, there micro-batches; u is certainty,
there uncertainty (exit below the threshold); D_i is a mean over the batch, there a sum; and see `lte_variant`.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig

from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .configuration_early_exit import check_choice
from .configuration_early_exit import check_number
from .encoder_layers import Context
from .encoder_layers import family_of
from .exit_criteria import correct
from .exit_heads import Exit
from .exit_heads import Head
from .exit_heads import SingleUnit
from .exit_heads import State
from .exit_heads import exit_features
from .exit_heads import exit_heads
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import depth_weighted
from .modeling_early_exit import total_loss
from .modeling_early_exit import two_stages

__all__ = ["BerxitConfig", "BerxitForSequenceClassification", "BerxitModel"]

# Kinds of fine-tuning that the paper compares its own ones with.
COMPARED = ("weighted", "self_distillation", "limit")


class BerxitConfig(EarlyExitConfig):
    """Config of BERxiT.

    Args:
        encoder_config: as in `EarlyExitConfig`.
        exit_threshold: confidence or certainty above which a sample leaves, from 0 to 1; with
            `exit_criterion="entropy"` the entropy in nats below which it leaves, from 0 to ln(num_labels). Default:
            None, full depth.
        exit_layers: as in `EarlyExitConfig`.
        fine_tuning: "alternating", "joint" or "two_stage"; or, for comparison, "weighted", "self_distillation" (for
            classification only) or "limit".
        lte_variant: how learning to exit is trained. "paper": the certainty reads the sentence vector h_i, and every
            L_i becomes L_i + J_i. "authors": as in the authors' code, which is not defined for the kinds of
            fine-tuning for comparison: the certainty reads the classifier's features, at the last layer those of an
            additional pooler; the mean of all J_i is part of the loss in every step; and with "alternating", joint
            steps leave out L_n.
        distillation_weight: w of self-distillation, >= 0. In the authors' code it is in effect the batch size.
        limit_layer: k of "limit", the layer of the only exit that is trained; one of `exit_layers`. The layers above
            it are not trained, nor are the other exits, including the last one: full depth, the default of inference,
            predicts at random. To let all samples leave at k, pass one threshold per exit (confidence or certainty):
            1.0 before k, and 0.0 from k on. To save training time, too, train a Transformers model of k layers
            instead, `AutoModelForSequenceClassification.from_pretrained(name, num_hidden_layers=k)`.
        learning_to_exit: whether the model has the unit that learns the certainty. It stays when another criterion is
            chosen after training, so that "learned" can be chosen again. Default: whether `exit_criterion` is
            "learned".
        **kwargs: further arguments of `EarlyExitConfig`. `exit_criterion` is "confidence" (default), "learned"
            (learning to exit; the default for regression), or another criterion of `EarlyExitConfig`.

    Raises:
        ValueError: an argument is out of range, or not used with the others; see also `EarlyExitConfig`.
        TypeError: an argument is of the wrong type.

    Examples:
        >>> BerxitConfig(num_labels=1).exit_criterion
        'learned'
        >>> limit = BerxitConfig(exit_layers=[4, 8, 12], fine_tuning="limit", limit_layer=8, exit_threshold=[1, 0, 0])
        >>> limit.exit_threshold
        [1.0, 0.0, 0.0]
    """

    model_type = "berxit"
    has_separate_heads: ClassVar[bool] = True
    supports_regression: ClassVar[bool] = True
    supports_multi_label: ClassVar[bool] = True
    own_criterion: ClassVar[str | None] = "learned"

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        exit_threshold: Threshold = None,
        exit_layers: list[int] | None = None,
        fine_tuning: str = "alternating",
        lte_variant: str = "paper",
        distillation_weight: float = 1.0,
        limit_layer: int | None = None,
        learning_to_exit: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.learning_to_exit = learning_to_exit  # if None, set in `_check_task`, since it depends on the criterion
        self.fine_tuning = fine_tuning
        self.lte_variant = lte_variant
        self.distillation_weight = distillation_weight
        self.limit_layer = limit_layer
        super().__init__(encoder_config, exit_threshold, exit_layers, **kwargs)

    @classmethod
    def _with_criterion(cls, saved: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        criterion = saved.get("exit_criterion")
        # Checkpoints of earlier versions do not say whether they have the unit; it is needed where the criterion is.
        learns = saved.get("learning_to_exit", criterion == "learned" or None)
        changed = overrides.get("exit_criterion") == "learned" and criterion not in (None, "learned")
        if changed and not overrides.get("learning_to_exit", learns):
            message = (
                f"exit_criterion: got 'learned', but the checkpoint has '{criterion}' and did not learn to exit "
                "(learning_to_exit); leave it out, or train a new model with exit_criterion='learned'"
            )
            if learns is None:
                message += (
                    ". If it has the weights 'lte', since an earlier version changed its criterion, write "
                    '"learning_to_exit": true into config.json'
                )
            raise ValueError(message)
        saved = saved | {"learning_to_exit": learns}
        if overrides.get("learning_to_exit") is False:  # without the unit there are no variants of its training
            saved = saved | {"lte_variant": "paper"}
        return super()._with_criterion(saved, overrides)

    def _has_criterion(self, name: str) -> bool:
        return name != "learned" or self.learning_to_exit is not False

    def _check_task(self) -> None:
        super()._check_task()
        check_choice("fine_tuning", self.fine_tuning, ("alternating", "joint", "two_stage", *COMPARED))
        self._check_fine_tuning()
        if self.learning_to_exit is None:
            self.learning_to_exit = self.exit_criterion == "learned"
        if self.exit_criterion == "learned" and not self.learning_to_exit:
            raise ValueError(
                f"learning_to_exit: got {self.learning_to_exit}, but exit_criterion='learned' needs it; leave it out, "
                "or pass another exit_criterion"
            )
        if self.last_exit_head is not None and self.learning_to_exit and self.head != "dense":
            raise ValueError(
                f"last_exit_head: got {self.last_exit_head!r} with learning_to_exit and exit_head="
                f"'{self.exit_head}'; the learned certainty reads the features of all heads, which then differ: pass "
                "another exit_criterion, 'confidence' or for regression 'layer', or exit_head='dense'"
            )
        check_choice("lte_variant", self.lte_variant, ("paper", "authors"))
        if self.lte_variant != "paper" and not self.learning_to_exit:
            raise ValueError(
                f"lte_variant: got '{self.lte_variant}', which exit_criterion='{self.exit_criterion}' does not use; "
                "pass exit_criterion='learned', too, or leave it out"
            )
        if self.lte_variant != "paper" and self.fine_tuning in COMPARED:
            raise ValueError(
                f"lte_variant: got '{self.lte_variant}', which the authors' code does not define for fine_tuning="
                f"'{self.fine_tuning}'; pass lte_variant='paper', where every L_i becomes L_i + J_i"
            )

    def _check_fine_tuning(self) -> None:
        if self.fine_tuning == "self_distillation" and self.num_labels == 1:
            raise ValueError(
                "fine_tuning: got 'self_distillation', which needs class probabilities, and num_labels=1 has none; "
                "pass fine_tuning='alternating', 'joint', 'two_stage', 'weighted' or 'limit'"
            )
        weight = check_number("distillation_weight", self.distillation_weight, low=0.0)
        if weight != 1 and self.fine_tuning != "self_distillation":
            raise ValueError(
                f"distillation_weight: got {weight}, which fine_tuning='{self.fine_tuning}' does not use; leave it "
                "out, or pass fine_tuning='self_distillation'"
            )
        if self.fine_tuning != "limit":
            if self.limit_layer is not None:
                raise ValueError(
                    f"limit_layer: got {self.limit_layer}, which fine_tuning='{self.fine_tuning}' does not use; leave "
                    "it out, or pass fine_tuning='limit'"
                )
        elif type(self.limit_layer) is not int or self.limit_layer not in self.exit_layers:
            raise ValueError(
                f"limit_layer: got {self.limit_layer!r}; fine_tuning='limit' needs one of exit_layers, "
                f"{', '.join(map(str, self.exit_layers))}, e.g. limit_layer={self.exit_layers[0]}"
            )

    @property
    def default_criterion(self) -> str:
        return "learned" if self.num_labels == 1 else "confidence"


class BerxitModel(EarlyExitModel):
    """The encoder of a BERxiT checkpoint, without its classifiers."""

    config_class = BerxitConfig


def certainty_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Return t_i, the target of learning to exit. BERxiT, Eq. 10 and 11.

    Args:
        logits: shape `(batch, labels)`.
        labels: shape `(batch,)`, or with several labels at once `(batch, labels)`.

    Returns:
        Shape `(batch,)`: 1 where the predicted class is right, else 0; for regression 1 - tanh(absolute error), from 0
        to 1. With several labels at once, which the paper does not define, 1 where the whole label set is right.

    Examples:
        >>> certainty_target(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1])).tolist()
        [1.0, 0.0]
        >>> round(certainty_target(torch.tensor([[2.5]]), torch.tensor([2.0])).item(), 6)
        0.537883
    """
    if logits.shape[-1] == 1:
        return 1 - (logits.squeeze(-1).float() - labels.float()).abs().tanh()
    return correct(logits, labels).float()


def distillation(logits: list[Tensor], multi_label: bool = False) -> list[Tensor]:
    """Return D_i for every exit except the last: its cross-entropy with the last exit's probabilities as target.

    BERxiT, Appendix A. The last exit gets no gradient. With several labels at once, which the paper does not define,
    it is the binary cross-entropy, averaged over the labels like the task loss.

    Args:
        logits: logits of all exits, each of shape `(batch, labels)`.
        multi_label: whether a text may have several labels at once.

    Returns:
        Scalars in nats, averaged over the batch, one fewer than exits.

    Examples:
        >>> [round(loss.item(), 6) for loss in distillation([torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, -1.0]])])]
        [0.693147]
    """
    teacher = logits[-1].detach().float()
    if multi_label:
        target = teacher.sigmoid()
        return [functional.binary_cross_entropy_with_logits(student.float(), target) for student in logits[:-1]]
    teacher = teacher.softmax(dim=-1)
    return [functional.cross_entropy(student.float(), teacher) for student in logits[:-1]]


class BerxitForSequenceClassification(EarlyExitForSequenceClassification):
    """BERxiT: alternating, joint or two-stage training; samples leave by confidence, or by a learned certainty.

    The readiness score is the confidence or certainty, from 0 to 1; a sample leaves above the threshold.

    Args:
        config: the config.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig
        >>> from adaexit_hf import BerxitConfig, BerxitForSequenceClassification
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> model = BerxitForSequenceClassification(BerxitConfig(encoder, num_labels=1)).eval()  # a regression
        >>> model.config.exit_criterion, model.stages[0].objectives  # in alternating steps
        ('learned', ('final', 'joint'))
        >>> model.lte.bias.data[0] = 2.0  # the certainty is about sigmoid(2) = 0.88
        >>> input_ids = torch.tensor([[1, 5, 2]])
        >>> [model(input_ids, exit_threshold=threshold).exit_layer.item() for threshold in (0.8, 0.95)]
        [1, 3]
    """

    config_class = BerxitConfig
    objectives = ("joint", "final", "exits", *COMPARED)
    own_ready = torch.gt
    # Earlier versions left these weights in a checkpoint whose criterion was changed after training.
    _keys_to_ignore_on_load_unexpected = [r"^lte"]
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
        self.exits = exit_heads(config)
        self.lte = SingleUnit(cast(Head, self.exits[0]).size) if config.learning_to_exit else None
        as_authors = config.learning_to_exit and config.lte_variant == "authors"
        self.lte_last = exit_features(config) if as_authors else None
        self.post_init()

    @property
    def stages(self) -> tuple[Stage, ...]:
        fine_tuning = self.config.fine_tuning
        if fine_tuning == "two_stage":
            return two_stages(len(self.exits))
        if fine_tuning == "alternating":
            return (Stage("alternate", ("final", "joint")),)
        return (Stage(fine_tuning, (fine_tuning,), self._frozen_by_limit()),)

    def _frozen_by_limit(self) -> tuple[str, ...]:
        """Names of the layers above `limit_layer` and of all exits but the one after it; () without `limit_layer`."""
        limit = self.config.limit_layer
        if limit is None:
            return ()
        layers = family_of(self.encoder.config).layers(self.encoder)
        above = set(layers[limit:]) - set(layers[:limit])  # in ALBERT, the layers share one module
        others = (index for index, layer in enumerate(self.config.exit_layers) if layer != limit)
        return (
            *(name for name, module in self.named_modules() if module in above),
            *(f"exits.{index}" for index in others),
        )

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        head = cast(Head, self.exits[index])
        features = head.features(pooled, hidden, context.padding)
        logits = head.classifier(features)
        if self.lte is None:
            return Exit(logits), ()
        if self.lte_last is None:
            lte_input = pooled if self.config.head == "dense" else features
        else:
            last = index == len(self.exits) - 1
            lte_input = self.lte_last.features(pooled, hidden, context.padding) if last else features
        certainty = self.lte(lte_input).squeeze(-1).sigmoid()
        return Exit(logits, certainty.detach(), (certainty,)), ()

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Compute the loss of an objective; with learning to exit, every L_i becomes L_i + J_i.

        Args:
            exits: as in the base class.
            labels: as in the base class.
            objective: "joint", Eq. 3; "final", Eq. 4; "exits", Eq. 5; or "weighted", "self_distillation" or "limit",
                if it is the config's `fine_tuning`.

        Raises:
            ValueError: an objective that the config's `fine_tuning` does not use.
        """
        fine_tuning = self.config.fine_tuning
        if objective in COMPARED and objective != fine_tuning:
            raise ValueError(
                f"objective: got {objective!r}, which the config's fine_tuning='{fine_tuning}' does not use; pass "
                f"fine_tuning={objective!r} to the config"
            )
        task_losses = [self.task_loss(exit.logits, labels) for exit in exits]
        used = slice(*{"final": (-1, None), "exits": (0, -1)}.get(objective, (0, None)))
        if objective == "limit":
            index = self.config.exit_layers.index(self.config.limit_layer)
            used = slice(index, index + 1)
        losses = task_losses[used]
        if self.lte is not None:
            certainty_losses = [  # J_i
                (exit.extras[0] - certainty_target(exit.logits.detach(), labels)).square().mean() for exit in exits
            ]
            if self.config.lte_variant == "authors":
                if objective == "joint" and fine_tuning == "alternating":
                    losses = losses[:-1]
                return total_loss([*losses, torch.stack(certainty_losses).mean()], objective)
            losses = [task + certainty for task, certainty in zip(losses, certainty_losses[used], strict=True)]
        if objective == "weighted":
            return depth_weighted(losses)
        if objective == "self_distillation":
            distilled = distillation([exit.logits for exit in exits], self.config.multi_label)
            losses = [*losses, *(self.config.distillation_weight * loss for loss in distilled)]
        return total_loss(losses, objective)
