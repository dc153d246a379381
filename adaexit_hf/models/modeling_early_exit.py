"""The base model of all methods: the hooks that a method defines, then the code that all methods share.

In training every layer runs and the exits are trained. In inference each row leaves the batch at the first exit whose
readiness score passes the threshold. The score never depends on the threshold, so one run at full depth is enough to
know what the model would predict with any threshold.

To add a method, read the hooks of `EarlyExitForSequenceClassification`.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, logging
from transformers.utils.output_capturing import capture_outputs

from .padded_batches import items_of
from .padded_batches import read_rows
from .padded_batches import full_depth
from .padded_batches import model_inputs
from .padded_batches import row_labels
from .padded_batches import wrong_labels
from .configuration_early_exit import EarlyExitConfig
from .configuration_early_exit import LABELS
from .configuration_early_exit import Threshold
from .configuration_early_exit import check_number
from .configuration_early_exit import plain
from .early_exit_loop import Answers
from .early_exit_loop import InFlight
from .early_exit_loop import LayerLoop
from .early_exit_loop import run_early_exit
from .early_exit_loop import exit_from_states
from .early_exit_loop import exit_layer_numbers
from .early_exit_loop import right_padded
from .early_exit_loop import rotated_back
from .early_exit_loop import sentence_vector
from .early_exit_loop import trimmed
from .encoder_layers import Context
from .encoder_layers import Recompute
from .encoder_layers import embed_inputs
from .encoder_layers import family_of
from .encoder_layers import recording
from .encoder_layers import run_first
from .encoder_layers import run_layer
from .exit_criteria import CRITERIA
from .exit_heads import BranchLinear
from .exit_heads import Exit
from .exit_heads import ExitFeatures
from .exit_heads import ExitHead
from .exit_heads import SingleUnit
from .exit_heads import State
from .exit_heads import check_pairs
from .exit_heads import second_segment
from .exit_criteria import best_temperature
from .exit_criteria import first_ready
from .exit_criteria import two_classes

logger = logging.get_logger(__name__)


class Paper(NamedTuple):
    """The paper that a method comes from; used in model cards and documentation.

    Attributes:
        title: title of the paper.
        authors: full names, separated by commas.
        venue: conference or journal, with the year.
        url: address of the paper.
        bibtex: the whole BibTeX entry.
    """

    title: str
    authors: str
    venue: str
    url: str
    bibtex: str


class Stage(NamedTuple):
    """One training run of a method that is trained in one or more runs.

    Attributes:
        name: name of the stage; also of its output folder, and the key of its training arguments.
        objectives: names of losses that `exit_loss` or `unlabelled_loss` computes. With several, each optimizer step
            uses the next one, and after the last the first again.
        frozen: dotted names of the modules or parameters that this stage does not train; each must exist.
    """

    name: str
    objectives: tuple[str, ...]
    frozen: tuple[str, ...] = ()


@dataclasses.dataclass
class EarlyExitOutput(ModelOutput):
    """Output of the models of all methods.

    Attributes:
        loss: scalar; None without labels, unless the objective needs none.
        logits: the model's prediction, shape `(batch, labels)`: the logits of the exit where each row left. In
            training those of the last exit, and a backward pass through them raises an error, since a loss of them
            would not train the other exits.
        exit_layer: number of layers run for each row, from 1 to the number of layers, shape `(batch,)`.
        exit_logits: logits of every exit, shape `(batch, exits, labels)`; None when rows could exit early.
        exit_scores: readiness score of every exit, shape `(batch, exits)`; None when rows could exit early.
        hidden_states: on request, the input of layer 1 and the output of every layer: layers + 1 tensors of shape
            `(batch, tokens, hidden)`, with None in place of those that were not requested.
        attentions: on request, the attention weights of every layer, each `(batch, heads, tokens, tokens)`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_layer: Tensor | None = None
    exit_logits: Tensor | None = None
    exit_scores: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def two_stages(exits: int) -> tuple[Stage, ...]:
    """Return DeeBERT's stages: first the encoder with the last exit, then the other exits on the frozen encoder.

    DeeBERT, section 3.1. With a single exit, only the first stage remains.

    Args:
        exits: number of exits.

    Examples:
        >>> [(stage.name, stage.frozen) for stage in two_stages(3)]
        [('backbone', ('exits.0', 'exits.1')), ('exits', ('encoder', 'exits.2'))]
    """
    last = exits - 1
    backbone = Stage("backbone", ("final",), frozen=tuple(f"exits.{index}" for index in range(last)))
    return (backbone, Stage("exits", ("exits",), frozen=("encoder", f"exits.{last}"))) if last else (backbone,)


def total_loss(losses: list[Tensor], objective: str) -> Tensor:
    """Return the sum of scalar losses.

    Args:
        losses: the losses of the exits that the objective trains.
        objective: the objective's name, for the error message.

    Raises:
        ValueError: `losses` is empty, since the model has a single exit and the objective trains only other exits.
    """
    if not losses:
        raise ValueError(
            f"objective: got {objective!r}, which trains nothing in a model with a single exit; pass more exit_layers "
            "to the config"
        )
    return torch.stack(losses).sum()


def depth_weighted(losses: list[Tensor]) -> Tensor:
    """Return the mean of scalar losses, the i-th of n weighted by i: sum_i i L_i / sum_i i. PABEE, section 3.3.

    Args:
        losses: one scalar per exit, at least one.

    Examples:
        >>> depth_weighted([torch.tensor(3.0), torch.tensor(1.5)]).item()
        2.0
    """
    weights = torch.arange(1, len(losses) + 1, device=losses[0].device)
    return (torch.stack(losses) * weights).sum() / weights.sum()


def kl_divergence(target: Tensor, prediction: Tensor) -> Tensor:
    """Return KL(softmax(target) || softmax(prediction)) in nats, averaged over the batch.

    Args:
        target: logits of shape `(batch, labels)`, or of several labels at once as `two_classes` returns them.
        prediction: logits of the same shape.

    Returns:
        A scalar, at least 0.

    Examples:
        >>> certain, undecided = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> round(kl_divergence(certain, undecided).item(), 6), round(kl_divergence(undecided, certain).item(), 6)
        (0.502282, 0.85544)
    """
    target, prediction = (logits.float().log_softmax(dim=-1) for logits in (target, prediction))
    return functional.kl_div(prediction, target, reduction="batchmean", log_target=True)


