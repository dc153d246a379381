"""What every exit of a model says about every sample of a data set, kept in one file."""

import dataclasses
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

from ..models.batching import wide_labels, wrong_labels
from ..models.exit_heads import first_ready

COMPARISONS = {"lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge}
_TENSORS = ("logits", "scores", "labels", "lengths", "flops")
_KEY = "adaexit_hf_trace"


@dataclass(frozen=True, eq=False)
class ExitTrace:
    """What every exit said about every sample of a data set.

    Args:
        logits: (samples, exits, labels).
        scores: readiness, (samples, exits), in the unit of `criterion`.
        labels: (samples,), or None for an unlabelled set.
        exit_layers: layers run at each exit, 1..L, ascending, one per exit.
        ready: how a score is compared with the threshold: "lt", "le", "gt" or "ge".
        criterion: what the scores are, a config's `exit_criterion`; None where it is not known.
        bounds: lowest and highest threshold in that unit; None allows any number.
        method: the model's `model_type`; None where it is not known.
        label_names: of the classes, in order; None for regression, or where they are not known.
        lengths: tokens of each sample up to the last that is no pad, (samples,), or None.
        flops: floating-point operations until each exit has answered, (samples, exits), or None; see
            `collect_trace(..., count_flops=True)`.
        about: anything else that JSON can hold: data set, split, seed.

    Raises:
        ValueError: no samples; shapes that do not fit each other; a label that is no class index, or not finite; exit
            layers that do not ascend; an unknown `ready`.
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

    def __post_init__(self) -> None:
        if self.logits.dim() != 3 or not self.logits.numel():
            raise ValueError(
                f"logits: got shape {tuple(self.logits.shape)}; a trace needs at least one sample, exit and label, "
                "shape (samples, exits, labels)"
            )
        samples, exits, labels = self.logits.shape
        shapes = {"scores": (samples, exits), "labels": (samples,), "lengths": (samples,), "flops": (samples, exits)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(
                    f"{name}: got shape {tuple(value.shape)}; {samples} samples with {exits} exits need {shape}"
                )
        if self.labels is not None:
            object.__setattr__(self, "labels", wide_labels(self.labels))
        if self.labels is not None and bool((wrong := wrong_labels(self.labels, labels)).any()):
            place = int(wrong.nonzero()[0, 0])
            allowed = "finite numbers" if labels == 1 else f"class indices from 0 to {labels - 1}"
            raise ValueError(f"labels: got {self.labels[place].item()} for sample {place}; pass {allowed}")
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
        """Layers run at full depth."""
        return self.exit_layers[-1]

    def known_labels(self) -> Tensor:
        """The labels, (samples,).

        Raises:
            ValueError: the trace has none.
        """
        if self.labels is None:
            raise ValueError("trace: has no labels; collect it on a data set with a 'label' column")
        return self.labels

    def exits_at(self, threshold: float | list[float] | None) -> Tensor:
        """Index of the exit that each sample takes, (samples,); thresholds as in a config, None for full depth.

        Raises:
            TypeError: not a number, a list of numbers or None.
            ValueError: NaN, a number outside of `bounds`, a patience that is not whole, or a list whose length is not
                the number of exits.
        """
        # Patience 0 is full depth, as in a config.
        zero = isinstance(threshold, Real) and not isinstance(threshold, bool) and threshold == 0
        if threshold is None or (zero and self.criterion == "patience"):
            return torch.full((len(self.scores),), len(self.exit_layers) - 1, device=self.scores.device)
        exits = len(self.exit_layers)
        values = list(threshold) if isinstance(threshold, list | tuple) else [threshold] * exits
        if len(values) != exits:
            raise ValueError(
                f"threshold: got {len(values)} numbers for {exits} exits; pass one number, or one per exit"
            )
        low, high = self.bounds or (-torch.inf, torch.inf)
        for value in values:
            whole = "whole " * (self.criterion == "patience")
            told = (
                f"threshold: got {value!r}; {self.criterion or 'this trace'} takes {whole}numbers in [{low:.4g}, "
                f"{high:.4g}], or None for full depth"
            )
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(told)
            if not low <= value <= high or (whole and not float(value).is_integer()):  # NaN too
                raise ValueError(told)
        # Whole scores would make whole numbers of the thresholds.
        wide = torch.promote_types(self.scores.dtype, torch.float32)
        bounds = torch.tensor(values, dtype=wide, device=self.scores.device)
        return first_ready(COMPARISONS[self.ready](self.scores, bounds))

    def at(self, threshold: float | list[float] | None) -> tuple[Tensor, Tensor]:
        """Answers (samples, labels) and layers run (samples,) at one threshold; errors as for `exits_at`."""
        chosen = self.exits_at(threshold)
        return self.answers(chosen), torch.tensor(self.exit_layers, device=chosen.device)[chosen]

    def answers(self, chosen: Tensor) -> Tensor:
        """What the exit with index `chosen`, (samples,), answers to each sample, (samples, labels)."""
        return self.logits[torch.arange(len(chosen), device=chosen.device), chosen]

    def take(self, samples: Tensor) -> "ExitTrace":
        """The trace of some samples only, by their places, (taken,); a place may come more than once."""
        tensors = {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}
        taken: dict[str, Any] = {name: value[samples] for name, value in tensors.items()}
        return dataclasses.replace(self, **taken)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; `ExitTrace.load` reads it, and any safetensors reader its tensors.

        Args:
            path: of the file; its folder is made, and a file that is there is overwritten.

        Raises:
            TypeError: `about` holds what JSON cannot.
        """
        facts = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        tensors = {name: value.contiguous() for name in _TENSORS if (value := facts.pop(name)) is not None}
        try:
            text = json.dumps(facts)
        except TypeError as error:
            raise TypeError(f"about: {error}; keep to dicts, lists, strings, numbers, booleans and None") from error
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": "pt", _KEY: text})

    @classmethod
    def load(cls, path: str | Path) -> "ExitTrace":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file; ValueError: it is no saved trace.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get(_KEY, "null"))
                tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"path: '{path}' is no safetensors file ({error}); pass one that save() wrote") from error
        if facts is None:
            raise ValueError(f"path: '{path}' holds tensors, but no trace; pass a file that ExitTrace.save wrote")
        for name in ("exit_layers", "bounds", "label_names"):
            facts[name] = None if facts[name] is None else tuple(facts[name])
        return cls(**{"labels": None} | tensors | facts)


