"""The command `adaexit calibrate` (needs the extra `train`)."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.collect import collect_trace
from ..evaluation.thresholds import best_point, check_max_drop
from ..utils.files import check_writable, replace_text
from .data_arguments import DataArguments
from .evaluate import curve_with_threshold, honest_scores, labelled_splits, tell_of_choice
from .options import LoadOptions, load
from .streams import print_json


@dataclass(kw_only=True)
class CalibrationOptions(DataArguments, LoadOptions):
    """Flags of `adaexit calibrate`."""

    batch_size: int = field(default=32, metadata={"help": "Texts per batch."})
    max_drop: float = field(
        default=0.01, metadata={"help": "Largest allowed drop of the score, as a fraction of the full-depth score."}
    )
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
    --exit_criterion also the criterion. Prints a JSON object with the chosen threshold; its score, mean layers and
    saving are cross-fitted: each half of the rows is answered with a threshold that was chosen on the other half.
    """
    check_max_drop(options.max_drop)
    config_file = Path(positionals.checkpoint) / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"checkpoint: '{positionals.checkpoint}' is not a local folder with a config.json; download it first, "
            f"e.g. hf download {positionals.checkpoint} --local-dir FOLDER"
        )
    check_writable("checkpoint", config_file.parent)
    model, tokenizer = load(positionals.checkpoint, options, exit_criterion=options.exit_criterion)
    datasets_by_split, _, metrics = labelled_splits(model, tokenizer, options)
    split, rows = next(iter(datasets_by_split.items()))
    if options.temperatures:
        halves = rows.train_test_split(test_size=0.5, seed=0)
        model.calibrate_temperatures(halves["test"], batch_size=options.batch_size)
        rows = halves["train"]
    trace = collect_trace(model, rows, batch_size=options.batch_size, progress=sys.stderr.isatty())
    curve = curve_with_threshold(trace, metrics[0], model.config.exit_threshold)
    chosen = best_point(curve, options.max_drop)
    tell_of_choice("calibrate", trace, chosen.threshold, metrics[0])
    own = model.config.exit_threshold
    honest = honest_scores("calibrate", trace, metrics[:1], options.max_drop, [own] if isinstance(own, float) else [])
    saved = json.loads(config_file.read_text())
    new_settings: dict[str, Any] = {"exit_threshold": chosen.threshold}
    if options.exit_criterion is not None:  # it also replaces settings that belong to the former one
        settings = set(model.config.own_arguments()) & saved.keys() - {"encoder_config", "exit_threshold"}
        now = {name: getattr(model.config, name) for name in sorted(settings)}
        new_settings |= {name: value for name, value in now.items() if value != saved[name]}
    if options.temperatures:
        new_settings["exit_temperatures"] = model.config.exit_temperatures
    replace_text(config_file, json.dumps(saved | new_settings, indent=2, sort_keys=True) + "\n")
    full_depth = next(point for point in curve if point.threshold is None)
    found = chosen if honest is None else honest
    score = chosen.score if honest is None else honest.scores[metrics[0]]
    print_json(
        {"split": split, "metric": metrics[0], "full_depth": full_depth.score, "threshold": chosen.threshold}
        | {"majority": chosen.majority}
        | {"score": score, "mean_layers": found.mean_layers, "saving": found.saving}
        | {"cross_fitted_thresholds": None if honest is None else list(honest.thresholds)}
        | new_settings
    )
    if (config_file.parent / "README.md").exists():
        message = "README.md and metrics.json still have the old threshold; run adaexit report and adaexit card"
        print(f"adaexit calibrate: {message}", file=sys.stderr)