class EarlyExitPreTrainedModel(PreTrainedModel):
    """Base class of all models of this package: builds the encoder, and saves the model's code with its weights."""

    config_class: ClassVar[type[EarlyExitConfig]] = EarlyExitConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else Trainer skips the division by the number of accumulation steps
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: EarlyExitConfig) -> None:
        config.check()  # again, since its attributes may have been changed after it was built
        super().__init__(config)
        family = family_of(config.encoder_config)
        # An unused pooler would be an unused parameter under DDP; families without one do not accept the argument.
        options = {} if family.pooler is None else {"add_pooling_layer": False}
        self.encoder = AutoModel.from_config(config.encoder_config, **options)

    def post_init(self) -> None:
        """Initialize the weights as in Transformers; `device_map="auto"` then keeps the encoder on one device."""
        super().post_init()
        # Otherwise exits would be on several devices, and rows would leave the batch on different ones.
        self._no_split_modules = {type(self.encoder).__name__}
        self._built_heads = self.config.head, self.config.last_exit_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SingleUnit):  # as Transformers initializes an `nn.Linear`
            init.normal_(module.weight, mean=0.0, std=self.config.encoder_config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, BranchLinear):
            # The encoder's standard deviation is meant for wider layers; with it the output of so many narrow layers
            # would hardly depend on the input.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's input embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's input embeddings.

        Args:
            value: the new embeddings.
        """
        self.encoder.set_input_embeddings(value)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model as in Transformers, with its code, so that it can be loaded without this package.

        Args:
            save_directory: the folder.
            *args: as in Transformers.
            **kwargs: as in Transformers.

        Raises:
            ValueError: as in the config's `save_pretrained`, or if the config names other heads than the model has.
            TypeError: as in the config's `save_pretrained`.
        """
        self.config.own_thresholds()  # before the code is copied
        if (self.config.head, self.config.last_exit_head) != self._built_heads:
            head, last = self._built_heads
            raise ValueError(
                f"exit_head, last_exit_head: the config has '{self.config.exit_head}' and "
                f"{self.config.last_exit_head!r}, but the model was built with '{head}' and {last!r}, whose weights "
                "differ; set them back, or pass others when a model is made, to from_encoder_pretrained"
            )
        if self._auto_class is not None:
            module = type(self).__module__.split(".")[-1]
            name = type(self).__name__.replace("ForSequenceClassification", "Model")
            self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | {"AutoModel": f"{module}.{name}"}
        super().save_pretrained(save_directory, *args, **kwargs)


