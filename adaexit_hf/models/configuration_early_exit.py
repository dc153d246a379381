"""The config that all methods share: an encoder's config, where the exits are, and when to take them.

This file travels inside checkpoints: see docs/contributing.md, "Files that travel with a checkpoint".
"""

import copy
import difflib
import inspect
import math
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from transformers import AutoConfig, BertConfig, PreTrainedConfig

from .encoder_layers import family_named
from .encoder_layers import family_of
from .exit_heads import CRITERIA

Threshold = float | list[float] | None


class EarlyExitConfig(PreTrainedConfig):
    """Base of every method's config; a composite of the encoder's config and the exits.

    Args:
        encoder_config: config (or its dict) of any supported encoder; it is copied. Default: BERT base.
        exit_threshold: when to exit, in the method's own unit; None runs full depth. One number for all exits, or one
            per exit (the last one never matters: the last exit always answers). "default" is the method's
            `default_threshold`, and None with another `exit_criterion` than its own.
        exit_layers: after which layers (1..L, ascending, the last included) there is an exit. Default: after all.
        exit_pooling: the sentence vector that exits read: "first", the first token, as in the papers; or "mean", over
            the tokens, for encoders that were trained with it, as sentence-transformers are: their first token may say
            nothing before the last layers. Default: as the encoder's own classifier.
        exit_criterion: what decides when to exit: the method's own score, or one that every classifier has: "entropy"
            (nats, exit below), "normalized_entropy" (in [0, 1], below), "confidence" (largest probability, above),
            "margin" (of the two largest probabilities, above) or "patience" (exits in a row that agree, at or above;
            0 is full depth). It sets the unit of `exit_threshold`. Default: the method's own.
        exit_temperatures: one positive number per exit, by which its logits are divided at inference, not
            for the loss of an objective; see `calibrate_temperatures`. Default: none.
        patience_tolerance: with `exit_criterion="patience"` and one label, exits agree when their answers differ by
            less, in the unit of the labels; with 0 they never do. Default: 0.1.
        **kwargs: as in every Transformers config: `num_labels`, `id2label`, `problem_type`, `dtype`, ...

    Raises:
        ValueError: unsupported encoder or task, exit layers or threshold out of range; TypeError: of the wrong type.
    """

    _auto_class = "AutoConfig"  # checkpoints carry their code
    sub_configs = {"encoder_config": AutoConfig}
    # The trace of a data set is large and on request: `evaluate()` must not gather it for every batch.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "exit_layer", "exit_logits", "exit_scores", "hidden_states", "attentions",
    ]  # fmt: skip
    supports_regression: ClassVar[bool] = False
    own_criterion: ClassVar[str | None] = None  # the method's own score, or its own reading of a common one
    has_pipelines: ClassVar[bool] = False  # are the pipelines registered that checkpoints carry? The package sets it
    default_threshold: ClassVar[float | None] = None  # of the own criterion, where it says by itself when to exit

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
        **kwargs: Any,
    ) -> None:
        self._refuse_misspelt(kwargs)
        # A copy: a shared live config would lose its attention implementation, and with it the padding mask.
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
        encoder._name_or_path = ""  # a path of the training machine has no place in a published config
        kwargs.setdefault("attn_implementation", encoder._attn_implementation)
        kwargs.setdefault("dtype", encoder.dtype)
        self.encoder_config = encoder
        self.exit_layers = _checked_exit_layers(exit_layers, encoder.num_hidden_layers)
        self.exit_pooling = exit_pooling
        self.exit_criterion: Any = exit_criterion  # None until `_check_task`, which knows the number of labels
        self.exit_temperatures = exit_temperatures
        self.patience_tolerance = patience_tolerance
        self.exit_threshold = None
        super().__init__(**kwargs)
        self.check()
        if isinstance(exit_threshold, str) and exit_threshold == "default":
            exit_threshold = self.default_threshold if self.exit_criterion == self.own_criterion else None
        thresholds = self.thresholds(exit_threshold)
        self.exit_threshold = thresholds[0] if thresholds and isinstance(exit_threshold, Real) else thresholds

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "exit_threshold":
            unit = None if value is None else self.__dict__.get("exit_criterion")
            super().__setattr__("_threshold_unit", unit)

    def to_dict(self) -> dict[str, Any]:
        """As in Transformers; without the unit of the threshold, which follows from the criterion."""
        return {name: value for name, value in super().to_dict().items() if name != "_threshold_unit"}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "EarlyExitConfig":
        """As in Transformers; an encoder's own config becomes `encoder_config`, as when its weights are loaded bare.

        Raises:
            ValueError: the config is another method's, or that of an encoder with a head, whose weights are named
                differently.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found == cls.model_type:
            if cls.has_pipelines:  # else `pipeline(...)` would insist on running the checkpoint's code in their place
                config_dict = {name: value for name, value in config_dict.items() if name != "custom_pipelines"}
            # Transformers sets overrides on the finished config, unchecked; these go through the constructor.
            own = {name: kwargs.pop(name) for name in cls.own_arguments() if name in kwargs}
            saved = config_dict.get("exit_layers")
            if saved is not None and own.get("exit_layers") not in (None, saved):
                raise ValueError(
                    f"exit_layers: got {own['exit_layers']}, but the checkpoint's exits are after {saved}, and a head "
                    "fits its layer only; leave it out, or train a model with other exits"
                )
            return super().from_dict(cls._with_criterion(config_dict, own) | own, **kwargs)
        if "encoder_config" in config_dict:
            raise ValueError(
                f"pretrained_model_name_or_path: the checkpoint is of method '{found}', not '{cls.model_type}'; call "
                "AutoModelForSequenceClassification.from_pretrained, which finds the class"
            )
        if any(name.endswith("Model") for name in config_dict.get("architectures") or ["Model"]):
            return super().from_dict({"encoder_config": config_dict}, **kwargs)
        raise ValueError(
            f"pretrained_model_name_or_path: the checkpoint is a {config_dict['architectures'][0]} ('{found}'), not "
            f"'{cls.model_type}'; call the model's from_encoder_pretrained, which starts from encoders and classifiers"
        )

    @classmethod
    def _with_criterion(cls, saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        """The saved arguments, without what belongs to a saved criterion that is overridden."""
        before = saved.get("exit_criterion")
        after = own.get("exit_criterion", before)
        if before in (None, after):
            return saved
        threshold = saved.get("exit_threshold")
        if threshold is not None and "exit_threshold" not in own:
            raise ValueError(
                f"exit_criterion: got {after!r}, but the checkpoint's exit_threshold, {threshold}, is in the unit of "
                f"'{before}'; pass exit_threshold, too: a number, or None for full depth"
            )
        return saved | {"patience_tolerance": None}

    @classmethod
    def own_arguments(cls) -> list[str]:
        """Names of the arguments of this config and of its base, without those of Transformers."""
        classes = (klass for klass in cls.__mro__ if klass.__module__ == cls.__module__ or klass is EarlyExitConfig)
        names = [name for klass in classes for name in inspect.signature(vars(klass)["__init__"]).parameters]
        return sorted(set(names) - {"self", "kwargs"})

    @classmethod
    def _refuse_misspelt(cls, kwargs: dict[str, Any]) -> None:
        own = [*cls.own_arguments(), "num_labels", "problem_type", "id2label", "label2id"]
        for name in kwargs:
            close = difflib.get_close_matches(name, own, n=1, cutoff=0.85)
            if close and name not in own:
                raise TypeError(f"{cls.__name__} got an unknown argument '{name}'; did you mean '{close[0]}'?")

    def check(self) -> None:
        """Everything that the arguments promise, also after a change.

        Raises:
            ValueError, TypeError: as the constructor.
        """
        if self.exit_pooling is not None:
            check_choice("exit_pooling", self.exit_pooling, ("first", "mean"))
        _checked_exit_layers(self.exit_layers, self.encoder_config.num_hidden_layers)
        self._check_task()
        self.own_thresholds()

    @property
    def pooling(self) -> str:
        """The sentence vector that exits read, "first" or "mean": `exit_pooling`, or that of the encoder's family."""
        return self.exit_pooling or family_of(self.encoder_config).pooling(self.encoder_config)

    @property
    def tolerance(self) -> float | None:
        """How near two numbers must be to agree, `patience_tolerance` or 0.1; None for classes."""
        if self.num_labels > 1:
            return None
        return 0.1 if self.patience_tolerance is None else self.patience_tolerance

    @property
    def default_criterion(self) -> str:
        """What decides when the config does not say."""
        return self.own_criterion or "entropy"

    def _check_criterion(self) -> None:
        if self.exit_criterion is None:
            self.exit_criterion = self.default_criterion
        own = () if self.own_criterion is None else (self.own_criterion,)
        check_choice("exit_criterion", self.exit_criterion, tuple(dict.fromkeys((*own, *CRITERIA))))
        if self.num_labels == 1 and self.exit_criterion not in (*own, "patience"):
            raise ValueError(
                f"exit_criterion: '{self.exit_criterion}' needs a distribution over classes, num_labels=1 has none; "
                f"pass exit_criterion={' or '.join(repr(name) for name in (*own, 'patience'))}"
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
            _check_temperatures(self.exit_temperatures, len(self.exit_layers), self.num_labels)

    def _check_task(self) -> None:
        if self.problem_type == "multi_label_classification":
            raise ValueError(
                "problem_type: 'multi_label_classification' is not supported: the papers define exits for one answer "
                "per text; use num_labels >= 2 for one of several classes, or one model per label"
            )
        if self.num_labels == 1 and not self.supports_regression:
            raise ValueError(
                f"num_labels: got 1 (regression), which {self.model_type} does not define; use num_labels >= 2, or a "
                "method that does: berxit (learning to exit), pabee, depth-adaptive (depth_source='reconstruction')"
            )
        if self.num_labels > 1 and self.problem_type == "regression":
            raise ValueError(f"num_labels: got {self.num_labels} with problem_type='regression'; pass num_labels=1")
        if self.problem_type not in (None, "regression", "single_label_classification"):
            raise ValueError(
                f"problem_type: got {self.problem_type!r}; leave it out, or pass 'regression' with num_labels=1 or "
                "'single_label_classification'"
            )
        if self.problem_type is None:  # pipelines read it: without it they squash a regression through a sigmoid
            self.problem_type = "regression" if self.num_labels == 1 else "single_label_classification"
        if self.num_labels < 1:
            raise ValueError(f"num_labels: got {self.num_labels}; pass 1 for regression, 2 or more for classification")
        self._check_criterion()

    @property
    def own_bounds(self) -> tuple[float, float]:
        """The range of the threshold in the unit of the method's own criterion."""
        return (0.0, 1.0)

    @property
    def threshold_bounds(self) -> tuple[float, float]:
        """Lowest and highest `exit_threshold`, in the unit of the exit criterion."""
        if self.exit_criterion == self.own_criterion:
            return self.own_bounds
        return CRITERIA[self.exit_criterion].bounds(self.num_labels, len(self.exit_layers))

    def thresholds(self, value: Threshold) -> list[float] | None:
        """One checked threshold per exit, or None for full depth.

        Raises:
            TypeError: not a number, a list of numbers or None; ValueError: NaN, outside the unit's range, or a list
                whose length is not the number of exits; the criterion was changed to one that does not apply.
        """
        self._check_criterion()
        # Patience 0 is full depth, as in the code of PABEE's authors.
        zero = isinstance(value, Real) and not isinstance(value, bool) and value == 0
        if value is None or (zero and self.exit_criterion == "patience"):
            return None
        exits = len(self.exit_layers)
        values = list(value) if isinstance(value, list | tuple) else [value] * exits
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
            if self.exit_criterion == "patience" and number != int(number):
                raise ValueError(
                    f"exit_threshold: got {number}; patience counts exits, pass a whole number in [{low:.4g}, "
                    f"{high:.4g}], or None for full depth"
                )
        return [float(number) for number in values]

    def own_thresholds(self) -> list[float] | None:
        """`thresholds` of the config's own `exit_threshold`.

        Raises:
            ValueError, TypeError: as there; also when the threshold was set for another criterion than the present.
        """
        if self._threshold_unit not in (None, self.exit_criterion):
            raise ValueError(
                f"exit_threshold: {self.exit_threshold} was set in the unit of '{self._threshold_unit}', but "
                f"exit_criterion is '{self.exit_criterion}' now; set exit_threshold again, to a number or to None for "
                "full depth"
            )
        return self.thresholds(self.exit_threshold)

    def kept_when_cut(self) -> dict[str, Any]:
        """Arguments by which exits say what they say now once those above them are taken away."""
        return {}

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The encoder's config: it owns vocabulary size, initializer range and special tokens."""
        return self.encoder_config


def _checked_exit_layers(exit_layers: list[int] | None, depth: int) -> list[int]:
    if exit_layers is None:
        return list(range(1, depth + 1))
    layers = list(exit_layers) if isinstance(exit_layers, list | tuple) else []
    whole = all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers)
    if not layers or not whole or layers != sorted(set(layers)) or layers[0] < 1 or layers[-1] != depth:
        raise ValueError(
            f"exit_layers: got {exit_layers}; pass ascending layer numbers from 1 to {depth} that end with the last "
            f"layer, e.g. exit_layers={sorted({max(1, depth // 2), depth})}"
        )
    return layers