def check_same_data(traces: Sequence[ExitTrace], names: Sequence[str] | None = None) -> None:
    """Refuse traces that are not of the same samples with the same labels; their exits may differ.

    Args:
        traces: of one data set.
        names: what errors call them; default their places.

    Raises:
        ValueError: no traces, or another data set (`about["dataset"]`), other samples, labels or label names.
    """
    if not traces:
        raise ValueError("traces: got none; pass at least one")
    called = [f"trace {place}" for place in range(len(traces))] if names is None else [f"'{name}'" for name in names]
    first, other = traces[0], called[0]
    for name, trace in zip(called[1:], traces[1:], strict=True):
        sets = trace.about.get("dataset"), first.about.get("dataset")
        if None not in sets and sets[0] != sets[1]:
            what = f"the data set {sets[0]!r}, {other} has {sets[1]!r}"
        elif len(trace.logits) != len(first.logits):
            what = f"{len(trace.logits)} samples, {other} has {len(first.logits)}"
        elif trace.logits.shape[2] != first.logits.shape[2]:
            what = f"{trace.logits.shape[2]} labels, {other} has {first.logits.shape[2]}"
        elif None not in (trace.label_names, first.label_names) and trace.label_names != first.label_names:
            what = f"the classes {trace.label_names}, {other} has {first.label_names}"
        elif (trace.labels is None) != (first.labels is None) or (
            trace.labels is not None and first.labels is not None and not torch.equal(trace.labels, first.labels)
        ):
            what = f"other labels than {other}"
        else:
            continue
        raise ValueError(f"traces: {name} has {what}; collect all of them on the same data, in the same order")


def predictions(logits: Tensor) -> Tensor:
    """The class, or the number with one label: (samples, ..., labels) -> (samples, ...)."""
    return logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(dim=-1)
