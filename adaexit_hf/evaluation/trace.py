"""A trace: the logits and readiness scores of every exit for every sample of a data set, kept in one file."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..models.configuration_early_exit import plain
from ..models.exit_criteria import counted, first_ready, label_sets
from ..models.padded_batches import wide_labels, wrong_labels

COMPARISONS = {"lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge}
READY_IN_WORDS = {"lt": "below", "le": "at or below", "gt": "above", "ge": "at or above"}
# What the score of an exit criterion is, to end the sentence "a text leaves at the first exit where".
CRITERIA_IN_WORDS = {
    "entropy": "the entropy of the class probabilities (0 if the exit is certain of a class)",
    "normalized_entropy": "the entropy of the class probabilities as a share of the largest possible one (0: certain, "
    "1: undecided)",
    "confidence": "the probability of the predicted class",
    "margin": "the lead of the most probable class over the second (a difference of probabilities)",
    "patience": "the number of exits in a row that gave the same answer",
    "layer": "the number of its layer (so that all texts leave at the same exit)",
    "learned": "the certainty, which a small trained unit estimates from the exit's input,",
    "dact": "the lead that the predicted class keeps whatever the later layers answer",
    "depth": "the share of the text's tokens that have reached the depth they need",
}
_TENSORS = ("logits", "scores", "labels", "lengths", "flops", "row_hashes")
_METADATA_KEY = "adaexit_hf_trace"


def comparison_of(model: Any) -> str:
    """Return the name of the comparison by which a model decides that a readiness score is ready.

    Args:
        model: An early-exit model.

    Returns:
        "lt", "le", "gt" or "ge".

    Raises:
        ValueError: Its `ready` is another function.
    """
    found = next((name for name, function in COMPARISONS.items() if function is model.ready), None)
    if found is None:
        raise ValueError(
            f"model: its `ready` is {model.ready}, which a trace cannot store; use torch.lt, torch.le, torch.gt or "
            "torch.ge"
        )
    return found


@dataclass(frozen=True, eq=False)
class ExitTrace:
    """The logits and readiness scores of every exit for every sample of a data set.

    `collect_trace` runs the model once at full depth and returns a trace. Every threshold can then be evaluated
    without running the model again.

    Attributes:
        logits: Logits of every exit, `(samples, exits, labels)`.
        scores: Readiness scores, `(samples, exits)`, in the unit of `criterion`.
        labels: True classes or numbers, `(samples,)`; with several labels at once 1 for each label of a sample and 0
            for the others, `(samples, labels)`; None for an unlabelled data set.
        exit_layers: Number of layers run at each exit, in 1..L, ascending, one per exit.
        ready: How a readiness score is compared with the threshold: `"lt"`, `"le"`, `"gt"` or `"ge"`. A sample leaves
            at the first exit where `score <ready> threshold` is true.
        criterion: The config's `exit_criterion`, which names the kind of score; None if unknown.
        bounds: Lowest and highest threshold allowed, both included; None allows any number.
        method: The model's `model_type`; None if unknown.
        label_names: Names of the classes, in order; None for regression, or if unknown.
        lengths: Tokens of each sample up to the last one that is not padding, `(samples,)`; None if unknown.
        flops: Floating-point operations of each sample up to and including each exit, `(samples, exits)`; None if
            they were not counted, see `collect_trace(..., count_flops=True)`.
        about: Anything else worth keeping that JSON can represent: data set, split, seed. Default: empty.
        settings: The config's settings that made the scores, from `score_settings`. Default: empty, unknown.
        multi_label: Whether a sample may have several labels at once. Default: False.
        row_hashes: Hash of each sample's tokens, int64, `(samples,)`, with which `overlap` finds texts that two traces
            share; None if unknown, as in traces of earlier versions. A short text can be guessed from its hash.

    Raises:
        ValueError: If there are no samples, if the shapes do not match, if a label is not a class index or not finite,
            or 0 and 1 with several labels at once, if the exit layers do not ascend, or if `ready` is unknown.

    Examples:
        >>> logits = torch.tensor([[[0.0, 1.0], [0.0, 2.0]], [[0.5, 0.4], [0.0, 2.0]]])
        >>> scores = torch.tensor([[0.73, 0.88], [0.52, 0.88]])  # confidence
        >>> trace = ExitTrace(logits, scores, torch.tensor([1, 1]), exit_layers=(6, 12), ready="gt")
        >>> trace.exits_at(0.7).tolist()  # the first sample leaves at the first exit, the second at the last
        [0, 1]
        >>> exit_logits, exit_layer = trace.at(0.7)
        >>> exit_layer.tolist(), predictions(exit_logits).tolist()
        ([6, 12], [1, 1])
        >>> trace.take(torch.tensor([1])).logits.shape
        torch.Size([1, 2, 2])
    """

    logits: Tensor
    scores: Tensor
    labels: Tensor | None
    exit_layers: tuple[int, ...]
    ready: str
    criterion: str | None = None
    bounds: tuple[float, float] | None = None
    method: str | None = None
    label_names: tuple[str, ...] | None = None
    lengths: Tensor | None = None
    flops: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    multi_label: bool = False
    row_hashes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logits.dim() != 3 or not self.logits.numel():
            raise ValueError(
                f"logits: got shape {tuple(self.logits.shape)}; a trace needs at least one sample, exit and label, "
                "shape (samples, exits, labels)"
            )
        samples, exits, labels = self.logits.shape
        shapes: dict[str, tuple[int, ...]] = {"scores": (samples, exits), "flops": (samples, exits)}
        shapes |= {"labels": (samples, labels) if self.multi_label else (samples,), "lengths": (samples,)}
        shapes |= {"row_hashes": (samples,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(
                    f"{name}: got shape {tuple(value.shape)}; {samples} samples with {exits} exits need {shape}"
                )
        if self.labels is not None:
            object.__setattr__(self, "labels", wide_labels(self.labels))
        if self.labels is not None and bool((wrong := wrong_labels(self.labels, labels, self.multi_label)).any()):
            sample = int(wrong.nonzero()[0, 0])
            allowed = "finite numbers" if labels == 1 else f"class indices from 0 to {labels - 1}"
            allowed = "0 or 1 for each label" if self.multi_label else allowed
            raise ValueError(f"labels: got {self.labels[sample].tolist()} for sample {sample}; pass {allowed}")
        if self.labels is not None and self.multi_label:
            object.__setattr__(self, "labels", self.labels.long())
        layers = list(self.exit_layers)
        if len(layers) != exits or layers != sorted(set(layers)) or layers[0] < 1:
            raise ValueError(
                f"exit_layers: got {self.exit_layers}; pass {exits} ascending layer numbers from 1, one per exit"
            )
        if self.ready not in COMPARISONS:
            raise ValueError(f"ready: got {self.ready!r}; choose one of {', '.join(map(repr, COMPARISONS))}")
        if self.label_names is not None and len(self.label_names) != labels:
            raise ValueError(f"label_names: got {len(self.label_names)} names for {labels} labels; pass one per label")

    @property
    def depth(self) -> int:
        """Number of layers run at full depth, L."""
        return self.exit_layers[-1]

    @property
    def fingerprint(self) -> str | None:
        """What the set of texts is known by: 32 hexadecimal digits that do not depend on the order of the rows.

        None if the trace has no `row_hashes`.
        """
        if self.row_hashes is None:
            return None
        return hashlib.blake2b(self.row_hashes.sort().values.cpu().numpy().tobytes(), digest_size=16).hexdigest()

    def known_labels(self) -> Tensor:
        """Return the labels, or refuse a trace without labels.

        Returns:
            The labels, `(samples,)`, or with several labels at once `(samples, labels)`.

        Raises:
            ValueError: If the trace has no labels.
        """
        if self.labels is None:
            raise ValueError("trace: has no labels; call collect_trace on a data set with a 'label' column")
        return self.labels

    def exits_at(self, threshold: float | list[float] | None) -> Tensor:
        """Return the exit that each sample takes at a threshold.

        Args:
            threshold: One number, or a list with one number per exit, as in a config, also of NumPy or PyTorch; None
                is full depth, and so is 0 if the criterion is patience.

        Returns:
            Index of the exit of each sample, `(samples,)`, in 0..exits - 1.

        Raises:
            TypeError: If the threshold is not a number, a list of numbers or None.
            ValueError: If a number is NaN or outside of `bounds`, if a patience or a layer is not a whole number, or
                if the list does not have one number per exit.
        """
        threshold = plain(threshold)
        # A patience of 0 means full depth, as in a config.
        is_zero = isinstance(threshold, Real) and not isinstance(threshold, bool) and threshold == 0
        if threshold is None or (is_zero and self.criterion == "patience"):
            return torch.full((len(self.scores),), len(self.exit_layers) - 1, device=self.scores.device)
        exits = len(self.exit_layers)
        thresholds: list[float] = threshold if isinstance(threshold, list) else [threshold] * exits
        if len(thresholds) != exits:
            raise ValueError(
                f"threshold: got {len(thresholds)} numbers for {exits} exits; pass one number, or one per exit"
            )
        low, high = self.bounds or (-torch.inf, torch.inf)
        for value in thresholds:
            whole = "whole " * bool(counted(self.criterion))
            message = (
                f"threshold: got {value!r}; {self.criterion or 'this trace'} takes {whole}numbers in [{low:.4g}, "
                f"{high:.4g}], or None for full depth"
            )
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(message)
            if not low <= value <= high or (whole and not float(value).is_integer()):  # refuses NaN as well
                raise ValueError(message)
        # Integer scores must not round the thresholds to integers.
        dtype = torch.promote_types(self.scores.dtype, torch.float32)
        limits = torch.tensor(thresholds, dtype=dtype, device=self.scores.device)
        return first_ready(COMPARISONS[self.ready](self.scores, limits))

    def at(self, threshold: float | list[float] | None) -> tuple[Tensor, Tensor]:
        """Return what early exit at a threshold gives for each sample.

        Args:
            threshold: As for `exits_at`.

        Returns:
            Logits of the exit that each sample takes, `(samples, labels)`, and the number of layers run for each
            sample, `(samples,)`.

        Raises:
            TypeError: As `exits_at`.
            ValueError: As `exits_at`.
        """
        chosen = self.exits_at(threshold)
        return self.answers(chosen), torch.tensor(self.exit_layers, device=chosen.device)[chosen]

    def answers(self, chosen: Tensor) -> Tensor:
        """Return the logits of one chosen exit per sample.

        Args:
            chosen: Index of the exit of each sample, `(samples,)`, in 0..exits - 1.

        Returns:
            The logits, `(samples, labels)`.
        """
        return at_exits(self.logits, chosen)

    def take(self, samples: Tensor) -> "ExitTrace":
        """Return the trace of some of the samples.

        Args:
            samples: Indices of the samples, `(taken,)`; an index may occur several times. Or bool, `(samples,)`: True
                for those to take.

        Returns:
            A trace of `taken` samples, in the given order.
        """
        tensors = {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}
        taken: dict[str, Any] = {name: value[samples] for name, value in tensors.items()}
        return dataclasses.replace(self, **taken)

    def save(self, path: str | Path) -> None:
        """Write the trace into one safetensors file.

        `ExitTrace.load` reads it again, and any safetensors reader can read its tensors.

        Args:
            path: Path of the file. Missing folders are created, and an existing file is overwritten.

        Raises:
            TypeError: If `about` contains something that JSON cannot represent.
        """
        facts = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        tensors = {name: value.contiguous() for name in _TENSORS if (value := facts.pop(name)) is not None}
        try:
            text = json.dumps(facts)
        except TypeError as error:
            raise TypeError(f"about: {error}; keep to dicts, lists, strings, numbers, booleans and None") from error
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": "pt", _METADATA_KEY: text})

    @classmethod
    def load(cls, path: str | Path) -> "ExitTrace":
        """Read a trace that `save` wrote.

        Args:
            path: Path of the file.

        Returns:
            The trace, on the CPU.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a saved trace.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get(_METADATA_KEY, "null"))
                tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"path: '{path}' is not a safetensors file ({error}); pass a file that ExitTrace.save wrote"
            ) from error
        if facts is None:
            raise ValueError(f"path: '{path}' contains tensors, but no trace; pass a file that ExitTrace.save wrote")
        for name in ("exit_layers", "bounds", "label_names"):
            facts[name] = None if facts[name] is None else tuple(facts[name])
        return cls(**{"labels": None} | tensors | facts)


