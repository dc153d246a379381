"""DACT-BERT: Differentiable Adaptive Computation Time for an Efficient BERT Inference. Eyzaguirre, del Rio, Araujo,
Soto. NLP Power workshop at ACL 2022. https://aclanthology.org/2022.nlppower-1.10

Every layer n of N has an output y_n = softmax(...) and a halting value h_n = sigmoid(...) in [0, 1], both functions of
the sentence vector; h_n near 0 means stop. The prediction a_n accumulates the outputs, and p_n says how much later
layers can still change it. With a_0 = 0 and p_0 = 1 (Algorithm 1):

    a_n = y_n p_(n-1) + a_(n-1) (1 - p_(n-1)),    p_n = p_(n-1) h_n.

Training has two steps: ordinary fine-tuning of the encoder with the last output, then all parameters together with
NLL(a_N) + tau sum_n h_n (Eq. 1). In inference a sample leaves once no later layer can change the class of a_n. Let a*
be the largest probability in a_n, a_ru that of the runner-up, and d = N - n the number of layers left. The class
cannot change if and only if (1 - p_n)^d (1 + a* - a_ru) >= 1 (`halting_bound="tight"`). The paper's rule,
a* (1 - p_n)^d >= a_ru + p_n d (Eq. 2, "paper"), is sufficient, too, but exits later.

Why the tight rule is exact: unrolled, a_N = W a_n + sum_k w_k y_k with w_k >= 0 and sum w_k = 1 - W, where W is the
product of (1 - p_k) over the layers left. p never increases, so W >= (1 - p_n)^d. For any y_k, the top class stays
ahead by at least W (1 + a* - a_ru) - 1. This bound is reached if all later layers give the runner-up probability 1 and
never halt.

`logits` are log a_n, so that exp(logits) = a_n; calibrated, they are log softmax(log a_n / T).

DeeBERT and FastBERT are special cases (DACT-BERT's submission to ICLR 2021, section 3.1). The halting value is then a
logistic regression on the entropy of the layer's own output, h_n = sigmoid(w_n (H(y_n) - S_n)), and training has three
stages: the two of DeeBERT or FastBERT, then the h_n alone with Eq. 1. This learns an entropy threshold S_n for every
layer, or one for all layers (`tied_halting`). As w_n grows, h_n tends to 1[H(y_n) > S_n]: a_n is y_n up to the first
layer whose entropy is below S_n, and there p_n = 0, so both rules stop. That is DeeBERT with threshold S_n.

Deliberate differences from the submission: it has a weight and a bias, which here is -w_n S_n. Here w_n = exp(v_n), so
that a low entropy always means stop. The submission ties only the biases; `tied_halting` ties w_n and S_n, since equal
biases with different weights would be different thresholds, S_n = -b / w_n.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import math
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .configuration_early_exit import check_choice
from .configuration_early_exit import check_number
from .configuration_early_exit import check_whole_number
from .encoder_layers import Context
from .exit_heads import Exit
from .exit_heads import Head
from .exit_heads import SingleUnit
from .exit_heads import State
from .exit_heads import exit_head
from .exit_criteria import entropy
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import kl_divergence
from .modeling_early_exit import total_loss
from .modeling_early_exit import two_stages

__all__ = ["DactBertConfig", "DactBertForSequenceClassification", "DactBertModel"]

# With `halting_input="entropy"`, h is initialized to go from sigmoid(-START) at entropy 0 to sigmoid(START) at the
# largest entropy, ln(num_labels).
START = 5.0


class DactBertConfig(EarlyExitConfig):
    """Config of DACT-BERT.

    Args:
        encoder_config: as in `EarlyExitConfig`.
        exit_threshold: the margin (left side minus right side of the halting rule) at or above which a sample leaves.
            With 0, the class is always that of full depth. Below 0 samples leave earlier, but the class may differ;
            above 0 they leave later. From -1 to 1, or with the paper's bound from -N to 1. Default: "default", which
            is 0, and None with another `exit_criterion` than "dact".
        exit_layers: as in `EarlyExitConfig`.
        ponder_cost: tau of Eq. 1, >= 0: the larger, the earlier samples leave. The trade-off between quality and depth
            is chosen with it, before training. Train with `EarlyExitTrainingArguments(exits_learning_rate=1e-3)`, so
            that the halting units learn fast enough to follow it. Default: 0.1.
        halting_bias: initial bias b of every halting unit, so that h starts near sigmoid(b), with
            `halting_input="entropy"` in the middle of the range of the entropy. With large values training starts near
            full depth, with 0 the last layers start with almost no weight. Default: 0, as in all DACT configs of the
            authors.
        halting_bound: "tight" or "paper".
        halting_input: what the halting units read: "state", the sentence vector, or "entropy", the entropy of y_n in
            nats.
        tied_halting: whether all layers share one halting unit.
        fine_tuning: "joint", the two steps of the paper; "three_stage": the encoder with y_N, then the other y_n on
            the frozen encoder as in DeeBERT, then the halting units alone; or "three_stage_distilled", the same with
            FastBERT's second stage, sum_{n<N} KL(y_N || y_n), which needs no labels.
        bound_exits: N in the halting rules, for a model whose last exits were removed. With the original number of
            exits it stops where the original model did, which is later than necessary, but just as safe. Default: the
            number of exits.
        **kwargs: further arguments of `EarlyExitConfig`.

    Raises:
        ValueError: an argument is out of range; see also `EarlyExitConfig`.
        TypeError: an argument is of the wrong type.

    Examples:
        >>> DactBertConfig(halting_input="entropy", tied_halting=True, fine_tuning="three_stage").exit_threshold
        0.0
    """

    model_type = "dact-bert"
    own_criterion: ClassVar[str | None] = "dact"
    default_threshold: ClassVar[float | None] = 0.0

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        exit_threshold: Threshold | Literal["default"] = "default",
        exit_layers: list[int] | None = None,
        ponder_cost: float = 0.1,
        halting_bias: float = 0.0,
        halting_bound: str = "tight",
        halting_input: str = "state",
        tied_halting: bool = False,
        fine_tuning: str = "joint",
        bound_exits: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.ponder_cost = ponder_cost
        self.halting_bias = halting_bias
        self.halting_bound = halting_bound
        self.bound_exits = bound_exits
        self.halting_input = halting_input
        self.tied_halting = tied_halting
        self.fine_tuning = fine_tuning
        super().__init__(encoder_config, exit_threshold, exit_layers, **kwargs)

    def _check_task(self) -> None:
        if self.multi_label:
            raise ValueError(
                "problem_type: got 'multi_label_classification', which dact-bert does not define: it accumulates the "
                "probabilities of classes, and its halting rule compares the two most likely ones; leave it out for "
                "one of several classes, or use a method that allows it, e.g. deebert or berxit"
            )
        super()._check_task()
        check_number("ponder_cost", self.ponder_cost, low=0.0)
        check_number("halting_bias", self.halting_bias)
        check_choice("halting_bound", self.halting_bound, ("tight", "paper"))
        if self.bound_exits is not None:
            exits, advice = len(self.exit_layers), "the number of exits, or leave it out"
            self.bound_exits = check_whole_number("bound_exits", self.bound_exits, low=exits, advice=advice)
        check_choice("halting_input", self.halting_input, ("state", "entropy"))
        check_choice("fine_tuning", self.fine_tuning, ("joint", "three_stage", "three_stage_distilled"))
        if not isinstance(self.tied_halting, bool):
            kind = type(self.tied_halting).__name__
            raise TypeError(f"tied_halting: got {self.tied_halting!r} of type {kind}; pass True or False")

    @property
    def own_bounds(self) -> tuple[float, float]:
        return (-1.0 if self.halting_bound == "tight" else -float(self.steps), 1.0)

    @property
    def steps(self) -> int:
        """N in the halting rules: `bound_exits`, or the number of exits."""
        return self.bound_exits or len(self.exit_layers)

    def kept_when_cut(self) -> dict[str, Any]:
        """Return `bound_exits`, so that the halting rules still count the exits that are removed."""
        return {"bound_exits": self.steps} if self.exit_criterion == self.own_criterion else {}


class DactBertModel(EarlyExitModel):
    """The encoder of a DACT-BERT checkpoint, without its exits and halting units."""

    config_class = DactBertConfig


class HaltingUnit(SingleUnit):
    """h = sigmoid(w h_CLS + b): (batch, hidden) -> (batch,) in (0, 1)."""

    def forward(self, pooled: Tensor) -> Tensor:
        return super().forward(pooled).squeeze(-1).sigmoid()


class EntropyHalting(nn.Module):
    """h = sigmoid(w (H - S)), w = exp(log_weight): entropies in nats (batch,) -> (batch,) in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.empty(1))
        self.threshold = nn.Parameter(torch.empty(1))  # S in nats

    def forward(self, entropies: Tensor) -> Tensor:
        return (self.log_weight.float().exp() * (entropies - self.threshold.float())).sigmoid()


