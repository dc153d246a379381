"""The command `adaexit calibrate` (needs the extra `train`)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.curves import CurvePoint, not_above
from ..evaluation.fingerprints import add_seen_rows, hashes_of
from ..evaluation.summary import beside_earlier, earlier_measurements, results_at_threshold, write_results
from ..evaluation.thresholds import best_point, check_max_drop
from ..onnx_runtime.folder import MANIFEST
from ..utils.files import check_writable, replace_text, without_nan
from .data_arguments import DataArguments
from .errors import wrong_usage
from .evaluate import curve_with_threshold, honest_scores, labelled_splits, tell_of_choice
from .options import MAX_DROP_HELP, Fraction, LoadOptions, OutputOptions, local_folder
from .printing import print_choice
from .runtime import (
    RuntimeOptions,
    load_runtime,
    ran_by,
    save_exported_threshold,
    tell_of_old_threshold,
    tell_of_void_certificates,
    trace_of,
)
from .streams import print_json


@dataclass(kw_only=True)
class CalibrationOptions(DataArguments, LoadOptions, RuntimeOptions, OutputOptions):
    """Flags of `adaexit calibrate`."""

    batch_size: int = field(default=32, metadata={"help": "Texts per batch."})
    max_drop: Fraction = field(default=Fraction(0.01), metadata={"help": MAX_DROP_HELP})
    dry_run: bool = field(default=False, metadata={"help": "Show what would be chosen, and save nothing."})
    exit_criterion: str | None = field(
        default=None,
        metadata={
            "help": "Change to this exit criterion, e.g. layer: one exit for all texts, which is hard to beat for "
            "regression. Default: that of the checkpoint."
        },
    )
    temperatures: bool = field(
        default=False,
        metadata={
            "help": "First fit one temperature per exit on half of the texts; the other half chooses the threshold."
        },
    )


def calibrate(options: CalibrationOptions, positionals: Any) -> None:
    """Choose the exit threshold that saves the most layers with a score within --max_drop of full depth, and save it.

    Only exit_threshold changes in the folder's config.json, with --temperatures also exit_temperatures, and with
    --exit_criterion also the criterion; metrics.json and curve.json get the new results. With --runtime onnx the
    threshold is chosen by the exported model's own scores, and saved beside it in early_exit.json. With --dry_run
    nothing changes.

    Prints the chosen threshold beside the old one, or with --json an object; score, mean layers and saving of the
    chosen one are cross-fitted: each half of the rows is answered with a threshold that was chosen on the other.
    """
    with wrong_usage():
        check_max_drop(options.max_drop)
    folder = local_folder(positionals.checkpoint)
    config_file = folder / "config.json"
    if not options.dry_run:
        check_writable("checkpoint", folder)
    earlier = earlier_measurements(folder)
    exported = options.runtime == "onnx"
    if exported and (options.exit_criterion is not None or options.temperatures):
        raise ValueError(
            "exit_criterion, temperatures: are part of the exported graphs; calibrate the checkpoint with them, "
            "without --runtime onnx, and export it again"
        )
    model, tokenizer = load_runtime(
        positionals.checkpoint, options, exit_criterion=options.exit_criterion, threshold_needed=False
    )
    datasets_by_split, _, metrics = labelled_splits(model, tokenizer, options)
    split, rows = next(iter(datasets_by_split.items()))
    if options.temperatures:
        halves = rows.train_test_split(test_size=0.5, seed=0)
        model.calibrate_temperatures(halves["test"], batch_size=options.batch_size)
        rows = halves["train"]
    seen = {"threshold": hashes_of(rows)}
    if options.temperatures:
        seen["temperatures"] = hashes_of(halves["test"])
    trace = trace_of(model, rows, options.batch_size)
    curve = curve_with_threshold(trace, metrics[0], model.config.exit_threshold)
    chosen = best_point(curve, options.max_drop)
    tell_of_choice("calibrate", trace, chosen.threshold, metrics[0])
    own = model.config.exit_threshold
    old_model, old_curve = model, curve
    if options.exit_criterion is not None or options.temperatures:  # the model as it was, on the same rows
        old_model, _ = load_runtime(positionals.checkpoint, options, threshold_needed=False)
        old_trace = trace_of(old_model, rows, options.batch_size)
        old_curve = curve_with_threshold(old_trace, metrics[0], old_model.config.exit_threshold)
    old = old_choice(old_model.config, old_curve)
    also = [own] if isinstance(own, float) else []
    honest = honest_scores("calibrate", trace, curve, metrics, options.max_drop, also)
    saved = json.loads(config_file.read_text())
    if exported:  # which has a threshold of its own
        saved["exit_threshold"] = own
    new_settings: dict[str, Any] = {"exit_threshold": chosen.threshold}
    if options.exit_criterion is not None:  # it also replaces settings that belong to the former one
        for name in set(model.config.own_arguments()) - {"encoder_config", "exit_threshold"}:
            value = getattr(model.config, name)
            if value != saved.get(name):
                new_settings[name] = value
    if options.temperatures:
        new_settings["exit_temperatures"] = model.config.exit_temperatures
    dataset = options.for_card()
    data = {"name": dataset.name, "split": split}
    results = {split: results_at_threshold(trace, metrics, chosen.threshold, data, honest) | ran_by(model)}
    summary = beside_earlier(earlier, {"dataset": dataset._asdict(), "results": results})
    if not options.dry_run:  # after all that could fail
        if exported:
            measured = {"max_drop": options.max_drop, "results": without_nan(results[split])}
            save_exported_threshold(model, results[split]["exit_threshold"], measured)
        else:
            replace_text(config_file, json.dumps(saved | new_settings, indent=2, sort_keys=True) + "\n")
            write_results(folder, summary, curve)
        add_seen_rows(folder, seen)
    full_depth = next(point for point in curve if point.threshold is None)
    found = chosen if honest is None else honest
    result: dict[str, Any] = {"split": split, "samples": len(trace.logits), "metric": metrics[0], **ran_by(model)}
    result |= {
        "full_depth": full_depth.score,
        "majority": chosen.majority,
        "threshold": chosen.threshold,
        "score": chosen.score if honest is None else honest.scores[metrics[0]],
        "mean_layers": found.mean_layers,
        "saving": found.saving,
        "cross_fitted_thresholds": None if honest is None else list(honest.thresholds),
        **new_settings,
        "old": old,
        "saved": None if options.dry_run else MANIFEST if exported else config_file.name,
    }
    if options.json:
        print_json(result)
    else:
        print_choice(result)
    criterion, former = model.config.exit_criterion, old_model.config.exit_criterion
    if criterion != former:
        tell_of_better_criterion(metrics[0], criterion, chosen, former, best_point(old_curve, options.max_drop))
    if options.dry_run:
        return
    tell_of_void_certificates("calibrate", folder)
    if exported:
        page = model.classifier.folder / model.classifier.precision / "report.html"
        if page.exists():
            message = f"the exported model's report.html still has the old threshold; run adaexit report {folder} ..."
            print(f"adaexit calibrate: {message}", file=sys.stderr)
        return
    if saved | new_settings != saved:
        tell_of_old_threshold("calibrate", folder)
    dropped = [name for name in earlier.get("results", {}) if name not in summary["results"]]
    if dropped:
        message = f"metrics.json no longer has {', '.join(dropped)}, measured at the old threshold"
        print(f"adaexit calibrate: {message}; run adaexit report {folder} ... on these rows", file=sys.stderr)


def tell_of_better_criterion(metric: str, criterion: str, chosen: CurvePoint, former: str, before: CurvePoint) -> None:
    """Say on stderr if the former criterion scores no lower with no more layers, and is not just equal.

    Args:
        metric: Name of the metric.
        criterion: The new criterion.
        chosen: The point that was chosen by it.
        former: The former criterion.
        before: The point that is chosen by it on the same rows.
    """
    equal = (before.score, before.mean_layers) == (chosen.score, chosen.mean_layers)
    no_worse = not_above(chosen.score, before.score, chosen.higher_is_better)
    if no_worse and before.mean_layers <= chosen.mean_layers and not equal:
        print(
            f"adaexit calibrate: on these rows {former} is better: {metric} {before.score:.4f} with "
            f"{before.mean_layers:.2f} layers, {criterion} {chosen.score:.4f} with {chosen.mean_layers:.2f}; "
            f"--exit_criterion {former} chooses by it",
            file=sys.stderr,
        )


def old_choice(config: Any, curve: Sequence[CurvePoint]) -> dict[str, Any]:
    """The threshold in a config with its criterion, and what it gives.

    Args:
        config: The config, as it was.
        curve: Trade-off curve of the model as it was. It has no point for a threshold per exit.
    """
    found: dict[str, Any] = {"exit_criterion": config.exit_criterion, "threshold": config.exit_threshold}
    point = next((point for point in curve if point.threshold == config.exit_threshold), None)
    if point is not None:
        found |= {"score": point.score, "mean_layers": point.mean_layers, "saving": point.saving}
    return found