def check_same_data(traces: Sequence[ExitTrace], names: Sequence[str] | None = None) -> None:
    """Check that all traces are of the same samples with the same labels. Their exits may differ.

    Args:
        traces: Traces of one data set.
        names: Names of the traces for error messages. Default: their indices.

    Raises:
        ValueError: If there are no traces, or if the data sets (`about["dataset"]`), samples, labels, the kind of
            labels or label names differ. Names such as LABEL_0 or 0 say nothing and do not differ from others.
    """
    if not traces:
        raise ValueError("traces: got none; pass at least one")
    titles = [f"trace {index}" for index in range(len(traces))] if names is None else [f"'{name}'" for name in names]
    first, first_title = traces[0], titles[0]
    named, named_title = next(
        ((trace, title) for title, trace in zip(titles, traces, strict=True) if not made_up(trace.label_names)),
        (first, first_title),
    )
    for title, trace in zip(titles[1:], traces[1:], strict=True):
        dataset, first_dataset = trace.about.get("dataset"), first.about.get("dataset")
        if None not in (dataset, first_dataset) and dataset != first_dataset:
            difference = f"the data set {dataset!r}, {first_title} has {first_dataset!r}"
        elif len(trace.logits) != len(first.logits):
            difference = f"{len(trace.logits)} samples, {first_title} has {len(first.logits)}"
        elif trace.logits.shape[2] != first.logits.shape[2]:
            difference = f"{trace.logits.shape[2]} labels, {first_title} has {first.logits.shape[2]}"
        elif trace.multi_label != first.multi_label:
            kinds = ("one label per sample", "several labels at once")
            difference = f"{kinds[trace.multi_label]}, {first_title} has {kinds[first.multi_label]}"
        elif (
            trace.label_names != named.label_names
            and not made_up(trace.label_names)
            and not made_up(named.label_names)
        ):
            difference = f"the classes {trace.label_names}, {named_title} has {named.label_names}"
        elif (trace.labels is None) != (first.labels is None) or (
            trace.labels is not None and first.labels is not None and not torch.equal(trace.labels, first.labels)
        ):
            difference = f"other labels than {first_title}"
        else:
            continue
        raise ValueError(f"traces: {title} has {difference}; collect all of them on the same data, in the same order")