def dact_combine(answer: Tensor, remaining: Tensor, output: Tensor, halting: Tensor) -> tuple[Tensor, Tensor]:
    """Add one layer to the prediction: a_n = y_n p_(n-1) + a_(n-1) (1 - p_(n-1)), and p_n = p_(n-1) h_n.

    DACT-BERT, Algorithm 1, lines 8 and 10. Start with a_0 = 0 and p_0 = 1.

    Args:
        answer: a_(n-1), probabilities, shape `(batch, labels)`.
        remaining: p_(n-1) in [0, 1], shape `(batch,)`: how much later layers can still change.
        output: y_n, probabilities of this layer, shape `(batch, labels)`.
        halting: h_n in [0, 1], shape `(batch,)`; 0 stops, 1 continues.

    Returns:
        a_n, shape `(batch, labels)`, and p_n, shape `(batch,)`.

    Examples:
        >>> answer, remaining = torch.tensor([[0.9, 0.1]]), torch.tensor([0.5])
        >>> answer, remaining = dact_combine(answer, remaining, torch.tensor([[0.2, 0.8]]), torch.tensor([0.1]))
        >>> [round(value, 4) for value in answer[0].tolist()], round(remaining.item(), 4)
        ([0.55, 0.45], 0.05)
    """
    weight = remaining[:, None]
    return output * weight + answer * (1 - weight), remaining * halting


