"""A model as a function of its word embeddings, with gradients and a place to look into after every layer.

What explanations differentiate: the answer's logit and the readiness of any exit. The words themselves stay what they
are, so that positions do not change along the path from a baseline to the text. Nor do the depths of tokens, where a
method has such: they are those of the text all along, and attributions hold for these depths. A halting unit would
choose others on the way, an argmax, whose jumps no gradient sees.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.batching import check_model, model_inputs
from ..models.early_exit_loop import InFlight, LayerLoop
from ..models.exit_heads import CRITERIA, Exit
from ..models.modeling_early_exit import EarlyExitForSequenceClassification

COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "token_depths")
Columns = tuple[Tensor | None, ...]  # one of each, (batch, tokens)


# Scores of the probabilities (batch, labels), the class that leads at the text first.
LEADING: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence": lambda probabilities: probabilities[:, 0],
    "margin": lambda probabilities: probabilities[:, 0] - probabilities[:, 1],
}


class NoGradientError(ValueError):
    """A score counts something, so that no gradient says what it depends on."""


def answer(config: Any, exit: Exit, classes: Tensor) -> Tensor:
    """The logit of the first of these classes, (batch,); with one label the number itself."""
    return exit.logits.float().gather(1, classes[:, :1])[:, 0]


def probability(config: Any, exit: Exit, classes: Tensor) -> Tensor:
    """The probability of the first of these classes, (batch,); with one label the number itself."""
    if config.num_labels == 1:
        return answer(config, exit, classes)
    return exit.logits.float().softmax(dim=-1).gather(1, classes[:, :1])[:, 0]


def readiness(config: Any, exit: Exit, classes: Tensor) -> Tensor:
    """The exit's score with its gradient, (batch,); for a method's own score the number that it learned for it.

    A learned number is an extra of the exit with one value per row: a certainty, or a halting value, 0 of which stops.
    Confidence and margin are those of the given classes, whatever the order elsewhere on the path: the score itself
    has a corner wherever another class takes over, and would call a baseline ready that is sure of something else.

    Raises:
        NoGradientError: the score counts something.
    """
    name = config.exit_criterion
    if exit.score is None:
        if name in LEADING:
            return LEADING[name](exit.logits.float().softmax(dim=-1).gather(1, classes))
        score = CRITERIA[name].score
        if score is not None:
            return score(exit.logits)
    else:
        learned = [extra for extra in exit.extras if extra.dim() == 1 and extra.is_floating_point()]
        if learned:
            return learned[-1]
    smooth = [repr(known) for known, criterion in CRITERIA.items() if criterion.score is not None]
    other = "" if config.num_labels == 1 else f", or load the model with exit_criterion={' or '.join(smooth)}"
    raise NoGradientError(
        f"exit_criterion: '{name}' counts, so its score has no gradient to explain; explain the answer alone, with "
        f"scores=False (of='answer' in layer_conductance){other}"
    )


Value = Callable[[Any, Exit, Tensor], Tensor]  # config, exit, classes (batch, 1 or labels) -> (batch,)


class Unrolled:
    """A model, run layer by layer from given word embeddings.

    Args:
        model: in eval mode.

    Attributes:
        cuts: one module per layer, which everything that later layers and exits know of the text goes through after
            that layer, (batch, tokens * hidden + state): the states of all tokens, then the method's own state.
    """

    def __init__(self, model: EarlyExitForSequenceClassification) -> None:
        check_model(model)
        self.model = model
        self.cuts = [nn.Identity() for _ in range(model.config.exit_layers[-1])]

    def columns(self, batch: dict[str, Tensor]) -> Columns:
        """What `exits` needs of a padded batch, on the model's device."""
        inputs = model_inputs(self.model, batch)
        return tuple(inputs.get(name) for name in COLUMNS)

    def at_own_depths(self, embeddings: Tensor, columns: Columns) -> Columns:
        """The columns with the depths that the model gives to these tokens, where it has depths and none are given."""
        depths = self._run(embeddings, columns, 1)[1].context.per_token.get("depths")
        return (*columns[:-1], depths)

    def exits(self, embeddings: Tensor, columns: Columns, last: int) -> list[Exit]:
        """What the exits up to layer `last` say of word embeddings (batch, tokens, hidden)."""
        return self._run(embeddings, columns, last)[0]

    def _run(self, embeddings: Tensor, columns: Columns, last: int) -> tuple[list[Exit], InFlight]:
        model, names = self.model, dict.fromkeys(("position_ids", "inputs_embeds"))
        inputs = names | {
            name: value
            for name, value in zip(COLUMNS, columns, strict=True)
            if name != "token_depths" or value is not None
        }
        with replaced_output(model.get_input_embeddings(), embeddings):
            flight = InFlight.of(*model.embed(inputs))
        exits = []
        temperatures = model.config.exit_temperatures
        for _, (step,) in LayerLoop(model, [flight], temperatures, whole=True, last=last, after_layer=self._cut):
            flight = step.flight
            if step.exit is not None:
                exits.append(step.exit)
        return exits, flight

    def _cut(self, number: int, flight: InFlight) -> InFlight:
        """States and the method's state after they went through the layer's module of `cuts`."""
        hidden, *state = through(self.cuts[number - 1], [flight.hidden, *flight.state])
        return flight._replace(hidden=hidden, state=tuple(state))

    def of(self, value: Value) -> Callable[..., Tensor]:
        """As Captum wants it: (embeddings (batch, tokens, hidden), exits, classes, *columns) -> (batch,).

        `exits` are those whose value it gives, one index per row, (batch,); `classes` (batch, 1 or labels) are for the
        value.
        """

        def forward(embeddings: Tensor, at: Tensor, classes: Tensor, *columns: Tensor | None) -> Tensor:
            config = self.model.config
            exits = self.exits(embeddings, columns, config.exit_layers[int(at.max())])
            wanted = set(at.tolist())
            zero = embeddings.new_zeros(len(embeddings), dtype=torch.float32)
            values = [value(config, exit, classes) if index in wanted else zero for index, exit in enumerate(exits)]
            return torch.stack(values, dim=1).gather(1, at[:, None])[:, 0]

        return forward


@contextmanager
def replaced_output(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Whatever the module is given, it returns `output`."""
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


def through(cut: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    """Tensors (batch, ...) after they went through a module as one, (batch, all)."""
    whole = cut(torch.cat([tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in tensors], dim=1))
    parts = whole.split([tensor[0].numel() for tensor in tensors], dim=1)
    return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]
