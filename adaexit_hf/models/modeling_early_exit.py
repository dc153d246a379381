"""The model that all methods are: the hooks that a method defines, and what all methods share.

Training runs every layer and trains the exits. Inference lets each row leave the batch when its readiness passes the
threshold; readiness never depends on the threshold, so one full-depth pass tells what every threshold would do.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, logging
from transformers.utils.output_capturing import capture_outputs

from .batching import checked_rows
from .batching import full_depth
from .batching import model_inputs
from .batching import row_labels
from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import Threshold
from .configuration_early_exit import check_number
from .early_exit_loop import Answers
from .early_exit_loop import InFlight
from .early_exit_loop import LayerLoop
from .early_exit_loop import run_early_exit
from .early_exit_loop import exit_from_states
from .early_exit_loop import sentence_vector
from .early_exit_loop import trimmed
from .encoder_layers import Context
from .encoder_layers import Recompute
from .encoder_layers import embed_inputs
from .encoder_layers import family_of
from .encoder_layers import run_first
from .encoder_layers import run_layer
from .exit_heads import CRITERIA
from .exit_heads import Exit
from .exit_heads import ExitHead
from .exit_heads import State
from .exit_heads import best_temperature
from .exit_heads import first_ready
from .from_encoder import load_encoder

logger = logging.get_logger(__name__)


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


class EarlyExitPreTrainedModel(PreTrainedModel):
    """What all models of a method share: the encoder, and how checkpoints carry their code."""

    config_class: ClassVar[type[EarlyExitConfig]] = EarlyExitConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else Trainer skips the division by the number of accumulation steps
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: EarlyExitConfig) -> None:
        config.check()  # again: a config that exists already may have been changed
        super().__init__(config)
        family = family_of(config.encoder_config)
        # An unused pooler would be an unused parameter under DDP; families without one do not know the argument.
        options = {} if family.pooler is None else {"add_pooling_layer": False}
        self.encoder = AutoModel.from_config(config.encoder_config, **options)

    def post_init(self) -> None:
        """As in Transformers, but `device_map="auto"` keeps the encoder whole."""
        super().post_init()
        # Spread over several devices, exits would answer on different ones, and rows leave from there.
        self._no_split_modules = {type(self.encoder).__name__}

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in Transformers; the checkpoint also carries its code and can be loaded without this package."""
        if self._auto_class is not None:
            module = type(self).__module__.split(".")[-1]
            name = type(self).__name__.replace("ForSequenceClassification", "Model")
            self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | {"AutoModel": f"{module}.{name}"}
        super().save_pretrained(save_directory, *args, **kwargs)