def _check_temperatures(values: list[float], exits: int, num_labels: int) -> None:
    if num_labels == 1:
        raise ValueError(
            "exit_temperatures: regression, num_labels=1, has no probabilities to calibrate; leave it out"
        )
    if not isinstance(values, list | tuple) or len(values) != exits:
        raise ValueError(
            f"exit_temperatures: got {values!r} for {exits} exits; pass a list of {exits} positive numbers, or call "
            "model.calibrate_temperatures(dataset)"
        )
    for value in values:
        if check_number("exit_temperatures", value) <= 0:
            raise ValueError(f"exit_temperatures: got {value}; pass positive numbers, 1 changes nothing")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value` if it is allowed, else a ValueError that names argument, value and choices."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; choose one of {', '.join(repr(choice) for choice in allowed)}")
    return value


def check_number(name: str, value: float, low: float = -math.inf) -> float:
    """`value` if it is a finite number >= low, else a TypeError or ValueError that says so."""
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

    >>> check_whole_number("batch_size", 0, low=1, advice="e.g. batch_size=32")
    Traceback (most recent call last):
        ...
    ValueError: batch_size: got 0; pass a whole number from 1, e.g. batch_size=32
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{name}: got {value!r}; pass a whole number from {low}" + (f", {advice}" if advice else ""))
    return int(value)
