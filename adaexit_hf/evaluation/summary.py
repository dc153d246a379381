"""All metrics of a trace in one dict: at full depth, at a threshold and at every exit, and what made them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..utils.files import replace_text, without_nan
from ..version import __version__
from .cross_fit import CrossFitted
from .curves import CurvePoint
from .metrics import check_classes, compute_score
from .trace import ExitTrace, at_exits
from .tradeoff import expected_saving, majority_score, scored_answers

# The settings of a config that make the readiness scores; a trace and its curve hold for these values only.
SCORE_SETTINGS = ("exit_criterion", "exit_temperatures", "patience_tolerance")


def score_settings(config: Any) -> dict[str, Any]:
    """Return the settings of a model's config that make the readiness scores.

    Args:
        config: Config of an early-exit model.
    """
    return {name: getattr(config, name) for name in SCORE_SETTINGS}


def label_names(config: Any) -> list[str] | None:
    """Return the names of the labels in the order of the logits; None for regression.

    Args:
        config: Config of an early-exit model.
    """
    return None if config.num_labels == 1 else [str(config.id2label[index]) for index in range(config.num_labels)]


def exit_settings(config: Any) -> dict[str, Any]:
    """Return the settings of a model's config that decide where a text exits: the threshold and `score_settings`.

    Args:
        config: Config of an early-exit model.
    """
    return {"exit_threshold": config.exit_threshold} | score_settings(config)


def changed_setting(measured: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """Say which setting a measurement was made with that differs from the model's; None if there is none.

    Args:
        measured: A measurement. What it does not say is not compared.
        settings: The model's, from `exit_settings`.

    Examples:
        >>> settings = {"exit_threshold": 0.3, "exit_criterion": "entropy"}
        >>> changed_setting({"exit_threshold": 0.3, "exit_criterion": "margin"}, settings)
        "measured at exit_criterion 'margin', but the model's is 'entropy'"
        >>> print(changed_setting({"exit_threshold": 0.3}, settings))
        None
    """
    for name, value in settings.items():
        if name in measured and measured[name] != value:
            return f"measured at {name} {measured[name]!r}, but the model's is {value!r}"
    return None


def results_at_threshold(
    trace: ExitTrace,
    metrics: tuple[str, ...],
    threshold: float | list[float] | None,
    data: Mapping[str, Any] | None = None,
    honest: CrossFitted | None = None,
) -> dict[str, Any]:
    """Compute all metrics at full depth, at a threshold, at every exit, and of always giving the most frequent label.

    On the rows on which the threshold was chosen, the results with early exit (scores, mean exit layer, saving and
    histogram) are those of `cross_fitted`, and `cross_fitted_thresholds` says so.

    Args:
        trace: Trace with labels.
        metrics: Names of the metrics.
        threshold: Exit threshold, as for `ExitTrace.exits_at`; None is full depth.
        data: Names of data set and split. Default: none.
        honest: Result of `cross_fitted` with these metrics, for the rows on which the threshold was chosen. Default:
            None, for other rows.

    Returns:
        A dict that JSON can represent, but for NaN. It says what made it: threshold, criterion, temperatures, data
        with a fingerprint of the labels and lengths of all samples, and the version of this package.

    Raises:
        ValueError: If the trace has no labels, if a metric is not defined for them, or if the metric is F1 and there
            are more than two classes.
    """
    for name in metrics:
        check_classes(name, trace.logits.shape[-1], trace.multi_label)
    labels, answers = trace.known_labels(), scored_answers(trace)
    chosen = trace.exits_at(threshold) if honest is None else honest.exits.to(answers.device)
    histogram = torch.bincount(chosen, minlength=len(trace.exit_layers)).tolist()
    exit_layer = torch.tensor(trace.exit_layers, device=chosen.device)[chosen]

    def scores(answers: torch.Tensor) -> dict[str, float]:
        return {name: compute_score(name, predictions=answers, references=labels) for name in metrics}

    return {
        "samples": len(trace.logits),
        "majority": {name: majority_score(trace, name) for name in metrics},
        "full_depth": scores(answers[:, -1]),
        "at_threshold": scores(at_exits(answers, chosen))
        if honest is None
        else {name: honest.scores[name] for name in metrics},
        "exit_criterion": trace.criterion,
        **trace.settings,
        "exit_threshold": threshold,
        "data": {**(data or {}), "fingerprint": _fingerprint(trace)},
        "version": __version__,
        "mean_exit_layer": exit_layer.double().mean().item(),
        "saving": expected_saving(exit_layer, trace.depth),
        "by_exit": {str(layer): scores(answers[:, k]) for k, layer in enumerate(trace.exit_layers)},
        "exit_histogram": {str(layer): count for layer, count in zip(trace.exit_layers, histogram, strict=True)},
        "not_finite": int((~trace.logits.isfinite()).any(dim=-1).sum()),
    } | ({} if honest is None else {"cross_fitted_thresholds": list(honest.thresholds)})


def _fingerprint(trace: ExitTrace) -> str:
    """Return a hash of the labels and lengths of all samples, which another data set or order would change."""
    values = [None if tensor is None else tensor.tolist() for tensor in (trace.labels, trace.lengths)]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def earlier_measurements(folder: Path) -> dict[str, Any]:
    """Read a folder's `metrics.json`.

    Args:
        folder: Folder of a model.

    Returns:
        Its contents; {} if there is no such file.

    Raises:
        ValueError: The file is not one of ours.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    try:
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(result["at_threshold"], dict) for result in earlier["results"].values()):
            raise TypeError("at_threshold is no object")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"folder: '{path}' was not written by adaexit_hf ({type(error).__name__}: {error}); move it away: adaexit "
            "report writes it anew"
        ) from error
    return earlier


