"""The command `adaexit report` (needs the extra `train`)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets

from ..evaluation.summary import beside_earlier, earlier_measurements, write_results
from ..evaluation.trace import rule_in_words
from ..interpretation.attribution import explain
from ..interpretation.unrolled import NoGradientError, check_one_label
from ..models.configuration_early_exit import check_whole_number
from ..utils.files import check_writable, replace_text
from ..utils.imports import needed
from ..visualization.attributed_tokens import TokenAttributions, finite_only, token_attributions
from ..visualization.html_report import build_report
from .compare import CHECKPOINTS, comparison_of, measure_all
from .evaluate import (
    EvaluationOptions,
    Texts,
    curve_with_threshold,
    labelled_splits,
    results_with_intervals,
    tell_of_choice,
    tell_of_rows_that_chose,
    trace_splits,
)
from .options import Positionals, read_config
from .printing import print_comparison, print_curve, print_results
from .runtime import certificate_of, load_runtime
from .streams import print_json


@dataclass(kw_only=True)
class ReportOptions(EvaluationOptions):
    """Flags of `adaexit report`."""

    positionals: ClassVar[Positionals] = CHECKPOINTS
    output: str | None = field(
        default=None,
        metadata={
            "help": "Folder to write to, created if it does not exist. Default: the checkpoint's folder; with several "
            "checkpoints this folder."
        },
    )
    explain: int = field(
        default=0,
        metadata={
            "help": "For this many samples, show in report.html which words led to the prediction of each exit and to "
            "its readiness score: integrated gradients (extra interpret), hundreds of forward passes per sample."
        },
    )
    explain_steps: int = field(
        default=64, metadata={"help": "Steps of each integral. More steps take longer and are more accurate."}
    )
    flops: bool = field(
        default=False,
        metadata={"help": "Also count floating-point operations: one extra forward pass per text length."},
    )


def report(options: ReportOptions, positionals: Any) -> None:
    """Measure a checkpoint on labelled texts: the score and the mean exit layer at every threshold.

    Prints tables, or with --json an object, and writes report.html with a threshold slider, and metrics.json and
    curve.json for `adaexit card`. The interval of the score is a 95 % bootstrap interval over samples. If the
    threshold was chosen on the same texts, the interval does not account for that choice.

    Several checkpoints are shown on one page, comparison.html, and compared in the table of `adaexit compare`; nothing
    is written into their folders.
    """
    if len(positionals.checkpoints) > 1:
        report_several(options, positionals.checkpoints)
        return
    (checkpoint,) = positionals.checkpoints
    exported = options.runtime == "onnx"
    own_folder = Path(checkpoint)
    output = output_folder(options, checkpoint)
    found = earlier_measurements(output)  # which refuses a file that is not ours
    if options.explain < 0:
        raise ValueError(
            f"explain: got {options.explain}; pass the number of samples to explain, 0 or more, e.g. --explain 20"
        )
    check_whole_number("explain_steps", options.explain_steps, low=2, advice="e.g. --explain_steps 64")
    if options.explain and exported:
        raise ValueError("explain: an exported model has no gradients; leave out --runtime onnx")
    if options.explain:
        needed("captum.attr", "interpret")  # fail before the slow steps
    saved = read_config(checkpoint, options).exit_threshold
    model, tokenizer = load_runtime(checkpoint, options, options.exit_threshold)
    if exported:  # whose results lie beside its graphs, since those of the checkpoint are others
        saved, own_folder = model.classifier.exit_threshold, model.classifier.folder / model.classifier.precision
        output = output_folder(options, str(own_folder))
        found = earlier_measurements(output)
    in_folder = output.resolve() == own_folder.resolve()
    earlier = found if in_folder else {}
    if options.explain:
        check_one_label(model.config)
    datasets_by_split, texts, metrics = labelled_splits(model, tokenizer, options)
    traces = trace_splits(model, datasets_by_split, options.batch_size, options.flops)
    threshold = model.config.exit_threshold
    trial = options.exit_threshold is not None and threshold != saved
    mark = "as passed" if trial else "the model's threshold"
    split, trace = next(iter(traces.items()))
    curve = curve_with_threshold(trace, metrics[0], threshold)
    results = results_with_intervals(model, traces, metrics, options.for_card().name)
    tell_of_choice("report", trace, threshold, metrics[0])
    tell_of_rows_that_chose("report", checkpoint, model, results, metrics[0])
    if options.json:
        print_json(results)
    else:
        if len(trace.exit_layers) > 1:
            print_curve(curve, f"{split} {metrics[0]}", threshold, rule_in_words(trace), mark)
        print_results(results, metrics[0])
    summary = beside_earlier(earlier, {"dataset": options.for_card()._asdict(), "results": results})
    written = summary["results"].values()
    kept = [name for name, result in results.items() if not any(result is each for each in written)]
    if in_folder and (trial or options.max_eval_samples):
        print(
            "adaexit report: metrics.json and curve.json are not written, since the threshold or the rows are not all "
            "those of the model; pass --output FOLDER to write them elsewhere",
            file=sys.stderr,
        )
    else:
        if kept:
            print(
                f"adaexit report: metrics.json keeps the earlier results of {', '.join(kept)}, which are "
                "cross-fitted: not of rows that chose the threshold, as those above are",
                file=sys.stderr,
            )
        write_results(output, summary, curve)
    folder = Path(checkpoint).resolve()
    note = f"Split: {split}. Model: {folder.name if folder.is_dir() else checkpoint}."
    if exported:
        note += f" Runtime: ONNX, {model.classifier.precision}."
    sealed, _ = certificate_of(folder, model, tokenizer) if folder.is_dir() else (None, "")
    if sealed is not None:
        note += f" Certified: {sealed}."
    method, attributions = model.config.model_type, None
    if options.explain:
        rows = datasets_by_split[split].select(range(min(options.explain, len(trace.logits))))
        explanations = explain_rows(model, tokenizer, rows, texts[split][: len(rows)], options.explain_steps)
        if explanations is not None:
            attributions = {method: explanations}
            note += (
                " Colours are integrated gradients of the prediction at the model's own threshold and of the "
                "readiness scores."
            )
    page = build_report(
        {method: trace},
        metric=metrics[0],
        thresholds={method: threshold},
        texts=texts[split],
        title=f"Early exit on {options.for_card().name}",
        attributions=attributions,
        note=note,
    ).page
    replace_text(output / "report.html", page)
    print(f"\nsaved in {output / 'report.html'}", file=sys.stderr if options.json else sys.stdout)


def output_folder(options: ReportOptions, default: str) -> Path:
    """The folder to write to, `default` if none was passed.

    Raises:
        ValueError: It is a file, or the default is no folder, or it cannot be written.
    """
    output = Path(options.output or default)
    if not output.is_dir() and (options.output is None or output.exists()):
        raise ValueError(
            f"output: '{output}' is not a folder; pass --output FOLDER, which is created if it does not exist"
        )
    check_writable("output", output)
    return output


def report_several(options: ReportOptions, checkpoints: Sequence[str]) -> None:
    """Write one page about several checkpoints, and print their comparison.

    Raises:
        ValueError: The checkpoints have different classes, or a flag is for one checkpoint.
    """
    if options.explain:
        raise ValueError(
            f"explain: got {options.explain} with {len(checkpoints)} checkpoints; pass one checkpoint, or leave it out"
        )
    output = output_folder(options, ".")
    measured = measure_all(checkpoints, options, options.flops)
    for each in measured:
        tell_of_choice(f"report: {each.name}", each.trace, each.threshold, each.metric)
    comparison = comparison_of(measured)
    if options.json:
        print_json(comparison)
    else:
        print_comparison(comparison)
    page = build_report(
        {each.name: each.trace for each in measured},
        metric=measured[0].metric,
        thresholds={each.name: each.threshold for each in measured},
        texts=measured[0].texts,
        title=f"Early exit on {options.for_card().name}",
        note=f"Split: {measured[0].split}.",
    ).page
    output.mkdir(parents=True, exist_ok=True)
    replace_text(output / "comparison.html", page)
    print(f"\nsaved in {output / 'comparison.html'}", file=sys.stderr if options.json else sys.stdout)


def explain_rows(
    model: Any, tokenizer: Any, rows: datasets.Dataset, texts: Texts, steps: int
) -> list[TokenAttributions] | None:
    """Attribute the prediction and the readiness score of every exit to the words of the texts.

    Where the readiness score has no gradient, only predictions are explained. Attributions that are not finite are
    left out, with a message on stderr.

    Args:
        model: The early-exit model.
        tokenizer: Its tokenizer.
        rows: Tokenized rows to explain.
        texts: The texts of these rows.
        steps: Steps of each integral.

    Returns:
        The attributions of every text, or None if none of them is finite.
    """
    try:
        attributions = explain(model, rows, tokenizer, steps=steps)
    except NoGradientError as error:
        reason = str(error).partition(";")[0]
        print(f"adaexit report: explaining predictions only, not readiness scores: {reason}", file=sys.stderr)
        attributions = explain(model, rows, tokenizer, scores=False, steps=steps)
    by_text = [
        token_attributions(attribution, text, tokenizer) for attribution, text in zip(attributions, texts, strict=True)
    ]
    finite = [finite_only(explanation) for explanation in by_text]
    total, total_finite = (sum(len(explanation.values) for explanation in group) for group in (by_text, finite))
    if total_finite < total:
        message = f"{total - total_finite} of {total} explanations are not finite and are left out of the page"
        print(f"adaexit report: {message}", file=sys.stderr)
    return finite if total_finite else None