class EarlyExitModel(EarlyExitPreTrainedModel):
    """The encoder alone at full depth; heads in the checkpoint are left out."""

    _auto_class = "AutoModel"  # checkpoints carry their code
    _keys_to_ignore_on_load_unexpected = [r"^(?!encoder\.)"]

    def __init__(self, config: EarlyExitConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        """As the encoder's own forward."""
        return self.encoder(*args, **kwargs)


class EarlyExitForSequenceClassification(EarlyExitPreTrainedModel):
    """Base of every method: the hooks that a method defines, then what all methods share.

    The hooks stand in the order in which they are used. A method must define `paper`, `objectives`, `stages`,
    `exit_step` and `exit_loss`, and `own_ready` if its config has an `own_criterion`; in its `__init__` it builds its
    exits and calls `post_init`. All other hooks have a default.
    """

    _auto_class = "AutoModelForSequenceClassification"  # checkpoints carry their code

    def __init__(self, config: EarlyExitConfig) -> None:
        super().__init__(config)
        self.recompute = Recompute.if_needed(self.encoder)

    # ---- Hooks ----

    # 1. What the method is

    paper: ClassVar[Paper]
    objectives: ClassVar[tuple[str, ...]]  # losses by name; the first is the default of training without a stage
    unlabelled_objectives: ClassVar[tuple[str, ...]] = ()  # those that need no labels
    reads_all_tokens: ClassVar[bool] = False  # whether exits read `hidden`, and not only the sentence vector
    spares_tokens: ClassVar[bool] = (
        False  # whether tokens skip layers, so that the cost of a text depends on its words
    )
    own_ready: ClassVar[Any]  # for `config.own_criterion`: torch.lt, le, gt or ge of score and threshold

    # 2. Before training

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The training runs that the paper prescribes, in order."""
        raise NotImplementedError

    @property
    def classifiers(self) -> list[nn.Module]:
        """The output layer of every exit, in order. Default: those of `ExitHead`s in `self.exits`."""
        return [cast(ExitHead, exit).classifier for exit in self.exits]

    def adopt_classifier(self) -> None:
        """Called when the last exit got a fine-tuned classifier's head, so that it may read what that head read."""

    def prepare(self, dataset: Iterable[Mapping[str, Any]]) -> None:
        """Set what the training data tell before the first step; call it once, with the tokenized training set.

        For regression the exits start from the mean label (`start_from_mean`); some methods estimate more.

        Raises:
            ValueError: no rows, no labels where they are needed, or labels that training would refuse.
        """
        if self.config.num_labels == 1:
            rows = checked_rows(dataset)
            labels = row_labels(rows, 1)
            if labels is None:
                raise ValueError("dataset: has no labels; pass the training set, with a 'label' column")
            self.start_from_mean(self.checked_labels(labels, len(rows)).double().mean().item())

    # 3. Every batch, from the input to the readiness of an exit

    def embed(self, inputs: dict[str, Tensor | None]) -> tuple[Tensor, Context]:
        """Input of layer 1, (batch, tokens, hidden), and what the layers need besides.

        A method that needs more puts it into the context, `per_row` or `per_token`.

        Raises:
            ValueError: as `embed_inputs`; a mask that does not tell the pads, where exits need to know them.
        """
        mask = inputs["attention_mask"]
        if mask is not None and mask.dim() != 2 and self._reads_all_tokens:
            raise ValueError(
                f"attention_mask: got shape {tuple(mask.shape)}; these exits read all tokens but the pads, so pass 1 "
                "for tokens and 0 for pads, shape (batch, tokens)"
            )
        return embed_inputs(self.encoder, **inputs)

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

    def skip_step(self, hidden: Tensor, context: Context, state: State) -> State:
        """State after a layer without an exit, for methods that read every layer; `hidden` as the layer gave it."""
        return state

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        """What exit `index` (0-based) says, and the state that it hands on.

        Args:
            index: number of the exit, from 0.
            pooled: sentence vector after this layer, (batch, hidden).
            hidden: states after this layer, (batch, tokens, hidden); for methods with `reads_all_tokens` only.
            context: padding mask of the rows that are left.
            state: what the step before handed on, tensors whose first dimension is the batch; () at first.
        """
        raise NotImplementedError

    def tempered(self, logits: Tensor, temperature: float) -> Tensor:
        """Logits (batch, labels) of an exit divided by its temperature; a method may normalize them again."""
        return logits / temperature

    # 4. The loss

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Loss of one of `objectives` over all exits; an exit that it does not use gets no gradient at all (None).

        Args:
            exits: what every exit says, in order.
            labels: classes or numbers, (batch,).
            objective: one of `objectives`.
        """
        raise NotImplementedError

    def unlabelled_loss(self, exits: list[Exit], objective: str) -> Tensor:
        """The same for one of `unlabelled_objectives`."""
        raise NotImplementedError

    # ---- What all methods share ----

    @classmethod
    def from_encoder_pretrained(cls, name_or_path: str, **config: Any) -> "EarlyExitForSequenceClassification":
        """Start from a pretrained encoder or a fine-tuned classifier, on the Hub or in a folder.

        A pretrained pooler is copied into every exit; a fine-tuned classifier's head becomes the last exit, and its
        labels and `problem_type` are kept.

        Args:
            name_or_path: as in `from_pretrained`.
            **config: arguments of the method's config (`num_labels`, `exit_layers`, ...), and of the download
                (`revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, `dtype`, `attn_implementation`);
                `num_hidden_layers` keeps the first layers of the encoder.

        Raises:
            ValueError: the checkpoint is of an unsupported family or already an early-exit model.
        """
        return load_encoder(cls, name_or_path, config)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in Transformers; the checkpoint also carries its code and its pipeline, and needs no package to load."""
        if self._auto_class is not None:
            # Here, since Transformers' pipelines take a while to import.
            from .pipeline_early_exit import CUSTOM_PIPELINES

            others = getattr(self.config, "custom_pipelines", None) or {}
            self.config.custom_pipelines = others | copy.deepcopy(CUSTOM_PIPELINES)
        super().save_pretrained(save_directory, *args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        objective: str | None = None,
        exit_threshold: Threshold = None,
        early_exit: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        exit_states: Tensor | None = None,
    ) -> EarlyExitOutput | tuple[Any, ...]:
        """Classify a batch; in eval mode rows exit early when a threshold is set.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as for the encoder.
            labels: (batch,), class indices in [0, labels), or numbers for regression.
            objective: one of `objectives`; runs full depth and gives its loss. Default: in training the first of
                `objectives`, in eval the task loss of the answer.
            exit_threshold: overrides the config's for this call.
            early_exit: False runs full depth and fills `exit_logits` and `exit_scores`; True insists on a threshold.
                Default: in eval mode, exit early when a threshold is set.
            output_hidden_states, output_attentions: these run every layer, since a skipped layer has none to give;
                answers and exit layers stay those of the early exit. A list of indices keeps only those states, the
                others are None. Attention weights exist with `attn_implementation="eager"` only.
            exit_states: what `states_for_exits` gave for these texts; then only the exits run, all of them, and of the
                other inputs only the mask is read. There are no hidden states or attention weights.

        Raises:
            ValueError: bad labels, objective or threshold, an empty batch, a text longer than the position table;
                `exit_states` of another shape, or with what only the encoder can give.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        return self._classify(
            inputs,
            labels,
            objective,
            exit_threshold,
            early_exit,
            output_hidden_states,
            output_attentions,
            return_dict,
            exit_states,
        )

    def _classify(
        self,
        inputs: dict[str, Tensor | None],
        labels: Tensor | None,
        objective: str | None,
        exit_threshold: Threshold,
        early_exit: bool | None,
        output_hidden_states: bool | list[int] | None,
        output_attentions: bool | None,
        return_dict: bool | None,
        exit_states: Tensor | None = None,
    ) -> EarlyExitOutput | tuple[Any, ...]:
        """`forward`, for any inputs that `embed` understands."""
        return_dict = self.config.return_dict if return_dict is None else return_dict
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attend = bool(self.config.output_attentions if output_attentions is None else output_attentions)
        if exit_states is not None:
            self._check_exit_states(exit_states, output_hidden_states or output_attentions)
            keep_states = attend = False
        if attend and self.encoder.config._attn_implementation != "eager":
            logger.warning_once(  # as the stock models do
                f"output_attentions: attention implementation '{self.encoder.config._attn_implementation}' keeps no "
                "weights, so there are none in the output; load the model with attn_implementation='eager'"
            )
        if objective is not None and objective not in self.objectives:
            raise ValueError(f"objective: got {objective!r}; {type(self).__name__} knows {', '.join(self.objectives)}")
        thresholds = self.thresholds_in_use(exit_threshold, early_exit, not self.training and objective is None)
        # A branch on data cannot be compiled or exported: there every layer runs, then the answer is selected.
        compact = thresholds is not None and not (keep_states or attend or torch.compiler.is_compiling())
        # The loss of an objective is that of training, in eval mode, too.
        temperatures = None if self.training or objective is not None else self.config.exit_temperatures
        run: dict[str, Any]
        if exit_states is not None:
            run = self._from_exit_states(exit_states, inputs["attention_mask"], temperatures)
            answer = self._answer(run["exits"], run["scores"], thresholds)
        elif compact:
            answers = self._early_exit(inputs, thresholds, temperatures)
            run = {"exits": [], "scores": [answers.all_scores], "states": []}
            answer = {"logits": answers.logits, "exit_layer": answers.exit_layer}
        else:
            keep, flags = bool(keep_states), {"output_attentions": attend, "return_dict": True}
            run = _recorded(self.encoder, self._full_depth, inputs, temperatures, keep, **flags)
            answer = self._answer(run["exits"], run["scores"], thresholds)
        if not self.training and not torch.compiler.is_compiling():
            report_not_finite(run["scores"])
        loss = None
        if objective is not None and objective in self.unlabelled_objectives:
            loss = self.unlabelled_loss(run["exits"], objective)
        elif labels is not None:
            labels = self.checked_labels(labels, answer["logits"].shape[0])
            if self.training or objective is not None:
                loss = self.exit_loss(run["exits"], labels, objective or self.objectives[0])
            else:
                loss = self.task_loss(answer["logits"], labels)
        states = run["states"]
        if isinstance(keep_states, list | tuple):
            kept = {index % len(states) for index in keep_states}
            states = [state if index in kept else None for index, state in enumerate(states)]
        # All at once: a tuple output has the order in which the fields are set.
        output = EarlyExitOutput(
            loss=loss,
            **answer,
            hidden_states=tuple(states) if keep_states else None,
            attentions=tuple(run["returned_attentions"] or run["attentions"]) or None if attend else None,
        )
        return output if return_dict else output.to_tuple()

    def answers(
        self, inputs: Mapping[str, Tensor | None], exit_threshold: Threshold = None, early_exit: bool | None = None
    ) -> Answers:
        """What `forward` answers, and how ready the exit of each row was, at the cost of the early exit alone.

        Args:
            inputs: as for `forward`, by name.
            exit_threshold, early_exit: as for `forward`.

        Raises:
            ValueError: as `forward`.
        """
        thresholds = self.thresholds_in_use(exit_threshold, early_exit, not self.training)
        temperatures = None if self.training else self.config.exit_temperatures
        answers = self._early_exit(model_inputs(self, inputs), thresholds, temperatures)
        if not self.training:
            report_not_finite([answers.all_scores])
        return answers

    def _early_exit(
        self, inputs: dict[str, Tensor | None], thresholds: list[float] | None, temperatures: list[float] | None
    ) -> Answers:
        inputs, extents = trimmed(inputs)
        return run_early_exit(self, [InFlight.of(*self.embed(inputs), extents)], thresholds, temperatures)

    def _full_depth(
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
        for _, (step,) in LayerLoop(self, [flight], temperatures, whole):
            hidden = step.flight.hidden
            if output_attentions and step.attention is not None:
                run["returned_attentions"].append(step.attention)
            if keep_states:
                run["states"].append(hidden)
            if step.exit is not None:
                run["exits"].append(step.exit)
                run["scores"].append(step.score)
        if keep_states:
            run["states"][-1] = family_of(self.encoder.config).finish(self.encoder, hidden)
        return run

    def _answer(self, exits: list[Exit], scores: list[Tensor], thresholds: list[float] | None) -> dict[str, Tensor]:
        """The answer of a full-depth run: the last exit's with the trace, or the one that the thresholds select."""
        depths = torch.tensor(self.config.exit_layers, device=exits[-1].logits.device)
        exit_logits = torch.stack([exit.logits for exit in exits], dim=1)  # (batch, exits, labels)
        if thresholds is None:
            return {
                "logits": exits[-1].logits,
                "exit_layer": depths[-1].repeat(exit_logits.shape[0]),
                "exit_logits": exit_logits,
                "exit_scores": torch.stack(scores, dim=1),
            }
        pairs = zip(scores, thresholds, strict=True)
        chosen = first_ready(torch.stack([self.ready(score, threshold) for score, threshold in pairs], dim=1))
        rows = torch.arange(chosen.shape[0], device=chosen.device)
        return {"logits": exit_logits[rows, chosen], "exit_layer": depths[chosen]}

    # Exits on the states of a frozen encoder

    @property
    def takes_exit_states(self) -> bool:
        """Whether exits read the encoder's states and nothing else, so that a frozen encoder need run only once."""
        base = EarlyExitForSequenceClassification
        return all(getattr(type(self), name) is getattr(base, name) for name in ("embed", "layer_step", "skip_step"))

    def states_for_exits(self, inputs: dict[str, Tensor | None]) -> Tensor:
        """What the exits read, (batch, exits, hidden), to be passed to `forward` as `exit_states`.

        With `reads_all_tokens` the states of every token, (batch, tokens, exits, hidden).

        Args:
            inputs: as for `embed`.
        """
        family, states = family_of(self.encoder.config), []
        for number, (step,) in LayerLoop(self, [InFlight.of(*self.embed(inputs))], read_exits=False):
            if number in self.config.exit_layers:
                hidden = family.finish(self.encoder, step.flight.hidden)
                states.append(hidden if self.reads_all_tokens else sentence_vector(self, hidden, step.flight.context))
        return torch.stack(states, dim=-2)

    def _from_exit_states(
        self, exit_states: Tensor, padding: Tensor | None, temperatures: Sequence[float] | None
    ) -> dict[str, Any]:
        """As `_full_depth`, from states that are known."""
        rows = torch.arange(len(exit_states), device=exit_states.device)
        flight = InFlight(rows, exit_states, Context(padding, None, {}))
        run: dict[str, Any] = {"exits": [], "scores": [], "states": []}
        for index, hidden in enumerate(exit_states.unbind(dim=-2)):
            vector = sentence_vector(self, hidden, flight.context) if self.reads_all_tokens else hidden
            step = exit_from_states(self, index, vector, hidden, flight, temperatures)
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

    # Thresholds

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

    @property
    def _reads_all_tokens(self) -> bool:
        return self.reads_all_tokens or self.config.pooling == "mean"

    # Labels, and what the training data tell

    @torch.no_grad()
    def start_from_mean(self, mean: float) -> None:
        """Let the exits of a regression model start from the mean of the training labels.

        From 0, all exits together first pull the encoder towards a constant, and with several exits it may stay there.
        Sets the bias of heads where it is still 0; a fine-tuned head keeps its own.

        Raises:
            ValueError: the model classifies; NaN or infinity.
        """
        if self.config.num_labels != 1:
            labels = self.config.num_labels
            raise ValueError(f"start_from_mean is for regression, num_labels=1; got num_labels={labels}")
        check_number("mean", mean)
        for classifier in self.classifiers:
            bias = cast(Tensor, classifier.bias)
            if not bias.any():
                bias.fill_(mean)

    def calibrate_temperatures(self, dataset: Iterable[Mapping[str, Any]], batch_size: int = 32) -> list[float]:
        """Set `config.exit_temperatures`: for every exit the one that suits held-out data best. Runs it once.

        Args:
            dataset: tokenized rows with `input_ids` and `label` or `labels`, none of which was trained on.
            batch_size: rows per forward pass.

        Returns:
            one temperature per exit; above 1 where the exit was too sure of itself.

        Raises:
            ValueError: regression; no labels, or others than classes; fewer samples than classes.
        """
        classes = self.config.num_labels
        if classes == 1:
            raise ValueError("calibrate_temperatures: regression, num_labels=1, has no probabilities to calibrate")
        rows = checked_rows(dataset)
        labels = row_labels(rows, classes)
        if labels is None or len(rows) < classes:
            raise ValueError(
                f"dataset: got {len(rows)} samples, {'without' if labels is None else 'with'} labels, for {classes} "
                f"classes; pass held-out samples with labels, at least {classes}, better hundreds"
            )
        labels = self.checked_labels(labels, len(rows))
        temperatures, self.config.exit_temperatures = self.config.exit_temperatures, None
        try:
            logits, _ = full_depth(self, rows, batch_size, "Calibrating")
            temperatures = [best_temperature(each, labels) for each in logits.unbind(dim=1)]
        finally:
            self.config.exit_temperatures = temperatures
        return list(temperatures)

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, or mean squared error with one label: logits (batch, labels), labels (batch,) -> scalar."""
        if self.config.num_labels == 1:
            return functional.mse_loss(logits.squeeze(-1).float(), labels.float())
        return functional.cross_entropy(logits.float(), labels)

    def checked_labels(self, labels: Tensor, batch: int) -> Tensor:
        """Labels as the losses take them, (batch,), from (batch,) or (batch, 1), of any integer type, or numbers.

        Raises:
            ValueError: another shape, floats for classes, a class that does not exist, NaN or infinity.
        """
        labels = labels.reshape(-1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
        if labels.shape != (batch,):
            raise ValueError(f"labels: got shape {tuple(labels.shape)}; pass one label per text, shape ({batch},)")
        if torch.compiler.is_compiling():
            return labels
        if self.config.num_labels == 1:
            if not bool(labels.isfinite().all()):
                raise ValueError("labels: got NaN or infinity; drop the rows without a score before training")
            return labels
        if labels.is_floating_point():
            raise ValueError(
                f"labels: got {labels.dtype} for {self.config.num_labels} classes; pass class indices, labels.long(), "
                "or num_labels=1 for regression"
            )
        low, high = torch.stack(labels.long().aminmax()).tolist()
        if low < 0 or high >= self.config.num_labels:
            raise ValueError(
                f"labels: got {low if low < 0 else high}; allowed are 0 to {self.config.num_labels - 1}. Pass "
                "num_labels=<number of classes> to the config, or a split that has labels (GLUE's test sets have none)"
            )
        return labels.long()


@capture_outputs
def _recorded(
    encoder: PreTrainedModel, run: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """Call `run`; where the encoder can record its attention weights, they are added to what it returns."""
    return run(*args, **kwargs)


def report_not_finite(scores: list[Tensor]) -> None:
    """Warn of the NaN among scores."""
    count = int(torch.stack([score.isnan().sum() for score in scores]).sum())
    if count:
        warnings.warn(
            f"{count} exits gave NaN or infinite logits; their rows went on to the next exit. Check the input, or "
            "load the model in a wider dtype, e.g. dtype=torch.float32",
            RuntimeWarning,
            stacklevel=3,
        )
