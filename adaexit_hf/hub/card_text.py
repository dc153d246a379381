"""The sentences and tables of a model card, as Markdown."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers

from ..evaluation.curves import CurvePoint
from ..models.modeling_early_exit import EarlyExitForSequenceClassification, Stage
from ..version import __version__
from .card_facts import CardDataset, MeasuredSpeed, SplitMetrics

COMPARISONS = {"lt": "below", "le": "at or below", "gt": "above", "ge": "at or above"}
UNITS = {"entropy": " nats", "patience": " exits in a row that agree"}  # the others have none
NAMES = {"f1": "F1", "pearson": "Pearson correlation", "spearmanr": "Spearman correlation"}
ROWS = 10  # of a threshold table, besides the chosen threshold and full depth


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table.

    >>> print(table(["threshold", "F1"], [["0.3", 0.85]]))
    | threshold | F1 |
    |---|---|
    | 0.3 | 0.85 |
    """
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("|---" * len(line) + "|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in cells)


def readable(metric: str) -> str:
    """Name of a metric for people.

    >>> readable("f1"), readable("matthews_correlation")
    ('F1', 'matthews correlation')
    """
    return NAMES.get(metric, metric.replace("_", " "))


def shown_points(curve: Sequence[CurvePoint], chosen: Any, count: int = ROWS) -> list[CurvePoint]:
    """At most `count` points spread evenly over the layers run, and besides the chosen one and full depth.

    >>> curve = [CurvePoint(each / 10, 0.8, 1 + each / 2, 0.0) for each in range(9)]
    >>> [point.mean_layers for point in shown_points(curve, chosen=0.1, count=3)]
    [1.0, 1.5, 3.0, 5.0]
    """
    if not curve:
        return []
    low, high = (select(point.mean_layers for point in curve) for select in (min, max))
    aims = [low + (high - low) * step / max(1, count - 1) for step in range(count)]
    shown = {min(curve, key=lambda point: abs(point.mean_layers - aim)) for aim in aims}
    shown |= {point for point in curve if point.threshold is None or point.threshold == chosen}
    return sorted(shown, key=lambda point: (point.mean_layers, point.threshold is None))


def threshold_table(
    model: EarlyExitForSequenceClassification, curve: Sequence[CurvePoint], metric: str, speed: MeasuredSpeed | None
) -> str:
    """Threshold, score, mean layers, layers saved; and the speed-up where it was measured. "" without a curve."""
    chosen, speed_ups = model.config.exit_threshold, speed.speed_up if speed else {}
    points = set(shown_points(curve, chosen)) | {point for point in curve if point.threshold in speed_ups}
    rows = []
    for point in sorted(points, key=lambda point: (point.mean_layers, point.threshold is None)):
        name = "none: full depth" if point.threshold is None else f"{point.threshold:.6g}"
        cells = [name, f"{point.score:.4f}", f"{point.mean_layers:.2f}", f"{point.saving:.1%}"]
        if speed:
            measured = None if point.threshold is None else speed_ups.get(point.threshold)
            cells.append("not measured" if measured is None else f"{measured:.2f}x")
        if point.threshold == chosen:
            cells = [f"**{cells[0]}, saved**", *(f"**{cell}**" for cell in cells[1:])]
        rows.append(cells)
    header = ["threshold", metric, f"mean layers of {model.config.exit_layers[-1]}", "layers saved"]
    return table(header + (["speed-up"] if speed else []), rows) if rows else ""


def speed_note(speed: MeasuredSpeed | None) -> str:
    if speed is None:
        return (
            "Layers saved are no seconds: what that gives on the clock depends on machine and batches, and was not "
            "measured for this model."
        )
    return f"Speed-up: time at full depth divided by time with exits; {speed.how}; on {speed.machine}."


def exit_rule(model: EarlyExitForSequenceClassification) -> str:
    """When a text leaves, in one sentence, and what the saved threshold is."""
    config = model.config
    if len(config.exit_layers) == 1:
        return f"There is a single exit, so that every text runs all {config.exit_layers[-1]} layers."
    unit, bounds = UNITS.get(config.exit_criterion, ""), config.threshold_bounds
    rule = (
        f"A text leaves at the first exit whose score (`{config.exit_criterion}`) is "
        f"{COMPARISONS[model.ready.__name__]} the threshold, and at the last layer at the latest. Thresholds go from "
        f"{bounds[0]:g} to {bounds[1]:.4g}{unit}."
    )
    if config.exit_threshold is None:
        return f"{rule} None is saved: until you choose one, every text runs all layers."
    numbers = config.exit_threshold if isinstance(config.exit_threshold, list) else [config.exit_threshold]
    given = ", ".join(f"{number:.6g}" for number in numbers)
    return f"{rule} The saved one is {given}{' (one per exit)' if len(numbers) > 1 else ''}."


def exits(layers: Sequence[int]) -> str:
    """Where the exits are.

    >>> exits([1, 2, 3]), exits([4, 8, 12]), exits([6])
    ('every layer', 'layers 4, 8, 12', 'layer 6')
    """
    if list(layers) == list(range(1, layers[-1] + 1)) and len(layers) > 1:
        return "every layer"
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def headline(metrics: Mapping[str, SplitMetrics]) -> tuple[str | None, str]:
    """The first split, None without any, and the readable name of its first metric, which the curve is of."""
    for split, measured in metrics.items():
        return split, readable(next(iter(measured["at_threshold"]), "score"))
    return None, "score"


def measured_on(metrics: Mapping[str, SplitMetrics]) -> str:
    """The first split, and how many texts it has; "" without any."""
    for split, measured in metrics.items():
        return f"{split}, {measured['samples']} texts" if "samples" in measured else split
    return ""


def results_table(metrics: Mapping[str, SplitMetrics], dataset: CardDataset | None) -> str:
    """One row per split and metric; "" without any."""
    rows = []
    for split, measured in metrics.items():
        full: Mapping[str, float] = measured.get("full_depth", {})
        cost = [
            f"{measured['mean_exit_layer']:.2f}" if "mean_exit_layer" in measured else "-",
            f"{measured['saving']:.1%}" if "saving" in measured else "-",
        ]
        texts = measured.get("samples", "-")
        for metric, value in measured["at_threshold"].items():
            whole = f"{full[metric]:.4f}" if metric in full else "-"
            rows.append([split, texts, readable(metric), whole, f"{value:.4f}", *cost])
    header = ["split", "texts", "metric", "full depth", "as saved", "mean exit layer", "layers saved"]
    where = f"Measured on {dataset_link(dataset)}:\n\n" if dataset else ""
    return where + table(header, rows) if rows else ""


def dataset_link(dataset: CardDataset) -> str:
    if dataset.hub_id is None:
        return dataset.name
    return f"[{dataset.name}](https://huggingface.co/datasets/{dataset.hub_id})"


def stages_table(stages: Sequence[Stage], overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """The training runs, in order."""
    rows = [
        [
            f"`{stage.name}`",
            ", ".join(f"`{objective}`" for objective in stage.objectives),
            ", ".join(f"`{name}`" for name in stage.frozen) or "-",
            ", ".join(f"`{name}={value}`" for name, value in overrides.get(stage.name, {}).items()) or "-",
        ]
        for stage in stages
    ]
    return table(["stage", "objectives, in turn by optimizer step", "frozen", "arguments of its own"], rows)


def settings_table(what: str, values: Mapping[str, Any]) -> str:
    rows = [[f"`{name}`", f"`{value}`"] for name, value in values.items()]
    return table([what, "value"], rows) if rows else ""


def method_settings(model: EarlyExitForSequenceClassification) -> dict[str, Any]:
    """Arguments of the method's config that are set."""
    names = (name for name in model.config.own_arguments() if name != "encoder_config")
    values = {name: getattr(model.config, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def versions() -> str:
    found = {"adaexit_hf": __version__, "Transformers": transformers.__version__, "PyTorch": torch.__version__}
    return ", ".join(f"{name} {version}" for name, version in found.items()) + f", Python {platform.python_version()}"


def limitations(
    model: EarlyExitForSequenceClassification, split: str | None, speed: MeasuredSpeed | None
) -> list[str]:
    """What a reader should not expect, one sentence or two each."""
    config = model.config
    if config.num_labels == 1:
        answers = "It answers with one number, in the unit of the labels that it was trained on."
    else:
        labels = ", ".join(f"`{config.id2label[index]}`" for index in range(config.num_labels))
        answers = f"It knows the answers {labels}, and gives one of them to any text whatever."
    found = [
        answers,
        "What its encoder learned from the texts of its pretraining, prejudices included, is in its answers, at every "
        "exit.",
        "A threshold fits the texts that it was chosen on. On texts of another kind, choose it anew on labelled ones; "
        "exits may be sure of themselves and wrong.",
        "`output_hidden_states`, `output_attentions` and compiled or exported models run every layer.",
    ]
    if split is not None:
        found.append(
            f"A threshold that was chosen on `{split}` looks a little better there than it is on texts never seen."
        )
    if speed is None:
        found.append("Nothing was measured on the clock.")
    return found