def rule_in_words(trace: ExitTrace) -> str:
    """Return at which layers a trace has exits, and when a text leaves, in plain words."""
    return exit_rule(trace.exit_layers, trace.criterion, trace.ready, trace.multi_label)


def exit_rule(exit_layers: Sequence[int], criterion: str | None, ready: str, multi_label: bool) -> str:
    """Return at which layers there are exits, and when a text leaves, in plain words.

    Args:
        exit_layers: As in a trace.
        criterion: As in a trace.
        ready: As in a trace.
        multi_label: As in a trace.

    Examples:
        >>> exit_rule((1, 3), "confidence", "gt", False)[:58]
        'There are exits after layers 1, 3. A text leaves at the fi'
    """
    if len(exit_layers) == 1:
        return f"There is one exit, after layer {exit_layers[-1]}, at which all texts leave."
    score = CRITERIA_IN_WORDS.get(criterion or "", f"the {criterion or 'readiness'} score")
    label = ", of its least sure label," if multi_label and not counted(criterion) else ""
    layers = ", ".join(map(str, exit_layers))
    return (
        f"There are exits after layers {layers}. A text leaves at the first exit where {score}{label} is "
        f"{READY_IN_WORDS[ready]} the threshold, and otherwise at the last one."
    )


def made_up(names: Sequence[str] | None) -> bool:
    """Return whether names of classes say nothing: there are none, or they are made of the indices alone.

    Examples:
        >>> made_up(["LABEL_0", "LABEL_1"]), made_up(["0", "1"]), made_up(["no", "yes"]), made_up(None)
        (True, True, False, True)
    """
    return names is None or any(
        list(names) == [f"{prefix}{index}" for index in range(len(names))] for prefix in ("LABEL_", "")
    )