class EarlyExitModel(EarlyExitPreTrainedModel):
    """The encoder alone, always at full depth; exit heads in a checkpoint are not loaded.

    Args:
        config: the method's config.
    """

    _auto_class = "AutoModel"  # the code is saved with the checkpoint
    _keys_to_ignore_on_load_unexpected = [r"^(?!encoder\.)"]

    def __init__(self, config: EarlyExitConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        """Run the encoder.

        Args:
            *args: as in the encoder's own `forward`.
            **kwargs: as in the encoder's own `forward`.

        Returns:
            The encoder's own output.
        """
        return self.encoder(*args, **kwargs)


class EarlyExitForSequenceClassification(EarlyExitPreTrainedModel):
    """Base class of every method: first the hooks that a method defines, then the code that all methods share.

    A method's file defines three classes: a config (subclass of `EarlyExitConfig`, whose hooks are listed there), an
    encoder without exits (subclass of `EarlyExitModel`), and a classifier (subclass of this class).
    `modeling_deebert.py` is the shortest example. The hooks of the classifier, in the order in which they are called:

    1. `__init__` builds the exits, usually `self.exits`, a `ModuleList` of `exit_head(config)`, and ends with
       `self.post_init()`. The class attributes `paper`, `objectives`, ... describe the method.
    2. Before training: `classifiers` and `adopt_classifier` (by `from_encoder_pretrained`), `prepared`, `prepare` and
       `stages` (by the Trainer).
    3. For every batch: `embed`; after that for every layer `layer_step`, then `exit_step` if there is an exit after
       the layer, else `skip_step`; `tempered` if the exits are calibrated; `own_ready` decides which rows leave.
    4. For the loss: `exit_loss`, or `unlabelled_loss`.

    A method must define `paper`, `objectives`, `stages`, `exit_step` and `exit_loss`; also `own_ready` if its config
    sets `own_criterion`, `unlabelled_loss` if it has `unlabelled_objectives`, and `classifiers` if its exits are not
    heads in `self.exits`. All other hooks have a default that suits most methods.

    Args:
        config: the method's config.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import BertConfig, BertModel
        >>> from adaexit_hf import DeeBertForSequenceClassification
        >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> with TemporaryDirectory() as folder:
        ...     BertModel(encoder).save_pretrained(folder)  # or any pretrained encoder
        ...     model = DeeBertForSequenceClassification.from_encoder_pretrained(folder, exit_layers=[1, 3])
        >>> len(model.exits), [stage.name for stage in model.stages]
        (2, ['backbone', 'exits'])
    """

    _auto_class = "AutoModelForSequenceClassification"  # the code is saved with the checkpoint

    def __init__(self, config: EarlyExitConfig) -> None:
        super().__init__(config)
        self.recompute = Recompute.if_needed(self.encoder)

    # ---- Hooks ----

    # 1. What the method is

    # Where the method comes from.
    paper: ClassVar[Paper]
    # Names of the losses. The first is the default, where no stage chooses one.
    objectives: ClassVar[tuple[str, ...]]
    # Those of `objectives` that need no labels.
    unlabelled_objectives: ClassVar[tuple[str, ...]] = ()
    # Whether tokens skip layers, so that the cost of a text depends on its tokens, and not only on its length.
    spares_tokens: ClassVar[bool] = False
    # With the config's `own_criterion`: comparison of score and threshold, torch.lt, torch.le, torch.gt or torch.ge.
    own_ready: ClassVar[Any]

    @property
    def reads_all_tokens(self) -> bool:
        """Whether `exit_step` reads the states of all tokens, `hidden`, and not only the sentence vector, `pooled`.

        Default: whether the heads do, see the config's `exit_head`.
        """
        return self.config.head in ("attention-pool", "attention-block")

    # 2. Before training

    # Whether `from_encoder_pretrained` has made the head of a fine-tuned classifier the last exit.
    took_over_classifier: bool = False

    @property
    def classifiers(self) -> list[nn.Module]:
        """The output layer of every exit, in order; its outputs are logits.

        Default: the output layers of the heads in `self.exits`.
        """
        return [cast(ExitHead, exit).classifier for exit in self.exits]

    def adopt_classifier(self) -> None:
        """Adapt the last exit after a fine-tuned classifier's head was copied into it.

        Called by `from_encoder_pretrained`. A method whose last exit has more inputs than the fine-tuned classifier
        turns those off here. Default: nothing.
        """

    @property
    def prepared(self) -> bool:
        """Whether nothing is left to be estimated from the training data, so that training need not call `prepare`.

        Default: for regression, whether no exit starts from 0 any more; else True.
        """
        return self.config.num_labels > 1 or all(
            bool(cast(Tensor, classifier.bias).any()) for classifier in self.classifiers
        )

    def prepare(self, dataset: Any, tokenizer: Any = None) -> None:
        """Set what has to be estimated from the training data, once, before the first training step.

        `EarlyExitTrainer` calls it for a model that is not `prepared`.

        Default: for regression, let the exits start from the mean label (`start_from_mean`); else nothing.

        Args:
            dataset: the training set: tokenized rows or texts, as for `predict`, with `label` or `labels`.
            tokenizer: the model's tokenizer. Default: None, for tokenized rows.

        Raises:
            ValueError: `dataset` is empty, has no labels where they are needed, or has labels that training would
                refuse.
        """
        if self.config.num_labels == 1:
            rows = list(items_of(dataset))
            labels = row_labels(rows, 1) if rows and isinstance(rows[0], Mapping) else None
            if labels is None:
                raise ValueError("dataset: has no labels; pass the training set, with a 'label' column")
            self.start_from_mean(self.checked_labels(labels, len(rows)).double().mean().item())

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The training runs that the paper prescribes, in order."""
        raise NotImplementedError

    # 3. Every batch, from the input to the readiness of an exit

    def embed(self, inputs: dict[str, Tensor | None]) -> tuple[Tensor, Context]:
        """Compute the input of layer 1, and what layers and exits need besides the hidden states.

        A method that needs more of each row or token adds it to the context, as `per_row` or `per_token`.

        Args:
            inputs: the arguments of `forward` that describe the texts, by name; every one is present, None if it was
                not passed.

        Returns:
            The embeddings, shape `(batch, tokens, hidden)`, and the context.

        Raises:
            ValueError: see `embed_inputs`; or the attention mask is not of shape `(batch, tokens)`, though the exits
                must know which tokens are padding.
        """
        mask = inputs["attention_mask"]
        if mask is not None and mask.dim() != 2 and self._reads_all_tokens:
            raise ValueError(
                f"attention_mask: got shape {tuple(mask.shape)}; these exits read all tokens except padding, so pass "
                "1 for tokens and 0 for padding, shape (batch, tokens)"
            )
        hidden, context = embed_inputs(self.encoder, **inputs)
        if self.config.head != "pair":
            return hidden, context
        second = second_segment(inputs["input_ids"], inputs["token_type_ids"], mask)
        check_pairs(second)
        return hidden, context._replace(per_token=context.per_token | {"second": second})

    def layer_step(
        self, index: int, layer: nn.Module, hidden: Tensor, context: Context, whole: bool
    ) -> tuple[Tensor, Tensor | None, Context]:
        """Run one layer. A method may run it for some tokens only, or add something to the context.

        Args:
            index: number of the layer, from 0.
            layer: the layer.
            hidden: its input, shape `(batch, tokens, hidden)`.
            context: what the layer needs besides; never changed in place.
            whole: whether the layer must run for every token: in training, and when hidden states or attention weights
                were requested.

        Returns:
            The layer's output, shape `(batch, tokens, hidden)`, after the last layer only of the tokens that the exit
            reads; the attention weights where the family's layers return them, else None; and the context.
        """
        if not whole and index + 1 == self.config.exit_layers[-1] and not self._reads_all_tokens:
            return *run_first(self.encoder, index, layer, hidden, context), context
        hidden, attention = run_layer(self.encoder, index, layer, hidden, context, self.recompute)
        return hidden, attention, context

    def skip_step(self, hidden: Tensor, context: Context, state: State) -> State:
        """Update the state after a layer without an exit, for methods whose exits read the layers below, too.

        Args:
            hidden: output of the layer, shape `(batch, tokens, hidden)`, without the final norm that pre-norm families
                apply before an exit.
            context: as in `exit_step`.
            state: as in `exit_step`.

        Returns:
            The state for the next step. Default: `state`.
        """
        return state

    def exit_step(
        self, index: int, pooled: Tensor, hidden: Tensor, context: Context, state: State
    ) -> tuple[Exit, State]:
        """Compute the output of one exit.

        Args:
            index: number of the exit, from 0.
            pooled: sentence vector after this layer, shape `(batch, hidden)`; with `exit_head="pair"` those of the
                two texts side by side, shape `(batch, 2 * hidden)`.
            hidden: states after this layer, shape `(batch, tokens, hidden)`; only for methods with
                `reads_all_tokens`, else it may lack tokens.
            context: `context.padding` is 1 for tokens and 0 for padding, shape `(batch, tokens)`, or None without
                padding; with what `embed` added. Its rows are those still in the batch.
            state: what the previous `exit_step` or `skip_step` returned, () at first.

        Returns:
            The exit's output (see `Exit`), and the state for the next step: tensors whose first dimension is the
            batch, since the rows that leave are removed from them.
        """
        raise NotImplementedError

    def tempered(self, logits: Tensor, temperature: float) -> Tensor:
        """Apply the temperature of a calibrated exit to its logits.

        Args:
            logits: the exit's logits, shape `(batch, labels)`.
            temperature: the exit's temperature, > 0; 1 changes nothing.

        Returns:
            Calibrated logits, shape `(batch, labels)`. Default: `logits / temperature`.
        """
        return logits / temperature

    # 4. The loss

    def exit_loss(self, exits: list[Exit], labels: Tensor, objective: str) -> Tensor:
        """Compute the loss of an objective from the outputs of all exits.

        An exit that the objective does not train must not be part of the loss at all: its gradient stays None, not 0.

        Args:
            exits: what `exit_step` returned for every exit, in order.
            labels: class indices, or numbers for regression, shape `(batch,)`; with several labels at once 0 and 1 as
                floats, shape `(batch, labels)`.
            objective: one of `objectives`.

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def unlabelled_loss(self, exits: list[Exit], objective: str) -> Tensor:
        """Compute the loss of an objective that needs no labels.

        Args:
            exits: as in `exit_loss`.
            objective: one of `unlabelled_objectives`.

        Returns:
            A scalar.
        """
        raise NotImplementedError

    # ---- What all methods share ----

    # Loading and saving

    @classmethod
    def from_encoder_pretrained(cls, name_or_path: str, **config: Any) -> "EarlyExitForSequenceClassification":
        """Build a model from a pretrained encoder or a fine-tuned classifier.

        A pretrained pooler is copied into every exit. A fine-tuned classifier's head becomes the last exit, and its
        labels and `problem_type` are kept, unless labels are passed.

        Args:
            name_or_path: name on the Hub, or folder, as in `from_pretrained`.
            **config: arguments of the method's config (`num_labels`, `exit_layers`, ...); those of the download
                (`revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`); `dtype` and
                `attn_implementation`; and `num_hidden_layers`, to keep only the first layers of the encoder.

        Returns:
            The model; its exits are new, except for the copied layers.

        Raises:
            ValueError: the checkpoint is already an early-exit model, of an unsupported family, or lacks weights of
                its encoder; or an argument of the config is refused.
            TypeError: an unknown argument.
        """
        return load_encoder(cls, name_or_path, config)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model as in Transformers, with its code and pipeline; it then loads without this package, too.

        Args:
            save_directory: the folder.
            *args: as in Transformers.
            **kwargs: as in Transformers.
        """
        if self._auto_class is not None:
            # Imported here: only saving needs Transformers' pipelines where the package is not installed.
            from .pipeline_early_exit import CUSTOM_PIPELINES

            pipelines = getattr(self.config, "custom_pipelines", None) or {}
            self.config.custom_pipelines = pipelines | copy.deepcopy(CUSTOM_PIPELINES)
        super().save_pretrained(save_directory, *args, **kwargs)

    # The run of a batch: at full depth, with early exit, or of the exits alone

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
        """Classify a batch of texts; in eval mode rows exit early if a threshold is set.

        Args:
            input_ids: token ids, shape `(batch, tokens)`.
            attention_mask: 1 for tokens, 0 for padding, shape `(batch, tokens)`. Default: no padding.
            token_type_ids: as in the encoder, shape `(batch, tokens)`.
            position_ids: as in the encoder, shape `(batch, tokens)` or `(1, tokens)`.
            inputs_embeds: embeddings in place of `input_ids`, shape `(batch, tokens, hidden)`.
            labels: class indices from 0 to `num_labels` - 1, or numbers for regression, shape `(batch,)`; with several
                labels at once 0 and 1, shape `(batch, labels)`.
            objective: one of `objectives`: run full depth and return its loss. Default: in training the first of
                `objectives`; in eval mode the task loss of the prediction.
            exit_threshold: used for this call in place of the config's threshold: one number, or one per exit. Only
                in eval mode and without an objective, since otherwise all layers run.
            early_exit: False runs full depth and returns `exit_logits` and `exit_scores`; True raises an error if no
                row could exit early. Default: exit early if a threshold is set and the model is in eval mode.
            output_hidden_states: return hidden states. Every layer then runs, since a skipped layer has no output; the
                predictions and exit layers stay those of the early exit. A list of indices keeps only those states:
                0 is the input of layer 1, negative ones count from the last.
            output_attentions: return attention weights, which exist with `attn_implementation="eager"` only. Every
                layer then runs, as with `output_hidden_states`.
            return_dict: False returns a tuple. Default: the config's.
            exit_states: what `states_for_exits` returned for these texts. Then the encoder does not run, but all exits
                do; of the inputs only `attention_mask` is read, and there are no hidden states or attention weights.

        Returns:
            The predictions, exit layers and loss.

        Raises:
            ValueError: an invalid label, objective or threshold; a threshold where no row can exit; an empty batch; a
                text longer than the position table; a state that does not exist; `exit_states` of the wrong shape, or
                together with hidden states or attention weights.

        Examples:
            >>> import torch
            >>> from transformers import BertConfig
            >>> from adaexit_hf import RightToolConfig, RightToolForSequenceClassification
            >>> encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3, num_attention_heads=2)
            >>> model = RightToolForSequenceClassification(RightToolConfig(encoder, num_labels=2)).eval()
            >>> input_ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
            >>> model(input_ids).exit_layer.tolist(), model(input_ids).exit_scores.shape
            ([3, 3], torch.Size([2, 3]))
            >>> model(input_ids, exit_threshold=0.0).exit_layer.tolist()  # every confidence is at least 0
            [1, 1]
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
        """Do what `forward` does, for all inputs that the method's `embed` takes."""
        return_dict = self.config.return_dict if return_dict is None else return_dict
        keep_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keep_attentions = bool(self.config.output_attentions if output_attentions is None else output_attentions)
        keep_states = _checked_states(keep_states, self.config.encoder_config.num_hidden_layers + 1)
        if exit_states is not None:
            self._check_exit_states(exit_states, output_hidden_states or output_attentions)
            keep_states = keep_attentions = False
        if keep_attentions and self.encoder.config._attn_implementation != "eager":
            logger.warning_once(  # as in Transformers' own models
                f"output_attentions: attention implementation '{self.encoder.config._attn_implementation}' returns no "
                "attention weights, so the output has none; load the model with attn_implementation='eager'"
            )
        if objective is not None and objective not in self.objectives:
            raise ValueError(
                f"objective: got {objective!r}; {type(self).__name__} has the objectives {', '.join(self.objectives)}"
            )
        thresholds = self.thresholds_in_use(exit_threshold, early_exit, not self.training and objective is None)
        # A branch on data cannot be compiled or exported: there every layer runs, then the exit is selected.
        rows_leave = thresholds is not None and not (keep_states or keep_attentions or recording())
        # An objective's loss is that of training, also in eval mode, so it is computed without temperatures.
        temperatures = None if self.training or objective is not None else self.config.exit_temperatures
        run: dict[str, Any]
        if exit_states is not None:
            run = self._run_exits(exit_states, inputs["attention_mask"], temperatures)
            prediction = self._predict(run["exits"], run["scores"], thresholds)
        elif rows_leave:
            answers = self._early_exit(inputs, thresholds, temperatures)
            run = {"exits": [], "scores": [answers.all_scores], "states": []}
            prediction = {"logits": answers.logits, "exit_layer": answers.exit_layer}
        else:
            flags = {"output_attentions": keep_attentions, "return_dict": True}
            run = _record_attentions(self.encoder, self._full_depth, inputs, temperatures, bool(keep_states), **flags)
            prediction = self._predict(run["exits"], run["scores"], thresholds)
        if not self.training and not recording():
            report_not_finite(run["scores"])
        loss = None
        if objective is not None and objective in self.unlabelled_objectives:
            loss = self.unlabelled_loss(run["exits"], objective)
        elif labels is not None:
            labels = self.checked_labels(labels, prediction["logits"].shape[0])
            if self.training or objective is not None:
                loss = self.exit_loss(run["exits"], labels, objective or self.objectives[0])
            else:
                loss = self.task_loss(prediction["logits"], labels)
        states = run["states"]
        if isinstance(keep_states, list):
            states = [state if index in keep_states else None for index, state in enumerate(states)]
        if self.training and torch.is_grad_enabled() and len(run["exits"]) > 1 and not recording():
            prediction["logits"] = _without_gradient(prediction["logits"], run["exits"])
        attentions = None
        if keep_attentions:
            shift = run["shift"]
            attentions = tuple(
                rotated_back(rotated_back(attention, shift, 2), shift, 3)
                for attention in run["returned_attentions"] or run["attentions"]
            )
        # All fields at once, since a tuple output has the order in which they are set.
        output = EarlyExitOutput(
            loss=loss,
            **prediction,
            hidden_states=tuple(states) if keep_states else None,
            attentions=attentions or None,
        )
        return output if return_dict else output.to_tuple()

    def answers(
        self, inputs: Mapping[str, Tensor | None], exit_threshold: Threshold = None, early_exit: bool | None = None
    ) -> Answers:
        """Predict with early exit, and return also the readiness score at the exit where each row left.

        Args:
            inputs: the arguments of `forward` that describe the texts, by name.
            exit_threshold: as in `forward`.
            early_exit: as in `forward`.

        Returns:
            Logits, exit layers and readiness scores of all rows.

        Raises:
            ValueError: as in `forward`.
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
        inputs, extents = trimmed(right_padded(inputs)[0])
        return run_early_exit(self, [InFlight.of(*self.embed(inputs), extents)], thresholds, temperatures)

    def _full_depth(
        self,
        inputs: dict[str, Tensor | None],
        temperatures: list[float] | None,
        keep_states: bool,
        output_attentions: bool = False,
    ) -> dict[str, Any]:
        """Run all layers, and return the outputs and readiness scores of all exits, states and attention weights."""
        inputs, shift = right_padded(inputs)
        flight = InFlight.of(*self.embed(inputs))
        run: dict[str, Any] = {"exits": [], "scores": [], "states": [flight.hidden], "returned_attentions": []}
        whole = bool(self.training or keep_states or output_attentions or recording())
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
            run["states"] = [rotated_back(state, shift) for state in run["states"]]
        return run | {"shift": shift}

    def _predict(self, exits: list[Exit], scores: list[Tensor], thresholds: list[float] | None) -> dict[str, Tensor]:
        """Return the prediction after a run at full depth, as fields of the output.

        Without thresholds that of the last exit, with logits and scores of all exits; else, for every row, that of the
        first exit that is ready.
        """
        depths = exit_layer_numbers(self.config, exits[-1].logits.device)
        exit_logits = torch.stack([exit.logits for exit in exits], dim=1)  # (batch, exits, labels)
        if thresholds is None:
            return {
                "logits": exits[-1].logits,
                "exit_layer": depths[-1].repeat(exit_logits.shape[0]),
                "exit_logits": exit_logits,
                "exit_scores": torch.stack(scores, dim=1),
            }
        pairs = zip(scores, thresholds, strict=True)
        taken = first_ready(torch.stack([self.ready(score, threshold) for score, threshold in pairs], dim=1))
        rows = torch.arange(taken.shape[0], device=taken.device)
        return {"logits": exit_logits[rows, taken], "exit_layer": depths[taken]}

    # The exits alone, on the states of a frozen encoder

    @property
    def takes_exit_states(self) -> bool:
        """Whether `forward` accepts `exit_states`, so that a frozen encoder has to run only once for all epochs.

        True if the exits read nothing but the encoder's states.
        """
        base = EarlyExitForSequenceClassification
        return all(getattr(type(self), name) is getattr(base, name) for name in ("embed", "layer_step", "skip_step"))

    def states_for_exits(self, inputs: dict[str, Tensor | None]) -> Tensor:
        """Run the encoder at full depth and return what the exits read, to be passed to `forward` as `exit_states`.

        Args:
            inputs: as in `embed`.

        Returns:
            The sentence vectors, shape `(batch, exits, hidden)`, twice as wide with `exit_head="pair"`; if the exits
            read all tokens (`reads_all_tokens`) the states of all tokens, shape `(batch, tokens, exits, hidden)`.
        """
        family, layers, states = family_of(self.encoder.config), self.config.exit_layers, list[Tensor]()
        inputs, shift = right_padded(inputs)
        for number, (step,) in LayerLoop(self, [InFlight.of(*self.embed(inputs))], read_exits=False):
            if number in layers:
                hidden = family.finish(self.encoder, step.flight.hidden)
                if not self.reads_all_tokens:
                    hidden = sentence_vector(self, hidden, step.flight.context, layers.index(number))
                    # With `exit_head="pair"` the vector of a last exit of another kind is half as wide.
                    hidden = functional.pad(hidden, (0, self._state_size - hidden.shape[-1]))
                states.append(hidden)
        stacked = torch.stack(states, dim=-2)
        return rotated_back(stacked, shift) if self.reads_all_tokens else stacked

    def _run_exits(
        self, exit_states: Tensor, padding: Tensor | None, temperatures: Sequence[float] | None
    ) -> dict[str, Any]:
        """Return what `_full_depth` returns, without running the encoder."""
        rows = torch.arange(len(exit_states), device=exit_states.device)
        if self.reads_all_tokens:
            inputs, _ = right_padded({"attention_mask": padding, "exit_states": exit_states})
            padding, exit_states = inputs["attention_mask"], cast(Tensor, inputs["exit_states"])
        flight = InFlight(rows, exit_states, Context(padding, None, {}))
        run: dict[str, Any] = {"exits": [], "scores": [], "states": []}
        for index, hidden in enumerate(exit_states.unbind(dim=-2)):
            if self.reads_all_tokens:
                vector = sentence_vector(self, hidden, flight.context, index)
            else:
                own = index == len(self.config.exit_layers) - 1 and self.config.last_exit_head is not None
                vector = hidden[..., : self.config.encoder_config.hidden_size] if own else hidden
            step = exit_from_states(self, index, vector, hidden, flight, temperatures)
            flight = step.flight
            run["exits"].append(step.exit)
            run["scores"].append(step.score)
        return run

    @property
    def _state_size(self) -> int:
        """Size of the states, or of the sentence vectors, of which `exit_states` are made."""
        return int(self.config.encoder_config.hidden_size) * (2 if self.config.head == "pair" else 1)

    def _check_exit_states(self, exit_states: Tensor, needs_encoder: Any) -> None:
        if needs_encoder:
            raise ValueError(
                "output_hidden_states, output_attentions: cannot be returned with exit_states, where the encoder does "
                "not run; leave out either these or exit_states"
            )
        names = ("batch", "tokens", "exits", "hidden") if self.reads_all_tokens else ("batch", "exits", "hidden")
        ends = (len(self.config.exit_layers), self._state_size)
        if exit_states.dim() != len(names) or exit_states.shape[-2:] != ends or not len(exit_states):
            raise ValueError(
                f"exit_states: got shape {tuple(exit_states.shape)}; pass ({', '.join(names)}) with {ends[0]} exits "
                f"of {ends[1]} numbers, as model.states_for_exits(inputs) returns them"
            )

    # Thresholds

    @property
    def ready(self) -> Callable[[Tensor, float], Tensor]:
        """Comparison of readiness scores, shape `(batch,)`, with a threshold; a NaN score is never ready."""
        if self.config.exit_criterion == self.config.own_criterion:
            return self.own_ready
        return CRITERIA[self.config.exit_criterion].ready

    def thresholds_in_use(
        self, exit_threshold: Threshold, early_exit: bool | None, possible: bool = True
    ) -> list[float] | None:
        """Return the thresholds that `forward` uses for these arguments.

        Args:
            exit_threshold: as in `forward`.
            early_exit: as in `forward`.
            possible: whether rows can exit early, as in eval mode without an objective.

        Returns:
            One threshold per exit, or None for full depth.

        Raises:
            ValueError: an invalid threshold; or a threshold or `early_exit=True` where rows cannot exit, or
                `early_exit=True` without a threshold.
        """
        from_config = exit_threshold is None and early_exit is not False and possible
        thresholds = self.config.own_thresholds() if from_config else self.config.thresholds(exit_threshold)
        if early_exit and (thresholds is None or not possible):
            raise ValueError(
                "early_exit: got True, which needs a threshold, eval mode and no objective; call model.eval() and "
                "model(..., exit_threshold=<number>)"
            )
        if exit_threshold is not None and not possible:
            raise ValueError(
                f"exit_threshold: got {exit_threshold} in training mode or with an objective, where all layers run; "
                "call model.eval() and leave out the objective, or leave out exit_threshold"
            )
        return thresholds if possible and early_exit is not False else None

    @property
    def _reads_all_tokens(self) -> bool:
        poolings = (self.config.pooling, self.config.last_pooling)
        return self.reads_all_tokens or "mean" in poolings or self.config.head == "pair"

    # Labels, losses, and what is estimated from data

    @torch.no_grad()
    def start_from_mean(self, mean: float) -> None:
        """Set the bias of the exits of a regression model to the mean of the training labels.

        Exits that start from 0 first pull the encoder towards a constant output, and with several exits it may stay
        there. Only biases that are still 0 are set, so a fine-tuned head keeps its own.

        Args:
            mean: mean of the training labels.

        Raises:
            ValueError: the model is a classifier; or `mean` is NaN or infinite.
        """
        if self.config.num_labels != 1:
            labels = self.config.num_labels
            raise ValueError(f"start_from_mean is for regression, num_labels=1; got num_labels={labels}")
        check_number("mean", mean)
        for classifier in self.classifiers:
            bias = cast(Tensor, classifier.bias)
            if not bias.any():
                bias.fill_(mean)

    def calibrate_temperatures(self, dataset: Any, tokenizer: Any = None, *, batch_size: int = 32) -> list[float]:
        """Calibrate the exits: set `config.exit_temperatures` to the temperatures that fit a validation set best.

        For every exit, the temperature T with which softmax(logits / T) gives the labels the largest likelihood; see
        `best_temperature`. With several labels at once it is sigmoid(logits / T), one T for all labels of an exit.
        Each row runs once, at full depth.

        Args:
            dataset: tokenized rows or texts, as for `predict`, with `label` or `labels`, none used in training.
            tokenizer: the model's tokenizer. Default: None, for tokenized rows.
            batch_size: rows per forward pass.

        Returns:
            One temperature per exit; above 1 where the exit was overconfident.

        Raises:
            ValueError: the model is for regression; or `dataset` has no labels, labels that do not fit the model, or
                fewer rows than there are classes.
        """
        classes = self.config.num_labels
        if classes == 1:
            raise ValueError("calibrate_temperatures: regression, num_labels=1, has no probabilities to calibrate")
        rows = read_rows(dataset, tokenizer, self.config)
        labels = row_labels(rows, classes, multi_label=self.config.multi_label)
        if labels is None or len(rows) < classes:
            raise ValueError(
                f"dataset: got {len(rows)} samples, {'without' if labels is None else 'with'} labels, for {classes} "
                f"classes; pass a validation set with labels, at least {classes} samples, better hundreds"
            )
        labels = labels.long()
        temperatures, self.config.exit_temperatures = self.config.exit_temperatures, None
        try:
            logits, _ = full_depth(self, rows, batch_size, "Calibrating")
            exits = logits.unbind(dim=1)
            if self.config.multi_label:
                exits, labels = tuple(two_classes(each).flatten(0, 1) for each in exits), labels.flatten()
            temperatures = [best_temperature(exit_logits, labels) for exit_logits in exits]
        finally:
            self.config.exit_temperatures = temperatures
        return list(temperatures)

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of a batch or, for regression, the mean squared error.

        With several labels at once it is the binary cross-entropy. The cross-entropies have the config's
        `class_weights` and `label_smoothing`. Every `exit_loss` computes its losses of logits and labels with this
        function.

        Args:
            logits: shape `(batch, labels)`.
            labels: as `checked_labels` returns them, shape `(batch,)` or `(batch, labels)`.

        Returns:
            A scalar, averaged over the batch; with class weights it is divided by the sum of those of the labels. With
            several labels at once it is averaged over batch and labels, whatever their weights.

        Raises:
            ValueError: as in `check_loss` of the config.
            TypeError: as in `check_loss` of the config.
        """
        if self.config.num_labels == 1:
            return functional.mse_loss(logits.squeeze(-1).float(), labels.float())
        weights = self.config.class_weights
        if weights is not None and not recording():
            self.config.check_loss()  # they may have been changed after the config was built
        weight = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=logits.device)
        smoothing = self.config.label_smoothing
        if self.config.multi_label:
            target = labels.float() * (1 - smoothing) + smoothing / 2
            return functional.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=weight)
        return functional.cross_entropy(logits.float(), labels, weight=weight, label_smoothing=smoothing)

    def checked_labels(self, labels: Tensor, batch: int) -> Tensor:
        """Check labels, and bring them into the form that the losses take.

        Args:
            labels: class indices of any integer type, or numbers for regression, shape `(batch,)` or `(batch, 1)`;
                with several labels at once 0 and 1 of any type, shape `(batch, labels)`.
            batch: number of rows.

        Returns:
            The labels, shape `(batch,)`; class indices as int64. With several labels at once, 0 and 1 as float32,
            shape `(batch, labels)`.

        Raises:
            ValueError: another shape; floats in place of class indices; a class that does not exist; NaN or infinity;
                with several labels at once, a value that is neither 0 nor 1.
        """
        if self.config.multi_label:
            count = self.config.num_labels
            if labels.shape != (batch, count):
                raise ValueError(
                    f"labels: got shape {tuple(labels.shape)} with problem_type='multi_label_classification'; pass "
                    f"{count} numbers per text, 1 for each label that it has and 0 for the others, shape ({batch}, "
                    f"{count})"
                )
            if not recording() and bool((wrong := wrong_labels(labels, count, multi_label=True)).any()):
                raise ValueError(
                    f"labels: got {labels[wrong][0].item()} with problem_type='multi_label_classification'; pass 1 "
                    "for each label that a text has, and 0 for the others"
                )
            return labels.float()
        labels = labels.reshape(-1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
        if labels.shape != (batch,):
            raise ValueError(f"labels: got shape {tuple(labels.shape)}; pass one label per text, shape ({batch},)")
        if self.config.num_labels == 1:
            if not recording() and bool(wrong_labels(labels, 1).any()):
                raise ValueError("labels: got NaN or infinity; drop the rows without a score before training")
            return labels
        if labels.is_floating_point():
            raise ValueError(
                f"labels: got {labels.dtype} for {self.config.num_labels} classes; pass class indices, labels.long(), "
                "or num_labels=1 for regression"
            )
        if recording():
            return labels.long()
        wrong = labels[wrong_labels(labels, self.config.num_labels)]
        if len(wrong):
            raise ValueError(
                f"labels: got {wrong[0].item()}; allowed are 0 to {self.config.num_labels - 1}. Pass "
                "num_labels=<number of classes> to the config, or a split that has labels (GLUE's test sets have none)"
            )
        return labels.long()


def _without_gradient(logits: Tensor, exits: list[Exit]) -> Tensor:
    """Return the last exit's logits such that a backward pass through them raises an error.

    A loss that is computed outside of the model, as from those of stock classifiers, would train the last exit alone,
    or nothing, where a stage has frozen it.
    """
    if not any(exit.logits.requires_grad for exit in exits):
        return logits
    logits = logits.view_as(logits) if logits.requires_grad else logits.detach().requires_grad_()

    def refuse(gradient: Tensor | None) -> None:
        if gradient is not None and bool(gradient.any()):
            raise ValueError(
                "logits: the loss was computed from these, which in training are those of the last exit, so that no "
                "other exit would be trained. Use output.loss (pass labels; class_weights and label_smoothing are "
                "arguments of the config), or compute the loss from output.exit_logits, shape (batch, exits, labels); "
                "for the last exit alone from output.exit_logits[:, -1]"
            )

    logits.register_hook(refuse)
    return logits


def _checked_states(requested: Any, count: int) -> bool | list[int]:
    """Check `output_hidden_states` that is not a bool, and return the indices of the states, from 0."""
    requested = plain(requested)
    if requested is None or isinstance(requested, bool):
        return bool(requested)
    whole = isinstance(requested, list) and all(type(index) is int for index in requested)
    if not whole or not all(-count <= index < count for index in requested):
        raise ValueError(
            f"output_hidden_states: got {requested}; pass True, False, or a list of indices from {-count} to "
            f"{count - 1}, where 0 is the input of layer 1"
        )
    return [index % count for index in requested]


@capture_outputs
def _record_attentions(
    encoder: PreTrainedModel, run: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """Call `run`; Transformers' decorator adds the attention weights of encoders that can record them."""
    return run(*args, **kwargs)


def report_not_finite(scores: list[Tensor]) -> None:
    """Warn if any readiness score is NaN, since the logits of that exit were NaN or infinite.

    Args:
        scores: readiness scores, of any shapes.
    """
    count = int(torch.stack([score.isnan().sum() for score in scores]).sum())
    if count:
        warnings.warn(
            f"{count} exits gave NaN or infinite logits; their rows went on to the next exit. Check the input, or "
            "load the model in a wider dtype, e.g. dtype=torch.float32",
            RuntimeWarning,
            stacklevel=3,
        )


# Arguments of `from_encoder_pretrained` that are not arguments of the method's config.
DOWNLOAD = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
LOADING = ("dtype", "attn_implementation", "num_hidden_layers")


def load_encoder(model_class: Any, name_or_path: str, options: dict[str, Any]) -> Any:
    """Build a model; see `EarlyExitForSequenceClassification.from_encoder_pretrained`.

    Args:
        model_class: class of the model.
        name_or_path: name on the Hub, or folder, of the encoder or classifier.
        options: all other arguments; those that are used here are removed.

    Returns:
        A model of `model_class`.

    Raises:
        ValueError: see there.
        TypeError: see there.
    """
    accepted = {*DOWNLOAD, *LOADING, *LABELS, *model_class.config_class.own_arguments()} - {"encoder_config"}
    accepted |= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    unknown = sorted(options.keys() - accepted)
    if unknown:
        model_class.config_class._refuse_unknown(unknown, misspelt_only=True)
        config_name = model_class.config_class.__name__
        raise TypeError(
            f"from_encoder_pretrained got unknown arguments {unknown}; pass arguments of {config_name}, or "
            f"{', '.join([*DOWNLOAD, *LOADING])}"
        )
    download = {name: options.pop(name) for name in DOWNLOAD if name in options}
    loading = {name: options.pop(name) for name in LOADING if name in options}
    config = AutoConfig.from_pretrained(name_or_path, **download)
    if config.model_type == model_class.config_class.model_type or "encoder_config" in config.sub_configs:
        raise ValueError(
            f"name_or_path: '{name_or_path}' is already an early-exit model ('{config.model_type}'); call "
            "AutoModelForSequenceClassification.from_pretrained to load it, or pass an encoder to train one"
        )
    family = family_of(config)
    cut_layers(config, loading.pop("num_hidden_layers", None))
    fine_tuned = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    loader = AutoModelForSequenceClassification if fine_tuned else AutoModel
    source, report = loader.from_pretrained(
        name_or_path, config=config, output_loading_info=True, **download, **loading
    )
    encoder: PreTrainedModel = source.base_model
    base = f"{source.base_model_prefix}." if fine_tuned else ""
    missing = sorted(name for name in report["missing_keys"] if name.startswith(base) and "pooler" not in name)
    if missing:
        raise ValueError(
            f"name_or_path: '{name_or_path}' lacks weights of its encoder: {', '.join(missing[:5])}; pass a complete "
            "checkpoint"
        )

    if fine_tuned and not options.keys() & set(LABELS):  # otherwise they are those of the classifier
        options |= {name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")}
    encoder_config = type(encoder.config).from_dict(encoder.config.to_dict())
    encoder_config._attn_implementation = encoder.config._attn_implementation
    for name in ("id2label", "label2id", "architectures", "problem_type"):  # they describe the source's head
        setattr(encoder_config, name, None)
    model = model_class(model_class.config_class(encoder_config=encoder_config, **options)).to(encoder.dtype)
    # For model cards and, the model's own, for PEFT's adapters; Transformers does not save it.
    model.name_or_path = model.config.name_or_path = name_or_path
    names = model.encoder.state_dict().keys()  # without the pooler
    model.encoder.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in names})

    heads = [module for module in model.modules() if isinstance(module, ExitFeatures)]
    paths = {part: path.format(base=source.base_model_prefix) for part, path in family.classifier.items()}
    if fine_tuned:
        dense = source.get_submodule(paths["dense"])
        rows = _label_rows(source.config, model.config)
        if not heads:
            method = model.config.model_type
            logger.warning(
                f"'{name_or_path}': its classifier is not used, since the exits of {method} with "
                f"exit_head='{model.config.exit_head}' are built differently"
            )
        elif rows is None or model.config.last_pooling != family.pooling(encoder_config):
            logger.warning(
                f"'{name_or_path}': its classifier is not used, since its labels or its pooling are not those of the "
                "new model"
            )
        else:
            if "norm" in paths:
                last_head = next((head for head in heads if model.classifiers[-1] in head.children()), heads[-1])
                _copy(source.get_submodule(paths["norm"]), last_head.norm)
            _copy(source.get_submodule(paths["classifier"]), model.classifiers[-1], rows)
            model.adopt_classifier()
            model.took_over_classifier = True
    elif family.pooler is None or any("pooler" in name for name in report["missing_keys"]):
        return model
    else:
        dense = encoder.get_submodule(family.pooler)
    for head in heads:
        _copy(dense, head.dense)
    return model


def cut_layers(config: PreTrainedConfig, layers: int | None) -> None:
    """Change an encoder's config so that it has only the first layers.

    Args:
        config: the encoder's config, changed in place.
        layers: number of layers to keep; None keeps all.

    Raises:
        ValueError: the encoder does not have this number of layers, or is an ALBERT with several groups of layers.
    """
    if layers is None:
        return
    depth = config.num_hidden_layers
    if type(layers) is not int or not 1 <= layers <= depth:
        raise ValueError(
            f"num_hidden_layers: got {layers!r}; the encoder has layers 1 to {depth}, pass how many of the first "
            "layers to keep"
        )
    if layers < depth and getattr(config, "num_hidden_groups", 1) > 1:
        raise ValueError(
            f"num_hidden_layers: got {layers}; this ALBERT's {config.num_hidden_groups} groups of layers cannot be "
            "cut, since the number of layers decides which group each layer uses; leave it out"
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]


def _label_rows(source: PreTrainedConfig, target: PreTrainedConfig) -> list[int] | None:
    """Return for each label of the new model the row of the source's classifier; None if the labels differ."""
    multi_label = source.problem_type == "multi_label_classification"
    if source.num_labels != target.num_labels or multi_label != (target.problem_type == "multi_label_classification"):
        return None
    old_labels, new_labels = (
        [config.id2label[index] for index in range(config.num_labels)] for config in (source, target)
    )
    if sorted(old_labels) == sorted(new_labels):
        return [old_labels.index(name) for name in new_labels]
    # If one of them has only Transformers' default names, the labels are taken to be in the same order.
    default_names = [f"LABEL_{index}" for index in range(source.num_labels)]
    return list(range(source.num_labels)) if default_names in (old_labels, new_labels) else None


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module, rows: list[int] | None = None) -> None:
    """Copy the parameters of a layer; `rows` reorders its outputs."""
    for name, parameter in target.named_parameters():
        value = getattr(source, name, None)
        if value is None:
            parameter.zero_()  # the family's layer has no bias
        else:
            parameter.copy_(value if rows is None else value[rows])
