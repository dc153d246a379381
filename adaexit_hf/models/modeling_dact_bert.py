"""DACT-BERT: Differentiable Adaptive Computation Time for an Efficient BERT Inference. Eyzaguirre, del Rio, Araujo,
Soto. NLP Power workshop at ACL 2022. https://aclanthology.org/2022.nlppower-1.10

Every layer n has an output y_n = softmax(...) and a halting value h_n = sigmoid(...) in [0, 1], both read from the
sentence vector; h near 0 means stop. From a_0 = 0 and p_0 = 1 (Algorithm 1):

    a_n = y_n p_(n-1) + a_(n-1) (1 - p_(n-1)),    p_n = p_(n-1) h_n.

Training in two steps: plain fine-tuning of the backbone, then all parameters together with NLL(a_N) + tau sum_n h_n
(Eq. 1). Inference stops once no future can change the class of a_n. With d = N - n steps left, that is exactly when
(1 - p_n)^d (1 + a* - a_ru) >= 1 (`halting_bound="tight"`); a* (1 - p_n)^d >= a_ru + p_n d (Eq. 2, "paper") is
sound too, but exits later.

Why the tight rule is exact: unrolled, a_N = W a_n + sum_k w_k y_k with w_k >= 0 and sum w_k = 1 - W, where W is the
product of (1 - p_k) over the steps left; p never grows, so W >= (1 - p_n)^d. Whatever the y_k, the top class stays
ahead by at least W (1 + a* - a_ru) - 1, and the future that always votes for the runner-up and never halts reaches
this bound.

`logits` are log a_n, so that exp(logits) = a_n; calibrated, they are log softmax(log a_n / T).

DeeBERT and FastBERT are special cases (DACT-BERT's submission to ICLR 2021, section 3.1), with a logistic regression
on the entropy of this layer's own output in place of the halting unit, h_n = sigmoid(w_n (H(y_n) - S_n)), and three
stages of training: the two that they have, then the h_n alone by Eq. 1. That learns an entropy threshold S_n for every
layer, or one for all if they are tied. As w_n grows, h_n becomes 1[H(y_n) > S_n], a_n is y_n up to the first layer
below its S_n, and there, at p_n = 0, both rules stop: DeeBERT with threshold S_n.

Deliberate differences from the submission: it has a weight and a bias, here -w_n S_n; here w_n = exp(v_n), so that a
low entropy always means stop; and where it ties the biases only, `tied_halting` ties w_n and S_n, since equal biases
beside different weights are different thresholds, S_n = -b / w_n.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import math
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers import initialization as init

from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .configuration_early_exit import check_choice
from .configuration_early_exit import check_number
from .configuration_early_exit import check_whole_number
from .encoder_layers import Context
from .exit_heads import Exit
from .exit_heads import ExitHead
from .exit_heads import SingleUnit
from .exit_heads import State
from .exit_heads import entropy
from .modeling_early_exit import EarlyExitForSequenceClassification
from .modeling_early_exit import EarlyExitModel
from .modeling_early_exit import Paper
from .modeling_early_exit import Stage
from .modeling_early_exit import kl_divergence
from .modeling_early_exit import total_loss
from .modeling_early_exit import two_stages

__all__ = ["DactBertConfig", "DactBertForSequenceClassification", "DactBertModel"]

# Entropy halting starts with h from sigmoid(-START) at entropy 0 to sigmoid(START) at ln num_labels.
START = 5.0


class DactBertConfig(EarlyExitConfig):
    """Config of DACT-BERT.

    Args:
        exit_threshold: least margin at which to stop. 0 is the sound rule: the class is that of full depth. Below 0 a
            sample stops earlier at the risk of another class; above 0 later. Range: [-1, 1], and for the paper's bound
            [-N, 1]. "default" is 0, and None with another `exit_criterion` than "dact".
        ponder_cost: tau >= 0 of Eq. 1, the price of going on; the trade-off is set here, at training time.
        halting_bias: initial bias b of every halting unit, so that h starts near sigmoid(b), with "entropy" in the
            middle of its range: large values start near full depth, 0 starts with almost no weight on the last
            layers. Default: 0, as in all of the authors' own configs of DACT.
        halting_bound: "tight" or "paper".
        halting_input: what halting units read: "state", the sentence vector, or "entropy", that of y_n in nats.
        tied_halting: one halting unit for all layers.
        fine_tuning: "joint", the two steps above; "three_stage": the encoder with y_N, the other y_n on the frozen
            encoder as in DeeBERT, the halting units alone; or "three_stage_distilled", whose second stage is
            FastBERT's, sum_{n<N} KL(y_N || y_n), and needs no labels.
        bound_exits: N of either bound, for a model whose last exits were cut off: so it stops where the whole model
            did, later than it could, and no less soundly. Default: the number of exits.

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
        ponder_cost: float = 5e-3,
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
        """N of the bounds."""
        return self.bound_exits or len(self.exit_layers)

    def kept_when_cut(self) -> dict[str, Any]:
        """As in the base: the bounds go on to count what was cut off."""
        return {"bound_exits": self.steps} if self.exit_criterion == self.own_criterion else {}


