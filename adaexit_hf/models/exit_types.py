"""The words of the skeleton: what a method says of itself, what an exit says, what a model returns.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers.utils import ModelOutput

State = tuple[Tensor, ...]


class Paper(NamedTuple):
    """Where a method comes from; feeds cards and docs."""

    title: str
    authors: str
    venue: str
    url: str
    bibtex: str


class Stage(NamedTuple):
    """One training run.

    Args:
        name: also the name of its folder and of its overrides.
        objectives: names that `exit_loss` understands, cycled per optimizer step.
        frozen: dotted names of modules or parameters that this stage leaves alone; each must match something.
    """

    name: str
    objectives: tuple[str, ...]
    frozen: tuple[str, ...] = ()


class Exit(NamedTuple):
    """What one exit says.

    Args:
        logits: the answer if we stop here, (batch, labels).
        score: readiness in the method's own unit, (batch,); never depends on the threshold. None where the config's
            `exit_criterion` decides from the logits.
        extras: batch-first tensors that the loss needs besides the logits: halting values, certainties.
    """

    logits: Tensor
    score: Tensor | None = None
    extras: tuple[Tensor, ...] = ()


@dataclass
class EarlyExitOutput(ModelOutput):
    """Output of every method.

    Args:
        loss: scalar, when labels are given.
        logits: the answer, (batch, labels).
        exit_layer: number of layers run for each row, 1..L, (batch,).
        exit_logits: what every exit says, (batch, exits, labels); None after a real early exit.
        exit_scores: readiness at every exit, (batch, exits); None after a real early exit.
        hidden_states: on request: input of layer 1 and output of every layer, L + 1 tensors (batch, tokens, hidden);
            None in place of those that were not asked for.
        attentions: on request: L tensors (batch, heads, tokens, tokens).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_layer: Tensor | None = None
    exit_logits: Tensor | None = None
    exit_scores: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def first_ready(ready: Tensor) -> Tensor:
    """Index of the first exit that is ready, and of the last one where none is: bool (..., exits) -> long (...).

    >>> first_ready(torch.tensor([[False, True, True], [False, False, False]])).tolist()
    [1, 2]
    """
    ready = ready.clone()
    ready[..., -1] = True
    return ready.long().argmax(dim=-1)


def two_stages(exits: int) -> tuple[Stage, ...]:
    """The backbone with the last exit, then the other exits on the frozen backbone; DeeBERT, section 3.1.

    >>> [(stage.name, stage.frozen) for stage in two_stages(3)]
    [('backbone', ('exits.0', 'exits.1')), ('exits', ('encoder', 'exits.2'))]
    """
    last = exits - 1
    backbone = Stage("backbone", ("final",), frozen=tuple(f"exits.{index}" for index in range(last)))
    return (backbone, Stage("exits", ("exits",), frozen=("encoder", f"exits.{last}"))) if last else (backbone,)


def total_loss(losses: list[Tensor], objective: str) -> Tensor:
    """Sum of scalar losses.

    Raises:
        ValueError: there is none, since a model with a single exit has nothing for this objective to train.
    """
    if not losses:
        raise ValueError(f"objective: got {objective!r}, which trains none of a single exit; pass more exit_layers")
    return torch.stack(losses).sum()


def depth_weighted(losses: list[Tensor]) -> Tensor:
    """Mean of scalar losses in which the i-th of n weighs i: sum_i i L_i / sum_i i. PABEE, section 3.3.

    >>> depth_weighted([torch.tensor(3.0), torch.tensor(1.5)]).item()
    2.0
    """
    weights = torch.arange(1, len(losses) + 1, device=losses[0].device)
    return (torch.stack(losses) * weights).sum() / weights.sum()


def kl_divergence(target: Tensor, given: Tensor) -> Tensor:
    """Mean over the batch of KL(softmax(target) || softmax(given)), in nats: logits (batch, labels) twice -> scalar.

    >>> certain, undecided = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> round(kl_divergence(certain, undecided).item(), 6), round(kl_divergence(undecided, certain).item(), 6)
    (0.502282, 0.85544)
    """
    target, given = (logits.float().log_softmax(dim=-1) for logits in (target, given))
    return functional.kl_div(given, target, reduction="batchmean", log_target=True)
