"""The recurrence that all methods share: run a layer, update a small state, give an answer and a readiness score.

The score never depends on the threshold, so one full-depth pass tells what every threshold would have done.

This file travels inside checkpoints: see CONTRIBUTING.md, "The shipped folder".
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import capture_outputs

from .classifier_base import ClassifierBase
from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .context import Context
from .context import mean_pool
from .encoder_layers import Recompute
from .encoder_layers import family_of
from .encoder_layers import run_layer
from .encoder_layers import start
from .exit_heads import CRITERIA
from .exit_heads import patience
from .exit_types import Exit
from .exit_types import Paper
from .exit_types import Stage
from .exit_types import State
from .in_flight import InFlight
from .token_layers import run_first
from .walk import Step


class Recurrence(ClassifierBase):
    """A method adds its heads, `exit_step`, `exit_loss`, `stages` and `paper`."""

    paper: ClassVar[Paper]
    objectives: ClassVar[tuple[str, ...]]  # the first one is the default of training without a stage plan
    unlabelled_objectives: ClassVar[tuple[str, ...]] = ()  # those that need no labels
    reads_all_tokens: ClassVar[bool] = False  # do exits read `hidden`, and not only the sentence vector?
    own_ready: ClassVar[Any]  # for `config.own_criterion`: torch.lt, le, gt or ge

    def __init__(self, config: EarlyExitConfig) -> None:
        super().__init__(config)
        self.recompute = Recompute.if_needed(self.encoder)

    # What a method defines; `classifiers`, too, where its exits are no `ExitHead`s

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The training runs that the paper prescribes, in order."""
        raise NotImplementedError

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        """Answer of exit `index` (0-based), and its score if the method has one of its own.

        Args:
            pooled: sentence vector after this layer, (batch, hidden).
            hidden: states after this layer, (batch, tokens, hidden); for methods with `reads_all_tokens` only.
            context: padding mask of the rows that are left.
            state: what the step before handed on, batch-first tensors; () at first.
        """
        raise NotImplementedError

    def skip_step(self, hidden: Tensor, context: Context, state: State) -> State:
        """State after a layer without an exit, for methods that read every layer; `hidden` as the layer gave it."""
        return state

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Loss of one objective over all exits; an exit that it does not use gets no gradient at all."""
        raise NotImplementedError

    def unlabelled_loss(self, exits: list[Exit], objective: str) -> Tensor:
        """The same for one of `unlabelled_objectives`, which need no labels."""
        raise NotImplementedError

    def embed(self, inputs: dict[str, Tensor | None]) -> tuple[Tensor, Context]:
        """Input of layer 1, (batch, tokens, hidden), and what the layers need besides.

        A method that needs more puts it into the context, `per_row` or `per_token`.

        Raises:
            ValueError: as `start`; a mask that does not tell the pads, where exits need to know them.
        """
        mask = inputs["attention_mask"]
        if mask is not None and mask.dim() != 2 and self._reads_all_tokens:
            raise ValueError(
                f"attention_mask: got shape {tuple(mask.shape)}; these exits read all tokens but the pads, so pass 1 "
                "for tokens and 0 for pads, shape (batch, tokens)"
            )
        return start(self.encoder, **inputs)

    def layer_step(
        self, index: int, layer: nn.Module, hidden: Tensor, context: Context, whole: bool
    ) -> tuple[Tensor, Tensor | None, Context]:
        """Run layer `index` (0-based); a method may spare tokens, or note something in the context.

        Args:
            whole: in training, or when states or attention weights were asked for: no token may be spared.

        Returns:
            the new states, (batch, tokens, hidden), after the last layer only of the tokens that its exit reads;
            attention weights where the family's layers return them; context.
        """
        if not whole and index + 1 == self.config.exit_layers[-1] and not self._reads_all_tokens:
            return *run_first(self.encoder, index, layer, hidden, context), context
        hidden, attention = run_layer(self.encoder, index, layer, hidden, context, self.recompute)
        return hidden, attention, context

    def tempered(self, logits: Tensor, temperature: float) -> Tensor:
        """Logits (batch, labels) of a calibrated exit; a method may keep what its logits are besides."""
        return logits / temperature

    def adopt_classifier(self) -> None:
        """The last exit has a fine-tuned classifier's head now; a method may let it read what that head read."""

    # What all methods share

    @property
    def ready(self) -> Callable[[Tensor, float], Tensor]:
        """Comparison of a score (batch,) with the threshold; a NaN score compares as not ready."""
        if self.config.exit_criterion == self.config.own_criterion:
            return self.own_ready
        return CRITERIA[self.config.exit_criterion].ready

    def thresholds_in_use(
        self, exit_threshold: Threshold, early_exit: bool | None, possible: bool = True
    ) -> list[float] | None:
        """One threshold per exit, or None for full depth; arguments as for `forward`.

        Args:
            possible: can rows exit early, as they do in eval mode without an objective?

        Raises:
            ValueError: a bad threshold; `early_exit=True` where there is none, or where rows cannot exit.
        """
        own = exit_threshold is None and early_exit is not False
        thresholds = self.config.own_thresholds() if own else self.config.thresholds(exit_threshold)
        if early_exit and (thresholds is None or not possible):
            raise ValueError(
                "early_exit: got True, which needs a threshold, eval mode and no objective; call model.eval() and "
                "model(..., exit_threshold=<number>)"
            )
        return thresholds if possible and early_exit is not False else None

    def advance(
        self, flight: InFlight, number: int, temperatures: Sequence[float] | None = None, whole: bool = False
    ) -> Step:
        """Run layer `number`, 1..L, and its exit if there is one.

        Args:
            temperatures: one per exit, or None.
            whole: as for `layer_step`.
        """
        layer = family_of(self.encoder.config).layers(self.encoder)[number - 1]
        hidden, attention, context = self.layer_step(number - 1, layer, flight.hidden, flight.context, whole)
        step = self.read(flight._replace(hidden=hidden, context=context), number, temperatures)
        return step._replace(attention=attention)

    def read(self, flight: InFlight, number: int, temperatures: Sequence[float] | None = None) -> Step:
        """What follows layer `number`, 1..L, which has run: its exit if there is one; arguments as for `advance`."""
        if number not in self.config.exit_layers:
            return Step(flight._replace(state=self.skip_step(flight.hidden, flight.context, flight.state)), None)
        index = self.config.exit_layers.index(number)
        finished = family_of(self.encoder.config).finish(self.encoder, flight.hidden)
        return self._run_exit(index, self._pool(finished, flight.context), finished, flight, temperatures)

    def _run_exit(
        self, index: int, pooled: Tensor, hidden: Tensor, flight: InFlight, temperatures: Sequence[float] | None
    ) -> Step:
        """What exit `index` says of these states; of the rows in flight only context, state and memory are read."""
        exit, state = self.exit_step(index, pooled, hidden, flight.context, flight.state)
        if temperatures is not None:
            exit = exit._replace(logits=self.tempered(exit.logits, temperatures[index]))
        score, memory = self._score(exit, flight.memory)
        # NaN or infinite logits are no answer. There x - x is NaN, else 0; a NaN score is not ready: the row goes on.
        logits = exit.logits.detach()
        score = score + (logits - logits).sum(dim=-1)
        return Step(flight._replace(state=state, memory=memory), None, exit, score)

    def _unroll(
        self,
        inputs: dict[str, Tensor | None],
        temperatures: list[float] | None,
        keep_states: bool,
        output_attentions: bool = False,
    ) -> dict[str, Any]:
        """Run all layers, and keep what every exit says."""
        flight = InFlight.of(*self.embed(inputs))
        run: dict[str, Any] = {"exits": [], "scores": [], "states": [flight.hidden], "returned_attentions": []}
        whole = bool(self.training or keep_states or output_attentions or torch.compiler.is_compiling())
        for number in range(1, self.config.exit_layers[-1] + 1):
            flight, attention, exit, score = self.advance(flight, number, temperatures, whole)
            if output_attentions and attention is not None:
                run["returned_attentions"].append(attention)
            if keep_states:
                run["states"].append(flight.hidden)
            if exit is not None:
                run["exits"].append(exit)
                run["scores"].append(score)
        if keep_states:
            run["states"][-1] = family_of(self.encoder.config).finish(self.encoder, flight.hidden)
        return run

    @property
    def takes_exit_states(self) -> bool:
        """Do exits read the encoder's states and nothing else, so that a frozen encoder need run only once?"""
        hooks = ("embed", "layer_step", "skip_step")
        return all(getattr(type(self), name) is getattr(Recurrence, name) for name in hooks)

    def states_for_exits(self, inputs: dict[str, Tensor | None]) -> Tensor:
        """What the exits read, (batch, exits, hidden), to be passed to `forward` as `exit_states`.

        With `reads_all_tokens` the states of every token, (batch, tokens, exits, hidden).

        Args:
            inputs: as for `embed`.
        """
        hidden, context = self.embed(inputs)
        family, states = family_of(self.encoder.config), []
        for index, layer in enumerate(family.layers(self.encoder)[: self.config.exit_layers[-1]]):
            hidden, _, context = self.layer_step(index, layer, hidden, context, whole=False)
            if index + 1 in self.config.exit_layers:
                finished = family.finish(self.encoder, hidden)
                states.append(finished if self.reads_all_tokens else self._pool(finished, context))
        return torch.stack(states, dim=-2)

    def _run_exits(
        self, exit_states: Tensor, padding: Tensor | None, temperatures: Sequence[float] | None
    ) -> dict[str, Any]:
        """As `_unroll`, from states that are known."""
        rows = torch.arange(len(exit_states), device=exit_states.device)
        flight = InFlight(rows, exit_states, Context(padding, None, {}))
        run: dict[str, Any] = {"exits": [], "scores": [], "states": []}
        for index, hidden in enumerate(exit_states.unbind(dim=-2)):
            pooled = self._pool(hidden, flight.context) if self.reads_all_tokens else hidden
            step = self._run_exit(index, pooled, hidden, flight, temperatures)
            flight = step.flight
            run["exits"].append(step.exit)
            run["scores"].append(step.score)
        return run

    def _check_exit_states(self, exit_states: Tensor, wants_more: Any) -> None:
        if wants_more:
            raise ValueError(
                "output_hidden_states, output_attentions: cannot be had with exit_states, where the encoder does not "
                "run; leave them out, or exit_states"
            )
        names = ("batch", "tokens", "exits", "hidden") if self.reads_all_tokens else ("batch", "exits", "hidden")
        ends = (len(self.config.exit_layers), self.config.encoder_config.hidden_size)
        if exit_states.dim() != len(names) or exit_states.shape[-2:] != ends or not len(exit_states):
            raise ValueError(
                f"exit_states: got shape {tuple(exit_states.shape)}; pass ({', '.join(names)}) with {ends[0]} exits "
                f"of {ends[1]} numbers, as model.states_for_exits(inputs) gives them"
            )

    @property
    def _reads_all_tokens(self) -> bool:
        return self.reads_all_tokens or self.config.pooling == "mean"

    def _score(self, exit: Exit, memory: State) -> tuple[Tensor, State]:
        """Readiness by the config's criterion, (batch,), and what the next exit needs."""
        name = self.config.exit_criterion
        if exit.score is not None and name == self.config.own_criterion:
            return exit.score, ()
        if name not in CRITERIA:
            raise ValueError(
                f"exit_criterion: got '{name}', which this model was not built for; pass it to the config of a new one"
            )
        logits, score = exit.logits.detach(), CRITERIA[name].score
        return (score(logits), ()) if score else patience(logits, memory, self.config.tolerance)

    def _pool(self, hidden: Tensor, context: Context) -> Tensor:
        return hidden[:, 0] if self.config.pooling == "first" else mean_pool(hidden, context.padding)


@capture_outputs
def recorded(
    encoder: PreTrainedModel, run: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """Call `run`; where the encoder can record its attention weights, they are added to what it returns."""
    return run(*args, **kwargs)
