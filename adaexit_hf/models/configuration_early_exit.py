"""The base config of all methods: the encoder's config, where the exits are, and when rows exit.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import copy
import dataclasses
import difflib
import inspect
import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from transformers import AutoConfig, BertConfig, PreTrainedConfig

from .encoder_layers import family_named
from .encoder_layers import family_of
from .exit_criteria import CRITERIA
from .exit_criteria import counted

# One number for all exits, one per exit, or None for full depth.
Threshold = float | list[float] | None
# Kinds of exit heads, besides "paper".
HEADS = ("dense", "attention-pool", "pair", "attention-block")
# Arguments that say what the model predicts.
LABELS = ("num_labels", "id2label", "label2id", "problem_type")
# Values of `problem_type`, and what they are called in messages.
_TASKS = {
    "regression": "regression",
    "single_label_classification": "classification",
    "multi_label_classification": "classification with several labels at once",
}
# Arguments that Transformers' configs take besides their fields, and what Transformers adds to a saved config.
OF_TRANSFORMERS = {
    *(field.name for field in dataclasses.fields(PreTrainedConfig)),
    *LABELS,
    *("attn_implementation", "experts_implementation", "name_or_path", "output_attentions", "torch_dtype"),
    *("_name_or_path", "auto_map", "custom_pipelines", "model_type", "quantization_config", "tie_word_embeddings"),
}
# Arguments of the `from_pretrained` of models, which `pipeline(..., model_kwargs=...)` passes to that of configs, too.
LOADING_ARGUMENTS = {
    *("adapter_kwargs", "cache_dir", "code_revision", "device_map", "distributed_config", "gguf_file", "key_mapping"),
    *("ignore_mismatched_sizes", "kernel_config", "low_cpu_mem_usage", "max_memory", "offload_buffers", "proxies"),
    *("offload_folder", "offload_state_dict", "output_loading_info", "state_dict", "tp_plan", "tp_size", "variant"),
    *("trust_remote_code", "use_kernels", "use_safetensors", "weights_only", "_commit_hash"),
}


class EarlyExitConfig(PreTrainedConfig):
    """Base class of every method's config: the encoder's config, where the exits are, and when rows exit.

    A method's config sets `model_type`, and may define the following hooks; all have a default:

    - `paper_head`: the kind of head that the paper describes, or the one closest to it. Default: "dense".
    - `has_separate_heads`: whether every exit has a head of its own, so that the last one may be of another kind.
      Default: False.
    - `supports_regression`: whether the method allows `num_labels=1`. Default: False.
    - `supports_multi_label`: whether it allows `problem_type="multi_label_classification"`. Default: False.
    - `own_criterion`: name of the method's own exit criterion, or of a common one that the method compares in its own
      way (`own_ready` of the model). Default: None.
    - `default_criterion`: the criterion used if none is passed. Default: `own_criterion`, or "entropy".
    - `default_threshold`: the threshold of `own_criterion` used if none is passed. Default: None, full depth.
    - `own_bounds`: lowest and highest threshold of `own_criterion`. Default: 0 and 1.
    - `_check_task`: checks the method's arguments; calls `super()._check_task()` first.
    - `kept_when_cut`: arguments to add when a model's last layers are removed. Default: none.

    Args:
        encoder_config: config of any supported encoder, or its dict; it is copied. Default: BERT base.
        exit_threshold: when rows exit, in the unit of the exit criterion. One number for all exits, or one per exit
            (that of the last exit has no effect, since no row goes on). None runs full depth. "default": with the
            method's own criterion the method's `default_threshold`, with another criterion None.
        exit_layers: numbers of the layers with an exit, from 1, ascending, ending with the last layer. Default: all
            layers.
        exit_pooling: the sentence vector that exits read: "first", the state of the first token, as in the papers; or
            "mean", the mean over the tokens, for encoders that were trained with it, such as those of
            sentence-transformers, where the first token may be uninformative before the last layers. Default: what the
            encoder family's own classifier reads.
        exit_head: the head of every exit. "paper", that of the method's paper; "dense", the encoder family's own
            classification head, on the sentence vector; "attention-pool", for single texts, which learns what tokens
            to read (`AttentionPool`); "pair", which compares the two texts of a pair (`SegmentPair`; every row must be
            a pair, and `exit_pooling` must be left out or "mean"); or "attention-block", FastBERT's
            (`AttentionBlock`). Default: "paper".
        last_exit_head: "dense": the last exit is the encoder family's own classification head on the sentence vector
            that the family reads, whatever the other exits are; so a fine-tuned classifier stays as it is, and only
            the exits before it are new. Default: None, a head like the others.
        exit_criterion: how the readiness score is computed, which sets the unit of `exit_threshold`. The method's own
            criterion, or one that all methods allow: "entropy" (in nats, exit below the threshold),
            "normalized_entropy" (in [0, 1], exit below), "confidence" (largest probability, exit above), "margin"
            (difference of the two largest probabilities, exit above), "patience" (number of exits in a row that
            agree with the exit before them, exit at or above; 0 is full depth) or "layer" (number of the exit's layer,
            exit at or above, so that one threshold lets all rows leave after the same layer). With several labels at
            once it is that of the least sure label, see `of_least_sure_label`. Default: the method's own.
        exit_temperatures: one positive number per exit, by which its logits are divided in inference, but not for the
            loss of an objective; see `calibrate_temperatures`. Default: None, which leaves the logits as they are.
        patience_tolerance: for regression with `exit_criterion="patience"`: two exits agree if their predictions
            differ by less than this, in the unit of the labels; with 0 they never agree. Default: 0.1.
        class_weights: for classification, one positive number per class, for example larger ones for rare classes:
            weights of the labels in every cross-entropy with the labels, in all objectives of all methods and in the
            loss in eval mode, as `weight` of `torch.nn.functional.cross_entropy`. Losses that do not compare logits
            with labels stay as they are: distillation, and those of halting and certainty units. Default: None, the
            same weight for all.
            With several labels at once, one per label, as `pos_weight` of
            `torch.nn.functional.binary_cross_entropy_with_logits`: the weight of the texts that have the label, where
            those that have not weigh 1.
        label_smoothing: for classification, smoothing of the labels in the same losses, in [0, 1), as
            `label_smoothing` of `torch.nn.functional.cross_entropy`. With several labels at once the targets are
            label_smoothing / 2 and 1 - label_smoothing / 2 in place of 0 and 1. Default: 0.
        pairs: whether the model was trained on pairs of texts: True, False, or None if that is not known. Pipelines,
            `predict` and all else that tokenizes texts refuse the other kind. Default: True with `exit_head="pair"`,
            otherwise None.
        **kwargs: as in every Transformers config: `num_labels`, `id2label`, `problem_type`, `dtype`, ... With
            `problem_type="multi_label_classification"` a text may have none, one or several of the labels at once.

    Raises:
        ValueError: an unsupported encoder or task; exit layers or a threshold out of range; names of classes that are
            not those of the indices 0 to `num_labels` - 1.
        TypeError: an argument of the wrong type, or an unknown one.

    Examples:
        >>> from adaexit_hf import DeeBertConfig
        >>> config = DeeBertConfig(num_labels=2, exit_layers=[4, 8, 12], exit_threshold=0.3)
        >>> config.exit_criterion, config.thresholds(config.exit_threshold)
        ('entropy', [0.3, 0.3, 0.3])
    """

    _auto_class = "AutoConfig"  # the code is saved with the checkpoint
    sub_configs = {"encoder_config": AutoConfig}
    # Outputs of all exits are large, so Trainer's `evaluate()` must not gather them for every batch.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "exit_layer", "exit_logits", "exit_scores", "hidden_states", "attentions",
    ]  # fmt: skip
    paper_head: ClassVar[str] = "dense"
    has_separate_heads: ClassVar[bool] = False
    supports_regression: ClassVar[bool] = False
    supports_multi_label: ClassVar[bool] = False
    own_criterion: ClassVar[str | None] = None
    default_threshold: ClassVar[float | None] = None
    has_pipelines: ClassVar[bool] = False  # set by the package once it has registered the pipelines of checkpoints

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Transformers makes every config class a dataclass, whose generated __init__ would replace an inherited one.
        if "__init__" not in cls.__dict__:
            cls.__init__ = cls.__init__  # type: ignore[method-assign]
        super().__init_subclass__(**kwargs)

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        exit_threshold: Threshold | Literal["default"] = "default",
        exit_layers: list[int] | None = None,
        exit_pooling: str | None = None,
        exit_criterion: str | None = None,
        exit_temperatures: list[float] | None = None,
        patience_tolerance: float | None = None,
        class_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
        exit_head: str = "paper",
        last_exit_head: str | None = None,
        pairs: bool | None = None,
        **kwargs: Any,
    ) -> None:
        saved = kwargs.pop("_saved", {})  # passed by `from_dict`
        self._refuse_unknown(kwargs)
        kwargs = saved | kwargs | _checked_labels(kwargs)
        # Copied, since a config that another model uses would lose its attention implementation, and with it the
        # padding mask.
        if encoder_config is None:
            encoder: PreTrainedConfig = BertConfig()
        elif isinstance(encoder_config, dict):
            family_named(encoder_config.get("model_type"))
            encoder = AutoConfig.for_model(**encoder_config)
        elif isinstance(encoder_config, PreTrainedConfig):
            encoder = copy.deepcopy(encoder_config)
        else:
            raise TypeError(
                f"encoder_config: got a {type(encoder_config).__name__}; pass a config or its dict, e.g. "
                "AutoConfig.from_pretrained('bert-base-uncased'), or call the model's from_encoder_pretrained"
            )
        family_of(encoder)
        encoder._name_or_path = ""  # a published config should not show a path of the training machine
        kwargs.setdefault("attn_implementation", encoder._attn_implementation)
        kwargs.setdefault("dtype", encoder.dtype)
        self.encoder_config = encoder
        self.exit_layers: Any = list(range(1, encoder.num_hidden_layers + 1)) if exit_layers is None else exit_layers
        self.exit_pooling = exit_pooling
        self.exit_head = exit_head
        self.last_exit_head = last_exit_head
        self.pairs = pairs
        self.exit_criterion: Any = exit_criterion  # if None, set in `check`, since it can depend on `num_labels`
        self.exit_temperatures = exit_temperatures
        self.patience_tolerance = patience_tolerance
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.exit_threshold = None
        super().__init__(**kwargs)
        self.check()
        if isinstance(exit_threshold, str) and exit_threshold == "default":
            exit_threshold = self.default_threshold if self.exit_criterion == self.own_criterion else None
        thresholds = self.thresholds(exit_threshold)
        one_number = isinstance(plain(exit_threshold), float | int)
        self.exit_threshold = thresholds[0] if thresholds and one_number else thresholds

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, plain(value))
        if name == "exit_threshold":
            super().__setattr__("_threshold_unit", None if value is None else self._unit())
        elif name == "id2label" and isinstance(value, dict):  # Transformers keeps an earlier `label2id`
            super().__setattr__("label2id", {label: index for index, label in value.items()})

    def _unit(self) -> tuple[str | None, list[float] | None]:
        """Return the unit of a threshold that is set now: the criterion, and the temperatures if they matter."""
        return _score_unit(self.__dict__.get("exit_criterion"), self.__dict__.get("exit_temperatures"))

    def to_dict(self) -> dict[str, Any]:
        """Return the config as in Transformers.

        The threshold's unit is left out if it follows from the other entries. If it does not, since one of them was
        changed after the threshold was set, `from_dict` refuses the dict.
        """
        values = super().to_dict()
        if self._threshold_unit in (None, self._unit()):
            del values["_threshold_unit"]
        return values

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the config as in Transformers; models save theirs with this method.

        Args:
            save_directory: the folder.
            push_to_hub: as in Transformers.
            **kwargs: as in Transformers.

        Raises:
            TypeError: as in `own_thresholds`.
            ValueError: as in `own_thresholds`, since a saved threshold must be in the unit of the saved criterion and
                temperatures.
        """
        self.own_thresholds()
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: Any) -> "EarlyExitConfig":
        """Read a config from a file, as in Transformers.

        Args:
            json_file: the file.
        """
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "EarlyExitConfig":
        """Build a config from its dict, as in Transformers; an encoder's own config becomes `encoder_config`.

        Args:
            config_dict: dict of a config of this class, or of an encoder without a head. Entries that this class does
                not know, which a user or a later version added, become attributes, as in Transformers.
            **kwargs: arguments that replace those in the dict.

        Raises:
            ValueError: `config_dict` is the config of another method, or of an encoder with a head, whose weights have
                other names; an override does not fit the checkpoint; or `config_dict` is the `to_dict` of a config
                whose `own_thresholds` raises an error, and `exit_threshold` is not among the overrides.
            TypeError: an unknown override.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type == cls.model_type:
            if cls.has_pipelines:  # otherwise `pipeline(...)` would run the checkpoint's code in place of this package
                config_dict = {name: value for name, value in config_dict.items() if name != "custom_pipelines"}
            return_unused = kwargs.pop("return_unused_kwargs", False)
            known = {*cls.own_arguments(), *OF_TRANSFORMERS}
            unused = {name: kwargs.pop(name) for name in kwargs.keys() - known - config_dict.keys()}
            # `from_pretrained` of a model passes what is unused to the model, which refuses what it does not know.
            cls._refuse_unknown(unused, misspelt_only=return_unused, also=LOADING_ARGUMENTS)
            # Passed to the constructor, which checks them; Transformers would set them on the finished config.
            overrides = {name: kwargs.pop(name) for name in (*cls.own_arguments(), *LABELS) if name in kwargs}
            saved = cls._without_replaced(config_dict, overrides)
            extra = {name: value for name, value in saved.items() if name not in known}
            unit = extra.pop("_threshold_unit", None)
            saved = {name: value for name, value in saved.items() if name in known} | {"_saved": extra}
            config, rest = super().from_dict(saved | overrides, return_unused_kwargs=True, **kwargs)
            if unit is not None and "exit_threshold" not in overrides:
                config._threshold_unit = unit
                config.own_thresholds()
            return (config, unused | rest) if return_unused else config  # type: ignore[return-value]
        if "encoder_config" in config_dict:
            raise ValueError(
                f"pretrained_model_name_or_path: the checkpoint is of method '{model_type}', not '{cls.model_type}'; "
                "call AutoModelForSequenceClassification.from_pretrained, which chooses the class"
            )
        if any(name.endswith("Model") for name in config_dict.get("architectures") or ["Model"]):
            return super().from_dict({"encoder_config": config_dict}, **kwargs)
        raise ValueError(
            f"pretrained_model_name_or_path: the checkpoint is a {config_dict['architectures'][0]} ('{model_type}'), "
            f"not '{cls.model_type}'; call the model's from_encoder_pretrained, which starts from encoders and "
            "classifiers"
        )

    @classmethod
    def _without_replaced(cls, saved: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Return the saved arguments without those that overrides make meaningless; check that the rest fits them."""
        saved_layers = saved.get("exit_layers")
        if saved_layers is not None and overrides.get("exit_layers") not in (None, saved_layers):
            raise ValueError(
                f"exit_layers: got {overrides['exit_layers']}, but the checkpoint's exits are after layers "
                f"{saved_layers}, and an exit head works only after the layer it was trained for; leave it out, "
                "or train a model with other exits"
            )
        saved_head = saved.get("exit_head", "paper")
        head = overrides.get("exit_head", saved_head)
        if head != saved_head and {head, saved_head} != {"paper", cls.paper_head}:
            raise ValueError(
                f"exit_head: got '{head}', but the checkpoint was trained with '{saved_head}', "
                "whose weights differ; leave it out, or train a new model"
            )
        last = overrides.get("last_exit_head", saved.get("last_exit_head"))
        if last != saved.get("last_exit_head"):
            raise ValueError(
                f"last_exit_head: got {last!r}, but the checkpoint was trained with {saved.get('last_exit_head')!r}; "
                "leave it out, or train a new model"
            )
        encoder = overrides.get("encoder_config")
        if isinstance(encoder, dict) and "encoder_config" in saved:  # as in Transformers, it changes single arguments
            overrides["encoder_config"] = saved["encoder_config"] | encoder
        return cls._with_criterion(cls._with_labels(saved, overrides), overrides)

    @classmethod
    def _with_labels(cls, saved: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Return the saved arguments without the names of classes, if they are overridden."""
        names = saved.get("id2label") or {index: f"LABEL_{index}" for index in range(saved.get("num_labels") or 2)}
        saved = {name: value for name, value in saved.items() if name != "label2id"}  # follows from id2label
        given = _checked_labels(overrides)
        count = given.get("num_labels", len(given.get("id2label", names)))
        if overrides.get("problem_type", "") is None:  # as if it were not passed
            del overrides["problem_type"]
        trained = saved.get("problem_type")
        # Without a problem type, one label is a regression, and several are as in the checkpoint.
        classes = "single_label_classification" if trained == "regression" else trained
        problem: Any = overrides.get("problem_type") or ("regression" if count == 1 else classes)
        if trained and problem != trained:
            got = ", ".join(f"{name}={overrides[name]!r}" for name in LABELS if overrides.get(name) is not None)
            raise ValueError(
                f"num_labels, problem_type: got {got} ({_TASKS.get(problem, problem)}), but the checkpoint was "
                f"trained for {_TASKS.get(trained, trained)} with num_labels={len(names)}; leave it out, or train a "
                "new model with the model's from_encoder_pretrained(<encoder>, num_labels=...)"
            )
        if "id2label" in given or count != len(names):
            return {name: value for name, value in saved.items() if name not in ("id2label", "num_labels")}
        return saved

    @classmethod
    def _with_criterion(cls, saved: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        """Return the saved arguments without those that belong to a saved criterion that is overridden."""
        threshold, saved_criterion = saved.get("exit_threshold"), saved.get("exit_criterion")
        criterion = overrides.get("exit_criterion", saved_criterion)
        alone = threshold is not None and "exit_threshold" not in overrides
        if alone and criterion == saved_criterion and "exit_temperatures" in overrides:
            temperatures, saved_temperatures = plain(overrides["exit_temperatures"]), saved.get("exit_temperatures")
            if _score_unit(criterion, temperatures) != _score_unit(criterion, saved_temperatures):
                raise ValueError(
                    f"exit_temperatures: got {temperatures}, but the checkpoint's exit_threshold, {threshold}, is for "
                    f"scores with exit_temperatures={saved_temperatures}; pass exit_threshold, too: a number, or None "
                    "for full depth"
                )
        if saved_criterion in (None, criterion):
            return saved
        if alone:
            raise ValueError(
                f"exit_criterion: got {criterion!r}, but the checkpoint's exit_threshold, {threshold}, is in the unit "
                f"of '{saved_criterion}'; pass exit_threshold, too: a number, or None for full depth"
            )
        return saved | {"patience_tolerance": None}

    @classmethod
    def own_arguments(cls) -> list[str]:
        """Return the names of this config's arguments, without those that all Transformers configs have."""
        classes = cls.__mro__[: cls.__mro__.index(EarlyExitConfig) + 1]
        names = [name for klass in classes for name in inspect.signature(vars(klass)["__init__"]).parameters]
        return sorted(set(names) - {"self", "kwargs"})

    @classmethod
    def _refuse_unknown(
        cls, arguments: Iterable[str], misspelt_only: bool = False, also: Collection[str] = ()
    ) -> None:
        """Refuse arguments that are neither of this config nor of Transformers nor in `also`."""
        own = [*cls.own_arguments(), *LABELS]
        for name in arguments:
            if name in own or name in OF_TRANSFORMERS or name in also:
                continue
            close = difflib.get_close_matches(name, own, n=1, cutoff=0.85)
            # Without a prefix such as "exit_" the strings differ by much.
            close = close or [known for known in own if known.endswith(f"_{name}")]
            if close:
                raise TypeError(f"{cls.__name__} got an unknown argument '{name}'; did you mean '{close[0]}'?")
            if not misspelt_only:
                raise TypeError(
                    f"{cls.__name__} got an unknown argument '{name}'; its arguments are {', '.join(own)}, and those "
                    "of every Transformers config"
                )

    def check(self) -> None:
        """Check all arguments, for a config whose attributes were changed after it was built.

        Raises:
            ValueError: as in the constructor.
            TypeError: as in the constructor.
        """
        if self.exit_pooling is not None:
            check_choice("exit_pooling", self.exit_pooling, ("first", "mean"))
        check_choice("exit_head", self.exit_head, ("paper", *HEADS))
        if self.exit_head == "pair" and self.exit_pooling == "first":
            raise ValueError(
                "exit_pooling: got 'first', but exit_head='pair' reads the means of the two texts; leave it out"
            )
        if self.last_exit_head is not None:
            check_choice("last_exit_head", self.last_exit_head, ("dense",))
            if not self.has_separate_heads:
                raise ValueError(
                    f"last_exit_head: got {self.last_exit_head!r}, but the exits of {self.model_type} share layers, "
                    "or read the exits before them; leave it out, or use deebert, berxit or fastbert"
                )
        if self.pairs not in (None, True, False):
            raise TypeError(
                f"pairs: got {self.pairs!r}; pass True for pairs of texts, False for single texts, or None if unknown"
            )
        if self.head == "pair" and self.pairs is None:
            self.pairs = True
        if self.head == "pair" and not self.pairs:
            raise ValueError(
                "exit_head: got 'pair', which compares the two texts of a pair, but the model is for single texts "
                "(pairs=False); choose another head, e.g. 'attention-pool'"
            )
        self.exit_layers = _checked_exit_layers(self.exit_layers, self.encoder_config.num_hidden_layers)
        _checked_labels({"id2label": self.id2label, "label2id": self.label2id})
        self._check_task()
        self.check_loss()
        self.own_thresholds()

    @property
    def pooling(self) -> str:
        """The sentence vector that exits read, "first" or "mean": `exit_pooling`, or the encoder family's default."""
        return self.exit_pooling or family_of(self.encoder_config).pooling(self.encoder_config)

    @property
    def last_pooling(self) -> str:
        """The sentence vector that the last exit reads: `pooling`, or with `last_exit_head` the family's default."""
        family = family_of(self.encoder_config)
        return self.pooling if self.last_exit_head is None else family.pooling(self.encoder_config)

    @property
    def head(self) -> str:
        """The kind of the exits' heads: `exit_head`, with "paper" replaced by `paper_head`."""
        return self.paper_head if self.exit_head == "paper" else self.exit_head

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels at once: `problem_type` is "multi_label_classification"."""
        return self.problem_type == "multi_label_classification"

    @property
    def tolerance(self) -> float | None:
        """For regression, `patience_tolerance` or its default 0.1; None for classification."""
        if self.num_labels > 1:
            return None
        return 0.1 if self.patience_tolerance is None else self.patience_tolerance

    @property
    def default_criterion(self) -> str:
        """The exit criterion that is used if none is passed."""
        return self.own_criterion or "entropy"

    def _has_criterion(self, name: str) -> bool:
        """Whether the model has the weights that a criterion needs."""
        return True

    def _check_criterion(self) -> None:
        if self.exit_criterion is None:
            self.exit_criterion = self.default_criterion
        own = () if self.own_criterion is None else (self.own_criterion,)
        check_choice("exit_criterion", self.exit_criterion, tuple(dict.fromkeys((*own, *CRITERIA))))
        without_classes = (*own, *(name for name, criterion in CRITERIA.items() if criterion.score is None))
        if self.num_labels == 1 and self.exit_criterion not in without_classes:
            raise ValueError(
                f"exit_criterion: got '{self.exit_criterion}', which needs class probabilities, and num_labels=1 has "
                f"none; pass exit_criterion={' or '.join(map(repr, filter(self._has_criterion, without_classes)))}"
            )
        uses_tolerance = self.num_labels == 1 and self.exit_criterion == "patience"
        if self.patience_tolerance is not None:
            check_number("patience_tolerance", self.patience_tolerance, low=0.0)
            if not uses_tolerance:
                raise ValueError(
                    f"patience_tolerance: got {self.patience_tolerance}, which only regression with "
                    f"exit_criterion='patience' uses, not {self.num_labels} labels with '{self.exit_criterion}'; "
                    "leave it out"
                )
        if self.exit_temperatures is not None:
            if self.num_labels == 1:
                raise ValueError(
                    "exit_temperatures: regression, num_labels=1, has no probabilities to calibrate; leave it out"
                )
            exits = len(self.exit_layers)
            advice = f"exits; pass a list of {exits} positive numbers, or call model.calibrate_temperatures(dataset)"
            _check_positive("exit_temperatures", self.exit_temperatures, exits, advice)

    def check_loss(self) -> None:
        """Check `class_weights` and `label_smoothing`.

        Raises:
            ValueError: a weight is not positive and finite, or there is not one per class; the smoothing is not in
                [0, 1); or the model is for regression.
            TypeError: one of them is not a number.
        """
        if not 0 <= check_number("label_smoothing", self.label_smoothing) < 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}; pass a number in [0, 1), e.g. 0.1")
        if self.num_labels == 1 and (self.class_weights is not None or self.label_smoothing):
            raise ValueError(
                f"class_weights, label_smoothing: got {self.class_weights}, {self.label_smoothing}, but regression, "
                "num_labels=1, has no classes; leave them out"
            )
        if self.class_weights is not None:
            example = [1.0, *[2.0] * (self.num_labels - 1)]
            what = f"{'labels' if self.multi_label else 'classes'}; pass {example}, say"
            _check_positive("class_weights", self.class_weights, self.num_labels, what)

    def _check_task(self) -> None:
        if self.multi_label and not self.supports_multi_label:
            raise ValueError(
                f"problem_type: got 'multi_label_classification', which {self.model_type} does not define; use "
                "num_labels >= 2 without it for one of several classes, or a method that does: deebert, fastbert, "
                "right-tool, berxit, pabee, depth-adaptive (depth_source='reconstruction' or 'halting')"
            )
        if self.multi_label and self.num_labels == 1:
            raise ValueError(
                "num_labels: got 1 with problem_type='multi_label_classification'; for a single label that is given "
                "or not leave out problem_type and pass num_labels=2"
            )
        if self.num_labels == 1 and not self.supports_regression:
            raise ValueError(
                f"num_labels: got 1 (regression), which {self.model_type} does not define; use num_labels >= 2, or a "
                "method that does: berxit (learning to exit), pabee, depth-adaptive (depth_source='reconstruction')"
            )
        if self.num_labels > 1 and self.problem_type == "regression":
            raise ValueError(f"num_labels: got {self.num_labels} with problem_type='regression'; pass num_labels=1")
        if self.problem_type not in (None, *_TASKS):
            raise ValueError(
                f"problem_type: got {self.problem_type!r}; leave it out, or pass 'regression' with num_labels=1, "
                "'single_label_classification' or 'multi_label_classification'"
            )
        if self.problem_type is None:  # without it, pipelines apply a sigmoid to the output of regression models
            self.problem_type = "regression" if self.num_labels == 1 else "single_label_classification"
        if self.num_labels < 1:
            raise ValueError(f"num_labels: got {self.num_labels}; pass 1 for regression, 2 or more for classification")
        self._check_criterion()

    @property
    def own_bounds(self) -> tuple[float, float]:
        """Lowest and highest `exit_threshold` with the method's own criterion."""
        return (0.0, 1.0)

    @property
    def threshold_bounds(self) -> tuple[float, float]:
        """Lowest and highest `exit_threshold` with the config's exit criterion."""
        if self.exit_criterion == self.own_criterion:
            return self.own_bounds
        classes = 2 if self.multi_label else self.num_labels
        return CRITERIA[self.exit_criterion].bounds(classes, self.exit_layers)

    def thresholds(self, value: Threshold) -> list[float] | None:
        """Check a threshold, and return one number per exit.

        Args:
            value: one number for all exits, one per exit, or None.

        Returns:
            One threshold per exit, or None for full depth.

        Raises:
            TypeError: `value` is not a number, a list of numbers or None.
            ValueError: a threshold is NaN or outside `threshold_bounds`; the list is longer or shorter than the number
                of exits; or `exit_criterion` was changed to one that does not fit the task.
        """
        self._check_criterion()
        value = plain(value)
        # A patience of 0 is full depth, as in the code of PABEE's authors.
        zero = isinstance(value, Real) and not isinstance(value, bool) and value == 0
        if value is None or (zero and self.exit_criterion == "patience"):
            return None
        exits = len(self.exit_layers)
        values: list[float] = value if isinstance(value, list) else [value] * exits
        if len(values) != exits:
            raise ValueError(
                f"exit_threshold: got {len(values)} numbers for {exits} exits; pass one number, or one per exit"
            )
        low, high = self.threshold_bounds
        for number in values:
            if isinstance(number, bool) or not isinstance(number, Real):
                raise TypeError(
                    f"exit_threshold: got {number!r} of type {type(number).__name__}; pass a number in [{low:.4g}, "
                    f"{high:.4g}], one such number per exit, or None for full depth"
                )
            if not low <= number <= high:  # NaN too
                raise ValueError(
                    f"exit_threshold: got {number}; {self.model_type} with {self.num_labels} labels takes a number in "
                    f"[{low:.4g}, {high:.4g}], or None for full depth"
                )
            counts = counted(self.exit_criterion)
            if counts and number != int(number):
                raise ValueError(
                    f"exit_threshold: got {number}; {self.exit_criterion} counts {counts}, pass a whole number in "
                    f"[{low:.4g}, {high:.4g}], or None for full depth"
                )
        return [float(number) for number in values]

    def own_thresholds(self) -> list[float] | None:
        """Check the config's own `exit_threshold`, and return one number per exit.

        Returns:
            One threshold per exit, or None for full depth.

        Raises:
            TypeError: as in `thresholds`.
            ValueError: as in `thresholds`; or `exit_criterion` was changed after the threshold was set, or
                `exit_temperatures`, where the score is computed from tempered logits.
        """
        if self._threshold_unit not in (None, self._unit()):
            criterion, temperatures = self._threshold_unit
            if criterion != self.exit_criterion:
                was, now = f"in the unit of '{criterion}'", f"exit_criterion is '{self.exit_criterion}'"
            else:
                was = f"for scores with exit_temperatures={temperatures}"
                now = f"exit_temperatures is {self.exit_temperatures}"
            raise ValueError(
                f"exit_threshold: {self.exit_threshold} was set {was}, but {now} now; set exit_threshold again, to a "
                "number or to None for full depth"
            )
        return self.thresholds(self.exit_threshold)

    def kept_when_cut(self) -> dict[str, Any]:
        """Return the arguments to add to the config when a model's last layers are removed.

        With them, the remaining exits give the same predictions and scores as before.
        """
        return {}

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the encoder's config, which has the vocabulary size, initializer range and special tokens.

        Args:
            decoder: not used.
            encoder: not used.
        """
        return self.encoder_config


def _score_unit(criterion: Any, temperatures: Any) -> tuple[Any, Any]:
    """Return what readiness scores depend on: the criterion and, where the tempered logits give them, temperatures."""
    tempered = isinstance(criterion, str) and criterion in CRITERIA and CRITERIA[criterion].score is not None
    return criterion, copy.copy(temperatures) if tempered else None


def _checked_exit_layers(exit_layers: Any, depth: int) -> list[int]:
    layers = list(exit_layers) if isinstance(exit_layers, list | tuple) else []
    whole = all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers)
    if not layers or not whole or layers != sorted(set(layers)) or layers[0] < 1 or layers[-1] != depth:
        raise ValueError(
            f"exit_layers: got {exit_layers}; pass ascending layer numbers from 1 to {depth} that end with the last "
            f"layer, e.g. exit_layers={sorted({max(1, depth // 2), depth})}"
        )
    return layers


def _checked_labels(arguments: dict[str, Any]) -> dict[str, Any]:
    """Check number and names of the classes; return `num_labels`, or the names in both directions, if passed."""
    count, id2label, label2id = (plain(arguments.get(name)) for name in LABELS[:3])
    if count is not None and (type(count) is not int or count < 1):
        raise ValueError(f"num_labels: got {count!r}; pass 1 for regression, 2 or more for classification")
    if id2label is None and label2id is None:
        return {} if count is None else {"num_labels": count}
    for name, value in (("id2label", id2label), ("label2id", label2id)):
        if value is not None and not isinstance(value, dict):
            raise TypeError(f"{name}: got {value!r}; pass a dict, e.g. id2label={{0: 'negative', 1: 'positive'}}")
    inverse = None if label2id is None else {label: _index(index) for label, index in label2id.items()}
    if id2label is not None:
        name, indices, labels = "id2label", [_index(index) for index in id2label], list(id2label.values())
    else:
        name, indices, labels = "label2id", list((inverse or {}).values()), list(inverse or {})
    found = dict(zip(indices, labels, strict=True))
    names = {index: found[index] for index in range(len(labels)) if index in found}
    if len(names) != len(labels) or not names:
        raise ValueError(
            f"{name}: got {arguments[name]!r}; pass one name for each of the indices from 0 on, e.g. "
            "id2label={0: 'negative', 1: 'positive'}"
        )
    for label in names.values():
        if not isinstance(label, str):
            kind = type(label).__name__
            raise TypeError(f"{name}: got the name {label!r} of type {kind}; pass a string, e.g. {str(label)!r}")
    if len(set(names.values())) != len(names):
        raise ValueError(f"{name}: got {arguments[name]!r}, where several classes have one name; give each its own")
    if inverse not in (None, {label: index for index, label in names.items()}):
        raise ValueError(
            f"label2id: got {label2id}, which contradicts id2label={id2label}; leave it out, it follows from id2label"
        )
    if count not in (None, len(names)):
        raise ValueError(f"num_labels: got {count}, but {name} has {len(names)} names; leave out num_labels")
    return {"id2label": names, "label2id": {label: index for index, label in names.items()}}


def _index(value: Any) -> Any:
    """Return the index of a class; in JSON the keys of a dict are strings."""
    value = plain(value)
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if type(value) is int else None


def _check_positive(name: str, values: Any, count: int, what: str) -> None:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{name}: got {values!r} for {count} {what}")
    for value in values:
        if check_number(name, value) <= 0:
            raise ValueError(f"{name}: got {value}; pass positive numbers, 1 changes nothing")


def plain(value: Any) -> Any:
    """Return a value as it is saved in JSON: numbers and arrays of NumPy and PyTorch as Python's, tuples as lists.

    Args:
        value: any value; what is neither a number nor a sequence of numbers is returned as it is.

    Examples:
        >>> import torch
        >>> plain(torch.tensor([0.5, 2.0])), plain((torch.tensor(3), True, "a"))
        ([0.5, 2.0], [3, True, 'a'])
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Real) and not isinstance(value, int | float):  # a fraction
        return float(value)
    return value


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return `value` if it is one of the allowed values.

    Args:
        name: the argument's name, for the error message.
        value: the value that was passed.
        allowed: all values allowed.

    Raises:
        ValueError: `value` is another one.
    """
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; choose one of {', '.join(repr(choice) for choice in allowed)}")
    return value


def check_number(name: str, value: float, low: float = -math.inf) -> float:
    """Return `value` if it is a finite number, and at least `low`.

    Args:
        name: the argument's name, for the error message.
        value: the value that was passed.
        low: the smallest value allowed. Default: no limit.

    Raises:
        TypeError: `value` is not a number, or bool.
        ValueError: `value` is NaN, infinite, or below `low`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}; pass a number, e.g. {name}=0.5")
    if not math.isfinite(value) or value < low:
        raise ValueError(f"{name}: got {value}; pass a finite number" + (f" >= {low:g}" if math.isfinite(low) else ""))
    return value


def check_whole_number(name: str, value: int, low: int, advice: str = "") -> int:
    """Return `value` as an int if it is a whole number from `low`, NumPy's integers included.

    Args:
        name: the argument's name, for the error message.
        value: the value that was passed.
        low: the smallest value allowed.
        advice: end of the error message, e.g. "e.g. batch_size=32".

    Raises:
        ValueError: `value` is of another type (bool included), or below `low`.

    Examples:
        >>> check_whole_number("batch_size", 0, low=1, advice="e.g. batch_size=32")
        Traceback (most recent call last):
            ...
        ValueError: batch_size: got 0; pass a whole number from 1, e.g. batch_size=32
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{name}: got {value!r}; pass a whole number from {low}" + (f", {advice}" if advice else ""))
    return int(value)