def beside_earlier(earlier: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Add the measurements of a model to earlier ones, for `write_results`.

    What training wrote about itself stays. An earlier result stays unless it was measured with other exit settings, or
    the new one is of the same split of the same data set. Of these two, a cross-fitted result on the same rows stays:
    the threshold was chosen on these rows, so that a new result on them would be too good.

    Args:
        earlier: From `earlier_measurements`.
        summary: `dataset` (a dict of `CardDataset`), and `results` (split -> result of `results_at_threshold`).

    Returns:
        The contents for `metrics.json`. The new splits are first. A split of another data set than that of the earlier
        results is called "NAME, SPLIT".
    """
    dataset, new = earlier.get("dataset") or summary["dataset"], summary["results"]
    if summary["dataset"]["name"] != dataset["name"]:
        new = {f"{summary['dataset']['name']}, {split}": result for split, result in new.items()}
    made_with = next(iter(new.values()))
    settings = {name: made_with[name] for name in ("exit_threshold", *SCORE_SETTINGS) if name in made_with}
    # Results that do not say what they were measured with are of an older version; they are dropped, too.
    kept = {
        split: result
        for split, result in earlier.get("results", {}).items()
        if settings.keys() <= result.keys() and not changed_setting(result, settings)
    }
    for split in [split for split in new if split in kept]:
        same_rows = kept[split].get("data", {}).get("fingerprint") == new[split]["data"]["fingerprint"]
        cross_fitted = "cross_fitted_thresholds" in kept[split] and "cross_fitted_thresholds" not in new[split]
        if not (same_rows and cross_fitted):
            del kept[split]
    return dict(earlier) | {"dataset": dataset, "results": new | kept}


def write_results(folder: Path, results: dict[str, Any], curve: list[CurvePoint]) -> None:
    """Write metrics.json and curve.json into a folder, which is created if missing. NaN and infinity become null."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {"metrics": results, "curve": [point._asdict() for point in curve]}.items():
        replace_text(folder / f"{name}.json", json.dumps(without_nan(value), indent=2))