class DactBertModel(EarlyExitModel):
    """The encoder of a DACT-BERT checkpoint, without its output and halting modules."""

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
    """One step of DACT's accumulation: a_n = y_n p_(n-1) + a_(n-1) (1 - p_(n-1)), then p_n = p_(n-1) h_n.

    DACT-BERT, Algorithm 1, lines 8 and 10. Start with a_0 = 0 and p_0 = 1.

    Args:
        answer: a_(n-1), probabilities, shape (batch, labels).
        remaining: p_(n-1) in [0, 1], shape (batch,): how much later layers may still change.
        output: y_n, probabilities of this layer, shape (batch, labels).
        halting: h_n in [0, 1], shape (batch,); 0 stops, 1 goes on.

    Returns:
        a_n (batch, labels) and p_n (batch,).

    >>> answer, remaining = torch.tensor([[0.9, 0.1]]), torch.tensor([0.5])
    >>> answer, remaining = dact_combine(answer, remaining, torch.tensor([[0.2, 0.8]]), torch.tensor([0.1]))
    >>> [round(value, 4) for value in answer[0].tolist()], round(remaining.item(), 4)
    ([0.55, 0.45], 0.05)
    """
    weight = remaining[:, None]
    return output * weight + answer * (1 - weight), remaining * halting


def dact_margin(answer: Tensor, remaining: Tensor, steps_left: int, bound: str = "tight") -> Tensor:
    """How far the answer is from being overturned by any future; at 0 and above the class cannot change.

    `tight`: (1 - p)^d (1 + a* - a_ru) - 1, in [-1, 1]; necessary and sufficient. `paper`: a* (1 - p)^d - a_ru - p d
    (DACT-BERT, Eq. 2); sound, but exits later.

    Args:
        answer: a_n, probabilities, shape (batch, labels) with at least two labels.
        remaining: p_n in [0, 1], shape (batch,).
        steps_left: d = N - n, exits still to come.

    >>> answer, remaining = torch.tensor([[0.95, 0.05]]), torch.tensor([0.125])
    >>> round(dact_margin(answer, remaining, 4).item(), 4), round(dact_margin(answer, remaining, 4, "paper").item(), 4)
    (0.1137, 0.0069)
    """
    wide = torch.float32 if answer.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    answer, remaining = answer.to(wide), remaining.to(wide)
    top = answer.topk(2, dim=-1).values
    log_kept = torch.special.xlog1py(steps_left, -remaining)  # ln (1 - p)^d, and 0 for d = 0 even at p = 1
    if bound == "paper":
        return (top[:, 0] * log_kept.exp() - top[:, 1] - remaining * steps_left).float()
    # expm1 of a sum of logs keeps the sign right where the margin is tiny.
    return torch.expm1(log_kept + torch.log1p(top[:, 0] - top[:, 1])).float()


class DactBertForSequenceClassification(EarlyExitForSequenceClassification):
    """Fine-tuning, then joint training with a ponder cost; stops when the class cannot change. Scores are margins."""

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
        encoder = config.encoder_config
        self.exits = nn.ModuleList(ExitHead(encoder, config.num_labels) for _ in config.exit_layers)
        units = 1 if config.tied_halting else len(config.exit_layers)
        self.halting = nn.ModuleList(
            EntropyHalting() if config.halting_input == "entropy" else HaltingUnit(encoder.hidden_size)
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
        # Those of DeeBERT, without the halting units.
        backbone, *exits = (stage._replace(frozen=(*stage.frozen, "halting")) for stage in two_stages(len(self.exits)))
        if self.config.fine_tuning == "joint":
            return (backbone, Stage("adaptive", ("adaptive",)))
        if self.config.fine_tuning == "three_stage_distilled":
            exits = [stage._replace(objectives=("distillation",)) for stage in exits]
        return (backbone, *exits, Stage("halting", ("adaptive",), frozen=("encoder", "exits")))

    def entropy_thresholds(self) -> list[float]:
        """S_n of every exit in nats, the entropy where h_n = 1/2; that of the last exit never matters.

        Below 0 the exit never says stop, above ln num_labels it always does.

        Raises:
            ValueError: the halting units read something else.
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
        own = self.exits[index](pooled).float()
        # An infinite logit would be a finite probability; it is no answer, so it becomes NaN here.
        output = own.masked_fill(own.isinf(), torch.nan).softmax(dim=-1)
        halting = self._halting_unit(index)(entropy(own) if self.config.halting_input == "entropy" else pooled)
        answer, remaining = state if state else (torch.zeros_like(output), torch.ones_like(halting))
        answer, remaining = dact_combine(answer, remaining, output, halting)
        score = None
        if self.config.exit_criterion == "dact":
            steps_left = self.config.steps - 1 - index
            score = dact_margin(answer.detach(), remaining.detach(), steps_left, self.config.halting_bound)
        logits = answer.clamp_min(torch.finfo(answer.dtype).tiny).log()
        return Exit(logits, score, (own, halting)), (answer, remaining)

    def tempered(self, logits: Tensor, temperature: float) -> Tensor:
        return super().tempered(logits, temperature).log_softmax(dim=-1)  # log-probabilities, as without

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """`adaptive`: Eq. 1; `final`: cross-entropy of y_N, plain fine-tuning; `exits`: that of the other y_n."""
        if objective in ("final", "exits"):
            used = exits[-1:] if objective == "final" else exits[:-1]
            return total_loss([self.task_loss(exit.extras[0], labels) for exit in used], objective)
        ponder = torch.stack([exit.extras[1] for exit in exits]).sum(dim=0)  # (batch,)
        return functional.nll_loss(exits[-1].logits, labels) + self.config.ponder_cost * ponder.mean()

    def unlabelled_loss(self, exits: list[Exit], objective: str) -> Tensor:
        """`distillation`: sum of KL(y_N || y_n) over the exits but the last, as in the code of FastBERT's authors."""
        *students, teacher = (exit.extras[0] for exit in exits)
        return total_loss([kl_divergence(teacher.detach(), student) for student in students], objective)
