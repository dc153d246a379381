"""Run a model as a differentiable function of its word embeddings, with access to its states after every layer.

Explanations differentiate the logit and the readiness score of any exit. Token ids stay those of the text on the whole
path from a baseline to the text, so that positions do not change. If a method gives each token a depth, the depths
stay those of the text as well, and attributions hold for these depths: a halting unit would choose other depths on the
path by an argmax, whose jumps have no gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.early_exit_loop import InFlight, LayerLoop, right_padded
from ..models.exit_criteria import CRITERIA
from ..models.exit_heads import Exit
from ..models.modeling_early_exit import EarlyExitForSequenceClassification
from ..models.padded_batches import check_model, model_inputs

COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "token_depths")
Columns = tuple[Tensor | None, ...]  # one tensor (batch, tokens) or None for each of COLUMNS


# Scores from probabilities (batch, labels) whose classes are in the order that they have for the text.
LEADING: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence": lambda probabilities: probabilities[:, 0],
    "margin": lambda probabilities: probabilities[:, 0] - probabilities[:, 1],
}


class NoGradientError(ValueError):
    """The readiness score is a count and has no gradient, so it cannot be explained."""


def answer(config: Any, exit: Exit, classes: Tensor) -> Tensor:
    """Return the logit of the first of these classes, (batch,); for regression the number itself."""
    return exit.logits.float().gather(1, classes[:, :1])[:, 0]


def probability(config: Any, exit: Exit, classes: Tensor) -> Tensor:
    """Return the probability of the first of these classes, (batch,); for regression the number itself."""
    if config.num_labels == 1:
        return answer(config, exit, classes)
    return exit.logits.float().softmax(dim=-1).gather(1, classes[:, :1])[:, 0]


def readiness(config: Any, exit: Exit, classes: Tensor) -> Tensor:
    """Return a differentiable readiness score of the exit, (batch,).

    For a method's own criterion it is the value learned for it, the extra of the exit with one value per row: a
    certainty, or a halting value, where 0 stops. Confidence and margin are computed for the given classes, which are
    in the order that they have for the text. The score itself has a kink wherever another class takes the lead on the
    path, and it would be high for a baseline that is confident of another class.

    Raises:
        NoGradientError: If the score is a count.
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
    smooth = [repr(key) for key, criterion in CRITERIA.items() if criterion.score is not None]
    alternative = "" if config.num_labels == 1 else f", or load the model with exit_criterion={' or '.join(smooth)}"
    raise NoGradientError(
        f"exit_criterion: '{name}' counts, so its score has no gradient; explain the predictions only, with "
        f"scores=False (of='answer' in layer_conductance){alternative}"
    )


def check_one_label(config: Any) -> None:
    """Check that a model predicts one label per text, since an explanation is of one class.

    Raises:
        ValueError: If it predicts several labels at once.
    """
    if config.multi_label:
        raise ValueError(
            "model: predicts several labels at once (problem_type='multi_label_classification'), and explanations are "
            "of one class per text; pass a model for one label per text"
        )


Value = Callable[[Any, Exit, Tensor], Tensor]  # config, exit, classes (batch, 1 or labels) -> (batch,)


class Unrolled:
    """Run a model layer by layer from given word embeddings.

    Args:
        model: Model in eval mode.

    Raises:
        TypeError: If the model has no exits.
        ValueError: If it predicts several labels at once.

    Attributes:
        cuts: One identity module per layer. Everything that later layers and exits use passes through it after that
            layer, as one tensor (batch, tokens * hidden + state): the hidden states of all tokens, then the method's
            own state.
    """

    def __init__(self, model: EarlyExitForSequenceClassification) -> None:
        check_model(model)
        check_one_label(model.config)
        self.model = model
        self.cuts = [nn.Identity() for _ in range(model.config.exit_layers[-1])]

    def columns(self, batch: dict[str, Tensor]) -> Columns:
        """Return the inputs that `exits` needs of a batch, on the model's device, with padding on the right."""
        inputs, _ = right_padded(model_inputs(self.model, batch))
        return tuple(inputs.get(name) for name in COLUMNS)

    def at_own_depths(self, embeddings: Tensor, columns: Columns) -> Columns:
        """Return the columns with the model's own depths of these tokens, if it has depths and none are given."""
        depths = self._run(embeddings, columns, 1)[1].context.per_token.get("depths")
        return (*columns[:-1], depths)

    def exits(self, embeddings: Tensor, columns: Columns, last: int) -> list[Exit]:
        """Return the outputs of the exits up to layer `last` for word embeddings (batch, tokens, hidden)."""
        return self._run(embeddings, columns, last)[0]

    def _run(self, embeddings: Tensor, columns: Columns, last: int) -> tuple[list[Exit], InFlight]:
        model, unused = self.model, dict.fromkeys(("position_ids", "inputs_embeds"))
        inputs = unused | {
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
        """Pass hidden states and the method's state through the layer's module of `cuts`."""
        hidden, *state = through(self.cuts[number - 1], [flight.hidden, *flight.state])
        return flight._replace(hidden=hidden, state=tuple(state))

    def of(self, value: Value) -> Callable[..., Tensor]:
        """Return a forward function for Captum that computes a value at one exit per row.

        The function takes embeddings (batch, tokens, hidden), the index of each row's exit (batch,), the classes for
        the value (batch, 1 or labels) and the columns, and returns the value (batch,).
        """

        def forward(embeddings: Tensor, at: Tensor, classes: Tensor, *columns: Tensor | None) -> Tensor:
            config = self.model.config
            exits = self.exits(embeddings, columns, config.exit_layers[int(at.max())])
            needed_exits = set(at.tolist())
            zero = embeddings.new_zeros(len(embeddings), dtype=torch.float32)
            values = [
                value(config, exit, classes) if index in needed_exits else zero for index, exit in enumerate(exits)
            ]
            return torch.stack(values, dim=1).gather(1, at[:, None])[:, 0]

        return forward


@contextmanager
def replaced_output(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Inside the context the module returns `output` for any input."""
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


def through(cut: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    """Pass tensors (batch, ...) through a module as one tensor (batch, size), and split the result again."""
    joined = cut(torch.cat([tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in tensors], dim=1))
    parts = joined.split([tensor[0].numel() for tensor in tensors], dim=1)
    return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]