def dact_margin(answer: Tensor, remaining: Tensor, steps_left: int, bound: str = "tight") -> Tensor:
    """Return the margin of the halting rule; at 0 and above, no later layer can change the class.

    "tight": (1 - p)^d (1 + a* - a_ru) - 1, from -1 to 1; a necessary and sufficient condition. "paper":
    a* (1 - p)^d - a_ru - p d, from -d - 0.5 to 1 (DACT-BERT, Eq. 2); a sufficient condition, which exits later.

    Args:
        answer: a_n, probabilities, shape `(batch, labels)` with at least two labels.
        remaining: p_n in [0, 1], shape `(batch,)`.
        steps_left: d = N - n, the number of exits left.
        bound: "tight" or "paper".

    Returns:
        Shape `(batch,)`.

    Examples:
        >>> answer, remaining = torch.tensor([[0.95, 0.05]]), torch.tensor([0.125])
        >>> [round(dact_margin(answer, remaining, 4, bound).item(), 4) for bound in ("tight", "paper")]
        [0.1137, 0.0069]
    """
    wide = torch.float32 if answer.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    answer, remaining = answer.to(wide), remaining.to(wide)
    top = answer.topk(2, dim=-1).values
    # ln (1 - p)^d, and 0 for d = 0 even at p = 1. Not `torch.special.xlog1py`, which ONNX does not know.
    log_kept = steps_left * torch.log1p(-remaining) if steps_left else torch.zeros_like(remaining)
    if bound == "paper":
        return (top[:, 0] * log_kept.exp() - top[:, 1] - remaining * steps_left).float()
    # The plain formula could round a tiny margin to the wrong sign.
    return torch.expm1(log_kept + torch.log1p(top[:, 0] - top[:, 1])).float()


