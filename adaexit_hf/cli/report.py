"""`adaexit report` (extra `train`)."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from ..evaluation.summary import write_results
from ..interpretation.attribution import explain
from ..interpretation.unrolled import NoGradientError
from ..utils.files import replace_text
from ..utils.imports import needed
from ..visualization.attributed_tokens import TokenAttributions, finite_only, token_attributions
from ..visualization.html_report import build_report
from .evaluate import EvaluationOptions, Texts, curve_of, labelled, results_with_intervals, trace_all
from .options import load
from .printing import print_curve, print_results


@dataclass(kw_only=True)
class ReportOptions(EvaluationOptions):
    """Where to, and what besides."""

    output: str | None = field(
        default=None, metadata={"help": "Folder, made if there is none. Default: the checkpoint's."}
    )
    explain: int = field(
        default=0,
        metadata={
            "help": "Say which words of the first so many samples made each exit answer as it did, and made it ready: "
            "integrated gradients (extra interpret), hundreds of passes for each sample."
        },
    )
    explain_steps: int = field(default=64, metadata={"help": "Of each integral: more take longer and err less."})
    flops: bool = field(
        default=False, metadata={"help": "Also count floating-point operations; a pass for every length of text."}
    )


def report(options: ReportOptions, given: Any) -> None:
    """What every threshold would cost and save: a table, report.html to look at, and files for `adaexit card`.

    The interval of the score is over samples: it does not cover that the threshold was chosen, if on the same texts.
    """
    output = Path(options.output or given.checkpoint)
    if not output.is_dir() and (options.output is None or output.exists()):
        raise ValueError(f"output: '{output}' is no folder; pass --output with one, which is made if there is none")
    if options.explain < 0:
        raise ValueError(
            f"explain: got {options.explain}; pass how many samples to explain, from 0, e.g. --explain 20"
        )
    if options.explain_steps < 2:
        raise ValueError(f"explain_steps: got {options.explain_steps}; pass a whole number from 2, e.g. 64")
    if options.explain:
        needed("captum.attr", "interpret")  # before everything else takes its time
    model, tokenizer = load(given.checkpoint, options)
    sets, texts, metrics = labelled(model, tokenizer, options)
    traces, threshold = trace_all(model, sets, options.batch_size, options.flops), model.config.exit_threshold
    split, trace = next(iter(traces.items()))
    curve = curve_of(trace, metrics[0], threshold)
    results = results_with_intervals(traces, metrics, threshold)
    print_curve(curve, f"{split} {metrics[0]}", threshold)
    print_results(results, metrics[0])
    everything = {"settings": options.published(), "dataset": options.for_card()._asdict(), "results": results}
    write_results(output, everything, curve)
    folder = Path(given.checkpoint).resolve()
    config, note = model.config, f"Split {split}; {folder.name if folder.is_dir() else given.checkpoint}."
    name, attributions = config.model_type, None
    if options.explain:
        rows = sets[split].select(range(min(options.explain, len(trace.logits))))
        found = explained(model, tokenizer, rows, texts[split][: len(rows)], options.explain_steps)
        if found is not None:
            attributions = {name: found}
            note += " Colours are integrated gradients of the answer at the model's own threshold, and of the scores."
    page = build_report(
        {name: trace},
        metric=metrics[0],
        thresholds={name: threshold},
        texts=texts[split],
        title=f"Early exit on {options.for_card().name}",
        attributions=attributions,
        note=note,
    ).page
    replace_text(output / "report.html", page)


def explained(
    model: Any, tokenizer: Any, rows: datasets.Dataset, texts: Texts, steps: int
) -> list[TokenAttributions] | None:
    """Which words made every exit answer, and made it ready; the answer alone where readiness has no gradient.

    Without what is not finite, which stderr tells; None where nothing else is.
    """
    progress = sys.stderr.isatty()
    try:
        found = explain(model, rows, tokenizer, steps=steps, progress=progress)
    except NoGradientError as error:
        why = str(error).partition(";")[0]
        print(f"adaexit report: explains the answers alone, not what made exits ready: {why}", file=sys.stderr)
        found = explain(model, rows, tokenizer, scores=False, steps=steps, progress=progress)
    shown = [token_attributions(one, text, tokenizer) for one, text in zip(found, texts, strict=True)]
    kept = [finite_only(each) for each in shown]
    rows_shown, rows_kept = (sum(len(each.values) for each in some) for some in (shown, kept))
    if rows_kept < rows_shown:
        lost = f"{rows_shown - rows_kept} of {rows_shown} explanations are not finite"
        print(f"adaexit report: {lost}, the page leaves them out", file=sys.stderr)
    return kept if rows_kept else None