def at_exits(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the values of one chosen exit per sample.

    Args:
        values: `(samples, exits, ...)`.
        chosen: Index of the exit of each sample, `(samples,)`.

    Returns:
        `(samples, ...)`.
    """
    return values[torch.arange(len(chosen), device=chosen.device), chosen]


def predictions(logits: Tensor, multi_label: bool = False) -> Tensor:
    """Return predicted classes, or predicted numbers if there is one label, or predicted label sets.

    Args:
        logits: Logits, `(samples, ..., labels)`.
        multi_label: Whether a sample may have several labels at once. Default: False.

    Returns:
        Classes or numbers, `(samples, ...)`; with several labels at once 1 for each label whose probability is above
        0.5 and 0 for the others, `(samples, ..., labels)`.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.5, -1.0]])
        >>> predictions(logits).tolist(), predictions(logits, multi_label=True).tolist()
        ([0], [[1, 1, 0]])
    """
    if multi_label:
        return label_sets(logits)
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(dim=-1)


def same_answers(answers: Tensor, others: Tensor, multi_label: bool = False) -> Tensor:
    """Return where predictions of all exits are the same as others, such as the labels.

    Args:
        answers: Classes, `(samples, exits)`, or label sets, `(samples, exits, labels)`.
        others: Classes, `(samples,)`, or label sets, `(samples, labels)`.
        multi_label: Whether these are label sets; two are the same if they agree in all labels.

    Returns:
        bool, `(samples, exits)`.
    """
    same = answers == others[:, None]
    return same.all(dim=-1) if multi_label else same


def scored_predictions(logits: Tensor, labels: Tensor) -> Tensor:
    """Return predictions in the form that metrics take, where those from logits that are not finite count as wrong.

    Args:
        logits: Logits, `(samples, ..., labels)`.
        labels: True classes or numbers, `(samples,)`, or label sets, `(samples, labels)`.

    Returns:
        Classes, `(samples, ...)`, where a class that was predicted from logits that are not finite is replaced by one
        that differs from the label; or numbers; or label sets, `(samples, ..., labels)`, where one from logits that
        are not finite is replaced by one that is wrong in every label.

    Examples:
        >>> scored_predictions(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), torch.tensor([1, 0])).tolist()
        [1, 1]
        >>> scored_predictions(torch.tensor([[2.0, torch.nan]]), torch.tensor([[1, 0]])).tolist()
        [[0, 1]]
    """
    classes = logits.shape[-1]
    multi_label = labels.dim() == 2 and classes > 1
    predicted = predictions(logits, multi_label)
    if classes == 1:
        return predicted
    finite, labels = logits.isfinite().all(dim=-1, keepdim=multi_label), labels.to(logits.device).long()
    other = 1 - labels if multi_label else (labels + 1) % classes
    shape = (len(labels), *[1] * (logits.dim() - 2), *other.shape[1:])
    return torch.where(finite, predicted, other.view(shape))