class DactBertForSequenceClassification(EarlyExitForSequenceClassification):
    """DACT-BERT: learned halting values; samples leave when no later layer can change the predicted class.

    The readiness score is the margin of the halting rule (`dact_margin`), from -1 to 1 with the tight bound; a sample
    leaves at or above the threshold.

    Args:
        config: the config.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig
        >>> from adaexit_hf import DactBertConfig, DactBertForSequenceClassification
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> model = DactBertForSequenceClassification(DactBertConfig(encoder, num_labels=2)).eval()
        >>> [stage.name for stage in model.stages]
        ['backbone', 'adaptive']
        >>> model.exits[0].classifier.bias.data[0] = 3.0  # exit 1 is fairly certain of class 0
        >>> model(torch.tensor([[1, 5, 2]])).exit_layer.tolist()  # after layer 2, layer 3 cannot change the class
        [2]
    """

    config_class = DactBertConfig
    objectives = ("adaptive", "final", "exits", "distillation")
    unlabelled_objectives = ("distillation",)
    own_ready = torch.ge
    paper: ClassVar[Paper] = Paper(
        title="DACT-BERT: Differentiable Adaptive Computation Time for an Efficient BERT Inference",
        authors="Cristobal Eyzaguirre, Felipe del Rio, Vladimir Araujo, Alvaro Soto",
        venue="NLP Power! Workshop, ACL 2022",
        url="https://aclanthology.org/2022.nlppower-1.10",
        bibtex="""@inproceedings{eyzaguirre-etal-2022-dact,
  title = {{DACT}-{BERT}: Differentiable Adaptive Computation Time for an Efficient {BERT} Inference},
  author = {Eyzaguirre, Cristobal and del Rio, Felipe and Araujo, Vladimir and Soto, Alvaro},
  booktitle = {Proceedings of NLP Power! The First Workshop on Efficient Benchmarking in NLP},
  year = {2022}
}""",
    )

    def __init__(self, config: DactBertConfig) -> None:
        super().__init__(config)
        self.exits = nn.ModuleList(exit_head(config) for _ in config.exit_layers)
        units = 1 if config.tied_halting else len(config.exit_layers)
        self.halting = nn.ModuleList(
            EntropyHalting() if config.halting_input == "entropy" else HaltingUnit(cast(Head, self.exits[0]).size)
            for _ in range(units)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HaltingUnit):
            init.constant_(module.bias, self.config.halting_bias)
        elif isinstance(module, EntropyHalting):
            middle = math.log(self.config.num_labels) / 2
            weight = START / middle
            init.constant_(module.log_weight, math.log(weight))
            init.constant_(module.threshold, middle - self.config.halting_bias / weight)

    @property
    def stages(self) -> tuple[Stage, ...]:
        # The stages of DeeBERT, in which the halting units are not trained.
        backbone, *exits = (stage._replace(frozen=(*stage.frozen, "halting")) for stage in two_stages(len(self.exits)))
        if self.config.fine_tuning == "joint":
            return (backbone, Stage("adaptive", ("adaptive",)))
        if self.config.fine_tuning == "three_stage_distilled":
            exits = [stage._replace(objectives=("distillation",)) for stage in exits]
        return (backbone, *exits, Stage("halting", ("adaptive",), frozen=("encoder", "exits")))

    def entropy_thresholds(self) -> list[float]:
        """Return the learned entropy threshold S_n of every exit, where h_n = 1/2, in nats.

        With S_n below 0 the exit never stops, above ln(num_labels) it always does. That of the last exit has no
        effect.

        Raises:
            ValueError: the halting units do not read the entropy.
        """
        if self.config.halting_input != "entropy":
            raise ValueError(
                f"halting_input: got '{self.config.halting_input}', which has no entropy thresholds; pass "
                "halting_input='entropy' to the config"
            )
        units = (cast(EntropyHalting, self._halting_unit(index)) for index in range(len(self.exits)))
        return [unit.threshold.item() for unit in units]

    def _halting_unit(self, index: int) -> nn.Module:
        return self.halting[0 if self.config.tied_halting else index]

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        head = cast(Head, self.exits[index])
        features = head.features(pooled, hidden, context.padding)
        layer_logits = head.classifier(features).float()
        # An infinite logit would become a finite probability; as NaN it keeps the row from leaving.
        output = layer_logits.masked_fill(layer_logits.isinf(), torch.nan).softmax(dim=-1)
        reads_entropy = self.config.halting_input == "entropy"
        halting = self._halting_unit(index)(
            entropy(layer_logits) if reads_entropy else pooled if self.config.head == "dense" else features
        )
        answer, remaining = state if state else (torch.zeros_like(output), torch.ones_like(halting))
        answer, remaining = dact_combine(answer, remaining, output, halting)
        score = None
        if self.config.exit_criterion == "dact":
            steps_left = self.config.steps - 1 - index
            score = dact_margin(answer.detach(), remaining.detach(), steps_left, self.config.halting_bound)
        logits = answer.clamp_min(torch.finfo(answer.dtype).tiny).log()
        return Exit(logits, score, (layer_logits, halting)), (answer, remaining)

    def tempered(self, logits: Tensor, temperature: float) -> Tensor:
        return super().tempered(logits, temperature).log_softmax(dim=-1)  # log-probabilities, as without a temperature

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Compute the loss of an objective.

        Args:
            exits: as in the base class.
            labels: as in the base class.
            objective: "adaptive", Eq. 1; "final", the cross-entropy of y_N, as in ordinary fine-tuning; or "exits",
                the sum of the cross-entropies of the other y_n.
        """
        if objective in ("final", "exits"):
            used = exits[-1:] if objective == "final" else exits[:-1]
            return total_loss([self.task_loss(exit.extras[0], labels) for exit in used], objective)
        ponder = torch.stack([exit.extras[1] for exit in exits]).sum(dim=0)  # (batch,)
        # The logits are log-probabilities, so that the cross-entropy is the negative log-likelihood.
        return self.task_loss(exits[-1].logits, labels) + self.config.ponder_cost * ponder.mean()

    def unlabelled_loss(self, exits: list[Exit], objective: str) -> Tensor:
        """Compute the loss of the objective "distillation": sum_{n<N} KL(y_N || y_n).

        The direction of the divergence is that of the code of FastBERT's authors; y_N gets no gradient.

        Args:
            exits: as in the base class.
            objective: "distillation".
        """
        *students, teacher = (exit.extras[0] for exit in exits)
        return total_loss([kl_divergence(teacher.detach(), student) for student in students], objective)
